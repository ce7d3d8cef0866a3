"""What algebra.h declares: the algebra of one channel, in float64."""

cdef extern from "algebra.h":
    ctypedef struct bn_moments:
        double count, mean, mean_lo, m2
    ctypedef struct bn_affine:
        double mean, scale, shift
    ctypedef struct bn_gradient:
        double mean, dy_scale, x_scale, offset
    ctypedef struct bn_running:
        double mean, var, divisor
        bn_affine forward
    bn_moments bn_merge(bn_moments a, bn_moments b, bint between) noexcept nogil
    bn_moments bn_merge_blocks(double *count, double *mean, double *mean_lo, double *m2, Py_ssize_t n,
                               Py_ssize_t stride) noexcept nogil
    double bn_sum_blocks(double *values, Py_ssize_t n, Py_ssize_t stride) noexcept nogil
    double bn_variance(double count, double m2, double ddof) noexcept nogil
    bn_moments bn_update_momentum(bn_moments running, bn_moments batch, double momentum, double ddof) noexcept nogil
    double bn_decay(double n_rows, double halflife) noexcept nogil
    bn_moments bn_scaled(bn_moments m, double factor) noexcept nogil
    double bn_inverse_std(double var, double eps) noexcept nogil
    bn_affine bn_fold(double mean, double invstd, double gamma, double beta, double mean_lo) noexcept nogil
    bn_gradient bn_fold_backward(double mean, double invstd, double gamma, double g, double g_x_hat, double count,
                                 double mean_lo) noexcept nogil
    bn_running bn_fold_running(bn_moments m, double n, double ddof, double eps, bint with_mean, bint with_std,
                               double gamma, double beta) noexcept nogil
    bint bn_round_affine(bn_affine *c) noexcept nogil
    bint bn_round_gradient(bn_gradient *k) noexcept nogil
