/* Vectors of floats, one width per instruction set, and the few functions on them that the kernels need.
 *
 * Every source is compiled once per level (build.py) with -DPLAIT_LEVEL=..., and EXPORT(f) names the copy f_<level>.
 * Nothing may be contracted by the compiler (-ffp-contract=off): vfma is the only fused operation, so the same source gives the
 * same bits wherever it is inlined, which is what makes a chunked scan equal a whole one exactly.
 */
#ifndef PLAIT_VEC_H
#define PLAIT_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PLAIT_PASTE2(a, b) a##_##b
#define PLAIT_PASTE(a, b) PLAIT_PASTE2(a, b)
#define EXPORT(name) __attribute__((visibility("default"))) PLAIT_PASTE(name, PLAIT_LEVEL)
#define KERNEL(name) int EXPORT(name)(const void *args) /* a plait_kernel */
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef int8_t vb __attribute__((vector_size(W)));
typedef vf vf_at __attribute__((aligned(4), may_alias));
typedef vh vh_at __attribute__((aligned(2), may_alias));
typedef vb vb_at __attribute__((aligned(1), may_alias));

typedef uint16_t bf16; /* the upper half of a float */
enum { F32 = 0, BF16 = 1, INT8 = 2 };

INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf load(const float *p) { return *(const vf_at *)p; }
INLINE void store(float *p, vf x) { *(vf_at *)p = x; }

INLINE vf vfma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

/* mask lanes are 0 or -1 */
INLINE vf vselect(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
/* If b is NaN the result is NaN: pass the bound first. */
INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return vselect(a > b, a, b);
#endif
}
INLINE vf vmin(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return vselect(a < b, a, b);
#endif
}
INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* Whether each of n indices is one of `count` places. */
INLINE int all_within(const int64_t *indices, int64_t n, int64_t count) {
  int fine = 1;
  for (int64_t i = 0; i < n; i++) fine &= indices[i] >= 0 && indices[i] < count;
  return fine;
}

/* Whether n sequences lie one behind the other among so many tokens, from the first token on. */
INLINE int are_bounds(const int32_t *cu_seqlens, int64_t n, int64_t tokens) {
  int fine = cu_seqlens[0] == 0 && cu_seqlens[n] <= tokens;
  for (int64_t i = 0; i < n; i++) fine &= cu_seqlens[i] <= cu_seqlens[i + 1];
  return fine;
}

INLINE float hsum(vf x) { /* a tree, the same one at every call */
  float lane[W];
  memcpy(lane, &x, sizeof lane);
  for (int step = W / 2; step; step /= 2)
    for (int i = 0; i < step; i++) lane[i] += lane[i + step];
  return lane[0];
}
INLINE float hmax(vf x) {
  float lane[W];
  memcpy(lane, &x, sizeof lane);
  for (int i = 1; i < W; i++) lane[0] = MAX(lane[0], lane[i]);
  return lane[0];
}

/* ---- bf16 ---- */

INLINE float widen(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
INLINE bf16 narrow(float f) { /* to nearest even, NaN stays NaN */
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bf16)((bits >> 16) | 0x40);
  return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE vf vwiden(vh x) {
#if defined(__AVX512F__) /* gcc converts in two halves when left to itself */
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)x), 16);
#else
  return (vf)(__builtin_convertvector(x, vu) << 16);
#endif
}
INLINE vh vnarrow(vf x) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
  vu bits = (vu)x;
  vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vu quiet = (bits >> 16) | 0x40;
  vu is_nan = (vu)((bits & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), vh);
#endif
}

/* n <= W elements at p[index] of type F32 or BF16; missing lanes are 0 and are not stored. */
INLINE vf load_any(const void *p, int64_t index, int type, int n) {
  if (type == F32) {
    const float *at = (const float *)p + index;
    if (n >= W) return load(at);
    vf x = {0};
    memcpy(&x, at, (size_t)n * 4);
    return x;
  }
  const bf16 *at = (const bf16 *)p + index;
  if (n >= W) return vwiden(*(const vh_at *)at);
  vh x = {0};
  memcpy(&x, at, (size_t)n * 2);
  return vwiden(x);
}
INLINE void store_any(void *p, int64_t index, int type, int n, vf x) {
  if (type == F32) {
    float *at = (float *)p + index;
    if (n >= W) store(at, x);
    else memcpy(at, &x, (size_t)n * 4);
    return;
  }
  bf16 *at = (bf16 *)p + index;
  vh half = vnarrow(x);
  if (n >= W) *(vh_at *)at = half;
  else memcpy(at, &half, (size_t)n * 2);
}
INLINE float load_one(const void *p, int64_t index, int type) {
  return type == F32 ? ((const float *)p)[index] : widen(((const bf16 *)p)[index]);
}
INLINE void store_one(void *p, int64_t index, int type, float x) {
  if (type == F32) ((float *)p)[index] = x;
  else ((bf16 *)p)[index] = narrow(x);
}

/* ---- functions: minimax polynomials, about one unit in the last place ---- */

#define LOG2E 1.44269504088896341f
#define LOG2E_LOW 1.92596299112661746887e-8f /* what LOG2E leaves out */
#define ROUND_MAGIC 12582912.0f              /* 1.5 * 2^23: adding it rounds to an integer in the low bits */

#if defined(__AVX512F__)
/* 2^(n + r), n a multiple of a sixteenth whose fraction is in the low bits of t, |r| <= 1/32: 1e-8 before rounding, exact at 0. The sixteenth
 * comes out of a table, and what is left is so small that a cubic does: 5 multiplications instead of 7, and those bound the scan. (A table of
 * 32 and a quadratic, 5e-8, gained nothing.) */
INLINE vf exp2_sixteenths(vf t, vf n, vf r) {
  static const float fractions[16] = {
      1.0f, 1.0442737340927124f, 1.0905077457427979f, 1.1387885808944702f,
      1.1892070770263672f, 1.2418577671051025f, 1.2968395948410034f, 1.3542555570602417f,
      1.4142135381698608f, 1.4768261909484863f, 1.5422108173370361f, 1.610490322113037f,
      1.6817928552627563f, 1.7562521696090698f, 1.8340080976486206f, 1.9152065515518188f};
  const vf power = (vf)_mm512_permutexvar_ps((__m512i)t, _mm512_loadu_ps(fractions));
  const vf p = vfma(r, vfma(r, splat(5.55041087e-2f), splat(2.40226507e-1f)), splat(6.93147182e-1f));
  return (vf)_mm512_scalef_ps((__m512)vfma(power * r, p, power), (__m512)n);
}
#else
/* 2^(n + r) for integral n and |r| <= 1/2: 2e-9 before rounding, exact at 0. Underflows to 0 (or a subnormal). */
INLINE vf exp2_parts(vf n, vf r) {
  vf p = splat(1.5353362e-4f);
  p = vfma(p, r, splat(1.33988739e-3f));
  p = vfma(p, r, splat(9.61843692e-3f));
  p = vfma(p, r, splat(5.55033237e-2f));
  p = vfma(p, r, splat(2.40226477e-1f));
  p = vfma(p, r, splat(6.93147182e-1f));
  p = vfma(p, r, splat(1.0f));
  vi power = (vi)(n + splat(ROUND_MAGIC)) << 23; /* the low bits of the sum are n in two's complement */
  vf scaled = (vf)((vi)p + power);
  return vselect(n < splat(-126.0f), (vf){0}, vselect(n > splat(127.0f), splat(__builtin_inff()), scaled));
}
#endif

/* 2^(a*b), exact at 0, so that decays near 1 have no bias to accumulate. */
INLINE vf exp2_product(vf a, vf b) {
#if defined(__AVX512F__)
  const vf magic = splat(ROUND_MAGIC / 16), x = a * b, t = x + magic, n = t - magic;
  return exp2_sixteenths(t, n, x - n);
#else
  vf n = vfma(a, b, splat(ROUND_MAGIC)) - splat(ROUND_MAGIC);
  return exp2_parts(n, vfma(a, b, -n));
#endif
}

/* exp, clamped to finite results above 0 */
INLINE vf vexp(vf x) {
  x = vmin(splat(87.0f), vmax(splat(-87.0f), x));
#if defined(__AVX512F__)
  const vf magic = splat(ROUND_MAGIC / 16), t = vfma(x, splat(LOG2E), magic), n = t - magic;
  return exp2_sixteenths(t, n, vfma(x, splat(LOG2E_LOW), vfma(x, splat(LOG2E), -n)));
#else
  vf n = vfma(x, splat(LOG2E), splat(ROUND_MAGIC)) - splat(ROUND_MAGIC);
  vf r = vfma(x, splat(LOG2E_LOW), vfma(x, splat(LOG2E), -n));
  return exp2_parts(n, r);
#endif
}

/* 1/x of a normal number below 2^126: 1e-7. A division of 16 floats takes as long as ten products. */
INLINE vf vreciprocal(vf x) {
#if defined(__AVX512F__)
  vf y = (vf)_mm512_rcp14_ps((__m512)x);
  return vfma(vfma(-x, y, splat(1.0f)), y, y);
#else
  return splat(1.0f) / x;
#endif
}

INLINE vf vsigmoid(vf x) { return vreciprocal(splat(1.0f) + vexp(-x)); }
INLINE vf vsilu(vf x) { return x * vreciprocal(splat(1.0f) + vexp(-x)); }

/* log(1 + exp(x)) = max(x, 0) + log1p(w), w = exp(-|x|); log1p(w) / w is a polynomial on [0, 1], 2e-7 at most and exact at 0. */
INLINE vf vsoftplus(vf x) {
  vf w = vexp(-vabs(x));
  vf p = splat(5.36479428e-3f);
  p = vfma(p, w, splat(-3.00656762e-2f));
  p = vfma(p, w, splat(7.92043507e-2f));
  p = vfma(p, w, splat(-1.37537867e-1f));
  p = vfma(p, w, splat(1.91536486e-1f));
  p = vfma(p, w, splat(-2.48571619e-1f));
  p = vfma(p, w, splat(3.33213210e-1f));
  p = vfma(p, w, splat(-4.99996483e-1f));
  p = vfma(p, w, splat(1.0f));
  return vfma(p, w, vmax((vf){0}, x));
}

/* ---- lanes ---- */

#if defined(__clang__)
#define SHUFFLE_MASK(...) __VA_ARGS__
#define shuffle2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define shuffle2(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* One step of a butterfly over blocks of 2s lanes: LOW_s gathers the lower s lanes of a's and b's blocks, HIGH_s the upper. */
#if W == 16
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#elif W == 8
#define LOW_4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH_4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW_2 0, 1, 8, 9, 4, 5, 12, 13
#define HIGH_2 2, 3, 10, 11, 6, 7, 14, 15
#define LOW_1 0, 8, 2, 10, 4, 12, 6, 14
#define HIGH_1 1, 9, 3, 11, 5, 13, 7, 15
#else
#define LOW_2 0, 1, 4, 5
#define HIGH_2 2, 3, 6, 7
#define LOW_1 0, 4, 2, 6
#define HIGH_1 1, 5, 3, 7
#endif

#define BUTTERFLY(s, op)                                                           \
  _Pragma("GCC unroll 16") for (int i = 0; i < W; i++) if (!(i & s)) {             \
    vf low = shuffle2(v[i], v[i + s], LOW_##s), high = shuffle2(v[i], v[i + s], HIGH_##s); \
    op;                                                                            \
  }

/* W vectors of W lanes, transposed in place. */
INLINE void transpose(vf v[W]) {
#if W >= 16
  BUTTERFLY(8, (v[i] = low, v[i + 8] = high))
#endif
#if W >= 8
  BUTTERFLY(4, (v[i] = low, v[i + 4] = high))
#endif
  BUTTERFLY(2, (v[i] = low, v[i + 2] = high))
  BUTTERFLY(1, (v[i] = low, v[i + 1] = high))
}

/* Lane i of the result is the sum of the lanes of v[i]. Overwrites v. */
INLINE vf sums(vf v[W]) {
#define HALVE(s)                                                                   \
  _Pragma("GCC unroll 16") for (int i = 0; i < s; i++)                             \
      v[i] = shuffle2(v[i], v[i + s], LOW_##s) + shuffle2(v[i], v[i + s], HIGH_##s);
#if W >= 16
  HALVE(8)
#endif
#if W >= 8
  HALVE(4)
#endif
  HALVE(2)
  HALVE(1)
  return v[0];
#undef HALVE
}

#endif
