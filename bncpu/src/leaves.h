/* What a kernel variant offers: the same leaves, compiled once per instruction set.
 *
 * Arrays reach a leaf as a part: `outer` x `channels` runs of `inner` contiguous values.
 *
 *   rows    inner == 1, channels adjacent: (N, C), NHWC; channels lie side by side.
 *   planes  any other: NCHW, F-ordered (N, C); every (outer, channel) is one contiguous run.
 *
 * All arrays of a call come in the same form, each with strides of its own. Leaves trust their arguments.
 * They neither allocate nor start threads, and give the same bits in every variant: no fused multiply-add,
 * and sums in an order that no register width changes.
 */
#ifndef BNCPU_LEAVES_H
#define BNCPU_LEAVES_H

#include <stddef.h>
#include <stdint.h>

/* The most channels a part may have when sums are taken: their accumulators stay in L1 and L2. */
#define BN_TILE 2048

typedef struct {
    ptrdiff_t outer, channels, inner;
} bn_part;

/* What an array holds. The leaves compute in float32 or float64; x and y of other types are converted on the way, a few KB
 * at a time: x to what holds all its values, y to the nearest. */
typedef enum {
    BN_COMPUTED, /* what the leaf computes in */
    BN_FLOAT32,  /* where that is float64 */
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

/* Where an array of the part begins, and its strides in elements; data is NULL for none. Only x and y of moments and
 * apply may be of another type than the leaf computes in, and x only without residual and relu. */
typedef struct {
    char *data;
    ptrdiff_t outer, channel;
    bn_type type;
} bn_array;

/* One value per channel each, in the type of x. The last three are for backward passes only, and
 * scale and shift are not read in those without relu. */
typedef struct {
    const char *mean, *scale, *shift;
    const char *dy_scale, *x_scale, *offset;
} bn_coefficients;

/* Count, mean (mean + mean_lo) and sum of squared deviations of each channel of the part.
 * weights: NULL, or one per (outer, inner) position, weight_stride apart in outer.
 * skip_missing: leave NaN out, per channel; otherwise it propagates.
 * Returns 1 if values were left out, or the first sums were not finite. Infinity always shows as a non-finite m2. */
typedef int (*bn_moments_fn)(bn_part part, bn_array x, const double *weights,
                             ptrdiff_t weight_stride, int skip_missing, double *count,
                             double *mean, double *mean_lo, double *m2);

/* y = (x - mean) * scale + shift, then + residual (if any), then max(., 0) if relu.
 * stream: 0, or store past the cache, only if y is not x, in so many streams (1 or 4), plus so many bytes, a multiple of
 * 64, that are fetched ahead of a single one; a fence must come before another thread reads. Returns 1 if x holds an
 * infinity. */
typedef int (*bn_apply_fn)(bn_part part, bn_array x, bn_array residual, bn_array y,
                           bn_coefficients c, int relu, int stream);

/* Sums of g and of g * (x - center) per channel, where g is dy; with relu 0 where apply gives 0, for the same
 * x, residual and coefficients (NaN, as in apply, is not stopped). */
typedef void (*bn_backward_sums_fn)(bn_part part, bn_array x, bn_array residual, bn_array dy,
                                    const double *center, bn_coefficients c, int relu,
                                    double *sum, double *product);

/* dx = dy_scale * g + x_scale * (x - mean) + offset; dresidual = g, if there is a residual, which needs relu. */
typedef void (*bn_backward_apply_fn)(bn_part part, bn_array x, bn_array residual, bn_array dy,
                                     bn_array dx, bn_array dresidual, bn_coefficients c, int relu,
                                     int stream);

/* y = (x - mean) / sqrt(var + eps) * gamma + beta of each channel, of its own statistics, with gamma and beta per inner
 * value, or both NULL; not centred: x / sqrt(mean of x**2 + eps) likewise. outer is 1, inner at most BN_SHORT. Mean
 * (mean + mean_lo) and sum of squared deviations, or NULL three times. done: 0 for channels of which y was not written, as
 * they, or some beside them, are not finite or their coefficients would not fit; otherwise 1, and y and the statistics
 * have the bits that moments and apply give. stream: as for apply, where the channels of y are adjacent. */
#define BN_SHORT 64
typedef void (*bn_normalize_fn)(bn_part part, bn_array x, bn_array y, const char *gamma, const char *beta, double eps,
                                int centred, int stream, double *mean, double *mean_lo, double *m2,
                                unsigned char *done);

/* Puts what was stored past the cache before all that the thread stores later. Waiting for that after every few KB costs
 * a third of the time. */
typedef void (*bn_fence_fn)(void);

/* The yardsticks: what the others are measured by. read: the exclusive or of all 64-bit words, the last filled up with
 * zeros, in 1, 2 or 4 streams. copy; and triad: the exclusive or of x and y in a third array. Those store past the cache,
 * fenced, in 1 stream or 4, or plainly in 0. */
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
/* With the other byte order lanes would be counted from the other end. */
#if defined(__aarch64__) && !defined(__AARCH64EB__) && (defined(__GNUC__) || defined(__clang__))
#define BN_ARM_VARIANTS 1
extern const bn_leaves bn_leaves_neon;
#endif

#endif
