/* Routing: softmax over all experts in fp32, then the most probable few, not renormalised. Of equals the first comes first. */
#include "parallel.h"
#include "vec.h"

#define MAX_EXPERTS 512

typedef struct {
  int64_t n_tokens, n_experts, top_k, stride, type;
  const void *logits; /* [n_tokens, n_experts] */
  float *weights;     /* [n_tokens, top_k] */
  int64_t *expert_ids;
} route_args;

KERNEL(route) {
  const route_args *a = args;
  if (a->n_experts > MAX_EXPERTS) return BAD_EXPERT_ID;
  float p[MAX_EXPERTS];
  for (int64_t token = 0; token < a->n_tokens; token++) {
    vf total = {0};
    for (int64_t e = 0; e < a->n_experts; e++) p[e] = load_one(a->logits, token * a->stride + e, (int)a->type);
    float largest = -__builtin_inff();
    for (int64_t e = 0; e < a->n_experts; e++) largest = MAX(p[e], largest);
    for (int64_t e = 0; e < a->n_experts; e += W) {
      const int n = (int)MIN(W, a->n_experts - e);
      vf x = load_any(p, e, F32, n) - splat(largest);
      x = vexp(x);
      store_any(p, e, F32, n, x);
      total = total + load_any(p, e, F32, n); /* lanes behind the last expert are zero again */
    }
    const float sum = hsum(total);
    for (int64_t k = 0; k < a->top_k; k++) {
      int64_t best = -1;
      for (int64_t e = 0; e < a->n_experts; e++)
        if (p[e] >= 0 && (best < 0 || p[e] > p[best])) best = e;
      if (best < 0) best = k; /* logits of NaN: the weights say so */
      a->weights[token * a->top_k + k] = p[best] / sum;
      a->expert_ids[token * a->top_k + k] = best;
      p[best] = -1.0f;
    }
  }
  return FINE;
}
