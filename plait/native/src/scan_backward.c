/* The selective scan backward. Chunks are walked from the last to the first; each is stepped forward again from the state stored
 * before it, keeping every state and decay, then backward:
 *
 *   s = C h + D u, y = s silu(z), gs = gy silu(z)
 *   gh_t = C_t gs_t + e_{t+1} gh_{t+1};   gB = gh dt u;   gC = gs h;   g(dt A) = e gh h_{t-1}
 *
 * B's and C's gradients are sums over channels, A's, D's and dt_bias's over tokens. Every sum is made in an order that the shapes
 * alone decide: partial sums go to scratch and are added up by a second pass, so threads change nothing.
 */
#include "scan.h"

#define SLICE 8 /* states stepped together; d_state is padded to whole slices with zeros */
#define LN2 0.693147180559945309f

typedef float rows[BLOCKS][CHUNK][W];
typedef struct {
  rows delta, slope, u, gs, gate_slope, y, g_drive, g_delta;
  float decay[CHUNK][SLICE][W], h[CHUNK + 1][SLICE][W]; /* h[t] is the state before token t */
  float sums[CHUNK][2 * SLICE];                         /* of one slice: B's, then C's */
  float B[CHUNK * MAX_STATE], C[CHUNK * MAX_STATE];
  float A[BLOCKS * MAX_STATE * W]; /* times log2(e) */
  float gh[BLOCKS * MAX_STATE * W], gA[BLOCKS * MAX_STATE * W];
  float gD[BLOCKS][W], g_bias[BLOCKS][W];
} __attribute__((aligned(64))) scratch;

INLINE int64_t padded(const scan_args *a) { return (a->d_state + SLICE - 1) / SLICE * SLICE; }

/* As in scan.c: the inputs of a token of the chunk before this one, or this one's gradients, on their way into the cache. */
INLINE void fetch_inputs(const scan_args *a, int64_t token, int64_t d) {
  const int64_t bytes = a->type == F32 ? 4 : 2, before = MAX(0, token - CHUNK);
  __builtin_prefetch((const char *)a->dt + (before * a->dt_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->u + (before * a->u_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->z + (before * a->z_stride + d) * bytes, 0, 2);
  __builtin_prefetch((const char *)a->gy + (before * a->gy_stride + d) * bytes, 0, 2);
}
INLINE void fetch_outputs(const scan_args *a, int64_t token, int64_t d) {
  const int64_t at = (token * a->d_inner + d) * (a->type == F32 ? 4 : 2);
  __builtin_prefetch((const char *)a->gu + at, 1, 2);
  __builtin_prefetch((const char *)a->gdt + at, 1, 2);
  __builtin_prefetch((const char *)a->gz + at, 1, 2);
}

static void forward_slice(const scan_args *a, scratch *x, int block, int length, int64_t n_padded, int64_t first_state, int64_t token,
                          int64_t d, const float *start) {
  const int64_t n_start = a->d_state - first_state;
  const float *A = x->A + (block * n_padded + first_state) * W;
  vf h[SLICE];
#pragma GCC unroll 8
  for (int s = 0; s < SLICE; s++) h[s] = s < n_start ? load(start + s * W) : (vf){0};
  for (int t = 0; t < length; t++) {
    if (first_state == 0) fetch_inputs(a, token + t, d);
    const float *B = x->B + t * n_padded + first_state, *C = x->C + t * n_padded + first_state;
    vf delta = load(x->delta[block][t]), drive = delta * load(x->u[block][t]);
    vf y[2] = {load(x->y[block][t]), {0}};
#pragma GCC unroll 8
    for (int s = 0; s < SLICE; s++) {
      vf decay = exp2_product(delta, load(A + s * W));
      store(x->decay[t][s], decay);
      store(x->h[t][s], h[s]);
      h[s] = vfma(decay, h[s], drive * splat(B[s]));
      y[s & 1] = vfma(splat(C[s]), h[s], y[s & 1]);
    }
    store(x->y[block][t], y[0] + y[1]);
  }
#pragma GCC unroll 8
  for (int s = 0; s < SLICE; s++) store(x->h[length][s], h[s]);
}

static void backward_slice(const scan_args *a, scratch *x, int block, int length, int64_t n_padded, int64_t first_state, int64_t token,
                           int64_t d) {
  const float *A = x->A + (block * n_padded + first_state) * W;
  float *carried = x->gh + (block * n_padded + first_state) * W, *summed = x->gA + (block * n_padded + first_state) * W;
  vf gh[SLICE], gA[SLICE];
#pragma GCC unroll 8
  for (int s = 0; s < SLICE; s++) gh[s] = load(carried + s * W), gA[s] = (vf){0};
  for (int t = length - 1; t >= 0; t--) {
    if (first_state == 0) fetch_outputs(a, token + t, d);
    const float *B = x->B + t * n_padded + first_state, *C = x->C + t * n_padded + first_state;
    const vf delta = load(x->delta[block][t]), drive = delta * load(x->u[block][t]), gs = load(x->gs[block][t]);
    vf product[2 * SLICE], g_drive = {0}, g_delta = {0};
#pragma GCC unroll 8
    for (int s = 0; s < SLICE; s++) {
      gh[s] = vfma(splat(C[s]), gs, gh[s]);
      product[s] = gh[s] * drive;
      product[SLICE + s] = gs * load(x->h[t + 1][s]);
      g_drive = vfma(splat(B[s]), gh[s], g_drive);
      gh[s] = gh[s] * load(x->decay[t][s]);
      vf g_exponent = gh[s] * load(x->h[t][s]);
      g_delta = vfma(g_exponent, load(A + s * W), g_delta);
      gA[s] = vfma(g_exponent, delta, gA[s]);
    }
    store(x->g_drive[block][t], load(x->g_drive[block][t]) + g_drive);
    store(x->g_delta[block][t], vfma(g_delta, splat(LN2), load(x->g_delta[block][t])));
    for (int i = 0; i < 2 * SLICE; i += W) store(x->sums[t] + i, load(x->sums[t] + i) + sums(product + i));
  }
#pragma GCC unroll 8
  for (int s = 0; s < SLICE; s++) store(carried + s * W, gh[s]), store(summed + s * W, load(summed + s * W) + gA[s]);
}

/* What needs no state: dt and gate, row by row. */
static void prepare(const scan_args *a, scratch *x, int64_t first, int64_t last, int64_t t0, int length) {
  const int type = (int)a->type;
  for (int t = 0; t < length; t++)
    for (int64_t d = first, b = 0; d < last; d += W, b++) {
      int n = (int)MIN(W, last - d);
      int64_t token = t0 + t;
      vf raw = load_any(a->dt, token * a->dt_stride + d, type, n) + load_any(a->dt_bias, d, F32, n);
      vf z = load_any(a->z, token * a->z_stride + d, type, n), gy = load_any(a->gy, token * a->gy_stride + d, type, n);
      vf gate = vsigmoid(z);
      store(x->delta[b][t], vsoftplus(raw));
      store(x->slope[b][t], vsigmoid(raw));
      store(x->u[b][t], load_any(a->u, token * a->u_stride + d, type, n));
      store(x->gs[b][t], gy * z * gate);
      store(x->gate_slope[b][t], gy * gate * vfma(z, splat(1.0f) - gate, splat(1.0f)));
      store(x->y[b][t], (vf){0});
      store(x->g_drive[b][t], (vf){0});
      store(x->g_delta[b][t], (vf){0});
    }
}

static void finish(const scan_args *a, scratch *x, int64_t first, int64_t last, int64_t t0, int length) {
  const int type = (int)a->type;
  for (int t = length - 1; t >= 0; t--)
    for (int64_t d = first, b = 0; d < last; d += W, b++) {
      int n = (int)MIN(W, last - d);
      int64_t at = (t0 + t) * a->d_inner + d;
      vf D = load_any(a->D, d, F32, n), u = load(x->u[b][t]), gs = load(x->gs[b][t]), g_drive = load(x->g_drive[b][t]);
      vf gdt = vfma(g_drive, u, load(x->g_delta[b][t])) * load(x->slope[b][t]);
      store_any(a->gu, at, type, n, vfma(g_drive, load(x->delta[b][t]), gs * D));
      store_any(a->gdt, at, type, n, gdt);
      store_any(a->gz, at, type, n, load(x->gate_slope[b][t]) * vfma(D, u, load(x->y[b][t])));
      store(x->gD[b], vfma(gs, u, load(x->gD[b])));
      store(x->g_bias[b], load(x->g_bias[b]) + gdt);
    }
}

static void backward_group(const scan_args *a, scratch *x, int64_t seq, int64_t first, float *sums_BC, int add) {
  const int64_t last = MIN(first + GROUP, a->d_inner), begin = a->cu_seqlens[seq], end = a->cu_seqlens[seq + 1];
  const int64_t n_state = a->d_state, n_padded = padded(a), row = seq * a->d_inner;
  const int n_blocks = (int)((last - first + W - 1) / W);
  const size_t block_bytes = sizeof(float) * W * (size_t)n_padded;

  for (int b = 0; b < n_blocks; b++) {
    int64_t d = first + b * W;
    int n = (int)MIN(W, last - d);
    float *A = x->A + b * n_padded * W, *gh = x->gh + b * n_padded * W;
    memset(A, 0, block_bytes), memset(gh, 0, block_bytes), memset(x->gA + b * n_padded * W, 0, block_bytes);
    memset(x->gD[b], 0, sizeof x->gD[b]), memset(x->g_bias[b], 0, sizeof x->g_bias[b]);
    gather(a->A + d * n_state, n_state, n_state, n, A);
    for (int64_t s = 0; s < n_state; s++) store(A + s * W, load(A + s * W) * splat(LOG2E));
    if (a->g_state_out) gather(a->g_state_out + (row + d) * n_state, n_state, n_state, n, gh);
  }
  int64_t n_chunks = (end - begin + CHUNK - 1) / CHUNK;
  for (int64_t chunk = n_chunks - 1; chunk >= 0; chunk--) {
    const int64_t t0 = begin + chunk * CHUNK;
    const int length = (int)MIN(CHUNK, end - t0);
    load_rows(a->B, a->bc_type, a->B_stride, t0, length, n_state, n_padded, x->B);
    load_rows(a->C, a->bc_type, a->C_stride, t0, length, n_state, n_padded, x->C);
    prepare(a, x, first, last, t0, length);
    for (int64_t s0 = 0; s0 < n_state; s0 += SLICE) {
      memset(x->sums, 0, sizeof x->sums);
      for (int b = 0; b < n_blocks; b++) {
        const float *start = chunk_state(a, first_chunk(a, seq) + chunk, first + b * W) + s0 * W;
        forward_slice(a, x, b, length, n_padded, s0, t0, first + b * W, start);
        backward_slice(a, x, b, length, n_padded, s0, t0, first + b * W);
      }
      for (int t = 0; t < length; t++) {
        float *to = sums_BC + (t0 + t) * 2 * n_state + s0;
        for (int s = 0; s < MIN(SLICE, n_state - s0); s++) {
          to[s] = (add ? to[s] : 0) + x->sums[t][s];
          to[n_state + s] = (add ? to[n_state + s] : 0) + x->sums[t][SLICE + s];
        }
      }
    }
    finish(a, x, first, last, t0, length);
  }
  for (int b = 0; b < n_blocks; b++) {
    int64_t d = first + b * W;
    int n = (int)MIN(W, last - d);
    if (a->g_state_in) scatter(x->gh + b * n_padded * W, n_state, n_state, n, a->g_state_in + (row + d) * n_state);
    scatter(x->gA + b * n_padded * W, n_state, n_state, n, a->sums_A + (row + d) * n_state);
    store_any(a->sums_D, row + d, F32, n, load(x->gD[b]));
    store_any(a->sums_dt, row + d, F32, n, load(x->g_bias[b]));
  }
}

INLINE int64_t groups_per_item(const scan_args *a) { return (n_groups(a) + MAX_SUMS - 1) / MAX_SUMS; }
INLINE int64_t n_items(const scan_args *a) { return (n_groups(a) + groups_per_item(a) - 1) / groups_per_item(a); }

static void backward_item(void *arg, int64_t item) {
  static _Thread_local scratch x; /* too large for a thread's stack */
  const scan_args *a = arg;
  const int64_t seq = item / n_items(a), part = item % n_items(a), first = part * groups_per_item(a);
  float *sums_BC = a->sums_BC + part * a->tokens * 2 * a->d_state;
  for (int64_t g = first; g < MIN(first + groups_per_item(a), n_groups(a)); g++)
    backward_group(a, &x, seq, g * GROUP, sums_BC, g > first);
}

static void add_up_tokens(void *arg, int64_t item) {
  const scan_args *a = arg;
  const int64_t n = a->d_state;
  for (int64_t t = item * CHUNK; t < MIN((item + 1) * CHUNK, a->tokens); t++)
    for (int64_t s = 0; s < 2 * n; s++) {
      float total = 0;
      for (int64_t part = 0; part < n_items(a); part++) total += a->sums_BC[(part * a->tokens + t) * 2 * n + s];
      store_one(s < n ? a->gB : a->gC, t * n + s % n, (int)a->bc_type, total);
    }
}

static void add_up_channels(void *arg, int64_t item) {
  const scan_args *a = arg;
  const int64_t n = a->d_state;
  for (int64_t d = item * GROUP; d < MIN((item + 1) * GROUP, a->d_inner); d++) {
    for (int64_t s = 0; s < n; s++) a->gA[d * n + s] = 0;
    a->gD[d] = a->gdt_bias[d] = 0;
    for (int64_t seq = 0; seq < a->n_seqs; seq++) {
      int64_t row = seq * a->d_inner + d;
      for (int64_t s = 0; s < n; s++) a->gA[d * n + s] += a->sums_A[row * n + s];
      a->gD[d] += a->sums_D[row];
      a->gdt_bias[d] += a->sums_dt[row];
    }
  }
}

KERNEL(scan_backward) {
  const scan_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->tokens)) return BAD_BOUND;
  plait_for(a->n_seqs * n_items(a), a->n_threads, backward_item, (void *)a);
  plait_for((a->tokens + CHUNK - 1) / CHUNK, a->n_threads, add_up_tokens, (void *)a);
  plait_for(n_groups(a), a->n_threads, add_up_channels, (void *)a);
  return FINE;
}
