/* Products of a few rows by a packed matrix, and what their sums become before they are stored. Knows nothing of where the rows come from.
 * Included once for every instruction set.
 */

static inline long NAME(round_up)(long n, long to) { return (n + to - 1) / to * to; }

/* Two factor matrices, to be multiplied: element (i, c) of the left one lies at v + i * row + c * step, where the PAIR of elements from c
 * on lies together; the right one is packed as [C/PAIR][columns * VW][PAIR]. */
typedef struct {
  const factor *v;
  long row, step;
  const factor *u;
  long C;
} NAME(pair_of_matrices);

/* m (rows x columns * VW, `along` apart) = v u, or += where `more` says so; the sums stay in registers. */
INLINE void NAME(product_of)(NAME(pair_of_matrices) by, float *m, long along, int more, const int rows, const int columns) {
  vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) sum[i][j] = more ? load(m + i * along + j * VW) : zero();
  for (long c = 0; c < by.C; c += PAIR) {
    factors right[COLUMNS];
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) right[j] = load_factors(by.u + (c * columns + j * PAIR) * VW);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      factors left = all_factors(by.v + i * by.row + c * by.step);
#pragma GCC unroll 8
      for (int j = 0; j < columns; j++) sum[i][j] = dot(sum[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) store(m + i * along + j * VW, sum[i][j]);
}

static void NAME(product)(const factor *v, long row, const factor *u, long C, float *m, int columns) {
  NAME(pair_of_matrices) by = {v, row, 1, u, C};
  switch (columns) {
    case 1: NAME(product_of)(by, m, VW, 0, ROWS, 1); break;
    case 2: NAME(product_of)(by, m, 2 * VW, 0, ROWS, 2); break;
#if !defined(CLEARFOLD_AVX2)
    case 3: NAME(product_of)(by, m, 3 * VW, 0, ROWS, 3); break;
    case 4: NAME(product_of)(by, m, 4 * VW, 0, ROWS, 4); break;
#endif
  }
}

/* Bias, addends, ReLU and mask, in this order, for n channels from f of one pixel; `row` and `at` are its row and its place in the row. */
INLINE void NAME(finish_at)(const clearfold_convolution *job, vec sum, long picture, long row, long at, long f, long n) {
  long width = job->columns * (job->F / (job->scale * job->scale));
  if (job->bias) sum = add(sum, load_n(job->bias + f, n));
  if (job->addend.data) sum = add(sum, load_any(job->addend.data, clearfold_row(&job->addend, picture, row, width) + at, n, job->addend.half));
  if (job->another.data) sum = add(sum, load_any(job->another.data, clearfold_row(&job->another, picture, row, width) + at, n, job->another.half));
  if (job->relu) sum = relu(sum);
  if (job->mask.data) sum = where_positive(load_any(job->mask.data, clearfold_row(&job->mask, picture, row, width) + at, n, job->mask.half), sum);
  store_any(job->y.data, clearfold_row(&job->y, picture, row, width) + at, sum, n, job->y.half);
}

/* Does output (i, j) lie at (i, j)? */
INLINE int NAME(is_plain)(const clearfold_convolution *job) {
  return job->scale == 1 && !job->crop_top && !job->crop_left && job->rows == job->Ho && job->columns == job->Wo;
}

/* The sums of channels f..f+n of output (i, j), stored where depth-to-space by `scale` and a crop put them. */
INLINE void NAME(finish)(const clearfold_convolution *job, vec sum, long picture, long i, long j, long f, long n) {
  long S = job->scale;
  if (NAME(is_plain)(job)) {
    NAME(finish_at)(job, sum, picture, i, j * job->F + f, f, n);
    return;
  }
  long C = job->F / (S * S);
  float lanes[VW];
  if (f / C != (f + n - 1) / C) store(lanes, sum);
  for (long done = 0; done < n;) { /* a vector may hold several phases */
    long phase = (f + done) / C, first = f + done - phase * C, run = C - first < n - done ? C - first : n - done;
    long row = i * S + phase / S - job->crop_top, column = j * S + phase % S - job->crop_left;
    if (row >= 0 && row < job->rows && column >= 0 && column < job->columns)
      NAME(finish_at)(job, run == n ? sum : load_n(lanes + done, run), picture, row, column * C + first, f + done, run);
    done += run;
  }
}

/* `finish` for a plain job: four neighbours of a row, a whole vector of channels from f; `bias` is that of the channels, or zeros. */
INLINE void NAME(finish_run)(const clearfold_convolution *job, vec y[4], vec bias, long picture, long row, long column, long f) {
  long F = job->F, width = job->Wo * F, at = column * F + f;
  for (int b = 0; b < 4; b++) y[b] = add(y[b], bias);
  if (job->addend.data) {
    long from = clearfold_row(&job->addend, picture, row, width) + at;
    for (int b = 0; b < 4; b++) y[b] = add(y[b], load_any(job->addend.data, from + b * F, VW, job->addend.half));
  }
  if (job->another.data) {
    long from = clearfold_row(&job->another, picture, row, width) + at;
    for (int b = 0; b < 4; b++) y[b] = add(y[b], load_any(job->another.data, from + b * F, VW, job->another.half));
  }
  if (job->relu)
    for (int b = 0; b < 4; b++) y[b] = relu(y[b]);
  if (job->mask.data) {
    long from = clearfold_row(&job->mask, picture, row, width) + at;
    for (int b = 0; b < 4; b++) y[b] = where_positive(load_any(job->mask.data, from + b * F, VW, job->mask.half), y[b]);
  }
  long to = clearfold_row(&job->y, picture, row, width) + at;
  for (int b = 0; b < 4; b++) store_any(job->y.data, to + b * F, y[b], VW, job->y.half);
}
