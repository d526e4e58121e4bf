/* All kernels of one instruction set. */
#include "jobs.h"
#include "simd.h"
#include "team.h"
#include "product.h"
#include "winograd.h"
#include "direct.h"
#include "windows.h"
#include "adam.h"
#include "pictures.h"
CLEARFOLD_POP
