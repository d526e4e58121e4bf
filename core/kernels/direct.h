/* A convolution of any kernel and stride: the windows of a few dozen outputs are laid out as rows of factors, in memory that stays in the
 * first caches, and multiplied by the kernel as (A*B*C, F). Included once for every instruction set.
 */

/* n activations as factors. */
INLINE void NAME(as_factors)(factor *to, const void *x, long i, long n, int half) {
  long c = 0;
  for (; c + VW <= n; c += VW) store_factors(to + c, load_any(x, i + c, VW, half));
  for (; c < n; c++) to[c] = to_factor(half ? load_one_bf16((const bf16 *)x + i + c) : ((const float *)x)[i + c]);
}

static void NAME(direct_body)(void *p) {
  clearfold_convolution *job = p;
  long H = job->H, W = job->W, C = job->C, F = job->F, A = job->A, B = job->B, K = A * B * C, T = job->block;
  long Kp = NAME(round_up)(K, PAIR), Fp = NAME(round_up)(F, VW), wide = Fp < COLUMNS * VW ? Fp : COLUMNS * VW, pixels = job->N * job->Ho * job->Wo;
  factor *v = clearfold_scratch(T * (Kp * sizeof(factor) + wide * sizeof(float)) + 64);
  float *m = (float *)(((uintptr_t)(v + T * Kp) + 63) & ~(uintptr_t)63);
  const factor *u = job->u;
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
      }
      memset(v + t * Kp + K, 0, (Kp - K) * sizeof(factor));
    }
    for (long f = 0; f < Fp; f += wide) {
      long columns = (Fp - f < wide ? Fp - f : wide) / VW;
      for (long t = 0; t < count; t += ROWS) NAME(product)(v + t * Kp, Kp, u + f * Kp, Kp, m + t * columns * VW, columns);
      for (long t = 0; t < count; t++) {
        long n = (first + t) / (job->Ho * job->Wo), i = (first + t) / job->Wo % job->Ho, j = (first + t) % job->Wo;
        for (long c = 0; c < columns; c++) {
          long at = f + c * VW;
          NAME(finish)(job, load(m + (t * columns + c) * VW), n, i, j, at, F - at < VW ? F - at : VW);
        }
      }
    }
  }
}

void NAME(direct)(clearfold_convolution *job) {
  enum { CACHE = 256 << 10 };
  long K = job->A * job->B * job->C * (long)sizeof(factor), pixels = job->N * job->Ho * job->Wo;
  long most = CACHE / K;
  most = most > 48 ? 48 : most < ROWS ? ROWS : most / ROWS * ROWS;
  long blocks = NAME(round_up)((pixels + most - 1) / most, job->threads);
  job->block = NAME(round_up)((pixels + blocks - 1) / blocks, ROWS);
  job->next = 0;
  clearfold_team(NAME(direct_body), job, job->threads);
}

/* w as rows of (A*B*C) by F, packed as the products read it: for each chunk of columns, [K/PAIR][columns][PAIR]. `C` is A*B*C here. */
static void NAME(direct_weights_body)(void *p) {
  clearfold_weights *job = p;
  long K = job->C, F = job->F, Kp = NAME(round_up)(K, PAIR), Fp = NAME(round_up)(F, VW);
  factor *u = job->u;
  for (long f; (f = clearfold_next(&job->next, Fp / VW)) >= 0;) {
    f *= VW;
    long chunk = f / (COLUMNS * VW) * (COLUMNS * VW), width = Fp - chunk < COLUMNS * VW ? Fp - chunk : COLUMNS * VW;
    for (long c = 0; c < Kp; c += PAIR) {
      vec both[2];
      for (int q = 0; q < PAIR; q++) both[q] = c + q < K ? load_n(job->w + (c + q) * F + f, F - f) : zero();
      store_pair(u + chunk * Kp + c * width + (f - chunk) * PAIR, both[0], both[PAIR - 1]);
    }
  }
}

void NAME(direct_weights)(clearfold_weights *job) {
  job->next = 0;
  clearfold_team(NAME(direct_weights_body), job, job->threads);
}
