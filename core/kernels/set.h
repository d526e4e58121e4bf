/* All kernels of one instruction set; of the one that computes in float16, those of layers, as what is left is computed in float32
 * by the set of AVX-512. */
#include "jobs.h"
#include "simd.h"
#include "team.h"
#include "product.h"
#include "winograd.h"
#include "gated.h"
#include "direct.h"
#include "gradient.h"
#include "windows.h"
#if !defined(CLEARFOLD_AVX512FP16)
#include "weights.h"
#include "adam.h"
#include "pictures.h"
#endif
CLEARFOLD_POP
