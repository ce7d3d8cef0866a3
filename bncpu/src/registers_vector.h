/* Registers of LANES float64, as vector types of gcc and clang, and all operations that need no intrinsics. registers_c.h
 * explains the operations. Included by the header of an instruction set, which defines LANES before, and after it the
 * functions that are only declared here.
 */

#define LINE_REGISTERS (8 / LANES)

typedef double vdouble __attribute__((vector_size(LANES * 8)));
typedef double vdouble_unaligned __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
typedef int64_t vmask __attribute__((vector_size(LANES * 8)));

typedef vdouble vt_f64, ht_f64;
typedef vmask vbits_f64;

typedef float vt_f32 __attribute__((vector_size(LANES * 8)));
typedef float vt_f32_unaligned __attribute__((vector_size(LANES * 8), aligned(4), may_alias));
typedef int32_t vbits_f32 __attribute__((vector_size(LANES * 8)));

typedef float ht_f32 __attribute__((vector_size(LANES * 4)));
typedef float ht_f32_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t hbits_f32 __attribute__((vector_size(LANES * 4)));

/* Defined by the instruction set: loads and stores of a part of a register, and stores past the cache. */
INLINE vt_f32 load_part_f32(const float *p, const ptrdiff_t n);
INLINE ht_f32 load_part_ht_f32(const float *p, const ptrdiff_t n);
INLINE vt_f64 load_part_f64(const double *p, const ptrdiff_t n);
INLINE void store_part_f32(float *p, vt_f32 v, const ptrdiff_t n);
INLINE void store_part_f64(double *p, vt_f64 v, const ptrdiff_t n);
INLINE void store_past_cache(void *p, vdouble v);

/* By subtracting 0, as adding 0 would make 0.0 of -0.0. */
INLINE vt_f32 all_f32(float value) { return value - (vt_f32){0}; }
INLINE ht_f32 all_ht_f32(float value) { return value - (ht_f32){0}; }
INLINE vt_f64 all_f64(double value) { return value - (vt_f64){0}; }
INLINE ht_f64 all_ht_f64(double value) { return all_f64(value); }

INLINE vt_f32 load_f32(const float *p, const ptrdiff_t n) {
    if (n == 2 * LANES)
        return *(const vt_f32_unaligned *)p;
    return load_part_f32(p, n);
}

INLINE ht_f32 load_ht_f32(const float *p, const ptrdiff_t n) {
    if (n == LANES)
        return *(const ht_f32_unaligned *)p;
    return load_part_ht_f32(p, n);
}

INLINE vt_f64 load_f64(const double *p, const ptrdiff_t n) {
    if (n == LANES)
        return *(const vdouble_unaligned *)p;
    return load_part_f64(p, n);
}

INLINE ht_f64 load_ht_f64(const double *p, const ptrdiff_t n) { return load_f64(p, n); }

INLINE void store_f32(float *p, vt_f32 v, const ptrdiff_t n, const int past_cache) {
    if (n == 2 * LANES && !past_cache)
        *(vt_f32_unaligned *)p = v;
    else if (n == 2 * LANES)
        store_past_cache(p, (vdouble)v);
    else
        store_part_f32(p, v, n);
}

INLINE void store_f64(double *p, vt_f64 v, const ptrdiff_t n, const int past_cache) {
    if (n == LANES && !past_cache)
        *(vdouble_unaligned *)p = v;
    else if (n == LANES)
        store_past_cache(p, v);
    else
        store_part_f64(p, v, n);
}

INLINE vdouble widen_f64(ht_f64 v) { return v; }
INLINE ht_f64 narrow_f64(vdouble v) { return v; }

INLINE void store_ht_f32(float *p, ht_f32 v) { *(ht_f32_unaligned *)p = v; }
INLINE void store_ht_f64(double *p, ht_f64 v) { *(vdouble_unaligned *)p = v; }

INLINE vdouble where(vbits_f64 holds, vdouble a, vdouble b) {
    return (vdouble)(((vmask)a & holds) | ((vmask)b & ~holds));
}

INLINE vdouble observed(vdouble d, vdouble value) { return (vdouble)((vmask)value & (d == d)); }

/* By comparing integers: x - x would be NaN for infinity and for NaN. */
INLINE vbits_f32 infinite_f32(vt_f32 v) { return ((vbits_f32)v & 0x7fffffff) == 0x7f800000; }
INLINE vbits_f64 infinite_f64(vt_f64 v) { return ((vbits_f64)v & 0x7fffffffffffffff) == 0x7ff0000000000000; }

INLINE vt_f32 relu_f32(vt_f32 v) { return (vt_f32)((vbits_f32)v & ~(v < 0)); }
INLINE vt_f64 relu_f64(vt_f64 v) { return (vt_f64)((vbits_f64)v & ~(v < 0)); }
INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return (vt_f32)((vbits_f32)v & ~(y <= 0)); }
INLINE vt_f64 where_above_0_f64(vt_f64 y, vt_f64 v) { return (vt_f64)((vbits_f64)v & ~(y <= 0)); }
INLINE ht_f32 where_above_0_ht_f32(ht_f32 y, ht_f32 v) { return (ht_f32)((hbits_f32)v & ~(y <= 0)); }
INLINE ht_f64 where_above_0_ht_f64(ht_f64 y, ht_f64 v) { return where_above_0_f64(y, v); }
