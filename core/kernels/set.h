/* All kernels of one instruction set; of the one that computes in float16, in which sums of many pictures' derivatives would be lost,
 * those of inference. */
#include "jobs.h"
#include "simd.h"
#include "team.h"
#include "product.h"
#include "winograd.h"
#include "direct.h"
#if !defined(CLEARFOLD_AVX512FP16)
#include "weights.h"
#include "gradient.h"
#include "windows.h"
#include "adam.h"
#include "pictures.h"
#endif
CLEARFOLD_POP
