/* NEON of 64-bit ARM: two float64 or four float32 to a register, 32 registers. */
#define LANES 2
#define ROW_REGISTERS 8
/* ARM's store with a hint against caching (STNP) has no intrinsic in gcc, and is only a hint. Its larger cores stop
 * filling the cache by themselves once some lines were written whole, one after the other. */
#define HAS_STORES_PAST_CACHE 0
#include "registers_vector.h"

/* NEON has no masked loads and stores: a part of a register is loaded and stored as two values and one value. */
INLINE vt_f32 load_part_f32(const float *p, const ptrdiff_t n) {
    float32x2_t none = vdup_n_f32(0);
    if (n == 1)
        return (vt_f32)vcombine_f32(vld1_lane_f32(p, none, 0), none);
    return (vt_f32)vcombine_f32(vld1_f32(p), n == 2 ? none : vld1_lane_f32(p + 2, none, 0));
}

INLINE ht_f32 load_part_ht_f32(const float *p, const ptrdiff_t n) {
    (void)n; /* n is 1, here and in the functions of two lanes below */
    return (ht_f32)vld1_lane_f32(p, vdup_n_f32(0), 0);
}

INLINE vt_f64 load_part_f64(const double *p, const ptrdiff_t n) {
    (void)n;
    return (vt_f64)vcombine_f64(vld1_f64(p), vdup_n_f64(0));
}

INLINE void store_part_f32(float *p, vt_f32 v, const ptrdiff_t n) {
    if (n > 1)
        vst1_f32(p, vget_low_f32((float32x4_t)v));
    else
        vst1q_lane_f32(p, (float32x4_t)v, 0);
    if (n == 3)
        vst1q_lane_f32(p + 2, (float32x4_t)v, 2);
}

INLINE void store_part_f64(double *p, vt_f64 v, const ptrdiff_t n) {
    (void)n;
    vst1q_lane_f64(p, (float64x2_t)v, 0);
}

INLINE void store_past_cache(void *p, vdouble v) { vst1q_f64(p, (float64x2_t)v); }
INLINE void fence_stores(void) {}

INLINE vdouble widen_f32(ht_f32 v) { return (vdouble)vcvt_f64_f32((float32x2_t)v); }
INLINE ht_f32 narrow_f32(vdouble v) { return (ht_f32)vcvt_f32_f64((float64x2_t)v); }
INLINE vdouble root(vdouble v) { return (vdouble)vsqrtq_f64((float64x2_t)v); }

static const uint32_t first_32[8] = {~0u, ~0u, ~0u, ~0u, 0, 0, 0, 0};

INLINE vt_f32 blend_f32(vt_f32 a, vt_f32 b, const ptrdiff_t n) {
    return (vt_f32)vbslq_f32(vld1q_u32(first_32 + 4 - n), (float32x4_t)a, (float32x4_t)b);
}

INLINE vt_f64 blend_f64(vt_f64 a, vt_f64 b, const ptrdiff_t n) {
    return (vt_f64)vbslq_f64(vreinterpretq_u64_u32(vld1q_u32(first_32 + 4 - 2 * n)), (float64x2_t)a, (float64x2_t)b);
}

INLINE vt_f32 low_f32(vt_f32 a, vt_f32 b) { return (vt_f32)vzip1q_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vt_f32 high_f32(vt_f32 a, vt_f32 b) { return (vt_f32)vzip2q_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vt_f64 low_f64(vt_f64 a, vt_f64 b) { return (vt_f64)vzip1q_f64((float64x2_t)a, (float64x2_t)b); }
INLINE vt_f64 high_f64(vt_f64 a, vt_f64 b) { return (vt_f64)vzip2q_f64((float64x2_t)a, (float64x2_t)b); }

INLINE vt_f32 counted_f32(const unsigned char *p, vt_f32 v, const ptrdiff_t n) {
    vbits_f32 counts = {0};
    ptrdiff_t k;
    for (k = 0; k < n; k++)
        counts[k] = -(p[k] != 0);
    return (vt_f32)((vbits_f32)v & counts);
}

INLINE vt_f64 counted_f64(const unsigned char *p, vt_f64 v, const ptrdiff_t n) {
    vmask counts = {-(int64_t)(p[0] != 0), -(int64_t)(n > 1 && p[1])};
    return (vt_f64)((vmask)v & counts);
}

INLINE vdouble first_of(vdouble v, ptrdiff_t n) {
    (void)n;
    return (vdouble)vsetq_lane_f64(0, (float64x2_t)v, 1);
}

INLINE double sum_of_register(vdouble v) { return vaddvq_f64((float64x2_t)v); }
