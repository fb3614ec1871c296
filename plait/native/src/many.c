/* What lies before and after the library's products of many tokens with int8 weights: weights widened a block at a time, activations
 * rounded to int8 (an opt-in), and row scales with SwiGLU's gate in one pass over the product.
 */
#include "parallel.h"
#include "vec.h"

enum { INT32 = 3 };
#define ROWS_PER_ITEM 8

/* ---- int8 to float or bf16, exact ---- */

typedef struct {
  int64_t n, y_type, n_threads;
  const int8_t *x;
  void *y;
} widen_args;

#define WIDEN_STEP 16384

INLINE void widen_run(const int8_t *from, void *to, int type, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  if (type == BF16)
    for (; i + 32 <= n; i += 32) {
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i))));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i + 16))));
      _mm512_storeu_si512((bf16 *)to + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
#endif
  for (; i + W <= n; i += W) store_any(to, i, type, W, __builtin_convertvector(*(const vb_at *)(from + i), vf));
  for (; i < n; i++) store_one(to, i, type, from[i]);
}

static void widen_item(void *arg, int64_t item) {
  const widen_args *a = arg;
  const int64_t first = item * WIDEN_STEP, n = MIN(WIDEN_STEP, a->n - first);
  if (a->y_type == F32) widen_run(a->x + first, (float *)a->y + first, F32, n);
  else widen_run(a->x + first, (bf16 *)a->y + first, BF16, n);
}

KERNEL(widen) {
  const widen_args *a = args;
  plait_for((a->n + WIDEN_STEP - 1) / WIDEN_STEP, a->n_threads, widen_item, (void *)a);
  return FINE;
}

/* ---- activations to int8, a scale for each row ---- */

typedef struct {
  int64_t n_rows, width, x_stride, type, n_threads;
  const void *x;
  int8_t *y;    /* [n_rows, width] */
  float *scale; /* [n_rows]; NaN for a row with a NaN or an infinity, whose y is 0 */
} quantize_args;

static void quantize_item(void *arg, int64_t item) {
  const quantize_args *a = arg;
  for (int64_t row = item * ROWS_PER_ITEM; row < MIN((item + 1) * ROWS_PER_ITEM, a->n_rows); row++) {
    vf top = {0}, broken = {0};
    for (int64_t i = 0; i < a->width; i += W) {
      vf x = load_any(a->x, row * a->x_stride + i, (int)a->type, (int)MIN(W, a->width - i));
      top = vmax(vabs(x), top);
      broken = vfma(x, (vf){0}, broken);
    }
    const int is_broken = hsum(broken) != 0;
    const float scale = MAX(hmax(top), 1e-30f) / 127.0f;
    const vf inverse = splat(is_broken ? 0.0f : 1.0f / scale), half = splat(0.5f);
    for (int64_t i = 0; i < a->width; i += W) {
      const int n = (int)MIN(W, a->width - i);
      vf x = is_broken ? (vf){0} : load_any(a->x, row * a->x_stride + i, (int)a->type, n) * inverse;
      vb q = __builtin_convertvector(__builtin_convertvector(x + vselect(x < (vf){0}, -half, half), vi), vb);
      memcpy(a->y + row * a->width + i, &q, (size_t)n);
    }
    a->scale[row] = is_broken ? __builtin_nanf("") : scale;
  }
}

KERNEL(quantize) {
  const quantize_args *a = args;
  plait_for((a->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, a->n_threads, quantize_item, (void *)a);
  return FINE;
}

/* ---- y = product * scales, or silu(gate) * up of two such products side by side ---- */

typedef struct {
  int64_t n_rows, n, product_stride, y_stride, product_type, y_type, n_threads; /* n: columns of y */
  const void *product;           /* [n_rows, n], or [n_rows, 2 n], the gate's columns first; float, bf16 or int32 */
  const float *scale, *up_scale; /* [n] of the product's columns; NULL: none. up_scale of the second n, where there is a gate */
  const float *x_scale;          /* [n_rows] or NULL */
  void *y;
  int64_t gated;
} finish_args;

INLINE vf scaled(const finish_args *a, int64_t row, int64_t column, const float *scale, int64_t i, int n) {
  vf x;
  const int64_t at = row * a->product_stride + column;
  if (a->product_type == INT32) {
    vi q = {0};
    memcpy(&q, (const int32_t *)a->product + at, (size_t)n * 4);
    x = __builtin_convertvector(q, vf) * splat(a->x_scale[row]);
  } else {
    x = load_any(a->product, at, (int)a->product_type, n);
  }
  return scale ? x * load_any(scale, i, F32, n) : x;
}

static void finish_item(void *arg, int64_t item) {
  const finish_args *a = arg;
  for (int64_t row = item * ROWS_PER_ITEM; row < MIN((item + 1) * ROWS_PER_ITEM, a->n_rows); row++)
    for (int64_t i = 0; i < a->n; i += W) {
      const int n = (int)MIN(W, a->n - i);
      vf y = scaled(a, row, i, a->scale, i, n);
      if (a->gated) y = vsilu(y) * scaled(a, row, a->n + i, a->up_scale, i, n);
      store_any(a->y, row * a->y_stride + i, (int)a->y_type, n, y);
    }
}

KERNEL(finish) {
  const finish_args *a = args;
  plait_for((a->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, a->n_threads, finish_item, (void *)a);
  return FINE;
}
