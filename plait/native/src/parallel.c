#include "parallel.h"

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

#define PATIENCE 20000 /* rounds of waiting before the processor is offered to others */

/* libgomp's entry point, found by the loader in the runtime that torch uses: one pool for both, so they never compete.
 * It is part of gcc's ABI since 4.9 and LLVM's runtime exports it too, so no header and no -fopenmp is needed. */
typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel run_team;

VISIBLE void plait_set_runtime(void *entry) { run_team = (gomp_parallel)entry; }

typedef struct {
  atomic_llong next;
  int64_t n_items;
  plait_body body;
  void *arg;
} job;

static void take_items(void *shared) {
  job *work = shared;
  for (;;) {
    int64_t item = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed);
    if (item >= work->n_items) return;
    work->body(work->arg, item);
  }
}

/* ---- a team that stays together over many loops ---- */

/* The thread that replays hands out each loop as tickets: how many items are left. A ticket carries the number of its loop, so a thread
 * that wakes late can't take one of a loop it hasn't seen; and while a ticket that was taken isn't done, the loop stays. */
typedef struct {
  _Alignas(64) atomic_ullong tickets; /* loop << 32 | items left */
  _Alignas(64) atomic_llong done;
  atomic_int over, leader_taken;
  int64_t n_items;
  plait_body body;
  void *arg;
  const plait_step *steps;
  int64_t n_steps;
  int error;
} team;

static _Thread_local team *led; /* by this thread */

static int take_ticket(team *t) { /* whether there was one */
  unsigned long long seen = atomic_load_explicit(&t->tickets, memory_order_acquire);
  while (seen & 0xffffffffu) {
    if (!atomic_compare_exchange_weak_explicit(&t->tickets, &seen, seen - 1, memory_order_acq_rel, memory_order_acquire)) continue;
    t->body(t->arg, t->n_items - (int64_t)(seen & 0xffffffffu));
    atomic_fetch_add_explicit(&t->done, 1, memory_order_release);
    return 1;
  }
  return 0;
}

static void wait_a_little(int *rounds) {
  if (++*rounds < PATIENCE) RELAX();
  else sched_yield();
}

static void lead_loop(team *t, int64_t n_items, plait_body body, void *arg) {
  const unsigned long long loop = (atomic_load_explicit(&t->tickets, memory_order_relaxed) >> 32) + 1;
  t->n_items = n_items, t->body = body, t->arg = arg;
  atomic_store_explicit(&t->done, 0, memory_order_relaxed);
  atomic_store_explicit(&t->tickets, loop << 32 | (unsigned long long)n_items, memory_order_release);
  while (take_ticket(t)) {}
  for (int rounds = 0; atomic_load_explicit(&t->done, memory_order_acquire) < n_items;) wait_a_little(&rounds);
}

static void run_steps(team *t) {
  for (int64_t i = 0; i < t->n_steps && !t->error; i++) t->error = t->steps[i].run(t->steps[i].args);
}

static void join_team(void *shared) {
  team *t = shared;
  if (atomic_exchange_explicit(&t->leader_taken, 1, memory_order_acq_rel) == 0) {
    led = t;
    run_steps(t);
    led = NULL;
    atomic_store_explicit(&t->over, 1, memory_order_release);
    return;
  }
  for (int rounds = 0; !atomic_load_explicit(&t->over, memory_order_acquire);) {
    if (take_ticket(t)) rounds = 0;
    else wait_a_little(&rounds);
  }
}

/* All steps in order, on one team. Stops at the first error and returns it. */
VISIBLE int plait_replay(const plait_step *steps, int64_t n_steps, int64_t n_threads) {
  team t = {.steps = steps, .n_steps = n_steps};
  if (n_threads <= 1 || !run_team) run_steps(&t);
  else run_team(join_team, &t, (unsigned)n_threads, 0);
  return t.error;
}

void plait_for(int64_t n_items, int64_t n_threads, plait_body body, void *arg) {
  if (n_threads > n_items) n_threads = n_items;
  if (n_threads <= 1 || !run_team) {
    for (int64_t i = 0; i < n_items; i++) body(arg, i);
    return;
  }
  if (led && n_items < INT32_MAX) {
    lead_loop(led, n_items, body, arg);
    return;
  }
  job work = {.n_items = n_items, .body = body, .arg = arg};
  atomic_init(&work.next, 0);
  run_team(take_items, &work, (unsigned)n_threads, 0);
}
