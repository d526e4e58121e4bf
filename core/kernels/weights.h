/* Weights as the products read them. Included once for every instruction set but that of float16, which rounds what is packed in float32. */

static const float G[WINDOW][3] = {
    {1 / (PP * QQ), 0, 0},
    {1 / (2 * PP * (PP - QQ)), P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * PP * (PP - QQ)), -P / (2 * PP * (PP - QQ)), PP / (2 * PP * (PP - QQ))},
    {1 / (2 * QQ * (QQ - PP)), Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {1 / (2 * QQ * (QQ - PP)), -Q / (2 * QQ * (QQ - PP)), QQ / (2 * QQ * (QQ - PP))},
    {0, 0, 1},
};

/* The 3x3 weights from channel c + i to the channels f..f+VW, w[i * 9 + a * 3 + b] for i < VW, zeros where there are no such channels. */
static void NAME(turned_weights)(const clearfold_weights *job, long c, long f, vec *w) {
  float rows[VW][VW], columns[VW][VW];
  for (int ab = 0; ab < 9; ab++) {
    for (long j = 0; j < VW; j++) store(rows[j], f + j < job->F ? load_n(job->w + ((8 - ab) * job->F + f + j) * job->C + c, job->C - c) : zero());
    for (int i = 0; i < VW; i++)
      for (int j = 0; j < VW; j++) columns[i][j] = rows[j][i];
    for (int i = 0; i < VW; i++) w[i * 9 + ab] = load(columns[i]);
  }
}

/* w -> u = G w Gt, packed as the products read it: for each point, for each chunk of columns, [C/PAIR][columns][PAIR]. */
static void NAME(winograd_weights_body)(void *p) {
  clearfold_weights *job = p;
  long C = job->C, F = job->F, Cp = NAME(round_up)(C, VW), Fp = NAME(round_up)(F, VW);
  factor *u = job->u;
  for (long f; (f = clearfold_next(&job->next, Fp / VW)) >= 0;) {
    f *= VW;
    long chunk = f / (COLUMNS * VW) * (COLUMNS * VW), width = Fp - chunk < COLUMNS * VW ? Fp - chunk : COLUMNS * VW, n = F - f < VW ? F - f : VW;
    vec turned[VW * 9];
    for (long c = 0; c < Cp; c += PAIR) {
      vec both[2][POINTS];
      if (job->turned && c % VW == 0) NAME(turned_weights)(job, c, f, turned);
      for (int q = 0; q < PAIR; q++) {
        vec w[9], t[18];
        for (int ab = 0; ab < 9; ab++)
          w[ab] = job->turned ? turned[(c % VW + q) * 9 + ab] : c + q < C ? load_n(job->w + (ab * C + c + q) * F + f, n) : zero();
        for (int i = 0; i < WINDOW; i++)
          for (int b = 0; b < 3; b++) t[i * 3 + b] = fma_(all(G[i][2]), w[6 + b], fma_(all(G[i][1]), w[3 + b], mul(all(G[i][0]), w[b])));
        for (int i = 0; i < WINDOW; i++)
          for (int j = 0; j < WINDOW; j++)
            both[q][i * WINDOW + j] = fma_(all(G[j][2]), t[i * 3 + 2], fma_(all(G[j][1]), t[i * 3 + 1], mul(all(G[j][0]), t[i * 3])));
      }
      for (int k = 0; k < POINTS; k++) store_pair(u + k * NAME(point)(Cp, Fp) + chunk * Cp + c * width + (f - chunk) * PAIR, both[0][k], both[PAIR - 1][k]);
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
