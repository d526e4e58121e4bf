/* Weights as the products read them, and the derivatives by weights that they sum up to. Included once for every instruction set but that of
 * float16, whose are packed by AVX-512's: it computes them in float32 and rounds them once.
 */

static const float G[WINDOW][3] = {
    {1 / (PP * QQ), 0, 0},
    {1 / (2 * PP * (PP - QQ)), P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * PP * (PP - QQ)), -P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * QQ * (QQ - PP)), Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {1 / (2 * QQ * (QQ - PP)), -Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {0, 0, 1},
};

/* G: three weights of one line, `from` apart -> their values at the six points, `to` apart. */
INLINE void weights_to_points(const vec *w, int from, vec *u, int to) {
  vec even, odd, w0 = w[0], w1 = w[from], w2 = w[2 * from];
  u[0] = mul(all(G[0][0]), w0);
  even = fma_(all(G[1][2]), w2, mul(all(G[1][0]), w0)), odd = mul(all(G[1][1]), w1);
  u[to] = add(even, odd), u[2 * to] = sub(even, odd);
  even = fma_(all(G[3][2]), w2, mul(all(G[3][0]), w0)), odd = mul(all(G[3][1]), w1);
  u[3 * to] = add(even, odd), u[4 * to] = sub(even, odd);
  u[5 * to] = w2;
}

/* Two vectors from element i of u on: of the rows c and c + 1, as one pair, or as float16 of one row, which fill a line of the cache. */
INLINE void NAME(put_weights)(const clearfold_weights *job, long i, vec a, vec b) {
#if defined(CLEARFOLD_AVX512)
  if (job->half) {
    __m512i one = _mm512_castsi256_si512(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    one = _mm512_inserti64x4(one, _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 1);
    _mm512_storeu_si512((void *)((narrow *)job->u + i), one);
    return;
  }
#endif
  store_pair((factor *)job->u + i, a, b);
}

/* How many of a vector's lanes from `at` on there are. */
INLINE long NAME(lanes_left)(long all, long at) { return all - at < 0 ? 0 : all - at < VW ? all - at : VW; }

/* The 3x3 weights from channel c + i to the channels f..f+VW, w[i * 9 + a * 3 + b] for i < VW, zeros where there are no such channels. */
static void NAME(turned_weights)(const clearfold_weights *job, long c, long f, vec *w) {
  float rows[VW][VW], columns[VW][VW];
  for (int ab = 0; ab < 9; ab++) {
    for (long j = 0; j < VW; j++) store(rows[j], f + j < job->F ? load_n(job->w + ((8 - ab) * job->F + f + j) * job->C + c, NAME(lanes_left)(job->C, c)) : zero());
    for (int i = 0; i < VW; i++)
      for (int j = 0; j < VW; j++) columns[i][j] = rows[j][i];
    for (int i = 0; i < VW; i++) w[i * 9 + ab] = load(columns[i]);
  }
}

/* w -> u = G w Gt, packed as the products read it: for each point, for each chunk of columns, [C/PAIR][columns][PAIR]; of a vector of rows
 * and a chunk of columns at a time, so that what lies side by side is written by one thread. */
static void NAME(winograd_weights_body)(void *p) {
  clearfold_weights *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, job->lanes), Fp = NAME(round_up)(F, job->lanes);
  const long vectors = job->half ? 2 : 1, rows = job->half ? 1 : PAIR, wide = COLUMNS * VW;
  long down = (Cp + VW - 1) / VW, across = (Fp + wide - 1) / wide;
  for (long n; (n = clearfold_next(&job->next, down * across)) >= 0;) {
    long chunk = n % across * wide, width = Fp - chunk < wide ? Fp - chunk : wide, first = n / across * VW, last = first + VW < Cp ? first + VW : Cp;
    vec turned[2][VW * 9];
    for (long f = chunk; f < chunk + width; f += vectors * VW) {
      for (int q = 0; job->turned && q < vectors; q++) NAME(turned_weights)(job, first, f + q * VW, turned[q]);
      for (long c = first; c < last; c += rows) {
        vec both[2][POINTS];
        for (int q = 0; q < vectors * rows; q++) {
          vec w[9], t[18];
          long row = rows > 1 ? c + q : c, column = vectors > 1 ? f + q * VW : f;
          for (int ab = 0; ab < 9; ab++)
            w[ab] = job->turned ? turned[vectors > 1 ? q : 0][row % VW * 9 + ab] : row < C ? load_n(job->w + (ab * C + row) * F + column, NAME(lanes_left)(F, column)) : zero();
          for (int b = 0; b < 3; b++) weights_to_points(w + b, 3, t + b, 3);
          for (int i = 0; i < WINDOW; i++) weights_to_points(t + i * 3, 1, both[q] + i * WINDOW, 1);
        }
        for (int k = 0; k < POINTS; k++) NAME(put_weights)(job, k * NAME(point)(Cp, Fp) + chunk * Cp + c * width + (f - chunk) * PAIR, both[0][k], both[vectors * rows - 1][k]);
      }
    }
  }
}

void NAME(winograd_weights)(clearfold_weights *job) {
  job->next = 0;
  clearfold_team(NAME(winograd_weights_body), job, job->threads);
}

/* w as rows of (A*B*C) by F, packed as the products read it: for each chunk of columns, [K/PAIR][columns][PAIR]. `C` is A*B*C here. */
static void NAME(direct_weights_body)(void *p) {
  clearfold_weights *job = p;
  long K = job->C, F = job->F, Kp = NAME(round_up)(K, PAIR), Fp = NAME(round_up)(F, job->lanes);
  const long vectors = job->half ? 2 : 1, rows = job->half ? 1 : PAIR;
  for (long f; (f = clearfold_next(&job->next, Fp / (vectors * VW))) >= 0;) {
    f *= vectors * VW;
    long chunk = f / (COLUMNS * VW) * (COLUMNS * VW), width = Fp - chunk < COLUMNS * VW ? Fp - chunk : COLUMNS * VW;
    for (long c = 0; c < Kp; c += rows) {
      vec both[2];
      for (int q = 0; q < vectors * rows; q++) {
        long row = rows > 1 ? c + q : c, column = vectors > 1 ? f + q * VW : f;
        both[q] = row < K ? load_n(job->w + row * F + column, NAME(lanes_left)(F, column)) : zero();
      }
      NAME(put_weights)(job, chunk * Kp + c * width + (f - chunk) * PAIR, both[0], both[vectors * rows - 1]);
    }
  }
}

void NAME(direct_weights)(clearfold_weights *job) {
  job->next = 0;
  clearfold_team(NAME(direct_weights_body), job, job->threads);
}

/* The sums of `gradient.h` at the points -> dw. */
static void NAME(gradient_weights_body)(void *p) {
  clearfold_gradient *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, job->lanes), Fp = NAME(round_up)(F, job->lanes);
  vec unit = all(job->unit);
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
          store_n(job->dw + ((a * 3 + b) * C + c) * F + f, mul(sum, unit), F - f);
        }
    }
}

void NAME(gradient_weights)(clearfold_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(gradient_weights_body), job, job->threads);
}
