/* AVX-512: eight float64 or sixteen float32 to a register, 32 registers. */
#define LANES 8
#define ROW_REGISTERS 8
#define HAS_STORES_PAST_CACHE 1
#include "registers_vector.h"

#define FIRST(n) ((1u << (n)) - 1)

INLINE vt_f32 load_part_f32(const float *p, const ptrdiff_t n) { return (vt_f32)_mm512_maskz_loadu_ps(FIRST(n), p); }
INLINE ht_f32 load_part_ht_f32(const float *p, const ptrdiff_t n) { return (ht_f32)_mm256_maskz_loadu_ps(FIRST(n), p); }
INLINE vt_f64 load_part_f64(const double *p, const ptrdiff_t n) { return (vt_f64)_mm512_maskz_loadu_pd(FIRST(n), p); }

INLINE void store_part_f32(float *p, vt_f32 v, const ptrdiff_t n) { _mm512_mask_storeu_ps(p, FIRST(n), (__m512)v); }
INLINE void store_part_f64(double *p, vt_f64 v, const ptrdiff_t n) { _mm512_mask_storeu_pd(p, FIRST(n), (__m512d)v); }
INLINE void store_past_cache(void *p, vdouble v) { _mm512_stream_si512(p, (__m512i)v); }
INLINE void fence_stores(void) { _mm_sfence(); }

INLINE vdouble widen_f32(ht_f32 v) { return (vdouble)_mm512_cvtps_pd((__m256)v); }
INLINE ht_f32 narrow_f32(vdouble v) { return (ht_f32)_mm512_cvtpd_ps((__m512d)v); }
INLINE vdouble root(vdouble v) { return (vdouble)_mm512_sqrt_pd((__m512d)v); }

INLINE vt_f32 blend_f32(vt_f32 a, vt_f32 b, const ptrdiff_t n) {
    return (vt_f32)_mm512_mask_mov_ps((__m512)b, FIRST(n), (__m512)a);
}

INLINE vt_f64 blend_f64(vt_f64 a, vt_f64 b, const ptrdiff_t n) {
    return (vt_f64)_mm512_mask_mov_pd((__m512d)b, FIRST(n), (__m512d)a);
}

/* The instructions work in each quarter of the registers; then the quarters are put in order. */
#define QUARTERS_LOW _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0)
#define QUARTERS_HIGH _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4)

INLINE vt_f64 low_f64(vt_f64 a, vt_f64 b) {
    __m512d even = _mm512_unpacklo_pd((__m512d)a, (__m512d)b), odd = _mm512_unpackhi_pd((__m512d)a, (__m512d)b);
    return (vt_f64)_mm512_permutex2var_pd(even, QUARTERS_LOW, odd);
}

INLINE vt_f64 high_f64(vt_f64 a, vt_f64 b) {
    __m512d even = _mm512_unpacklo_pd((__m512d)a, (__m512d)b), odd = _mm512_unpackhi_pd((__m512d)a, (__m512d)b);
    return (vt_f64)_mm512_permutex2var_pd(even, QUARTERS_HIGH, odd);
}

INLINE vt_f32 low_f32(vt_f32 a, vt_f32 b) {
    __m512 even = _mm512_unpacklo_ps((__m512)a, (__m512)b), odd = _mm512_unpackhi_ps((__m512)a, (__m512)b);
    return (vt_f32)_mm512_permutex2var_pd((__m512d)even, QUARTERS_LOW, (__m512d)odd);
}

INLINE vt_f32 high_f32(vt_f32 a, vt_f32 b) {
    __m512 even = _mm512_unpacklo_ps((__m512)a, (__m512)b), odd = _mm512_unpackhi_ps((__m512)a, (__m512)b);
    return (vt_f32)_mm512_permutex2var_pd((__m512d)even, QUARTERS_HIGH, (__m512d)odd);
}

INLINE vt_f32 counted_f32(const unsigned char *p, vt_f32 v, const ptrdiff_t n) {
    __m128i bytes = n == 2 * LANES ? _mm_loadu_si128((const __m128i *)p) : _mm_maskz_loadu_epi8(FIRST(n), p);
    return (vt_f32)_mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), (__m512)v);
}

INLINE vt_f64 counted_f64(const unsigned char *p, vt_f64 v, const ptrdiff_t n) {
    __m128i bytes = n == LANES ? _mm_loadl_epi64((const __m128i *)p) : _mm_maskz_loadu_epi8(FIRST(n), p);
    return (vt_f64)_mm512_maskz_mov_pd(_mm_test_epi8_mask(bytes, bytes), (__m512d)v);
}

INLINE vdouble first_of(vdouble v, ptrdiff_t n) { return (vdouble)_mm512_maskz_mov_pd(FIRST(n), (__m512d)v); }

INLINE double sum_of_register(vdouble v) {
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v), _mm512_extractf64x4_pd((__m512d)v, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
