#define CLEARFOLD_AVX512
#include "set.h"
