/* What the forward and the backward scan share: the arguments, the cut into chunks, the pass over dt. */
#ifndef PLAIT_SCAN_H
#define PLAIT_SCAN_H

#include "parallel.h"
#include "vec.h"

#define CHUNK 32     /* tokens between stored states */
#define GROUP 64     /* channels of one work item */
#define MAX_STATE 256
#define MAX_SUMS 32  /* parts in which the backward sums B's and C's gradients over channels */
#define BLOCKS (GROUP / W)

/* Layouts are the op contract's (ops/selective_scan). Strides count elements; the last dim is contiguous. `type` is that of u, dt,
 * z, y and of their gradients; B and C have their own; everything else is float. */
typedef struct {
  int64_t n_seqs, d_inner, d_state, tokens, n_threads;
  int64_t type, bc_type;
  int64_t u_stride, dt_stride, z_stride, B_stride, C_stride, y_stride;
  const void *u, *dt, *z, *B, *C;
  const float *A, *D, *dt_bias;
  const int32_t *cu_seqlens;
  void *y;
  const float *state_in; /* NULL: zeros */
  float *state_out;
  const int64_t *slots;  /* row of state_in and state_out of each sequence; NULL: the sequence's own number */
  int64_t n_slots;       /* rows of those, where slots are given */
  float *chunk_states;   /* NULL: not wanted. [chunk][block of W channels][d_state][W], before each chunk */
  /* backward only */
  int64_t gy_stride;
  const void *gy;
  const float *g_state_out;         /* NULL: zeros */
  void *gu, *gdt, *gz;              /* [tokens, d_inner], contiguous, like every gradient */
  void *gB, *gC;                    /* [tokens, d_state] of bc_type */
  float *gA, *gD, *gdt_bias;        /* [d_inner, d_state], [d_inner] */
  float *g_state_in;                /* [n_seqs, d_inner, d_state] or NULL */
  float *sums_BC;                   /* scratch [MAX_SUMS][tokens][2 * d_state] */
  float *sums_A, *sums_D, *sums_dt; /* scratch [n_seqs][d_inner][d_state], [n_seqs][d_inner] */
} scan_args;

INLINE int64_t n_groups(const scan_args *a) { return (a->d_inner + GROUP - 1) / GROUP; }

/* The first chunk of sequence i. Leaves gaps, never overlaps, needs no table; tokens / CHUNK + n_seqs is room for all. */
INLINE int64_t first_chunk(const scan_args *a, int64_t i) { return a->cu_seqlens[i] / CHUNK + i; }

INLINE float *chunk_state(const scan_args *a, int64_t chunk, int64_t channel) {
  int64_t n_blocks = (a->d_inner + W - 1) / W;
  return a->chunk_states + (chunk * n_blocks + channel / W) * a->d_state * W;
}

/* W channels x d_state of a [d_inner, d_state] matrix, to and from rows of W channels. */
INLINE void gather(const float *from, int64_t n_state, int64_t row_stride, int n, float *to) {
  int64_t s = 0;
  if (n >= W)
    for (; s + W <= n_state; s += W) {
      vf v[W];
      for (int i = 0; i < W; i++) v[i] = load(from + i * row_stride + s);
      transpose(v);
      for (int i = 0; i < W; i++) store(to + (s + i) * W, v[i]);
    }
  for (; s < n_state; s++)
    for (int i = 0; i < W; i++) to[s * W + i] = i < n ? from[i * row_stride + s] : 0.0f;
}
INLINE void scatter(const float *from, int64_t n_state, int64_t row_stride, int n, float *to) {
  int64_t s = 0;
  if (n >= W)
    for (; s + W <= n_state; s += W) {
      vf v[W];
      for (int i = 0; i < W; i++) v[i] = load(from + (s + i) * W);
      transpose(v);
      for (int i = 0; i < W; i++) store(to + i * row_stride + s, v[i]);
    }
  for (; s < n_state; s++)
    for (int i = 0; i < n; i++) to[i * row_stride + s] = from[s * W + i];
}

/* B or C of a chunk as floats [length][row], zeros behind d_state. */
INLINE void load_rows(const void *from, int64_t type, int64_t stride, int64_t token, int length, int64_t n_state, int64_t row, float *to) {
  for (int t = 0; t < length; t++)
    for (int64_t s = 0; s < row; s += W) {
      vf x = load_any(from, (token + t) * stride + s, (int)type, (int)MAX(0, MIN(W, n_state - s)));
      store_any(to, t * row + s, F32, (int)MIN(W, row - s), x);
    }
}

#endif
