/* What stands between the 1x1 convolutions of a gated block: pixels normalised, channels that multiply each other, and depthwise 3x3
 * convolutions before that; and their derivatives. Each reads a row of pixels where it lies and writes one; nothing is laid out but the
 * derivatives that three rows share. Included once for every instruction set.
 *
 * Sums over a pixel's channels are of floats. Those over pixels are floats, too, but for runs of RUN in a register.
 */

enum { RUN = 32, TAPS = 9 };

/* n activations as floats, and back. */
INLINE void NAME(to_floats)(float *to, const void *x, long i, long n, const int half) {
  for (long c = 0; c < n; c += VW) store_n(to + c, load_any(x, i + c, n - c, half), n - c);
}
INLINE void NAME(from_floats)(void *x, long i, const float *from, long n, const int half) {
  for (long c = 0; c < n; c += VW) store_any(x, i + c, load_n(from + c, n - c), n - c, half);
}

/* The sum of products of two rows of floats, LANES of them side by side whatever the set, so that all sets come to the same. */
INLINE float NAME(inner)(const float *a, const float *b, long n) {
  enum { LANES = 16 };
  float sums[LANES] = {0}, total = 0;
  long c = 0;
  for (; c + LANES <= n; c += LANES)
#pragma GCC unroll 16
    for (int l = 0; l < LANES; l++) sums[l] += a[c + l] * b[c + l];
  for (; c < n; c++) total += a[c] * b[c];
  for (int width = LANES / 2; width; width /= 2)
    for (int l = 0; l < width; l++) sums[l] += sums[l + width];
  return sums[0] + total;
}

/* sums += the first n of x */
INLINE void NAME(sum_to)(float *sums, vec x, long n) {
#if defined(CLEARFOLD_AVX512FP16)
  if (n >= VW) add_to(sums, x);
  else {
    float lanes[VW];
    store(lanes, x);
    for (long l = 0; l < n; l++) sums[l] += lanes[l];
  }
#else
  store_n(sums, add(load_n(sums, n), x), n);
#endif
}

/* What a pixel of n channels is multiplied with to be normalised; `row` is room for them. */
INLINE float NAME(normal_scale)(const void *x, long i, long n, float epsilon, float *row, const int half) {
  NAME(to_floats)(row, x, i, n, half);
  return 1 / __builtin_sqrtf(NAME(inner)(row, row, n) / n + epsilon);
}

#if defined(CLEARFOLD_AVX512BF16)
/* The same for bfloat16, two products of which are added at once. */
INLINE float NAME(normal_scale_of_halves)(const narrow *x, long n, float epsilon) {
  __m512 sums = _mm512_setzero_ps();
  for (long c = 0; c < n; c += 2 * VW) {
    __m512bh some = (__m512bh)(n - c >= 2 * VW ? _mm512_loadu_si512((const void *)(x + c)) : _mm512_maskz_loadu_epi16((1u << (n - c)) - 1, x + c));
    sums = _mm512_dpbf16_ps(sums, some, some);
  }
  return 1 / __builtin_sqrtf(_mm512_reduce_add_ps(sums) / n + epsilon);
}
#elif defined(CLEARFOLD_AVX512FP16)
/* The same for float16. */
INLINE float NAME(normal_scale_of_halves)(const narrow *x, long n, float epsilon) {
  __m512 sums = _mm512_setzero_ps();
  for (long c = 0; c < n; c += VW) {
    __m512i both = (__m512i)load_narrow_n(x + c, n - c);
    __m512 low = _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256(both)), high = _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64(both, 1));
    sums = _mm512_fmadd_ps(high, high, _mm512_fmadd_ps(low, low, sums));
  }
  __m256 eight = (__m256)_mm512_castsi512_si256((__m512i)sums) + (__m256)_mm512_extracti64x4_epi64((__m512i)sums, 1);
  __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1), two = four + _mm_movehl_ps(four, four);
  return 1 / __builtin_sqrtf((two[0] + two[1]) / n + epsilon);
}
#endif

INLINE void NAME(normal_row)(const clearfold_normal *job, long n, long i, float *row, const int half) {
  long C = job->C, x = clearfold_row(&job->x, n, i, job->W * C), y = clearfold_row(&job->y, n, i, job->W * C);
  for (long j = 0; j < job->W; j++, x += C, y += C) {
    float scale = NAME(normal_scale)(job->x.data, x, C, job->epsilon, row, half);
    for (long c = 0; c < C; c++) row[c] *= scale;
    NAME(from_floats)(job->y.data, y, row, C, half);
    if (job->scale) job->scale[(n * job->H + i) * job->W + j] = scale;
  }
}

static void NAME(normal_body)(void *p) {
  clearfold_normal *job = p;
  float *row = clearfold_scratch(NAME(round_up)(job->C, VW) * sizeof(float));
  for (long at; (at = clearfold_next(&job->next, job->N * job->H)) >= 0;)
    if (job->x.half) NAME(normal_row)(job, at / job->H, at % job->H, row, 1);
    else NAME(normal_row)(job, at / job->H, at % job->H, row, 0);
}

void NAME(normal)(clearfold_normal *job) {
  job->next = 0;
  clearfold_team(NAME(normal_body), job, job->threads);
}

/* dx = scale (dy - y mean(dy y)) + addend */
INLINE void NAME(normal_gradient_row)(const clearfold_normal_gradient *job, long n, long i, float *y, float *dy, const int half) {
  long C = job->C, at = (n * job->H + i) * job->W * C; /* none of them is a ring */
  for (long j = 0; j < job->W; j++, at += C) {
    float scale = job->scale[(n * job->H + i) * job->W + j];
    NAME(to_floats)(y, job->y.data, at, C, half);
    NAME(to_floats)(dy, job->dy.data, at, C, half);
    float mean = NAME(inner)(y, dy, C) / C;
    for (long c = 0; c < C; c++) dy[c] = (dy[c] - y[c] * mean) * scale;
    if (job->addend.data) {
      NAME(to_floats)(y, job->addend.data, at, C, half);
      for (long c = 0; c < C; c++) dy[c] += y[c];
    }
    NAME(from_floats)(job->dx.data, at, dy, C, half);
  }
}

static void NAME(normal_gradient_body)(void *p) {
  clearfold_normal_gradient *job = p;
  long wide = NAME(round_up)(job->C, VW);
  float *y = clearfold_scratch(2 * wide * sizeof(float));
  for (long at; (at = clearfold_next(&job->next, job->N * job->H)) >= 0;)
    if (job->y.half) NAME(normal_gradient_row)(job, at / job->H, at % job->H, y, y + wide, 1);
    else NAME(normal_gradient_row)(job, at / job->H, at % job->H, y, y + wide, 0);
}

void NAME(normal_gradient)(clearfold_normal_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(normal_gradient_body), job, job->threads);
}

/* y = (x[:F] + bias[:F]) (x[F:] + bias[F:]), C being 2F. */
INLINE void NAME(gate_row)(const clearfold_convolution *job, long n, long i, const int half) {
  long C = job->C, F = job->F, x = clearfold_row(&job->x, n, i, job->W * C), y = clearfold_row(&job->y, n, i, job->W * F);
  for (long j = 0; j < job->W; j++, x += C, y += F)
    for (long c = 0; c < F; c += VW) {
      vec one = add(load_any(job->x.data, x + c, F - c, half), load_n(job->bias + c, F - c));
      vec other = add(load_any(job->x.data, x + F + c, F - c, half), load_n(job->bias + F + c, F - c));
      store_any(job->y.data, y + c, mul(one, other), F - c, half);
    }
}

static void NAME(gate_body)(void *p) {
  clearfold_convolution *job = p;
  for (long at; (at = clearfold_next(&job->next, job->N * job->Ho)) >= 0;)
    if (job->x.half) NAME(gate_row)(job, at / job->Ho, at % job->Ho, 1);
    else NAME(gate_row)(job, at / job->Ho, at % job->Ho, 0);
}

void NAME(gate)(clearfold_convolution *job) {
  job->next = 0;
  clearfold_team(NAME(gate_body), job, job->threads);
}

/* A pixel's neighbourhood, from column j - 1 on, where `from` points at the columns 0 of three rows: the taps of n channels from c on, of
 * the columns first..last of the three. */
INLINE vec NAME(filtered)(const void *const from[3], const float *w, vec sum, long j, long c, long C, long n, const int first, const int last, const int half) {
#pragma GCC unroll 3
  for (int a = 0; a < 3; a++)
#pragma GCC unroll 3
    for (int b = first; b <= last; b++) sum = fma_(load_any(from[a], (j + b - 1) * C + c, n, half), load_n(w + (a * 3 + b) * C + c, n), sum);
  return sum;
}

INLINE void NAME(depthwise_pixel)(const clearfold_convolution *job, const void *const from[3], long y, long kept, long j, const int first, const int last, const int whole_, const int half) {
  long C = job->C, F = job->F;
  const float *w = job->u, *bias = job->bias;
  for (long c = 0; c < F; c += VW) {
    long n = whole_ ? VW : F - c;
    vec one = NAME(filtered)(from, w, load_n(bias + c, n), j, c, C, n, first, last, half);
    vec other = NAME(filtered)(from, w, load_n(bias + F + c, n), j, F + c, C, n, first, last, half);
    store_any(job->y.data, y + j * F + c, mul(one, other), n, half);
    if (job->another.data) {
      store_any(job->another.data, kept + j * C + c, one, n, half);
      store_any(job->another.data, kept + j * C + F + c, other, n, half);
    }
  }
}

/* Columns whose neighbours are all there, a vector of channels at a time, whose 18 taps stay near. */
INLINE void NAME(depthwise_inner)(const clearfold_convolution *job, const void *const from[3], long y, long kept, const int half) {
  long C = job->C, F = job->F;
  const float *w = job->u, *bias = job->bias;
  for (long c = 0; c < F; c += VW) {
    vec u[2][TAPS], b0 = load(bias + c), b1 = load(bias + F + c);
#pragma GCC unroll 9
    for (int t = 0; t < TAPS; t++) u[0][t] = load(w + t * C + c), u[1][t] = load(w + t * C + F + c);
    for (long j = 1; j + 1 < job->W; j++) {
      vec one = b0, other = b1;
#pragma GCC unroll 9
      for (int t = 0; t < TAPS; t++) {
        long at = (j + t % 3 - 1) * C + c;
        one = fma_(load_any(from[t / 3], at, VW, half), u[0][t], one);
        other = fma_(load_any(from[t / 3], at + F, VW, half), u[1][t], other);
      }
      store_any(job->y.data, y + j * F + c, mul(one, other), VW, half);
      if (job->another.data) {
        store_any(job->another.data, kept + j * C + c, one, VW, half);
        store_any(job->another.data, kept + j * C + F + c, other, VW, half);
      }
    }
  }
}

INLINE void NAME(depthwise_row)(const clearfold_convolution *job, long n, long i, const void *nothing, const int half) {
  long C = job->C, W = job->W, size = half ? sizeof(narrow) : sizeof(float);
  const void *from[3];
  for (int a = 0; a < 3; a++) {
    long row = i + a - job->top;
    from[a] = row < 0 || row >= job->H ? nothing : (const char *)job->x.data + clearfold_row(&job->x, n, row, W * C) * size;
  }
  long y = clearfold_row(&job->y, n, i, W * job->F), kept = clearfold_row(&job->another, n, i, W * C);
  int whole_ = job->F % VW == 0;
  if (W == 1) {
    NAME(depthwise_pixel)(job, from, y, kept, 0, 1, 1, 0, half);
    return;
  }
  NAME(depthwise_pixel)(job, from, y, kept, 0, 1, 2, 0, half);
  if (whole_) NAME(depthwise_inner)(job, from, y, kept, half);
  else
    for (long j = 1; j + 1 < W; j++) NAME(depthwise_pixel)(job, from, y, kept, j, 0, 2, 0, half);
  NAME(depthwise_pixel)(job, from, y, kept, W - 1, 0, 1, 0, half);
}

static void NAME(depthwise_gate_body)(void *p) {
  clearfold_convolution *job = p;
  size_t bytes = job->W * job->C * sizeof(float);
  void *nothing = clearfold_scratch(bytes);
  memset(nothing, 0, bytes);
  enum { BAND = 4 }; /* rows that a thread takes at once: it has read four of the six then that they hang on */
  long lines = job->N * job->Ho;
  for (long piece; (piece = clearfold_next(&job->next, (lines + BAND - 1) / BAND)) >= 0;)
    for (long at = piece * BAND; at < (piece + 1) * BAND && at < lines; at++)
      if (job->x.half) NAME(depthwise_row)(job, at / job->Ho, at % job->Ho, nothing, 1);
      else NAME(depthwise_row)(job, at / job->Ho, at % job->Ho, nothing, 0);
}

/* The gate of (N, H, W, C) filtered by (3, 3, C), which may be kept in `another`: (N, Ho, W, F), C being 2F. */
void NAME(depthwise_gate)(clearfold_convolution *job) {
  job->next = 0;
  clearfold_team(NAME(depthwise_gate_body), job, job->threads);
}

/* A row of the derivative by what the gate multiplied, pixels `pitch` apart from `at` on; and its sums. */
INLINE void NAME(gate_gradient_row)(const clearfold_gate_gradient *job, long n, long i, void *to, long at, long pitch, float *sums, const int half, const int to_half) {
  long C = job->C, F = C / 2, W = job->W, from = (n * job->H + i) * W;
  for (long c = 0; c < F; c += VW) {
    long count = F - c;
    vec first = job->bias ? load_n(job->bias + c, count) : zero(), second = job->bias ? load_n(job->bias + F + c, count) : zero();
    for (long start = 0; start < W; start += RUN) {
      vec sum = zero(), other_sum = zero();
      for (long j = start; j < start + RUN && j < W; j++) {
        vec dy = load_any(job->dy.data, (from + j) * F + c, count, half);
        vec one = mul(dy, add(load_any(job->gated.data, (from + j) * C + F + c, count, half), second));
        vec other = mul(dy, add(load_any(job->gated.data, (from + j) * C + c, count, half), first));
        store_any(to, at + j * pitch + c, one, count, to_half);
        store_any(to, at + j * pitch + F + c, other, count, to_half);
        sum = add(sum, one), other_sum = add(other_sum, other);
      }
      NAME(sum_to)(sums + c, sum, count);
      NAME(sum_to)(sums + F + c, other_sum, count);
    }
  }
}

static void NAME(gate_gradient_body)(void *p) {
  clearfold_gate_gradient *job = p;
  long rows = job->N * job->H, share = (rows + job->shares - 1) / job->shares;
  for (long piece; (piece = clearfold_next(&job->next, job->shares)) >= 0;) {
    float *sums = job->dbias + piece * job->C;
    memset(sums, 0, job->C * sizeof(float));
    for (long r = piece * share; r < (piece + 1) * share && r < rows; r++) {
      long at = r * job->W * job->C;
      if (job->gated.half) NAME(gate_gradient_row)(job, r / job->H, r % job->H, job->dx.data, at, job->C, sums, 1, 1);
      else NAME(gate_gradient_row)(job, r / job->H, r % job->H, job->dx.data, at, job->C, sums, 0, 0);
    }
  }
}

/* dbias has one sum for each share. */
void NAME(gate_gradient)(clearfold_gate_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(gate_gradient_body), job, job->threads);
}

/* A row of dx, and its part of dw: tap (a, b) was read by the derivative a row i - a + 1, column j - b + 1, t[a][j - b + 2]. */
INLINE void NAME(depthwise_gradient_row)(const clearfold_gate_gradient *job, long n, long i, const partial *const t[3], long pitch, float *sums, const int half) {
  long C = job->C, W = job->W, at = (n * job->H + i) * W * C;
  for (long c = 0; c < C; c += VW) {
    long count = C - c;
    vec w[TAPS];
#pragma GCC unroll 9
    for (int k = 0; k < TAPS; k++) w[k] = load_n(job->w + k * C + c, count);
    for (long start = 0; start < W; start += RUN) {
      vec sum[TAPS];
#pragma GCC unroll 9
      for (int k = 0; k < TAPS; k++) sum[k] = zero();
      for (long j = start; j < start + RUN && j < W; j++) {
        vec x = load_any(job->x.data, at + j * C + c, count, half), dx = zero();
#pragma GCC unroll 9
        for (int k = 0; k < TAPS; k++) {
          vec d = load_partial(t[k / 3] + (j - k % 3 + 2) * pitch + c);
          dx = fma_(d, w[k], dx);
          sum[k] = fma_(d, x, sum[k]);
        }
        store_any(job->dx.data, at + j * C + c, dx, count, half);
      }
#pragma GCC unroll 9
      for (int k = 0; k < TAPS; k++) NAME(sum_to)(sums + k * C + c, sum[k], count);
    }
  }
}

static void NAME(depthwise_gradient_body)(void *p) {
  clearfold_gate_gradient *job = p;
  long C = job->C, W = job->W, H = job->H, rows = job->N * H, share = (rows + job->shares - 1) / job->shares;
  long pitch = NAME(round_up)(C, VW), row = (W + 2) * pitch;
  partial *ring = clearfold_scratch(3 * row * sizeof(partial) + C * sizeof(float));
  float *others = (float *)(ring + 3 * row);
  memset(ring, 0, 3 * row * sizeof(partial));
  for (long piece; (piece = clearfold_next(&job->next, job->shares)) >= 0;) {
    long first = piece * share, stop = first + share < rows ? first + share : rows, ready = -1; /* rows of the ring, counted over all pictures */
    float *dw = job->dw + piece * TAPS * C, *dbias = job->dbias + piece * C;
    memset(dw, 0, TAPS * C * sizeof(float));
    memset(dbias, 0, C * sizeof(float));
    for (long r = first; r < stop; r++) {
      long n = r / H, i = r % H;
      const partial *t[3];
      for (int a = 2; a >= 0; a--) {
        long above = i - a + 1, at = n * (H + 2) + above + 1; /* as if each picture had a row more at both ends */
        partial *to = ring + at % 3 * row;
        t[a] = to;
        if (at <= ready) continue;
        ready = at;
        float *sums = n * H + above >= first && n * H + above < stop ? dbias : others; /* who computes it for its neighbours alone adds nothing */
        if (above < 0 || above >= H) memset(to, 0, row * sizeof(partial));
        else if (job->x.half) NAME(gate_gradient_row)(job, n, above, to, pitch, pitch, sums, 1, sizeof(partial) == sizeof(narrow));
        else NAME(gate_gradient_row)(job, n, above, to, pitch, pitch, sums, 0, sizeof(partial) == sizeof(narrow));
      }
      if (job->x.half) NAME(depthwise_gradient_row)(job, n, i, t, pitch, dw, 1);
      else NAME(depthwise_gradient_row)(job, n, i, t, pitch, dw, 0);
    }
  }
}

/* dw and dbias have one sum for each share. */
void NAME(depthwise_gradient)(clearfold_gate_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(depthwise_gradient_body), job, job->threads);
}
