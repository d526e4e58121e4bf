/* What this processor and its system run. The compiler's own check asks both: cpuid, and which registers the system saves. AMX is asked for
 * here, as its registers are given on request only; then one small product must come out as that of vectors. */
#include "team.h"

#include <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int clearfold_runs_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

int clearfold_runs_avx512(void) {
  return clearfold_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

int clearfold_runs_avx512_bf16(void) { return clearfold_runs_avx512() && __builtin_cpu_supports("avx512bf16"); }

#if defined(CLEARFOLD_WITHOUT_FP16)
int clearfold_runs_avx512_fp16(void) { return 0; }
#else
int clearfold_runs_avx512_fp16(void) { return clearfold_runs_avx512() && __builtin_cpu_supports("avx512fp16") && __builtin_cpu_supports("f16c"); }
#endif

#if !defined(CLEARFOLD_WITHOUT_AMX)
void sample_amx(const uint16_t *v, const uint16_t *u, long C, float *m);
void sample_avx512_bf16(const uint16_t *v, const uint16_t *u, long C, float *m);

/* Do both compute the same? On whole numbers from -7 to 7, whose sums are exact in any order. */
static int multiplies_by_amx(void) {
  enum { SIDE = 48, C = 80 };
  static uint16_t v[SIDE * C], u[C * SIDE];
  static float ours[SIDE * SIDE], expected[SIDE * SIDE];
  uint32_t random = 1;
  for (int i = 0; i < 2 * SIDE * C; i++) {
    random = random * 1664525 + 1013904223;
    float whole = (int)(random >> 16) % 15 - 7;
    uint32_t bits;
    memcpy(&bits, &whole, sizeof bits);
    *(i < SIDE * C ? v + i : u + i - SIDE * C) = bits >> 16;
  }
  sample_amx(v, u, C, ours);
  sample_avx512_bf16(v, u, C, expected);
  return !memcmp(ours, expected, sizeof ours);
}

__attribute__((target("xsave"))) static uint64_t saved(void) { return _xgetbv(0); }

/* Why AMX can't be used although the processor reports it; "" if it can. */
static void ask_for_amx(char *refusal, size_t room) {
  enum { TILES = 3 << 17, TILE_DATA = 18 }; /* of the registers that the system saves */
  enum { REQUEST = 0x1023 };                /* ARCH_REQ_XCOMP_PERM of Linux's asm/prctl.h, from 5.16 on: for the process and all its threads */
  unsigned a, bytes_and_names, rows, d;
  refusal[0] = 0;
  if (!clearfold_runs_avx512_bf16())
    snprintf(refusal, room, "not AVX-512 with bfloat16");
  else if (!__get_cpuid_count(0x1d, 1, &a, &bytes_and_names, &rows, &d) || (bytes_and_names & 0xffff) < 64 || bytes_and_names >> 16 < 8 || (rows & 0xffff) < 16)
    snprintf(refusal, room, "its registers are smaller than 16 rows of 64 bytes");
  else if ((saved() & TILES) != TILES)
    snprintf(refusal, room, "the system does not save its registers");
#if defined(SYS_arch_prctl)
  else if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA))
    snprintf(refusal, room, "the system refuses its registers: %s", strerror(errno));
#else
  else if (1)
    snprintf(refusal, room, "only Linux is known to give its registers");
#endif
  else if (!multiplies_by_amx())
    snprintf(refusal, room, "its products are not those of AVX-512");
}
#else
static void ask_for_amx(char *refusal, size_t room) { snprintf(refusal, room, "the compiler that built the kernels does not know it"); }
#endif

static int runs_amx;
static char refusal[160];
static pthread_once_t asked = PTHREAD_ONCE_INIT;

static void find_amx(void) {
  unsigned a, b, c, features;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &features) || !(features >> 22 & 1) || !(features >> 24 & 1)) return; /* AMX-BF16, AMX-TILE */
  ask_for_amx(refusal, sizeof refusal);
  runs_amx = !refusal[0];
}

int clearfold_runs_amx(void) {
  pthread_once(&asked, find_amx);
  return runs_amx;
}

/* Why a processor that has AMX does not run it, in words that follow "it has AMX, but"; else "". */
const char *clearfold_refuses_amx(void) {
  pthread_once(&asked, find_amx);
  return refusal;
}

/* Which sources this library was built from: a checkout's may have changed since. */
const char *clearfold_sources(void) {
#ifdef CLEARFOLD_SOURCES
  return CLEARFOLD_SOURCES;
#else
  return "";
#endif
}
