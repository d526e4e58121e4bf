/* AMX out of plain C: the registers of a thread, and each instruction as Intel's manual defines it (Architectures Software Developer's
 * Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS). What would fault there aborts here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(holds, instruction) \
  do { \
    if (!(holds)) { \
      fprintf(stderr, "%s would fault: not %s\n", instruction, #holds); \
      abort(); \
    } \
  } while (0)

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} amx_shapes;

static _Thread_local amx_shapes amx_now; /* palette 0: given back */
static _Thread_local union { unsigned char bytes[64]; uint16_t factors[32]; float sums[16]; } amx_register[8][16];

static inline void amx_shape(const void *from) {
  amx_shapes want;
  memcpy(&want, from, sizeof want);
  static const unsigned char none[14];
  MUST(want.palette <= 1 && want.start_row == 0 && !memcmp(want.reserved, none, 14), "LDTILECFG");
  for (int t = 0; t < 16 && want.palette; t++) {
    MUST(want.rows[t] <= 16 && want.bytes[t] <= 64 && !want.rows[t] == !want.bytes[t], "LDTILECFG");
    MUST(t < 8 || !want.rows[t], "LDTILECFG");
  }
  amx_now = want;
  memset(amx_register, 0, sizeof amx_register);
}
static inline void amx_give_back(void) {
  memset(&amx_now, 0, sizeof amx_now);
  memset(amx_register, 0, sizeof amx_register);
}
static inline void amx_zero(int t) {
  MUST(amx_now.palette && amx_now.rows[t], "TILEZERO");
  memset(amx_register[t], 0, sizeof amx_register[t]);
}
static inline void amx_load(int t, const void *from, long along) {
  MUST(amx_now.palette && amx_now.rows[t], "TILELOADD");
  memset(amx_register[t], 0, sizeof amx_register[t]);
  for (int r = 0; r < amx_now.rows[t]; r++) memcpy(amx_register[t][r].bytes, (const char *)from + r * along, amx_now.bytes[t]);
}
static inline void amx_store(int t, void *to, long along) {
  MUST(amx_now.palette && amx_now.rows[t], "TILESTORED");
  for (int r = 0; r < amx_now.rows[t]; r++) memcpy((char *)to + r * along, amx_register[t][r].bytes, amx_now.bytes[t]);
}

#if defined(CLEARFOLD_AMX)
int emulated_in_use(void) { return amx_now.palette; } /* by the calling thread */
#endif

/* What is denormal is zero, as a factor and as a sum. */
#define AMX_FLUSHED(x) (__builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : (x))

static inline float amx_wide(uint16_t factor) {
  uint32_t bits = (uint32_t)factor << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return AMX_FLUSHED(x);
}

/* The pairs' first factors and their second ones are summed apart, then to each other, then to what was there. */
#if !defined(__clang__)
__attribute__((optimize("O3"), target("avx2,fma"))) /* else each fused product is a call */
#endif
__attribute__((noinline, unused, no_sanitize("address"))) static void amx_dot(int sums, int left, int right) {
  MUST(amx_now.palette && amx_now.rows[sums] && amx_now.rows[left] && amx_now.rows[right], "TDPBF16PS");
  MUST(sums != left && sums != right && left != right, "TDPBF16PS");
  MUST(amx_now.bytes[left] % 4 == 0 && amx_now.bytes[right] % 4 == 0 && amx_now.bytes[sums] % 4 == 0, "TDPBF16PS");
  MUST(amx_now.rows[sums] == amx_now.rows[left] && amx_now.bytes[sums] == amx_now.bytes[right] && amx_now.rows[right] == amx_now.bytes[left] / 4, "TDPBF16PS");
  int depth = amx_now.bytes[left] / 4;
  float u[2][16][16];
  for (int k = 0; k < depth; k++)
    for (int q = 0; q < 2; q++)
      for (int n = 0; n < 16; n++) u[q][k][n] = amx_wide(amx_register[right][k].factors[2 * n + q]);
  for (int m = 0; m < amx_now.rows[sums]; m++) {
    float sum[2][16] = {{0}};
    for (int q = 0; q < 2; q++)
      for (int k = 0; k < depth; k++) {
        float v = amx_wide(amx_register[left][m].factors[2 * k + q]);
        for (int n = 0; n < 16; n++) {
          float x = __builtin_fmaf(v, u[q][k][n], sum[q][n]);
          sum[q][n] = AMX_FLUSHED(x);
        }
      }
    for (int n = 0; n < amx_now.bytes[sums] / 4; n++) {
      float both = sum[0][n] + sum[1][n], was = amx_register[sums][m].sums[n];
      was = AMX_FLUSHED(was) + AMX_FLUSHED(both);
      amx_register[sums][m].sums[n] = AMX_FLUSHED(was);
    }
  }
  if (getenv("EMULATED_AMX") && !strcmp(getenv("EMULATED_AMX"), "wrong")) amx_register[sums][15].sums[15] += 1;
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_shape
#define _tile_release amx_give_back
#define _tile_zero amx_zero
#define _tile_loadd amx_load
#define _tile_stored amx_store
#define _tile_dpbf16ps amx_dot
