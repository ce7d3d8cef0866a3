/* Plain C: a register holds one value. Every registers_*.h defines these names; their meaning is explained here.
 *
 * VT (vt_f32, vt_f64) is a register of T, and VBITS the result of comparing two. HT (ht_f32, ht_f64) holds LANES values of
 * T, as many as there are float64 in a register after widening. n is the number of values, from the first lane on: at least
 * one, if not said otherwise. Memory of the other lanes is neither read nor written.
 */

/* float64 in a register */
#define LANES 1
/* registers that are written together: a line of the cache, where stores go past it */
#define LINE_REGISTERS 1
/* how many registers of columns are summed together, with their sums in registers */
#define ROW_REGISTERS 4
/* whether stores can go past the cache; they must write whole lines, which begin at multiples of 64 bytes */
#define HAS_STORES_PAST_CACHE 0

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

/* past_cache: store past the cache, where that is possible; n is a whole register then. */
INLINE void store_f32(float *p, vt_f32 v, const ptrdiff_t n, const int past_cache) { (void)n; (void)past_cache; *p = v; }
INLINE void store_f64(double *p, vt_f64 v, const ptrdiff_t n, const int past_cache) { (void)n; (void)past_cache; *p = v; }

/* Stores past the cache become visible before all later stores of the thread. */
INLINE void fence_stores(void) {}

INLINE vdouble widen_f32(ht_f32 v) { return (double)v; }
INLINE vdouble widen_f64(ht_f64 v) { return v; }

/* Rounds to the nearest values of T. */
INLINE ht_f32 narrow_f32(vdouble v) { return (float)v; }
INLINE ht_f64 narrow_f64(vdouble v) { return v; }

INLINE void store_ht_f32(float *p, ht_f32 v) { *p = v; }
INLINE void store_ht_f64(double *p, ht_f64 v) { *p = v; }

/* a where the comparison holds, b elsewhere. */
INLINE vdouble where(vbits_f64 holds, vdouble a, vdouble b) { return holds ? a : b; }

INLINE vdouble root(vdouble v) { return sqrt(v); }

/* The first n lanes from a, the others from b; n may be 0. */
INLINE vt_f32 blend_f32(vt_f32 a, vt_f32 b, const ptrdiff_t n) { return n ? a : b; }
INLINE vt_f64 blend_f64(vt_f64 a, vt_f64 b, const ptrdiff_t n) { return n ? a : b; }

/* low: the lower halves of a and b, interleaved; high: the upper halves. A register of one lane has no halves. */
INLINE vt_f32 low_f32(vt_f32 a, vt_f32 b) { (void)b; return a; }
INLINE vt_f32 high_f32(vt_f32 a, vt_f32 b) { (void)b; return a; }
INLINE vt_f64 low_f64(vt_f64 a, vt_f64 b) { (void)b; return a; }
INLINE vt_f64 high_f64(vt_f64 a, vt_f64 b) { (void)b; return a; }

/* The first n lanes, and 0 in the others; n is less than LANES. */
INLINE vdouble first_of(vdouble v, ptrdiff_t n) { (void)n; return v; }

/* value where d is not NaN, 0 where it is */
INLINE vdouble observed(vdouble d, vdouble value) { return d == d ? value : 0.0; }

/* The sum of the lanes, pairwise: the first half plus the second, and so on. */
INLINE double sum_of_register(vdouble v) { return v; }

/* Where v is infinite, not NaN: all bits. */
INLINE vbits_f32 infinite_f32(vt_f32 v) { return -(isinf(v) != 0); }
INLINE vbits_f64 infinite_f64(vt_f64 v) { return -(isinf(v) != 0); }

/* v where a byte is not 0, otherwise 0; n bytes are read. */
INLINE vt_f32 counted_f32(const unsigned char *p, vt_f32 v, const ptrdiff_t n) { (void)n; return *p ? v : 0.0f; }
INLINE vt_f64 counted_f64(const unsigned char *p, vt_f64 v, const ptrdiff_t n) { (void)n; return *p ? v : 0.0; }

/* relu: max(v, 0), but NaN stays. where_above_0: v where y is above 0 or NaN, otherwise 0. */
INLINE vt_f32 relu_f32(vt_f32 v) { return v < 0 ? 0.0f : v; }
INLINE vt_f64 relu_f64(vt_f64 v) { return v < 0 ? 0.0 : v; }
INLINE vt_f32 where_above_0_f32(vt_f32 y, vt_f32 v) { return y <= 0 ? 0.0f : v; }
INLINE vt_f64 where_above_0_f64(vt_f64 y, vt_f64 v) { return y <= 0 ? 0.0 : v; }
INLINE ht_f32 where_above_0_ht_f32(ht_f32 y, ht_f32 v) { return y <= 0 ? 0.0f : v; }
INLINE ht_f64 where_above_0_ht_f64(ht_f64 y, ht_f64 v) { return y <= 0 ? 0.0 : v; }
