#if defined(CLEARFOLD_WITHOUT_FP16)
/* setup.py says so where the compiler is too old for it */
#else
#define CLEARFOLD_AVX512FP16
#include "set.h"
#endif
