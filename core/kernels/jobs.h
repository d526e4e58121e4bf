/* What one call computes, as `core/kernels/__init__.py` fills it in. Sizes count elements, layouts are NHWC without gaps. */

typedef struct {
  const float *w; /* read as w[a * along_a + b * along_b + c * along_c + f * along_f] */
  void *u;        /* the packed factors */
  long along_a, along_b, along_c, along_f, C, F, threads, next;
} clearfold_weights;

typedef struct {
  const void *x; /* (N, H, W, C) */
  const void *u;
  const float *bias;         /* (F) or NULL */
  const void *addend, *mask; /* as y, or NULL */
  void *y;                   /* (N, rows, columns, F / (scale * scale)) */
  long N, H, W, C, F, Ho, Wo; /* Ho, Wo: the convolution's own output */
  long A, B, along_i, along_j, top, left; /* kernel, stride, border */
  long scale, crop_top, crop_left, rows, columns; /* depth-to-space, and what is kept of it */
  long x_half, y_half, addend_half, mask_half, relu, threads, block, next;
} clearfold_convolution;

typedef struct {
  const void *x, *dy; /* (N, H, W, C), (N, Ho, Wo, F) */
  void *v, *d;        /* room for `block` tiles at 36 points */
  float *du, *dw;     /* room for 36 points; (3, 3, C, F) */
  long N, H, W, C, F, Ho, Wo, top, left, x_half, dy_half, threads, block, first, next;
} clearfold_gradient;
