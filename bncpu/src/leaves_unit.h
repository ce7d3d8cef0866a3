/* One variant: LANES float64 lanes per register, float32 and float64 leaves, one table. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "leaves.h"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define PREFETCH(p) __builtin_prefetch(p)
#define UNROLL4 _Pragma("GCC unroll 4")
#else
#define INLINE static __forceinline
#define UNROLL
#define UNROLL4
#define PREFETCH(p) ((void)(p))
#endif

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define STRING2(a) #a
#define STRING(a) STRING2(a)

/* Sums along a plane run in this many lanes, in every variant. */
#define SUM_LANES 16
#define SUM_REGISTERS (SUM_LANES / LANES)

#if LANES == 1
typedef double vdouble;
INLINE vdouble observed(vdouble d, vdouble value) { return d == d ? value : 0.0; }
#else
typedef double vdouble __attribute__((vector_size(LANES * 8)));
typedef double vdouble_unaligned __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
typedef int64_t vmask __attribute__((vector_size(LANES * 8)));
/* value where d is a number, 0 where it is NaN */
INLINE vdouble observed(vdouble d, vdouble value) { return (vdouble)((vmask)value & (d == d)); }
#endif

/* Subtracting 0 keeps -0.0, which adding to 0 would not. */
INLINE vdouble vdouble_all(double value) { return value - (vdouble){0}; }

#if LANES == 1
INLINE vdouble vdouble_load(const double *p) { return *p; }
INLINE void vdouble_store(double *p, vdouble v) { *p = v; }
#else
INLINE vdouble vdouble_load(const double *p) { return *(const vdouble_unaligned *)p; }
INLINE void vdouble_store(double *p, vdouble v) { *(vdouble_unaligned *)p = v; }
#endif

#define T float
#define T_BITS int32_t
#define T_INFINITY 0x7f800000
#define T_ABS 0x7fffffff
#define NAME(x) PASTE(x, f32)
#include "leaves_template.h"
#undef T
#undef T_BITS
#undef T_INFINITY
#undef T_ABS
#undef NAME

#define T double
#define T_BITS int64_t
#define T_INFINITY 0x7ff0000000000000
#define T_ABS 0x7fffffffffffffff
#define NAME(x) PASTE(x, f64)
#include "leaves_template.h"

const bn_leaves PASTE(bn_leaves, VARIANT) = {
    STRING(VARIANT),
    {moments_f32, moments_f64},
    {apply_f32, apply_f64},
};
