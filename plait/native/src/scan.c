/* The selective scan forward, and its decode step (one token of each sequence).
 *
 *   dt = softplus(dt + dt_bias);  h = exp(dt A) h + dt u B;  y = (C h + D u) silu(z)
 *
 * Lanes are channels; a work item is one sequence times 64 channels, walked token by token, so a channel's arithmetic depends
 * neither on how sequences are cut nor on threads. A chunk of tokens is prepared row by row (contiguous memory), then each block
 * of W channels steps through it with its state in registers.
 */
#include "scan.h"

typedef struct {
  float B[CHUNK * MAX_STATE], C[CHUNK * MAX_STATE];
  float delta[BLOCKS][CHUNK][W], u[BLOCKS][CHUNK][W], y[BLOCKS][CHUNK][W];
  float h[BLOCKS * MAX_STATE * W], A[BLOCKS * MAX_STATE * W]; /* [block][d_state][W]; A times log2(e) */
} __attribute__((aligned(64))) scratch;

/* A row of W channels of each input in the next chunk, and of y in this one, on its way into the cache while this row is computed.
 * Rows lie whole pages apart, which no hardware prefetcher follows; without this a third of the time is waiting. */
INLINE void fetch_ahead(const scan_args *a, int64_t token, int64_t d) {
  const int64_t bytes = a->type == F32 ? 4 : 2, next = MIN(token + CHUNK, a->tokens - 1);
  __builtin_prefetch((const char *)a->dt + (next * a->dt_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->u + (next * a->u_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->z + (next * a->z_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->y + (token * a->y_stride + d) * bytes, 1, 2);
}

/* 16 states in registers. y is summed in four chains, so that the next token need not wait for it. */
INLINE void step_block_16(const scan_args *a, scratch *x, int block, int length, int64_t token, int64_t d) {
  float *state = x->h + block * 16 * W, (*out)[W] = x->y[block];
  const float *A = x->A + block * 16 * W;
  vf h[16];
#pragma GCC unroll 16
  for (int s = 0; s < 16; s++) h[s] = load(state + s * W);
  for (int t = 0; t < length; t++) {
    fetch_ahead(a, token + t, d);
    vf delta = load(x->delta[block][t]), drive = delta * load(x->u[block][t]);
    vf y[4] = {{0}, {0}, {0}, {0}};
    const float *B = x->B + t * 16, *C = x->C + t * 16;
#pragma GCC unroll 16
    for (int s = 0; s < 16; s++) {
      h[s] = vfma(exp2_product(delta, load(A + s * W)), h[s], drive * splat(B[s]));
      y[s & 3] = vfma(splat(C[s]), h[s], y[s & 3]);
    }
    store(out[t], (y[0] + y[1]) + (y[2] + y[3]));
  }
#pragma GCC unroll 16
  for (int s = 0; s < 16; s++) store(state + s * W, h[s]);
}

INLINE void step_block(scratch *x, int block, int length, int64_t n_state) {
  float *state = x->h + block * n_state * W, (*out)[W] = x->y[block];
  const float *A = x->A + block * n_state * W;
  for (int t = 0; t < length; t++) {
    vf delta = load(x->delta[block][t]), drive = delta * load(x->u[block][t]), y = {0};
    const float *B = x->B + t * n_state, *C = x->C + t * n_state;
    for (int64_t s = 0; s < n_state; s++) {
      vf h = vfma(exp2_product(delta, load(A + s * W)), load(state + s * W), drive * splat(B[s]));
      store(state + s * W, h);
      y = vfma(splat(C[s]), h, y);
    }
    store(out[t], y);
  }
}

/* What comes before the steps of a chunk and after them, row by row. `type` and `whole` (no channel of the group is missing) are constants
 * where these are inlined: asking for every vector took an eighth of the scan. */
INLINE void before_steps(const scan_args *a, scratch *x, int64_t t0, int length, int64_t first, int64_t last, int type, int whole) {
  const int n_blocks = whole ? BLOCKS : (int)((last - first + W - 1) / W);
  for (int t = 0; t < length; t++)
    for (int b = 0; b < n_blocks; b++) {
      const int64_t d = first + b * W;
      const int n = whole ? W : (int)MIN(W, last - d);
      const vf bias = load_any(a->dt_bias, d, F32, n);
      store(x->delta[b][t], vsoftplus(load_any(a->dt, (t0 + t) * a->dt_stride + d, type, n) + bias));
      store(x->u[b][t], load_any(a->u, (t0 + t) * a->u_stride + d, type, n));
    }
}
INLINE void after_steps(const scan_args *a, scratch *x, int64_t t0, int length, int64_t first, int64_t last, int type, int whole) {
  const int n_blocks = whole ? BLOCKS : (int)((last - first + W - 1) / W);
  for (int t = 0; t < length; t++)
    for (int b = 0; b < n_blocks; b++) {
      const int64_t d = first + b * W;
      const int n = whole ? W : (int)MIN(W, last - d);
      const vf gate = vsilu(load_any(a->z, (t0 + t) * a->z_stride + d, type, n));
      const vf y = vfma(load_any(a->D, d, F32, n), load(x->u[b][t]), load(x->y[b][t]));
      store_any(a->y, (t0 + t) * a->y_stride + d, type, n, y * gate);
    }
}
#define WITH_CONSTANTS(f, ...)                                    \
  if (last - first < GROUP) f(__VA_ARGS__, type, 0);              \
  else if (type == F32) f(__VA_ARGS__, F32, 1);                   \
  else f(__VA_ARGS__, BF16, 1)

static void scan_item(void *arg, int64_t item) {
  static _Thread_local scratch x; /* too large for a thread's stack */
  const scan_args *a = arg;
  const int64_t seq = item / n_groups(a), first = item % n_groups(a) * GROUP, last = MIN(first + GROUP, a->d_inner);
  const int64_t begin = a->cu_seqlens[seq], end = a->cu_seqlens[seq + 1], n_state = a->d_state;
  const int64_t row = (a->slots ? a->slots[seq] : seq) * a->d_inner;
  const int n_blocks = (int)((last - first + W - 1) / W), type = (int)a->type;

  for (int b = 0; b < n_blocks; b++) {
    int64_t d = first + b * W;
    int n = (int)MIN(W, last - d);
    float *A = x.A + b * n_state * W, *h = x.h + b * n_state * W;
    gather(a->A + d * n_state, n_state, n_state, n, A);
    for (int64_t s = 0; s < n_state; s++) store(A + s * W, load(A + s * W) * splat(LOG2E));
    if (a->state_in) gather(a->state_in + (row + d) * n_state, n_state, n_state, n, h);
    else memset(h, 0, sizeof(float) * W * (size_t)n_state);
  }
  for (int64_t t0 = begin, chunk = first_chunk(a, seq); t0 < end; t0 += CHUNK, chunk++) {
    const int length = (int)MIN(CHUNK, end - t0);
    load_rows(a->B, a->bc_type, a->B_stride, t0, length, n_state, n_state, x.B);
    load_rows(a->C, a->bc_type, a->C_stride, t0, length, n_state, n_state, x.C);
    WITH_CONSTANTS(before_steps, a, &x, t0, length, first, last);
    for (int b = 0; b < n_blocks; b++) {
      if (a->chunk_states) memcpy(chunk_state(a, chunk, first + b * W), x.h + b * n_state * W, sizeof(float) * W * (size_t)n_state);
      if (n_state == 16) step_block_16(a, &x, b, length, t0, first + b * W);
      else step_block(&x, b, length, n_state);
    }
    WITH_CONSTANTS(after_steps, a, &x, t0, length, first, last);
  }
  for (int b = 0; b < n_blocks; b++) {
    int64_t d = first + b * W;
    scatter(x.h + b * n_state * W, n_state, n_state, (int)MIN(W, last - d), a->state_out + (row + d) * n_state);
  }
}

KERNEL(scan_forward) {
  const scan_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->tokens)) return BAD_BOUND;
  if (a->slots && !all_within(a->slots, a->n_seqs, a->n_slots)) return BAD_SLOT;
  plait_for(a->n_seqs * n_groups(a), a->n_threads, scan_item, (void *)a);
  return FINE;
}
