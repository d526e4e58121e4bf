/* Instructions out of plain C, for machines that lack them: those of AMX, and where CLEARFOLD_EMULATED says so AVX-512 and its bfloat16 too.
 * The intrinsics that the kernels use, lane by lane as Intel's intrinsics guide defines them. Stands before the compiler's own header, which
 * still gives all else. For tests only: it is slow. */
#ifndef CLEARFOLD_EMULATED_IMMINTRIN
#define CLEARFOLD_EMULATED_IMMINTRIN
#include_next <immintrin.h>
#include "amx.h"

#if defined(CLEARFOLD_EMULATED)
typedef float f16 __attribute__((vector_size(64), aligned(1), may_alias));
typedef int i16 __attribute__((vector_size(64), aligned(1), may_alias));
typedef unsigned u16 __attribute__((vector_size(64), aligned(1), may_alias));
typedef unsigned short h16 __attribute__((vector_size(32), aligned(1), may_alias));
typedef unsigned char b16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef unsigned short h32 __attribute__((vector_size(64), aligned(1), may_alias));
#define EMULATED static inline __attribute__((always_inline))
#define ALL(n) for (int l = 0; l < n; l++)

EMULATED __m512 all_(float x) { f16 y; ALL(16) y[l] = x; return (__m512)y; }
EMULATED __m512i all_int_(int x) { i16 y; ALL(16) y[l] = x; return (__m512i)y; }
EMULATED __m512 load_(const void *p) { f16 y; __builtin_memcpy(&y, p, 64); return (__m512)y; }
EMULATED void store_(void *p, __m512 x) { __builtin_memcpy(p, &x, 64); }
EMULATED __m512 fused_(__m512 a, __m512 b, __m512 c) { f16 y; ALL(16) y[l] = __builtin_fmaf(a[l], b[l], c[l]); return (__m512)y; }
EMULATED __m512 most_(__m512 a, __m512 b) { f16 y; ALL(16) y[l] = a[l] > b[l] ? a[l] : b[l]; return (__m512)y; } /* b, if one is NaN */
EMULATED __mmask16 compared_(__m512 a, __m512 b, int how) {
  __mmask16 m = 0;
  ALL(16) m |= (how == _CMP_GT_OQ ? a[l] > b[l] : __builtin_isunordered(a[l], b[l])) << l; /* the two that are used */
  return m;
}
EMULATED __m512i widened_(__m256i x) { i16 y; ALL(16) y[l] = ((h16)x)[l]; return (__m512i)y; }
EMULATED __m256i narrowed_(__m512i x) { h16 y; ALL(16) y[l] = (unsigned short)((u16)x)[l]; return (__m256i)y; }
EMULATED unsigned short rounded_(float x) { /* to nearest even; NaN stays NaN, what is denormal becomes zero */
  unsigned i;
  __builtin_memcpy(&i, &x, 4);
  if (x != x) return i >> 16 | 0x40;
  return (i & 0x7f800000) ? (i + 0x7fff + (i >> 16 & 1)) >> 16 : i >> 31 << 15;
}
EMULATED float wide_(unsigned short x) { unsigned i = (unsigned)x << 16; float y; __builtin_memcpy(&y, &i, 4); return y; }
EMULATED __m256bh halved_(__m512 x) { h16 y; ALL(16) y[l] = rounded_(x[l]); return (__m256bh)y; }
EMULATED __m512bh halved_both_(__m512 a, __m512 b) { h32 y; ALL(16) y[l] = rounded_(b[l]), y[l + 16] = rounded_(a[l]); return (__m512bh)y; }
EMULATED __m512 dot_(__m512 sum, __m512bh a, __m512bh b) {
  f16 y = (f16)sum;
  h32 p = (h32)a, q = (h32)b;
  ALL(16) y[l] += wide_(p[2 * l + 1]) * wide_(q[2 * l + 1]) + wide_(p[2 * l]) * wide_(q[2 * l]);
  return (__m512)y;
}
EMULATED __m512i chosen_(__m512i which, __m512i from) { h32 y; ALL(32) y[l] = ((h32)from)[((h32)which)[l] & 31]; return (__m512i)y; }
EMULATED __m512i chosen_of_two_(__m512i a, __m512i which, __m512i b) {
  i16 y;
  ALL(16) y[l] = ((i16)which)[l] & 16 ? ((i16)b)[((i16)which)[l] & 15] : ((i16)a)[((i16)which)[l] & 15];
  return (__m512i)y;
}
EMULATED __m512i masked_int_(__m512i other, __mmask16 m, __m512i x) { i16 y; ALL(16) y[l] = m >> l & 1 ? ((i16)x)[l] : ((i16)other)[l]; return (__m512i)y; }
EMULATED __m512 masked_(__mmask16 m, __m512 x) { f16 y; ALL(16) y[l] = m >> l & 1 ? x[l] : 0; return (__m512)y; }

EMULATED __m512 least_(__m512 a, __m512 b) { f16 y; ALL(16) y[l] = a[l] < b[l] ? a[l] : b[l]; return (__m512)y; } /* b, if one is NaN */
EMULATED __m512 whole_(__m512 x) { f16 y; ALL(16) y[l] = __builtin_nearbyintf(x[l]); return (__m512)y; }
EMULATED __m512 from_ints_(__m512i x) { f16 y; ALL(16) y[l] = (float)((i16)x)[l]; return (__m512)y; }
EMULATED __m512i to_ints_(__m512 x) { i16 y; ALL(16) y[l] = (int)__builtin_nearbyintf(x[l]); return (__m512i)y; }
EMULATED __m512i widened_bytes_(__m128i x) { i16 y; ALL(16) y[l] = ((b16)x)[l]; return (__m512i)y; }
EMULATED __m128i bytes_(__m512i x) { b16 y; ALL(16) y[l] = ((u16)x)[l] > 255 ? 255 : ((u16)x)[l]; return (__m128i)y; }
EMULATED __m256i words_(__m512i x) { h16 y; ALL(16) y[l] = ((u16)x)[l] > 65535 ? 65535 : ((u16)x)[l]; return (__m256i)y; }
EMULATED __m512 rooted_(__m512 x) { f16 y; ALL(16) y[l] = __builtin_sqrtf(x[l]); return (__m512)y; }

#define _mm512_setzero_ps() all_(0)
#define _mm512_set1_ps all_
#define _mm512_set1_epi32 all_int_
#define _mm512_loadu_ps load_
#define _mm512_loadu_si512(p) ((__m512i)load_(p))
#define _mm512_storeu_ps store_
#define _mm512_storeu_si512(p, x) store_(p, (__m512)(x))
#define _mm512_add_ps(a, b) ((__m512)((f16)(a) + (f16)(b)))
#define _mm512_sub_ps(a, b) ((__m512)((f16)(a) - (f16)(b)))
#define _mm512_mul_ps(a, b) ((__m512)((f16)(a) * (f16)(b)))
#define _mm512_div_ps(a, b) ((__m512)((f16)(a) / (f16)(b)))
#define _mm512_sqrt_ps rooted_
#define _mm512_fmadd_ps fused_
#define _mm512_fnmadd_ps(a, b, c) fused_((__m512)(-(f16)(a)), b, c)
#define _mm512_max_ps most_
#define _mm512_min_ps least_
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(x, how) whole_(x)
#define _mm512_cvtepi32_ps from_ints_
#define _mm512_cvtps_epi32 to_ints_
#define _mm512_cvtepu8_epi32 widened_bytes_
#define _mm512_cvtusepi32_epi8 bytes_
#define _mm512_cvtusepi32_epi16 words_
#define _mm512_cmp_ps_mask compared_
#define _mm512_maskz_mov_ps masked_
#define _mm512_mask_mov_epi32 masked_int_
#define _mm512_castps_si512(x) ((__m512i)(x))
#define _mm512_castsi512_ps(x) ((__m512)(x))
#define _mm512_and_si512(a, b) ((__m512i)((u16)(a) & (u16)(b)))
#define _mm512_add_epi32(a, b) ((__m512i)((u16)(a) + (u16)(b)))
#define _mm512_slli_epi32(x, n) ((__m512i)((u16)(x) << (n)))
#define _mm512_srli_epi32(x, n) ((__m512i)((u16)(x) >> (n)))
#define _mm512_cvtepu16_epi32 widened_
#define _mm512_cvtepi32_epi16 narrowed_
#define _mm512_cvtneps_pbh halved_
#define _mm512_cvtne2ps_pbh halved_both_
#define _mm512_dpbf16_ps dot_
#define _mm512_permutexvar_epi16 chosen_
#define _mm512_permutex2var_epi32 chosen_of_two_

/* Float16: the compiler's own conversions round to nearest even, as the processor does. A fused product is rounded twice, which is hardly
 * ever seen. */
typedef _Float16 p32 __attribute__((vector_size(64), aligned(1), may_alias));
typedef _Float16 p16 __attribute__((vector_size(32), aligned(1), may_alias));
#define LANE(n, of) { p32 y; ALL(32) y[l] = (_Float16)(of); return (__m512h)(y); }
EMULATED __m512h all_ph_(_Float16 x) LANE(32, x)
EMULATED __m512h added_ph_(__m512h a, __m512h b) LANE(32, (float)((p32)a)[l] + (float)((p32)b)[l])
EMULATED __m512h less_ph_(__m512h a, __m512h b) LANE(32, (float)((p32)a)[l] - (float)((p32)b)[l])
EMULATED __m512h times_ph_(__m512h a, __m512h b) LANE(32, (float)((p32)a)[l] * (float)((p32)b)[l])
EMULATED __m512h fused_ph_(__m512h a, __m512h b, __m512h c) LANE(32, __builtin_fmaf((float)((p32)a)[l], (float)((p32)b)[l], (float)((p32)c)[l]))
EMULATED __m512h defused_ph_(__m512h a, __m512h b, __m512h c) LANE(32, __builtin_fmaf(-(float)((p32)a)[l], (float)((p32)b)[l], (float)((p32)c)[l]))
EMULATED __m512h most_ph_(__m512h a, __m512h b) LANE(32, (float)((p32)a)[l] > (float)((p32)b)[l] ? ((p32)a)[l] : ((p32)b)[l])
EMULATED __mmask32 above_ph_(__m512h a, __m512h b) { __mmask32 m = 0; ALL(32) m |= (__mmask32)((float)((p32)a)[l] > (float)((p32)b)[l]) << l; return m; }
EMULATED __m512i masked_words_(__mmask32 m, __m512i x) { h32 y; ALL(32) y[l] = m >> l & 1 ? ((h32)x)[l] : 0; return (__m512i)y; }
EMULATED __m512i load_words_(__mmask32 m, const unsigned short *p) { h32 y; ALL(32) y[l] = m >> l & 1 ? p[l] : 0; return (__m512i)y; }
EMULATED void store_words_(unsigned short *p, __mmask32 m, __m512i x) { ALL(32) if (m >> l & 1) p[l] = ((h32)x)[l]; }
EMULATED __m512 load_some_(__mmask16 m, const float *p) { f16 y; ALL(16) y[l] = m >> l & 1 ? p[l] : 0; return (__m512)y; }
EMULATED __m256h narrowed_ph_(__m512 x) { p16 y; ALL(16) y[l] = (_Float16)x[l]; return (__m256h)y; }
EMULATED __m512 widened_ph_(__m256h x) { f16 y; ALL(16) y[l] = (float)((p16)x)[l]; return (__m512)y; }
EMULATED __m512i low_half_(__m256i x) { h32 y; ALL(16) y[l] = ((h16)x)[l], y[l + 16] = 0; return (__m512i)y; }
EMULATED __m256i half_(__m512i x, int which) { h16 y; ALL(16) y[l] = ((h32)x)[l + 16 * which]; return (__m256i)y; }
EMULATED __m512i with_half_(__m512i x, __m256i half, int which) { h32 y = (h32)x; ALL(16) y[l + 16 * which] = ((h16)half)[l]; return (__m512i)y; }
#define _mm512_setzero_ph() all_ph_(0)
#define _mm512_set1_ph all_ph_
#define _mm512_add_ph added_ph_
#define _mm512_sub_ph less_ph_
#define _mm512_mul_ph times_ph_
#define _mm512_fmadd_ph fused_ph_
#define _mm512_fnmadd_ph defused_ph_
#define _mm512_max_ph most_ph_
#undef _mm512_cmp_ph_mask
#define _mm512_cmp_ph_mask(a, b, how) above_ph_(a, b)
#define _mm512_maskz_mov_epi16 masked_words_
#define _mm512_maskz_loadu_epi16(m, p) load_words_(m, p)
#define _mm512_mask_storeu_epi16(p, m, x) store_words_(p, m, x)
#define _mm512_maskz_loadu_ps load_some_
#define _mm512_cvtxps_ph narrowed_ph_
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, how) ((__m256i)narrowed_ph_(x))
#define _mm512_cvtxph_ps widened_ph_
#define _mm512_castsi256_si512 low_half_
#define _mm512_castsi512_si256(x) half_(x, 0)
#define _mm512_extracti64x4_epi64 half_
#define _mm512_inserti64x4 with_half_
#endif
#endif
