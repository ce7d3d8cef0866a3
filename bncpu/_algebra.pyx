# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, freethreading_compatible=True
"""The algebra of one channel for arrays of channels: the functions of ``src/algebra.h`` as ufuncs, and along blocks.

``moments`` documents them. Nothing is checked here.
"""

cimport cython
cimport numpy as cnp

cnp.import_array()


@cython.ufunc
cdef (double, double, double, double) merge(double count, double mean, double mean_lo, double m2, double count_b,
                                            double mean_b, double mean_lo_b, double m2_b, long between) noexcept nogil:
    cdef bn_moments a, b
    a.count, a.mean, a.mean_lo, a.m2 = count, mean, mean_lo, m2
    b.count, b.mean, b.mean_lo, b.m2 = count_b, mean_b, mean_lo_b, m2_b
    a = bn_merge(a, b, between)
    return a.count, a.mean, a.mean_lo, a.m2


@cython.ufunc
cdef double variance(double count, double m2, double ddof) noexcept nogil:
    return bn_variance(count, m2, ddof)


@cython.ufunc
cdef (double, double, double, double) update_momentum(double count, double mean, double mean_lo, double m2,
                                                      double count_b, double mean_b, double mean_lo_b, double m2_b,
                                                      double momentum, double ddof) noexcept nogil:
    cdef bn_moments a, b
    a.count, a.mean, a.mean_lo, a.m2 = count, mean, mean_lo, m2
    b.count, b.mean, b.mean_lo, b.m2 = count_b, mean_b, mean_lo_b, m2_b
    a = bn_update_momentum(a, b, momentum, ddof)
    return a.count, a.mean, a.mean_lo, a.m2


@cython.ufunc
cdef double decay(double n_rows, double halflife) noexcept nogil:
    return bn_decay(n_rows, halflife)


@cython.ufunc
cdef double inverse_std(double var, double eps) noexcept nogil:
    return bn_inverse_std(var, eps)


@cython.ufunc
cdef (double, double) fold(double invstd, double gamma, double beta, double mean_lo) noexcept nogil:
    cdef bn_affine c = bn_fold(0, invstd, gamma, beta, mean_lo)
    return c.scale, c.shift


@cython.ufunc
cdef (double, double, double) fold_backward(double invstd, double gamma, double g, double g_x_hat, double count,
                                            double mean_lo) noexcept nogil:
    cdef bn_gradient k = bn_fold_backward(0, invstd, gamma, g, g_x_hat, count, mean_lo)
    return k.dy_scale, k.x_scale, k.offset


@cython.ufunc
cdef (float, float, float, unsigned char) rounded(double mean, double scale, double shift) noexcept nogil:
    cdef bn_affine c
    cdef bint fits
    c.mean, c.scale, c.shift = mean, scale, shift
    fits = bn_round_affine(&c)
    return <float> c.mean, <float> c.scale, <float> c.shift, fits


@cython.ufunc
cdef (float, float, float, float, unsigned char) rounded_gradient(double mean, double dy_scale, double x_scale,
                                                                  double offset) noexcept nogil:
    cdef bn_gradient k
    cdef bint fits
    k.mean, k.dy_scale, k.x_scale, k.offset = mean, dy_scale, x_scale, offset
    fits = bn_round_gradient(&k)
    return <float> k.mean, <float> k.dy_scale, <float> k.x_scale, <float> k.offset, fits


def merge_blocks(double[:, :, ::1] blocks):
    """Merge count, mean, mean_lo and m2 of each channel along the second axis, into its first place."""
    cdef Py_ssize_t c
    with nogil:
        for c in range(blocks.shape[2]):
            bn_merge_blocks(&blocks[0, 0, c], &blocks[1, 0, c], &blocks[2, 0, c], &blocks[3, 0, c], blocks.shape[1],
                            blocks.shape[2])


def sum_blocks(double[:, :, ::1] blocks):
    """Add along the second axis, into its first place."""
    cdef Py_ssize_t c, k
    with nogil:
        for k in range(blocks.shape[0]):
            for c in range(blocks.shape[2]):
                bn_sum_blocks(&blocks[k, 0, c], blocks.shape[1], blocks.shape[2])
