/* New keys and values into the pages of their sequences (float or bf16 pages). */
#include "parallel.h"
#include "vec.h"

typedef struct {
  int64_t n_tokens, n_seqs, row, page_size, n_pages, table_stride, k_stride, v_stride, type, page_type; /* row: n_kv_heads * d_head */
  const void *k, *v;        /* [tokens, row] */
  void *k_pages, *v_pages;  /* [n_pages, page_size, row] */
  const int32_t *page_table, *cu_seqlens, *context_lens;
} write_args;

INLINE void copy_row(const write_args *a, const void *from, int64_t at, void *to, int64_t place) {
  for (int64_t i = 0; i < a->row; i += W) {
    const int n = (int)MIN(W, a->row - i);
    store_any(to, place * a->row + i, (int)a->page_type, n, load_any(from, at + i, (int)a->type, n));
  }
}

KERNEL(write_pages) {
  const write_args *a = args;
  if (!are_bounds(a->cu_seqlens, a->n_seqs, a->n_tokens)) return BAD_BOUND;
  for (int64_t seq = 0; seq < a->n_seqs; seq++) {
    int64_t position = a->context_lens[seq];
    for (int64_t token = a->cu_seqlens[seq]; token < a->cu_seqlens[seq + 1]; token++, position++) {
      if (position < 0 || position >= a->table_stride * a->page_size) return BAD_PAGE;
      const int64_t page = a->page_table[seq * a->table_stride + position / a->page_size];
      if (page < 0 || page >= a->n_pages) return BAD_PAGE;
      const int64_t place = page * a->page_size + position % a->page_size;
      copy_row(a, a->k, token * a->k_stride, a->k_pages, place);
      copy_row(a, a->v, token * a->v_stride, a->v_pages, place);
    }
  }
  return FINE;
}
