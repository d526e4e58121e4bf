/* Workers, and memory that each keeps. Knows nothing of what they compute. */
#include <stddef.h>

/* Calls `body(job)` on `threads` threads at once and returns when all have. */
void clearfold_team(void (*body)(void *), void *job, int threads);

/* At least `bytes` of this thread's own memory, aligned to a line; valid until its next call. NULL when there is none. */
void *clearfold_scratch(size_t bytes);

/* The next of `count` pieces of a job, or -1: pieces are dealt one at a time, so a thread that was held up takes fewer. */
static inline long clearfold_next(long *next, long count) {
  long mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
  return mine < count ? mine : -1;
}
