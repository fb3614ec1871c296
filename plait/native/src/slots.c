/* States out of their pool's slots and back, as bytes: whatever their dtype. */
#include <string.h>

#include "parallel.h"
#include "vec.h"

#define PIECE 65536 /* bytes that one work item copies */

typedef struct {
  int64_t n, row_bytes, n_slots, n_threads;
  const int64_t *slots;
  const uint8_t *fresh; /* [n]: not zero where a sequence begins, whatever its slot holds; NULL: nowhere */
  char *pool, *rows;    /* [n_slots, row_bytes], [n, row_bytes] */
} slots_args;

INLINE int64_t n_pieces(const slots_args *a) { return (a->row_bytes + PIECE - 1) / PIECE; }

static void take_item(void *arg, int64_t item) {
  const slots_args *a = arg;
  const int64_t row = item / n_pieces(a), from = item % n_pieces(a) * PIECE;
  const size_t n = (size_t)MIN(PIECE, a->row_bytes - from);
  char *to = a->rows + row * a->row_bytes + from;
  if (a->fresh && a->fresh[row]) memset(to, 0, n);
  else memcpy(to, a->pool + a->slots[row] * a->row_bytes + from, n);
}

static void put_item(void *arg, int64_t item) {
  const slots_args *a = arg;
  const int64_t row = item / n_pieces(a), from = item % n_pieces(a) * PIECE;
  memcpy(a->pool + a->slots[row] * a->row_bytes + from, a->rows + row * a->row_bytes + from, (size_t)MIN(PIECE, a->row_bytes - from));
}

static int copy(const slots_args *a, plait_body item) {
  if (!all_within(a->slots, a->n, a->n_slots)) return BAD_SLOT;
  plait_for(a->n * n_pieces(a), a->n * a->row_bytes < (1 << 20) ? 1 : a->n_threads, item, (void *)a);
  return FINE;
}

KERNEL(take_slots) { return copy(args, take_item); }
KERNEL(put_slots) { return copy(args, put_item); }
