/* Work shared out over the threads of the OpenMP runtime that torch has already started. */
#ifndef PLAIT_PARALLEL_H
#define PLAIT_PARALLEL_H

#include <stdint.h>

#define VISIBLE __attribute__((visibility("default")))

typedef void (*plait_body)(void *arg, int64_t item);

/* body(arg, i) once for every i < n_items, on at most n_threads threads, in no particular order. */
void plait_for(int64_t n_items, int64_t n_threads, plait_body body, void *arg);

/* A kernel: its arguments in a struct. What it returns; an index outside its range is found before anything is read or written there. */
enum { FINE = 0, BAD_TOKEN_ID, BAD_EXPERT_ID, BAD_SLOT, BAD_PAGE, BAD_BOUND };
typedef int (*plait_kernel)(const void *args);

/* A kernel with its arguments, as a tape holds them, and the memory that it will read once: up to two ranges, shared out over threads. */
typedef struct {
  plait_kernel run;
  const void *args;
  const void *weights[2];
  int64_t n_bytes[2];
  int64_t before; /* bytes of such memory in all steps before this one */
} plait_step;

#endif
