#define CLEARFOLD_AVX512BF16
#include "set.h"
