# The drivers: a pass over arrays in one of the two forms, which Python code calls.

# Weights of the last rows of a block, with the half-life they are for. Another thread may put others in their place, so
# where there is no GIL the list is locked while the reference is taken.
cdef list _last_recency = [None]


cdef cnp.ndarray _recency(job *j, double halflife):
    """Weights of the rows of a block, 1 for its last, which the job then takes; they are kept for the next call."""
    cdef Py_ssize_t wanted = j.g.part.outer * j.g.part.inner, n = 1024, i
    cdef cnp.ndarray weights
    cdef double *to
    with cython.critical_section(_last_recency):
        last = _last_recency[0]
    if last is not None and last[0] == halflife and cnp.PyArray_SIZE(<cnp.ndarray> last[1]) >= wanted:
        weights = last[1]
    else:
        while n < wanted:
            n *= 2
        weights = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &n, cnp.NPY_DOUBLE, 0)
        to = <double *> cnp.PyArray_DATA(weights)
        for i in range(n):
            to[i] = bn_decay(<double> (n - 1 - i), halflife)
        if n <= 1 << 16:
            with cython.critical_section(_last_recency):
                _last_recency[0] = (halflife, weights)
    j.recency_end = <const double *> cnp.PyArray_DATA(weights) + cnp.PyArray_SIZE(weights)
    j.halflife = halflife
    return weights


def moments(cnp.ndarray x, cnp.ndarray weights, bint skip_missing, n_threads, halflife=None, cnp.ndarray counted=None):
    """Count, mean (hi and lo) and m2 of each channel.

    Parameters
    ----------
    x : ndarray of shape (groups, outer, channels, inner), of a type that `_layout.is_read` names
        In either form: ``inner == 1`` with adjacent channels, or contiguous along ``inner``.
    weights : C-contiguous ndarray of shape (outer, inner), float64, or None
    skip_missing : bool
        Leave NaN out instead of propagating it.
    n_threads : int or None
        None: as many as are allowed, pay, and find a processor idle.
    halflife : float, optional
        Let the weight halve every so many positions from the last one back. Without `weights`, and where `outer` or
        `inner` is 1.
    counted : ndarray of the shape of `x`, bool, or None
        Which values count; contiguous along ``inner``, and with a stride of 0 along channels in the form of rows. `x`
        is float32 or float64 then. Not beside `weights`, `halflife` or `skip_missing`.

    Returns
    -------
    ndarray of shape (4, n_blocks, groups * channels), float64
        Those of the blocks, to be merged.
    bool
        Whether a NaN may have been left out: the sums of a block were not finite.
    """
    cdef job j
    cdef cnp.ndarray sums
    _begin(&j, x, n_threads)
    _cut_for_sums(&j.g)
    sums = _new_sums(&j, 4)
    j.sum_part, j.weights, j.skip_missing = _moments_of, <const double *> _values(weights), skip_missing
    j.counted = _array(counted, False)
    _weights = None if halflife is None else _recency(&j, halflife)
    _run(&j, _sum_task)
    return sums, j.seen != 0


# What `apply` says: whether it met an infinity in y, which x may hold, too; with `both`, in x, and in y.
IN_Y, IN_X, IN_Y_OF_BOTH = BN_IN_Y, BN_IN_X, BN_IN_Y_OF_BOTH


def apply(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray mean, cnp.ndarray scale,
          cnp.ndarray shift, bint relu, bint past_cache, n_threads, bint both=False):
    """``y = (x - mean) * scale + shift``, then ``+ residual``, then ``max(., 0)``.

    Parameters
    ----------
    x, y, residual : ndarray of shape (groups, outer, channels, inner)
        All in the same form; `y` may be one of the others. `residual` may be None. Computed in float64 if `y` is
        float64 or float32 does not hold the values of `x`, else in float32. `x` may be of any type that
        `_layout.is_read` names; `y` and `residual` are of the type computed in, or without `residual` `y` may be of a
        narrower float.
    mean, scale, shift : C-contiguous ndarray of groups * channels values, of the type computed in
    relu : bool
    past_cache : bool
        Store past the cache: for outputs larger than it. Not when `y` is another array, too.
    n_threads : int or None
        None: as many as are allowed, pay, and find a processor idle.
    both : bool
        Look at `x` and `y`. Only without `residual` and `relu`. Without, an infinity in `x` is met only where scale is
        not 0 and the coefficients are finite.

    Returns
    -------
    int
        `IN_Y`, `IN_X`, `IN_Y_OF_BOTH`, joined; 0 if there is no infinity.
    """
    cdef job j
    _begin(&j, x, n_threads, _needs_double(y))
    j.both = both
    j.z, j.y = _array(residual, j.is_double), _array(y, j.is_double)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    j.result_part, j.relu, j.past_cache = _result_of, relu, _walk if past_cache else 0
    _run_results(&j)
    return j.seen


def backward_sums(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray center, cnp.ndarray mean,
                  cnp.ndarray scale, cnp.ndarray shift, bint relu, n_threads):
    """Sums of `dy` and of ``dy * (x - center)`` of each channel in each block.

    With `relu`, `dy` counts as 0 where ``apply`` gives 0, with the same arguments.

    Parameters
    ----------
    dy, x, residual : ndarray of shape (groups, outer, channels, inner), float32 or float64
        Of the same dtype, all in the same form. `residual` may be None, and must be without `relu`.
    center : C-contiguous ndarray of groups * channels values, float64
    mean, scale, shift : C-contiguous ndarray of groups * channels values, dtype of `x`
        Not used without `relu`.
    relu : bool
    n_threads : int or None
        None: as many as are allowed, pay, and find a processor idle.

    Returns
    -------
    ndarray of shape (2, n_blocks, groups * channels), float64
        Those of the blocks, to be added.
    """
    cdef job j
    cdef cnp.ndarray sums
    _begin(&j, x, n_threads)
    _cut_for_sums(&j.g)
    sums = _new_sums(&j, 2)
    j.z, j.dy, j.center = _array(residual, j.is_double), _array(dy, j.is_double), <const double *> _values(center)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    j.sum_part, j.relu = _sums_of, relu
    _run(&j, _sum_task)
    return sums


def backward_apply(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
                   cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray shift, cnp.ndarray dy_scale, cnp.ndarray x_scale,
                   cnp.ndarray offset, bint relu, bint past_cache, n_threads, cnp.ndarray counted=None):
    """``dx = dy_scale * g + x_scale * (x - mean) + offset`` and ``dresidual = g``, where g is `dy`.

    With `relu`, g is 0 where ``apply`` gives 0, with the same arguments.

    Parameters
    ----------
    dy, x, residual, dx, dresidual : ndarray of shape (groups, outer, channels, inner), float32 or float64
        Of the same dtype, all in the same form; `dx` may be one of the first three. `residual` and `dresidual`
        may be None, and must be without `relu`.
    mean, scale, shift : C-contiguous ndarray of groups * channels values, dtype of `x`
        The last two are not used without `relu`.
    dy_scale, x_scale, offset : C-contiguous ndarray of groups * channels values, dtype of `x`
    relu : bool
    past_cache : bool
        Store past the cache: for outputs larger than it. Not when `dx` is another array, too.
    n_threads, counted
        As for ``moments``. ``dx = dy_scale * g`` where `x` does not count.
    """
    cdef job j
    _begin(&j, x, n_threads)
    j.z, j.dy, j.counted = _array(residual, j.is_double), _array(dy, j.is_double), _array(counted, False)
    j.y, j.dz = _array(dx, j.is_double), _array(dresidual, j.is_double)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    j.c.dy_scale, j.c.x_scale, j.c.offset = _values(dy_scale), _values(x_scale), _values(offset)
    j.result_part, j.relu, j.past_cache = _gradient_of, relu, _walk if past_cache else 0
    _run_results(&j)


def forward(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray gamma, cnp.ndarray beta, double eps,
            bint relu, bint apart, n_threads, cnp.ndarray counted=None):
    """``moments``, their merge and fold, and ``apply``.

    Parameters
    ----------
    x, y, residual, relu, n_threads
        As for ``apply``; `x` is not empty.
    gamma, beta : C-contiguous ndarray of groups * channels values, float64, or None
    eps : float
    apart : bool
        Whether `y` shares no memory with what is read.
    counted
        As for ``moments``.

    Returns
    -------
    sums : ndarray of shape (4, n_blocks, groups * channels), float64
        As those of ``moments``; the first block has the moments of all.
    invstd : ndarray of groups * channels values, float64
    done : ndarray of shape (groups, tasks), uint8
        0 where float32 does not suffice for one of the channels of a task: there `y` is not written.
    int
        Channels of a task.
    """
    cdef job j
    _begin(&j, x, n_threads)
    j.y, j.z, j.relu = _array(y, j.is_double), _array(residual, j.is_double), relu
    j.counted = _array(counted, False)
    j.gamma, j.beta, j.eps = <const double *> _values(gamma), <const double *> _values(beta), eps
    invstd = _new_invstd(&j)
    sums, done, channels = _run_forward(&j, apart)
    return sums, invstd, done, channels


cdef tuple _run_forward(job *j, bint apart):
    cdef cnp.ndarray _coefficients = _new_coefficients(j, 3)
    j.c.mean, j.c.scale, j.c.shift = _row(j, 0), _row(j, 1), _row(j, 2)
    j.sum_part, j.fold_channel, j.result_part = _moments_of, _forward_fold, _result_of
    return _run_both(j, 4, apart)


# So many values a channel, with one outer position, are normalized by `normalize`.
SHORT = BN_SHORT


def normalize(cnp.ndarray x, cnp.ndarray y, cnp.ndarray gamma, cnp.ndarray beta, double eps, bint centred, bint keep,
              bint past_cache, n_threads):
    """``moments``, their fold, and ``apply`` of short channels, and a second ``apply`` with parameters per inner value.

    Parameters
    ----------
    x, y : ndarray of shape (groups, 1, channels, inner), float32 or float64
        Of the same dtype, contiguous along `inner`, which is at most `SHORT`; `y` may be `x`.
    gamma, beta : C-contiguous ndarray of shape (inner,), dtype of `x`, or both None
    eps : float
    centred : bool
        Subtract the mean; else divide by the root of the mean square.
    keep : bool
        Return the moments.
    past_cache, n_threads
        As for ``apply``; `past_cache` only if the channels of `y` are adjacent.

    Returns
    -------
    ndarray of shape (3, 1, groups * channels), float64, or None
        Mean (hi and lo) and m2.
    ndarray of shape (groups, channels), uint8
        0 where `y` is not written, as values are not finite or float32 does not suffice, here or nearby.
    """
    cdef job j
    cdef cnp.ndarray sums = None, done
    _begin(&j, x, n_threads)
    _cut(&j.g, 1, max(1, 65536 // j.g.whole.inner), j.g.whole.inner)
    if keep:
        sums = _new_sums(&j, 3)
    done = _fresh(j.g.groups, j.g.whole.channels, cnp.NPY_UINT8)
    j.y, j.done = _array(y, j.is_double), <unsigned char *> cnp.PyArray_DATA(done)
    j.c.scale, j.c.shift = _values(gamma), _values(beta)
    j.eps, j.centred, j.past_cache = eps, centred, _walk if past_cache else 0
    j.result_part = _normalized_of
    _run(&j, _result_task)
    return sums, done


def backward(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
             cnp.ndarray center, cnp.ndarray center_lo, cnp.ndarray invstd, cnp.ndarray gamma, cnp.ndarray mean,
             cnp.ndarray scale, cnp.ndarray shift, bint relu, bint apart, n_threads, cnp.ndarray counted=None,
             cnp.ndarray counts=None):
    """``backward_sums``, their fold, and ``backward_apply``.

    Parameters
    ----------
    dy, x, residual, dx, dresidual, relu, mean, scale, shift, n_threads
        As for ``backward_apply``; the coefficients are those of ReLU only, and `x` is not empty.
    center, center_lo, invstd : C-contiguous ndarray of groups * channels values, float64
        What the forward pass saved.
    gamma : C-contiguous ndarray of groups * channels values, float64, or None
    apart : bool
        As for ``forward``.
    counted : ndarray or None
        As for ``backward_apply``.
    counts : C-contiguous ndarray of groups * channels values, float64, or None
        With `counted`: how many values of each channel count.

    Returns
    -------
    sums : ndarray of shape (2, n_blocks, groups * channels), float64
        The first block has the sums of g and of g times x_hat of all.
    done, channels
        As of ``forward``.
    """
    cdef job j
    _begin(&j, x, n_threads)
    j.z, j.dy = _array(residual, j.is_double), _array(dy, j.is_double)
    j.y, j.dz, j.relu = _array(dx, j.is_double), _array(dresidual, j.is_double), relu
    j.center, j.center_lo = <const double *> _values(center), <const double *> _values(center_lo)
    j.invstd, j.gamma = <double *> _values(invstd), <const double *> _values(gamma)
    j.counted, j.counts = _array(counted, False), <const double *> _values(counts)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    return _run_backward(&j, apart)


cdef tuple _run_backward(job *j, bint apart):
    cdef cnp.ndarray _coefficients = _new_coefficients(j, 4)
    if j.c.mean == NULL:
        j.c.mean = _row(j, 0)  # or the same, already there for the sums
    j.c.dy_scale, j.c.x_scale, j.c.offset = _row(j, 1), _row(j, 2), _row(j, 3)
    j.sum_part, j.fold_channel, j.result_part = _sums_of, _backward_fold, _gradient_of
    return _run_both(j, 2, apart)
