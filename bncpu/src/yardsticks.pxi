# The yardsticks, what the loops are measured by: C-contiguous arrays of one size are read and copied.


cdef Py_ssize_t _yard(cnp.ndarray x, int n_threads) noexcept:
    """Bytes that a thread takes at a time: 1 MiB, and less where some would have none."""
    return min(1 << 20, max(1, _ceil_div(cnp.PyArray_NBYTES(x), 4096 * n_threads)) * 4096)


def read(cnp.ndarray x, int n_threads, int streams=1):
    """Read all of `x` in 1, 2 or 4 streams: the exclusive or of its 64-bit words, the last filled up with zeros."""
    cdef bn_read_fn leaf = _leaves.read
    cdef const char *source = <const char *> cnp.PyArray_DATA(x)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    cdef cnp.int64_t found = 0
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        found ^= leaf(source + i * part, min(part, n_bytes - i * part), streams)
    return found


def copy(cnp.ndarray x, cnp.ndarray y, int n_threads, int streams=1):
    """Copy `x` to `y`, past the cache in 1 stream or 4, or plainly in 0."""
    cdef bn_copy_fn leaf = _leaves.copy
    cdef const char *source = <const char *> cnp.PyArray_DATA(x)
    cdef char *to = <char *> cnp.PyArray_DATA(y)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        leaf(source + i * part, to + i * part, min(part, n_bytes - i * part), streams)


def triad(cnp.ndarray x, cnp.ndarray y, cnp.ndarray z, int n_threads, int streams=1):
    """Put the exclusive or of the bits of `x` and `y` into `z`, stored as by ``copy``."""
    cdef bn_triad_fn leaf = _leaves.triad
    cdef const char *left = <const char *> cnp.PyArray_DATA(x)
    cdef const char *right = <const char *> cnp.PyArray_DATA(y)
    cdef char *to = <char *> cnp.PyArray_DATA(z)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        leaf(left + i * part, right + i * part, to + i * part, min(part, n_bytes - i * part), streams)
