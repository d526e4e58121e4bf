/* Adam's update (Kingma & Ba 2015) in one pass over memory, which is all that it costs. Included once for every instruction set. */

enum { ADAM_CHUNK = 1 << 14 };

/* value -= rate * m / (sqrt(v / grown) + epsilon), behind m += (1 - b1) (d - m) and v = b2 v + (1 - b2) d d. */
static void NAME(adam_body)(void *p) {
  clearfold_adam *job = p;
  vec first = all(job->first), second = all(job->second), rest = all(1 - job->second), rate = all(-job->rate), grown = all(job->grown), epsilon = all(job->epsilon);
  for (long chunk; (chunk = clearfold_next(&job->next, (job->n + ADAM_CHUNK - 1) / ADAM_CHUNK)) >= 0;)
    for (long i = chunk * ADAM_CHUNK, n; i < (chunk + 1) * ADAM_CHUNK && (n = job->n - i) > 0; i += VW) {
      vec d = load_n(job->d + i, n), m = load_n(job->m + i, n), v = load_n(job->v + i, n);
      m = fma_(first, sub(d, m), m);
      v = fma_(second, v, mul(rest, mul(d, d)));
      store_n(job->m + i, m, n), store_n(job->v + i, v, n);
      store_n(job->value + i, fma_(rate, quotient(m, add(root(quotient(v, grown)), epsilon)), load_n(job->value + i, n)), n);
    }
}

void NAME(adam)(clearfold_adam *job) {
  job->next = 0;
  clearfold_team(NAME(adam_body), job, job->threads);
}
