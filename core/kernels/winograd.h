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

/* The rows of a 6x6 window in the picture's inside, at their points: t[i * 6 + b] = (Bt d)[first + i][b] for i < count. They lie `row` bytes
 * apart, pixels `pixel`; a vector has `lanes` channels, all of them if it is `whole`. */
INLINE void NAME(rows_at_points)(const char *from, long row, long pixel, long lanes, vec *t, const int half, const int whole, const int first, const int count) {
  long three = 3 * row, five = 5 * row;
  long n = whole ? VW : lanes;
#pragma GCC unroll 6
  for (int b = 0; b < WINDOW; b++) {
    vec d[WINDOW], all_six[WINDOW];
    d[0] = load_at(from, n, half), d[1] = load_at(from + row, n, half), d[2] = load_at(from + 2 * row, n, half);
    d[3] = load_at(from + three, n, half), d[4] = load_at(from + 4 * row, n, half), d[5] = load_at(from + five, n, half);
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
}

/* A 6x6 window at its points, v[i * 6 + j] = (Bt d B)[first + i][j] for i < count, in the channels c..c+VW. */
INLINE void NAME(window_at_points)(const clearfold_rows *x, int half, long H, long W, long C, place at, long c, vec *v, const int first, const int count) {
  vec t[POINTS];
  long size = half ? sizeof(narrow) : sizeof(float), row = W * C * size, pixel = C * size;
  long first_row = clearfold_row(x, at.n, at.i, W * C), last_row = clearfold_row(x, at.n, at.i + WINDOW - 1, W * C);
  int inside = at.i >= 0 && at.j >= 0 && at.i + WINDOW <= H && at.j + WINDOW <= W && last_row - first_row == (WINDOW - 1) * W * C;
  const char *from = (const char *)x->data + (first_row + at.j * C + c) * size;
  if (inside && c + VW <= C) {
    NAME(rows_at_points)(from, row, pixel, VW, t, half, 1, first, count);
  } else if (inside && MASKED) {
    NAME(rows_at_points)(from, row, pixel, C - c, t, half, 0, first, count);
  } else {
    vec d[WINDOW], all_six[WINDOW];
    for (int b = 0; b < WINDOW; b++) {
      for (int a = 0; a < WINDOW; a++) d[a] = NAME(pixel)(x, half, H, W, C, at.n, at.i + a, at.j + b, c);
      to_points(d, 1, all_six, 1);
      for (int i = 0; i < count; i++) t[i * WINDOW + b] = all_six[first + i];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < count; i++) to_points(t + i * WINDOW, 1, v + i * WINDOW, 1);
}

/* A window at its points, `point` factors apart. Of 36 addresses the compiler would keep each in memory and add to each, for every tile. */
INLINE void NAME(store_points)(factor *to, long point, const vec *v) {
  long three = 3 * point, five = 5 * point;
#pragma GCC unroll 6
  for (int i = 0; i < WINDOW; i++, v += WINDOW) {
    store_factors(to, v[0]), store_factors(to + point, v[1]), store_factors(to + 2 * point, v[2]);
    store_factors(to + three, v[3]), store_factors(to + 4 * point, v[4]), store_factors(to + five, v[5]);
    to += WINDOW * point;
    HIDE(to);
  }
}

/* Elements from one point's (C x F) to the next: a line more, lest all 36 meet in one set of the cache. */
INLINE long NAME(point)(long Cp, long Fp) { return Cp * Fp + 32; }

#if defined(CLEARFOLD_AMX)
enum { CACHE = 1792 << 10, MOST = 64, MOST_OF_ONE = 64 }; /* of 2 MB, which each of its processors has; all weights are read again for every block */
#elif defined(CLEARFOLD_AVX512FP16)
enum { CACHE = 1600 << 10, MOST = 48, MOST_OF_ONE = 30 };
#else
enum { CACHE = 1600 << 10, MOST = 30, MOST_OF_ONE = 30 }; /* about what a second cache holds, and a part of the third; tiles of a block, and of one of a single picture */
#endif

/* Is what comes next brought near while products compute? In float16 it would take the place, in the first cache, of what they multiply, and
 * of a batch in training most lies near enough. */
#if defined(CLEARFOLD_AVX512FP16)
enum { NEAR = 0 };
#else
enum { NEAR = 1 };
#endif

/* Where the rows of a tile's outputs begin, and those of what is done to them: y, two addends and a mask, NULL where there is none. Found
 * once a tile, for each of whose vectors it is asked twice. */
enum { OUTPUT, ADDEND, ANOTHER, MASK, LINES };
typedef struct {
  char *at[LINES][TILE];
} NAME(lines);

/* For a plain job and a tile that lies inside. */
INLINE void NAME(find_lines)(const clearfold_convolution *job, place to, NAME(lines) *found) {
  const clearfold_rows *there[LINES] = {&job->y, &job->addend, &job->another, &job->mask};
  long size = job->y.half ? sizeof(narrow) : sizeof(float);
  for (int k = 0; k < LINES; k++)
    for (int a = 0; a < TILE; a++)
      found->at[k][a] = there[k]->data ? (char *)there[k]->data + (clearfold_row(there[k], to.n, to.i + a, job->columns * job->F) + to.j * job->F) * size : NULL;
}

/* Channels f..f+n of a tile's outputs, and of all that is added to them, on their way into the first cache. */
INLINE void NAME(bring_near)(const clearfold_convolution *job, const NAME(lines) *of, long f, long n) {
  long size = job->y.half ? sizeof(narrow) : sizeof(float), step = job->F * size;
  for (int k = 0; k < LINES; k++)
    for (int a = 0; of->at[k][0] && a < TILE; a++)
      for (int b = 0; b < TILE; b++)
        for (long at = 0; at < n * size; at += 64) __builtin_prefetch(of->at[k][a] + f * size + b * step + at, 1);
}

/* Values of a tile at the points, in the channels f..f+VW, `point` apart -> four rows of outputs at three steps of `from_points`. */
INLINE void NAME(columns_from_points)(const partial *m, long point, vec *t) {
  long row = WINDOW * point, three = 3 * row, five = 5 * row;
#pragma GCC unroll 6
  for (int j = 0; j < WINDOW; j++, m += point) {
    HIDE(m);
    vec line[WINDOW] = {load_partial(m), load_partial(m + row), load_partial(m + 2 * row)};
    line[3] = load_partial(m + three), line[4] = load_partial(m + 4 * row), line[5] = load_partial(m + five);
    from_points(line, 1, t + j, WINDOW);
  }
}

/* A tile's outputs where its lines are. */
INLINE void NAME(finish_lines)(const clearfold_convolution *job, const partial *m, long point, const NAME(lines) *of, long f, const int half) {
  vec t[TILE * WINDOW];
  NAME(columns_from_points)(m, point, t);
  long size = half ? sizeof(narrow) : sizeof(float), step = job->F * size;
#pragma GCC unroll 4
  for (int a = 0; a < TILE; a++) {
    vec y[TILE];
    from_points(t + a * WINDOW, 1, y, 1);
    if (job->bias) {
      vec bias = load(job->bias + f);
      for (int b = 0; b < TILE; b++) y[b] = add(y[b], bias);
    }
    for (int k = ADDEND; k <= ANOTHER; k++)
      if (of->at[k][0])
        for (int b = 0; b < TILE; b++) y[b] = add(y[b], load_at(of->at[k][a] + f * size + b * step, VW, half));
    if (job->relu)
      for (int b = 0; b < TILE; b++) y[b] = relu(y[b]);
    if (of->at[MASK][0])
      for (int b = 0; b < TILE; b++) y[b] = where_positive(load_at(of->at[MASK][a] + f * size + b * step, VW, half), y[b]);
    for (int b = 0; b < TILE; b++) store_any(of->at[OUTPUT][a] + f * size + b * step, 0, y[b], VW, half);
  }
}

/* Any other tile's outputs. */
INLINE void NAME(finish_tile)(const clearfold_convolution *job, const partial *m, long point, place to, long f) {
  vec t[TILE * WINDOW], y[TILE];
  NAME(columns_from_points)(m, point, t);
  long n = job->F - f < VW ? job->F - f : VW, down = job->Ho - to.i, across = job->Wo - to.j;
  int inside = down >= TILE && across >= TILE, whole = inside && NAME(is_whole)(job), few = inside && NAME(is_few)(job);
  for (int a = 0; a < TILE && a < down; a++) {
    from_points(t + a * WINDOW, 1, y, 1);
    if (few) NAME(finish_few)(job, y, to.n, to.i + a, to.j);
    else if (whole) NAME(finish_run)(job, y, TILE, to.n, to.i + a, to.j, f, job->y.half != 0);
    else for (int b = 0; b < TILE && b < across; b++) NAME(finish)(job, y[b], to.n, to.i + a, to.j + b, f, n);
  }
}

static void NAME(winograd_body)(void *p) {
  clearfold_convolution *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, VW), Fp = NAME(round_up)(F, VW), T = job->block;
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW, depth = NAME(round_up)(C, PAIR);
  long point_v = T * Cp + 64 / sizeof(factor), point_m = T * wide + 64 / sizeof(partial); /* a line more, lest all 36 meet in one set of the cache */
  factor *v = clearfold_scratch(POINTS * (point_v * sizeof(factor) + point_m * sizeof(partial)));
  partial *m = (partial *)(v + POINTS * point_v);
  const factor *u = job->u;
  int plain = NAME(is_plain)(job) && F % VW == 0, near = NEAR || job->N == 1;
  begin_products();
  for (long first; (first = clearfold_next(&job->next, (tiles + T - 1) / T)) >= 0;) {
    first *= T;
    long count = tiles - first < T ? tiles - first : T;
    NAME(lines) outputs[MOST];
    int lined[MOST];
    for (long t = 0; t < count; t++) {
      place at = place_of(first + t, across, down);
      lined[t] = plain && at.i + TILE <= job->Ho && at.j + TILE <= job->Wo;
      if (lined[t]) NAME(find_lines)(job, at, outputs + t);
      at.i -= job->top, at.j -= job->left;
      for (long c = 0; c < Cp; c += VW) {
        vec w[POINTS];
        if (job->x.half) NAME(window_at_points)(&job->x, 1, job->H, job->W, C, at, c, w, 0, WINDOW);
        else NAME(window_at_points)(&job->x, 0, job->H, job->W, C, at, c, w, 0, WINDOW);
        NAME(store_points)(v + t * Cp + c, point_v, w);
      }
    }
    for (long f = 0; f < Fp; f += wide) {
      long columns = (Fp - f < wide ? Fp - f : wide) / VW;
      for (int k = 0; k < POINTS; k++) {
        NAME(product)(v + k * point_v, Cp, u + k * NAME(point)(Cp, Fp) + f * Cp, depth, m + k * point_m, count, columns);
        for (long t = k * count / POINTS; t < (k + 1) * count / POINTS; t++) /* memory has little to do meanwhile */
          if (near && lined[t]) NAME(bring_near)(job, outputs + t, f, columns * VW);
      }
      for (long t = 0; t < count; t++)
        for (long j = 0; j < columns; j++) {
          const partial *of = m + (t * columns + j) * VW;
          if (!lined[t]) NAME(finish_tile)(job, of, point_m, place_of(first + t, across, down), f + j * VW);
          else if (job->y.half) NAME(finish_lines)(job, of, point_m, outputs + t, f + j * VW, 1);
          else NAME(finish_lines)(job, of, point_m, outputs + t, f + j * VW, 0);
        }
    }
  }
  end_products();
}

void NAME(winograd)(clearfold_convolution *job) {
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW;
  long most = CACHE / (POINTS * (Cp * (long)sizeof(factor) + wide * (long)sizeof(partial)));
  long limit = job->N > 1 ? MOST : MOST_OF_ONE;
  most = most > limit ? limit : most < ROWS ? ROWS : most / ROWS * ROWS;
  long blocks = NAME(round_up)((tiles + most - 1) / most, job->threads);
  job->block = NAME(round_up)((tiles + blocks - 1) / blocks, GRAIN);
  job->next = 0;
  clearfold_team(NAME(winograd_body), job, job->threads);
}
