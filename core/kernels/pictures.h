/* A picture's samples into what the network reads, and what it says of them into the clean picture: each in one pass over memory, which
 * is all that they cost. Included once for every instruction set.
 */

enum { FLOATS, BYTES, WORDS };

/* n samples from i on, as they are. */
INLINE vec NAME(samples)(const void *p, long i, long n, const int kind) {
  return kind == BYTES ? load_u8_n((const uint8_t *)p + i, n) : kind == WORDS ? load_u16_n((const uint16_t *)p + i, n) : load_n((const float *)p + i, n);
}
INLINE void NAME(put_samples)(void *p, long i, vec x, long n, const int kind) {
  if (kind == BYTES) store_u8_n((uint8_t *)p + i, x, n);
  else if (kind == WORDS) store_u16_n((uint16_t *)p + i, x, n);
  else store_n((float *)p + i, x, n);
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* Two rows of a picture as one of pixels of 16 channels: of each 2x2 block, in reading order, red, green, blue and the noise level. */
INLINE void NAME(lay_rows)(const clearfold_laid *job, long i, float *row, const int kind) {
  long n = job->columns * job->channels;
  four *to = (four *)((float *)job->y.data + clearfold_row(&job->y, 0, i, job->columns / 2 * 16));
  vec one = all(job->one);
  for (int r = 0; r < 2; r++) {
    const char *from = (const char *)job->samples + (2 * i + r) * job->along;
    for (long at = 0; at < n; at += VW) {
      vec x = NAME(samples)(from, at, n - at, kind);
      store(row + at, kind == FLOATS ? x : quotient(x, one));
    }
    for (long j = 0; j < job->columns; j++) {
      four pixel;
      if (job->channels == 3) memcpy(&pixel, row + 3 * j, sizeof pixel);
      else pixel = (four){row[j], row[j], row[j]};
      pixel[3] = job->level;
      to[j / 2 * 4 + r * 2 + j % 2] = pixel;
    }
  }
}

static void NAME(lay_body)(void *p) {
  clearfold_laid *job = p;
  float *row = clearfold_scratch((job->columns * job->channels + VW + 1) * sizeof(float));
  for (long i; (i = clearfold_next(&job->next, job->rows)) >= 0;)
    if (job->kind == BYTES) NAME(lay_rows)(job, i, row, BYTES);
    else if (job->kind == WORDS) NAME(lay_rows)(job, i, row, WORDS);
    else NAME(lay_rows)(job, i, row, FLOATS);
}

void NAME(lay)(clearfold_laid *job) {
  job->next = 0;
  clearfold_team(NAME(lay_body), job, job->threads);
}

/* clean = noisy + share * correction between 0 and 1, and of whole numbers the nearest; in grey, the mean of the three corrections. */
INLINE void NAME(correct_row)(const clearfold_corrected *job, long i, float *row, const int kind) {
  long n = job->columns * job->channels, at = clearfold_row(&job->x, 0, i, job->width * 3) + job->left * 3;
  const char *noisy = (const char *)job->noisy + i * job->along;
  char *clean = (char *)job->clean + i * job->clean_along;
  const void *correction = job->x.data;
  int half = job->x.half;
  if (job->grey) {
    for (long j = 0; j < job->columns; j++) {
      float sum = 0;
      for (int c = 0; c < 3; c++) sum += half ? load_one_narrow((const narrow *)correction + at + 3 * j + c) : ((const float *)correction)[at + 3 * j + c];
      for (int c = 0; c < job->channels; c++) row[j * job->channels + c] = sum / 3;
    }
    correction = row, at = 0, half = 0;
  }
  vec share = all(job->share), one = all(job->one), squares = zero();
  for (long k = 0; k < n; k += VW) { /* where a row ends within a vector, zeros follow, of which nothing is taken */
    vec x = NAME(samples)(noisy, k, n - k, kind);
    x = kind == FLOATS ? x : quotient(x, one);
    vec y = unit(fma_(share, load_any(correction, at + k, n - k, half), x));
    y = kind == FLOATS ? y : whole(mul(y, one));
    NAME(put_samples)(clean, k, y, n - k, kind);
    vec taken = sub(x, kind == FLOATS ? y : quotient(y, one));
    squares = fma_(taken, taken, squares);
  }
  float sums[VW];
  store(sums, squares);
  if (!job->squares) return;
  job->squares[i] = 0;
  for (int l = 0; l < VW; l++) job->squares[i] += sums[l];
}

static void NAME(correct_body)(void *p) {
  clearfold_corrected *job = p;
  float *row = clearfold_scratch(job->columns * job->channels * sizeof(float));
  for (long i; (i = clearfold_next(&job->next, job->rows)) >= 0;)
    if (job->kind == BYTES) NAME(correct_row)(job, i, row, BYTES);
    else if (job->kind == WORDS) NAME(correct_row)(job, i, row, WORDS);
    else NAME(correct_row)(job, i, row, FLOATS);
}

void NAME(correct)(clearfold_corrected *job) {
  job->next = 0;
  clearfold_team(NAME(correct_body), job, job->threads);
}
