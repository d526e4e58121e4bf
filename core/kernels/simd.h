/* One vector vocabulary for every instruction set, chosen by what the including file defines: CLEARFOLD_AVX2, CLEARFOLD_AVX512,
 * CLEARFOLD_AVX512BF16, CLEARFOLD_AVX512FP16, or CLEARFOLD_AMX, whose vectors are those of AVX-512 with bfloat16. Knows nothing of
 * convolutions.
 *
 * vec      VW floats in a register; of float16 where AVX512FP16 computes, whose every sum is rounded to 11 bits
 * factor   what products multiply: float, or bfloat16 or float16 as their 16 bits
 * narrow   an activation of 16 bits: bfloat16, or float16 where that is multiplied
 * PAIR     factors that one lane of `dot` multiplies and adds at once: 1, or 2 for bfloat16
 * partial  a product's sum in memory, on its way to what it is finished to
 * ROWS     rows, and
 * COLUMNS  vectors of columns, that a product keeps in registers
 * GRAIN    the fewest rows that a product computes; ROWS is a multiple of it
 *
 * Functions carry the instruction set as their own attribute, so a library compiled for any x86-64 holds all sets, and only what the
 * processor reports is ever called.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef uint16_t narrow;

#define CONCAT_(a, b) a##_##b
#define CONCAT(a, b) CONCAT_(a, b)
#define NAME(f) CONCAT(f, SET)
#define INLINE static inline __attribute__((always_inline))

#if defined(CLEARFOLD_AVX2)
#define SET avx2
#define TARGET "avx2,fma"
#elif defined(CLEARFOLD_AVX512)
#define SET avx512
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,fma"
#elif defined(CLEARFOLD_AVX512BF16)
#define SET avx512_bf16
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"
#elif defined(CLEARFOLD_AVX512FP16)
#define SET avx512_fp16
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512fp16,f16c,fma"
#elif defined(CLEARFOLD_AMX)
#define SET amx
#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16"
#define CLEARFOLD_AVX512BF16
#endif

#if defined(CLEARFOLD_EMULATED) /* by a header of the tests, out of AVX2 */
#undef TARGET
#define TARGET "avx2,fma,f16c"
#endif

#if defined(__clang__)
#define CLEARFOLD_PRAGMA(x) _Pragma(#x)
#define CLEARFOLD_PUSH(t) CLEARFOLD_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#define CLEARFOLD_POP _Pragma("clang attribute pop")
CLEARFOLD_PUSH(TARGET)
#else
#define CLEARFOLD_POP _Pragma("GCC pop_options")
#pragma GCC push_options
#define CLEARFOLD_PRAGMA(x) _Pragma(#x)
#define CLEARFOLD_PUSH(t) CLEARFOLD_PRAGMA(GCC target(t))
CLEARFOLD_PUSH(TARGET)
#endif

#if defined(CLEARFOLD_AVX2)

typedef __m256 vec;
enum { VW = 8, ROWS = 6, GRAIN = 6, COLUMNS = 2 };
#define TWO_COLUMNS
INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, vec x) { _mm256_storeu_ps(p, x); }
INLINE vec load_narrow(const narrow *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16)); }
INLINE void store_narrow(narrow *p, vec x) { /* to nearest even; NaN stays NaN */
  __m256i i = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(i, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(i, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0xd8);
  _mm_storeu_si128((void *)p, _mm256_castsi256_si128(r));
}
INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec quotient(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec root(vec a) { return _mm256_sqrt_ps(a); }
INLINE vec fma_(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }   /*  a * b + c */
INLINE vec fnma_(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); } /* -a * b + c */
INLINE vec relu(vec x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }    /* the second operand, if one is NaN */
INLINE vec where_positive(vec m, vec x) { return _mm256_and_ps(x, _mm256_cmp_ps(m, _mm256_setzero_ps(), _CMP_GT_OQ)); }
INLINE vec unit(vec x) { return _mm256_min_ps(all(1), _mm256_max_ps(zero(), x)); } /* between 0 and 1; NaN stays NaN */
INLINE vec whole(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); } /* to even */
INLINE vec load_u8(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p))); }
INLINE vec load_u16(const uint16_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p))); }
INLINE void store_u16(uint16_t *p, vec x) {
  __m256i i = _mm256_cvtps_epi32(x);
  _mm_storeu_si128((void *)p, _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}
INLINE void store_u8(uint8_t *p, vec x) {
  __m256i i = _mm256_cvtps_epi32(x);
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64((void *)p, _mm_packus_epi16(words, words));
}

#elif defined(CLEARFOLD_AVX512FP16)

typedef __m512h vec;
enum { VW = 32, ROWS = 12, GRAIN = 6, COLUMNS = 2 };
#define TWO_COLUMNS
INLINE vec zero(void) { return _mm512_setzero_ph(); }
INLINE vec all(float x) { return _mm512_set1_ph((_Float16)x); }
INLINE vec both(__m512 low, __m512 high) {
  __m512i one = _mm512_castsi256_si512((__m256i)_mm512_cvtxps_ph(low));
  return (vec)_mm512_inserti64x4(one, (__m256i)_mm512_cvtxps_ph(high), 1);
}
INLINE vec load(const float *p) { return both(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)); }
INLINE void store(float *p, vec x) {
  _mm512_storeu_ps(p, _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)x)));
  _mm512_storeu_ps(p + 16, _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)x, 1)));
}
INLINE vec load_narrow(const narrow *p) { return (vec)_mm512_loadu_si512((const void *)p); }
INLINE void store_narrow(narrow *p, vec x) { _mm512_storeu_si512((void *)p, (__m512i)x); }
INLINE void add_to(float *p, vec x) { /* in float32 */
  _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)x))));
  _mm512_storeu_ps(p + 16, _mm512_add_ps(_mm512_loadu_ps(p + 16), _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)x, 1))));
}
INLINE vec add(vec a, vec b) { return _mm512_add_ph(a, b); }
INLINE vec sub(vec a, vec b) { return _mm512_sub_ph(a, b); }
INLINE vec mul(vec a, vec b) { return _mm512_mul_ph(a, b); }
INLINE vec fma_(vec a, vec b, vec c) { return _mm512_fmadd_ph(a, b, c); }   /*  a * b + c */
INLINE vec fnma_(vec a, vec b, vec c) { return _mm512_fnmadd_ph(a, b, c); } /* -a * b + c */
INLINE vec relu(vec x) { return _mm512_max_ph(_mm512_setzero_ph(), x); }    /* the second operand, if one is NaN */
INLINE vec where_positive(vec m, vec x) { return (vec)_mm512_maskz_mov_epi16(_mm512_cmp_ph_mask(m, _mm512_setzero_ph(), _CMP_GT_OQ), (__m512i)x); }

#else

typedef __m512 vec;
#if defined(CLEARFOLD_AMX)
enum { VW = 16, ROWS = 32, GRAIN = 16, COLUMNS = 4 };
#else
enum { VW = 16, ROWS = 6, GRAIN = 6, COLUMNS = 4 };
#endif
INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, vec x) { _mm512_storeu_ps(p, x); }
INLINE vec load_narrow(const narrow *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16)); }
#if defined(CLEARFOLD_AVX512BF16)
INLINE void store_narrow(narrow *p, vec x) { _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x)); }
#else
INLINE void store_narrow(narrow *p, vec x) { /* to nearest even; NaN stays NaN */
  __m512i i = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(i, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(i, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(r));
}
#endif
INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec quotient(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec root(vec a) { return _mm512_sqrt_ps(a); }
INLINE vec fma_(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }   /*  a * b + c */
INLINE vec fnma_(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); } /* -a * b + c */
INLINE vec relu(vec x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }    /* the second operand, if one is NaN */
INLINE vec where_positive(vec m, vec x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(m, _mm512_setzero_ps(), _CMP_GT_OQ), x); }
INLINE vec unit(vec x) { return _mm512_min_ps(all(1), _mm512_max_ps(zero(), x)); } /* between 0 and 1; NaN stays NaN */
INLINE vec whole(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); } /* to even */
INLINE vec load_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p))); }
INLINE vec load_u16(const uint16_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p))); }
INLINE void store_u16(uint16_t *p, vec x) { _mm256_storeu_si256((void *)p, _mm512_cvtusepi32_epi16(_mm512_cvtps_epi32(x))); }
INLINE void store_u8(uint8_t *p, vec x) { _mm_storeu_si128((void *)p, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x))); }

#endif

#if defined(CLEARFOLD_AVX512BF16)

typedef narrow factor;
enum { PAIR = 2 };
typedef __m512bh factors;
INLINE factors load_factors(const factor *p) { return (factors)_mm512_loadu_si512((const void *)p); }
INLINE factors all_factors(const factor *p) { int two; memcpy(&two, p, 4); return (factors)_mm512_set1_epi32(two); }
INLINE vec dot(vec sum, factors a, factors b) { return _mm512_dpbf16_ps(sum, a, b); }
INLINE void store_factors(factor *p, vec x) { store_narrow(p, x); }
INLINE factor to_factor(float x) { narrow y[VW]; store_narrow(y, all(x)); return y[0]; }
/* Two rows lane by lane: a0 b0 a1 b1 ... */
INLINE void store_pair(factor *p, vec a, vec b) {
  static const uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512((void *)p, _mm512_permutexvar_epi16(_mm512_loadu_si512((const void *)order), (__m512i)_mm512_cvtne2ps_pbh(b, a)));
}

#elif defined(CLEARFOLD_AVX512FP16)

typedef narrow factor, partial;
enum { PAIR = 1 };
typedef vec factors;
INLINE factors load_factors(const factor *p) { return load_narrow(p); }
/* sum + right times the factor at `left`: the instruction itself spreads it, which as one of its own would cost half as much again. */
INLINE vec dot(vec sum, const factor *left, factors right) {
#if defined(CLEARFOLD_EMULATED)
  _Float16 x;
  memcpy(&x, left, sizeof x);
  return fma_(_mm512_set1_ph(x), right, sum);
#else
  __asm__("vfmadd231ph %2%{1to32%}, %1, %0" : "+v"(sum) : "v"(right), "m"(*left));
  return sum;
#endif
}
/* x times the number at `by`, spread likewise. */
INLINE vec scaled(vec x, const partial *by) {
#if defined(CLEARFOLD_EMULATED)
  _Float16 y;
  memcpy(&y, by, sizeof y);
  return mul(x, _mm512_set1_ph(y));
#else
  __asm__("vmulph %1%{1to32%}, %0, %0" : "+v"(x) : "m"(*by));
  return x;
#endif
}
INLINE void store_factors(factor *p, vec x) { store_narrow(p, x); }
INLINE void store_pair(factor *p, vec a, vec b) { store_narrow(p, a); (void)b; }
INLINE factor to_factor(float x) { _Float16 y = (_Float16)x; factor bits; memcpy(&bits, &y, sizeof bits); return bits; }

#else

typedef float factor;
enum { PAIR = 1 };
typedef vec factors;
INLINE factors load_factors(const factor *p) { return load(p); }
INLINE factors all_factors(const factor *p) { return all(*p); }
INLINE vec dot(vec sum, factors a, factors b) { return fma_(a, b, sum); }
INLINE void store_factors(factor *p, vec x) { store(p, x); }
INLINE factor to_factor(float x) { return x; }
INLINE void store_pair(factor *p, vec a, vec b) { store(p, a); (void)b; }

#endif

#if defined(CLEARFOLD_AVX512FP16)
INLINE float load_one_narrow(const narrow *p) { _Float16 x; memcpy(&x, p, sizeof x); return x; }
INLINE vec load_partial(const partial *p) { return load_narrow(p); }
INLINE void store_partial(partial *p, vec x) { store_narrow(p, x); }
#else
typedef float partial;
INLINE float load_one_narrow(const narrow *p) { uint32_t i = (uint32_t)*p << 16; float x; memcpy(&x, &i, 4); return x; }
INLINE vec load_partial(const partial *p) { return load(p); }
INLINE void store_partial(partial *p, vec x) { store(p, x); }
#endif

/* Lanes from memory that may end before a whole vector: the first n, zeros behind them. MASKED: at no cost to speak of. */
#if defined(CLEARFOLD_AVX512FP16)
enum { MASKED = 1 };
INLINE __mmask16 low_lanes(long n) { return n >= 16 ? 0xffff : (1u << n) - 1; }
INLINE __mmask16 high_lanes(long n) { return n <= 16 ? 0 : low_lanes(n - 16); }
INLINE __mmask32 lanes_below(long n) { return n >= 32 ? 0xffffffff : (1u << n) - 1; }
INLINE vec load_n(const float *p, long n) {
  if (n >= VW) return load(p);
  return both(_mm512_maskz_loadu_ps(low_lanes(n), p), _mm512_maskz_loadu_ps(high_lanes(n), p + 16));
}
INLINE void store_n(float *p, vec x, long n) {
  if (n >= VW) { store(p, x); return; }
  float t[VW];
  store(t, x);
  memcpy(p, t, n * sizeof(float));
}
INLINE vec load_narrow_n(const narrow *p, long n) { return n >= VW ? load_narrow(p) : (vec)_mm512_maskz_loadu_epi16(lanes_below(n), p); }
INLINE void store_narrow_n(narrow *p, vec x, long n) {
  if (n >= VW) store_narrow(p, x);
  else _mm512_mask_storeu_epi16(p, lanes_below(n), (__m512i)x);
}
#else
enum { MASKED = 0 };
#define PARTLY(type, load, store) \
  INLINE vec load##_n(const type *p, long n) { \
    if (n >= VW) return load(p); \
    type t[VW] = {0}; \
    memcpy(t, p, n * sizeof(type)); \
    return load(t); \
  } \
  INLINE void store##_n(type *p, vec x, long n) { \
    if (n >= VW) { store(p, x); return; } \
    type t[VW]; \
    store(t, x); \
    memcpy(p, t, n * sizeof(type)); \
  }
PARTLY(float, load, store)
PARTLY(narrow, load_narrow, store_narrow)
PARTLY(uint8_t, load_u8, store_u8)
PARTLY(uint16_t, load_u16, store_u16)
#undef PARTLY
#endif
INLINE vec load_at(const char *p, long n, int half) { return half ? load_narrow_n((const narrow *)p, n) : load_n((const float *)p, n); }
/* Nothing is known of this number any more: it stays in its register, where the compiler would compute it anew. */
#define HIDE(x) __asm__("" : "+r"(x))
/* An activation: float, or bfloat16 where `half` says so; i counts elements. */
INLINE vec load_any(const void *p, long i, long n, int half) { return half ? load_narrow_n((const narrow *)p + i, n) : load_n((const float *)p + i, n); }
INLINE void store_any(void *p, long i, vec x, long n, int half) { if (half) store_narrow_n((narrow *)p + i, x, n); else store_n((float *)p + i, x, n); }
