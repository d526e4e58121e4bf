/* 3x3 convolutions of stride 1 by F(4x4, 3x3): 36 products instead of 144 for every 4x4 outputs (Winograd 1980, Lavin & Gray 2016).
 * Included once for every instruction set.
 *
 *     y = At [ (G w Gt) . (Bt d B) ] A         d: 6x6 inputs, w: 3x3 weights, y: 4x4 outputs, "." point by point
 *
 * is polynomial multiplication by values at the points 0, P, -P, Q, -Q and infinity (Toom 1963). Summed over input channels, the middle
 * is 36 plain matrix products, one for each point, of (tiles x C) by (C x F). A thread takes a few dozen tiles at a time, so that what
 * they become stays in its second cache, and finishes them: bias, addend, ReLU, mask and rounding happen before the one store.
 *
 * The customary points 1 and 2 lose two bits more than P = 5/8 and Q = 3/2, which keep the values of `d` and of its transform of one
 * size (Barabasz et al. 2018 study such points); with them the factors may be bfloat16, summed in float32.
 */

#define P 0.625f
#define Q 1.5f
#define PP (P * P)
#define QQ (Q * Q)

enum { TILE = 4, WINDOW = 6, POINTS = 36 };

static const float G[WINDOW][3] = {
    {1 / (PP * QQ), 0, 0},
    {1 / (2 * PP * (PP - QQ)), P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * PP * (PP - QQ)), -P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * QQ * (QQ - PP)), Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {1 / (2 * QQ * (QQ - PP)), -Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {0, 0, 1},
};

/* Bt: six values of one line, `from` apart, -> its values at the six points, `to` apart. */
INLINE void to_points(const vec *d, int from, vec *v, int to) {
  vec even, odd, d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
  v[0] = fma_(all(PP * QQ), d0, fnma_(all(PP + QQ), d2, d4));
  even = fnma_(all(QQ), d2, d4), odd = fnma_(all(QQ), d1, d3);
  v[to] = fma_(all(P), odd, even), v[2 * to] = fnma_(all(P), odd, even);
  even = fnma_(all(PP), d2, d4), odd = fnma_(all(PP), d1, d3);
  v[3 * to] = fma_(all(Q), odd, even), v[4 * to] = fnma_(all(Q), odd, even);
  v[5 * to] = fma_(all(PP * QQ), d1, fnma_(all(PP + QQ), d3, d5));
}

/* At: values at the six points -> four outputs. */
INLINE void from_points(const vec *m, int from, vec *y, int to) {
  vec s = add(m[from], m[2 * from]), d = sub(m[from], m[2 * from]), t = add(m[3 * from], m[4 * from]), e = sub(m[3 * from], m[4 * from]);
  y[0] = add(m[0], add(s, t));
  y[to] = fma_(all(P), d, mul(all(Q), e));
  y[2 * to] = fma_(all(PP), s, mul(all(QQ), t));
  y[3 * to] = fma_(all(PP * P), d, fma_(all(QQ * Q), e, m[5 * from]));
}

/* A, the adjoint of At: derivatives of four outputs -> derivatives of the values at the six points. */
INLINE void to_points_adjoint(const vec *y, int from, vec *m, int to) {
  vec even, odd, y0 = y[0], y1 = y[from], y2 = y[2 * from], y3 = y[3 * from];
  m[0] = y0;
  even = fma_(all(PP), y2, y0), odd = fma_(all(PP), y3, y1);
  m[to] = fma_(all(P), odd, even), m[2 * to] = fnma_(all(P), odd, even);
  even = fma_(all(QQ), y2, y0), odd = fma_(all(QQ), y3, y1);
  m[3 * to] = fma_(all(Q), odd, even), m[4 * to] = fnma_(all(Q), odd, even);
  m[5 * to] = y3;
}

/* One tile's place: picture n, and its first output row and column. */
typedef struct { long n, i, j; } place;

INLINE place place_of(long tile, long across, long down) {
  return (place){tile / (across * down), tile / across % down * TILE, tile % across * TILE};
}

/* Pixel (a, b) of a window from row i, column j of picture n of x (N, H, W, C): channels c..c+VW, zeros outside of the picture. */
INLINE vec NAME(pixel)(const clearfold_rows *x, int half, long H, long W, long C, long n, long i, long j, long c) {
  if (i < 0 || i >= H || j < 0 || j >= W) return zero();
  return load_any(x->data, clearfold_row(x, n, i, W * C) + j * C + c, C - c, half);
}

/* A 6x6 window at its points, v[i * 6 + j] = (Bt d B)[first + i][j] for i < count, in the channels c..c+VW. */
INLINE void NAME(window_at_points)(const clearfold_rows *x, int half, long H, long W, long C, place at, long c, vec *v, const int first, const int count) {
  vec t[POINTS], d[WINDOW], all_six[WINDOW];
  long size = half ? sizeof(bf16) : sizeof(float), row = W * C * size, pixel = C * size, three = 3 * row, five = 5 * row;
  long first_row = clearfold_row(x, at.n, at.i, W * C), last_row = clearfold_row(x, at.n, at.i + WINDOW - 1, W * C);
  if (at.i >= 0 && at.j >= 0 && at.i + WINDOW <= H && at.j + WINDOW <= W && c + VW <= C && last_row - first_row == (WINDOW - 1) * W * C) {
    const char *from = (const char *)x->data + (first_row + at.j * C + c) * size;
#pragma GCC unroll 6
    for (int b = 0; b < WINDOW; b++) {
      d[0] = load_at(from, half), d[1] = load_at(from + row, half), d[2] = load_at(from + 2 * row, half);
      d[3] = load_at(from + three, half), d[4] = load_at(from + 4 * row, half), d[5] = load_at(from + five, half);
      to_points(d, 1, all_six, 1);
#pragma GCC unroll 6
      for (int i = 0; i < count; i++) t[i * WINDOW + b] = all_six[first + i];
      if (count == WINDOW && b >= WINDOW - TILE) { /* the next tile's; for a weight gradient they are near already */
        const char *beside = from + TILE * pixel;
        _mm_prefetch(beside, _MM_HINT_T0), _mm_prefetch(beside + row, _MM_HINT_T0), _mm_prefetch(beside + 2 * row, _MM_HINT_T0);
        _mm_prefetch(beside + three, _MM_HINT_T0), _mm_prefetch(beside + 4 * row, _MM_HINT_T0), _mm_prefetch(beside + five, _MM_HINT_T0);
      }
      from += pixel;
      HIDE(from);
    }
  } else {
    for (int b = 0; b < WINDOW; b++) {
      for (int a = 0; a < WINDOW; a++) d[a] = NAME(pixel)(x, half, H, W, C, at.n, at.i + a, at.j + b, c);
      to_points(d, 1, all_six, 1);
      for (int i = 0; i < count; i++) t[i * WINDOW + b] = all_six[first + i];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < count; i++) to_points(t + i * WINDOW, 1, v + i * WINDOW, 1);
}

/* Elements from one point's (C x F) to the next: a line more, lest all 36 meet in one set of the cache. */
INLINE long NAME(point)(long Cp, long Fp) { return Cp * Fp + 32; }

/* ---- weights ---------------------------------------------------------------------------------------------------------------------- */

/* The 3x3 weights from channel c + i to the channels f..f+VW, w[i * 9 + a * 3 + b] for i < VW, zeros where there are no such channels. */
static void NAME(turned_weights)(const clearfold_weights *job, long c, long f, vec *w) {
  float rows[VW][VW], columns[VW][VW];
  for (int ab = 0; ab < 9; ab++) {
    for (long j = 0; j < VW; j++) store(rows[j], f + j < job->F ? load_n(job->w + ((8 - ab) * job->F + f + j) * job->C + c, job->C - c) : zero());
    for (int i = 0; i < VW; i++)
      for (int j = 0; j < VW; j++) columns[i][j] = rows[j][i];
    for (int i = 0; i < VW; i++) w[i * 9 + ab] = load(columns[i]);
  }
}

/* w -> u = G w Gt, packed as the products read it: for each point, for each chunk of columns, [C/PAIR][columns][PAIR]. */
static void NAME(winograd_weights_body)(void *p) {
  clearfold_weights *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, VW), Fp = NAME(round_up)(F, VW);
  factor *u = job->u;
  for (long f; (f = clearfold_next(&job->next, Fp / VW)) >= 0;) {
    f *= VW;
    long chunk = f / (COLUMNS * VW) * (COLUMNS * VW), width = Fp - chunk < COLUMNS * VW ? Fp - chunk : COLUMNS * VW, n = F - f < VW ? F - f : VW;
    vec turned[VW * 9];
    for (long c = 0; c < Cp; c += PAIR) {
      vec both[2][POINTS];
      if (job->turned && c % VW == 0) NAME(turned_weights)(job, c, f, turned);
      for (int q = 0; q < PAIR; q++) {
        vec w[9], t[18];
        for (int ab = 0; ab < 9; ab++)
          w[ab] = job->turned ? turned[(c % VW + q) * 9 + ab] : c + q < C ? load_n(job->w + (ab * C + c + q) * F + f, n) : zero();
        for (int i = 0; i < WINDOW; i++)
          for (int b = 0; b < 3; b++) t[i * 3 + b] = fma_(all(G[i][2]), w[6 + b], fma_(all(G[i][1]), w[3 + b], mul(all(G[i][0]), w[b])));
        for (int i = 0; i < WINDOW; i++)
          for (int j = 0; j < WINDOW; j++)
            both[q][i * WINDOW + j] = fma_(all(G[j][2]), t[i * 3 + 2], fma_(all(G[j][1]), t[i * 3 + 1], mul(all(G[j][0]), t[i * 3])));
      }
      for (int k = 0; k < POINTS; k++) store_pair(u + k * NAME(point)(Cp, Fp) + chunk * Cp + c * width + (f - chunk) * PAIR, both[0][k], both[PAIR - 1][k]);
    }
  }
}

void NAME(winograd_weights)(clearfold_weights *job) {
  job->next = 0;
  clearfold_team(NAME(winograd_weights_body), job, job->threads);
}

/* ---- forward, and the data gradient, which is the same with the weights turned ---------------------------------------------------- */

INLINE void NAME(finish_tile)(const clearfold_convolution *job, const float *m, long point, place to, long f) {
  vec t[TILE * WINDOW], y[TILE], line[WINDOW];
#pragma GCC unroll 6
  for (int j = 0; j < WINDOW; j++) {
#pragma GCC unroll 6
    for (int i = 0; i < WINDOW; i++) line[i] = load(m + (i * WINDOW + j) * point);
    from_points(line, 1, t + j, WINDOW);
  }
  long n = job->F - f < VW ? job->F - f : VW, down = job->Ho - to.i, across = job->Wo - to.j;
  int inside = down >= TILE && across >= TILE, whole = inside && NAME(is_whole)(job), few = inside && NAME(is_few)(job);
  if (whole && job->y.half) {
#pragma GCC unroll 4
    for (int a = 0; a < TILE; a++) {
      from_points(t + a * WINDOW, 1, y, 1);
      NAME(finish_run)(job, y, TILE, to.n, to.i + a, to.j, f, 1);
    }
  } else if (whole) {
#pragma GCC unroll 4
    for (int a = 0; a < TILE; a++) {
      from_points(t + a * WINDOW, 1, y, 1);
      NAME(finish_run)(job, y, TILE, to.n, to.i + a, to.j, f, 0);
    }
  } else {
    for (int a = 0; a < TILE && a < down; a++) {
      from_points(t + a * WINDOW, 1, y, 1);
      if (few) NAME(finish_few)(job, y, to.n, to.i + a, to.j);
      else for (int b = 0; b < TILE && b < across; b++) NAME(finish)(job, y[b], to.n, to.i + a, to.j + b, f, n);
    }
  }
}

/* Channels f..f+n of a tile's outputs, and of all that is added to them, on their way into the first cache. */
INLINE void NAME(bring_near)(const clearfold_convolution *job, place to, long f, long n) {
  if (to.i + TILE > job->Ho || to.j + TILE > job->Wo) return;
  const clearfold_rows *there[4] = {&job->y, &job->addend, &job->another, &job->mask};
  for (int k = 0; k < 4; k++) {
    if (!there[k]->data) continue;
    long size = there[k]->half ? sizeof(bf16) : sizeof(float), step = job->F * size;
    for (int a = 0; a < TILE; a++) {
      const char *line = (const char *)there[k]->data + clearfold_row(there[k], to.n, to.i + a, job->columns * job->F) * size + to.j * step + f * size;
      for (int b = 0; b < TILE; b++)
        for (long at = 0; at < n * size; at += 64) __builtin_prefetch(line + b * step + at, 1);
    }
  }
}

static void NAME(winograd_body)(void *p) {
  clearfold_convolution *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, VW), Fp = NAME(round_up)(F, VW), T = job->block;
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW;
  long point_v = T * Cp + 64 / sizeof(factor), point_m = T * wide + 16; /* a line more, lest all 36 meet in one set of the cache */
  factor *v = clearfold_scratch(POINTS * (point_v * sizeof(factor) + point_m * sizeof(float)));
  float *m = (float *)(v + POINTS * point_v);
  const factor *u = job->u;
  int plain = NAME(is_plain)(job);
  begin_products();
  for (long first; (first = clearfold_next(&job->next, (tiles + T - 1) / T)) >= 0;) {
    first *= T;
    long count = tiles - first < T ? tiles - first : T;
    for (long t = 0; t < count; t++) {
      place at = place_of(first + t, across, down);
      at.i -= job->top, at.j -= job->left;
      for (long c = 0; c < Cp; c += VW) {
        vec w[POINTS];
        if (job->x.half) NAME(window_at_points)(&job->x, 1, job->H, job->W, C, at, c, w, 0, WINDOW);
        else NAME(window_at_points)(&job->x, 0, job->H, job->W, C, at, c, w, 0, WINDOW);
#pragma GCC unroll 36
        for (int k = 0; k < POINTS; k++) store_factors(v + k * point_v + t * Cp + c, w[k]);
      }
    }
    for (long f = 0; f < Fp; f += wide) {
      long columns = (Fp - f < wide ? Fp - f : wide) / VW;
      for (int k = 0; k < POINTS; k++) {
        NAME(product)(v + k * point_v, Cp, u + k * NAME(point)(Cp, Fp) + f * Cp, Cp, m + k * point_m, count, columns);
        for (long t = plain ? k * count / POINTS : count; t < (k + 1) * count / POINTS; t++) /* memory has little to do meanwhile */
          NAME(bring_near)(job, place_of(first + t, across, down), f, columns * VW);
      }
      for (long t = 0; t < count; t++)
        for (long j = 0; j < columns; j++)
          NAME(finish_tile)(job, m + (t * columns + j) * VW, point_m, place_of(first + t, across, down), f + j * VW);
    }
  }
  end_products();
}

void NAME(winograd)(clearfold_convolution *job) {
#if defined(CLEARFOLD_AMX)
  enum { CACHE = 1792 << 10, MOST = 64 }; /* of 2 MB, which each of its processors has; all weights are read again for every block */
#else
  enum { CACHE = 1600 << 10, MOST = 30 }; /* about what a second cache holds, and a part of the third */
#endif
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW;
  long most = CACHE / (POINTS * (Cp * (long)sizeof(factor) + wide * (long)sizeof(float)));
  most = most > MOST ? MOST : most < ROWS ? ROWS : most / ROWS * ROWS;
  long blocks = NAME(round_up)((tiles + most - 1) / most, job->threads);
  job->block = NAME(round_up)((tiles + blocks - 1) / blocks, GRAIN);
  job->next = 0;
  clearfold_team(NAME(winograd_body), job, job->threads);
}

/* ---- weight gradient -------------------------------------------------------------------------------------------------------------- */

/* dw = Gt [ sum over tiles of (Bt d B) . (A dy At) ] G. The sum is 36 products again, (C x tiles) by (tiles x F).
 *
 * A thread computes half of the points by itself, rows 0 to 2 or 3 to 5 of the 6x6, for all tiles or, with more than two threads, a share
 * of them: what it lays out is read by no other core, and nothing is waited for. (Laid out by all and multiplied by all, two threads were
 * no faster than one.) v is [point][tile/PAIR][C][PAIR], d a product's right side: [point][columns][tile/PAIR][column][PAIR].
 */

enum { LINE = 64 / sizeof(factor), HALF = POINTS / 2, STRETCH = 64 }; /* tiles laid out at a time */
#if defined(CLEARFOLD_AMX)
enum { TURNED = STRETCH }; /* its left sides have each channel's tiles side by side: those of one point are turned over before its product */
#else
enum { TURNED = 0 };
#endif

/* Elements from one tile's row of v to the next, and from one point to the next: a line more, lest all meet in one set of the cache. */
INLINE long NAME(gradient_row)(long Cp) { return Cp + LINE / PAIR; }
INLINE long NAME(gradient_point)(long tiles, long row) { return tiles * row + LINE; }

/* A 4x4 block of derivatives at its points, m[i * 6 + j] = (A dy At)[first + i][j] for i < count, in the channels f..f+VW. */
INLINE void NAME(block_at_points)(const clearfold_gradient *job, int half, place at, long f, vec *m, const int first, const int count) {
  vec y[TILE], h[WINDOW * TILE], all_six[WINDOW];
  long Ho = job->Ho, Wo = job->Wo, F = job->F;
  if (at.i + TILE <= Ho && at.j + TILE <= Wo && f + VW <= F) {
    long size = half ? sizeof(bf16) : sizeof(float), row = Wo * F * size, three = 3 * row;
    const char *from = (const char *)job->dy.data + (clearfold_row(&job->dy, at.n, at.i, Wo * F) + at.j * F + f) * size;
#pragma GCC unroll 4
    for (int b = 0; b < TILE; b++) {
      y[0] = load_at(from, half), y[1] = load_at(from + row, half), y[2] = load_at(from + 2 * row, half), y[3] = load_at(from + three, half);
      to_points_adjoint(y, 1, all_six, 1);
#pragma GCC unroll 6
      for (int i = 0; i < count; i++) h[i * TILE + b] = all_six[first + i];
      from += F * size;
      HIDE(from);
    }
  } else {
    for (int b = 0; b < TILE; b++) {
      for (int a = 0; a < TILE; a++) y[a] = NAME(pixel)(&job->dy, half, Ho, Wo, F, at.n, at.i + a, at.j + b, f);
      to_points_adjoint(y, 1, all_six, 1);
      for (int i = 0; i < count; i++) h[i * TILE + b] = all_six[first + i];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < count; i++) to_points_adjoint(h + i * TILE, 1, m + i * WINDOW, 1);
}

#if defined(CLEARFOLD_AMX)
/* `turned`: the left side turned over, as far as it fills the depth of AMX's products, or NULL: then vectors multiply. */
INLINE void NAME(gradient_rows)(NAME(pair_of_matrices) by, const factor *turned, float *du, long along, int more, long rows, const int columns) {
  long deep = turned ? by.C / DEPTH * DEPTH : 0;
  if (deep) NAME(product_of_rows)((NAME(pair_of_matrices)){turned, STRETCH, 1, by.u, deep}, du, along, more, rows, columns);
  NAME(product_of_rest)(by, deep, du, along, more, rows, columns);
}
#else
/* ROWS rows and what they leave over: padded channels come in eights, so an even number. */
INLINE void NAME(gradient_rows)(NAME(pair_of_matrices) by, const factor *turned, float *du, long along, int more, long rows, const int columns) {
  (void)turned;
  for (; rows >= ROWS; rows -= ROWS, by.v += ROWS * PAIR, du += ROWS * along) NAME(product_of)(by, du, along, more, ROWS, columns);
  if (rows == 4) NAME(product_of)(by, du, along, more, 4, columns);
  if (rows == 2) NAME(product_of)(by, du, along, more, 2, columns);
}
#endif

/* The same for one to COLUMNS vectors of columns. */
static void NAME(gradient_columns)(NAME(pair_of_matrices) by, const factor *turned, float *du, long along, int more, long rows, long columns) {
  switch (columns) {
    case 1: NAME(gradient_rows)(by, turned, du, along, more, rows, 1); break;
    case 2: NAME(gradient_rows)(by, turned, du, along, more, rows, 2); break;
#if !defined(CLEARFOLD_AVX2)
    case 3: NAME(gradient_rows)(by, turned, du, along, more, rows, 3); break;
    case 4: NAME(gradient_rows)(by, turned, du, along, more, rows, 4); break;
#endif
  }
}

/* All channels of the 4x4 pixels from row i, column j of picture n of x (N, H, W, C), on their way into the caches. */
INLINE void NAME(bring_block_near)(const clearfold_rows *x, int half, long H, long W, long C, place at) {
  long size = half ? sizeof(bf16) : sizeof(float);
  for (int a = 0; a < TILE && at.i + a < H; a++) {
    const char *line = (const char *)x->data + (clearfold_row(x, at.n, at.i + a, W * C) + at.j * C) * size;
    long bytes = (W - at.j < TILE ? W - at.j : TILE) * C * size;
    for (long b = 0; b < bytes; b += 64) __builtin_prefetch(line + b);
  }
}

/* Half of the points, from `first` on, of the tiles start..stop: laid out and multiplied, STRETCH at a time. */
INLINE void NAME(half_gradient)(const clearfold_gradient *job, float *du, long start, long stop, const int first, const int x_half, const int dy_half) {
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), wide = COLUMNS * VW, row = NAME(gradient_row)(Cp);
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE;
  long point_v = NAME(gradient_point)(STRETCH / PAIR, row * PAIR), point_d = NAME(gradient_point)(STRETCH, Fp);
  factor *v = clearfold_scratch((HALF * (point_v + point_d) + TURNED * Cp) * sizeof(factor)), *d = v + HALF * point_v, *turned = d + HALF * point_d;
  long pieces = (stop - start + STRETCH - 1) / STRETCH;
  for (long piece = 0; piece < pieces; piece++) {
    long at_tile = start + (first ? pieces - 1 - piece : piece) * STRETCH; /* two threads from both ends: each finds in the last cache what the other fetched */
    long count = stop - at_tile < STRETCH ? stop - at_tile : STRETCH, T = NAME(round_up)(count, PAIR);
    for (long t = 0; t < T / PAIR; t++) {
      vec both[2][HALF];
      place at[PAIR];
      for (int q = 0; q < PAIR; q++) at[q] = place_of(at_tile + t * PAIR + q, across, down);
      int odd = t * PAIR + PAIR > count; /* the last tile has no neighbour */
      if (odd) for (int k = 0; k < HALF; k++) both[PAIR - 1][k] = zero();
      for (long c = 0; c < Cp; c += VW) {
        for (int q = 0; q < PAIR - odd; q++) {
          place from = {at[q].n, at[q].i - job->top, at[q].j - job->left};
          NAME(window_at_points)(&job->x, x_half, job->H, job->W, job->C, from, c, both[q], first, WINDOW / 2);
        }
#pragma GCC unroll 18
        for (int k = 0; k < HALF; k++) store_pair(v + k * point_v + (t * row + c) * PAIR, both[0][k], both[PAIR - 1][k]);
      }
      for (long f = 0; f < Fp; f += VW) {
        long chunk = f / wide * wide, width = Fp - chunk < wide ? Fp - chunk : wide;
        for (int q = 0; q < PAIR - odd; q++) NAME(block_at_points)(job, dy_half, at[q], f, both[q], first, WINDOW / 2);
#pragma GCC unroll 18
        for (int k = 0; k < HALF; k++) store_pair(d + k * point_d + chunk * T + (t * width + f - chunk) * PAIR, both[0][k], both[PAIR - 1][k]);
      }
    }
    int more = piece > 0;
    long next = first ? at_tile - STRETCH : at_tile + STRETCH, behind = next < start ? 0 : stop - next < STRETCH ? stop - next : STRETCH;
    for (int k = 0; k < HALF; k++) {
      for (long t = k * behind / HALF; t < (k + 1) * behind / HALF; t++) { /* memory has little to do meanwhile */
        place at = place_of(next + t, across, down);
        NAME(bring_block_near)(&job->x, x_half, job->H, job->W, job->C, at);
        NAME(bring_block_near)(&job->dy, dy_half, job->Ho, job->Wo, job->F, at);
      }
#if defined(CLEARFOLD_AMX)
      for (long t = 0; t + DEPTH <= T; t += DEPTH)
        for (long c = 0; c < Cp; c += BLOCK) turn_block(v + k * point_v + (t / PAIR * row + c) * PAIR, row * PAIR, turned + c * STRETCH + t, STRETCH);
#endif
      for (long chunk = 0; chunk < Fp; chunk += wide) {
        long columns = (Fp - chunk < wide ? Fp - chunk : wide) / VW;
        float *to = du + k * NAME(point)(Cp, Fp) + chunk;
        NAME(pair_of_matrices) by = {v + k * point_v, PAIR, row, d + k * point_d + chunk * T, T};
        NAME(gradient_columns)(by, turned, to, Fp, more, Cp, columns);
      }
    }
  }
  if (start >= stop) memset(du, 0, HALF * NAME(point)(Cp, Fp) * sizeof(float));
}

static void NAME(gradient_body)(void *p) {
  clearfold_gradient *job = p;
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), share = NAME(round_up)((tiles + job->shares - 1) / job->shares, PAIR);
  for (long piece; (piece = clearfold_next(&job->next, 2 * job->shares)) >= 0;) {
    long start = piece / 2 * share, stop = start + share < tiles ? start + share : tiles;
    float *du = job->du + piece * HALF * NAME(point)(Cp, Fp);
    begin_products();
    if (piece % 2) {
      if (job->x.half) NAME(half_gradient)(job, du, start, stop, WINDOW / 2, 1, job->dy.half);
      else NAME(half_gradient)(job, du, start, stop, WINDOW / 2, 0, job->dy.half);
    } else {
      if (job->x.half) NAME(half_gradient)(job, du, start, stop, 0, 1, job->dy.half);
      else NAME(half_gradient)(job, du, start, stop, 0, 0, job->dy.half);
    }
    end_products();
  }
}

static void NAME(gradient_weights_body)(void *p) {
  clearfold_gradient *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, VW), Fp = NAME(round_up)(F, VW);
  for (long c; (c = clearfold_next(&job->next, C)) >= 0;)
    for (long f = 0; f < F; f += VW) {
      vec t[3 * WINDOW];
      for (int j = 0; j < WINDOW; j++) {
        vec u[WINDOW];
        for (int i = 0; i < WINDOW; i++) {
          const float *du = job->du + (i * WINDOW + j) * NAME(point)(Cp, Fp) + c * Fp + f;
          u[i] = load(du);
          __builtin_prefetch(du + 4 * VW);
          for (long more = 1; more < job->shares; more++) u[i] = add(u[i], load(du + more * POINTS * NAME(point)(Cp, Fp)));
        }
        for (int a = 0; a < 3; a++) {
          vec sum = zero();
          for (int i = 0; i < WINDOW; i++) sum = fma_(all(G[i][a]), u[i], sum);
          t[a * WINDOW + j] = sum;
        }
      }
      for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++) {
          vec sum = zero();
          for (int j = 0; j < WINDOW; j++) sum = fma_(all(G[j][b]), t[a * WINDOW + j], sum);
          store_n(job->dw + ((a * 3 + b) * C + c) * F + f, sum, F - f);
        }
    }
}

void NAME(winograd_gradient)(clearfold_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(gradient_body), job, job->threads);
  job->next = 0;
  clearfold_team(NAME(gradient_weights_body), job, job->threads);
}

#undef P
#undef Q
#undef PP
#undef QQ
