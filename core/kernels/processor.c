/* What this processor and its system run. The compiler's own check asks both: cpuid, and which registers the system saves. */
#include "team.h"

int clearfold_runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

int clearfold_runs_avx512(void) {
  return clearfold_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

int clearfold_runs_avx512_bf16(void) { return clearfold_runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

/* Which sources this library was built from: a checkout's may have changed since. */
const char *clearfold_sources(void) {
#ifdef CLEARFOLD_SOURCES
  return CLEARFOLD_SOURCES;
#else
  return "";
#endif
}
