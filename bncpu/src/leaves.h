/* The leaves: functions in C over a part of an array. They are compiled once for each instruction set; a variant is such a
 * set of leaves.
 *
 * A part is `outer` x `channels` runs of `inner` contiguous values.
 *
 *   rows    inner == 1, channels adjacent: (N, C), NHWC; channels lie side by side.
 *   planes  any other: NCHW, F-ordered (N, C); every (outer, channel) is one contiguous run.
 *
 * All arrays of a call have the same form, each with strides of its own. Leaves do not check their arguments, do not
 * allocate and do not start threads. They give the same bits in every variant: there is no fused multiply-add, and the
 * order of sums does not depend on the width of registers.
 */
#ifndef BNCPU_LEAVES_H
#define BNCPU_LEAVES_H

#include <stddef.h>
#include <stdint.h>

/* The most channels of a part for sums: the sums of so many stay in the first- and second-level cache. They take 112 KiB of
 * stack, of which some threads have little. */
#define BN_TILE 2048

typedef struct {
    ptrdiff_t outer, channels, inner;
} bn_part;

/* The type of an array. The leaves compute in float32 or float64. x and y of other types are converted on the way, a few KB
 * at a time: x to the type that holds all its values, y by rounding to the nearest. */
typedef enum {
    BN_COMPUTED, /* the type that the leaf computes in */
    BN_FLOAT32,  /* used only where the leaf computes in float64 */
    BN_FLOAT16,
    BN_BFLOAT16,
    BN_UINT8,
    BN_INT8,
    BN_UINT16,
    BN_INT16,
    BN_UINT32,
    BN_INT32,
    BN_UINT64,
    BN_INT64
} bn_type;

/* Where the part begins in an array, and strides in elements; data is NULL if there is no such array. Only x and y of
 * moments and apply may be of another type than the leaf computes in, and x only without residual and relu.
 *
 * `counted` is of bytes, 0 for each value that does not enter the statistics. All do if there is no such array. Its channel
 * stride may be 0; the channels of a row share it. */
typedef struct {
    char *data;
    ptrdiff_t outer, channel;
    bn_type type;
} bn_array;

/* Arrays with one value per channel, in the type of x. The last three are for backward passes, which read scale and shift
 * only with relu. */
typedef struct {
    const char *mean, *scale, *shift;
    const char *dy_scale, *x_scale, *offset;
} bn_coefficients;

/* Count, mean (mean + mean_lo) and sum of squared deviations of each channel of the part.
 * weights: NULL, or one per (outer, inner) position, weight_stride apart in outer. Not beside `counted`.
 * skip_missing: leave NaN out, per channel; otherwise it propagates.
 * Returns 1 if values were left out, or if the first sums were not finite. With an infinity in x, m2 is never finite. */
typedef int (*bn_moments_fn)(bn_part part, bn_array x, bn_array counted, const double *weights,
                             ptrdiff_t weight_stride, int skip_missing, double *count,
                             double *mean, double *mean_lo, double *m2);

/* What was met: an infinity in y, which x may hold, too; with `both`, in x, and in y. If coefficients are finite and scale is
 * not 0, an infinity in x makes y infinite. */
typedef enum { BN_IN_Y = 1, BN_IN_X = 2, BN_IN_Y_OF_BOTH = 4 } bn_seen;

/* y = (x - mean) * scale + shift, then + residual (if any), then max(., 0) if relu.
 * past_cache: 0 for plain stores; else store past the cache, only if y is not x. It is the number of streams (1 or 4), plus the
 * number of bytes, a multiple of 64, that are fetched ahead of a single stream. Call fence before another thread reads y.
 * Returns bn_seen values, joined. A result that only rounding to another type makes infinite may be reported where it is
 * just the largest that is not. both: look at x and y, apart. */
typedef int (*bn_apply_fn)(bn_part part, bn_array x, bn_array residual, bn_array y,
                           bn_coefficients c, int relu, int past_cache, int both);

/* Sums of g and of g * (x - center) per channel. g is dy, but with relu it is 0 where apply gives 0 for the same x,
 * residual and coefficients. Where apply gives NaN, g is dy. */
typedef void (*bn_backward_sums_fn)(bn_part part, bn_array x, bn_array residual, bn_array dy,
                                    const double *center, bn_coefficients c, int relu,
                                    double *sum, double *product);

/* dx = dy_scale * g + x_scale * (x - mean) + offset, and dresidual = g if there is a residual, which is only with relu.
 * dx = dy_scale * g where x does not count. */
typedef void (*bn_backward_apply_fn)(bn_part part, bn_array x, bn_array residual, bn_array dy,
                                     bn_array dx, bn_array dresidual, bn_array counted,
                                     bn_coefficients c, int relu, int past_cache);

/* y = (x - mean) / sqrt(var + eps) * gamma + beta, each channel with its own statistics. gamma and beta have one value for
 * each inner position, or are both NULL. Not centred: x / sqrt(mean of x**2 + eps), likewise. outer is 1, inner at most
 * BN_SHORT. Writes mean (mean + mean_lo) and the sum of squared deviations, unless these three are NULL.
 * done: 1 where y was written, with the bits of moments and apply; 0 where it was not, as these channels, or others near
 * them, are not finite or have coefficients that do not fit. past_cache: as for apply; the channels of y must be adjacent. */
#define BN_SHORT 64
typedef void (*bn_normalize_fn)(bn_part part, bn_array x, bn_array y, const char *gamma, const char *beta, double eps,
                                int centred, int past_cache, double *mean, double *mean_lo, double *m2,
                                unsigned char *done);

/* Stores past the cache become visible before all later stores of the thread. A fence after every few KB costs a third of
 * the time. */
typedef void (*bn_fence_fn)(void);

/* The yardsticks of the benchmarks. read: the exclusive or of all 64-bit words, the last filled up with zeros, read in 1, 2
 * or 4 streams. copy: copies x. triad: writes the exclusive or of x and y to a third array. copy and triad store past the
 * cache in 1 or 4 streams, with a fence, or with plain stores if streams is 0. */
typedef int64_t (*bn_read_fn)(const char *from, ptrdiff_t n_bytes, int streams);
typedef void (*bn_copy_fn)(const char *x, char *to, ptrdiff_t n_bytes, int streams);
typedef void (*bn_triad_fn)(const char *x, const char *y, char *to, ptrdiff_t n_bytes, int streams);

typedef struct {
    const char *name;
    bn_fence_fn fence;
    bn_read_fn read;
    bn_copy_fn copy;
    bn_triad_fn triad;
    /* [0] float32, [1] float64 */
    bn_moments_fn moments[2];
    bn_apply_fn apply[2];
    bn_backward_sums_fn backward_sums[2];
    bn_backward_apply_fn backward_apply[2];
    bn_normalize_fn normalize[2];
} bn_leaves;

extern const bn_leaves bn_leaves_c;
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define BN_X86_VARIANTS 1
extern const bn_leaves bn_leaves_avx2;
extern const bn_leaves bn_leaves_avx512;
#endif
/* Not on big-endian ARM, where lanes are counted from the other end. */
#if defined(__aarch64__) && !defined(__AARCH64EB__) && (defined(__GNUC__) || defined(__clang__))
#define BN_ARM_VARIANTS 1
extern const bn_leaves bn_leaves_neon;
#endif

#endif
