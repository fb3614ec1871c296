/* Products of few tokens with large weights at the speed of memory: x W^T, and SwiGLU experts.
 *
 * Weights are float, bf16 or int8 with a float scale per output row. Activations are float or bf16, prepared once per call:
 *
 *   for int8 weights  as fixed point of 23 bits below a power of two above the row's largest ("exact": a bf16 no smaller than 2^-14
 *                     of the largest is itself), or of 8 bits (an opt-in). Products and sums of integers are exact in any order.
 *   for bf16 weights  as bf16 where an instruction multiplies those and sums in float, else as floats, even and odd ones apart.
 *   for float weights as floats.
 *
 * A sum over the width is made in an order that the width alone decides: neither the number of tokens nor of threads changes a bit.
 */
#include <stdlib.h>

#include "parallel.h"
#include "vec.h"

#define UNIT 16 /* output rows computed together */
#define TILE 4  /* tokens, and weight rows, multiplied together */
#define STEP 128 /* activations are padded with zeros to a multiple of this */

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
/* Fixed point in three signed bytes, for the instruction that multiplies those by unsigned ones: the weights, 128 added to each. What that
 * adds to a sum is 128 times the sum of the activations, the same for every row. Without the instruction: 12 bits in int16, twice. */
#define BYTES 1
#else
#define BYTES 0
#endif

typedef int16_t vs __attribute__((vector_size(2 * W)));
typedef vi vi_at __attribute__((aligned(1), may_alias));
typedef vs vs_at __attribute__((aligned(2), may_alias));
typedef int8_t vhalf __attribute__((vector_size(2 * W)));
typedef vhalf vhalf_at __attribute__((aligned(1), may_alias));

typedef struct { /* the activations of one token */
  void *data;
  double scale;  /* of fixed point */
  double excess; /* 128 times the sum of its fixed point numbers */
} row;

typedef struct {
  int64_t width, x_type, weight_type, bits; /* of the activations with int8 weights: 24 (three limbs) or 8 */
} format;

INLINE int64_t padded(int64_t width) { return (width + STEP - 1) / STEP * STEP; }
INLINE int64_t row_bytes(int64_t width) { return 4 * padded(width); }
INLINE int pairs_of_bf16(const format *f) {
#if defined(__AVX512BF16__)
  return f->weight_type == BF16 && f->x_type == BF16;
#else
  return (void)f, 0;
#endif
}

/* Memory that a thread keeps from call to call. */
static void *reserve(int which, int64_t size) {
  static _Thread_local struct {
    void *memory;
    int64_t size;
  } kept[4];
  if (kept[which].size < size) {
    free(kept[which].memory);
    kept[which].size = (size + 4095) / 4096 * 4096;
    kept[which].memory = aligned_alloc(64, (size_t)kept[which].size);
    if (!kept[which].memory) abort();
  }
  return kept[which].memory;
}

/* ---- activations ---- */

#if BYTES
INLINE double integer_sum(vi q) { /* at most 16 numbers of 23 bits: an int32 holds their sum */
  int32_t lane[W], sum = 0;
  memcpy(lane, &q, sizeof lane);
  for (int i = 0; i < W; i++) sum += lane[i];
  return sum;
}
#endif

static row prepare_fixed(const void *x, int64_t at, int type, int64_t width, int bits, void *to) {
  vf top = {0}, zero = {0};
  for (int64_t i = 0; i < width; i += W) {
    vf v = load_any(x, at + i, type, (int)MIN(W, width - i));
    top = vmax(vabs(v), top);
    zero = vfma(v, (vf){0}, zero);
  }
  const float largest = hmax(top);
  const int broken = hsum(zero) != 0; /* a NaN or an infinity: the results shall be NaN */
  int exponent;
  __builtin_frexp(largest, &exponent);
  const double scale = bits == 8 ? MAX(largest, 1e-30f) / 127.0 : __builtin_ldexp(1.0, MAX(exponent, -100) - 22);
  const vf inverse = splat(broken ? 0.0f : (float)(1.0 / scale)), half = splat(0.5f);
  const int64_t full = padded(width);
  double sum = 0;
  for (int64_t i = 0; i < full; i += W) {
    vf v = {0};
    if (i < width && !broken) v = load_any(x, at + i, type, (int)MIN(W, width - i)) * inverse;
    vi q = __builtin_convertvector(v + vselect(v < (vf){0}, -half, half), vi);
#if BYTES
    sum += integer_sum(q);
    for (int limb = 0; limb < bits / 8; limb++) { /* signed digits: what is above 127 is carried */
      vi digit = bits == 8 ? q : ((q << 24) >> 24);
      *(vb_at *)((int8_t *)to + limb * full + i) = __builtin_convertvector(digit, vb);
      q = (q - digit) >> 8;
    }
#else
    *(vs_at *)((int16_t *)to + i) = __builtin_convertvector(bits == 8 ? q : q & 4095, vs);
    if (bits == 24) *(vs_at *)((int16_t *)to + full + i) = __builtin_convertvector(q >> 12, vs);
#endif
  }
  return (row){to, broken ? (double)__builtin_nanf("") : scale, 128 * sum};
}

static row prepare(const format *f, const void *x, int64_t at, int type, void *to) {
  const int64_t width = f->width, full = padded(width);
  if (f->weight_type == INT8) return prepare_fixed(x, at, type, width, (int)f->bits, to);
  if (pairs_of_bf16(f)) {
    for (int64_t i = 0; i < full; i += W)
      store_any(to, i, BF16, W, i < width ? load_any(x, at + i, type, (int)MIN(W, width - i)) : (vf){0});
    return (row){to, 1, 0};
  }
  float *even = to, *odd = even + full / 2, *plain = to;
  for (int64_t i = 0; i < full; i++) {
    float v = i < width ? load_one(x, at + i, type) : 0.0f;
    if (f->weight_type == F32) plain[i] = v;
    else (i & 1 ? odd : even)[i / 2] = v;
  }
  return (row){to, 1, 0};
}

/* How far ahead of a load to fetch, in bytes: the same place in the next rows, AHEAD or more away. Hardware follows long rows by itself,
 * but not far enough; of short ones it has lost the trail by the time it has found it. Into the second cache, not the first: measured,
 * 1.5 to 2 times the bytes a second from memory. */
#define AHEAD 8192
INLINE int64_t fetch_distance(int64_t row_bytes) { return (AHEAD + TILE * row_bytes - 1) / (TILE * row_bytes) * TILE * row_bytes; }

/* ---- a unit of 16 weight rows times some tokens: out[token][16] ---- */

/* TILE rows (each `stride` elements after the one before) times n tokens, n a constant. */
INLINE void dot_f32(const float *w, const int64_t *at, int64_t width, const row *x, int n, vf (*acc)[UNIT]) {
  vf sum[TILE][TILE] = {{{0}}};
  const int64_t ahead = fetch_distance(4 * width);
  for (int64_t i = 0; i < width; i += W) {
    int left = (int)MIN(W, width - i);
    vf v[TILE];
    for (int r = 0; r < TILE; r++) {
      __builtin_prefetch((const char *)(w + at[r] + i) + ahead, 0, 2);
      v[r] = load_any(w, at[r] + i, F32, left);
    }
    for (int t = 0; t < n; t++) {
      vf xt = load((const float *)x[t].data + i);
      for (int r = 0; r < TILE; r++) sum[t][r] = vfma(v[r], xt, sum[t][r]);
    }
  }
  for (int t = 0; t < n; t++)
    for (int r = 0; r < TILE; r++) acc[t][r] = sum[t][r];
}

/* A vector's worth of bytes, or what is left of it and zeros. */
INLINE vi load_bytes(const void *p, int64_t left) {
  if (left >= 4 * W) return *(const vi_at *)p;
  vi v = {0};
  memcpy(&v, p, (size_t)left);
  return v;
}

INLINE void dot_bf16(const bf16 *w, const int64_t *at, int64_t width, const row *x, int n, vf (*acc)[UNIT]) {
  vf sum[TILE][TILE] = {{{0}}};
  const int64_t half = padded(width) / 2, ahead = fetch_distance(2 * width);
  for (int64_t i = 0; i < width; i += 2 * W) {
    vf low[TILE], high[TILE];
    for (int r = 0; r < TILE; r++) {
      __builtin_prefetch((const char *)(w + at[r] + i) + ahead, 0, 2);
      vu pair = (vu)load_bytes(w + at[r] + i, 2 * (width - i));
      low[r] = (vf)(pair << 16), high[r] = (vf)(pair & 0xffff0000u);
    }
    for (int t = 0; t < n; t++) {
      vf even = load((const float *)x[t].data + i / 2), odd = load((const float *)x[t].data + half + i / 2);
      for (int r = 0; r < TILE; r++) sum[t][r] = vfma(high[r], odd, vfma(low[r], even, sum[t][r]));
    }
  }
  for (int t = 0; t < n; t++)
    for (int r = 0; r < TILE; r++) acc[t][r] = sum[t][r];
}

#if defined(__AVX512BF16__)
INLINE void dot_pairs(const bf16 *w, const int64_t *at, int64_t width, const row *x, int n, vf (*acc)[UNIT]) {
  vf sum[TILE][TILE] = {{{0}}};
  const int64_t ahead = fetch_distance(2 * width);
  for (int64_t i = 0; i < width; i += 32) {
    __m512bh v[TILE];
    for (int r = 0; r < TILE; r++) {
      __builtin_prefetch((const char *)(w + at[r] + i) + ahead, 0, 2);
      v[r] = (__m512bh)load_bytes(w + at[r] + i, 2 * (width - i));
    }
    for (int t = 0; t < n; t++) {
      __m512bh xt = (__m512bh)_mm512_loadu_si512((const bf16 *)x[t].data + i);
      for (int r = 0; r < TILE; r++) sum[t][r] = (vf)_mm512_dpbf16_ps((__m512)sum[t][r], xt, v[r]);
    }
  }
  for (int t = 0; t < n; t++)
    for (int r = 0; r < TILE; r++) acc[t][r] = sum[t][r];
}
#endif

static void dot_unit(const format *f, const void *w, const int64_t *at, const row *x, int n, float (*out)[UNIT]) {
  vf acc[TILE][UNIT];
  for (int r = 0; r < UNIT; r += TILE) {
    vf(*part)[UNIT] = (vf(*)[UNIT])&acc[0][r];
#define CALL(dot) (n == 1 ? dot(w, at + r, f->width, x, 1, part) : n == 2 ? dot(w, at + r, f->width, x, 2, part) \
                   : n == 3 ? dot(w, at + r, f->width, x, 3, part) : dot(w, at + r, f->width, x, 4, part))
    if (f->weight_type == F32) CALL(dot_f32);
#if defined(__AVX512BF16__)
    else if (pairs_of_bf16(f)) CALL(dot_pairs);
#endif
    else CALL(dot_bf16);
  }
  for (int t = 0; t < n; t++)
    for (int i = 0; i < UNIT; i += W) store(out[t] + i, sums(acc[t] + i));
}

/* Sums of int8 weights with the limbs of one token: total[limb][row] of a unit. `bits` is a constant wherever these are called. */
#if defined(__AVX512VNNI__)
/* In assembly because gcc 12 copies and spills the sums of the intrinsic, at half the speed. */
#define DOT(sum, weights, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x))

INLINE __m128i sums_of_4(const __m512i *v) {
  __m256i half[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) half[r] = _mm256_add_epi32(_mm512_castsi512_si256(v[r]), _mm512_extracti64x4_epi64(v[r], 1));
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

INLINE void dot_limbs(const int8_t *w, const int64_t *at, int64_t width, const void *x, int bits, int32_t (*total)[UNIT]) {
  const int n_limbs = bits / 8;
  const int64_t full = padded(width), whole = width / 64 * 64;
  const __mmask64 rest = (1ull << (width - whole)) - 1;
  const __m512i to_unsigned = _mm512_set1_epi8(-128);
  for (int r0 = 0; r0 < UNIT; r0 += TILE) {
    const int8_t *row0 = w + at[r0], *row1 = w + at[r0 + 1], *row2 = w + at[r0 + 2], *row3 = w + at[r0 + 3];
    const int8_t *limb0 = x, *limb1 = limb0 + full, *limb2 = limb1 + full, *ahead = row0 + MAX(TILE * width, AHEAD);
    __m512i sum[3][TILE];
#pragma GCC unroll 4
    for (int r = 0; r < TILE; r++) sum[0][r] = sum[1][r] = sum[2][r] = _mm512_setzero_si512();
#define ADD_ROW(r, bytes)                                          \
  {                                                                \
    const __m512i v = _mm512_xor_si512(bytes, to_unsigned);        \
    DOT(sum[0][r], v, x0);                                         \
    if (n_limbs == 3) {                                            \
      DOT(sum[1][r], v, x1);                                       \
      DOT(sum[2][r], v, x2);                                       \
    }                                                              \
  }
#define LOAD_X(i)                                                                                     \
  const __m512i x0 = _mm512_loadu_si512(limb0 + i), x1 = n_limbs == 3 ? _mm512_loadu_si512(limb1 + i) : x0, \
                x2 = n_limbs == 3 ? _mm512_loadu_si512(limb2 + i) : x0
    for (int64_t i = 0; i < whole; i += 64, ahead += 64 * TILE) {
      LOAD_X(i);
      _mm_prefetch((const char *)ahead, _MM_HINT_T1); /* the next rows: these four are left to right while memory is read in order */
      _mm_prefetch((const char *)ahead + 64, _MM_HINT_T1);
      _mm_prefetch((const char *)ahead + 128, _MM_HINT_T1);
      _mm_prefetch((const char *)ahead + 192, _MM_HINT_T1);
      ADD_ROW(0, _mm512_loadu_si512(row0 + i));
      ADD_ROW(1, _mm512_loadu_si512(row1 + i));
      ADD_ROW(2, _mm512_loadu_si512(row2 + i));
      ADD_ROW(3, _mm512_loadu_si512(row3 + i));
    }
    if (rest) {
      LOAD_X(whole);
      ADD_ROW(0, _mm512_maskz_loadu_epi8(rest, row0 + whole));
      ADD_ROW(1, _mm512_maskz_loadu_epi8(rest, row1 + whole));
      ADD_ROW(2, _mm512_maskz_loadu_epi8(rest, row2 + whole));
      ADD_ROW(3, _mm512_maskz_loadu_epi8(rest, row3 + whole));
    }
#undef ADD_ROW
#undef LOAD_X
    for (int limb = 0; limb < n_limbs; limb++) _mm_storeu_si128((__m128i *)(total[limb] + r0), sums_of_4(sum[limb]));
  }
}

#elif W >= 8
/* As `sums` of vec.h, of integers: lane i of the result is the sum of the lanes of v[i]. */
INLINE vi integer_sums(vi *v) {
#define HALVE(s)                                                                   \
  for (int i = 0; i < s; i++)                                                      \
    v[i] = (vi)shuffle2((vf)v[i], (vf)v[i + s], LOW_##s) + (vi)shuffle2((vf)v[i], (vf)v[i + s], HIGH_##s);
#if W >= 16
  HALVE(8)
#endif
  HALVE(4) HALVE(2) HALVE(1)
#undef HALVE
  return v[0];
}

INLINE void dot_limbs(const int8_t *w, const int64_t *at, int64_t width, const void *x, int bits, int32_t (*total)[UNIT]) {
  const int64_t full = padded(width), ahead = fetch_distance(width);
  for (int r0 = 0; r0 < UNIT; r0 += TILE) {
    vi sum[4 * TILE];
    for (int i = 0; i < 4 * TILE; i++) sum[i] = (vi){0};
#if BYTES
    const int8_t *limbs = x;
    for (int64_t i = 0; i < width; i += 4 * W)
      for (int r = 0; r < TILE; r++) {
        __builtin_prefetch(w + at[r0 + r] + i + ahead, 0, 2);
        const __m256i v = (__m256i)(load_bytes(w + at[r0 + r] + i, width - i) ^ (int32_t)0x80808080);
        for (int limb = 0; limb < bits / 8; limb++) {
          vi *to = sum + TILE * limb + r;
          *to = (vi)_mm256_dpbusd_avx_epi32((__m256i)*to, v, *(const __m256i_u *)(limbs + limb * full + i));
        }
      }
#else
    const int16_t *limbs = x;
    for (int64_t i = 0; i < width; i += 2 * W)
      for (int r = 0; r < TILE; r++) {
        vhalf bytes = {0};
        __builtin_prefetch(w + at[r0 + r] + i + ahead, 0, 2);
        if (width - i >= 2 * W) bytes = *(const vhalf_at *)(w + at[r0 + r] + i);
        else memcpy(&bytes, w + at[r0 + r] + i, (size_t)(width - i));
        for (int limb = 0; limb < (bits == 24 ? 2 : 1); limb++) {
          const int16_t *x16 = limbs + limb * full + i;
#if W == 16
          sum[TILE * limb + r] += (vi)_mm512_madd_epi16(_mm512_cvtepi8_epi16((__m256i)bytes), _mm512_loadu_si512(x16));
#else
          sum[TILE * limb + r] += (vi)_mm256_madd_epi16(_mm256_cvtepi8_epi16((__m128i)bytes), _mm256_loadu_si256((const void *)x16));
#endif
        }
      }
#endif
    int32_t tile[4][TILE];
    for (int i = 0; i < 4 * TILE; i += W) {
      vi v = integer_sums(sum + i);
      memcpy(tile[i / TILE], &v, sizeof v);
    }
    for (int limb = 0; limb < 3; limb++) memcpy(total[limb] + r0, tile[limb], sizeof tile[limb]);
  }
}

#else
INLINE void dot_limbs(const int8_t *w, const int64_t *at, int64_t width, const void *x, int bits, int32_t (*total)[UNIT]) {
  const int16_t *limbs = x;
  for (int r = 0; r < UNIT; r++)
    for (int limb = 0; limb < (bits == 24 ? 2 : 1); limb++) {
      int32_t sum = 0;
      for (int64_t i = 0; i < width; i++) sum += (int32_t)w[at[r] + i] * limbs[limb * padded(width) + i];
      total[limb][r] = sum;
    }
}
#endif

static void dot_unit_int8(const format *f, const int8_t *w, const int64_t *at, const row *x, const float *scales, float *out) {
  int32_t total[3][UNIT];
  if (f->bits == 24) {
    dot_limbs(w, at, f->width, x->data, 24, total);
#if BYTES
    for (int r = 0; r < UNIT; r++) out[r] = (float)((total[2][r] * 65536.0 + total[1][r] * 256.0 + total[0][r] - x->excess) * x->scale * scales[r]);
#else
    for (int r = 0; r < UNIT; r++) out[r] = (float)((total[1][r] * 4096.0 + total[0][r]) * x->scale * scales[r]);
#endif
  } else {
    dot_limbs(w, at, f->width, x->data, 8, total);
    for (int r = 0; r < UNIT; r++) out[r] = (float)((total[0][r] - x->excess) * x->scale * scales[r]);
  }
}

/* Rows first .. first + 15 of a matrix of n_rows (the last repeated) times the chosen tokens. */
static void multiply(const format *f, const void *w, const float *scale, int64_t first, int64_t n_rows, const row *x, int n, float (*out)[UNIT]) {
  int64_t at[UNIT];
  float scales[UNIT];
  for (int r = 0; r < UNIT; r++) {
    int64_t index = MIN(first + r, n_rows - 1);
    at[r] = index * f->width;
    scales[r] = f->weight_type == INT8 ? scale[index] : 1.0f;
  }
  if (f->weight_type != INT8) dot_unit(f, w, at, x, n, out);
  else for (int t = 0; t < n; t++) dot_unit_int8(f, w, at, x + t, scales, out[t]);
}

/* ---- x W^T ---- */

typedef struct {
  int64_t n_tokens, n_out, width, x_stride, x_type, weight_type, y_type, bits, n_threads;
  const void *x, *weight;
  const float *scale;
  void *y; /* [n_tokens, n_out] */
} linear_args;

typedef struct {
  const linear_args *a;
  format f;
  const row *x;
  int64_t units_per_item;
} linear_job;

INLINE int64_t weight_bytes(int64_t type) { return type == F32 ? 4 : type == BF16 ? 2 : 1; }

/* Enough units for an item to be worth handing out (32 KiB of weights), few enough that threads end together. */
INLINE int64_t units_per_item(int64_t n_units, int64_t unit_bytes, int64_t n_threads) {
  int64_t least = MAX(1, 32768 / unit_bytes);
  return MAX(least, n_units / (n_threads * 8));
}

static void linear_item(void *arg, int64_t item) {
  const linear_job *job = arg;
  const linear_args *a = job->a;
  const int64_t n_units = (a->n_out + UNIT - 1) / UNIT;
  for (int64_t unit = item * job->units_per_item; unit < MIN((item + 1) * job->units_per_item, n_units); unit++)
    for (int64_t t = 0; t < a->n_tokens; t += TILE) {
      float out[TILE][UNIT];
      int n = (int)MIN(TILE, a->n_tokens - t);
      multiply(&job->f, a->weight, a->scale, unit * UNIT, a->n_out, job->x + t, n, out);
      for (int i = 0; i < n; i++)
        for (int r = 0; r < UNIT; r += W) {
          int64_t left = a->n_out - unit * UNIT - r;
          if (left > 0) store_any(a->y, (t + i) * a->n_out + unit * UNIT + r, (int)a->y_type, (int)MIN(W, left), load(out[i] + r));
        }
    }
}

KERNEL(linear) {
  const linear_args *a = args;
  linear_job job = {.a = a, .f = {a->width, a->x_type, a->weight_type, a->bits}};
  char *memory = reserve(0, a->n_tokens * row_bytes(a->width));
  row *x = reserve(1, a->n_tokens * (int64_t)sizeof(row));
  for (int64_t t = 0; t < a->n_tokens; t++) x[t] = prepare(&job.f, a->x, t * a->x_stride, (int)a->x_type, memory + t * row_bytes(a->width));
  job.x = x;
  const int64_t n_units = (a->n_out + UNIT - 1) / UNIT;
  job.units_per_item = units_per_item(n_units, UNIT * a->width * weight_bytes(a->weight_type), a->n_threads);
  plait_for((n_units + job.units_per_item - 1) / job.units_per_item, a->n_threads, linear_item, &job);
  return FINE;
}

/* ---- SwiGLU experts ---- */

typedef struct {
  int64_t n_tokens, n_experts, top_k, d_model, d_ff, x_stride, x_type, weight_type, bits, n_threads;
  int64_t gate_up_stride, down_stride; /* elements from an expert's to the next one's; rows are contiguous */
  const void *x;
  const int64_t *expert_ids; /* [n_tokens, top_k]; NULL: there is one expert and every token goes there */
  const float *weights;      /* [n_tokens, top_k]; NULL: y is not summed over the choices */
  const void *gate_up, *down;
  const float *gate_up_scale, *down_scale;
  void *y; /* [n_tokens, d_model], or [n_tokens, top_k, d_model] */
} experts_args;

typedef struct {
  const experts_args *a;
  format up, down;
  row *x, *h;           /* per token, per pair (token, choice) */
  int64_t *pairs;       /* sorted by expert */
  int64_t *group_start; /* [n_groups + 1] into pairs */
  int64_t n_groups, units_per_item;
  float *hidden, *out; /* [pairs][d_ff], [pairs][d_model] */
} experts_job;

INLINE int64_t expert_of(const experts_args *a, int64_t pair) { return a->expert_ids ? a->expert_ids[pair] : 0; }

static void up_item(void *arg, int64_t item) {
  const experts_job *job = arg;
  const experts_args *a = job->a;
  const int64_t n_units = (a->d_ff + UNIT - 1) / UNIT, per_group = (n_units + job->units_per_item - 1) / job->units_per_item;
  const int64_t group = item / per_group, first = item % per_group * job->units_per_item;
  const int64_t begin = job->group_start[group], end = job->group_start[group + 1], expert = expert_of(a, job->pairs[begin]);
  const int64_t size = weight_bytes(a->weight_type);
  const char *gate = (const char *)a->gate_up + expert * a->gate_up_stride * size, *up = gate + a->d_ff * a->d_model * size;
  const float *scale = a->gate_up_scale ? a->gate_up_scale + 2 * expert * a->d_ff : NULL;
  for (int64_t unit = first; unit < MIN(first + job->units_per_item, n_units); unit++)
    for (int64_t p = begin; p < end; p += TILE) {
      const int n = (int)MIN(TILE, end - p);
      float g[TILE][UNIT], u[TILE][UNIT];
      row x[TILE];
      for (int i = 0; i < n; i++) x[i] = job->x[job->pairs[p + i] / a->top_k];
      multiply(&job->up, gate, scale, unit * UNIT, a->d_ff, x, n, g);
      multiply(&job->up, up, scale ? scale + a->d_ff : NULL, unit * UNIT, a->d_ff, x, n, u);
      for (int i = 0; i < n; i++)
        for (int r = 0; r < UNIT; r += W) {
          int64_t left = a->d_ff - unit * UNIT - r;
          float *to = job->hidden + job->pairs[p + i] * a->d_ff;
          if (left > 0) store_any(to, unit * UNIT + r, F32, (int)MIN(W, left), vsilu(load(g[i] + r)) * load(u[i] + r));
        }
    }
}

static void prepare_hidden(void *arg, int64_t pair) {
  const experts_job *job = arg;
  job->h[pair] = prepare(&job->down, job->hidden, pair * job->a->d_ff, F32, job->h[pair].data);
}

static void down_item(void *arg, int64_t item) {
  const experts_job *job = arg;
  const experts_args *a = job->a;
  const int64_t n_units = (a->d_model + UNIT - 1) / UNIT, per_group = (n_units + job->units_per_item - 1) / job->units_per_item;
  const int64_t group = item / per_group, first = item % per_group * job->units_per_item;
  const int64_t begin = job->group_start[group], end = job->group_start[group + 1], expert = expert_of(a, job->pairs[begin]);
  const char *down = (const char *)a->down + expert * a->down_stride * weight_bytes(a->weight_type);
  const float *scale = a->down_scale ? a->down_scale + expert * a->d_model : NULL;
  for (int64_t unit = first; unit < MIN(first + job->units_per_item, n_units); unit++)
    for (int64_t p = begin; p < end; p += TILE) {
      const int n = (int)MIN(TILE, end - p);
      float out[TILE][UNIT];
      row h[TILE];
      for (int i = 0; i < n; i++) h[i] = job->h[job->pairs[p + i]];
      multiply(&job->down, down, scale, unit * UNIT, a->d_model, h, n, out);
      for (int i = 0; i < n; i++)
        for (int r = 0; r < UNIT; r += W) {
          int64_t left = a->d_model - unit * UNIT - r;
          if (left > 0) store_any(job->out + job->pairs[p + i] * a->d_model, unit * UNIT + r, F32, (int)MIN(W, left), load(out[i] + r));
        }
    }
}

/* Pairs by expert, in token order within one; a counting sort. */
static void group_pairs(experts_job *job, int64_t *counts) {
  const experts_args *a = job->a;
  const int64_t n_pairs = a->n_tokens * a->top_k;
  memset(counts, 0, sizeof(int64_t) * (size_t)(a->n_experts + 1));
  for (int64_t p = 0; p < n_pairs; p++) counts[expert_of(a, p) + 1]++;
  for (int64_t e = 0; e < a->n_experts; e++) {
    if (counts[e + 1]) job->group_start[job->n_groups++] = counts[e];
    counts[e + 1] += counts[e];
  }
  job->group_start[job->n_groups] = n_pairs;
  for (int64_t p = 0; p < n_pairs; p++) job->pairs[counts[expert_of(a, p)]++] = p;
}

KERNEL(experts) {
  const experts_args *a = args;
  if (a->expert_ids && !all_within(a->expert_ids, a->n_tokens * a->top_k, a->n_experts)) return BAD_EXPERT_ID;
  const int64_t n_pairs = a->n_tokens * a->top_k, unit_bytes = UNIT * weight_bytes(a->weight_type);
  experts_job job = {.a = a, .up = {a->d_model, a->x_type, a->weight_type, a->bits}, .down = {a->d_ff, a->x_type, a->weight_type, a->bits}};
  char *rows = reserve(0, a->n_tokens * row_bytes(a->d_model) + n_pairs * row_bytes(a->d_ff));
  job.x = reserve(1, (a->n_tokens + n_pairs) * (int64_t)sizeof(row));
  job.h = job.x + a->n_tokens;
  job.pairs = reserve(2, (2 * n_pairs + a->n_experts + 2) * 8);
  job.group_start = job.pairs + n_pairs;
  job.hidden = reserve(3, n_pairs * (a->d_ff + a->d_model) * 4);
  job.out = job.hidden + n_pairs * a->d_ff;
  group_pairs(&job, job.group_start + n_pairs + 1);

  for (int64_t t = 0; t < a->n_tokens; t++) job.x[t] = prepare(&job.up, a->x, t * a->x_stride, (int)a->x_type, rows + t * row_bytes(a->d_model));
  for (int64_t p = 0; p < n_pairs; p++) job.h[p].data = rows + a->n_tokens * row_bytes(a->d_model) + p * row_bytes(a->d_ff);
  int64_t n_units = (a->d_ff + UNIT - 1) / UNIT;
  job.units_per_item = units_per_item(n_units * job.n_groups, 2 * unit_bytes * a->d_model, a->n_threads);
  plait_for(job.n_groups * ((n_units + job.units_per_item - 1) / job.units_per_item), a->n_threads, up_item, &job);
  plait_for(n_pairs, n_pairs * a->d_ff < 32768 ? 1 : a->n_threads, prepare_hidden, &job);
  n_units = (a->d_model + UNIT - 1) / UNIT;
  job.units_per_item = units_per_item(n_units * job.n_groups, unit_bytes * a->d_ff, a->n_threads);
  plait_for(job.n_groups * ((n_units + job.units_per_item - 1) / job.units_per_item), a->n_threads, down_item, &job);

  for (int64_t t = 0; t < a->n_tokens; t++)
    for (int64_t i = 0; i < a->d_model; i += W) {
      const int n = (int)MIN(W, a->d_model - i);
      vf total = {0};
      for (int64_t j = 0; j < a->top_k; j++) {
        int64_t pair = t * a->top_k + j;
        vf out = load_any(job.out, pair * a->d_model + i, F32, n);
        if (a->weights) total = vfma(splat(a->weights[pair]), out, total);
        else store_any(a->y, pair * a->d_model + i, (int)a->x_type, n, out);
      }
      if (a->weights) store_any(a->y, t * a->d_model + i, (int)a->x_type, n, total);
    }
  return FINE;
}
