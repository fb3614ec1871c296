/* Attention of few queries over a paged KV cache (decode).
 *
 * A work item is one query token, one KV head (with the query heads that share it) and one span of positions, softmaxed on the
 * way; a second pass joins the spans in order. Spans begin at multiples of SPAN, so neither threads nor the cut into calls changes
 * a bit.
 */
#include <stdlib.h>

#include "parallel.h"
#include "vec.h"

#define SPAN 512
#define BLOCK 32 /* positions scored together */
#define MAX_HEAD 256
#define MAX_GROUP 64 /* query heads per KV head */

typedef struct {
  int64_t n_tokens, n_seqs, n_heads, n_kv_heads, d_head, page_size, n_pages, table_stride, q_stride, q_type, page_type, n_threads;
  const void *q;                 /* [n_tokens, n_heads, d_head], heads contiguous */
  const void *k_pages, *v_pages; /* [n_pages, page_size, n_kv_heads, d_head] */
  const float *k_scales, *v_scales; /* int8 pages: [n_pages, page_size, n_kv_heads]; else NULL */
  const int32_t *page_table;     /* [n_seqs, table_stride] */
  const int32_t *cu_seqlens;
  const int32_t *context_lens;
  void *y;        /* like q, contiguous */
  float *partial; /* scratch, room for [n_tokens][spans of a full table][n_heads][d_head + 2]: the largest score, the sum, the values */
} attention_args;

typedef struct {
  const attention_args *a;
  int64_t n_spans; /* of the longest context */
} attention_job;

INLINE int64_t sequence_of(const attention_args *a, int64_t token) {
  int64_t seq = 0;
  while (a->cu_seqlens[seq + 1] <= token) seq++;
  return seq;
}
/* Positions that a query sees: its own and those before it. */
INLINE int64_t visible(const attention_args *a, int64_t seq, int64_t token) {
  return a->context_lens[seq] + token - a->cu_seqlens[seq] + 1;
}
INLINE float *partial(const attention_job *job, int64_t token, int64_t span, int64_t head) {
  const attention_args *a = job->a;
  return a->partial + ((token * job->n_spans + span) * a->n_heads + head) * (a->d_head + 2);
}
/* The most positions any query sees, or -1 if a page is not one of the pool or the table has too few. */
INLINE int64_t longest_context(const attention_args *a) {
  int64_t longest = 0;
  for (int64_t seq = 0; seq < a->n_seqs; seq++) {
    const int64_t length = a->context_lens[seq] + (a->cu_seqlens[seq + 1] - a->cu_seqlens[seq]);
    if (a->context_lens[seq] < 0 || length > a->table_stride * a->page_size) return -1;
    for (int64_t page = 0; page * a->page_size < length; page++) {
      const int32_t number = a->page_table[seq * a->table_stride + page];
      if (number < 0 || number >= a->n_pages) return -1;
    }
    longest = MAX(longest, length);
  }
  return longest;
}

/* BLOCK rows of keys or values as floats, zeros behind d_head and behind `count`. */
INLINE void load_block(const attention_args *a, const void *pages, const float *scales, const int32_t *table, int64_t kv_head,
                       int64_t position, int count, int64_t padded, float *to) {
  int64_t page = position / a->page_size, offset = position % a->page_size;
  if (count < BLOCK) memset(to + count * padded, 0, sizeof(float) * (size_t)((BLOCK - count) * padded));
  for (int i = 0; i < count; i++, offset++) {
    if (offset == a->page_size) offset = 0, page++;
    const int64_t row = ((int64_t)table[page] * a->page_size + offset) * a->n_kv_heads + kv_head;
    for (int64_t d = 0; d < padded; d += W) {
      int n = (int)MIN(W, a->d_head - d);
      vf x;
      if (a->page_type == INT8) {
        vb bytes = {0};
        memcpy(&bytes, (const int8_t *)pages + row * a->d_head + d, (size_t)n);
        x = __builtin_convertvector(bytes, vf) * splat(scales[row]);
      } else {
        x = load_any(pages, row * a->d_head + d, (int)a->page_type, n);
      }
      store(to + i * padded + d, x);
    }
  }
}

typedef struct {
  float q[MAX_GROUP][MAX_HEAD], values[MAX_GROUP][MAX_HEAD], rows[BLOCK][MAX_HEAD], weights[MAX_GROUP][BLOCK];
  float largest[MAX_GROUP], total[MAX_GROUP], shrink[MAX_GROUP];
} __attribute__((aligned(64))) scratch;

/* Scores of a block, and what they change in the running largest score and sum. */
INLINE void weigh(scratch *x, int64_t group, int64_t padded, int count) {
  const float *keys = &x->rows[0][0];
  const vf nothing = splat(-__builtin_inff());
  vi seen[BLOCK / W];
  int32_t mask[BLOCK];
  for (int i = 0; i < BLOCK; i++) mask[i] = i < count ? -1 : 0;
  memcpy(seen, mask, sizeof seen);
  for (int64_t h = 0; h < group; h++) {
    vf score[BLOCK / W], top = splat(x->largest[h]), total = {0};
    for (int b = 0; b < BLOCK / W; b++) {
      vf v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) v[i] = (vf){0};
      for (int64_t d = 0; d < padded; d += W) {
        vf q = load(x->q[h] + d);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) v[i] = vfma(load(keys + (b * W + i) * padded + d), q, v[i]);
      }
      score[b] = vselect(seen[b], sums(v), nothing);
      top = vmax(top, score[b]);
    }
    const float largest = hmax(top);
    for (int b = 0; b < BLOCK / W; b++) {
      vf weight = vselect(seen[b], vexp(score[b] - splat(largest)), (vf){0});
      store(x->weights[h] + b * W, weight);
      total = total + weight;
    }
    float lane[W];
    store(lane, vexp(splat(x->largest[h] - largest)));
    x->shrink[h] = x->largest[h] == -__builtin_inff() ? 0.0f : lane[0];
    x->largest[h] = largest;
    x->total[h] = x->total[h] * x->shrink[h] + hsum(total);
  }
}

/* Weighted values of a block, n vectors of the head at a time (n a constant: independent sums hide the latency of each). */
INLINE void add_values(scratch *x, int64_t h, int64_t padded, int64_t d, int count, int n) {
  const float *rows = &x->rows[0][0] + d;
  float *values = x->values[h] + d;
  vf sum[4];
  for (int j = 0; j < n; j++) sum[j] = load(values + j * W) * splat(x->shrink[h]);
  for (int i = 0; i < count; i++) {
    vf weight = splat(x->weights[h][i]);
    for (int j = 0; j < n; j++) sum[j] = vfma(weight, load(rows + i * padded + j * W), sum[j]);
  }
  for (int j = 0; j < n; j++) store(values + j * W, sum[j]);
}

static void span_item(void *arg, int64_t item) {
  static _Thread_local scratch x;
  const attention_job *job = arg;
  const attention_args *a = job->a;
  const int64_t span = item % job->n_spans, kv_head = item / job->n_spans % a->n_kv_heads, token = item / job->n_spans / a->n_kv_heads;
  const int64_t seq = sequence_of(a, token), end = MIN((span + 1) * SPAN, visible(a, seq, token));
  if (span * SPAN >= end) return;
  const int64_t group = a->n_heads / a->n_kv_heads, padded = (a->d_head + W - 1) / W * W;
  const int32_t *table = a->page_table + seq * a->table_stride;
  const float scale = 1.0f / __builtin_sqrtf((float)a->d_head);
  for (int64_t h = 0; h < group; h++) {
    for (int64_t d = 0; d < padded; d += W) {
      int n = (int)MIN(W, a->d_head - d);
      store(x.q[h] + d, load_any(a->q, token * a->q_stride + (kv_head * group + h) * a->d_head + d, (int)a->q_type, n) * splat(scale));
      store(x.values[h] + d, (vf){0});
    }
    x.largest[h] = -__builtin_inff();
    x.total[h] = 0;
  }
  float *rows = &x.rows[0][0];
  for (int64_t position = span * SPAN; position < end; position += BLOCK) {
    const int count = (int)MIN(BLOCK, end - position);
    load_block(a, a->k_pages, a->k_scales, table, kv_head, position, count, padded, rows);
    weigh(&x, group, padded, count);
    load_block(a, a->v_pages, a->v_scales, table, kv_head, position, count, padded, rows);
    for (int64_t h = 0; h < group; h++)
      for (int64_t d = 0; d < padded;)
        if (padded - d >= 4 * W) add_values(&x, h, padded, d, count, 4), d += 4 * W;
        else add_values(&x, h, padded, d, count, 1), d += W;
  }
  for (int64_t h = 0; h < group; h++) {
    float *to = partial(job, token, span, kv_head * group + h);
    to[0] = x.largest[h];
    to[1] = x.total[h];
    memcpy(to + 2, x.values[h], sizeof(float) * (size_t)a->d_head);
  }
}

static void join_item(void *arg, int64_t item) {
  const attention_job *job = arg;
  const attention_args *a = job->a;
  const int64_t token = item / a->n_heads, head = item % a->n_heads;
  const int64_t n_spans = (visible(a, sequence_of(a, token), token) + SPAN - 1) / SPAN;
  float largest = -__builtin_inff(), total = 0;
  for (int64_t s = 0; s < n_spans; s++) largest = MAX(largest, partial(job, token, s, head)[0]);
  float *sum = partial(job, token, 0, head) + 2; /* the first span's values become the sum */
  for (int64_t s = 0; s < n_spans; s++) {
    const float *part = partial(job, token, s, head);
    float lane[W];
    store(lane, vexp(splat(part[0] - largest)));
    total += part[1] * lane[0];
    for (int64_t d = 0; d < a->d_head; d++) sum[d] = (s ? sum[d] : 0) + part[2 + d] * lane[0];
  }
  for (int64_t d = 0; d < a->d_head; d++) store_one(a->y, (token * a->n_heads + head) * a->d_head + d, (int)a->q_type, sum[d] / total);
}

KERNEL(paged_attention) {
  const attention_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->n_tokens) || a->cu_seqlens[a->n_seqs] < a->n_tokens) return BAD_BOUND;
  const int64_t longest = longest_context(a);
  if (longest < 0) return BAD_PAGE;
  attention_job job = {.a = a, .n_spans = (longest + SPAN - 1) / SPAN};
  plait_for(a->n_tokens * a->n_kv_heads * job.n_spans, a->n_threads, span_item, &job);
  const int64_t n_threads = a->n_tokens * a->n_heads * a->d_head < 32768 ? 1 : a->n_threads;
  plait_for(a->n_tokens * a->n_heads, n_threads, join_item, &job);
  return FINE;
}
