# Arrays as the leaves see them: what they hold, and where their parts begin.

ctypedef struct array4:
    # A whole array, in elements: that of its first group, and how far the next one is.
    bn_array group0
    Py_ssize_t next_group, itemsize


cdef bn_type _type_of(cnp.ndarray a) noexcept:
    cdef int size = <int> a.itemsize
    cdef char kind = a.descr.kind
    if kind == c"f":
        return BN_FLOAT16 if size == 2 else BN_FLOAT32 if size == 4 else BN_COMPUTED
    if kind == c"u" or kind == c"b":
        return BN_UINT8 if size == 1 else BN_UINT16 if size == 2 else BN_UINT32 if size == 4 else BN_UINT64
    if kind == c"i":
        return BN_INT8 if size == 1 else BN_INT16 if size == 2 else BN_INT32 if size == 4 else BN_INT64
    return BN_BFLOAT16


cdef inline bn_type _stored(cnp.ndarray a, bint is_double) noexcept:
    """The type of its values beside what they are computed in."""
    cdef bn_type type = _type_of(a)
    return BN_COMPUTED if type == BN_FLOAT32 and not is_double else type


cdef inline bint _needs_double(cnp.ndarray a) noexcept:
    """Whether float32 would not hold its values."""
    cdef bn_type type = _type_of(a)
    return type == BN_COMPUTED or type >= BN_UINT32


cdef array4 _array(cnp.ndarray a, bint is_double) noexcept:
    """A 4-D array in one of the two forms; no data if it is None."""
    cdef array4 whole
    memset(&whole, 0, sizeof(array4))
    if a is not None:
        whole.group0.type = _stored(a, is_double)
        whole.itemsize = a.itemsize
        whole.group0.data = <char *> cnp.PyArray_DATA(a)
        whole.next_group = a.strides[0] // whole.itemsize
        whole.group0.outer = a.strides[1] // whole.itemsize
        whole.group0.channel = a.strides[2] // whole.itemsize if a.shape[2] > 1 else 1
    return whole


cdef inline const char *_values(cnp.ndarray a) noexcept:
    # Not one expression: with NULL in it, it would be a void *, which is not const.
    if a is None:
        return NULL
    return <const char *> cnp.PyArray_DATA(a)


cdef inline bn_array _part(array4 whole, place at) noexcept nogil:
    cdef bn_array part = whole.group0
    if part.data != NULL:
        part.data += whole.itemsize * (
            at.group * whole.next_group + at.outer * part.outer + at.channel * part.channel + at.inner)
    return part


cdef inline const char *_further(const char *values, Py_ssize_t n_bytes) noexcept nogil:
    if values == NULL:
        return NULL
    return values + n_bytes


cdef inline bn_coefficients _of_channels(bn_coefficients c, Py_ssize_t n_bytes) noexcept nogil:
    """The coefficients of the channels that lie so many bytes further on."""
    c.mean, c.scale, c.shift = _further(c.mean, n_bytes), _further(c.scale, n_bytes), _further(c.shift, n_bytes)
    c.dy_scale, c.x_scale = _further(c.dy_scale, n_bytes), _further(c.x_scale, n_bytes)
    c.offset = _further(c.offset, n_bytes)
    return c


cdef cnp.ndarray _fresh(Py_ssize_t rows, Py_ssize_t columns, int typenum):
    """A 2-D array whose values are not set."""
    cdef cnp.npy_intp *shape = [rows, columns]
    return cnp.PyArray_EMPTY(2, shape, typenum, 0)
