#if defined(CLEARFOLD_WITHOUT_AMX)
/* setup.py says so where the compiler is too old for it */
#else
#define CLEARFOLD_AMX
#include "set.h"
#endif
