#define CLEARFOLD_AVX2
#include "set.h"
