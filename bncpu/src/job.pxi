# The job: what a driver was called with, and the memory it works in.

cdef struct job

ctypedef void (*of_part)(job *, place) noexcept nogil
ctypedef bint (*of_channel)(job *, Py_ssize_t) noexcept nogil


cdef struct job:
    grid g
    # Result and dx are `y`; dz is the gradient of what is added, z. `counted` has a byte for each value, which is 0 if
    # it does not count.
    array4 x, z, dy, y, dz, counted
    Py_ssize_t itemsize
    # Threads of the next loop; of the ones after it, if they vary, fewer where fewer would run at once then.
    int n_threads
    bint threads_vary
    # What the leaves are given, and the flags that they raised.
    const bn_leaves *leaves
    bint is_double, relu, skip_missing, centred, both
    int past_cache
    const double *weights
    const double *center
    bn_coefficients c
    int seen
    # Sums have rows of n_blocks * width numbers, `field` apart; coefficients, in the type computed in, rows of width.
    double *sums
    Py_ssize_t n_blocks, width, field
    char *coefficients
    # What the fold of a channel reads; forward it writes invstd. `counts`: values that count, if not all do.
    const double *gamma
    const double *beta
    const double *center_lo
    const double *counts
    double *invstd
    double eps
    # Recency: the weights of the last rows of a block end here.
    const double *recency_end
    double halflife
    # The two steps over parts, and between them the fold of a channel: its sums become coefficients, or do not fit the
    # type computed in. Which tasks of both steps could be done.
    of_part sum_part, result_part
    of_channel fold_channel
    unsigned char *done
    # Of wide rows, where some values do not count: channels of the rows that were joined, and which value is first.
    Py_ssize_t narrow, first


cdef int _begin(job *j, cnp.ndarray x, n_threads, bint is_double=False) except -1:
    """All that follows from `x` in one of the two forms and from `n_threads`; nothing else is there yet."""
    memset(j, 0, sizeof(job))
    j.g.groups, j.g.whole.outer = x.shape[0], x.shape[1]
    j.g.whole.channels, j.g.whole.inner = x.shape[2], x.shape[3]
    _compute_in(j, is_double or _needs_double(x))
    j.x = _array(x, j.is_double)
    return _set_threads(j, n_threads)


cdef void _compute_in(job *j, bint is_double) noexcept:
    """Compute in float64, or in float32, with the leaves in use."""
    j.width, j.itemsize = j.g.groups * j.g.whole.channels, sizeof(double) if is_double else sizeof(float)
    j.leaves, j.is_double = _leaves, is_double


cdef inline Py_ssize_t _n_bytes(job *j) noexcept nogil:
    """Bytes of an array of the job, in the type computed in."""
    return j.g.groups * j.g.whole.outer * j.g.whole.channels * j.g.whole.inner * j.itemsize


cdef int _set_threads(job *j, n_threads) except -1:
    """A number is taken as it is; None is what is allowed, pays, and would run at once."""
    j.threads_vary = n_threads is None
    j.n_threads = _idle(j) if j.threads_vary else n_threads
    return 0


cdef inline int _idle(job *j) noexcept nogil:
    return bn_idle_threads(_paying(bn_max_threads(), _n_bytes(j)))


cdef inline int _past_cache_from(job *j, Py_ssize_t least, bint apart) noexcept nogil:
    """How to store a result: past the cache if it has at least so many bytes and is `apart` from what is read."""
    return _walk if apart and _n_bytes(j) >= least else 0


cdef cnp.ndarray _new_sums(job *j, int rows):
    cdef cnp.npy_intp *shape = [rows, j.g.n_parts.outer * j.g.n_parts.inner, j.width]
    cdef cnp.ndarray sums = cnp.PyArray_EMPTY(3, shape, cnp.NPY_DOUBLE, 0)
    j.sums, j.n_blocks, j.field = <double *> cnp.PyArray_DATA(sums), shape[1], shape[1] * shape[2]
    return sums


cdef cnp.ndarray _new_coefficients(job *j, int rows):
    cdef cnp.ndarray coefficients = _fresh(rows, j.width, cnp.NPY_DOUBLE if j.is_double else cnp.NPY_FLOAT)
    j.coefficients = <char *> cnp.PyArray_DATA(coefficients)
    return coefficients


cdef cnp.ndarray _new_invstd(job *j):
    cdef cnp.ndarray invstd = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &j.width, cnp.NPY_DOUBLE, 0)
    j.invstd = <double *> cnp.PyArray_DATA(invstd)
    return invstd


cdef cnp.ndarray _new_counts(job *j, double count):
    """The same number of values for each channel."""
    cdef cnp.ndarray counts = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &j.width, cnp.NPY_DOUBLE, 0)
    cdef double *to = <double *> cnp.PyArray_DATA(counts)
    cdef Py_ssize_t c
    for c in range(j.width):
        to[c] = count
    j.counts = to
    return counts


cdef inline const char *_row(job *j, int row) noexcept nogil:
    return j.coefficients + row * j.width * j.itemsize


cdef inline void _put(job *j, int row, Py_ssize_t channel, double value) noexcept nogil:
    cdef char *at = j.coefficients + (row * j.width + channel) * j.itemsize
    if j.is_double:
        (<double *> at)[0] = value
    else:
        (<float *> at)[0] = <float> value


cdef inline bint _put_affine(job *j, Py_ssize_t channel, bn_affine k) noexcept nogil:
    """Keep the coefficients of a result; whether they fit the type computed in."""
    cdef bint fits = j.is_double or bn_round_affine(&k)
    _put(j, 0, channel, k.mean)
    _put(j, 1, channel, k.scale)
    _put(j, 2, channel, k.shift)
    return fits
