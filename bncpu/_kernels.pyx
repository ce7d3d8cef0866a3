# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False
"""The parallel loops: an array in one of the two forms is cut into parts, each part goes to a C leaf.

Arrays come as 3-D views (outer, channels, inner), made by ``_layout``. How they are cut depends on their
shape alone and every part writes its own results, so nothing depends on the number of threads. Nothing
is checked here: ``_validation`` has done it.
"""

from cython.parallel cimport prange
cimport numpy as cnp

cnp.import_array()


cdef extern from "leaves.h":
    ctypedef struct bn_part:
        Py_ssize_t outer, channels, inner, outer_stride, channel_stride
    ctypedef int (*bn_moments_fn)(const void *, bn_part, const double *, Py_ssize_t, int, double *,
                                  double *, double *, double *) noexcept nogil
    ctypedef int (*bn_apply_fn)(const void *, void *, const void *, bn_part, Py_ssize_t, Py_ssize_t,
                                const void *, const void *, const void *, int, int) noexcept nogil
    ctypedef struct bn_leaves:
        const char *name
        bn_moments_fn moments[2]
        bn_apply_fn apply[2]
    const int BN_TILE

cdef extern from "variants.h":
    int bn_variants(bn_leaves **found) noexcept nogil

cdef extern from "threads.h":
    int bn_openmp_version() noexcept nogil
    int bn_max_threads() noexcept nogil
    void bn_pause_threads() noexcept nogil

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


# ---- the variant in use ----

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


# ---- the two forms ----

cdef Py_ssize_t _tasks_between_signals(Py_ssize_t task_bytes, int n_threads) noexcept:
    # Some 10 ms of work, in equal shares.
    return n_threads * max(1, (64 << 20) // max(1, task_bytes * n_threads))


cdef bn_part _whole(cnp.ndarray x) noexcept:
    cdef bn_part part
    cdef Py_ssize_t size = x.itemsize
    part.outer = x.shape[0]
    part.channels = x.shape[1]
    part.inner = x.shape[2]
    part.outer_stride = x.strides[0] // size
    part.channel_stride = x.strides[1] // size if part.channels > 1 else 1
    return part


cdef inline Py_ssize_t _ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


def moments(cnp.ndarray x, cnp.ndarray weights, bint skip_missing, Py_ssize_t outer_block,
            Py_ssize_t inner_block, cnp.ndarray out, int n_threads):
    """Count, mean (hi and lo) and m2 of each channel in each block.

    Parameters
    ----------
    x : ndarray of shape (outer, channels, inner), float32 or float64
        In either form: ``inner == 1`` with adjacent channels, or contiguous along ``inner``.
    weights : C-contiguous ndarray of shape (outer, inner), float64, or None
    skip_missing : bool
        Leave NaN out instead of propagating it.
    outer_block, inner_block : int
        Block size; one of them must span its axis.
    out : C-contiguous ndarray of shape (4, n_blocks, channels), float64
        Receives count, mean, mean_lo and m2.
    n_threads : int

    Returns
    -------
    bool
        Whether a NaN may have been left out: the sums of a block were not finite.
    """
    cdef bn_part whole = _whole(x), part
    cdef const char *data = <const char *> cnp.PyArray_DATA(x)
    cdef const double *w = NULL if weights is None else <const double *> cnp.PyArray_DATA(weights)
    cdef double *result = <double *> cnp.PyArray_DATA(out)
    cdef bn_moments_fn leaf = _leaves.moments[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t size = x.itemsize
    cdef Py_ssize_t inner_blocks = _ceil_div(whole.inner, inner_block)
    cdef Py_ssize_t n_blocks = _ceil_div(whole.outer, outer_block) * inner_blocks
    # Rows keep their accumulators in L1; planes stay contiguous over at least 32 Ki values.
    cdef Py_ssize_t tile = BN_TILE if whole.inner == 1 else max(1, min(BN_TILE, 32768 // inner_block))
    cdef Py_ssize_t tiles = _ceil_div(whole.channels, tile)
    cdef Py_ssize_t n_tasks = n_blocks * tiles, start = 0, stop, task, block, channel, at
    cdef Py_ssize_t step = _tasks_between_signals(
        outer_block * inner_block * min(tile, whole.channels) * size, n_threads)
    cdef int missing = 0
    while start < n_tasks:
        stop = min(n_tasks, start + step)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            block = task // tiles
            channel = task % tiles * tile
            part = _moments_part(whole, block, channel, outer_block, inner_block, inner_blocks, tile)
            at = block * whole.channels + channel
            missing |= leaf(
                data + size * (block // inner_blocks * outer_block * whole.outer_stride
                               + channel * whole.channel_stride + block % inner_blocks * inner_block),
                part,
                NULL if w == NULL else w + (block // inner_blocks * outer_block * whole.inner
                                            + block % inner_blocks * inner_block),
                whole.inner, skip_missing, result + at, result + n_blocks * whole.channels + at,
                result + 2 * n_blocks * whole.channels + at, result + 3 * n_blocks * whole.channels + at,
            )
        start = stop
        PyErr_CheckSignals()
    return missing != 0


cdef inline bn_part _moments_part(bn_part whole, Py_ssize_t block, Py_ssize_t channel, Py_ssize_t outer_block,
                                  Py_ssize_t inner_block, Py_ssize_t inner_blocks, Py_ssize_t tile) noexcept nogil:
    cdef bn_part part = whole
    part.outer = min(outer_block, whole.outer - block // inner_blocks * outer_block)
    part.inner = min(inner_block, whole.inner - block % inner_blocks * inner_block)
    part.channels = min(tile, whole.channels - channel)
    return part


def apply(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray mean, cnp.ndarray scale,
          cnp.ndarray shift, bint relu, bint stream, int n_threads):
    """``y = (x - mean) * scale + shift``, then ``+ residual``, then ``max(., 0)``.

    Parameters
    ----------
    x, y : ndarray of shape (outer, channels, inner), float32 or float64
        Of the same dtype, both in the same form; `y` may be `x`.
    residual : ndarray of the shape, dtype and strides of `y`, or None
    mean, scale, shift : C-contiguous ndarray of shape (channels,), dtype of `x`
    relu : bool
    stream : bool
        Store past the cache: for outputs larger than it. Not when `y` is `x`.
    n_threads : int

    Returns
    -------
    bool
        Whether `x` holds an infinity.
    """
    cdef bn_part whole = _whole(x), to = _whole(y), part
    cdef const char *x_data = <const char *> cnp.PyArray_DATA(x)
    cdef char *y_data = <char *> cnp.PyArray_DATA(y)
    cdef const char *z_data = NULL if residual is None else <const char *> cnp.PyArray_DATA(residual)
    cdef const char *m = <const char *> cnp.PyArray_DATA(mean)
    cdef const char *a = <const char *> cnp.PyArray_DATA(scale)
    cdef const char *b = <const char *> cnp.PyArray_DATA(shift)
    cdef bn_apply_fn leaf = _leaves.apply[cnp.PyArray_TYPE(x) == cnp.NPY_DOUBLE]
    cdef Py_ssize_t size = x.itemsize
    # A task is about 64 Ki values: some outer positions, or one with some channels, or a piece of one plane.
    cdef Py_ssize_t inner_block = max(1, min(whole.inner, 65536))
    cdef Py_ssize_t channel_block = max(1, min(whole.channels, 65536 // inner_block))
    cdef Py_ssize_t outer_block = max(1, 65536 // (inner_block * max(1, whole.channels)))
    cdef Py_ssize_t inner_blocks = _ceil_div(whole.inner, inner_block)
    cdef Py_ssize_t channel_blocks = _ceil_div(whole.channels, channel_block)
    cdef Py_ssize_t n_tasks = _ceil_div(whole.outer, outer_block) * channel_blocks * inner_blocks
    cdef Py_ssize_t start = 0, stop, task, o, c, i, at
    cdef Py_ssize_t step = _tasks_between_signals(65536 * size, n_threads)
    cdef int infinite = 0
    while start < n_tasks:
        stop = min(n_tasks, start + step)
        for task in prange(start, stop, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
            o = task // (channel_blocks * inner_blocks) * outer_block
            c = task // inner_blocks % channel_blocks * channel_block
            i = task % inner_blocks * inner_block
            part = _apply_part(whole, o, c, i, outer_block, channel_block, inner_block)
            at = size * (o * to.outer_stride + c * to.channel_stride + i)
            infinite |= leaf(
                x_data + size * (o * whole.outer_stride + c * whole.channel_stride + i), y_data + at,
                NULL if z_data == NULL else z_data + at, part, to.outer_stride, to.channel_stride,
                m + size * c, a + size * c, b + size * c, relu, stream,
            )
        start = stop
        PyErr_CheckSignals()
    return infinite != 0


cdef inline bn_part _apply_part(bn_part whole, Py_ssize_t o, Py_ssize_t c, Py_ssize_t i, Py_ssize_t outer_block,
                                Py_ssize_t channel_block, Py_ssize_t inner_block) noexcept nogil:
    cdef bn_part part = whole
    part.outer = min(outer_block, whole.outer - o)
    part.channels = min(channel_block, whole.channels - c)
    part.inner = min(inner_block, whole.inner - i)
    return part
