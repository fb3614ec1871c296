/* The sum of two tensors of one type and shape, rounded to it; or one tensor in another type. */
#include "parallel.h"
#include "vec.h"

typedef struct {
  int64_t n, type, y_type;
  const void *a, *b; /* b NULL: a alone */
  void *y;
} add_args;

KERNEL(add) {
  const add_args *a = args;
  for (int64_t i = 0; i < a->n; i += W) {
    const int n = (int)MIN(W, a->n - i);
    vf x = load_any(a->a, i, (int)a->type, n);
    if (a->b) x = x + load_any(a->b, i, (int)a->type, n);
    store_any(a->y, i, (int)a->y_type, n, x);
  }
  return FINE;
}
