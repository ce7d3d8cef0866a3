# The loop over tasks: one step over all parts, or both over some channels while these are in the cache.

ctypedef void (*of_task)(job *, Py_ssize_t) noexcept nogil


cdef int _run(job *j, of_task call) except -1:
    """Call it for every task, in parallel."""
    # Signals, and how many processors are idle, are looked at after some 10 ms of work, in equal shares.
    cdef Py_ssize_t task_bytes = max(1, _n_bytes(j) // max(1, j.g.tasks)), start = 0, stop
    while start < j.g.tasks:
        if start and j.threads_vary:
            j.n_threads = _idle(j)
        stop = min(j.g.tasks, start + j.n_threads * max(1, (64 << 20) // (task_bytes * j.n_threads)))
        with nogil:
            bn_for_each(start, stop, <bn_task> call, j, j.n_threads)
        start = stop
        PyErr_CheckSignals()
    return 0


# ---- one step ----

cdef void _sum_task(job *j, Py_ssize_t task) noexcept nogil:
    j.sum_part(j, _place(j.g, task))


cdef void _result_task(job *j, Py_ssize_t task) noexcept nogil:
    j.result_part(j, _place(j.g, task))
    if j.past_cache:
        j.leaves.fence()


cdef int _run_results(job *j) except -1:
    """The second step over everything."""
    if _n_bytes(j) == 0 or _run_wide(j):
        return 0
    _cut_for_results(&j.g)
    return _run(j, _result_task)


# ---- the second step over contiguous rows ----

# Rows are widened to at least this many values, and parameters repeated to match: 4 KiB of float32.
WIDE_ROW = 1024

cdef Py_ssize_t _wide_row = WIDE_ROW


cdef bint _run_wide(job *j) except -1:
    """The second step over a few wide rows, with the parameters repeated to match; False if that cannot be.

    Wide rows start on a cache line of the result, so that streaming stores write whole lines.
    """
    cdef Py_ssize_t channels = j.g.whole.channels, size = j.g.whole.outer * channels
    cdef Py_ssize_t period = channels * (16 // _lowest_bit(channels, 16)), head = 0, k
    cdef Py_ssize_t[4] edges
    cdef cnp.ndarray _repeated
    cdef bn_coefficients c
    cdef job part
    period *= _ceil_div(_wide_row, period)
    if not _is_rows(j.g) or j.g.groups != 1 or size < 4 * period or period > 64 * _wide_row or not (
        _is_packed(j, j.x) and _is_packed(j, j.z) and _is_packed(j, j.dy) and _is_packed(j, j.y) and _is_packed(j, j.dz)
    ):
        return False
    if j.past_cache:
        head = (64 - <size_t> j.y.group0.data % 64) % 64 // j.y.itemsize
    edges[0], edges[1], edges[2], edges[3] = 0, head, size - (size - head) % period, size
    _repeated = _repeat(j, period + channels, &c)
    for k in range(3):
        if edges[k] < edges[k + 1]:
            part = j[0]
            part.g.whole.channels = period if k == 1 else edges[k + 1] - edges[k]
            part.g.whole.outer = (edges[k + 1] - edges[k]) // part.g.whole.channels
            _from(&part.x, edges[k], part.g.whole.channels)
            _from(&part.z, edges[k], part.g.whole.channels)
            _from(&part.dy, edges[k], part.g.whole.channels)
            _from(&part.y, edges[k], part.g.whole.channels)
            _from(&part.dz, edges[k], part.g.whole.channels)
            part.c = _of_channels(c, edges[k] % channels * j.itemsize)
            if j.dy.group0.data != NULL and j.counted.group0.data != NULL:
                part.result_part, part.narrow, part.first = _counted_gradient_of, channels, edges[k]
            _cut_for_results(&part.g)
            _run(&part, _result_task)
            j.seen |= part.seen
    return True


cdef inline bint _is_packed(job *j, array4 a) noexcept:
    return a.group0.data == NULL or a.group0.outer == j.g.whole.channels


cdef inline void _from(array4 *a, Py_ssize_t start, Py_ssize_t width) noexcept:
    a.group0.outer = width
    if a.group0.data != NULL:
        a.group0.data += start * a.itemsize


cdef cnp.ndarray _repeat(job *j, Py_ssize_t n, bn_coefficients *c):
    """Coefficients of rows, over and over to `n` values each: `c` and its memory."""
    cdef Py_ssize_t n_bytes = n * j.itemsize, size = j.g.whole.channels * j.itemsize, k, done
    cdef cnp.ndarray memory = _fresh(6, n_bytes, cnp.NPY_UINT8)
    cdef char *to = <char *> cnp.PyArray_DATA(memory)
    cdef const char **rows = [j.c.mean, j.c.scale, j.c.shift, j.c.dy_scale, j.c.x_scale, j.c.offset]
    for k in range(6):
        if rows[k] != NULL:
            memcpy(to, rows[k], size)
            done = size
            while done < n_bytes:
                memcpy(to + done, to, min(done, n_bytes - done))
                done *= 2
            rows[k] = to
        to += n_bytes
    c.mean, c.scale, c.shift, c.dy_scale, c.x_scale, c.offset = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    return memory


# ---- both steps ----

cdef Py_ssize_t _resident_channels(job *j) noexcept:
    """Channels whose values, of all arrays that are read, stay in the cache from one step to the next; 0 if not one's.

    Rows are read whole, so all of them must.
    """
    cdef bn_part whole = j.g.whole
    cdef Py_ssize_t read = 1 + (j.dy.group0.data != NULL) + (j.z.group0.data != NULL)
    cdef Py_ssize_t n_bytes = read * j.itemsize * whole.outer * whole.inner, fitting, together, places
    if n_bytes == 0:
        return 0
    if whole.inner == 1 and whole.outer > 1:
        return min(whole.channels, BN_TILE) if j.n_threads == 1 and n_bytes * whole.channels <= _resident_bytes else 0
    fitting = min(whole.channels, BN_TILE, _resident_bytes // n_bytes)
    # Where samples lie a power of two apart, most of the cache is not for them.
    together = fitting * whole.inner * j.itemsize
    places = min(_places_bytes, together * (_places_bytes // _lowest_bit(j.x.group0.outer * j.itemsize, _places_bytes)))
    if whole.outer > 1 and n_bytes * fitting > _places_deep * places:
        return 0
    # Some tasks for each thread, so that none waits long for the last.
    return min(fitting, _ceil_div(j.width, 4 * j.n_threads)) if j.n_threads > 1 else fitting


def resident_channels(cnp.ndarray x, int n_read, n_threads):
    """How many channels of `x` a task of both steps has, if so many arrays like it are read; 0: it does not pay."""
    cdef job j
    _begin(&j, x, n_threads)
    j.dy, j.z = j.x if n_read > 1 else j.dy, j.x if n_read > 2 else j.z
    return _resident_channels(&j)


cdef tuple _run_both(job *j, int n_sums, bint apart):
    """Both steps, at once where channels stay in the cache: sums, what was done, and how many channels a task has."""
    cdef Py_ssize_t channels = _resident_channels(j), c
    cdef cnp.ndarray sums, done
    cdef bint fits = True
    if channels:
        _cut_for_both(&j.g, channels)
        sums, done = _new_sums(j, n_sums), _fresh(j.g.groups, j.g.n_parts.channels, cnp.NPY_UINT8)
        j.done = <unsigned char *> cnp.PyArray_DATA(done)
        j.past_cache = _past_cache_from(j, _past_cache_bytes_fused, apart)
        _run(j, _both)
        return sums, done, channels
    _cut_for_sums(&j.g)
    sums, done = _new_sums(j, n_sums), _fresh(j.g.groups, 1, cnp.NPY_UINT8)
    _run(j, _sum_task)
    for c in range(j.width):
        fits = j.fold_channel(j, c) and fits
    if fits:
        j.past_cache = _past_cache_from(j, _past_cache_bytes, apart)
        _run_results(j)
    cnp.PyArray_FILLWBYTE(done, fits)
    return sums, done, j.g.whole.channels


cdef void _both(job *j, Py_ssize_t task) noexcept nogil:
    """Both steps over some channels while their values are in the cache: they come from memory once."""
    cdef place at = _block(j.g, task, 0)
    cdef Py_ssize_t begin = _channel(j.g, at), end = begin + at.part.channels, i, c
    cdef bint fits = True
    for i in range(j.n_blocks):
        j.sum_part(j, _block(j.g, task, i))
    for c in range(begin, end):
        fits = j.fold_channel(j, c) and fits
    j.done[task] = fits
    if fits:
        for i in range(_ceil_div(j.g.whole.outer, _strip_outer(j.g))):
            j.result_part(j, _strip(j.g, task, i))
    if j.past_cache:
        j.leaves.fence()
