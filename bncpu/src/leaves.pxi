# What leaves.h and variants.h declare.

cdef extern from "leaves.h":
    ctypedef struct bn_part:
        Py_ssize_t outer, channels, inner
    ctypedef enum bn_type:
        BN_COMPUTED, BN_FLOAT32, BN_FLOAT16, BN_BFLOAT16, BN_UINT8, BN_INT8, BN_UINT16, BN_INT16
        BN_UINT32, BN_INT32, BN_UINT64, BN_INT64
    ctypedef struct bn_array:
        char *data
        Py_ssize_t outer, channel
        bn_type type
    ctypedef struct bn_coefficients:
        const char *mean
        const char *scale
        const char *shift
        const char *dy_scale
        const char *x_scale
        const char *offset
    ctypedef int (*bn_moments_fn)(bn_part, bn_array, bn_array, const double *, Py_ssize_t, int, double *, double *,
                                  double *, double *) noexcept nogil
    ctypedef int (*bn_apply_fn)(bn_part, bn_array, bn_array, bn_array, bn_coefficients, int, int, int) noexcept nogil
    ctypedef enum bn_seen:
        BN_IN_Y, BN_IN_X, BN_IN_Y_OF_BOTH
    ctypedef void (*bn_backward_sums_fn)(bn_part, bn_array, bn_array, bn_array, const double *, bn_coefficients,
                                         int, double *, double *) noexcept nogil
    ctypedef void (*bn_backward_apply_fn)(bn_part, bn_array, bn_array, bn_array, bn_array, bn_array, bn_array,
                                          bn_coefficients, int, int) noexcept nogil
    ctypedef void (*bn_normalize_fn)(bn_part, bn_array, bn_array, const char *, const char *, double, int, int,
                                     double *, double *, double *, unsigned char *) noexcept nogil
    ctypedef void (*bn_fence_fn)() noexcept nogil
    ctypedef cnp.int64_t (*bn_read_fn)(const char *, Py_ssize_t, int) noexcept nogil
    ctypedef void (*bn_copy_fn)(const char *, char *, Py_ssize_t, int) noexcept nogil
    ctypedef void (*bn_triad_fn)(const char *, const char *, char *, Py_ssize_t, int) noexcept nogil
    ctypedef struct bn_leaves:
        const char *name
        bn_fence_fn fence
        bn_read_fn read
        bn_copy_fn copy
        bn_triad_fn triad
        bn_moments_fn moments[2]
        bn_apply_fn apply[2]
        bn_backward_sums_fn backward_sums[2]
        bn_backward_apply_fn backward_apply[2]
        bn_normalize_fn normalize[2]
    const int BN_TILE, BN_SHORT

cdef extern from "variants.h":
    int bn_variants(bn_leaves **found) noexcept nogil
