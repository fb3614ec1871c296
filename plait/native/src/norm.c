/* RMSNorm over the last dim: y = x / sqrt(mean(x^2) + eps) * weight, cast to x's type before it meets the weight. And of x + residual. */
#include "parallel.h"
#include "vec.h"

#define MAX_SUMS 64

typedef struct {
  int64_t n_rows, width, x_stride, type, weight_type, y_type, n_threads;
  const void *x, *weight;
  void *y;
  double eps;
  int64_t residual_stride;
  const void *residual; /* of x's type and shape, or NULL; then x + residual, rounded, is normed in x's place */
  void *sum;            /* and written here, contiguous */
  /* backward only; gy [n_rows, width] of y_type, gx of type, both contiguous */
  const void *gy;
  void *gx;
  float *g_weight, *sums; /* sums: scratch [MAX_SUMS][width] */
} norm_args;

#define ROWS_PER_ITEM 16

INLINE float inverse_rms(const norm_args *a, int64_t row) {
  vf total[4] = {{0}, {0}, {0}, {0}};
  for (int64_t i = 0, k = 0; i < a->width; i += W, k++) {
    vf x = load_any(a->x, row * a->x_stride + i, (int)a->type, (int)MIN(W, a->width - i));
    total[k & 3] = vfma(x, x, total[k & 3]);
  }
  float mean = hsum((total[0] + total[1]) + (total[2] + total[3])) / (float)a->width;
  return 1.0f / __builtin_sqrtf(mean + (float)a->eps);
}

INLINE vf normed(const norm_args *a, int64_t row, int64_t i, int n, float scale) {
  vf x = load_any(a->x, row * a->x_stride + i, (int)a->type, n) * splat(scale);
  return a->type == BF16 ? vwiden(vnarrow(x)) : x;
}

INLINE void add_residual(const norm_args *a, int64_t row) {
  for (int64_t i = 0; i < a->width; i += W) {
    int n = (int)MIN(W, a->width - i);
    vf x = load_any(a->x, row * a->x_stride + i, (int)a->type, n);
    store_any(a->sum, row * a->width + i, (int)a->type, n, x + load_any(a->residual, row * a->residual_stride + i, (int)a->type, n));
  }
}

static void forward_item(void *arg, int64_t item) {
  const norm_args *given = arg, *a = given;
  norm_args of_sum = *given;
  if (given->residual) of_sum.x = given->sum, of_sum.x_stride = given->width, a = &of_sum;
  for (int64_t row = item * ROWS_PER_ITEM; row < MIN((item + 1) * ROWS_PER_ITEM, a->n_rows); row++) {
    if (given->residual) add_residual(given, row);
    const float scale = inverse_rms(a, row);
    for (int64_t i = 0; i < a->width; i += W) {
      int n = (int)MIN(W, a->width - i);
      vf y = normed(a, row, i, n, scale) * load_any(a->weight, i, (int)a->weight_type, n);
      store_any(a->y, row * a->width + i, (int)a->y_type, n, y);
    }
  }
}

KERNEL(norm_forward) {
  const norm_args *a = args;
  int64_t n_threads = a->n_rows * a->width < 65536 ? 1 : a->n_threads;
  plait_for((a->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, n_threads, forward_item, (void *)a);
  return FINE;
}

INLINE int64_t rows_per_sum(const norm_args *a) { return MAX(ROWS_PER_ITEM, (a->n_rows + MAX_SUMS - 1) / MAX_SUMS); }

/* With g = gy weight and s = 1/rms: gx = s (g - x s^2 mean(g x)). */
static void backward_item(void *arg, int64_t item) {
  const norm_args *a = arg;
  float *sums = a->sums + item * a->width;
  memset(sums, 0, sizeof(float) * (size_t)a->width);
  for (int64_t row = item * rows_per_sum(a); row < MIN((item + 1) * rows_per_sum(a), a->n_rows); row++) {
    const float scale = inverse_rms(a, row);
    vf total = {0};
    for (int64_t i = 0; i < a->width; i += W) {
      int n = (int)MIN(W, a->width - i);
      vf gy = load_any(a->gy, row * a->width + i, (int)a->y_type, n);
      vf g = gy * load_any(a->weight, i, (int)a->weight_type, n);
      total = vfma(g, load_any(a->x, row * a->x_stride + i, (int)a->type, n), total);
      store_any(sums, i, F32, n, vfma(gy, normed(a, row, i, n, scale), load_any(sums, i, F32, n)));
    }
    const float pull = hsum(total) / (float)a->width * scale * scale;
    for (int64_t i = 0; i < a->width; i += W) {
      int n = (int)MIN(W, a->width - i);
      vf g = load_any(a->gy, row * a->width + i, (int)a->y_type, n) * load_any(a->weight, i, (int)a->weight_type, n);
      vf x = load_any(a->x, row * a->x_stride + i, (int)a->type, n);
      store_any(a->gx, row * a->width + i, (int)a->type, n, splat(scale) * vfma(-x, splat(pull), g));
    }
  }
}

KERNEL(norm_backward) {
  const norm_args *a = args;
  int64_t n_sums = (a->n_rows + rows_per_sum(a) - 1) / rows_per_sum(a);
  plait_for(n_sums, a->n_threads, backward_item, (void *)a);
  for (int64_t i = 0; i < a->width; i++) a->g_weight[i] = 0;
  for (int64_t part = 0; part < n_sums; part++)
    for (int64_t i = 0; i < a->width; i++) a->g_weight[i] += a->sums[part * a->width + i];
  return FINE;
}
