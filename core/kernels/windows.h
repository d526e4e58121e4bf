/* The weight gradient of a convolution whose windows lie beside each other and fill the picture: 1x1 kernels, and those as large as their
 * stride. Where depth-to-space stands behind it, the derivatives of its outputs are such windows, too, of the larger picture. So
 * dw, (A*B*C, F), is the sum over all windows of what one of x holds times what one of dy does.
 * Included once for every instruction set.
 *
 * A thread sums up a share of the windows by itself, a few dozen at a time, laid out in pairs, both of which a product adds at once.
 */

enum { SEEN = 64 }; /* windows laid out at a time */

/* x in windows of A by B pixels with C channels, `down` and `across` of them in a picture. */
typedef struct {
  const clearfold_rows *rows;
  long A, B, C, down, across;
} clearfold_windows;

/* Windows first..first+count, the last one alone if they are odd, as to[begin * SEEN + t * width + (k - begin) * PAIR + q]: element k of
 * window t + q, where each `chunk` of elements from `begin` on is a matrix by itself, `width` wide. */
INLINE void NAME(lay_windows)(clearfold_windows x, const int half, long first, long count, long chunk, long more, factor *to) {
  long size = half ? sizeof(narrow) : sizeof(float), run = x.B * x.C, K = x.A * run;
  for (long t = 0; t < count; t += PAIR) {
    const char *at[PAIR];
    for (int q = 0; q < PAIR; q++) {
      long window = first + (t + q < count ? t + q : t), i = window / x.across;
      at[q] = (const char *)x.rows->data + (clearfold_row(x.rows, i / x.down, i % x.down * x.A, x.across * run) + window % x.across * run) * size;
    }
    for (long a = 0, k = 0; a < x.A; a++) {
      for (long c = 0; c < run; c += VW, k += VW) {
        long begin = k / chunk * chunk, width = (K - begin < chunk ? K - begin : chunk) + more;
        vec other = t + PAIR > count ? zero() : load_at(at[PAIR - 1] + c * size, VW, half);
        store_pair(to + begin * SEEN + t * width + (k - begin) * PAIR, load_at(at[0] + c * size, VW, half), other);
      }
      for (int q = 0; q < PAIR; q++) at[q] += x.across * run * size;
    }
  }
}

static void NAME(windows_gradient_body)(void *p) {
  clearfold_windows_gradient *job = p;
  clearfold_windows x = {&job->x, job->A, job->B, job->C, job->down, job->across}, dy = {&job->dy, job->S, job->S, job->F / (job->S * job->S), job->down, job->across};
  long K = job->A * job->B * job->C, F = job->F, wide = COLUMNS * VW, more = LINE / PAIR; /* lest all rows of x meet in one set of the cache */
  long windows = job->N * job->down * job->across, share = NAME(round_up)((windows + job->shares - 1) / job->shares, SEEN);
  factor *v = clearfold_scratch(((K + more) + F) * SEEN * sizeof(factor)), *d = v + (K + more) * SEEN;
  for (long piece; (piece = clearfold_next(&job->next, job->shares)) >= 0;) {
    long start = piece * share, stop = start + share < windows ? start + share : windows;
    float *dw = job->dw + piece * K * F;
    if (start >= stop) memset(dw, 0, K * F * sizeof(float));
    begin_products();
    for (long first = start; first < stop; first += SEEN) {
      long count = stop - first < SEEN ? stop - first : SEEN;
      if (job->x.half) NAME(lay_windows)(x, 1, first, count, K, more, v);
      else NAME(lay_windows)(x, 0, first, count, K, more, v);
      if (job->dy.half) NAME(lay_windows)(dy, 1, first, count, wide, 0, d);
      else NAME(lay_windows)(dy, 0, first, count, wide, 0, d);
      for (long f = 0; f < F; f += wide) {
        NAME(pair_of_matrices) by = {v, PAIR, K + more, d + f * SEEN, NAME(round_up)(count, PAIR)};
        NAME(gradient_columns)(by, 0, 0, dw + f, F, first > start, K, (F - f < wide ? F - f : wide) / VW);
      }
    }
    end_products();
  }
}

/* dw has one sum for each share. */
void NAME(windows_gradient)(clearfold_windows_gradient *job) {
  job->next = 0;
  clearfold_team(NAME(windows_gradient_body), job, job->threads);
}
