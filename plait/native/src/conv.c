/* Depthwise causal convolution with SiLU: forward (one token of each sequence is the decode step) and backward.
 *
 * A sequence and what came before it are one row of inputs: e[0 .. taps-2] are the initial columns, e[taps-1 + t] is token t, so
 * y_t = silu(bias + sum_j w_j e[t + j]), and the final columns are the last taps-1 entries of e. Lanes are channels.
 */
#include "parallel.h"
#include "vec.h"

#define TILE 32
#define GROUP 64
#define BLOCKS (GROUP / W)
#define MAX_TAPS 8

typedef struct {
  int64_t n_seqs, channels, taps, tokens, n_threads, type, column_type, weight_type, x_stride, y_stride;
  const void *x;
  const void *weight, *bias; /* [channels, taps], [channels] or NULL, both of weight_type */
  const int32_t *cu_seqlens;
  const void *columns_in; /* [slots, channels, taps - 1] of column_type; NULL: zeros */
  void *columns_out, *y;
  const int64_t *slots; /* as in scan.h */
  int64_t n_slots;      /* of the pool, where slots are given */
  /* backward only; gradients are contiguous */
  int64_t gy_stride;
  const void *gy, *g_columns_out; /* the latter of column_type, or NULL: zeros */
  void *gx, *g_columns_in;        /* the latter of column_type, or NULL: not wanted */
  float *g_weight, *g_bias, *sums; /* sums: scratch [n_seqs][channels][taps + 1] */
} conv_args;

typedef struct {
  float w[MAX_TAPS][BLOCKS][W], bias[BLOCKS][W];
  float e[TILE + MAX_TAPS][BLOCKS][W]; /* inputs from taps-1 tokens before the tile */
  float g[TILE + MAX_TAPS][BLOCKS][W]; /* gradients before SiLU, of the tile and the taps-1 tokens after it */
  float g_final[MAX_TAPS][BLOCKS][W], gw[MAX_TAPS + 1][BLOCKS][W];
} __attribute__((aligned(64))) scratch;

typedef struct {
  int64_t seq, slot, first, begin, length;
  int n_channels, n_blocks, taps;
} span;

INLINE int64_t n_groups(const conv_args *a) { return (a->channels + GROUP - 1) / GROUP; }

INLINE span span_of(const conv_args *a, int64_t item) {
  span s = {.seq = item / n_groups(a), .first = item % n_groups(a) * GROUP, .taps = (int)a->taps};
  s.slot = a->slots ? a->slots[s.seq] : s.seq;
  s.begin = a->cu_seqlens[s.seq];
  s.length = a->cu_seqlens[s.seq + 1] - s.begin;
  s.n_channels = (int)MIN(GROUP, a->channels - s.first);
  s.n_blocks = (s.n_channels + W - 1) / W;
  return s;
}

/* A span's part of [channels][n], as n rows of channels; and back. */
INLINE void spread(const void *from, int64_t type, int64_t at, const span *s, int n, float (*to)[BLOCKS][W]) {
  float flat[GROUP * MAX_TAPS];
  const int64_t count = (int64_t)s->n_channels * n;
  for (int64_t i = 0; i < count; i += W) store_any(flat, i, F32, (int)MIN(W, count - i), load_any(from, at + i, (int)type, (int)MIN(W, count - i)));
  for (int j = 0; j < n; j++) {
    float *lane = to[j][0];
    for (int c = 0; c < s->n_channels; c++) lane[c] = flat[c * n + j];
  }
}
INLINE void gather(void *to, int64_t type, int64_t at, const span *s, int n, float (*from)[BLOCKS][W]) {
  float flat[GROUP * MAX_TAPS];
  const int64_t count = (int64_t)s->n_channels * n;
  for (int j = 0; j < n; j++) {
    const float *lane = from[j][0];
    for (int c = 0; c < s->n_channels; c++) flat[c * n + j] = lane[c];
  }
  for (int64_t i = 0; i < count; i += W) store_any(to, at + i, (int)type, (int)MIN(W, count - i), load_any(flat, i, F32, (int)MIN(W, count - i)));
}

/* The columns [channels, taps - 1] of the span's sequence. Four taps, as every published model has, are a constant. */
INLINE void read_columns(const void *columns, int64_t type, int64_t row, const span *s, float (*to)[BLOCKS][W]) {
  const int before = s->taps - 1;
  if (!columns) memset(to, 0, sizeof to[0] * (size_t)before);
  else if (before == 3) spread(columns, type, (row + s->first) * 3, s, 3, to);
  else spread(columns, type, (row + s->first) * before, s, before, to);
}
INLINE void write_columns(void *columns, int64_t type, int64_t row, const span *s, float (*from)[BLOCKS][W]) {
  const int before = s->taps - 1;
  if (before == 3) gather(columns, type, (row + s->first) * 3, s, 3, from);
  else gather(columns, type, (row + s->first) * before, s, before, from);
}

/* e[index] of the sequence, index >= taps - 1: a token. */
INLINE void read_input(const conv_args *a, const span *s, int64_t index, float (*to)[W]) {
  int64_t at = (s->begin + index - (s->taps - 1)) * a->x_stride + s->first;
  for (int b = 0; b < s->n_blocks; b++) store(to[b], load_any(a->x, at + b * W, (int)a->type, s->n_channels - b * W));
}

INLINE void read_weights(const conv_args *a, const span *s, scratch *x) {
  if (s->n_channels < GROUP) memset(x->w, 0, sizeof x->w);
  if (s->taps == 4) spread(a->weight, a->weight_type, s->first * 4, s, 4, x->w);
  else spread(a->weight, a->weight_type, s->first * s->taps, s, s->taps, x->w);
  for (int b = 0; b < s->n_blocks; b++)
    store(x->bias[b], a->bias ? load_any(a->bias, s->first + b * W, (int)a->weight_type, s->n_channels - b * W) : (vf){0});
}

INLINE vf convolve(const scratch *x, int taps, int t, int block) {
  vf total = load(x->bias[block]);
  for (int j = 0; j < taps; j++) total = vfma(load(x->w[j][block]), load(x->e[t + j][block]), total);
  return total;
}

static void forward_item(void *arg, int64_t item) {
  static _Thread_local scratch x;
  const conv_args *a = arg;
  const span s = span_of(a, item);
  const int before = s.taps - 1;
  read_weights(a, &s, &x);
  read_columns(a->columns_in, a->column_type, s.slot * a->channels, &s, x.e);
  for (int64_t t0 = 0; t0 < s.length; t0 += TILE) {
    const int length = (int)MIN(TILE, s.length - t0);
    for (int t = 0; t < length; t++) {
      int64_t ahead = s.begin + MIN(t0 + t + TILE, s.length - 1);
      for (int line = 0; line < GROUP * 4; line += 64)
        __builtin_prefetch((const char *)a->x + (ahead * a->x_stride + s.first) * (a->type == F32 ? 4 : 2) + line, 0, 2);
      read_input(a, &s, before + t0 + t, x.e[before + t]);
      for (int b = 0; b < s.n_blocks; b++)
        store_any(a->y, (s.begin + t0 + t) * a->y_stride + s.first + b * W, (int)a->type, s.n_channels - b * W,
                  vsilu(convolve(&x, s.taps, t, b)));
    }
    memmove(x.e, x.e + length, sizeof x.e[0] * (size_t)before);
  }
  write_columns(a->columns_out, a->column_type, s.slot * a->channels, &s, x.e);
}

KERNEL(conv_forward) {
  const conv_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->tokens)) return BAD_BOUND;
  if (a->slots && !all_within(a->slots, a->n_seqs, a->n_slots)) return BAD_SLOT;
  int64_t n_threads = a->tokens * a->channels < 32768 ? 1 : a->n_threads;
  plait_for(a->n_seqs * n_groups(a), n_threads, forward_item, (void *)a);
  return FINE;
}

/* The gradient of e[index]: g holds token `index - j` at row `index - j - t0`; rows outside the sequence are zero. */
INLINE vf gradient(const scratch *x, const span *s, int64_t index, int64_t t0, int block) {
  vf total = {0};
  if (index >= s->length) total = load(x->g_final[index - s->length][block]);
  for (int j = 0; j < s->taps && index - j >= t0; j++) total = vfma(load(x->w[j][block]), load(x->g[index - j - t0][block]), total);
  return total;
}

/* The gradient before SiLU of a tile, and its share in the weights' gradients. `taps` is a constant where that is worth it. */
INLINE void backward_block(const conv_args *a, scratch *x, const span *s, int64_t t0, int length, int block, int taps) {
  vf gw[MAX_TAPS + 1];
  for (int j = 0; j <= taps; j++) gw[j] = load(x->gw[j][block]);
  for (int t = 0; t < length; t++) {
    vf total = convolve(x, taps, t, block), gate = vsigmoid(total);
    vf gy = load_any(a->gy, (s->begin + t0 + t) * a->gy_stride + s->first + block * W, (int)a->type, s->n_channels - block * W);
    vf g = gy * gate * vfma(total, splat(1.0f) - gate, splat(1.0f));
    store(x->g[t][block], g);
    for (int j = 0; j < taps; j++) gw[j] = vfma(g, load(x->e[t + j][block]), gw[j]);
    gw[taps] = gw[taps] + g;
  }
  for (int j = 0; j <= taps; j++) store(x->gw[j][block], gw[j]);
}

static void backward_item(void *arg, int64_t item) {
  static _Thread_local scratch x;
  const conv_args *a = arg;
  const span s = span_of(a, item);
  const int before = s.taps - 1;
  const int64_t row = s.seq * a->channels;
  read_weights(a, &s, &x);
  memset(x.g, 0, sizeof x.g);
  memset(x.gw, 0, sizeof x.gw);
  read_columns(a->g_columns_out, a->column_type, row, &s, x.g_final);

  for (int64_t t0 = (s.length - 1) / TILE * TILE; t0 >= 0 && s.length; t0 -= TILE) {
    const int length = (int)MIN(TILE, s.length - t0);
    if (!t0) read_columns(a->columns_in, a->column_type, s.slot * a->channels, &s, x.e);
    for (int i = t0 ? 0 : before; i < length + before; i++) read_input(a, &s, t0 + i, x.e[i]);
    memmove(x.g + length, x.g, sizeof x.g[0] * (size_t)before);
    for (int b = 0; b < s.n_blocks; b++)
      if (s.taps == 4) backward_block(a, &x, &s, t0, length, b, 4);
      else backward_block(a, &x, &s, t0, length, b, s.taps);
    for (int t = 0; t < length; t++)
      for (int b = 0; b < s.n_blocks; b++)
        store_any(a->gx, (s.begin + t0 + t) * a->channels + s.first + b * W, (int)a->type, s.n_channels - b * W,
                  gradient(&x, &s, before + t0 + t, t0, b));
  }
  if (a->g_columns_in) {
    float g[MAX_TAPS][BLOCKS][W];
    for (int j = 0; j < before; j++)
      for (int b = 0; b < s.n_blocks; b++) store(g[j][b], gradient(&x, &s, j, 0, b));
    write_columns(a->g_columns_in, a->column_type, row, &s, g);
  }
  for (int c = 0; c < s.n_channels; c++)
    for (int j = 0; j <= s.taps; j++) a->sums[(row + s.first + c) * (s.taps + 1) + j] = x.gw[j][c / W][c % W];
}

static void add_up(void *arg, int64_t item) {
  const conv_args *a = arg;
  for (int64_t c = item * GROUP; c < MIN((item + 1) * GROUP, a->channels); c++)
    for (int64_t j = 0; j <= a->taps; j++) {
      float total = 0;
      for (int64_t seq = 0; seq < a->n_seqs; seq++) total += a->sums[(seq * a->channels + c) * (a->taps + 1) + j];
      if (j < a->taps) a->g_weight[c * a->taps + j] = total;
      else a->g_bias[c] = total;
    }
}

KERNEL(conv_backward) {
  const conv_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->tokens)) return BAD_BOUND;
  plait_for(a->n_seqs * n_groups(a), a->n_threads, backward_item, (void *)a);
  plait_for(n_groups(a), a->n_threads, add_up, (void *)a);
  return FINE;
}
