/* The algebra of one channel, in float64: the merge of moments, and coefficients computed from statistics.
 *
 * NumPy calls the same functions, as ufuncs (_algebra.pyx); bncpu/moments.py documents them.
 */
#ifndef BNCPU_ALGEBRA_H
#define BNCPU_ALGEBRA_H

#include <math.h>
#include <stddef.h>

typedef struct {
    double count, mean, mean_lo, m2;
} bn_moments;

/* hi + lo == a + b exactly (Knuth, TAOCP 2, 4.2.2, theorem B). */
static inline double bn_two_sum(double a, double b, double *lo) {
    double hi = a + b, back = hi - a;
    *lo = (a - (hi - back)) + (b - back);
    return hi;
}

/* Chan, Golub & LeVeque (1983), eq. 2.1. The mean of the heavier side is moved towards that of the lighter, so that a
 * side of weight 0 changes nothing. Without `between` the spread between the two means is left out. */
static inline bn_moments bn_merge(bn_moments a, bn_moments b, int between) {
    bn_moments heavy = b.count > a.count ? b : a, light = b.count > a.count ? a : b, m;
    double share, delta, lo;
    m.count = a.count + b.count;
    share = m.count > 0 ? light.count / m.count : 0.0;
    delta = (light.mean - heavy.mean) + (light.mean_lo - heavy.mean_lo);
    m.mean = bn_two_sum(heavy.mean, delta * share, &lo);
    m.mean = bn_two_sum(m.mean, lo + heavy.mean_lo, &m.mean_lo);
    m.m2 = a.m2 + b.m2;
    if (between)
        m.m2 += delta * (heavy.count * share) * delta;
    return m;
}

/* Merges n blocks, `stride` values apart, into the first: pairwise, in an order that depends on n only. */
static inline bn_moments bn_merge_blocks(double *count, double *mean, double *mean_lo, double *m2, ptrdiff_t n,
                                         ptrdiff_t stride) {
    bn_moments m;
    ptrdiff_t half, i, j;
#define BLOCK(i) ((bn_moments){count[(i) * stride], mean[(i) * stride], mean_lo[(i) * stride], m2[(i) * stride]})
#define STORE(i, m) count[(i) * stride] = m.count, mean[(i) * stride] = m.mean, mean_lo[(i) * stride] = m.mean_lo, m2[(i) * stride] = m.m2
    for (; n > 1; n = half + n % 2) {
        half = n / 2;
        for (i = 0; i < half; i++) {
            m = bn_merge(BLOCK(i), BLOCK(half + i), 1);
            STORE(i, m);
        }
        if (n % 2) {
            j = n - 1;
            m = BLOCK(j);
            STORE(half, m);
        }
    }
    return BLOCK(0);
#undef BLOCK
#undef STORE
}

/* The sum of n values, in the same order. */
static inline double bn_sum_blocks(double *values, ptrdiff_t n, ptrdiff_t stride) {
    ptrdiff_t half, i;
    for (; n > 1; n = half + n % 2) {
        half = n / 2;
        for (i = 0; i < half; i++)
            values[i * stride] += values[(half + i) * stride];
        if (n % 2)
            values[half * stride] = values[(n - 1) * stride];
    }
    return values[0];
}

/* NaN where count is not above ddof. */
static inline double bn_variance(double count, double m2, double ddof) {
    double degrees = count - ddof;
    return degrees > 0 ? m2 / degrees : NAN;
}

/* The exponential average over batches. `count` is the sum of the weights, 1 - momentum**k after k batches; bn_merge divides
 * by it, which corrects the bias of the start. */
static inline bn_moments bn_update_momentum(bn_moments running, bn_moments batch, double momentum, double ddof) {
    if (batch.count > 0) {
        running.count *= momentum;
        running.m2 *= momentum;
        batch.m2 = (1 - momentum) * bn_variance(batch.count, batch.m2, ddof);
        batch.count = 1 - momentum;
    }
    return bn_merge(running, batch, 0);
}

/* The weight of a row after so many later rows. */
static inline double bn_decay(double n_rows, double halflife) { return exp2(-(n_rows / halflife)); }

static inline bn_moments bn_scaled(bn_moments m, double factor) {
    m.count *= factor;
    m.m2 *= factor;
    return m;
}

/* Whether the spread of values of size mean may be the rounding of these values: docs/numerics.md, 4. */
static inline int bn_near_constant(double mean, double std, double n) {
    const double u = 2.220446049250313e-16, most = 16384;
    return std <= (n < most ? n : most) * u * fabs(mean);
}

/* 1 / sqrt(var + eps), and 0 where that would divide by 0. */
static inline double bn_inverse_std(double var, double eps) {
    double std = sqrt(var + eps);
    return std != 0 ? 1.0 / std : 0.0;
}

/* y = (x - mean) * scale + shift */
typedef struct {
    double mean, scale, shift;
} bn_affine;

/* dx = dy_scale * dy + x_scale * (x - mean) + offset */
typedef struct {
    double mean, dy_scale, x_scale, offset;
} bn_gradient;

/* y = gamma * (x - mean - mean_lo) * invstd + beta */
static inline bn_affine bn_fold(double mean, double invstd, double gamma, double beta, double mean_lo) {
    double scale = invstd * gamma;
    bn_affine c = {mean, scale, beta - mean_lo * scale};
    return c;
}

/* The running statistics of a transformer as it shows them, and the coefficients that it applies. n is the number of values
 * behind the statistics. */
typedef struct {
    double mean, var, divisor;
    bn_affine forward;
} bn_running;

static inline bn_running bn_fold_running(bn_moments m, double n, double ddof, double eps, int with_mean, int with_std,
                                         double gamma, double beta) {
    bn_running r;
    r.mean = m.count > 0 ? m.mean : NAN;
    r.var = bn_variance(m.count, m.m2, ddof);
    r.divisor = sqrt(r.var + eps);
    if (eps == 0 && bn_near_constant(r.mean, r.divisor, n))
        r.divisor = 1.0;
    r.forward = bn_fold(with_mean ? r.mean : 0.0, with_std ? 1.0 / r.divisor : 1.0, gamma, beta,
                        with_mean ? m.mean_lo : 0.0);
    return r;
}

/* Coefficients of the gradient, where x acts through statistics of `count` values, too. `g` and `g_x_hat` are the sums of
 * g = gamma * dy and of g * x_hat. */
static inline bn_gradient bn_fold_backward(double mean, double invstd, double gamma, double g, double g_x_hat,
                                           double count, double mean_lo) {
    double offset = -invstd * (g / count), along = -invstd * (g_x_hat / count), x_scale = along * invstd;
    bn_gradient k = {mean, invstd * gamma, x_scale, offset - mean_lo * x_scale};
    return k;
}

/* Whether float32 holds `scale` with all its digits: 0, or well inside the normal range. */
static inline int bn_is_normal(double scale) {
    double size = fabs(scale);
    return size == 0 || (size >= 1e-37 && size <= 1e37);
}

/* For loops in float32: rounds the mean, and adds what rounding took to shift. Returns whether float32 holds the
 * coefficients, and arithmetic with them does not overflow: any float32 minus a mean of 1e30 stays finite. */
static inline int bn_round_affine(bn_affine *c) {
    double mean = (double)(float)c->mean, shift = c->shift - (c->mean - mean) * c->scale;
    int fits = (fabs(c->mean) <= 1e30 && bn_is_normal(c->scale) && fabs(shift) <= 1e37) ||
               isnan(c->mean + c->scale + c->shift);
    c->mean = mean;
    c->shift = shift;
    return fits;
}

static inline int bn_round_gradient(bn_gradient *k) {
    bn_affine c = {k->mean, k->x_scale, k->offset};
    int fits = bn_round_affine(&c) && (bn_is_normal(k->dy_scale) || isnan(k->dy_scale));
    k->mean = c.mean;
    k->offset = c.shift;
    return fits;
}
#endif
