/* The weight gradient of the convolution of `winograd.h`. Included once for every instruction set.
 *
 * dw = Gt [ sum over tiles of (Bt d B) . (A dy At) ] G. The sum is 36 products again, (C x tiles) by (tiles x F).
 *
 * A thread sums up a share of the tiles by itself: what it lays out is read by no other core, and nothing is waited for. (Laid out by all
 * and multiplied by all, two threads were no faster than one.) Where there are many channels, all points' sums are larger than its cache,
 * and a thread takes half of the points, rows 0 to 2 or 3 to 5 of the 6x6, of twice the share. v is [point][tile/PAIR][C][PAIR], d a
 * product's right side: [point][columns][tile/PAIR][column][PAIR].
 */

enum { LINE = 64 / sizeof(factor), HALF = POINTS / 2 };
/* Tiles laid out at a time; four times as many where the sums, read and written again each time, are larger than a second cache. */
enum { STRETCH = 64, SECOND_CACHE = 2 << 20 };
#if defined(CLEARFOLD_AMX)
enum { TURNED = 1 }; /* its left sides have each channel's tiles side by side: those of one point are turned over before its product */
#else
enum { TURNED = 0 };
#endif

/* Elements from one tile's row of v to the next, and from one point to the next: a line more, lest all meet in one set of the cache. */
INLINE long NAME(gradient_row)(long Cp) { return Cp + LINE / PAIR; }
INLINE long NAME(gradient_point)(long tiles, long row) { return tiles * row + LINE; }

/* A 4x4 block of derivatives at its points, m[i * 6 + j] = (A dy At)[first + i][j] for i < count, in the channels f..f+VW. */
INLINE void NAME(block_at_points)(const clearfold_gradient *job, int half, place at, long f, vec *m, const int first, const int count) {
  vec y[TILE], h[WINDOW * TILE], all_six[WINDOW];
  long Ho = job->Ho, Wo = job->Wo, F = job->F;
  if (at.i + TILE <= Ho && at.j + TILE <= Wo && f + VW <= F) {
    long size = half ? sizeof(narrow) : sizeof(float), row = Wo * F * size, three = 3 * row;
    const char *from = (const char *)job->dy.data + (clearfold_row(&job->dy, at.n, at.i, Wo * F) + at.j * F + f) * size;
#pragma GCC unroll 4
    for (int b = 0; b < TILE; b++) {
      y[0] = load_at(from, VW, half), y[1] = load_at(from + row, VW, half), y[2] = load_at(from + 2 * row, VW, half), y[3] = load_at(from + three, VW, half);
      to_points_adjoint(y, 1, all_six, 1);
#pragma GCC unroll 6
      for (int i = 0; i < count; i++) h[i * TILE + b] = all_six[first + i];
      from += F * size;
      HIDE(from);
    }
  } else {
    for (int b = 0; b < TILE; b++) {
      for (int a = 0; a < TILE; a++) y[a] = NAME(pixel)(&job->dy, half, Ho, Wo, F, at.n, at.i + a, at.j + b, f);
      to_points_adjoint(y, 1, all_six, 1);
      for (int i = 0; i < count; i++) h[i * TILE + b] = all_six[first + i];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < count; i++) to_points_adjoint(h + i * TILE, 1, m + i * WINDOW, 1);
}

#if defined(CLEARFOLD_AMX)
/* `turned`: the left side turned over, in rows of `pitch`, as far as it fills the depth of AMX's products, or NULL: then vectors multiply. */
INLINE void NAME(gradient_rows)(NAME(pair_of_matrices) by, const factor *turned, long pitch, float *du, long along, int more, long rows, const int columns) {
  long deep = turned ? by.C / DEPTH * DEPTH : 0;
  if (deep) NAME(product_of_rows)((NAME(pair_of_matrices)){turned, pitch, 1, by.u, deep}, du, along, more, rows, columns);
  NAME(product_of_rest)(by, deep, du, along, more, rows, columns);
}
#else
/* ROWS rows and what they leave over: padded channels come in vectors, so an even number, of float16's a multiple of 4. */
INLINE void NAME(gradient_rows)(NAME(pair_of_matrices) by, const factor *turned, long pitch, float *du, long along, int more, long rows, const int columns) {
  (void)turned, (void)pitch;
  for (; rows >= ROWS; rows -= ROWS, by.v += ROWS * PAIR, du += ROWS * along) NAME(product_to_floats)(by, du, along, more, ROWS, columns);
#if defined(CLEARFOLD_AVX512FP16)
  if (rows == 8) NAME(product_to_floats)(by, du, along, more, 8, columns);
#else
  if (rows == 2) NAME(product_to_floats)(by, du, along, more, 2, columns);
#endif
  if (rows == 4) NAME(product_to_floats)(by, du, along, more, 4, columns);
}
#endif

/* The same for one to COLUMNS vectors of columns. */
static void NAME(gradient_columns)(NAME(pair_of_matrices) by, const factor *turned, long pitch, float *du, long along, int more, long rows, long columns) {
  switch (columns) {
    case 1: NAME(gradient_rows)(by, turned, pitch, du, along, more, rows, 1); break;
    case 2: NAME(gradient_rows)(by, turned, pitch, du, along, more, rows, 2); break;
#if !defined(TWO_COLUMNS)
    case 3: NAME(gradient_rows)(by, turned, pitch, du, along, more, rows, 3); break;
    case 4: NAME(gradient_rows)(by, turned, pitch, du, along, more, rows, 4); break;
#endif
  }
}

/* All channels of the 4x4 pixels from row i, column j of picture n of x (N, H, W, C), on their way into the caches. */
INLINE void NAME(bring_block_near)(const clearfold_rows *x, int half, long H, long W, long C, place at) {
  long size = half ? sizeof(narrow) : sizeof(float);
  for (int a = 0; a < TILE && at.i + a < H; a++) {
    const char *line = (const char *)x->data + (clearfold_row(x, at.n, at.i + a, W * C) + at.j * C) * size;
    long bytes = (W - at.j < TILE ? W - at.j : TILE) * C * size;
    for (long b = 0; b < bytes; b += 64) __builtin_prefetch(line + b);
  }
}

/* Of the points, `rows` of the 6x6 from `first` on, of the tiles start..stop: laid out and multiplied, `stretch` at a time. */
INLINE void NAME(part_gradient)(const clearfold_gradient *job, float *du, long start, long stop, const int first, const int rows, const int x_half, const int dy_half) {
  const int points = rows * WINDOW;
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), wide = COLUMNS * VW, row = NAME(gradient_row)(Cp);
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE;
  long stretch = job->stretch, point_v = NAME(gradient_point)(stretch / PAIR, row * PAIR), point_d = NAME(gradient_point)(stretch, Fp);
  factor *v = clearfold_scratch((points * (point_v + point_d) + TURNED * stretch * Cp) * sizeof(factor)), *d = v + points * point_v, *turned = d + points * point_d;
  long pieces = (stop - start + stretch - 1) / stretch;
  for (long piece = 0; piece < pieces; piece++) {
    long at_tile = start + (first ? pieces - 1 - piece : piece) * stretch; /* two threads from both ends: each finds in the last cache what the other fetched */
    long count = stop - at_tile < stretch ? stop - at_tile : stretch, T = NAME(round_up)(count, PAIR);
    for (long t = 0; t < T / PAIR; t++) {
      vec both[2][POINTS];
      place at[PAIR];
      for (int q = 0; q < PAIR; q++) at[q] = place_of(at_tile + t * PAIR + q, across, down);
      int odd = t * PAIR + PAIR > count; /* the last tile has no neighbour */
      if (odd) for (int k = 0; k < points; k++) both[PAIR - 1][k] = zero();
      for (long c = 0; c < Cp; c += VW) {
        for (int q = 0; q < PAIR - odd; q++) {
          place from = {at[q].n, at[q].i - job->top, at[q].j - job->left};
          NAME(window_at_points)(&job->x, x_half, job->H, job->W, job->C, from, c, both[q], first, rows);
        }
#pragma GCC unroll 36
        for (int k = 0; k < points; k++) store_pair(v + k * point_v + (t * row + c) * PAIR, both[0][k], both[PAIR - 1][k]);
      }
      for (long f = 0; f < Fp; f += VW) {
        long chunk = f / wide * wide, width = Fp - chunk < wide ? Fp - chunk : wide;
        for (int q = 0; q < PAIR - odd; q++) NAME(block_at_points)(job, dy_half, at[q], f, both[q], first, rows);
#pragma GCC unroll 36
        for (int k = 0; k < points; k++) store_pair(d + k * point_d + chunk * T + (t * width + f - chunk) * PAIR, both[0][k], both[PAIR - 1][k]);
      }
    }
    int more = piece > 0;
    long next = first ? at_tile - stretch : at_tile + stretch, behind = next < start ? 0 : stop - next < stretch ? stop - next : stretch;
    for (int k = 0; k < points; k++) {
      for (long t = k * behind / points; NEAR && t < (k + 1) * behind / points; t++) { /* memory has little to do meanwhile */
        place at = place_of(next + t, across, down);
        NAME(bring_block_near)(&job->x, x_half, job->H, job->W, job->C, at);
        NAME(bring_block_near)(&job->dy, dy_half, job->Ho, job->Wo, job->F, at);
      }
#if defined(CLEARFOLD_AMX)
      for (long t = 0; t + DEPTH <= T; t += DEPTH)
        for (long c = 0; c < Cp; c += BLOCK) turn_block(v + k * point_v + (t / PAIR * row + c) * PAIR, row * PAIR, turned + c * stretch + t, stretch);
#endif
      for (long chunk = 0; chunk < Fp; chunk += wide) {
        long columns = (Fp - chunk < wide ? Fp - chunk : wide) / VW;
        float *to = du + k * NAME(point)(Cp, Fp) + chunk;
        NAME(pair_of_matrices) by = {v + k * point_v, PAIR, row, d + k * point_d + chunk * T, T};
        NAME(gradient_columns)(by, turned, stretch, to, Fp, more, Cp, columns);
      }
    }
  }
  if (start >= stop) memset(du, 0, points * NAME(point)(Cp, Fp) * sizeof(float));
}

static void NAME(gradient_body)(void *p) {
  clearfold_gradient *job = p;
  long across = (job->Wo + TILE - 1) / TILE, down = (job->Ho + TILE - 1) / TILE, tiles = job->N * down * across;
  long Cp = NAME(round_up)(job->C, VW), Fp = NAME(round_up)(job->F, VW), share = NAME(round_up)((tiles + job->shares - 1) / job->shares, PAIR);
  for (long piece; (piece = clearfold_next(&job->next, job->parts * job->shares)) >= 0;) {
    long start = piece / job->parts * share, stop = start + share < tiles ? start + share : tiles;
    float *du = job->du + piece * (POINTS / job->parts) * NAME(point)(Cp, Fp);
    begin_products();
    if (job->parts == 1) {
      if (job->x.half) NAME(part_gradient)(job, du, start, stop, 0, WINDOW, 1, job->dy.half);
      else NAME(part_gradient)(job, du, start, stop, 0, WINDOW, 0, job->dy.half);
    } else if (piece % 2) {
      if (job->x.half) NAME(part_gradient)(job, du, start, stop, WINDOW / 2, WINDOW / 2, 1, job->dy.half);
      else NAME(part_gradient)(job, du, start, stop, WINDOW / 2, WINDOW / 2, 0, job->dy.half);
    } else {
      if (job->x.half) NAME(part_gradient)(job, du, start, stop, 0, WINDOW / 2, 1, job->dy.half);
      else NAME(part_gradient)(job, du, start, stop, 0, WINDOW / 2, 0, job->dy.half);
    }
    end_products();
  }
}

void NAME(winograd_gradient)(clearfold_gradient *job) {
  long tiles = job->N * ((job->Ho + TILE - 1) / TILE) * ((job->Wo + TILE - 1) / TILE), share = (tiles + job->shares - 1) / job->shares;
  int large = HALF * NAME(round_up)(job->C, VW) * NAME(round_up)(job->F, VW) * (long)sizeof(float) > SECOND_CACHE;
  long most = large ? 4 * STRETCH : job->parts == 1 ? STRETCH / sizeof(factor) * sizeof(narrow) : STRETCH;
  long pieces = (share + most - 1) / most;
  job->stretch = NAME(round_up)((share + pieces - 1) / pieces, STRETCH / 2);
  job->next = 0;
  clearfold_team(NAME(gradient_body), job, job->threads);
}

/* The sums of each row's pixels: most of a bias's gradient. */
INLINE void NAME(row_sums)(const clearfold_sums *job, long row, const int half) {
  long C = job->C, at = clearfold_row(&job->x, row / job->H, row % job->H, job->W * C);
  float *sums = job->sums + row * C;
  memset(sums, 0, C * sizeof(float));
  for (long j = 0; j < job->W; j++, at += C)
    for (long c = 0; c < C; c += VW) NAME(sum_to)(sums + c, load_any(job->x.data, at + c, C - c, half), C - c);
}

static void NAME(sums_body)(void *p) {
  clearfold_sums *job = p;
  for (long row; (row = clearfold_next(&job->next, job->N * job->H)) >= 0;)
    if (job->x.half) NAME(row_sums)(job, row, 1);
    else NAME(row_sums)(job, row, 0);
}

void NAME(sums)(clearfold_sums *job) {
  job->next = 0;
  clearfold_team(NAME(sums_body), job, job->threads);
}
