/* AVX2: four float64 or eight float32 to a register, 16 registers. */
#define LANES 4
#define ROW_REGISTERS 4
#define HAS_STORES_PAST_CACHE 1
#include "registers_vector.h"

static const int64_t first_64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
static const int32_t first_32[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#define FIRST_64(n) _mm256_loadu_si256((const __m256i *)(first_64 + 4 - (n)))
#define FIRST_32(n) _mm256_loadu_si256((const __m256i *)(first_32 + 8 - (n)))
#define FIRST_32_HALF(n) _mm_loadu_si128((const __m128i *)(first_32 + 8 - (n)))

INLINE vt_f32 load_part_f32(const float *p, const ptrdiff_t n) { return (vt_f32)_mm256_maskload_ps(p, FIRST_32(n)); }
INLINE ht_f32 load_part_ht_f32(const float *p, const ptrdiff_t n) {
    return (ht_f32)_mm_maskload_ps(p, FIRST_32_HALF(n));
}
INLINE vt_f64 load_part_f64(const double *p, const ptrdiff_t n) { return (vt_f64)_mm256_maskload_pd(p, FIRST_64(n)); }

INLINE void store_part_f32(float *p, vt_f32 v, const ptrdiff_t n) { _mm256_maskstore_ps(p, FIRST_32(n), (__m256)v); }
INLINE void store_part_f64(double *p, vt_f64 v, const ptrdiff_t n) { _mm256_maskstore_pd(p, FIRST_64(n), (__m256d)v); }
INLINE void store_past_cache(void *p, vdouble v) { _mm256_stream_si256(p, (__m256i)v); }
INLINE void fence_stores(void) { _mm_sfence(); }

/* __builtin_convertvector is twice as slow as the conversion instruction. */
INLINE vdouble widen_f32(ht_f32 v) { return (vdouble)_mm256_cvtps_pd((__m128)v); }
INLINE ht_f32 narrow_f32(vdouble v) { return (ht_f32)_mm256_cvtpd_ps((__m256d)v); }
INLINE vdouble root(vdouble v) { return (vdouble)_mm256_sqrt_pd((__m256d)v); }

INLINE vt_f32 blend_f32(vt_f32 a, vt_f32 b, const ptrdiff_t n) {
    return (vt_f32)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)FIRST_32(n));
}

INLINE vt_f64 blend_f64(vt_f64 a, vt_f64 b, const ptrdiff_t n) {
    return (vt_f64)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)FIRST_64(n));
}

/* The instructions work in each half of the registers; then the halves are put together. */
INLINE vt_f32 low_f32(vt_f32 a, vt_f32 b) {
    __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b), odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (vt_f32)_mm256_permute2f128_ps(even, odd, 0x20);
}

INLINE vt_f32 high_f32(vt_f32 a, vt_f32 b) {
    __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b), odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (vt_f32)_mm256_permute2f128_ps(even, odd, 0x31);
}

INLINE vt_f64 low_f64(vt_f64 a, vt_f64 b) {
    __m256d even = _mm256_unpacklo_pd((__m256d)a, (__m256d)b), odd = _mm256_unpackhi_pd((__m256d)a, (__m256d)b);
    return (vt_f64)_mm256_permute2f128_pd(even, odd, 0x20);
}

INLINE vt_f64 high_f64(vt_f64 a, vt_f64 b) {
    __m256d even = _mm256_unpacklo_pd((__m256d)a, (__m256d)b), odd = _mm256_unpackhi_pd((__m256d)a, (__m256d)b);
    return (vt_f64)_mm256_permute2f128_pd(even, odd, 0x31);
}

/* n bytes, in the lowest of a register. */
INLINE __m128i load_bytes(const unsigned char *p, const ptrdiff_t n) {
    int64_t bytes = 0;
    memcpy(&bytes, p, n);
    return _mm_cvtsi64_si128(bytes);
}

INLINE vt_f32 counted_f32(const unsigned char *p, vt_f32 v, const ptrdiff_t n) {
    __m256i words = _mm256_cvtepu8_epi32(load_bytes(p, n));
    return (vt_f32)_mm256_andnot_si256(_mm256_cmpeq_epi32(words, _mm256_setzero_si256()), (__m256i)v);
}

INLINE vt_f64 counted_f64(const unsigned char *p, vt_f64 v, const ptrdiff_t n) {
    __m256i words = _mm256_cvtepu8_epi64(load_bytes(p, n));
    return (vt_f64)_mm256_andnot_si256(_mm256_cmpeq_epi64(words, _mm256_setzero_si256()), (__m256i)v);
}

INLINE vdouble first_of(vdouble v, ptrdiff_t n) { return (vdouble)_mm256_and_pd((__m256d)v, (__m256d)FIRST_64(n)); }

INLINE double sum_of_register(vdouble v) {
    __m256d four = (__m256d)v;
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
