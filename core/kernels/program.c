#include "jobs.h"

static void place(clearfold_rows *rows, char *const *bases) {
  long number = (long)rows->data;
  rows->data = number ? bases[number - 1] : NULL;
}

/* Computes convolutions one after another. Where a job has an address for rows, a step has a number, counted from 1: that of the memory
 * in `bases`, or 0. The steps stay as they are, so that threads may share them. */
void clearfold_run(const clearfold_step *steps, long count, char *const *bases, long threads) {
  for (const clearfold_step *step = steps; step < steps + count; step++) {
    clearfold_convolution job = step->job;
    clearfold_rows *all[] = {&job.x, &job.y, &job.addend, &job.another, &job.mask};
    for (int i = 0; i < 5; i++) place(all[i], bases);
    job.threads = threads;
    step->call(&job);
  }
}
