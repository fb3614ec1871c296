#include "parallel.h"

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

#define PATIENCE 20000 /* rounds of waiting before the processor is offered to others */
#define MAX_MEMBERS 64
#define LINE 64
#define FETCHED_AT_ONCE 4096
#define MOST_FETCHED (512 << 10) /* of a member's second cache, which holds the next kernel's first weights beside this one's last */

/* libgomp's entry point, found by the loader in the runtime that torch uses: one pool for both, so they never compete.
 * It is part of gcc's ABI since 4.9 and LLVM's runtime exports it too, so no header and no -fopenmp is needed. */
typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static gomp_parallel run_team;

VISIBLE void plait_set_runtime(void *entry) { run_team = (gomp_parallel)entry; }

/* ---- a loop, dealt out ---- */

/* Every member gets an equal run of neighbouring items, in order: memory gives a fifth to a third more when each thread reads one long
 * stream than when they take blocks in turns. Who is done takes from the ends of the others' runs, so nobody waits for a thread that
 * the system has put aside for longer than one item takes it. */
typedef struct {
  _Alignas(LINE) atomic_ullong items; /* the first << 32 | the one after the last */
} run;

typedef struct {
  run runs[MAX_MEMBERS];
  _Alignas(LINE) atomic_llong n_done;
  _Alignas(LINE) atomic_int n_joined;
  int n_members; /* for how many it is dealt, whether they come or not; the first to join is number 0 */
  int64_t n_items;
  plait_body body;
  void *arg;
} loop;

static void deal(loop *l, int64_t n_items, plait_body body, void *arg) {
  l->n_items = n_items, l->body = body, l->arg = arg;
  atomic_store_explicit(&l->n_done, 0, memory_order_relaxed);
  for (int i = l->n_members - 1; i >= 0; i--) {
    const unsigned long long first = n_items * i / l->n_members, end = n_items * (i + 1) / l->n_members;
    atomic_store_explicit(&l->runs[i].items, first << 32 | end, memory_order_release);
  }
}

/* The first item of a run, or its last; -1: there is none. Who succeeds has an item of the loop that is there now, whenever it looked. */
static int64_t taken(run *r, int is_own) {
  unsigned long long seen = atomic_load_explicit(&r->items, memory_order_acquire);
  for (;;) {
    const int64_t first = seen >> 32, end = seen & 0xffffffffu;
    if (first >= end) return -1;
    const unsigned long long rest = is_own ? seen + (1ull << 32) : seen - 1;
    if (atomic_compare_exchange_weak_explicit(&r->items, &seen, rest, memory_order_acq_rel, memory_order_acquire))
      return is_own ? first : end - 1;
  }
}

/* Do items until none is left; how many were done. */
static int64_t take_part(loop *l, int member) {
  int64_t n = 0;
  for (int k = 0; k < l->n_members; k++)
    for (int64_t item; (item = taken(&l->runs[(member + k) % l->n_members], k == 0)) >= 0; n++) l->body(l->arg, item);
  if (n) atomic_fetch_add_explicit(&l->n_done, n, memory_order_release);
  return n;
}

static int join(loop *l) { return atomic_fetch_add_explicit(&l->n_joined, 1, memory_order_relaxed); }

static void take_part_once(void *shared) {
  loop *l = shared;
  const int member = join(l);
  if (member < l->n_members) take_part(l, member);
}

/* ---- a team that stays together over many loops ---- */

typedef struct {
  loop loop;
  _Alignas(LINE) atomic_int over;
  const plait_step *steps;
  int64_t n_steps, *nanoseconds;
  int error;
  _Alignas(LINE) atomic_llong running; /* the step */
} team;

static _Thread_local team *led; /* by this thread */

static void wait_a_little(int *rounds) {
  if (++*rounds < PATIENCE) RELAX();
  else sched_yield();
}

static void lead_loop(team *t, int64_t n_items, plait_body body, void *arg) {
  deal(&t->loop, n_items, body, arg);
  take_part(&t->loop, 0);
  for (int rounds = 0; atomic_load_explicit(&t->loop.n_done, memory_order_acquire) < n_items;) wait_a_little(&rounds);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void run_steps(team *t) {
  int64_t begin = t->nanoseconds ? now() : 0;
  for (int64_t i = 0; i < t->n_steps && !t->error; i++) {
    atomic_store_explicit(&t->running, i, memory_order_relaxed);
    t->error = t->steps[i].run(t->steps[i].args);
    if (!t->nanoseconds) continue;
    const int64_t end = now();
    t->nanoseconds[i] = end - begin, begin = end;
  }
}

typedef struct {
  int64_t step, done; /* bytes of the step's weights */
} place;

/* The range of weights that a member reads of a step if nobody takes from another's run. */
static const char *own_part(const plait_step *step, int part, int member, int n_members, int64_t *n) {
  const int64_t begin = step->n_bytes[part] * member / n_members;
  *n = step->n_bytes[part] * (member + 1) / n_members - begin;
  return (const char *)step->weights[part] + begin;
}

/* For a member that has nothing to do: fetch a little more of what it will read in the steps to come, then of what the leader, who is busy
 * now, will. Whether there was any within MOST_FETCHED of the step that runs. */
static int fetch_more(team *t, int member, place *p) {
  const int64_t running = atomic_load_explicit(&t->running, memory_order_relaxed);
  const plait_step *now = &t->steps[running];
  const int64_t limit = now->before + now->n_bytes[0] + now->n_bytes[1] + MOST_FETCHED;
  if (p->step <= running) *p = (place){running + 1, 0};
  for (; p->step < t->n_steps; *p = (place){p->step + 1, 0}) {
    const plait_step *step = &t->steps[p->step];
    if (step->before + p->done >= limit) return 0;
    int64_t skipped = 0, n;
    for (int k = 0; k < 4; k++, skipped += n) {
      const char *part = own_part(step, k % 2, k < 2 ? member : 0, t->loop.n_members, &n);
      const int64_t begin = p->done - skipped, end = n - begin < FETCHED_AT_ONCE ? n : begin + FETCHED_AT_ONCE;
      if (begin >= n) continue;
      for (int64_t i = begin; i < end; i += LINE) __builtin_prefetch(part + i, 0, 2);
      p->done += end - begin;
      return 1;
    }
  }
  return 0;
}

static void join_team(void *shared) {
  team *t = shared;
  const int member = join(&t->loop);
  if (member == 0) {
    led = t;
    run_steps(t);
    led = NULL;
    atomic_store_explicit(&t->over, 1, memory_order_release);
    return;
  }
  place ahead = {0};
  for (int rounds = 0; !atomic_load_explicit(&t->over, memory_order_acquire);) {
    if (member < t->loop.n_members && (take_part(&t->loop, member) || fetch_more(t, member, &ahead))) rounds = 0;
    else wait_a_little(&rounds);
  }
}

static int members(int64_t n_threads) { return n_threads < MAX_MEMBERS ? (int)n_threads : MAX_MEMBERS; }

/* All steps in order, on one team. Stops at the first error and returns it. `nanoseconds` [n_steps]: what each took, or NULL. */
VISIBLE int plait_replay(const plait_step *steps, int64_t n_steps, int64_t n_threads, int64_t *nanoseconds) {
  team t = {.loop.n_members = members(n_threads), .steps = steps, .n_steps = n_steps, .nanoseconds = nanoseconds};
  if (n_threads <= 1 || !run_team) run_steps(&t);
  else run_team(join_team, &t, (unsigned)n_threads, 0);
  return t.error;
}

void plait_for(int64_t n_items, int64_t n_threads, plait_body body, void *arg) {
  if (n_threads > n_items) n_threads = n_items;
  if (n_threads <= 1 || !run_team || n_items > INT32_MAX) {
    for (int64_t i = 0; i < n_items; i++) body(arg, i);
    return;
  }
  if (led) {
    lead_loop(led, n_items, body, arg);
    return;
  }
  loop work = {.n_members = members(n_threads)};
  deal(&work, n_items, body, arg);
  run_team(take_part_once, &work, (unsigned)n_threads, 0);
}
