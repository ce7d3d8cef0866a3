/* What a kernel variant offers: the same leaves, compiled once per instruction set.
 *
 * An array reaches a leaf as a part: `outer` x `channels` runs of `inner` contiguous values.
 *
 *   rows    inner == 1, channel_stride == 1: (N, C), NHWC; channels lie side by side.
 *   planes  any other: NCHW, F-ordered (N, C); every (outer, channel) is one contiguous run.
 *
 * Leaves trust their arguments. They neither allocate nor start threads, and give the same bits in
 * every variant: no fused multiply-add, and sums in an order that no register width changes.
 */
#ifndef BNCPU_LEAVES_H
#define BNCPU_LEAVES_H

#include <stddef.h>

/* The most channels a part may have when its moments are taken: the accumulators stay in L1. */
#define BN_TILE 512

typedef struct {
    ptrdiff_t outer, channels, inner;       /* extents */
    ptrdiff_t outer_stride, channel_stride; /* in elements */
} bn_part;

/* Count, mean (mean + mean_lo) and sum of squared deviations of each channel of the part.
 * weights: NULL, or one per (outer, inner) position, weight_stride apart in outer.
 * skip_missing: leave NaN out, per channel; otherwise it propagates.
 * Returns 1 if values were left out, or the first sums were not finite. Infinity always shows as a non-finite m2. */
typedef int (*bn_moments_fn)(const void *x, bn_part part, const double *weights,
                             ptrdiff_t weight_stride, int skip_missing, double *count,
                             double *mean, double *mean_lo, double *m2);

/* y = (x - mean) * scale + shift, then + residual (unless NULL), then max(., 0) if relu.
 * mean, scale, shift: one per channel, in the type of x. y and residual share y's strides.
 * stream: store past the cache; only if y is not x. Returns 1 if x holds an infinity. */
typedef int (*bn_apply_fn)(const void *x, void *y, const void *residual, bn_part x_part,
                           ptrdiff_t y_outer_stride, ptrdiff_t y_channel_stride, const void *mean,
                           const void *scale, const void *shift, int relu, int stream);

typedef struct {
    const char *name;
    /* [0] float32, [1] float64 */
    bn_moments_fn moments[2];
    bn_apply_fn apply[2];
} bn_leaves;

extern const bn_leaves bn_leaves_c;
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define BN_X86_VARIANTS 1
extern const bn_leaves bn_leaves_avx2;
extern const bn_leaves bn_leaves_avx512;
#endif

#endif
