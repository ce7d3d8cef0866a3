# The steps: what a job does to a part, by a leaf, and with a channel in between.

# ---- the first step: sums ----

cdef void _moments_of(job *j, place at) noexcept nogil:
    cdef double *to = j.sums + at.block * j.width + _channel(j.g, at)
    cdef Py_ssize_t start = at.outer * j.g.whole.inner + at.inner, n = at.part.outer * at.part.inner
    cdef const double *weights = NULL
    if j.recency_end != NULL:
        weights = j.recency_end - n
    elif j.weights != NULL:
        weights = j.weights + start
    if j.leaves.moments[j.is_double](at.part, _part(j.x, at), _part(j.counted, at), weights, j.g.whole.inner,
                                     j.skip_missing, to, to + j.field, to + 2 * j.field, to + 3 * j.field):
        bn_raise_flags(&j.seen, 1)
    if j.recency_end != NULL:
        _decay_block(j, to, at.part.channels, j.g.whole.outer * j.g.whole.inner - start - n)


cdef void _decay_block(job *j, double *to, Py_ssize_t n_channels, Py_ssize_t rows_after) noexcept nogil:
    """Let the moments of a block, whose own last row weighs 1, fade by the rows after it."""
    cdef double factor = bn_decay(<double> rows_after, j.halflife)
    cdef Py_ssize_t c
    for c in range(n_channels):
        to[c] *= factor
        to[3 * j.field + c] *= factor
        if factor == 0:  # as of rows of no weight
            to[j.field + c] = to[2 * j.field + c] = 0


cdef void _sums_of(job *j, place at) noexcept nogil:
    cdef Py_ssize_t channel = _channel(j.g, at)
    cdef double *to = j.sums + at.block * j.width + channel
    j.leaves.backward_sums[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.dy, at), j.center + channel,
                                        _of_channels(j.c, j.itemsize * channel), j.relu, to, to + j.field)


# ---- in between: the sums of a channel in all blocks are folded into its coefficients ----

cdef inline bn_moments _merged(job *j, Py_ssize_t c) noexcept nogil:
    """A channel's moments in all blocks."""
    cdef double *sums = j.sums + c
    return bn_merge_blocks(sums, sums + j.field, sums + 2 * j.field, sums + 3 * j.field, j.n_blocks, j.width)


cdef bint _forward_fold(job *j, Py_ssize_t c) noexcept nogil:
    """Coefficients from a channel's moments in all blocks, and whether they fit the type of the data."""
    cdef bn_moments m = _merged(j, c)
    j.invstd[c] = bn_inverse_std(m.m2 / m.count, j.eps) if m.count > 0 else 0.0
    return _put_affine(j, c, bn_fold(m.mean, j.invstd[c], 1.0 if j.gamma == NULL else j.gamma[c],
                                     0.0 if j.beta == NULL else j.beta[c], m.mean_lo))


cdef bint _backward_fold(job *j, Py_ssize_t c) noexcept nogil:
    """The same from a channel's sums of g and of ``g * (x - center)``, which becomes that of ``g * x_hat``."""
    cdef double gamma = 1.0 if j.gamma == NULL else j.gamma[c], total = bn_sum_blocks(j.sums + c, j.n_blocks, j.width)
    cdef double g_x_hat = bn_sum_blocks(j.sums + j.field + c, j.n_blocks, j.width) - j.center_lo[c] * total
    cdef double all_count = <double> j.g.whole.outer * <double> j.g.whole.inner
    cdef double count = all_count if j.counts == NULL else j.counts[c]
    cdef bn_gradient k
    cdef bint fits
    g_x_hat *= j.invstd[c]
    j.sums[j.field + c] = g_x_hat
    k = bn_fold_backward(j.center[c], j.invstd[c], gamma, gamma * total, gamma * g_x_hat, count, j.center_lo[c])
    fits = j.is_double or bn_round_gradient(&k)
    _put(j, 0, c, k.mean)
    _put(j, 1, c, k.dy_scale)
    _put(j, 2, c, k.x_scale)
    _put(j, 3, c, k.offset)
    return fits


# ---- the second step: results ----

cdef void _result_of(job *j, place at) noexcept nogil:
    cdef int seen = j.leaves.apply[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.y, at),
                                                _of_channels(j.c, j.itemsize * _channel(j.g, at)), j.relu, j.past_cache,
                                                j.both)
    if seen:
        bn_raise_flags(&j.seen, seen)


cdef void _gradient_of(job *j, place at) noexcept nogil:
    j.leaves.backward_apply[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.dy, at), _part(j.y, at),
                                         _part(j.dz, at), _part(j.counted, at),
                                         _of_channels(j.c, j.itemsize * _channel(j.g, at)), j.relu, j.past_cache)


cdef void _counted_gradient_of(job *j, place at) noexcept nogil:
    """The same of a whole wide row or some, joined from rows that count or do not: with a byte for each value."""
    cdef unsigned char[RESULT_VALUES] each
    cdef Py_ssize_t n = at.part.outer * at.part.channels, value = j.first + at.outer * j.g.whole.channels, i = 0
    cdef Py_ssize_t end = min(n, j.narrow - value % j.narrow)
    cdef const char *row = j.counted.group0.data + value // j.narrow * j.counted.group0.outer
    cdef bn_array counted
    while i < n:
        memset(each + i, row[0], end - i)
        row += j.counted.group0.outer
        i, end = end, min(n, end + j.narrow)
    counted.data, counted.outer, counted.channel, counted.type = <char *> each, at.part.channels, 1, BN_UINT8
    j.leaves.backward_apply[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.dy, at), _part(j.y, at),
                                         _part(j.dz, at), counted, _of_channels(j.c, j.itemsize * at.channel), j.relu,
                                         j.past_cache)


cdef void _normalized_of(job *j, place at) noexcept nogil:
    cdef Py_ssize_t channel = _channel(j.g, at)
    cdef double *to = NULL if j.sums == NULL else j.sums + channel
    j.leaves.normalize[j.is_double](at.part, _part(j.x, at), _part(j.y, at), j.c.scale, j.c.shift, j.eps, j.centred,
                                    j.past_cache, to, to + j.field if to != NULL else to,
                                    to + 2 * j.field if to != NULL else to, j.done + channel)
