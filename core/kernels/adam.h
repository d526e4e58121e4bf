/* Adam's update (Kingma & Ba 2015) in one pass over memory, which is all that it costs. Included once for every instruction set. */

enum { ADAM_CHUNK = 1 << 14 };

/* value -= rate * m / (sqrt(v / grown) + epsilon), behind m += (1 - b1) (d - m) and v = b2 v + (1 - b2) d d. */
INLINE void NAME(adam_chunk)(const clearfold_adam *job, const clearfold_tensors *of, long start) {
  vec first = all(job->first), second = all(job->second), rest = all(1 - job->second), rate = all(-job->rate), grown = all(job->grown), epsilon = all(job->epsilon);
  for (long i = start, n; i < start + ADAM_CHUNK && (n = of->n - i) > 0; i += VW) {
    vec d = load_n(of->d + i, n), m = load_n(of->m + i, n), v = load_n(of->v + i, n);
    m = fma_(first, sub(d, m), m);
    v = fma_(second, v, mul(rest, mul(d, d)));
    store_n(of->m + i, m, n), store_n(of->v + i, v, n);
    store_n(of->value + i, fma_(rate, quotient(m, add(root(quotient(v, grown)), epsilon)), load_n(of->value + i, n)), n);
  }
}

/* All weights' chunks, counted through. */
static void NAME(adam_body)(void *p) {
  clearfold_adam *job = p;
  const clearfold_tensors *of = job->tensors;
  long before = 0, all_chunks = 0; /* of the weights in front of `of` */
  for (long i = 0; i < job->count; i++) all_chunks += (job->tensors[i].n + ADAM_CHUNK - 1) / ADAM_CHUNK;
  for (long chunk; (chunk = clearfold_next(&job->next, all_chunks)) >= 0;) {
    for (long chunks; chunk >= before + (chunks = (of->n + ADAM_CHUNK - 1) / ADAM_CHUNK); of++) before += chunks;
    NAME(adam_chunk)(job, of, (chunk - before) * ADAM_CHUNK);
  }
}

void NAME(adam)(clearfold_adam *job) {
  job->next = 0;
  clearfold_team(NAME(adam_body), job, job->threads);
}
