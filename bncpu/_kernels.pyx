# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False
"""The parallel loops: arrays in one of the two forms are cut into parts, each part goes to a C leaf.

Arrays come as 4-D views (groups, outer, channels, inner), made by ``_layout``: every channel of every group
has statistics and coefficients of its own. How they are cut depends on their shape alone and every part
writes its own results, so nothing depends on the number of threads. Nothing is checked here:
``_validation`` has done it.
"""

cimport cython
from cython.parallel cimport prange
cimport numpy as cnp

cnp.import_array()


cdef extern from "leaves.h":
    ctypedef struct bn_part:
        Py_ssize_t outer, channels, inner
    ctypedef struct bn_array:
        char *data
        Py_ssize_t outer, channel
    ctypedef struct bn_coefficients:
        const char *mean
        const char *scale
        const char *shift
        const char *dy_scale
        const char *x_scale
        const char *offset
    ctypedef int (*bn_moments_fn)(bn_part, bn_array, const double *, Py_ssize_t, int, double *, double *,
                                  double *, double *) noexcept nogil
    ctypedef int (*bn_apply_fn)(bn_part, bn_array, bn_array, bn_array, bn_coefficients, int, int) noexcept nogil
    ctypedef void (*bn_backward_sums_fn)(bn_part, bn_array, bn_array, bn_array, const double *, bn_coefficients,
                                         int, double *, double *) noexcept nogil
    ctypedef void (*bn_backward_apply_fn)(bn_part, bn_array, bn_array, bn_array, bn_array, bn_array,
                                          bn_coefficients, int, int) noexcept nogil
    ctypedef void (*bn_fence_fn)() noexcept nogil
    ctypedef void (*bn_copy_fn)(const char *, char *, Py_ssize_t) noexcept nogil
    ctypedef struct bn_leaves:
        const char *name
        bn_fence_fn fence
        bn_copy_fn copy
        bn_moments_fn moments[2]
        bn_apply_fn apply[2]
        bn_backward_sums_fn backward_sums[2]
        bn_backward_apply_fn backward_apply[2]
    const int BN_TILE

cdef extern from "algebra.h":
    ctypedef struct bn_moments:
        double count, mean, mean_lo, m2
    ctypedef struct bn_affine:
        double mean, scale, shift
    ctypedef struct bn_gradient:
        double mean, dy_scale, x_scale, offset
    bn_moments bn_merge(bn_moments a, bn_moments b, bint between) noexcept nogil
    bn_moments bn_merge_blocks(double *count, double *mean, double *mean_lo, double *m2, Py_ssize_t n,
                               Py_ssize_t stride) noexcept nogil
    double bn_sum_blocks(double *values, Py_ssize_t n, Py_ssize_t stride) noexcept nogil
    double bn_variance(double count, double m2, double ddof) noexcept nogil
    bn_moments bn_update_momentum(bn_moments running, bn_moments batch, double momentum, double ddof) noexcept nogil
    double bn_inverse_std(double var, double eps) noexcept nogil
    bn_affine bn_fold(double mean, double invstd, double gamma, double beta, double mean_lo) noexcept nogil
    bn_gradient bn_fold_backward(double mean, double invstd, double gamma, double g, double g_x_hat, double count,
                                 double mean_lo) noexcept nogil
    ctypedef struct bn_running:
        double mean, var, divisor
        bn_affine forward
    bn_running bn_fold_running(bn_moments m, double n, double ddof, double eps, bint with_mean, bint with_std,
                               double gamma, double beta) noexcept nogil
    bint bn_round_affine(bn_affine *c) noexcept nogil
    bint bn_round_gradient(bn_gradient *k) noexcept nogil

cdef extern from "variants.h":
    int bn_variants(bn_leaves **found) noexcept nogil

cdef extern from "threads.h":
    int bn_openmp_version() noexcept nogil
    int bn_max_threads() noexcept nogil
    void bn_pause_threads() noexcept nogil

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


# ---- the variant in use ----

TILE = BN_TILE

cdef bn_leaves *_variants[4]
cdef int _n_variants = bn_variants(_variants)
cdef bn_leaves *_leaves = _variants[0]


def isa_variants():
    """Names of the instruction-set variants this processor can run, fastest first."""
    return tuple(_variants[i].name.decode() for i in range(_n_variants))


def isa():
    """Name of the variant in use."""
    return _leaves.name.decode()


def use_isa(name):
    """Switch to the variant `name`. For tests and measurements; not while a kernel runs."""
    global _leaves
    for i in range(_n_variants):
        if _variants[i].name.decode() == name:
            _leaves = _variants[i]
            return
    raise ValueError(f"BNCPU_ISA must be one of {', '.join(isa_variants())} on this machine; got {name!r}")


# ---- threads ----

def openmp_version():
    """Date of the OpenMP specification built against, such as 201511; 0 without OpenMP."""
    return bn_openmp_version()


def max_threads():
    """Threads OpenMP allows now: OMP_NUM_THREADS, threadpoolctl and joblib have had their say."""
    return bn_max_threads()


def pause_threads():
    """End idle worker threads; the next parallel loop starts new ones. Called before a fork."""
    bn_pause_threads()


# ---- the yardstick ----


def copy(cnp.ndarray x, cnp.ndarray y, int n_threads):
    """Copy C-contiguous `x` past the cache to `y` of the same size: what other loops are measured by."""
    cdef bn_copy_fn leaf = _leaves.copy
    cdef const char *source = <const char *> cnp.PyArray_DATA(x)
    cdef char *to = <char *> cnp.PyArray_DATA(y)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = 1 << 20, i
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        leaf(source + i * part, to + i * part, min(part, n_bytes - i * part))


# ---- algebra: the functions of algebra.h, for arrays ----


@cython.ufunc
cdef (double, double, double, double) merge(double count, double mean, double mean_lo, double m2, double count_b,
                                            double mean_b, double mean_lo_b, double m2_b, long between) noexcept nogil:
    cdef bn_moments a, b
    a.count, a.mean, a.mean_lo, a.m2 = count, mean, mean_lo, m2
    b.count, b.mean, b.mean_lo, b.m2 = count_b, mean_b, mean_lo_b, m2_b
    a = bn_merge(a, b, between)
    return a.count, a.mean, a.mean_lo, a.m2


@cython.ufunc
cdef double variance(double count, double m2, double ddof) noexcept nogil:
    return bn_variance(count, m2, ddof)


@cython.ufunc
cdef (double, double, double, double) update_momentum(double count, double mean, double mean_lo, double m2,
                                                      double count_b, double mean_b, double mean_lo_b, double m2_b,
                                                      double momentum, double ddof) noexcept nogil:
    cdef bn_moments a, b
    a.count, a.mean, a.mean_lo, a.m2 = count, mean, mean_lo, m2
    b.count, b.mean, b.mean_lo, b.m2 = count_b, mean_b, mean_lo_b, m2_b
    a = bn_update_momentum(a, b, momentum, ddof)
    return a.count, a.mean, a.mean_lo, a.m2


@cython.ufunc
cdef double inverse_std(double var, double eps) noexcept nogil:
    return bn_inverse_std(var, eps)


@cython.ufunc
cdef (double, double) fold(double invstd, double gamma, double beta, double mean_lo) noexcept nogil:
    cdef bn_affine c = bn_fold(0, invstd, gamma, beta, mean_lo)
    return c.scale, c.shift


@cython.ufunc
cdef (double, double, double) fold_backward(double invstd, double gamma, double g, double g_x_hat, double count,
                                            double mean_lo) noexcept nogil:
    cdef bn_gradient k = bn_fold_backward(0, invstd, gamma, g, g_x_hat, count, mean_lo)
    return k.dy_scale, k.x_scale, k.offset


@cython.ufunc
cdef (float, float, float, unsigned char) rounded(double mean, double scale, double shift) noexcept nogil:
    cdef bn_affine c
    cdef bint fits
    c.mean, c.scale, c.shift = mean, scale, shift
    fits = bn_round_affine(&c)
    return <float> c.mean, <float> c.scale, <float> c.shift, fits


@cython.ufunc
cdef (float, float, float, float, unsigned char) rounded_gradient(double mean, double dy_scale, double x_scale,
                                                                  double offset) noexcept nogil:
    cdef bn_gradient k
    cdef bint fits
    k.mean, k.dy_scale, k.x_scale, k.offset = mean, dy_scale, x_scale, offset
    fits = bn_round_gradient(&k)
    return <float> k.mean, <float> k.dy_scale, <float> k.x_scale, <float> k.offset, fits


def merge_blocks(double[:, :, ::1] blocks):
    """Merge count, mean, mean_lo and m2 of each channel along the second axis, into its first place."""
    cdef Py_ssize_t c
    with nogil:
        for c in range(blocks.shape[2]):
            bn_merge_blocks(&blocks[0, 0, c], &blocks[1, 0, c], &blocks[2, 0, c], &blocks[3, 0, c], blocks.shape[1],
                            blocks.shape[2])


def sum_blocks(double[:, :, ::1] blocks):
    """Add along the second axis, into its first place."""
    cdef Py_ssize_t c, k
    with nogil:
        for k in range(blocks.shape[0]):
            for c in range(blocks.shape[2]):
                bn_sum_blocks(&blocks[k, 0, c], blocks.shape[1], blocks.shape[2])


# ---- sparse ----

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


# ---- how arrays are cut ----

ctypedef struct array4:
    # A whole array: that of its first group, and how far the next one is.
    bn_array first
    Py_ssize_t group, itemsize


ctypedef struct grid:
    # Extents of the whole, of a part, and the number of parts along each axis.
    Py_ssize_t groups, channels
    bn_part whole, part, n
    Py_ssize_t tasks, between_signals


ctypedef struct place:
    # Where a part begins, and what it is one of: the blocks of its channels.
    Py_ssize_t group, outer, channel, inner, block
    bn_part part


cdef array4 _array(cnp.ndarray a) noexcept:
    cdef array4 whole
    whole.first.data = NULL
    whole.first.outer = whole.first.channel = whole.group = whole.itemsize = 0
    if a is not None:
        whole.itemsize = a.itemsize
        whole.first.data = <char *> cnp.PyArray_DATA(a)
        whole.group = a.strides[0] // whole.itemsize
        whole.first.outer = a.strides[1] // whole.itemsize
        whole.first.channel = a.strides[2] // whole.itemsize if a.shape[2] > 1 else 1
    return whole


cdef inline const char *_values(cnp.ndarray a) noexcept:
    return NULL if a is None else <const char *> cnp.PyArray_DATA(a)


cdef inline Py_ssize_t _ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef grid _grid(cnp.ndarray x, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner, int n_threads) noexcept:
    cdef grid g
    g.groups = x.shape[0]
    g.whole.outer = x.shape[1]
    g.whole.channels = g.channels = x.shape[2]
    g.whole.inner = x.shape[3]
    g.part.outer = outer
    g.part.channels = channels
    g.part.inner = inner
    g.n.outer = _ceil_div(g.whole.outer, outer)
    g.n.channels = _ceil_div(g.whole.channels, channels)
    g.n.inner = _ceil_div(g.whole.inner, inner)
    g.tasks = g.groups * g.n.outer * g.n.channels * g.n.inner
    # Some 10 ms of work, in equal shares.
    cdef Py_ssize_t task_bytes = min(outer, g.whole.outer) * min(channels, g.channels) * inner * x.itemsize
    g.between_signals = n_threads * max(1, (64 << 20) // max(1, task_bytes * n_threads))
    return g


cdef grid _grid_of_sums(cnp.ndarray x, Py_ssize_t outer_block, Py_ssize_t inner_block, int n_threads) noexcept:
    # Rows keep their accumulators in L1; planes stay contiguous over at least 32 Ki values.
    cdef Py_ssize_t tile = BN_TILE if x.shape[3] == 1 else max(1, min(BN_TILE, 32768 // inner_block))
    return _grid(x, outer_block, tile, inner_block, n_threads)


cdef grid _grid_of_results(cnp.ndarray x, int n_threads) noexcept:
    # A task is about 64 Ki values: some outer positions, or one with some channels, or a piece of one plane.
    cdef Py_ssize_t inner = max(1, min(x.shape[3], 65536))
    cdef Py_ssize_t channels = max(1, min(x.shape[2], 65536 // inner))
    cdef Py_ssize_t outer = max(1, 65536 // (inner * max(1, x.shape[2])))
    return _grid(x, outer, channels, inner, n_threads)


cdef inline place _place(grid g, Py_ssize_t task) noexcept nogil:
    cdef place at
    cdef Py_ssize_t inner = task % g.n.inner, channel = task // g.n.inner % g.n.channels
    cdef Py_ssize_t outer = task // (g.n.inner * g.n.channels) % g.n.outer
    at.group = task // (g.n.inner * g.n.channels * g.n.outer)
    at.outer = outer * g.part.outer
    at.channel = channel * g.part.channels
    at.inner = inner * g.part.inner
    at.block = outer * g.n.inner + inner
    at.part.outer = min(g.part.outer, g.whole.outer - at.outer)
    at.part.channels = min(g.part.channels, g.channels - at.channel)
    at.part.inner = min(g.part.inner, g.whole.inner - at.inner)
    return at


cdef inline bn_array _part(array4 whole, place at) noexcept nogil:
    cdef bn_array part = whole.first
    if part.data != NULL:
        part.data += whole.itemsize * (
            at.group * whole.group + at.outer * part.outer + at.channel * part.channel + at.inner)
    return part


cdef inline Py_ssize_t _channel(grid g, place at) noexcept nogil:
    return at.group * g.channels + at.channel


cdef inline const char *_further(const char *values, Py_ssize_t bytes) noexcept nogil:
    return NULL if values == NULL else values + bytes


cdef inline bn_coefficients _of_channels(bn_coefficients c, Py_ssize_t bytes) noexcept nogil:
    c.mean, c.scale, c.shift = _further(c.mean, bytes), _further(c.scale, bytes), _further(c.shift, bytes)
    c.dy_scale, c.x_scale = _further(c.dy_scale, bytes), _further(c.x_scale, bytes)
    c.offset = _further(c.offset, bytes)
    return c


cdef bn_coefficients _coefficients(cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray shift, cnp.ndarray dy_scale=None,
                                   cnp.ndarray x_scale=None, cnp.ndarray offset=None) noexcept:
    cdef bn_coefficients c
    c.mean, c.scale, c.shift = _values(mean), _values(scale), _values(shift)
    c.dy_scale, c.x_scale, c.offset = _values(dy_scale), _values(x_scale), _values(offset)
    return c


# ---- the loops over parts ----


def moments(cnp.ndarray x, cnp.ndarray weights, bint skip_missing, Py_ssize_t outer_block,
            Py_ssize_t inner_block, cnp.ndarray out, int n_threads):
    """Count, mean (hi and lo) and m2 of each channel in each block.

    Parameters
    ----------
    x : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In either form: ``inner == 1`` with adjacent channels, or contiguous along ``inner``.
    weights : C-contiguous ndarray of shape (outer, inner), float64, or None
    skip_missing : bool
        Leave NaN out instead of propagating it.
    outer_block, inner_block : int
        Block size; one of them must span its axis.
    out : C-contiguous ndarray of shape (4, n_blocks, groups * channels), float64
        Receives count, mean, mean_lo and m2.
    n_threads : int

    Returns
    -------
    bool
        Whether a NaN may have been left out: the sums of a block were not finite.
    """
    cdef grid g = _grid_of_sums(x, outer_block, inner_block, n_threads)
    cdef place at
    cdef array4 from_x = _array(x)
    cdef const double *w = <const double *> _values(weights)
    cdef double *result = <double *> cnp.PyArray_DATA(out)
    cdef bn_moments_fn leaf = _leaves.moments[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t width = g.groups * g.channels, size = out.shape[1] * width, start = 0, stop, task, to
    cdef int missing = 0
    while start < g.tasks:
        stop = min(g.tasks, start + g.between_signals)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            at = _place(g, task)
            to = at.block * width + _channel(g, at)
            missing |= leaf(
                at.part, _part(from_x, at), NULL if w == NULL else w + (at.outer * g.whole.inner + at.inner),
                g.whole.inner, skip_missing, result + to, result + size + to, result + 2 * size + to,
                result + 3 * size + to,
            )
        start = stop
        PyErr_CheckSignals()
    return missing != 0


def apply(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray mean, cnp.ndarray scale,
          cnp.ndarray shift, bint relu, bint stream, int n_threads):
    """``y = (x - mean) * scale + shift``, then ``+ residual``, then ``max(., 0)``.

    Parameters
    ----------
    x, y, residual : ndarray of shape (groups, outer, channels, inner), float32 or float64
        Of the same dtype, all in the same form; `y` may be one of the others. `residual` may be None.
    mean, scale, shift : C-contiguous ndarray of groups * channels values, dtype of `x`
    relu : bool
    stream : bool
        Store past the cache: for outputs larger than it. Not when `y` is another array, too.
    n_threads : int

    Returns
    -------
    bool
        Whether `x` holds an infinity.
    """
    cdef grid g = _grid_of_results(x, n_threads)
    cdef place at
    cdef array4 from_x = _array(x), from_z = _array(residual), to_y = _array(y)
    cdef bn_coefficients c = _coefficients(mean, scale, shift)
    cdef bn_apply_fn leaf = _leaves.apply[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t size = x.itemsize, start = 0, stop, task
    cdef int infinite = 0
    while start < g.tasks:
        stop = min(g.tasks, start + g.between_signals)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            at = _place(g, task)
            infinite |= leaf(at.part, _part(from_x, at), _part(from_z, at), _part(to_y, at),
                             _of_channels(c, size * _channel(g, at)), relu, stream)
            if stream:
                _leaves.fence()
        start = stop
        PyErr_CheckSignals()
    return infinite != 0


def backward_sums(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray center, cnp.ndarray mean,
                  cnp.ndarray scale, cnp.ndarray shift, bint relu, Py_ssize_t outer_block, Py_ssize_t inner_block,
                  cnp.ndarray out, int n_threads):
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
    outer_block, inner_block : int
        Block size; one of them must span its axis.
    out : C-contiguous ndarray of shape (2, n_blocks, groups * channels), float64
        Receives the sums.
    n_threads : int
    """
    cdef grid g = _grid_of_sums(x, outer_block, inner_block, n_threads)
    cdef place at
    cdef array4 from_x = _array(x), from_z = _array(residual), from_dy = _array(dy)
    cdef const double *about = <const double *> _values(center)
    cdef double *result = <double *> cnp.PyArray_DATA(out)
    cdef bn_coefficients c = _coefficients(mean, scale, shift)
    cdef bn_backward_sums_fn leaf = _leaves.backward_sums[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t width = g.groups * g.channels, size = out.shape[1] * width, start = 0, stop, task, to
    while start < g.tasks:
        stop = min(g.tasks, start + g.between_signals)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            at = _place(g, task)
            to = at.block * width + _channel(g, at)
            leaf(at.part, _part(from_x, at), _part(from_z, at), _part(from_dy, at), about + _channel(g, at),
                 _of_channels(c, from_x.itemsize * _channel(g, at)), relu, result + to, result + size + to)
        start = stop
        PyErr_CheckSignals()


def backward_apply(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
                   cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray shift, cnp.ndarray dy_scale, cnp.ndarray x_scale,
                   cnp.ndarray offset, bint relu, bint stream, int n_threads):
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
    stream : bool
        Store past the cache: for outputs larger than it. Not when `dx` is another array, too.
    n_threads : int
    """
    cdef grid g = _grid_of_results(x, n_threads)
    cdef place at
    cdef array4 from_x = _array(x), from_z = _array(residual), from_dy = _array(dy)
    cdef array4 to_dx = _array(dx), to_dz = _array(dresidual)
    cdef bn_coefficients c = _coefficients(mean, scale, shift, dy_scale, x_scale, offset)
    cdef bn_backward_apply_fn leaf = _leaves.backward_apply[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t size = x.itemsize, start = 0, stop, task
    while start < g.tasks:
        stop = min(g.tasks, start + g.between_signals)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            at = _place(g, task)
            leaf(at.part, _part(from_x, at), _part(from_z, at), _part(from_dy, at), _part(to_dx, at),
                 _part(to_dz, at), _of_channels(c, size * _channel(g, at)), relu, stream)
            if stream:
                _leaves.fence()
        start = stop
        PyErr_CheckSignals()


# ---- both steps of a pass over some channels while their values are in the cache: they come from memory once ----


ctypedef struct fused_pass:
    # Parts are blocks of the channels of a task.
    grid g
    array4 x, z, dy, y, dz
    # Rows of one number per channel: `sums` has several for each block, `field` numbers apart.
    Py_ssize_t n_blocks, width, field
    double *sums
    const double *gamma
    const double *beta
    const double *mean
    const double *mean_lo
    double *invstd
    double eps
    # What the folds are rounded to, and the coefficients they are part of.
    char *folded
    bn_coefficients c
    bint is_double, relu, stream
    unsigned char *done
    bn_moments_fn moments_of
    bn_apply_fn apply_to
    bn_backward_sums_fn backward_sums_of
    bn_backward_apply_fn backward_apply_to


cdef fused_pass _fused(cnp.ndarray x, cnp.ndarray residual, cnp.ndarray gamma, cnp.ndarray invstd, bint relu,
                       bint stream, Py_ssize_t outer_block, Py_ssize_t inner_block, Py_ssize_t channels,
                       cnp.ndarray sums, cnp.ndarray folded, cnp.ndarray done, int n_threads) noexcept:
    cdef fused_pass f
    f.g = _grid(x, outer_block, channels, inner_block, n_threads)
    f.g.tasks = f.g.groups * f.g.n.channels
    f.g.between_signals = 64 * n_threads
    f.x, f.z = _array(x), _array(residual)
    f.n_blocks, f.width = f.g.n.outer * f.g.n.inner, f.g.groups * f.g.channels
    f.field = f.n_blocks * f.width
    f.sums = <double *> cnp.PyArray_DATA(sums)
    f.gamma = <const double *> _values(gamma)
    f.invstd = <double *> cnp.PyArray_DATA(invstd)
    f.folded = <char *> cnp.PyArray_DATA(folded)
    f.relu, f.stream = relu, stream
    f.done = <unsigned char *> cnp.PyArray_DATA(done)
    _set_leaves(&f, x)
    return f


cdef inline void _set_leaves(fused_pass *f, cnp.ndarray x) noexcept:
    f.is_double = cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE
    f.moments_of, f.apply_to = _leaves.moments[f.is_double], _leaves.apply[f.is_double]
    f.backward_sums_of, f.backward_apply_to = _leaves.backward_sums[f.is_double], _leaves.backward_apply[f.is_double]


cdef inline const char *_row(fused_pass f, int row) noexcept nogil:
    return f.folded + row * f.width * f.x.itemsize


cdef inline void _fold_to(fused_pass f, int row, Py_ssize_t channel, double value) noexcept nogil:
    cdef char *at = f.folded + (row * f.width + channel) * f.x.itemsize
    if f.is_double:
        (<double *> at)[0] = value
    else:
        (<float *> at)[0] = <float> value


cdef inline void _fold_affine(fused_pass f, Py_ssize_t channel, bn_affine k) noexcept nogil:
    _fold_to(f, 0, channel, k.mean)
    _fold_to(f, 1, channel, k.scale)
    _fold_to(f, 2, channel, k.shift)


cdef inline place _block(grid g, Py_ssize_t task, Py_ssize_t block) noexcept nogil:
    cdef Py_ssize_t channel = task % g.n.channels, outer = task // g.n.channels * g.n.outer + block // g.n.inner
    return _place(g, (outer * g.n.channels + channel) * g.n.inner + block % g.n.inner)


cdef inline place _strip(grid g, Py_ssize_t task, Py_ssize_t i) noexcept nogil:
    """A part for the second step, the last first: what was read last is nearest. Rows are one strip."""
    cdef place at = _block(g, task, 0)
    cdef Py_ssize_t outer = _strip_outer(g)
    at.outer = (_ceil_div(g.whole.outer, outer) - 1 - i) * outer
    at.part.outer, at.part.inner = min(outer, g.whole.outer - at.outer), g.whole.inner
    return at


cdef inline Py_ssize_t _strip_outer(grid g) noexcept nogil:
    return g.whole.outer if g.whole.inner == 1 else max(1, 8192 // (g.part.channels * g.whole.inner))


cdef void _forward_task(fused_pass f, Py_ssize_t task) noexcept nogil:
    cdef place at = _block(f.g, task, 0)
    cdef Py_ssize_t first = _channel(f.g, at), channels = at.part.channels, i, c
    cdef double *sums
    cdef bint fits = True
    cdef bn_moments m
    cdef bn_affine k
    for i in range(f.n_blocks):
        at, sums = _block(f.g, task, i), f.sums + first + i * f.width
        f.moments_of(at.part, _part(f.x, at), NULL, 0, False, sums, sums + f.field, sums + 2 * f.field,
                     sums + 3 * f.field)
    for c in range(first, first + channels):
        sums = f.sums + c
        m = bn_merge_blocks(sums, sums + f.field, sums + 2 * f.field, sums + 3 * f.field, f.n_blocks, f.width)
        f.invstd[c] = bn_inverse_std(m.m2 / m.count, f.eps)
        k = bn_fold(m.mean, f.invstd[c], 1.0 if f.gamma == NULL else f.gamma[c],
                    0.0 if f.beta == NULL else f.beta[c], m.mean_lo)
        fits = (f.is_double or bn_round_affine(&k)) and fits
        _fold_affine(f, c, k)
    f.done[task] = fits
    if fits:
        for i in range(_ceil_div(f.g.whole.outer, _strip_outer(f.g))):
            at = _strip(f.g, task, i)
            f.apply_to(at.part, _part(f.x, at), _part(f.z, at), _part(f.y, at),
                       _of_channels(f.c, f.x.itemsize * first), f.relu, f.stream)


cdef void _backward_task(fused_pass f, Py_ssize_t task) noexcept nogil:
    cdef place at = _block(f.g, task, 0)
    cdef Py_ssize_t first = _channel(f.g, at), channels = at.part.channels, i, c
    cdef double *sums
    cdef double gamma, total, g_x_hat, count = <double> f.g.whole.outer * <double> f.g.whole.inner
    cdef bint fits = True
    cdef bn_gradient k
    for i in range(f.n_blocks):
        at, sums = _block(f.g, task, i), f.sums + first + i * f.width
        f.backward_sums_of(at.part, _part(f.x, at), _part(f.z, at), _part(f.dy, at), f.mean + first,
                           _of_channels(f.c, f.x.itemsize * first), f.relu, sums, sums + f.field)
    for c in range(first, first + channels):
        total, gamma = bn_sum_blocks(f.sums + c, f.n_blocks, f.width), 1.0 if f.gamma == NULL else f.gamma[c]
        g_x_hat = (bn_sum_blocks(f.sums + f.field + c, f.n_blocks, f.width) - f.mean_lo[c] * total) * f.invstd[c]
        f.sums[f.field + c] = g_x_hat
        k = bn_fold_backward(f.mean[c], f.invstd[c], gamma, gamma * total, gamma * g_x_hat, count, f.mean_lo[c])
        fits = (f.is_double or bn_round_gradient(&k)) and fits
        _fold_to(f, 0, c, k.mean)
        _fold_to(f, 1, c, k.dy_scale)
        _fold_to(f, 2, c, k.x_scale)
        _fold_to(f, 3, c, k.offset)
    f.done[task] = fits
    if fits:
        for i in range(_ceil_div(f.g.whole.outer, _strip_outer(f.g))):
            at = _strip(f.g, task, i)
            f.backward_apply_to(at.part, _part(f.x, at), _part(f.z, at), _part(f.dy, at), _part(f.y, at),
                                _part(f.dz, at), _of_channels(f.c, f.x.itemsize * first), f.relu, f.stream)


ctypedef void (*fused_task)(fused_pass, Py_ssize_t) noexcept nogil


cdef int _run(fused_pass f, fused_task run, int n_threads) except -1:
    cdef Py_ssize_t start = 0, stop, task
    while start < f.g.tasks:
        stop = min(f.g.tasks, start + f.g.between_signals)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            run(f, task)
            if f.stream:
                _leaves.fence()
        start = stop
        PyErr_CheckSignals()
    return 0


def forward(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray gamma, cnp.ndarray beta, double eps,
            bint relu, bint stream, Py_ssize_t outer_block, Py_ssize_t inner_block, Py_ssize_t channels,
            cnp.ndarray sums, cnp.ndarray invstd, cnp.ndarray folded, cnp.ndarray done, int n_threads):
    """``moments``, their merge and fold, and ``apply``: `channels` channels at a time.

    Parameters
    ----------
    x, y, residual, relu, stream, n_threads
        As for ``apply``.
    gamma, beta : C-contiguous ndarray of groups * channels values, float64, or None
    eps : float
    outer_block, inner_block, sums
        As for ``moments``, its `out`. The first block receives the moments of all.
    channels : int
        At most ``BN_TILE``. Together they should fit the cache.
    invstd : C-contiguous ndarray of groups * channels values, float64
        Written.
    folded : C-contiguous ndarray of shape (3, groups * channels), dtype of `x`
        For the coefficients of ``apply``.
    done : C-contiguous ndarray of shape (groups, ceil(n_channels / channels)), uint8
        Receives 0 where float32 does not suffice for one of the channels: there `y` is not written.
    """
    cdef fused_pass f = _fused(x, residual, gamma, invstd, relu, stream, outer_block, inner_block, channels, sums,
                               folded, done, n_threads)
    f.y, f.beta, f.eps = _array(y), <const double *> _values(beta), eps
    f.c = _coefficients(None, None, None)
    f.c.mean, f.c.scale, f.c.shift = _row(f, 0), _row(f, 1), _row(f, 2)
    _run(f, _forward_task, n_threads)


def backward(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
             cnp.ndarray center, cnp.ndarray center_lo, cnp.ndarray invstd, cnp.ndarray gamma, cnp.ndarray mean,
             cnp.ndarray scale, cnp.ndarray shift, bint relu, bint stream, Py_ssize_t outer_block,
             Py_ssize_t inner_block, Py_ssize_t channels, cnp.ndarray sums, cnp.ndarray folded, cnp.ndarray done,
             int n_threads):
    """``backward_sums``, their fold, and ``backward_apply``: `channels` channels at a time.

    Parameters
    ----------
    dy, x, residual, dx, dresidual, relu, mean, scale, shift, stream, n_threads
        As for ``backward_apply``; the coefficients are those of ReLU only.
    center, center_lo, invstd : C-contiguous ndarray of groups * channels values, float64
        What the forward pass saved.
    gamma : C-contiguous ndarray of groups * channels values, float64, or None
    outer_block, inner_block, sums
        As for ``backward_sums``, its `out`. The first block receives the sums of g and of g times x_hat.
    channels : int
        As for ``forward``.
    folded : C-contiguous ndarray of shape (4, groups * channels), dtype of `x`
        For the coefficients of ``backward_apply``.
    done : C-contiguous ndarray of shape (groups, ceil(n_channels / channels)), uint8
        As for ``forward``.
    """
    cdef fused_pass f = _fused(x, residual, gamma, invstd, relu, stream, outer_block, inner_block, channels, sums,
                               folded, done, n_threads)
    f.dy, f.y, f.dz = _array(dy), _array(dx), _array(dresidual)
    f.mean, f.mean_lo = <const double *> _values(center), <const double *> _values(center_lo)
    f.c = _coefficients(mean, scale, shift)
    if mean is None:
        f.c.mean = _row(f, 0)  # or the same, already there for the sums
    f.c.dy_scale, f.c.x_scale, f.c.offset = _row(f, 1), _row(f, 2), _row(f, 3)
    _run(f, _backward_task, n_threads)


# ---- the transformer's running statistics, and the short way of its small calls ----
#
# Plain arrays too small for threads go straight to a leaf. Whatever else there is, errors included, these functions
# leave to the long way: they return None, having changed nothing. What they return has the bits of the long way.

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, cnp.PyArray_Descr *dtype, int subok)

cdef extern from "math.h":
    bint isfinite(double value) noexcept nogil

cdef extern from "string.h":
    int memcmp(const void *a, const void *b, size_t n) noexcept nogil

# So many values are one block and one thread of the long way.
cdef Py_ssize_t _small = 1 << 16


cdef cnp.ndarray _fresh(Py_ssize_t rows, Py_ssize_t columns, int typenum):
    cdef cnp.npy_intp *shape = [rows, columns]
    return cnp.PyArray_EMPTY(2, shape, typenum, 0)


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


cdef bint _is_plain(object a, bint written) noexcept:
    return (
        cnp.PyArray_CheckExact(a)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)
        and (cnp.PyArray_ISCARRAY(<cnp.ndarray> a) if written else cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a))
    )


cdef bint _is_small(object X, Py_ssize_t width) noexcept:
    return (
        _is_plain(X, False)
        and cnp.PyArray_NDIM(<cnp.ndarray> X) == 2
        and cnp.PyArray_DIM(<cnp.ndarray> X, 1) == width
        and 0 < cnp.PyArray_SIZE(<cnp.ndarray> X) <= _small
    )


cdef bn_part _part_of_small(cnp.ndarray x) noexcept:
    # A single column is a plane, as in the long way: its sums run in lanes.
    cdef bn_part part
    cdef bint plane = x.shape[1] == 1
    part.outer = 1 if plane else x.shape[0]
    part.channels = x.shape[1]
    part.inner = x.shape[0] if plane else 1
    return part


cdef bn_array _array_of_small(cnp.ndarray x) noexcept:
    cdef bn_array a
    a.data, a.outer, a.channel = <char *> cnp.PyArray_DATA(x), x.shape[1], 1
    return a


def apply_small(X, cnp.ndarray values, cnp.ndarray single):
    """`X` transformed by what `fold_running` returned; None unless it is a small plain array without infinities."""
    cdef Py_ssize_t size, width = values.shape[1]
    cdef cnp.ndarray x, y
    cdef bn_coefficients c
    cdef bint wide, infinite
    if not _is_small(X, width):
        return None
    x = X
    wide = cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE
    if not wide and single is None:
        return None
    y = PyArray_NewLikeArray(x, cnp.NPY_CORDER, NULL, False)
    size = width * x.itemsize
    c = _coefficients(None, None, None)
    c.mean = _further(_values(values), 3 * size) if wide else _values(single)
    c.scale, c.shift = _further(c.mean, size), _further(c.mean, 2 * size)
    infinite = _leaves.apply[wide](_part_of_small(x), _array_of_small(x), _array(None).first, _array_of_small(y), c,
                                   False, False)
    return None if infinite else y


def update_small(X, cnp.ndarray learned, momentum, double ddof):
    """Running statistics after the batch `X`; None unless it is a small plain array that they can take in.

    Parameters
    ----------
    X : object
    learned : C-contiguous ndarray of shape (5, n_features), float64
        Count, mean, mean_lo and m2, and what is not looked at.
    momentum : float, or None for cumulative statistics
    ddof : float

    Returns
    -------
    ndarray of shape (5, n_features), float64
    ndarray of shape (4, n_features), float64
        Moments of the batch.
    bool
        Whether a value was missing.
    """
    cdef Py_ssize_t c, width = learned.shape[1]
    cdef cnp.ndarray x, after, moments_of_x
    cdef bn_array a
    cdef bn_part part
    cdef bn_moments m
    cdef bn_moments_fn leaf
    cdef const double *old
    cdef double *new
    cdef double *batch
    cdef bint average = momentum is not None, missing = False
    cdef double weight = momentum if average else 0.0
    if not _is_small(X, width) or (average and cnp.PyArray_DIM(<cnp.ndarray> X, 0) == 1):
        return None
    x = X
    after, moments_of_x = _fresh(5, width, cnp.NPY_DOUBLE), _fresh(4, width, cnp.NPY_DOUBLE)
    old = <const double *> _values(learned)
    new, batch = <double *> cnp.PyArray_DATA(after), <double *> cnp.PyArray_DATA(moments_of_x)
    leaf = _leaves.moments[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    a, part = _array_of_small(x), _part_of_small(x)
    for c in range(0, width, BN_TILE):
        part.channels = min(BN_TILE, width - c)
        leaf(part, a, NULL, 0, True, batch + c, batch + width + c, batch + 2 * width + c, batch + 3 * width + c)
        a.data += BN_TILE * x.itemsize
    for c in range(width):
        m = _moments_at(batch, c, width)
        missing |= m.count != x.shape[0]
        if not isfinite(m.m2 + m.mean) or (average and m.count > 0 and (m.count == 1 or m.count <= ddof)):
            return None
        if average:
            m = bn_update_momentum(_moments_at(old, c, width), m, weight, ddof)
        else:
            m = bn_merge(_moments_at(old, c, width), m, True)
        if not isfinite(m.m2 + m.mean):
            return None
        _set_moments(new, c, width, m)
        new[4 * width + c] = old[4 * width + c]
    return after, moments_of_x, missing


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
        and given.get("channel_axis", given) is None and p[6] is None
        and _same_array(given.get("gamma", given), p[7])
        and _same_array(given.get("beta", given), p[8])
        and type(given.get("copy")) is bool
        and _is_count(given.get("n_threads", given))
        and _is_count(given.get("batch_size", given))
    )


cdef inline bint _same_number(object now, object then):
    return now is then or ((isinstance(now, float) or type(now) is int) and type(then) is float and now == then)


cdef inline bint _is_count(object value):
    return value is None or (type(value) is int and value > 0)


cdef inline bint _same_array(object now, object then):
    return now is then or (
        cnp.PyArray_CheckExact(now)
        and then is not None
        and cnp.PyArray_NDIM(<cnp.ndarray> now) == 1
        and cnp.PyArray_TYPE(<cnp.ndarray> now) == cnp.NPY_DOUBLE
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> now)
        and cnp.PyArray_SIZE(<cnp.ndarray> now) == cnp.PyArray_SIZE(<cnp.ndarray> then)
        and memcmp(_values(now), _values(then), cnp.PyArray_NBYTES(<cnp.ndarray> now)) == 0
    )


# ---- the short way of small calls of the functions ----
#
# As above. One task of a fused pass takes them, so statistics and folds are those of the long way.


cdef bint _is_like(object a, cnp.ndarray x, bint written) noexcept:
    return (
        _is_plain(a, written)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.PyArray_TYPE(x)
        and cnp.PyArray_NDIM(<cnp.ndarray> a) == cnp.PyArray_NDIM(x)
        and memcmp(cnp.PyArray_DIMS(<cnp.ndarray> a), cnp.PyArray_DIMS(x),
                   cnp.PyArray_NDIM(x) * sizeof(cnp.npy_intp)) == 0
    )


cdef bint _is_same_or_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef Py_ssize_t between = cnp.PyArray_BYTES(a) - cnp.PyArray_BYTES(b)
    return between == 0 or between >= cnp.PyArray_NBYTES(b) or -between >= cnp.PyArray_NBYTES(a)


cdef object _as_double(object a):
    """`a`, converted if it is a plain float32 array."""
    if _is_plain(a, False) and cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_FLOAT:
        return cnp.PyArray_Cast(<cnp.ndarray> a, cnp.NPY_DOUBLE)
    return a


cdef bint _per_channel(object a, Py_ssize_t n_channels, const double **values) noexcept:
    """Whether `a` is None or float64 per channel, which are its `values` then."""
    values[0] = NULL
    if a is None:
        return True
    if not (_is_plain(a, False) and cnp.PyArray_TYPE(<cnp.ndarray> a) == cnp.NPY_DOUBLE
            and cnp.PyArray_NDIM(<cnp.ndarray> a) == 1 and cnp.PyArray_SIZE(<cnp.ndarray> a) == n_channels):
        return False
    values[0] = <const double *> cnp.PyArray_DATA(<cnp.ndarray> a)
    return True


cdef bint _small_pass(object x, object dy, object out, fused_pass *f) noexcept:
    """Whether the arrays, channels on axis 1, can go the short way: then all of `f` that follows from them."""
    cdef cnp.ndarray a
    cdef int axis
    if not (_is_plain(x, False) and cnp.PyArray_NDIM(<cnp.ndarray> x) >= 2
            and 0 < cnp.PyArray_SIZE(<cnp.ndarray> x) <= _small):
        return False
    a = x
    if not (1 < a.shape[1] <= BN_TILE and (dy is None or _is_like(dy, a, False))):
        return False
    if out is not None and not (_is_like(out, a, True) and _is_same_or_apart(out, a)
                                and (dy is None or _is_same_or_apart(out, dy))):
        return False
    _set_leaves(f, a)
    f.g.groups = f.g.tasks = f.n_blocks = f.g.n.outer = f.g.n.channels = f.g.n.inner = 1
    f.g.whole.outer, f.g.whole.channels, f.g.whole.inner = a.shape[0], a.shape[1], 1
    for axis in range(2, cnp.PyArray_NDIM(a)):
        f.g.whole.inner *= a.shape[axis]
    f.g.part, f.g.channels, f.width, f.field = f.g.whole, a.shape[1], a.shape[1], a.shape[1]
    f.x.first.data, f.x.itemsize, f.x.group = <char *> cnp.PyArray_DATA(a), cnp.PyArray_ITEMSIZE(a), 0
    f.x.first.outer, f.x.first.channel = f.g.channels * f.g.whole.inner, f.g.whole.inner
    f.y = f.dy = f.x
    f.z = f.dz = _array(None)
    if dy is not None:
        f.dy.first.data = <char *> cnp.PyArray_DATA(<cnp.ndarray> dy)
    f.c = _coefficients(None, None, None)
    f.relu = f.stream = False
    return True


cdef cnp.ndarray _small_result(cnp.ndarray x, object out, fused_pass *f):
    cdef cnp.ndarray y = PyArray_NewLikeArray(x, cnp.NPY_CORDER, NULL, False) if out is None else out
    f.y.first.data = <char *> cnp.PyArray_DATA(y)
    return y


cdef cnp.ndarray _small_folds(fused_pass *f, int rows):
    cdef cnp.ndarray folded = _fresh(rows, f.width, cnp.NPY_DOUBLE if f.is_double else cnp.NPY_FLOAT)
    f.folded = <char *> cnp.PyArray_DATA(folded)
    f.c.mean = _row(f[0], 0)
    return folded


cdef inline bint _is_eps(object eps) noexcept:
    return type(eps) is float and <double> eps >= 0 and isfinite(<double> eps) or (type(eps) is int and eps == 0)


def normalize_small(x, mean, var, gamma, beta, eps, out, bint relu):
    """The result of ``batch_norm``, or None."""
    cdef fused_pass f
    cdef cnp.ndarray y, _folded
    cdef const double *center
    cdef const double *spread
    cdef Py_ssize_t c
    cdef bn_affine k
    cdef place at
    mean, var, gamma, beta = _as_double(mean), _as_double(var), _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _small_pass(x, None, out, &f) and mean is not None and var is not None):
        return None
    if not (_per_channel(mean, f.width, &center) and _per_channel(var, f.width, &spread)
            and _per_channel(gamma, f.width, &f.gamma) and _per_channel(beta, f.width, &f.beta)):
        return None
    _folded = _small_folds(&f, 3)
    for c in range(f.width):
        if spread[c] < 0:
            return None
        k = bn_fold(center[c], bn_inverse_std(spread[c], eps), 1.0 if f.gamma == NULL else f.gamma[c],
                    0.0 if f.beta == NULL else f.beta[c], 0.0)
        if not (f.is_double or bn_round_affine(&k)):
            return None
        _fold_affine(f, c, k)
    y = _small_result(x, out, &f)
    f.c.scale, f.c.shift = _row(f, 1), _row(f, 2)
    at = _block(f.g, 0, 0)
    f.apply_to(at.part, f.x.first, f.z.first, f.y.first, f.c, relu, False)
    return y


def forward_small(x, gamma, beta, eps, out, bint relu):
    """Result, mean, invstd and mean_lo of ``batch_norm_forward``, or None."""
    cdef fused_pass f
    cdef cnp.ndarray y, _folded, sums, invstd
    cdef unsigned char done = 0
    gamma, beta = _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _small_pass(x, None, out, &f) and f.g.whole.outer * f.g.whole.inner > 1
            and _per_channel(gamma, f.width, &f.gamma) and _per_channel(beta, f.width, &f.beta)):
        return None
    f.eps, f.relu, f.done = eps, relu, &done
    _folded, sums, y = _small_folds(&f, 3), _fresh(4, f.width, cnp.NPY_DOUBLE), _small_result(x, out, &f)
    invstd = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &f.width, cnp.NPY_DOUBLE, 0)
    f.sums, f.invstd = <double *> cnp.PyArray_DATA(sums), <double *> cnp.PyArray_DATA(invstd)
    f.c.scale, f.c.shift = _row(f, 1), _row(f, 2)
    _forward_task(f, 0)
    return (y, sums[1], invstd, sums[2]) if done else None


def backward_small(dy, x, mean, invstd, mean_lo, gamma, out):
    """Gradients of x, gamma and beta of ``batch_norm_backward``, or None."""
    cdef fused_pass f
    cdef cnp.ndarray dx, _folded, sums
    cdef const double *spread
    cdef unsigned char done = 0
    gamma = _as_double(gamma)
    if not (_small_pass(x, dy, out, &f) and dy is not None and mean is not None and invstd is not None
            and mean_lo is not None and _per_channel(mean, f.width, &f.mean) and _per_channel(invstd, f.width, &spread)
            and _per_channel(mean_lo, f.width, &f.mean_lo) and _per_channel(gamma, f.width, &f.gamma)):
        return None
    f.done, f.invstd = &done, <double *> spread
    _folded, sums, dx = _small_folds(&f, 4), _fresh(2, f.width, cnp.NPY_DOUBLE), _small_result(x, out, &f)
    f.sums = <double *> cnp.PyArray_DATA(sums)
    f.c.dy_scale, f.c.x_scale, f.c.offset = _row(f, 1), _row(f, 2), _row(f, 3)
    _backward_task(f, 0)
    return (dx, sums[1], sums[0]) if done else None
