/* A processor and a system that have AMX, for `core/kernels/processor.c`. EMULATED_AMX in the environment takes something away: the
 * instructions ("absent"), their registers ("small", "unsaved", "refused"), or their truth ("wrong", see amx.h). */
#include_next <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline int emulated_lack(const char *what) { return getenv("EMULATED_AMX") && !strcmp(getenv("EMULATED_AMX"), what); }

static inline int emulated_cpuid(unsigned leaf, unsigned part, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  *a = *b = *c = *d = 0;
  if (leaf == 7 && part == 0) *d = emulated_lack("absent") ? 0 : 1u << 22 | 1u << 24;
  if (leaf == 0x1d && part == 1) *a = 8192 | 1024u << 16, *b = 64 | 8u << 16, *c = emulated_lack("small") ? 8 : 16;
  return 1;
}
static inline unsigned long long emulated_saved(void) { return emulated_lack("unsaved") ? 0xe7 : 0x600e7; }
static inline long emulated_call(long number, long what, long which) {
  (void)number;
  if (what == 0x1023 && which == 18 && !emulated_lack("refused")) return 0;
  errno = EPERM;
  return -1;
}

#undef _xgetbv
#define __get_cpuid_count emulated_cpuid
#define _xgetbv(which) emulated_saved()
#define syscall(number, what, which) emulated_call(number, what, which)
