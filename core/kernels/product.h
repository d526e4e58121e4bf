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

enum { AHEAD = 4096 }; /* bytes */
#if defined(CLEARFOLD_AVX512FP16)
/* Factors whose products are summed up in a register: the longer a sum of 11 bits, the less exact. Winograd's are the more so, for their
 * sums are multiplied again. */
enum { DEEP = 32, IN_PLACE = 64 };
#endif

/* m (rows x columns * VW, `along` apart) = v u, or += where `more` says so; the sums stay in registers. At most 6 rows. `fresh`: u was not
 * read before, and what is AHEAD of what is read is brought near. */
#if defined(CLEARFOLD_AVX512FP16)
/* The sums over the factors start..stop, which stay in registers. */
INLINE void NAME(sum_part)(NAME(pair_of_matrices) by, long start, long stop, vec sum[ROWS][COLUMNS], const int rows, const int columns, const int fresh) {
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int j = 0; j < columns; j++) sum[i][j] = zero();
  const factor *left[ROWS / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (rows + 2) / 3; i++) left[i] = by.v + 3 * i * by.row + start * by.step;
  for (long c = start; c < stop; c++) {
    factors right[COLUMNS];
#pragma GCC unroll 2
    for (int j = 0; j < columns; j++) {
      right[j] = load_factors(by.u + (c * columns + j) * VW);
      if (fresh) __builtin_prefetch((const char *)(by.u + (c * columns + j) * VW) + AHEAD);
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < columns; j++) sum[i][j] = dot(sum[i][j], left[i / 3] + i % 3 * by.row, right[j]);
#pragma GCC unroll 4
    for (int i = 0; i < (rows + 2) / 3; i++) left[i] += by.step;
  }
}

INLINE void NAME(product_in_parts)(NAME(pair_of_matrices) by, void *m, long along, int more, const int rows, const int columns, const int fresh, const int floats) {
  const long deep = floats ? 2 * DEEP : DEEP;
  for (long start = 0; start < by.C; start += deep) {
    long stop = by.C - start < deep ? by.C : start + deep;
    vec sum[ROWS][COLUMNS];
    NAME(sum_part)(by, start, stop, sum, rows, columns, fresh);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int j = 0; j < columns; j++) {
        long at = i * along + j * VW;
        if (floats) {
          if (more || start) add_to((float *)m + at, sum[i][j]);
          else store((float *)m + at, sum[i][j]);
        } else {
          partial *to = (partial *)m + at;
          store_partial(to, more || start ? add(load_partial(to), sum[i][j]) : sum[i][j]);
        }
      }
  }
}
INLINE void NAME(product_by_vectors)(NAME(pair_of_matrices) by, partial *m, long along, int more, const int rows, const int columns, const int fresh) {
  NAME(product_in_parts)(by, m, along, more, rows, columns, fresh, 0);
}
#else
INLINE void NAME(product_by_vectors)(NAME(pair_of_matrices) by, partial *m, long along, int more, const int rows, const int columns, const int fresh) {
  vec sum[6][COLUMNS];
#pragma GCC unroll 8
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) sum[i][j] = more ? load_partial(m + i * along + j * VW) : zero();
  for (long c = 0; c < by.C; c += PAIR) {
    factors right[COLUMNS];
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) {
      right[j] = load_factors(by.u + (c * columns + j * PAIR) * VW);
      if (fresh) __builtin_prefetch((const char *)(by.u + (c * columns + j * PAIR) * VW) + AHEAD);
    }
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
    for (int j = 0; j < columns; j++) store_partial(m + i * along + j * VW, sum[i][j]);
}
#endif

#if defined(CLEARFOLD_AMX)
#include "amx.h"

/* What `deep` factors leave over of each of `rows` rows, a multiple of 4, is added. */
static void NAME(product_of_rest)(NAME(pair_of_matrices) by, long deep, partial *m, long along, int more, long rows, int columns) {
  if (deep == by.C) return;
  by.v += deep * by.step, by.u += deep * columns * VW, by.C -= deep, more = more || deep;
  for (; rows > 0; rows -= 4, by.v += 4 * by.row, m += 4 * along) switch (columns) {
      case 1: NAME(product_by_vectors)(by, m, along, more, 4, 1, 0); break;
      case 2: NAME(product_by_vectors)(by, m, along, more, 4, 2, 0); break;
      case 3: NAME(product_by_vectors)(by, m, along, more, 4, 3, 0); break;
      case 4: NAME(product_by_vectors)(by, m, along, more, 4, 4, 0); break;
    }
}

/* The same as of vectors, for ROWS or GRAIN rows of factors that lie side by side (`step` is 1). */
static void NAME(product_of)(NAME(pair_of_matrices) by, partial *m, long along, int more, int rows, int columns) {
  long deep = by.C / DEPTH * DEPTH, width = columns * VW;
  for (int j = 0; deep && j < columns; j += 2) {
    const factor *u = by.u + j * VW * PAIR;
    int two = columns - j > 1;
    if (rows == ROWS && two) amx_product(by.v, by.row, u, width, deep, m + j * VW, along, more, 2, 2);
    else if (rows == ROWS) amx_product(by.v, by.row, u, width, deep, m + j * VW, along, more, 2, 1);
    else if (two) amx_product(by.v, by.row, u, width, deep, m + j * VW, along, more, 1, 2);
    else amx_product(by.v, by.row, u, width, deep, m + j * VW, along, more, 1, 1);
  }
  NAME(product_of_rest)(by, deep, m, along, more, rows, columns);
}
#else
INLINE void begin_products(void) {}
INLINE void end_products(void) {}

INLINE void NAME(product_of)(NAME(pair_of_matrices) by, partial *m, long along, int more, const int rows, const int columns) {
  NAME(product_by_vectors)(by, m, along, more, rows, columns, 0);
}
#endif

#if !defined(CLEARFOLD_AMX)
/* m is of floats, where a sum of many thousands may grow. */
INLINE void NAME(product_to_floats)(NAME(pair_of_matrices) by, float *m, long along, int more, const int rows, const int columns) {
#if defined(CLEARFOLD_AVX512FP16)
  NAME(product_in_parts)(by, m, along, more, rows, columns, 0, 1);
#else
  NAME(product_by_vectors)(by, m, along, more, rows, columns, 0);
#endif
}
#endif

/* Any number of rows, and up to GRAIN - 1 behind them. */
INLINE void NAME(product_of_rows)(NAME(pair_of_matrices) by, partial *m, long along, int more, long rows, const int columns) {
#if !defined(CLEARFOLD_AMX)
  if (rows > ROWS - GRAIN) {
    NAME(product_by_vectors)(by, m, along, more, ROWS, columns, 1);
    rows -= ROWS, by.v += ROWS * by.row, m += ROWS * along;
  }
#endif
  for (; rows > ROWS - GRAIN; rows -= ROWS, by.v += ROWS * by.row, m += ROWS * along) NAME(product_of)(by, m, along, more, ROWS, columns);
  if (GRAIN < ROWS && rows > 0) NAME(product_of)(by, m, along, more, GRAIN, columns);
}

static void NAME(product)(const factor *v, long row, const factor *u, long C, partial *m, long rows, int columns) {
  NAME(pair_of_matrices) by = {v, row, 1, u, C};
  switch (columns) {
    case 1: NAME(product_of_rows)(by, m, VW, 0, rows, 1); break;
    case 2: NAME(product_of_rows)(by, m, 2 * VW, 0, rows, 2); break;
#if !defined(TWO_COLUMNS)
    case 3: NAME(product_of_rows)(by, m, 3 * VW, 0, rows, 3); break;
    case 4: NAME(product_of_rows)(by, m, 4 * VW, 0, rows, 4); break;
#endif
  }
}

/* How many factors this processor multiplies in a second, by a product that stays in the first cache: the best of a few short tries. */
double NAME(rate)(void) {
  enum { SIDE = 48, C = 64, WIDE = COLUMNS * VW, EACH = 8, TRIES = 16 };
  factor v[SIDE * C] = {0}, u[C * WIDE] = {0};
  partial m[SIDE * WIDE];
  double best = 0;
  begin_products();
  for (int try = 0; try < TRIES; try++) {
    struct timespec start, stop;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < EACH; i++) NAME(product)(v, C, u, C, m, SIDE, COLUMNS);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    double took = (stop.tv_sec - start.tv_sec) + 1e-9 * (stop.tv_nsec - start.tv_nsec), reached = (double)SIDE * C * WIDE * EACH / took;
    if (reached > best) best = reached;
  }
  end_products();
  return best;
}

#if defined(CLEARFOLD_AVX512BF16)
/* m (48, 48) = 2 v u: a product that tries every part of the above, to be compared with another set's. */
void NAME(sample)(const factor *v, const factor *u, long C, float *m) {
  NAME(pair_of_matrices) by = {v, C, 1, u, C};
  begin_products();
  NAME(product)(v, C, u, C, m, 48, 3);
  NAME(product_of_rows)(by, m, 3 * VW, 1, 48, 3);
  end_products();
}
#endif

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

/* Does each vector of channels go whole to one place, with nothing cropped? */
INLINE int NAME(is_whole)(const clearfold_convolution *job) {
  long S = job->scale;
  return job->F / (S * S) % VW == 0 && !job->crop_top && !job->crop_left && job->rows == job->Ho * S && job->columns == job->Wo * S;
}

/* `finish` for a whole job: `count` neighbours of a row from output (i, j), the channels f..f+VW. */
INLINE void NAME(finish_run)(const clearfold_convolution *job, vec *y, const int count, long picture, long i, long j, long f, const int half) {
  long S = job->scale, C = job->F, row = i, at = j * C + f, step = C;
  if (S > 1) {
    C /= S * S;
    long phase = f / C;
    row = i * S + phase / S, at = (j * S + phase % S) * C + f - phase * C, step = S * C;
  }
  long width = job->columns * C;
  if (job->bias) {
    vec bias = load(job->bias + f);
    for (int b = 0; b < count; b++) y[b] = add(y[b], bias);
  }
  if (job->addend.data) {
    long from = clearfold_row(&job->addend, picture, row, width) + at;
    for (int b = 0; b < count; b++) y[b] = add(y[b], load_any(job->addend.data, from + b * step, VW, half));
  }
  if (job->another.data) {
    long from = clearfold_row(&job->another, picture, row, width) + at;
    for (int b = 0; b < count; b++) y[b] = add(y[b], load_any(job->another.data, from + b * step, VW, half));
  }
  if (job->relu)
    for (int b = 0; b < count; b++) y[b] = relu(y[b]);
  if (job->mask.data) {
    long from = clearfold_row(&job->mask, picture, row, width) + at;
    for (int b = 0; b < count; b++) y[b] = where_positive(load_any(job->mask.data, from + b * step, VW, half), y[b]);
  }
  long to = clearfold_row(&job->y, picture, row, width) + at;
  for (int b = 0; b < count; b++) store_any(job->y.data, to + b * step, y[b], VW, half);
}

/* Is the output so few channels that one vector holds all phases of a pixel, with nothing but a bias to add? */
INLINE int NAME(is_few)(const clearfold_convolution *job) {
  long S = job->scale;
  return S > 1 && job->F <= VW && !job->crop_top && !job->crop_left && job->rows == job->Ho * S && job->columns == job->Wo * S && !job->relu &&
         !job->addend.data && !job->mask.data;
}

/* `finish` for such a job: four neighbours of a row from output (i, j). A row of phases is one run of memory. */
INLINE void NAME(finish_few)(const clearfold_convolution *job, const vec y[4], long picture, long i, long j) {
  long S = job->scale, run = job->F / S, width = job->columns * (run / S);
  vec bias = job->bias ? load_n(job->bias, job->F) : zero();
  float lanes[4][VW];
  narrow halves[4][VW];
  for (int b = 0; b < 4; b++)
    if (job->y.half) store_narrow(halves[b], add(y[b], bias));
    else store(lanes[b], add(y[b], bias));
  for (long r = 0; r < S; r++) {
    long to = clearfold_row(&job->y, picture, i * S + r, width) + j * run;
    for (int b = 0; b < 4; b++, to += run)
      if (job->y.half) memcpy((narrow *)job->y.data + to, halves[b] + r * run, run * sizeof(narrow));
      else memcpy((float *)job->y.data + to, lanes[b] + r * run, run * sizeof(float));
  }
}
