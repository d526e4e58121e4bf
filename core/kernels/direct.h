/* A convolution of any kernel and stride: the windows of a few dozen outputs are laid out as rows of factors, in memory that stays in the
 * first caches, and multiplied by the kernel as (A*B*C, F). Where activations are factors already and no window crosses the border, the
 * products read each row of a window where it lies. Included once for every instruction set.
 */

/* n activations as factors. */
INLINE void NAME(as_factors)(factor *to, const void *x, long i, long n, int half) {
  long c = 0;
  for (; c + VW <= n; c += VW) store_factors(to + c, load_any(x, i + c, VW, half));
  for (; c < n; c++) to[c] = to_factor(half ? load_one_narrow((const narrow *)x + i + c) : ((const float *)x)[i + c]);
}

static void NAME(direct_body)(void *p) {
  clearfold_convolution *job = p;
  long H = job->H, W = job->W, C = job->C, F = job->F, A = job->A, B = job->B, K = A * B * C, T = job->block;
  long Kp = NAME(round_up)(K, PAIR), Fp = NAME(round_up)(F, VW), wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW, pixels = job->N * job->Ho * job->Wo;
  factor *v = clearfold_scratch(T * (Kp * sizeof(factor) + wide * sizeof(partial) + sizeof(float)) + 64 + NAME(round_up)(C, VW) * sizeof(float));
  partial *m = (partial *)(((uintptr_t)(v + T * Kp) + 63) & ~(uintptr_t)63);
  float *scales = (float *)(m + T * wide), *pixel = scales + T;
  const factor *u = job->u;
  begin_products();
  for (long first; (first = clearfold_next(&job->next, (pixels + T - 1) / T)) >= 0;) {
    first *= T;
    long count = pixels - first < T ? pixels - first : T;
    for (long t = 0; t < count; t++) {
      long n = (first + t) / (job->Ho * job->Wo), i = (first + t) / job->Wo % job->Ho * job->along_i - job->top, j = (first + t) % job->Wo * job->along_j - job->left;
      long from = j < 0 ? -j : 0, to = j + B > W ? W - j : B; /* taps inside */
      if (from > B) from = B;
      if (to < from) to = from;
      for (long a = 0; a < A; a++) {
        factor *row = v + t * Kp + a * B * C;
        if (i + a < 0 || i + a >= H) {
          memset(row, 0, B * C * sizeof(factor));
          continue;
        }
        memset(row, 0, from * C * sizeof(factor));
        long at = clearfold_row(&job->x, n, i + a, W * C) + (j + from) * C;
        if (job->x.half) NAME(as_factors)(row + from * C, job->x.data, at, (to - from) * C, 1);
        else NAME(as_factors)(row + from * C, job->x.data, at, (to - from) * C, 0);
        memset(row + to * C, 0, (B - to) * C * sizeof(factor));
        if (job->epsilon > 0) scales[t] = NAME(normal_scale)(job->x.data, at, C, job->epsilon, pixel, job->x.half);
      }
      memset(v + t * Kp + K, 0, (Kp - K) * sizeof(factor));
    }
    for (long f = 0; f < Fp; f += wide) {
      long columns = (Fp - f < wide ? Fp - f : wide) / VW;
      NAME(product)(v, Kp, u + f * Kp, Kp, m, count, columns);
      for (long t = 0; t < count; t++) {
        long n = (first + t) / (job->Ho * job->Wo), i = (first + t) / job->Wo % job->Ho, j = (first + t) % job->Wo;
        for (long c = 0; c < columns; c++) {
          long at = f + c * VW;
          vec sum = load_partial(m + (t * columns + c) * VW);
          NAME(finish)(job, job->epsilon > 0 ? mul(sum, all(scales[t])) : sum, n, i, j, at, F - at < VW ? F - at : VW);
        }
      }
    }
  }
  end_products();
}

/* Can windows be multiplied where they lie? */
static int NAME(lies_ready)(const clearfold_convolution *job) {
  return (job->x.half ? sizeof(narrow) : sizeof(float)) == sizeof(factor) && !job->top && !job->left && (job->Ho - 1) * job->along_i + job->A <= job->H &&
         (job->Wo - 1) * job->along_j + job->B <= job->W && job->B * job->C % PAIR == 0 && job->Wo >= GRAIN && NAME(is_whole)(job);
}

#if defined(CLEARFOLD_AVX512FP16)

/* Outputs of a row that a thread takes at once, one chunk of columns after another, IN_PLACE factors at a time: these, their sums and what
 * they are multiplied with stay in the first cache. Fewer outputs where there would be too few PIECES for each thread to have as much to do
 * as the others. */
enum { OUTPUTS = 192, PIECES = 6 };
enum { SUMS = COLUMNS * VW }; /* of an output, kept in memory from one piece of the factors to the next */

/* `count` neighbours, ROWS or GRAIN, of an output row from column j, a chunk of columns from f: the part of their sums that the factors `by`
 * of the window's row a give. What was summed up before is in m, unless this part is the `first`, and the `last` one finishes. `scales`:
 * what outputs are multiplied with, or NULL. */
INLINE void NAME(direct_run)(const clearfold_convolution *job, NAME(pair_of_matrices) by, long a, long n, long i, long j, long f, partial *m, int first, int last, const partial *scales, const int count, const int columns) {
  vec sum[ROWS][COLUMNS];
  by.v += clearfold_row(&job->x, n, i * job->along_i + a, job->W * job->C) + j * job->along_j * job->C;
  NAME(sum_part)(by, 0, by.C, sum, count, columns, 0);
  if (!first)
#pragma GCC unroll 12
    for (int b = 0; b < count; b++)
#pragma GCC unroll 2
      for (int c = 0; c < columns; c++) sum[b][c] = add(load_partial(m + (b * columns + c) * VW), sum[b][c]);
  if (!last) {
#pragma GCC unroll 12
    for (int b = 0; b < count; b++)
#pragma GCC unroll 2
      for (int c = 0; c < columns; c++) store_partial(m + (b * columns + c) * VW, sum[b][c]);
    return;
  }
  if (scales)
#pragma GCC unroll 12
    for (int b = 0; b < count; b++)
#pragma GCC unroll 2
      for (int c = 0; c < columns; c++) sum[b][c] = scaled(sum[b][c], scales + b);
  if (job->gate) {
    long half = job->F / 2, to = clearfold_row(&job->y, n, i, job->columns * half) + j * half + f / 2;
    vec one = load(job->bias + f), other = load(job->bias + f + VW);
#pragma GCC unroll 12
    for (int b = 0; b < count; b++) store_narrow((narrow *)job->y.data + to + b * half, mul(add(sum[b][0], one), add(sum[b][columns - 1], other)));
    return;
  }
#pragma GCC unroll 2
  for (int c = 0; c < columns; c++) {
    vec y[ROWS];
#pragma GCC unroll 12
    for (int b = 0; b < count; b++) y[b] = sum[b][c];
    if (job->y.half) NAME(finish_run)(job, y, count, n, i, j, f + c * VW, 1);
    else NAME(finish_run)(job, y, count, n, i, j, f + c * VW, 0);
  }
}

/* The outputs first..stop of a row, a chunk of columns from f. */
INLINE void NAME(direct_stretch)(const clearfold_convolution *job, long n, long i, long first, long stop, long f, partial *m, const partial *scales, const int columns) {
  long taps = job->B * job->C;
  NAME(pair_of_matrices) by = {NULL, job->along_j * job->C, 1, (const factor *)job->u + f * job->A * taps, 0};
  for (long a = 0; a < job->A; a++)
    for (long start = 0; start < taps; start += by.C) {
      by.C = taps - start < IN_PLACE ? taps - start : IN_PLACE;
      by.v = (const factor *)job->x.data + start;
      int begins = !a && !start, ends = a == job->A - 1 && start + by.C == taps;
      partial *to = m;
      for (long at = first, count; at < stop; at += count, to += count * columns * VW) {
        count = stop - at > GRAIN && job->Wo >= ROWS ? ROWS : GRAIN;
        long j = at + count <= job->Wo ? at : job->Wo - count; /* the last run overlaps the one before */
        const partial *of = scales ? scales + j - first : NULL;
        if (count == ROWS) NAME(direct_run)(job, by, a, n, i, j, f, to, begins, ends, of, ROWS, columns);
        else NAME(direct_run)(job, by, a, n, i, j, f, to, begins, ends, of, GRAIN, columns);
      }
      by.u += by.C * columns * VW;
    }
}

/* What a row's outputs first..stop are multiplied with for their pixels to be normalised. */
INLINE void NAME(find_scales)(const clearfold_convolution *job, long n, long i, long first, long stop, partial *scales, float *row) {
  const narrow *x = (const narrow *)job->x.data + clearfold_row(&job->x, n, i, job->W * job->C);
  for (long j = first; j < stop; j++) scales[j - first] = to_factor(NAME(normal_scale_of_halves)(x + j * job->C, job->C, job->epsilon));
  (void)row;
}

#else /* other sets, which are no faster by pieces of a row, or of the factors */

enum { SUMS = 0 };

/* As it would be loaded if it had been stored: no product whose sum with something else the compiler would round once in place of twice. */
INLINE vec as_activation(vec x, int half) {
  narrow stored[VW];
  if (!half) {
#if !defined(CLEARFOLD_EMULATED)
    __asm__("" : "+x"(x));
#endif
    return x;
  }
  store_narrow(stored, x);
  return load_narrow(stored);
}

/* Of `count` neighbours from column j the sums m, a vector of a gate's first half and one of its other half in turn, gated. They are rounded
 * first, as if the convolution had stored them and the gate had read them. */
INLINE void NAME(gate_run)(const clearfold_convolution *job, const partial *m, long n, long i, long j, long f, const float *scales, const int count, const int columns, const int half) {
  long F = job->F / 2, to = clearfold_row(&job->y, n, i, job->columns * F) + j * F + f / 2;
  for (int c = 0; c + 1 < columns; c += 2, to += VW) {
    vec one = load(job->bias + f + c * VW), other = load(job->bias + f + (c + 1) * VW);
    for (int b = 0; b < count; b++) {
      vec scale = all(scales ? scales[b] : 1);
      vec left = as_activation(mul(load_partial(m + (b * columns + c) * VW), scale), half), right = as_activation(mul(load_partial(m + (b * columns + c + 1) * VW), scale), half);
      store_any(job->y.data, to + b * F, mul(add(left, one), add(right, other)), VW, half);
    }
  }
}

/* `count` neighbours, ROWS or GRAIN, of an output row from column j, a chunk of columns from f; `scales`: what they are multiplied with, or NULL. */
INLINE void NAME(direct_run)(const clearfold_convolution *job, long n, long i, long j, long f, const float *scales, const int count, const int columns) {
  enum { STEP = GRAIN < 8 ? GRAIN : 8 }; /* finished at a time */
  long C = job->C, taps = job->B * C, K = job->A * taps;
  partial m[ROWS * COLUMNS * VW];
  NAME(pair_of_matrices) by = {0, job->along_j * C, 1, (const factor *)job->u + f * K, taps};
  by.v = (const factor *)job->x.data + clearfold_row(&job->x, n, i * job->along_i, job->W * C) + j * job->along_j * C;
  NAME(product_of)(by, m, columns * VW, 0, count, columns);
  for (long a = 1; a < job->A; a++) {
    by.v = (const factor *)job->x.data + clearfold_row(&job->x, n, i * job->along_i + a, job->W * C) + j * job->along_j * C;
    by.u += taps * columns * VW;
    NAME(product_of)(by, m, columns * VW, 1, count, columns);
  }
  if (job->gate) {
    if (job->y.half) NAME(gate_run)(job, m, n, i, j, f, scales, count, columns, 1);
    else NAME(gate_run)(job, m, n, i, j, f, scales, count, columns, 0);
    return;
  }
  for (int c = 0; c < columns; c++)
    for (int first = 0; first < count; first += STEP) {
      vec y[STEP];
#pragma GCC unroll 8
      for (int b = 0; b < STEP; b++) y[b] = load_partial(m + ((first + b) * columns + c) * VW);
      if (scales)
#pragma GCC unroll 8
        for (int b = 0; b < STEP; b++) y[b] = mul(y[b], all(scales[first + b]));
      if (job->y.half) NAME(finish_run)(job, y, STEP, n, i, j + first, f + c * VW, 1);
      else NAME(finish_run)(job, y, STEP, n, i, j + first, f + c * VW, 0);
    }
}

/* The outputs first..stop of a row, a chunk of columns from f; their sums stay in registers. */
INLINE void NAME(direct_stretch)(const clearfold_convolution *job, long n, long i, long first, long stop, long f, partial *m, const partial *scales, const int columns) {
  for (long at = first, count; at < stop; at += count) {
    count = GRAIN == ROWS || (stop - at > GRAIN && job->Wo >= ROWS) ? ROWS : GRAIN;
    long j = at + count <= job->Wo ? at : job->Wo - count; /* the last run overlaps the one before */
    const partial *of = scales ? scales + j - first : NULL;
    if (GRAIN == ROWS || count == ROWS) NAME(direct_run)(job, n, i, j, f, of, ROWS, columns);
    else NAME(direct_run)(job, n, i, j, f, of, GRAIN, columns);
  }
  (void)m;
}

/* What a row's outputs first..stop are multiplied with for their pixels to be normalised; `row` is room for one. */
INLINE void NAME(find_scales)(const clearfold_convolution *job, long n, long i, long first, long stop, partial *scales, float *row) {
  long at = clearfold_row(&job->x, n, i, job->W * job->C) + first * job->C;
  for (long j = first; j < stop; j++, at += job->C)
#if defined(CLEARFOLD_AVX512BF16)
    if (job->x.half) scales[j - first] = NAME(normal_scale_of_halves)((const narrow *)job->x.data + at, job->C, job->epsilon);
    else
#endif
      scales[j - first] = job->x.half ? NAME(normal_scale)(job->x.data, at, job->C, job->epsilon, row, 1) : NAME(normal_scale)(job->x.data, at, job->C, job->epsilon, row, 0);
}

#endif

/* The outputs first..stop of a row. */
static void NAME(direct_part)(const clearfold_convolution *job, long n, long i, long first, long stop, partial *m, const partial *scales) {
  long F = job->F, wide = F < COLUMNS * VW ? F : COLUMNS * VW;
  for (long f = 0; f < F; f += wide) switch ((F - f < wide ? F - f : wide) / VW) {
      case 1: NAME(direct_stretch)(job, n, i, first, stop, f, m, scales, 1); break;
      case 2: NAME(direct_stretch)(job, n, i, first, stop, f, m, scales, 2); break;
#if !defined(TWO_COLUMNS)
      case 3: NAME(direct_stretch)(job, n, i, first, stop, f, m, scales, 3); break;
      case 4: NAME(direct_stretch)(job, n, i, first, stop, f, m, scales, 4); break;
#endif
    }
}

/* A row from pixel j on, as a picture by itself. */
INLINE clearfold_rows NAME(alone)(const clearfold_rows *of, long n, long i, long W, long C, long j) {
  long size = of->half ? sizeof(narrow) : sizeof(float);
  clearfold_rows row = {of->data ? (char *)of->data + (clearfold_row(of, n, i, W * C) + j * C) * size : NULL, 1, 0, of->half};
  return row;
}

enum { BETWEEN = ROWS < 32 ? 48 : 64 }; /* pixels of a pair that are gated at a time */

/* The same of a 1x1 convolution, its gate, and a 1x1 convolution of what that lets through, which lies in `gated` in between. */
static void NAME(direct_pair)(const clearfold_convolution *job, long n, long i, long first, long stop, partial *m, const partial *scales, factor *gated) {
  clearfold_convolution one = *job, two = *job;
  clearfold_rows between = {gated, 1, 0, sizeof(factor) == sizeof(narrow)};
  one.x = NAME(alone)(&job->x, n, i, job->W, job->C, first);
  one.y = two.x = between;
  two.y = NAME(alone)(&job->y, n, i, job->columns, job->outputs, first);
  two.addend = NAME(alone)(&job->addend, n, i, job->columns, job->outputs, first);
  two.another = NAME(alone)(&job->another, n, i, job->columns, job->outputs, first);
  one.Wo = one.columns = two.Wo = two.columns = stop - first;
  two.u = job->then, two.C = job->F / 2, two.F = job->outputs, two.gate = 0, two.bias = NULL;
  NAME(direct_part)(&one, 0, 0, 0, stop - first, m, scales);
  NAME(direct_part)(&two, 0, 0, 0, stop - first, m, NULL);
}

static void NAME(direct_in_place_body)(void *p) {
  clearfold_convolution *job = p;
  long stretch = job->block, stretches = job->Wo < stretch ? 1 : job->Wo / stretch, most = 2 * stretch, C = NAME(round_up)(job->C, VW);
  partial *m = clearfold_scratch(most * (SUMS + 1) * sizeof(partial) + C * sizeof(float) + (job->then ? BETWEEN * job->F * sizeof(factor) : 0));
  partial *room = m + most * SUMS, *scales = job->epsilon > 0 ? room : NULL;
  float *row = (float *)(room + most);
  begin_products();
  for (long piece; (piece = clearfold_next(&job->next, job->N * job->Ho * stretches)) >= 0;) {
    long line = piece / stretches, n = line / job->Ho, i = line % job->Ho, first = piece % stretches * stretch;
    long stop = piece % stretches == stretches - 1 ? job->Wo : first + stretch; /* the last one takes what is left over */
    if (scales) NAME(find_scales)(job, n, i, first, stop, scales, row);
    if (job->then)
      for (long at = first, next; at < stop; at = next) {
        next = stop - at < 2 * BETWEEN ? stop : at + BETWEEN;
        NAME(direct_pair)(job, n, i, at, next, m, scales ? scales + at - first : NULL, (factor *)(row + C));
      }
    else NAME(direct_part)(job, n, i, first, stop, m, scales);
  }
  end_products();
}

void NAME(direct)(clearfold_convolution *job) {
  if (NAME(lies_ready)(job)) {
#if defined(CLEARFOLD_AVX512FP16)
    job->block = OUTPUTS;
    while (job->block > ROWS && job->N * job->Ho * job->Wo < PIECES * job->threads * job->block) job->block = NAME(round_up)(job->block / 2, ROWS);
#else
    job->block = job->Wo;
#endif
    job->next = 0;
    clearfold_team(NAME(direct_in_place_body), job, job->threads);
    return;
  }
  enum { CACHE = 256 << 10, MOST = ROWS < 32 ? 48 : 64 };
  long K = job->A * job->B * job->C * (long)sizeof(factor), pixels = job->N * job->Ho * job->Wo;
  long most = CACHE / K;
  most = most > MOST ? MOST : most < ROWS ? ROWS : most / ROWS * ROWS;
  long blocks = NAME(round_up)((pixels + most - 1) / most, job->threads);
  job->block = NAME(round_up)((pixels + blocks - 1) / blocks, GRAIN);
  job->next = 0;
  clearfold_team(NAME(direct_body), job, job->threads);
}
