/* Products of a few rows by a packed matrix, and what their sums become before they are stored. Knows nothing of where the rows come from.
 * Included once for every instruction set.
 */

static inline long NAME(round_up)(long n, long to) { return (n + to - 1) / to * to; }

/* m (ROWS x columns) = v (ROWS x C) u (C x columns), the sums in registers. */
INLINE void NAME(product_of)(const factor *v, long row, const factor *u, long C, float *m, const int columns) {
  vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) sum[i][j] = zero();
  for (long c = 0; c < C; c += PAIR) {
    factors right[COLUMNS];
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) right[j] = load_factors(u + (c * columns + j * PAIR) * VW);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      factors left = all_factors(v + i * row + c);
#pragma GCC unroll 8
      for (int j = 0; j < columns; j++) sum[i][j] = dot(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) store(m + (i * columns + j) * VW, sum[i][j]);
}

static void NAME(product)(const factor *v, long row, const factor *u, long C, float *m, int columns) {
  switch (columns) {
    case 1: NAME(product_of)(v, row, u, C, m, 1); break;
    case 2: NAME(product_of)(v, row, u, C, m, 2); break;
#if !defined(CLEARFOLD_AVX2)
    case 3: NAME(product_of)(v, row, u, C, m, 3); break;
    case 4: NAME(product_of)(v, row, u, C, m, 4); break;
#endif
  }
}

/* Bias, addend, ReLU and mask, in this order, for the n channels from f of one pixel, which lie at `at` in y. */
INLINE void NAME(finish_at)(const clearfold_convolution *job, vec sum, long at, long f, long n) {
  if (job->bias) sum = add(sum, load_n(job->bias + f, n));
  if (job->addend) sum = add(sum, load_any(job->addend, at, n, job->addend_half));
  if (job->relu) sum = relu(sum);
  if (job->mask) sum = where_positive(load_any(job->mask, at, n, job->mask_half), sum);
  store_any(job->y, at, sum, n, job->y_half);
}

/* The sums of channels f..f+n of output (n, i, j), stored where depth-to-space by `scale` and a crop put them. */
INLINE void NAME(finish)(const clearfold_convolution *job, vec sum, long picture, long i, long j, long f, long n) {
  long S = job->scale, C = job->F / (S * S), phase = f / C, first = f - phase * C;
  if (S > 1 && first + n > C) { /* more than one phase in a vector: channel by channel */
    float lanes[VW];
    store(lanes, sum);
    for (long l = 0; l < n; l++) {
      long one = f + l, r = one / C / S, q = one / C % S, row = i * S + r - job->crop_top, column = j * S + q - job->crop_left;
      if (row < 0 || row >= job->rows || column < 0 || column >= job->columns) continue;
      NAME(finish_at)(job, load_n(lanes + l, 1), ((picture * job->rows + row) * job->columns + column) * C + one % C, one, 1);
    }
    return;
  }
  long row = i * S + phase / S - job->crop_top, column = j * S + phase % S - job->crop_left;
  if (row < 0 || row >= job->rows || column < 0 || column >= job->columns) return;
  NAME(finish_at)(job, sum, ((picture * job->rows + row) * job->columns + column) * C + first, f, n);
}
