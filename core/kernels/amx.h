/* Matrix products by AMX: eight registers of 16 rows of 64 bytes, and TDPBF16PS, which adds to 16x16 floats what 16 rows of 32 factors and
 * 16 rows of 16 pairs of factors make (Intel, "Architectures Software Developer's Manual", volume 2). Knows nothing of convolutions.
 *
 * The right side is packed as that instruction reads it, because vectors read it so too: a row of pairs for every column, see `product.h`.
 * Registers 0 to 3 hold sums of 2x2 blocks, 4 and 5 two blocks of the left side, 6 and 7 of the right one, so that each block loaded is
 * multiplied twice. What a depth of 32 leaves over is added by vectors. A row's sums do not depend on which rows are beside it.
 */

enum { BLOCK = 16, DEPTH = 32 }; /* rows and columns, and factors multiplied at once */

/* A thread's registers are shaped before its first product and given back after its last: whoever multiplies next, torch for one, has
 * shapes of its own, and until they are given back the system saves eight kilobytes more whenever another thread's turn comes. */
INLINE void begin_products(void) {
  static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_of_a_row[16];
    uint8_t rows[16];
  } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&shapes);
}
INLINE void end_products(void) { _tile_release(); }

/* m (down x across blocks, rows `along` apart) = v u, or += where `more` says so: C factors of each row of v, `row` apart, and of each of
 * u's `width` columns. */
INLINE void amx_product(const factor *v, long row, const factor *u, long width, long C, float *m, long along, int more, const int down, const int across) {
  float *below = m + BLOCK * along;
  long bytes = along * (long)sizeof(float), left = row * (long)sizeof(factor), right = width * PAIR * (long)sizeof(factor);
  __asm__ volatile("" ::: "memory"); /* gcc does not know that registers are loaded from memory: all is to be stored by now */
  if (more) {
    _tile_loadd(0, m, bytes);
    if (across > 1) _tile_loadd(1, m + BLOCK, bytes);
    if (down > 1) _tile_loadd(2, below, bytes);
    if (down > 1 && across > 1) _tile_loadd(3, below + BLOCK, bytes);
  } else {
    _tile_zero(0);
    if (across > 1) _tile_zero(1);
    if (down > 1) _tile_zero(2);
    if (down > 1 && across > 1) _tile_zero(3);
  }
  for (long c = 0; c < C; c += DEPTH) {
    _tile_loadd(6, u + c * width, right);
    _tile_loadd(4, v + c, left);
    _tile_dpbf16ps(0, 4, 6);
    if (across > 1) {
      _tile_loadd(7, u + c * width + BLOCK * PAIR, right);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (down > 1) {
      _tile_loadd(5, v + BLOCK * row + c, left);
      _tile_dpbf16ps(2, 5, 6);
      if (across > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, m, bytes);
  if (across > 1) _tile_stored(1, m + BLOCK, bytes);
  if (down > 1) _tile_stored(2, below, bytes);
  if (down > 1 && across > 1) _tile_stored(3, below + BLOCK, bytes);
}

/* In each block of 2s rows of 16 pairs, the right half of the upper rows and the left half of the lower ones change places, s lanes wide. */
INLINE void exchange(__m512i *r, const int s) {
#define UPPER(l) l & s ? 16 + l - s : l /* from both rows' 32 lanes, for the upper one */
#define LOWER(l) l & s ? 16 + l : l + s
#define LANES(from) from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8), from(9), from(10), from(11), from(12), from(13), from(14), from(15)
  const int32_t lanes[2][16] = {{LANES(UPPER)}, {LANES(LOWER)}};
  __m512i upper = _mm512_loadu_si512((const void *)lanes[0]), lower = _mm512_loadu_si512((const void *)lanes[1]);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; i++)
    if (!(i & s)) {
      __m512i a = r[i], b = r[i + s];
      r[i] = _mm512_permutex2var_epi32(a, upper, b);
      r[i + s] = _mm512_permutex2var_epi32(a, lower, b);
    }
#undef UPPER
#undef LOWER
#undef LANES
}

/* 16 rows of 16 pairs, `from` apart, turned over into rows `to` apart. */
INLINE void turn_block(const factor *v, long from, factor *turned, long to) {
  __m512i r[BLOCK];
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; i++) r[i] = _mm512_loadu_si512((const void *)(v + i * from));
  exchange(r, 1);
  exchange(r, 2);
  exchange(r, 4);
  exchange(r, 8);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; i++) _mm512_storeu_si512((void *)(turned + i * to), r[i]);
}
