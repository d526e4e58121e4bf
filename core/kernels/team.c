#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <stdlib.h>

typedef void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
static parallel borrowed;

/* Workers that are there already: the address of OpenMP's GOMP_parallel in the runtime that torch computes with. Two pools of threads in
 * one process would take turns on the same cores: OpenMP's spin for milliseconds after each of torch's operators. */
void clearfold_borrow(void *gomp_parallel) { borrowed = (parallel)gomp_parallel; }

void clearfold_team(void (*body)(void *), void *job, int threads) {
  if (threads > 1 && borrowed)
    borrowed(body, job, threads, 0);
  else
    body(job);
}

typedef struct { void *memory; size_t bytes; } scratch;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void forget(void *kept) {
  free(((scratch *)kept)->memory);
  free(kept);
}
static void make_key(void) { pthread_key_create(&key, forget); }

void *clearfold_scratch(size_t bytes) {
  pthread_once(&once, make_key);
  scratch *mine = pthread_getspecific(key);
  if (!mine) {
    mine = calloc(1, sizeof *mine);
    pthread_setspecific(key, mine);
  }
  if (mine->bytes < bytes) {
    free(mine->memory);
    mine->bytes = bytes + (bytes >> 2);
    mine->memory = aligned_alloc(4096, (mine->bytes + 4095) & ~(size_t)4095);
  }
  return mine->memory;
}
