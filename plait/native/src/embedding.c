/* Rows of a table, by their numbers: the look-up of token ids. */
#include "parallel.h"
#include "vec.h"

typedef struct {
  int64_t n_ids, n_rows, width, type, table_type;
  const int64_t *ids;
  const void *table;  /* [n_rows, width] */
  const float *scale; /* [n_rows], of an int8 table */
  void *y;            /* [n_ids, width] */
} embedding_args;

KERNEL(embedding) {
  const embedding_args *a = args;
  if (!all_within(a->ids, a->n_ids, a->n_rows)) return BAD_TOKEN_ID;
  for (int64_t i = 0; i < a->n_ids; i++)
    for (int64_t d = 0; d < a->width; d += W) {
      const int n = (int)MIN(W, a->width - d);
      const int64_t from = a->ids[i] * a->width + d;
      vf x;
      if (a->table_type == INT8) {
        vb bytes = {0};
        memcpy(&bytes, (const int8_t *)a->table + from, (size_t)n);
        x = __builtin_convertvector(bytes, vf) * splat(a->scale[a->ids[i]]);
      } else {
        x = load_any(a->table, from, (int)a->table_type, n);
      }
      store_any(a->y, i * a->width + d, (int)a->type, n, x);
    }
  return FINE;
}
