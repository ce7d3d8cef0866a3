# The short ways of the functions.


def normalize_plain(x, bint last, mean, var, gamma, beta, eps, out, bint relu, n_threads):
    """The result of ``batch_norm``, or None."""
    cdef job j
    cdef cnp.ndarray y, _coefficients
    cdef const double *center
    cdef const double *spread
    cdef Py_ssize_t c
    cdef bint apart
    mean, var, gamma, beta = _as_double(mean), _as_double(var), _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _begin_floats(&j, x, None, out, last) and mean is not None and var is not None):
        return None
    if not (_is_vector_or_none(mean, j.width, &center) and _is_vector_or_none(var, j.width, &spread)
            and _is_vector_or_none(gamma, j.width, &j.gamma) and _is_vector_or_none(beta, j.width, &j.beta)):
        return None
    _coefficients = _new_coefficients(&j, 3)
    for c in range(j.width):
        if spread[c] < 0 or not _put_affine(&j, c, bn_fold(
            center[c], bn_inverse_std(spread[c], eps), 1.0 if j.gamma == NULL else j.gamma[c],
            0.0 if j.beta == NULL else j.beta[c], 0.0
        )):
            return None
    y = _plain_result(&j, x, out, &apart)
    j.c.mean, j.c.scale, j.c.shift, j.relu = _row(&j, 0), _row(&j, 1), _row(&j, 2), relu
    _run_plain_results(&j, n_threads, apart)
    return y


def forward_plain(x, bint last, gamma, beta, eps, where, out, bint relu, n_threads):
    """Result, mean, invstd, mean_lo, m2 and number of values of ``batch_norm_forward``, or None."""
    cdef job j
    cdef cnp.ndarray y, _counted
    cdef bint apart
    cdef Py_ssize_t count
    gamma, beta = _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _begin_floats(&j, x, None, out, last)
            and _is_vector_or_none(gamma, j.width, &j.gamma) and _is_vector_or_none(beta, j.width, &j.beta)):
        return None
    count = j.g.whole.outer * j.g.whole.inner
    if where is not None:
        _counted = _plain_counted(&j, x, where, out, last)
        count = 0 if _counted is None else np.count_nonzero(where)
    if count < 2:
        return None
    y = _plain_result(&j, x, out, &apart)
    _set_user_threads(&j, n_threads)
    if not apart and _may_stop(&j):
        return None
    invstd = _new_invstd(&j)
    j.eps, j.relu = eps, relu
    sums = _sums_if_done(_run_forward(&j, apart))
    return None if sums is None else (y, _sum(sums, 1), invstd, _sum(sums, 2), _sum(sums, 3), count)


def backward_plain(dy, x, bint last, mean, invstd, mean_lo, count, gamma, beta, where, out, bint relu, n_threads):
    """Gradients of x, gamma and beta of ``batch_norm_backward``, or None. `count`, or None, is of the statistics."""
    cdef job j
    cdef cnp.ndarray dx, of_relu = None, sums, _counted, _counts
    cdef const double *spread
    cdef bint apart
    cdef Py_ssize_t n_values
    gamma, beta = _as_double(gamma), _as_double(beta)
    if not (_begin_floats(&j, x, dy, out, last) and dy is not None and mean is not None and invstd is not None
            and mean_lo is not None and _is_vector_or_none(mean, j.width, &j.center)
            and _is_vector_or_none(invstd, j.width, &spread)
            and _is_vector_or_none(mean_lo, j.width, &j.center_lo)
            and _is_vector_or_none(gamma, j.width, &j.gamma) and _is_vector_or_none(beta, j.width, &j.beta)):
        return None
    n_values = j.g.whole.outer * j.g.whole.inner
    if where is not None:
        _counted = _plain_counted(&j, x, where, out, last)
        if _counted is None:
            return None
        n_values = np.count_nonzero(where)
        _counts = _new_counts(&j, n_values)
    if not (count is None or (type(count) is int and count == n_values)):
        return None
    if relu:
        of_relu = _of_relu(&j, spread)
        if of_relu is None:
            return None
    dx = _plain_result(&j, x, out, &apart)
    _set_user_threads(&j, n_threads)
    if not apart and (where is not None or _may_stop(&j)):
        return None
    j.invstd = <double *> spread
    sums = _sums_if_done(_run_backward(&j, apart))
    if where is not None and sums is not None and not _are_finite(sums):
        return None  # x may be NaN where it does not count: the long way looks
    return None if sums is None else (dx, _sum(sums, 1), _sum(sums, 0))


cdef cnp.ndarray _of_relu(job *j, const double *invstd):
    """Let the job compute the result of its forward pass again; the memory of the coefficients, None if they do not
    fit.
    """
    cdef cnp.ndarray coefficients = _new_coefficients(j, 3)
    cdef Py_ssize_t c
    for c in range(j.width):
        if not _put_affine(j, c, bn_fold(j.center[c], invstd[c], 1.0 if j.gamma == NULL else j.gamma[c],
                                         0.0 if j.beta == NULL else j.beta[c], j.center_lo[c])):
            return None
    j.c.mean, j.c.scale, j.c.shift, j.relu = _row(j, 0), _row(j, 1), _row(j, 2), True
    return coefficients


cdef bint _may_stop(job *j) noexcept:
    """Whether a task could be done where another cannot, and the long way would miss what has been overwritten."""
    return not j.is_double and 0 < _resident_channels(j) < j.width


cdef cnp.ndarray _sums_if_done(tuple found):
    """The sums of what ``_run_both`` found, over all blocks; None if a task could not be done."""
    cdef cnp.ndarray sums = found[0], done = found[1]
    if memchr(cnp.PyArray_DATA(done), 0, cnp.PyArray_SIZE(done)) != NULL:
        return None
    return sums if sums.shape[1] == 1 else sums[:, :1].copy()


cdef bint _are_finite(cnp.ndarray numbers) noexcept:
    """Whether a C-contiguous array of float64 has no NaN or infinity."""
    cdef const double *values = <const double *> cnp.PyArray_DATA(numbers)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(numbers)):
        if not isfinite(values[i]):
            return False
    return True


cdef cnp.ndarray _sum(cnp.ndarray sums, int k):
    """``sums[k, 0]``, in a third of the time."""
    cdef cnp.npy_intp n = sums.shape[2]
    cdef cnp.ndarray one = cnp.PyArray_SimpleNewFromData(
        1, &n, cnp.NPY_DOUBLE, <char *> cnp.PyArray_DATA(sums) + k * sums.strides[0]
    )
    cnp.set_array_base(one, sums)
    return one
