# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, freethreading_compatible=True
"""Sums of the columns of a sparse matrix, on one thread."""

from cpython.exc cimport PyErr_CheckSignals

ctypedef fused value:
    float
    double


def sparse_sums(const value[::1] values, const Py_ssize_t[::1] columns, const double[::1] weights, double[::1] about,
                bint choose, double[:, ::1] sums):
    """Add the weight of all values of each column to ``sums[0]``, that of all but NaN to ``sums[1]``, and the weighted
    sums of their deviations from `about` and of the squares of these to ``sums[2]`` and ``sums[3]``.

    Parameters
    ----------
    values : array of shape (n,), float32 or float64
    columns : array of shape (n,), intp
    weights : array of shape (n,), float64, or None
    about : array of shape (n_columns,), float64
    choose : bool
        Write the first value of each column to `about`.
    sums : C-contiguous array of shape (4, n_columns), float64
    """
    cdef Py_ssize_t i, c
    cdef double w = 1, v, d
    cdef bint weighted = weights is not None
    with nogil:
        for i in range(values.shape[0]):
            c = columns[i]
            v = values[i]
            if weighted:
                w = weights[i]
            sums[0, c] += w
            if v != v or w == 0:
                continue
            if choose and sums[1, c] == 0:
                about[c] = v
            d = v - about[c]
            sums[1, c] += w
            sums[2, c] += w * d
            sums[3, c] += w * d * d
    PyErr_CheckSignals()
