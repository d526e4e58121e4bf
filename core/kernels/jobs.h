/* What one call computes, as `core/kernels/__init__.py` fills it in. Sizes count elements, layouts are NHWC. */

#include <stddef.h>

/* Activations (N, rows, W, C). Row i of a picture lies at row (first + i) % rows: a whole picture (first = 0), or a ring of rows through
 * which a larger one passes. */
typedef struct {
  void *data;
  long rows, first, half; /* half: bfloat16, else float */
} clearfold_rows;

typedef struct {
  const float *w; /* (3, 3, C, F), or (C, F) for any other kernel; if `turned`, (3, 3, F, C), to be turned by 180 degrees */
  void *u;        /* the packed factors */
  long C, F, turned, lanes, half, threads, next; /* for vectors of so many lanes; half: as float16, by the set of AVX-512 alone */
} clearfold_weights;

typedef struct {
  clearfold_rows x;                         /* (N, H, W, C) */
  clearfold_rows y;                         /* (N, rows, columns, F / (scale * scale)) */
  clearfold_rows addend, another, mask;     /* as y, of its dtype; data is NULL where there is none */
  const void *u;
  const float *bias;                        /* (F) or NULL */
  const void *then;                         /* packed factors of a 1x1 convolution, (F / 2, outputs), of what the gate lets through, or NULL */
  float epsilon;                            /* above 0: each pixel of x is divided by the root of its channels' mean square and this; of 1x1 kernels */
  long N, H, W, C, F, Ho, Wo;               /* Ho, Wo: the convolution's own output */
  long A, B, along_i, along_j, top, left;   /* kernel, stride, border */
  long scale, crop_top, crop_left, rows, columns; /* depth-to-space, and what is kept of it */
  long relu, gate, outputs, threads, block, next; /* gate: vectors of the first half of the channels and of the second in turn, which multiply each other; y has half as many, or `outputs` */
} clearfold_convolution;

typedef struct {
  void (*call)(clearfold_convolution *);
  clearfold_convolution job;
} clearfold_step;

typedef struct {
  clearfold_rows x, dy; /* (N, H, W, C), (N, Ho, Wo, F) */
  float *du, *dw;       /* (shares, 36, C, F), channels rounded up to whole vectors; (3, 3, C, F) */
  float unit;           /* what is 1 in dw */
  long N, H, W, C, F, Ho, Wo, top, left, parts, shares, lanes, threads, stretch, next; /* parts: of the points, and shares: of the tiles, each summed up by itself; lanes: of a vector of du */
} clearfold_gradient;

typedef struct {
  clearfold_rows x, dy; /* (N, down * A, across * B, C), (N, down * S, across * S, F / (S * S)) */
  float *dw;            /* (shares, A * B * C, F) */
  long N, down, across, A, B, C, S, F, shares, threads, next;
} clearfold_windows_gradient;

typedef struct {
  clearfold_rows x, y; /* (N, H, W, C) */
  float *scale;        /* (N, H, W), or NULL */
  float epsilon;
  long N, H, W, C, threads, next;
} clearfold_normal;

typedef struct {
  clearfold_rows dy, y, addend, dx; /* (N, H, W, C), whole pictures of one dtype; addend's data may be NULL */
  const float *scale;
  long N, H, W, C, threads, next;
} clearfold_normal_gradient;

typedef struct {
  clearfold_rows dy, gated, x, dx; /* (N, H, W, C / 2), and (N, H, W, C) what the gate multiplied, what a filter in front of it read, and that by x; whole pictures of one dtype */
  const float *bias, *w;           /* what is still to be added to `gated`, (C) or NULL; (3, 3, C) */
  float *dw, *dbias;               /* (shares, 3, 3, C), (shares, C) */
  long N, H, W, C, shares, threads, next;
} clearfold_gate_gradient;

typedef struct {
  clearfold_rows x; /* (N, H, W, C) */
  float *sums;      /* (N, H, C), over W */
  long N, H, W, C, threads, next;
} clearfold_sums;

typedef struct { /* a weight, its moments and its derivative */
  float *value, *m, *v;
  const float *d;
  long n;
} clearfold_tensors;

typedef struct {
  const clearfold_tensors *tensors;
  float first, second, grown, rate, epsilon; /* 1 - b1, b2, 1 - b2^step, lr / (1 - b1^step) */
  long count, threads, next;
} clearfold_adam;

/* Samples (H, W, channels): 0 floats in [0, 1], 1 bytes, 2 words of 16 bits, which are as many times as large as `one` says. Rows lie
 * `along` bytes apart, pixels side by side. */

typedef struct {
  clearfold_rows y; /* (1, rows, columns / 2, 16) */
  const void *samples;
  float level, one;
  long kind, channels, along, rows, columns, threads, next; /* rows: of y, half as many as there are of samples */
} clearfold_laid;

typedef struct {
  clearfold_rows x;   /* the corrections (1, rows, width, 3), of which the columns from `left` on are read */
  const void *noisy;
  void *clean;        /* may be `noisy` */
  double *squares;    /* (rows), the sums of what was taken away, or NULL */
  float share, one;
  long kind, channels, along, clean_along, grey, rows, columns, left, width, threads, next;
} clearfold_corrected;

/* Where row i of picture n begins, in elements. */
static inline long clearfold_row(const clearfold_rows *x, long n, long i, long width) {
  long at = x->first + i;
  return (n * x->rows + (at < x->rows ? at : at - x->rows)) * width;
}
