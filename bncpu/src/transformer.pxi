# What the transformer calls: its running statistics, and its short ways.

# So few values are one part, on one thread.
cdef Py_ssize_t _small = 1 << 16


cdef inline bn_moments _moments_at(const double *values, Py_ssize_t c, Py_ssize_t width) noexcept nogil:
    cdef bn_moments m
    m.count, m.mean, m.mean_lo, m.m2 = values[c], values[width + c], values[2 * width + c], values[3 * width + c]
    return m


cdef inline void _set_moments(double *values, Py_ssize_t c, Py_ssize_t width, bn_moments m) noexcept nogil:
    values[c], values[width + c], values[2 * width + c], values[3 * width + c] = m.count, m.mean, m.mean_lo, m.m2


def fold_running(cnp.ndarray learned, n_values, double ddof, double eps, bint with_mean, bint with_std,
                 cnp.ndarray gamma, cnp.ndarray beta):
    """What a transformer tells of its running statistics, and what it applies.

    Parameters
    ----------
    learned : C-contiguous ndarray of shape (>= 4, n_features), float64
        Count, mean, mean_lo and m2.
    n_values : float, or C-contiguous ndarray of shape (n_features,), float64, or None
        Values behind them, if not the count.
    ddof, eps : float
    with_mean, with_std : bool
    gamma, beta : C-contiguous ndarray of shape (n_features,), float64, or None

    Returns
    -------
    ndarray of shape (6, n_features), float64
        Mean, variance and divisor; mean, scale and shift to apply.
    ndarray of shape (3, n_features), float32, or None
        The last three for float32; None if that does not suffice for all features.
    """
    cdef Py_ssize_t c, width = learned.shape[1]
    cdef cnp.ndarray values = _fresh(6, width, cnp.NPY_DOUBLE), single = _fresh(3, width, cnp.NPY_FLOAT)
    cdef const double *m = <const double *> _values(learned)
    cdef const double *scale = <const double *> _values(gamma)
    cdef const double *shift = <const double *> _values(beta)
    cdef const double *counts = m
    cdef double *to = <double *> cnp.PyArray_DATA(values)
    cdef float *rounded_to = <float *> cnp.PyArray_DATA(single)
    cdef double n = 0
    cdef bn_running r
    cdef bint fits = True
    if isinstance(n_values, cnp.ndarray):
        counts = <const double *> _values(n_values)
    elif n_values is not None:
        counts, n = NULL, n_values
    for c in range(width):
        r = bn_fold_running(_moments_at(m, c, width), n if counts == NULL else counts[c], ddof, eps, with_mean,
                            with_std, 1.0 if scale == NULL else scale[c], 0.0 if shift == NULL else shift[c])
        to[c], to[width + c], to[2 * width + c] = r.mean, r.var, r.divisor
        to[3 * width + c], to[4 * width + c], to[5 * width + c] = r.forward.mean, r.forward.scale, r.forward.shift
        fits &= bn_round_affine(&r.forward)
        rounded_to[c], rounded_to[width + c] = <float> r.forward.mean, <float> r.forward.scale
        rounded_to[2 * width + c] = <float> r.forward.shift
    return values, single if fits else None


# ---- the short way of fit and partial_fit ----

cdef struct forgetting:
    # By momentum or by halflife; if by neither, statistics are cumulative.
    bint averages, fades
    double momentum, halflife, ddof
    # Rows of the batch.
    double n_rows


def update_plain(X, channel_axis, weights, n_threads, cnp.ndarray learned, momentum, halflife, double ddof):
    """Running statistics after the batch `X`; None unless it is a plain array of so many channels that they take in.

    Parameters
    ----------
    X : object
    channel_axis : int or None
        1 or the last, for arrays of any shape.
    weights : object
        None, or with cumulative statistics an array of one per row, of float64. Not with `channel_axis`.
    n_threads : int or None
    learned : C-contiguous ndarray of shape (5, n_features), float64
        Count, mean, mean_lo and m2, and rows since a feature's last value.
    momentum, halflife : float, or None; both None for cumulative statistics
    ddof : float

    Returns
    -------
    ndarray of shape (5, n_features), float64
    ndarray of shape (4, n_features), float64
        Moments of the batch.
    bool
        Whether a value was missing.
    """
    cdef job j
    cdef forgetting f
    cdef cnp.ndarray _sums
    f.averages, f.fades, f.ddof = momentum is not None, halflife is not None, ddof
    f.momentum, f.halflife = momentum if f.averages else 0.0, halflife if f.fades else 0.0
    if not _begin_update(&j, &f, X, channel_axis, weights, learned.shape[1]):
        return None
    _cut_for_sums(&j.g)
    _sums = _new_sums(&j, 4)
    j.sum_part, j.skip_missing = _moments_of, True
    _recent = _recency(&j, f.halflife) if f.fades else None
    _set_user_threads(&j, n_threads)
    _run(&j, _sum_task)
    if j.seen and (f.fades or weights is not None):
        return None
    return _updated(&j, &f, learned)


cdef bint _begin_update(job *j, forgetting *f, X, channel_axis, weights, Py_ssize_t width) except -1:
    """Whether `X` and its weights can go the short way: then all that follows from them."""
    cdef bint last
    if not (_has_channels(X, width, channel_axis, &last)
            and _begin_plain(j, <cnp.ndarray> X, None, None, last, cnp.NPY_NOTYPE)):
        return False
    if (f.fades or weights is not None) and cnp.PyArray_NDIM(<cnp.ndarray> X) != 2:
        return False
    f.n_rows = <double> (cnp.PyArray_SIZE(<cnp.ndarray> X) // width)
    if f.averages and f.n_rows == 1:
        return False
    if weights is not None:
        if f.averages or f.fades or not _is_vector(weights, cnp.PyArray_DIM(<cnp.ndarray> X, 0)):
            return False
        if np.minimum.reduce(weights) < 0:
            return False
        j.weights = <const double *> cnp.PyArray_DATA(<cnp.ndarray> weights)
    return True


cdef tuple _updated(job *j, forgetting *f, cnp.ndarray learned):
    """What ``update_plain`` returns, from the moments of the blocks of a batch."""
    cdef Py_ssize_t c, width = j.width
    cdef cnp.ndarray after = _fresh(5, width, cnp.NPY_DOUBLE), of_batch = _fresh(4, width, cnp.NPY_DOUBLE)
    cdef const double *old = <const double *> _values(learned)
    cdef double *new = <double *> cnp.PyArray_DATA(after)
    cdef double *batch = <double *> cnp.PyArray_DATA(of_batch)
    cdef bn_moments m, running
    cdef bint missing = False
    for c in range(width):
        m = _merged(j, c)
        _set_moments(batch, c, width, m)
        missing |= j.seen and m.count != f.n_rows
        if j.weights != NULL and not 0 < m.count <= DBL_MAX:  # all are 0, or one is not finite
            return None
        running = _moments_at(old, c, width)
        if not _take_in(&running, m, old[4 * width + c], f):
            return None
        _set_moments(new, c, width, running)
        new[4 * width + c] = 0 if f.fades else old[4 * width + c]
    return after, of_batch, missing


cdef inline bint _take_in(bn_moments *running, bn_moments batch, double age, forgetting *f) noexcept nogil:
    """Merge a feature's moments in a batch, `age` rows after its last value, into those before; whether all is well."""
    if f.averages:
        if batch.count > 0 and (batch.count == 1 or not isfinite(bn_variance(batch.count, 0, f.ddof))):
            return False
        running[0] = bn_update_momentum(running[0], batch, f.momentum, f.ddof)
    elif f.fades:
        if batch.count < 1e-200 * f.n_rows:
            return False
        running[0] = bn_merge(bn_scaled(running[0], bn_decay(age + f.n_rows, f.halflife)), batch, True)
    else:
        running[0] = bn_merge(running[0], batch, True)
    # Not if an infinity was merged, nor if the union overflows.
    return isfinite(running.m2 + running.mean) and isfinite(running.count)


cdef bint _has_channels(object X, Py_ssize_t width, object channel_axis, bint *last) noexcept:
    """Whether `X` is plain, and of so many channels on axis 1 or the last: of rows if there is no `channel_axis`."""
    cdef int n_axes
    if not _is_plain(X):
        return False
    n_axes = cnp.PyArray_NDIM(<cnp.ndarray> X)
    if n_axes < 2 or (channel_axis is None and n_axes != 2):
        return False
    last[0] = channel_axis is not None and (channel_axis == -1 or channel_axis == n_axes - 1)
    return (
        (channel_axis is None or last[0] or channel_axis == 1)
        and cnp.PyArray_DIM(<cnp.ndarray> X, n_axes - 1 if last[0] else 1) == width
    )


# ---- whether the parameters are still those that were checked ----

def unchanged(dict given, checked):
    """Whether the parameters among `given` are certain to pass every check again, with the result `checked`.

    Parameters
    ----------
    given : dict
        Attributes of a transformer.
    checked : tuple
        Its `Parameters` at the last check. They hold copies of gamma and beta: arrays changed in place since differ.
    """
    cdef tuple p = <tuple> checked
    return (
        _same_number(given.get("momentum", given), p[0])
        and _same_number(given.get("halflife", given), p[1])
        and _same_number(given.get("eps", given), p[2])
        and _same_number(given.get("ddof", given), p[3])
        and given.get("with_mean", given) is p[4]
        and given.get("with_std", given) is p[5]
        and _same_axis(given.get("channel_axis", given), p[6])
        and _same_vector(given.get("gamma", given), p[7])
        and _same_vector(given.get("beta", given), p[8])
        and _same_number(given.get("window", given), p[9])
        and _same_number(given.get("clip", given), p[10])
        and type(given.get("copy")) is bool
        and _result_type(None, given.get("dtype", given)) != cnp.NPY_NOTYPE
        and _is_count(given.get("n_threads", given))
        and _is_count(given.get("batch_size", given))
    )


cdef inline bint _same_number(object now, object then):
    return now is then or ((isinstance(now, float) or type(now) is int) and type(then) is float and now == then)


cdef inline bint _same_axis(object now, object then):
    return now is then if then is None else type(now) is int and now == then


cdef inline bint _is_count(object value):
    return value is None or (type(value) is int and value > 0)


cdef inline bint _same_vector(object now, object then):
    return now is then or (
        then is not None
        and _is_vector(now, cnp.PyArray_SIZE(<cnp.ndarray> then))
        and memcmp(_values(now), _values(then), cnp.PyArray_NBYTES(<cnp.ndarray> now)) == 0
    )


# ---- the short way of transform ----

def apply_plain(X, channel_axis, out, dtype, n_threads, cnp.ndarray values, cnp.ndarray single):
    """`X` transformed by what `fold_running` returned, in `out` if that is given, as `dtype`.

    None unless both are plain arrays of so many channels, and neither X nor the result holds an infinity. If X was
    overwritten then, the result and what `apply` says.
    """
    cdef job j
    cdef Py_ssize_t size, width = values.shape[1]
    cdef cnp.ndarray y
    cdef bint apart, last
    cdef int y_type
    if not _has_channels(X, width, channel_axis, &last):
        return None
    y_type = _result_type(X, dtype)
    if y_type == cnp.NPY_NOTYPE or not (
        _begin_plain(&j, <cnp.ndarray> X, None, out, last, y_type) and (j.is_double or single is not None)
    ):
        return None
    y = _plain_result(&j, X, out, &apart, y_type)
    size = width * j.itemsize
    j.c.mean = _further(_values(values), 3 * size) if j.is_double else _values(single)
    j.c.scale, j.c.shift = _further(j.c.mean, size), _further(j.c.mean, 2 * size)
    j.both = not apart or _hides(&j)
    if cnp.PyArray_SIZE(y) <= _small:
        _result_of_small(&j)
    else:
        _run_plain_results(&j, n_threads, apart)
    if j.seen:
        return None if apart else (y, j.seen)
    return y


cdef bint _hides(job *j) noexcept:
    """Whether a channel may be of finite results where `x` is infinite."""
    cdef const double *mean = <const double *> j.c.mean
    cdef const double *scale = <const double *> j.c.scale
    cdef const double *shift = <const double *> j.c.shift
    cdef const float *mean32 = <const float *> j.c.mean
    cdef const float *scale32 = <const float *> j.c.scale
    cdef const float *shift32 = <const float *> j.c.shift
    cdef Py_ssize_t c
    cdef bint shows = True
    if j.is_double:
        for c in range(j.width):
            shows &= _shows(mean[c], scale[c], shift[c])
    else:
        for c in range(j.width):
            shows &= _shows(mean32[c], scale32[c], shift32[c])
    return not shows


cdef inline bint _shows(double mean, double scale, double shift) noexcept nogil:
    return (scale != 0) & ((mean + scale + shift) * 0 == 0)


cdef void _result_of_small(job *j) noexcept:
    """The result of what is one part on one thread, without a loop over parts."""
    cdef place at
    memset(&at, 0, sizeof(place))
    at.part = j.g.whole
    _result_of(j, at)


cdef int _result_type(cnp.ndarray x, object dtype) noexcept:
    """The type number of the result for `x` with a transformer's parameter `dtype`; NPY_NOTYPE if that may be wrong."""
    if dtype is None:
        if x is None or cnp.PyArray_TYPE(x) not in (cnp.NPY_FLOAT16, cnp.NPY_FLOAT):
            return cnp.NPY_DOUBLE
        return cnp.PyArray_TYPE(x)
    return cnp.NPY_FLOAT if dtype is np.float32 else cnp.NPY_DOUBLE if dtype is np.float64 else cnp.NPY_NOTYPE
