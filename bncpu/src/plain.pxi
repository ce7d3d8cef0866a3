# The short ways, for plain arrays of any size: the same steps without the checks that explain.
#
# Whatever else there is, errors included, they leave to the long way: they return None, having changed nothing. What
# they return has its bits. What is plain enough for one of them is asked here.

cdef extern from "math.h":
    bint isfinite(double value) noexcept nogil  # libc.math has it of long double


cdef inline bint _is_plain(object a) noexcept:
    """The one test of an array: of numbers that the loops read as they are, in native order, C-contiguous and aligned,
    and no subclass, which might mean something else by it.
    """
    return (
        cnp.PyArray_CheckExact(a)
        and _is_number(cnp.PyArray_TYPE(<cnp.ndarray> a))
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a)
    )


cdef inline bint _is_number(int typenum) noexcept:
    """Booleans, integers, and the three floats."""
    return 0 <= typenum <= cnp.NPY_DOUBLE or typenum == cnp.NPY_FLOAT16


cdef inline bint _is_float(cnp.ndarray a) noexcept:
    """Whether a plain array is of a type that all loops compute in."""
    return cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)


cdef bint _is_vector(object a, Py_ssize_t n) noexcept:
    """Whether these are so many float64."""
    return (
        _is_plain(a)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_DOUBLE
        and cnp.PyArray_NDIM(<cnp.ndarray> a) == 1
        and cnp.PyArray_SIZE(<cnp.ndarray> a) == n
    )


cdef bint _is_vector_or_none(object a, Py_ssize_t n, const double **values) noexcept:
    """The same, or None; and its `values`."""
    values[0] = NULL
    if a is None:
        return True
    if not _is_vector(a, n):
        return False
    values[0] = <const double *> cnp.PyArray_DATA(<cnp.ndarray> a)
    return True


cdef object _as_double(object a):
    """`a`, converted if it is a plain float32 array."""
    if _is_plain(a) and cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_FLOAT:
        return cnp.PyArray_Cast(<cnp.ndarray> a, cnp.NPY_DOUBLE)
    return a


cdef bint _is_like(object a, cnp.ndarray x, int typenum) noexcept:
    """Whether `a` is plain, of the shape of `x` and of this type."""
    return (
        _is_plain(a)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) == typenum
        and cnp.PyArray_NDIM(<cnp.ndarray> a) == cnp.PyArray_NDIM(x)
        and memcmp(cnp.PyArray_DIMS(<cnp.ndarray> a), cnp.PyArray_DIMS(x),
                   cnp.PyArray_NDIM(x) * sizeof(cnp.npy_intp)) == 0
    )


cdef bint _is_same_or_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two C-contiguous arrays are of the same memory, or share none."""
    cdef bint same = cnp.PyArray_BYTES(a) == cnp.PyArray_BYTES(b) and cnp.PyArray_NBYTES(a) == cnp.PyArray_NBYTES(b)
    return same or _is_apart(a, b)


cdef bint _is_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two C-contiguous arrays share no memory."""
    cdef Py_ssize_t between = cnp.PyArray_BYTES(a) - cnp.PyArray_BYTES(b)
    return between >= cnp.PyArray_NBYTES(b) or -between >= cnp.PyArray_NBYTES(a)


cdef inline bint _is_eps(object eps) noexcept:
    return type(eps) is float and <double> eps >= 0 and isfinite(<double> eps) or (type(eps) is int and eps == 0)


# ---- a job of plain arrays ----

cdef bint _begin_floats(job *j, object x, object dy, object out, bint last) noexcept:
    """Whether arrays of float32 or float64, channels on axis 1 or the last, can go the short way: then all that follows
    from them but the result.
    """
    return (
        _is_plain(x)
        and _is_float(<cnp.ndarray> x)
        and _begin_plain(j, <cnp.ndarray> x, dy, out, last, cnp.PyArray_TYPE(<cnp.ndarray> x))
    )


cdef bint _begin_plain(job *j, cnp.ndarray x, object dy, object out, bint last, int y_type) noexcept:
    """The same of any plain `x`, where the result is of another type."""
    cdef int axis
    if cnp.PyArray_NDIM(x) < 2 or cnp.PyArray_SIZE(x) == 0:
        return False
    if not (dy is None or _is_like(dy, x, cnp.PyArray_TYPE(x))):
        return False
    if not (out is None or (
        _is_like(out, x, y_type)
        and cnp.PyArray_ISWRITEABLE(<cnp.ndarray> out)
        and _is_same_or_apart(<cnp.ndarray> out, x)
        and (dy is None or _is_same_or_apart(<cnp.ndarray> out, <cnp.ndarray> dy))
    )):
        return False
    memset(j, 0, sizeof(job))
    # A single channel is a plane, as in the long way: its sums run in lanes.
    axis = cnp.PyArray_NDIM(x) - 1 if last else 1
    j.g.groups, j.g.whole.channels, j.g.whole.inner = 1, x.shape[axis], 1
    for axis in range(axis + 1, cnp.PyArray_NDIM(x)):
        j.g.whole.inner *= x.shape[axis]
    j.g.whole.outer = cnp.PyArray_SIZE(x) // (j.g.whole.channels * j.g.whole.inner)
    if j.g.whole.channels == 1:
        j.g.whole.inner *= j.g.whole.outer
        j.g.whole.outer = 1
    _compute_in(j, y_type == cnp.NPY_DOUBLE or _needs_double(x))
    j.x = _packed(j, x)
    if dy is not None:
        j.dy = j.x
        j.dy.group0.data = <char *> cnp.PyArray_DATA(<cnp.ndarray> dy)
    return True


cdef array4 _packed(job *j, cnp.ndarray a) noexcept:
    """A C-contiguous array of the job's shape."""
    cdef array4 whole
    memset(&whole, 0, sizeof(array4))
    whole.itemsize, whole.group0.data = a.itemsize, <char *> cnp.PyArray_DATA(a)
    whole.group0.type = _stored(a, j.is_double)
    whole.group0.outer, whole.group0.channel = j.g.whole.channels * j.g.whole.inner, j.g.whole.inner
    return whole


cdef cnp.ndarray _plain_counted(job *j, cnp.ndarray x, object where, object out, bint last):
    """Which positions count, for the job; None unless `where` is plain, of the shape of `x` without its channels, and
    shares no memory with the result.
    """
    cdef int n_axes = cnp.PyArray_NDIM(x), axis
    cdef int channel_axis = n_axes - 1 if last else 1
    if not (_is_plain(where) and cnp.PyArray_TYPE(<cnp.ndarray> where) == cnp.NPY_BOOL
            and cnp.PyArray_NDIM(<cnp.ndarray> where) == n_axes - 1
            and (out is None or _is_apart(<cnp.ndarray> where, <cnp.ndarray> out))):
        return None
    for axis in range(n_axes - 1):
        if cnp.PyArray_DIM(<cnp.ndarray> where, axis) != x.shape[axis + (axis >= channel_axis)]:
            return None
    j.counted.itemsize, j.counted.group0.data = 1, <char *> cnp.PyArray_DATA(<cnp.ndarray> where)
    j.counted.group0.outer, j.counted.group0.channel = j.g.whole.inner, 1 if j.g.whole.channels == 1 else 0
    return where


cdef cnp.ndarray _plain_result(job *j, cnp.ndarray x, object out, bint *apart, int y_type=cnp.NPY_NOTYPE):
    """`out`, or a fresh array of the type of `x` or of another; and whether it is none of those that are read."""
    cdef cnp.ndarray y
    if y_type == cnp.NPY_NOTYPE:
        y_type = cnp.PyArray_TYPE(x)
    if out is not None:
        y = out
    elif _n_bytes(j) <= 1 << 20:
        y = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), y_type, 0)
    else:
        y = _buffers.empty_like(x, cnp.PyArray_DescrFromType(y_type), "C")
    j.y = _packed(j, y)
    apart[0] = j.y.group0.data != j.x.group0.data and j.y.group0.data != j.dy.group0.data
    return y


cdef int _set_user_threads(job *j, n_threads) except -1:
    """Those that a user asked for, as far as they pay."""
    return _set_threads(j, threads(n_threads, _n_bytes(j)))


cdef int _run_plain_results(job *j, n_threads, bint apart) except -1:
    j.result_part, j.past_cache = _result_of, _past_cache_from(j, _past_cache_bytes, apart)
    _set_user_threads(j, n_threads)
    return _run_results(j)
