/* Plain C: a register holds one value. Every registers_*.h offers these names, and here stands what each means.
 *
 * A register of T is a VT (vt_f32, vt_f64), in which a comparison is a VBITS. An HT (ht_f32, ht_f64) holds LANES values
 * of T, which widen to a register of float64. n says how many values there are, from the first on: up to those of the
 * register, and at least one if nothing else is said. Memory of the others is neither read nor written.
 */

/* float64 in a register */
#define LANES 1
/* registers whose results are written one after the other: a line of the cache, where stores go past it */
#define LINE_REGISTERS 1
/* so many registers of columns have their sums in registers together */
#define ROW_REGISTERS 4
/* whether stores can go past the cache; they must write whole lines, which begin at multiples of 64 bytes */
#define STREAMING 0

typedef double vdouble, vt_f64, ht_f64;
typedef float vt_f32, ht_f32;
typedef int32_t vbits_f32;
typedef int64_t vbits_f64;

/* One value in all lanes. */
INLINE vt_f32 all_f32(float value) { return value; }
INLINE ht_f32 all_ht_f32(float value) { return value; }
INLINE vt_f64 all_f64(double value) { return value; }
INLINE ht_f64 all_ht_f64(double value) { return value; }

/* n values, and 0 in the other lanes. */
INLINE vt_f32 load_f32(const float *p, const ptrdiff_t n) { (void)n; return *p; }
INLINE ht_f32 load_ht_f32(const float *p, const ptrdiff_t n) { (void)n; return *p; }
INLINE vt_f64 load_f64(const double *p, const ptrdiff_t n) { (void)n; return *p; }
INLINE ht_f64 load_ht_f64(const double *p, const ptrdiff_t n) { (void)n; return *p; }

/* stream: past the cache, if that is possible; n is then a whole register. */
INLINE void store_f32(float *p, vt_f32 v, const ptrdiff_t n, const int stream) { (void)n; (void)stream; *p = v; }
INLINE void store_f64(double *p, vt_f64 v, const ptrdiff_t n, const int stream) { (void)n; (void)stream; *p = v; }

/* Puts what was stored past the cache before all that the thread stores later. */
INLINE void fence_stores(void) {}

INLINE vdouble widen_f32(ht_f32 v) { return (double)v; }
INLINE vdouble widen_f64(ht_f64 v) { return v; }

/* The nearest values of T. */
INLINE ht_f32 narrow_f32(vdouble v) { return (float)v; }
INLINE ht_f64 narrow_f64(vdouble v) { return v; }

INLINE void store_ht_f32(float *p, ht_f32 v) { *p = v; }
INLINE void store_ht_f64(double *p, ht_f64 v) { *p = v; }

/* a where a comparison holds, and b elsewhere. */
INLINE vdouble where(vbits_f64 holds, vdouble a, vdouble b) { return holds ? a : b; }

INLINE vdouble root(vdouble v) { return sqrt(v); }

/* The first n lanes, which may be none, of a, then those of b. */
INLINE vt_f32 blend_f32(vt_f32 a, vt_f32 b, const ptrdiff_t n) { return n ? a : b; }
INLINE vt_f64 blend_f64(vt_f64 a, vt_f64 b, const ptrdiff_t n) { return n ? a : b; }

/* The lower halves of a and b, lane by lane in turn, and the upper ones. Of a single lane there are none. */
INLINE vt_f32 low_f32(vt_f32 a, vt_f32 b) { (void)b; return a; }
INLINE vt_f32 high_f32(vt_f32 a, vt_f32 b) { (void)b; return a; }
INLINE vt_f64 low_f64(vt_f64 a, vt_f64 b) { (void)b; return a; }
INLINE vt_f64 high_f64(vt_f64 a, vt_f64 b) { (void)b; return a; }

/* The first n lanes, which are not all, and 0 in the others. */
INLINE vdouble first_of(vdouble v, ptrdiff_t n) { (void)n; return v; }

/* value where d is a number, 0 where it is NaN */
INLINE vdouble observed(vdouble d, vdouble value) { return d == d ? value : 0.0; }

/* The lanes added pairwise: each to the one half of them further on. */
INLINE double sum_of_register(vdouble v) { return v; }

/* Where v is infinite; NaN is not. */
INLINE vbits_f32 infinite_f32(vt_f32 v) { return isinf(v) != 0; }
INLINE vbits_f64 infinite_f64(vt_f64 v) { return isinf(v) != 0; }

/* max(v, 0), and v where y is above 0, otherwise 0. Both keep NaN, in v and in y. */
INLINE vt_f32 relu_f32(vt_f32 v) { return v < 0 ? 0.0f : v; }
INLINE vt_f64 relu_f64(vt_f64 v) { return v < 0 ? 0.0 : v; }
INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return y <= 0 ? 0.0f : v; }
INLINE vt_f64 where_above_0_f64(vt_f64 y, vt_f64 v) { return y <= 0 ? 0.0 : v; }
INLINE ht_f32 where_above_0_ht_f32(ht_f32 y, ht_f32 v) { return y <= 0 ? 0.0f : v; }
INLINE ht_f64 where_above_0_ht_f64(ht_f64 y, ht_f64 v) { return y <= 0 ? 0.0 : v; }
