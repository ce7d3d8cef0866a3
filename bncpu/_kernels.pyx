# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, freethreading_compatible=True
"""The parallel loops: arrays in one of the two forms are cut into parts, each part goes to a C leaf.

Arrays come as 4-D views (groups, outer, channels, inner), made by ``_layout``: every channel of every group
has statistics and coefficients of its own. How they are cut depends on their shape alone and every part
writes its own results, so nothing depends on the number of threads. Nothing is checked here:
``_validation`` has done it.
"""

cimport cython
from cython.parallel cimport prange
cimport numpy as cnp

import numpy as np

from bncpu import _buffers

cnp.import_array()


cdef extern from "leaves.h":
    ctypedef struct bn_part:
        Py_ssize_t outer, channels, inner
    ctypedef enum bn_type:
        BN_COMPUTED, BN_FLOAT32, BN_FLOAT16, BN_BFLOAT16, BN_UINT8, BN_INT8, BN_UINT16, BN_INT16
        BN_UINT32, BN_INT32, BN_UINT64, BN_INT64
    ctypedef struct bn_array:
        char *data
        Py_ssize_t outer, channel
        bn_type type
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
    ctypedef void (*bn_normalize_fn)(bn_part, bn_array, bn_array, const char *, const char *, double, int, int,
                                     double *, double *, double *, unsigned char *) noexcept nogil
    ctypedef void (*bn_fence_fn)() noexcept nogil
    ctypedef cnp.int64_t (*bn_read_fn)(const char *, Py_ssize_t, int) noexcept nogil
    ctypedef void (*bn_copy_fn)(const char *, char *, Py_ssize_t, int) noexcept nogil
    ctypedef void (*bn_triad_fn)(const char *, const char *, char *, Py_ssize_t, int) noexcept nogil
    ctypedef struct bn_leaves:
        const char *name
        bn_fence_fn fence
        bn_read_fn read
        bn_copy_fn copy
        bn_triad_fn triad
        bn_moments_fn moments[2]
        bn_apply_fn apply[2]
        bn_backward_sums_fn backward_sums[2]
        bn_backward_apply_fn backward_apply[2]
        bn_normalize_fn normalize[2]
    const int BN_TILE, BN_SHORT

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
    double bn_decay(double n_rows, double halflife) noexcept nogil
    bn_moments bn_scaled(bn_moments m, double factor) noexcept nogil
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

cdef extern from "processor.h":
    int bn_processor(char *name) noexcept nogil
    long bn_second_level_cache() noexcept nogil

cdef extern from "threads.h":
    ctypedef void (*bn_task)(void *, Py_ssize_t) noexcept nogil
    int bn_openmp_version() noexcept nogil
    int bn_max_threads() noexcept nogil
    void bn_pause_threads() noexcept nogil
    void bn_set_machine(int processors, int usable, const char *loadavg, double long_wait) noexcept nogil
    int bn_idle_threads(int most) noexcept nogil
    void bn_for_each(Py_ssize_t start, Py_ssize_t stop, bn_task step, void *job, int n_threads) noexcept nogil
    void bn_raise_flag(int *flag) noexcept nogil

cdef extern from "string.h":
    int memcmp(const void *a, const void *b, size_t n) noexcept nogil
    void *memcpy(void *to, const void *a, size_t n) noexcept nogil
    void *memchr(const void *a, int value, size_t n) noexcept nogil
    void *memset(void *to, int value, size_t n) noexcept nogil

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


cdef bytes _loadavg


def set_machine(int processors, int usable, loadavg, double long_wait=0.0005):
    """Say what the machine is; not while a kernel runs.

    Parameters
    ----------
    processors : int
        How many it has.
    usable : int
        How many of them this process may use at most.
    loadavg : str
        The file whose fourth word is how many tasks run: /proc/loadavg. None is read if there is none.
    long_wait : float
        Seconds. A loop that waits longer for its threads is followed by loops of one thread.
    """
    global _loadavg
    _loadavg = loadavg.encode()
    bn_set_machine(processors, usable, _loadavg, long_wait)


def idle_threads(int most):
    """Threads, of at most `most`, that would run at once now; for a loop of some 10 ms, not for longer."""
    return bn_idle_threads(most)


def pause_threads():
    """End idle worker threads; the next parallel loop starts new ones. Called before a fork."""
    bn_pause_threads()


# ---- the yardsticks: C-contiguous arrays of one size ----


cdef Py_ssize_t _yard(cnp.ndarray x, int n_threads) noexcept:
    """Bytes that a thread takes at a time: 1 MiB, and less where some would have none."""
    return min(1 << 20, max(1, _ceil_div(cnp.PyArray_NBYTES(x), 4096 * n_threads)) * 4096)


def read(cnp.ndarray x, int n_threads, int streams=1):
    """Read all of `x` in 1, 2 or 4 streams: the exclusive or of its 64-bit words, the last filled up with zeros."""
    cdef bn_read_fn leaf = _leaves.read
    cdef const char *source = <const char *> cnp.PyArray_DATA(x)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    cdef cnp.int64_t found = 0
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        found ^= leaf(source + i * part, min(part, n_bytes - i * part), streams)
    return found


def copy(cnp.ndarray x, cnp.ndarray y, int n_threads, int streams=1):
    """Copy `x` to `y`, past the cache in 1 stream or 4, or plainly in 0."""
    cdef bn_copy_fn leaf = _leaves.copy
    cdef const char *source = <const char *> cnp.PyArray_DATA(x)
    cdef char *to = <char *> cnp.PyArray_DATA(y)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        leaf(source + i * part, to + i * part, min(part, n_bytes - i * part), streams)


def triad(cnp.ndarray x, cnp.ndarray y, cnp.ndarray z, int n_threads, int streams=1):
    """Put the exclusive or of the bits of `x` and `y` into `z`, stored as by ``copy``."""
    cdef bn_triad_fn leaf = _leaves.triad
    cdef const char *first = <const char *> cnp.PyArray_DATA(x)
    cdef const char *second = <const char *> cnp.PyArray_DATA(y)
    cdef char *to = <char *> cnp.PyArray_DATA(z)
    cdef Py_ssize_t n_bytes = cnp.PyArray_NBYTES(x), part = _yard(x, n_threads), i
    for i in prange((n_bytes + part - 1) // part, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1):
        leaf(first + i * part, second + i * part, to + i * part, min(part, n_bytes - i * part), streams)


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
cdef double decay(double n_rows, double halflife) noexcept nogil:
    return bn_decay(n_rows, halflife)


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

# Blocks are cut by shape alone, so results do not depend on the number of threads. At most about this many of them keep
# scratch memory proportional to the channels.
MAX_BLOCKS = 128

# From this size on, storing past the cache wins; below it the result would be missed in the cache. Where both steps of
# a pass are one, the result is not in the cache before it is written, and streaming pays earlier.
STREAM_BYTES = 16 << 20
STREAM_BYTES_FUSED = 4 << 20

# Rows are widened to at least this many values, and parameters repeated to match: 4 KiB of float32.
WIDE_ROW = 1024

# Below this many bytes a thread, waking it costs more than it saves.
BYTES_PER_THREAD = 512 << 10

cdef Py_ssize_t _max_blocks = MAX_BLOCKS, _stream_bytes = STREAM_BYTES, _stream_bytes_fused = STREAM_BYTES_FUSED
cdef Py_ssize_t _wide_row = WIDE_ROW, _bytes_per_thread = BYTES_PER_THREAD

# What of the arrays that are read stays in the second-level cache from one step of a pass to the next: half of one that
# holds 16 lines for each place within 128 KiB.
cdef Py_ssize_t _resident_bytes = 1 << 20, _places_bytes = 128 << 10, _places_deep = 8


# Streams in which a result is stored past the cache, 1 or 4; and how far ahead of one what is read is fetched.
cdef int _streams = 1


def processor():
    """The name of the processor's maker as the processor tells it, such as GenuineIntel, and the number of its family;
    empty and 0 where it does not.
    """
    cdef char name[13]
    family = bn_processor(name)
    return name.decode(), family


def second_level_cache():
    """Bytes of the cache that each core has to itself; 0 if that is not told."""
    return max(0, bn_second_level_cache())


def set_walk(int streams, Py_ssize_t resident_bytes, Py_ssize_t places_deep=8, int ahead=0):
    """Set in how many streams results are stored, what is taken to stay in the cache, and how many bytes (a multiple of
    64) ahead of a single stream is read; not while a kernel runs.
    """
    global _streams, _resident_bytes, _places_deep
    _streams, _resident_bytes, _places_deep = streams + ahead, resident_bytes, places_deep


cdef inline int _paying(Py_ssize_t n_threads, Py_ssize_t n_bytes) noexcept nogil:
    return max(1, min(n_threads, n_bytes // _bytes_per_thread))


def threads(n_threads, Py_ssize_t n_bytes):
    """What a kernel that reads `n_bytes` is given for a user's `n_threads`: not more than pay, or None as it is."""
    return None if n_threads is None else _paying(min(n_threads, 1 << 20), n_bytes)


def allowed_threads(Py_ssize_t n_bytes):
    """Threads that a kernel which reads `n_bytes` takes on an idle machine if it is given None."""
    return _paying(max_threads(), n_bytes)


ctypedef struct array4:
    # A whole array: that of its first group, and how far the next one is.
    bn_array first
    Py_ssize_t group, itemsize


ctypedef struct grid:
    # Extents of the whole, of a part, and the number of parts along each axis.
    Py_ssize_t groups, tasks
    bn_part whole, part, n


ctypedef struct place:
    # Where a part begins, and what it is one of: the blocks of its channels.
    Py_ssize_t group, outer, channel, inner, block
    bn_part part


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
    cdef array4 whole
    memset(&whole, 0, sizeof(array4))
    if a is not None:
        whole.first.type = _stored(a, is_double)
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


cdef inline Py_ssize_t _lowest_bit(Py_ssize_t a, Py_ssize_t most) noexcept nogil:
    """The greatest common divisor of `a` and a power of two."""
    return most if a == 0 else min(a & -a, most)


cdef inline bint _is_rows(grid g) noexcept nogil:
    return g.whole.inner == 1


cdef void _cut(grid *g, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept:
    g.part.outer, g.part.channels, g.part.inner = outer, channels, inner
    g.n.outer = _ceil_div(g.whole.outer, outer)
    g.n.channels = _ceil_div(g.whole.channels, channels)
    g.n.inner = _ceil_div(g.whole.inner, inner)
    g.tasks = g.groups * g.n.outer * g.n.channels * g.n.inner


cdef (Py_ssize_t, Py_ssize_t) _block_shape(bn_part whole) noexcept:
    cdef Py_ssize_t values = max(_ceil_div(whole.outer * whole.inner, _max_blocks), 1)
    if whole.inner == 1:
        return max(values, 512, _ceil_div(131072, max(whole.channels, 1))), 1
    values = max(values, 65536)
    if values >= whole.inner:
        return _ceil_div(values, whole.inner), whole.inner
    return 1, values


def block_shape(Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner):
    """Outer positions and inner values of a block; one of the two spans its axis."""
    cdef bn_part whole
    whole.outer, whole.channels, whole.inner = outer, channels, inner
    return _block_shape(whole)


cdef void _cut_for_sums(grid *g) noexcept:
    # Rows stay whole up to a tile, or to a quarter of one where threads share a single block; planes stay contiguous over at
    # least 32 Ki values.
    cdef Py_ssize_t outer, inner, channels
    outer, inner = _block_shape(g.whole)
    if _is_rows(g[0]):
        channels = BN_TILE if outer < g.whole.outer else BN_TILE // 4
    else:
        channels = max(1, min(BN_TILE, 32768 // inner))
    _cut(g, outer, channels, inner)


cdef void _cut_for_results(grid *g) noexcept:
    # A task is about 64 Ki values: some outer positions, or one with some channels, or a piece of one plane.
    cdef Py_ssize_t inner = max(1, min(g.whole.inner, 65536))
    cdef Py_ssize_t channels = max(1, min(g.whole.channels, 65536 // inner))
    _cut(g, max(1, 65536 // (inner * max(1, g.whole.channels))), channels, inner)


cdef void _cut_for_both(grid *g, Py_ssize_t channels) noexcept:
    # A task is all blocks of some channels.
    cdef Py_ssize_t outer, inner
    outer, inner = _block_shape(g.whole)
    _cut(g, outer, channels, inner)
    g.tasks = g.groups * g.n.channels


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
    at.part.channels = min(g.part.channels, g.whole.channels - at.channel)
    at.part.inner = min(g.part.inner, g.whole.inner - at.inner)
    return at


cdef inline place _block(grid g, Py_ssize_t task, Py_ssize_t block) noexcept nogil:
    """A block of the channels of a task of both steps."""
    cdef Py_ssize_t channel = task % g.n.channels, outer = task // g.n.channels * g.n.outer + block // g.n.inner
    return _place(g, (outer * g.n.channels + channel) * g.n.inner + block % g.n.inner)


cdef inline Py_ssize_t _strip_outer(grid g) noexcept nogil:
    return g.whole.outer if _is_rows(g) else max(1, 8192 // (g.part.channels * g.whole.inner))


cdef inline place _strip(grid g, Py_ssize_t task, Py_ssize_t i) noexcept nogil:
    """A part for the second step, the last first: what was read last is nearest. Rows are one strip."""
    cdef place at = _block(g, task, 0)
    cdef Py_ssize_t outer = _strip_outer(g)
    at.outer = (_ceil_div(g.whole.outer, outer) - 1 - i) * outer
    at.part.outer, at.part.inner = min(outer, g.whole.outer - at.outer), g.whole.inner
    return at


cdef inline bn_array _part(array4 whole, place at) noexcept nogil:
    cdef bn_array part = whole.first
    if part.data != NULL:
        part.data += whole.itemsize * (
            at.group * whole.group + at.outer * part.outer + at.channel * part.channel + at.inner)
    return part


cdef inline Py_ssize_t _channel(grid g, place at) noexcept nogil:
    return at.group * g.whole.channels + at.channel


cdef inline const char *_further(const char *values, Py_ssize_t bytes) noexcept nogil:
    return NULL if values == NULL else values + bytes


cdef inline bn_coefficients _of_channels(bn_coefficients c, Py_ssize_t bytes) noexcept nogil:
    c.mean, c.scale, c.shift = _further(c.mean, bytes), _further(c.scale, bytes), _further(c.shift, bytes)
    c.dy_scale, c.x_scale = _further(c.dy_scale, bytes), _further(c.x_scale, bytes)
    c.offset = _further(c.offset, bytes)
    return c


# ---- what a driver was called with, and what it does to a part, or with a channel ----

cdef struct job

ctypedef void (*of_part)(job *, place) noexcept nogil
ctypedef bint (*of_channel)(job *, Py_ssize_t) noexcept nogil


cdef struct job:
    grid g
    # Result and dx are `y`; dz is the gradient of what is added, z.
    array4 x, z, dy, y, dz
    Py_ssize_t itemsize
    # Threads of the next loop; of the ones after it, fewer if fewer would run at once then.
    int n_threads
    bint any_number
    # What the leaves are given, and what they have seen.
    const bn_leaves *leaves
    bint is_double, relu, skip_missing, centred
    int stream
    const double *weights
    const double *center
    bn_coefficients c
    int seen
    # Sums have rows of n_blocks * width numbers, `field` apart; what coefficients are rounded to, rows of width.
    double *sums
    Py_ssize_t n_blocks, width, field
    char *folded
    # What the folds between the steps of a pass are given.
    const double *gamma
    const double *beta
    const double *center_lo
    double *invstd
    double eps
    # Recency: the weights of the last rows of a block end here.
    const double *recency_end
    double halflife
    # The steps, and which tasks of both could be done.
    of_part first, second
    of_channel fold
    unsigned char *done


cdef int _begin(job *j, cnp.ndarray x, n_threads, bint is_double=False) except -1:
    """All that follows from `x` in one of the two forms and from `n_threads`; nothing else is there yet."""
    memset(j, 0, sizeof(job))
    j.g.groups, j.g.whole.outer = x.shape[0], x.shape[1]
    j.g.whole.channels, j.g.whole.inner = x.shape[2], x.shape[3]
    _settle(j, is_double or _needs_double(x))
    j.x = _array(x, j.is_double)
    return _set_threads(j, n_threads)


cdef void _settle(job *j, bint is_double) noexcept:
    j.width, j.itemsize = j.g.groups * j.g.whole.channels, sizeof(double) if is_double else sizeof(float)
    j.leaves, j.is_double = _leaves, is_double


cdef inline Py_ssize_t _n_bytes(job *j) noexcept nogil:
    return j.g.groups * j.g.whole.outer * j.g.whole.channels * j.g.whole.inner * j.itemsize


cdef int _set_threads(job *j, n_threads) except -1:
    """A number is taken as it is; None is what is allowed, pays, and would run at once."""
    j.any_number = n_threads is None
    j.n_threads = _idle(j) if j.any_number else n_threads
    return 0


cdef inline int _idle(job *j) noexcept nogil:
    return bn_idle_threads(_paying(bn_max_threads(), _n_bytes(j)))


cdef cnp.ndarray _new_sums(job *j, int rows):
    cdef cnp.npy_intp *shape = [rows, j.g.n.outer * j.g.n.inner, j.width]
    cdef cnp.ndarray sums = cnp.PyArray_EMPTY(3, shape, cnp.NPY_DOUBLE, 0)
    j.sums, j.n_blocks, j.field = <double *> cnp.PyArray_DATA(sums), shape[1], shape[1] * shape[2]
    return sums


cdef cnp.ndarray _fresh(Py_ssize_t rows, Py_ssize_t columns, int typenum):
    cdef cnp.npy_intp *shape = [rows, columns]
    return cnp.PyArray_EMPTY(2, shape, typenum, 0)


cdef cnp.ndarray _new_folds(job *j, int rows):
    cdef cnp.ndarray folded = _fresh(rows, j.width, cnp.NPY_DOUBLE if j.is_double else cnp.NPY_FLOAT)
    j.folded = <char *> cnp.PyArray_DATA(folded)
    return folded


cdef cnp.ndarray _new_invstd(job *j):
    cdef cnp.ndarray invstd = cnp.PyArray_EMPTY(1, <cnp.npy_intp *> &j.width, cnp.NPY_DOUBLE, 0)
    j.invstd = <double *> cnp.PyArray_DATA(invstd)
    return invstd


cdef inline const char *_row(job *j, int row) noexcept nogil:
    return j.folded + row * j.width * j.itemsize


cdef inline void _fold_to(job *j, int row, Py_ssize_t channel, double value) noexcept nogil:
    cdef char *at = j.folded + (row * j.width + channel) * j.itemsize
    if j.is_double:
        (<double *> at)[0] = value
    else:
        (<float *> at)[0] = <float> value


cdef inline bint _fold_affine(job *j, Py_ssize_t channel, bn_affine k) noexcept nogil:
    cdef bint fits = j.is_double or bn_round_affine(&k)
    _fold_to(j, 0, channel, k.mean)
    _fold_to(j, 1, channel, k.scale)
    _fold_to(j, 2, channel, k.shift)
    return fits


cdef void _moments_of(job *j, place at) noexcept nogil:
    cdef double *to = j.sums + at.block * j.width + _channel(j.g, at)
    cdef Py_ssize_t start = at.outer * j.g.whole.inner + at.inner, n = at.part.outer * at.part.inner
    cdef const double *weights = NULL
    if j.recency_end != NULL:
        weights = j.recency_end - n
    elif j.weights != NULL:
        weights = j.weights + start
    if j.leaves.moments[j.is_double](at.part, _part(j.x, at), weights, j.g.whole.inner, j.skip_missing, to,
                                     to + j.field, to + 2 * j.field, to + 3 * j.field):
        bn_raise_flag(&j.seen)
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


cdef inline bn_moments _merged(job *j, Py_ssize_t c) noexcept nogil:
    """A channel's moments in all blocks."""
    cdef double *sums = j.sums + c
    return bn_merge_blocks(sums, sums + j.field, sums + 2 * j.field, sums + 3 * j.field, j.n_blocks, j.width)


cdef bint _forward_fold(job *j, Py_ssize_t c) noexcept nogil:
    """Coefficients from a channel's moments in all blocks, and whether they fit the type of the data."""
    cdef bn_moments m = _merged(j, c)
    j.invstd[c] = bn_inverse_std(m.m2 / m.count, j.eps)
    return _fold_affine(j, c, bn_fold(m.mean, j.invstd[c], 1.0 if j.gamma == NULL else j.gamma[c],
                                      0.0 if j.beta == NULL else j.beta[c], m.mean_lo))


cdef bint _backward_fold(job *j, Py_ssize_t c) noexcept nogil:
    cdef double gamma = 1.0 if j.gamma == NULL else j.gamma[c], total = bn_sum_blocks(j.sums + c, j.n_blocks, j.width)
    cdef double g_x_hat = bn_sum_blocks(j.sums + j.field + c, j.n_blocks, j.width) - j.center_lo[c] * total
    cdef double count = <double> j.g.whole.outer * <double> j.g.whole.inner
    cdef bn_gradient k
    cdef bint fits
    g_x_hat *= j.invstd[c]
    j.sums[j.field + c] = g_x_hat
    k = bn_fold_backward(j.center[c], j.invstd[c], gamma, gamma * total, gamma * g_x_hat, count, j.center_lo[c])
    fits = j.is_double or bn_round_gradient(&k)
    _fold_to(j, 0, c, k.mean)
    _fold_to(j, 1, c, k.dy_scale)
    _fold_to(j, 2, c, k.x_scale)
    _fold_to(j, 3, c, k.offset)
    return fits


cdef void _result_of(job *j, place at) noexcept nogil:
    if j.leaves.apply[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.y, at),
                                   _of_channels(j.c, j.itemsize * _channel(j.g, at)), j.relu, j.stream):
        bn_raise_flag(&j.seen)


cdef void _gradient_of(job *j, place at) noexcept nogil:
    j.leaves.backward_apply[j.is_double](at.part, _part(j.x, at), _part(j.z, at), _part(j.dy, at), _part(j.y, at),
                                         _part(j.dz, at), _of_channels(j.c, j.itemsize * _channel(j.g, at)), j.relu,
                                         j.stream)


cdef void _normalized_of(job *j, place at) noexcept nogil:
    cdef Py_ssize_t channel = _channel(j.g, at)
    cdef double *to = NULL if j.sums == NULL else j.sums + channel
    j.leaves.normalize[j.is_double](at.part, _part(j.x, at), _part(j.y, at), j.c.scale, j.c.shift, j.eps, j.centred,
                                    j.stream, to, to + j.field if to != NULL else to,
                                    to + 2 * j.field if to != NULL else to, j.done + channel)


# ---- the loop over tasks ----

ctypedef void (*of_task)(job *, Py_ssize_t) noexcept nogil


cdef void _first(job *j, Py_ssize_t task) noexcept nogil:
    j.first(j, _place(j.g, task))


cdef void _second(job *j, Py_ssize_t task) noexcept nogil:
    j.second(j, _place(j.g, task))
    if j.stream:
        j.leaves.fence()


cdef void _both(job *j, Py_ssize_t task) noexcept nogil:
    """Both steps over some channels while their values are in the cache: they come from memory once."""
    cdef place at = _block(j.g, task, 0)
    cdef Py_ssize_t begin = _channel(j.g, at), end = begin + at.part.channels, i, c
    cdef bint fits = True
    for i in range(j.n_blocks):
        j.first(j, _block(j.g, task, i))
    for c in range(begin, end):
        fits = j.fold(j, c) and fits
    j.done[task] = fits
    if fits:
        for i in range(_ceil_div(j.g.whole.outer, _strip_outer(j.g))):
            j.second(j, _strip(j.g, task, i))
    if j.stream:
        j.leaves.fence()


cdef int _run(job *j, of_task step) except -1:
    # Signals, and how many processors are idle, are looked at after some 10 ms of work, in equal shares.
    cdef Py_ssize_t task_bytes = max(1, _n_bytes(j) // max(1, j.g.tasks)), start = 0, stop
    while start < j.g.tasks:
        if start and j.any_number:
            j.n_threads = _idle(j)
        stop = min(j.g.tasks, start + j.n_threads * max(1, (64 << 20) // (task_bytes * j.n_threads)))
        with nogil:
            bn_for_each(start, stop, <bn_task> step, j, j.n_threads)
        start = stop
        PyErr_CheckSignals()
    return 0


cdef int _run_second(job *j) except -1:
    """The second step over everything."""
    if _n_bytes(j) == 0 or _run_wide(j):
        return 0
    _cut_for_results(&j.g)
    return _run(j, _second)


cdef bint _run_wide(job *j) except -1:
    """The same, if that is contiguous rows: as a few wide ones, with the parameters repeated to match.

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
    if j.stream:
        head = (64 - <size_t> j.y.first.data % 64) % 64 // j.y.itemsize
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
            _cut_for_results(&part.g)
            _run(&part, _second)
            j.seen |= part.seen
    return True


cdef inline bint _is_packed(job *j, array4 a) noexcept:
    return a.first.data == NULL or a.first.outer == j.g.whole.channels


cdef inline void _from(array4 *a, Py_ssize_t start, Py_ssize_t width) noexcept:
    a.first.outer = width
    if a.first.data != NULL:
        a.first.data += start * a.itemsize


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


cdef Py_ssize_t _resident_channels(job *j) noexcept:
    """Channels whose values, of all arrays that are read, stay in the cache from one step to the next; 0 if not one's.

    Rows are read whole, so all of them must.
    """
    cdef bn_part whole = j.g.whole
    cdef Py_ssize_t read = 1 + (j.dy.first.data != NULL) + (j.z.first.data != NULL)
    cdef Py_ssize_t n_bytes = read * j.itemsize * whole.outer * whole.inner, fitting, together, places
    if n_bytes == 0:
        return 0
    if whole.inner == 1 and whole.outer > 1:
        return min(whole.channels, BN_TILE) if j.n_threads == 1 and n_bytes * whole.channels <= _resident_bytes else 0
    fitting = min(whole.channels, BN_TILE, _resident_bytes // n_bytes)
    # Where samples lie a power of two apart, most of the cache is not for them.
    together = fitting * whole.inner * j.itemsize
    places = min(_places_bytes, together * (_places_bytes // _lowest_bit(j.x.first.outer * j.itemsize, _places_bytes)))
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
        sums, done = _new_sums(j, n_sums), _fresh(j.g.groups, j.g.n.channels, cnp.NPY_UINT8)
        j.done = <unsigned char *> cnp.PyArray_DATA(done)
        j.stream = _streams if apart and _n_bytes(j) >= _stream_bytes_fused else 0
        _run(j, _both)
        return sums, done, channels
    _cut_for_sums(&j.g)
    sums, done = _new_sums(j, n_sums), _fresh(j.g.groups, 1, cnp.NPY_UINT8)
    _run(j, _first)
    for c in range(j.width):
        fits = j.fold(j, c) and fits
    if fits:
        j.stream = _streams if apart and _n_bytes(j) >= _stream_bytes else 0
        _run_second(j)
    cnp.PyArray_FILLWBYTE(done, fits)
    return sums, done, j.g.whole.channels


# ---- the drivers ----


cdef object _last_recency = None


cdef cnp.ndarray _recency(job *j, double halflife):
    """Weights of the rows of a block, 1 for its last, which the job then takes; they are kept for the next call."""
    global _last_recency
    cdef Py_ssize_t wanted = j.g.part.outer * j.g.part.inner, n = 1024, i
    cdef cnp.ndarray weights
    cdef double *to
    last = _last_recency
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
            _last_recency = (halflife, weights)
    j.recency_end = <const double *> cnp.PyArray_DATA(weights) + cnp.PyArray_SIZE(weights)
    j.halflife = halflife
    return weights


def moments(cnp.ndarray x, cnp.ndarray weights, bint skip_missing, n_threads, halflife=None):
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
    j.first, j.weights, j.skip_missing = _moments_of, <const double *> _values(weights), skip_missing
    _weights = None if halflife is None else _recency(&j, halflife)
    _run(&j, _first)
    return sums, j.seen != 0


def apply(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray mean, cnp.ndarray scale,
          cnp.ndarray shift, bint relu, bint stream, n_threads):
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
    stream : bool
        Store past the cache: for outputs larger than it. Not when `y` is another array, too.
    n_threads : int or None
        None: as many as are allowed, pay, and find a processor idle.

    Returns
    -------
    bool
        Whether `x` holds an infinity.
    """
    cdef job j
    _begin(&j, x, n_threads, _needs_double(y))
    j.z, j.y = _array(residual, j.is_double), _array(y, j.is_double)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    j.second, j.relu, j.stream = _result_of, relu, _streams if stream else 0
    _run_second(&j)
    return j.seen != 0


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
    j.first, j.relu = _sums_of, relu
    _run(&j, _first)
    return sums


def backward_apply(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
                   cnp.ndarray mean, cnp.ndarray scale, cnp.ndarray shift, cnp.ndarray dy_scale, cnp.ndarray x_scale,
                   cnp.ndarray offset, bint relu, bint stream, n_threads):
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
    n_threads : int or None
        As for ``moments``.
    """
    cdef job j
    _begin(&j, x, n_threads)
    j.z, j.dy = _array(residual, j.is_double), _array(dy, j.is_double)
    j.y, j.dz = _array(dx, j.is_double), _array(dresidual, j.is_double)
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    j.c.dy_scale, j.c.x_scale, j.c.offset = _values(dy_scale), _values(x_scale), _values(offset)
    j.second, j.relu, j.stream = _gradient_of, relu, _streams if stream else 0
    _run_second(&j)


def forward(cnp.ndarray x, cnp.ndarray y, cnp.ndarray residual, cnp.ndarray gamma, cnp.ndarray beta, double eps,
            bint relu, bint apart, n_threads):
    """``moments``, their merge and fold, and ``apply``.

    Parameters
    ----------
    x, y, residual, relu, n_threads
        As for ``apply``; `x` is not empty.
    gamma, beta : C-contiguous ndarray of groups * channels values, float64, or None
    eps : float
    apart : bool
        Whether `y` shares no memory with what is read.

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
    j.gamma, j.beta, j.eps = <const double *> _values(gamma), <const double *> _values(beta), eps
    invstd = _new_invstd(&j)
    sums, done, channels = _run_forward(&j, apart)
    return sums, invstd, done, channels


cdef tuple _run_forward(job *j, bint apart):
    cdef cnp.ndarray _folded = _new_folds(j, 3)
    j.c.mean, j.c.scale, j.c.shift = _row(j, 0), _row(j, 1), _row(j, 2)
    j.first, j.fold, j.second = _moments_of, _forward_fold, _result_of
    return _run_both(j, 4, apart)


# So many values a channel, with one outer position, are normalized by `normalize`.
SHORT = BN_SHORT


def normalize(cnp.ndarray x, cnp.ndarray y, cnp.ndarray gamma, cnp.ndarray beta, double eps, bint centred, bint keep,
              bint stream, n_threads):
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
    stream, n_threads
        As for ``apply``; `stream` only if the channels of `y` are adjacent.

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
    j.eps, j.centred, j.stream = eps, centred, _streams if stream else 0
    j.second = _normalized_of
    _run(&j, _second)
    return sums, done


def backward(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray dx, cnp.ndarray dresidual,
             cnp.ndarray center, cnp.ndarray center_lo, cnp.ndarray invstd, cnp.ndarray gamma, cnp.ndarray mean,
             cnp.ndarray scale, cnp.ndarray shift, bint relu, bint apart, n_threads):
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
    j.c.mean, j.c.scale, j.c.shift = _values(mean), _values(scale), _values(shift)
    return _run_backward(&j, apart)


cdef tuple _run_backward(job *j, bint apart):
    cdef cnp.ndarray _folded = _new_folds(j, 4)
    if j.c.mean == NULL:
        j.c.mean = _row(j, 0)  # or the same, already there for the sums
    j.c.dy_scale, j.c.x_scale, j.c.offset = _row(j, 1), _row(j, 2), _row(j, 3)
    j.first, j.fold, j.second = _sums_of, _backward_fold, _gradient_of
    return _run_both(j, 2, apart)


# ---- the transformer's running statistics ----

cdef extern from "float.h":
    const double DBL_MAX

cdef extern from "math.h":
    bint isfinite(double value) noexcept nogil

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


cdef bint _is_plain(object a, bint written) noexcept:
    return (
        cnp.PyArray_CheckExact(a)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE)
        and (cnp.PyArray_ISCARRAY(<cnp.ndarray> a) if written else cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a))
    )


cdef int _result_type(cnp.ndarray x, object dtype) noexcept:
    """The type number of the result for `x` with a transformer's parameter `dtype`; NPY_NOTYPE if that may be wrong."""
    if dtype is None:
        if x is None or cnp.PyArray_TYPE(x) not in (cnp.NPY_FLOAT16, cnp.NPY_FLOAT):
            return cnp.NPY_DOUBLE
        return cnp.PyArray_TYPE(x)
    return cnp.NPY_FLOAT if dtype is np.float32 else cnp.NPY_DOUBLE if dtype is np.float64 else cnp.NPY_NOTYPE


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
        and _same_array(given.get("gamma", given), p[7])
        and _same_array(given.get("beta", given), p[8])
        and _same_number(given.get("window", given), p[9])
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


# ---- the short ways of the transformer and of the functions ----
#
# For plain arrays of any size: the same drivers without the checks that explain. Whatever else there is, errors
# included, these functions leave to the long way: they return None, having changed nothing. What they return has its
# bits.


cdef inline bint _is_number(int typenum) noexcept:
    """Whether the loops read values of this type as they are: booleans, integers, and the three floats."""
    return 0 <= typenum <= cnp.NPY_DOUBLE or typenum == cnp.NPY_FLOAT16


cdef bint _is_like(object a, cnp.ndarray x, int typenum, bint written) noexcept:
    return (
        cnp.PyArray_CheckExact(a)
        and cnp.PyArray_TYPE(<cnp.ndarray> a) == typenum
        and (cnp.PyArray_ISCARRAY(<cnp.ndarray> a) if written else cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a))
        and cnp.PyArray_NDIM(<cnp.ndarray> a) == cnp.PyArray_NDIM(x)
        and memcmp(cnp.PyArray_DIMS(<cnp.ndarray> a), cnp.PyArray_DIMS(x),
                   cnp.PyArray_NDIM(x) * sizeof(cnp.npy_intp)) == 0
    )


cdef bint _is_same_or_apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef Py_ssize_t between = cnp.PyArray_BYTES(a) - cnp.PyArray_BYTES(b)
    cdef bint same = between == 0 and cnp.PyArray_NBYTES(a) == cnp.PyArray_NBYTES(b)
    return same or between >= cnp.PyArray_NBYTES(b) or -between >= cnp.PyArray_NBYTES(a)


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


cdef bint _begin_plain(job *j, object x, object dy, object out, bint last) noexcept:
    """Whether the arrays, channels on axis 1 or the last, can go the short way: then all that follows from them but the
    result.
    """
    return _is_plain(x, False) and _begin_numbers(j, x, dy, out, last, cnp.PyArray_TYPE(<cnp.ndarray> x))


cdef bint _begin_numbers(job *j, object x, object dy, object out, bint last, int y_type) noexcept:
    """The same where the result is of another type, and `x` may be an array of any numbers."""
    cdef cnp.ndarray a
    cdef int axis
    if not (cnp.PyArray_CheckExact(x) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)
            and _is_number(cnp.PyArray_TYPE(<cnp.ndarray> x)) and cnp.PyArray_NDIM(<cnp.ndarray> x) >= 2
            and cnp.PyArray_SIZE(<cnp.ndarray> x) > 0):
        return False
    a = x
    if not (dy is None or _is_like(dy, a, cnp.PyArray_TYPE(a), False)):
        return False
    if out is not None and not (_is_like(out, a, y_type, True) and _is_same_or_apart(out, a)
                                and (dy is None or _is_same_or_apart(out, dy))):
        return False
    memset(j, 0, sizeof(job))
    # A single channel is a plane, as in the long way: its sums run in lanes.
    axis = cnp.PyArray_NDIM(a) - 1 if last else 1
    j.g.groups, j.g.whole.channels, j.g.whole.inner = 1, a.shape[axis], 1
    for axis in range(axis + 1, cnp.PyArray_NDIM(a)):
        j.g.whole.inner *= a.shape[axis]
    j.g.whole.outer = cnp.PyArray_SIZE(a) // (j.g.whole.channels * j.g.whole.inner)
    if j.g.whole.channels == 1:
        j.g.whole.inner *= j.g.whole.outer
        j.g.whole.outer = 1
    _settle(j, y_type == cnp.NPY_DOUBLE or _needs_double(a))
    j.x = _packed(j, a)
    if dy is not None:
        j.dy = j.x
        j.dy.first.data = <char *> cnp.PyArray_DATA(<cnp.ndarray> dy)
    return True


cdef array4 _packed(job *j, cnp.ndarray a) noexcept:
    """A C-contiguous array, channels on axis 1."""
    cdef array4 whole
    memset(&whole, 0, sizeof(array4))
    whole.itemsize, whole.first.data = a.itemsize, <char *> cnp.PyArray_DATA(a)
    whole.first.type = _stored(a, j.is_double)
    whole.first.outer, whole.first.channel = j.g.whole.channels * j.g.whole.inner, j.g.whole.inner
    return whole


cdef cnp.ndarray _plain_result(job *j, cnp.ndarray x, object out, bint *apart, int y_type=cnp.NPY_NOTYPE):
    """`out`, or a fresh array of the type of `x` or of another."""
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
    apart[0] = j.y.first.data != j.x.first.data and j.y.first.data != j.dy.first.data
    return y


cdef inline bint _is_eps(object eps) noexcept:
    return type(eps) is float and <double> eps >= 0 and isfinite(<double> eps) or (type(eps) is int and eps == 0)


cdef bint _are_weights(object weights, Py_ssize_t n) noexcept:
    """Whether these are float64, one per row."""
    return (
        _is_plain(weights, False)
        and cnp.PyArray_TYPE(<cnp.ndarray> weights) == cnp.NPY_DOUBLE
        and cnp.PyArray_NDIM(<cnp.ndarray> weights) == 1
        and cnp.PyArray_SIZE(<cnp.ndarray> weights) == n
    )


cdef bint _has_channels(object X, Py_ssize_t width, object channel_axis, bint *last) noexcept:
    """Whether `X` is an array of so many channels, on axis 1 or the last: of rows if there is no `channel_axis`."""
    cdef int n_axes
    if not cnp.PyArray_CheckExact(X):
        return False
    n_axes = cnp.PyArray_NDIM(<cnp.ndarray> X)
    if n_axes < 2 or (channel_axis is None and n_axes != 2):
        return False
    last[0] = channel_axis is not None and (channel_axis == -1 or channel_axis == n_axes - 1)
    return ((channel_axis is None or last[0] or channel_axis == 1)
            and cnp.PyArray_DIM(<cnp.ndarray> X, n_axes - 1 if last[0] else 1) == width)


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
    cdef Py_ssize_t c, width = learned.shape[1]
    cdef cnp.ndarray after, moments_of_x, _sums
    cdef bn_moments m
    cdef const double *old
    cdef double *new
    cdef double *batch
    cdef bint average = momentum is not None, fades = halflife is not None, missing = False, last
    cdef double weight = momentum if average else 0.0, half = halflife if fades else 0.0, n_rows, age
    if not (_has_channels(X, width, channel_axis, &last)
            and _begin_numbers(&j, X, None, None, last, cnp.NPY_NOTYPE)):
        return None
    if (fades or weights is not None) and cnp.PyArray_NDIM(<cnp.ndarray> X) != 2:
        return None
    n_rows = <double> (cnp.PyArray_SIZE(<cnp.ndarray> X) // width)
    if average and n_rows == 1:
        return None
    if weights is not None:
        if average or fades or not _are_weights(weights, cnp.PyArray_DIM(<cnp.ndarray> X, 0)):
            return None
        if np.minimum.reduce(weights) < 0:
            return None
        j.weights = <const double *> cnp.PyArray_DATA(<cnp.ndarray> weights)
    _cut_for_sums(&j.g)
    _sums = _new_sums(&j, 4)
    j.first, j.skip_missing = _moments_of, True
    _weights = _recency(&j, half) if fades else None
    _set_threads(&j, threads(n_threads, _n_bytes(&j)))
    _run(&j, _first)
    if j.seen and (fades or weights is not None):
        return None
    after, moments_of_x = _fresh(5, width, cnp.NPY_DOUBLE), _fresh(4, width, cnp.NPY_DOUBLE)
    old = <const double *> _values(learned)
    new, batch = <double *> cnp.PyArray_DATA(after), <double *> cnp.PyArray_DATA(moments_of_x)
    for c in range(width):
        m = _merged(&j, c)
        _set_moments(batch, c, width, m)
        missing |= j.seen and m.count != n_rows
        if weights is not None and not 0 < m.count <= DBL_MAX:  # all are 0, or one is not finite
            return None
        age = old[4 * width + c]
        if average and m.count > 0 and (m.count == 1 or m.count <= ddof):
            return None
        if average:
            m = bn_update_momentum(_moments_at(old, c, width), m, weight, ddof)
        elif fades:
            if m.count < 1e-200 * n_rows:
                return None
            m = bn_merge(bn_scaled(_moments_at(old, c, width), bn_decay(age + n_rows, half)), m, True)
            age = 0
        else:
            m = bn_merge(_moments_at(old, c, width), m, True)
        if not isfinite(m.m2 + m.mean):  # nor is what an infinity is merged into
            return None
        _set_moments(new, c, width, m)
        new[4 * width + c] = age
    return after, moments_of_x, missing


def apply_plain(X, channel_axis, out, dtype, n_threads, cnp.ndarray values, cnp.ndarray single):
    """`X` transformed by what `fold_running` returned, in `out` if that is given, as `dtype`; None unless both are
    plain arrays of so many channels, and `X` is without infinities.
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
        _begin_numbers(&j, X, None, out, last, y_type) and (j.is_double or single is not None)
    ):
        return None
    y = _plain_result(&j, X, out, &apart, y_type)
    size = width * j.itemsize
    j.c.mean = _further(_values(values), 3 * size) if j.is_double else _values(single)
    j.c.scale, j.c.shift = _further(j.c.mean, size), _further(j.c.mean, 2 * size)
    j.second = _result_of
    if cnp.PyArray_SIZE(y) <= _small:
        _leaf_of_small(&j)
    else:
        j.stream = _streams if apart and _n_bytes(&j) >= _stream_bytes else 0
        _set_threads(&j, threads(n_threads, _n_bytes(&j)))
        _run_second(&j)
    return None if j.seen else y


cdef void _leaf_of_small(job *j) noexcept:
    """The result of what is one part on one thread, without a loop over parts."""
    cdef place at
    memset(&at, 0, sizeof(place))
    at.part = j.g.whole
    _result_of(j, at)


def normalize_plain(x, bint last, mean, var, gamma, beta, eps, out, bint relu, n_threads):
    """The result of ``batch_norm``, or None."""
    cdef job j
    cdef cnp.ndarray y, _folded
    cdef const double *center
    cdef const double *spread
    cdef Py_ssize_t c
    cdef bint apart
    mean, var, gamma, beta = _as_double(mean), _as_double(var), _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _begin_plain(&j, x, None, out, last) and mean is not None and var is not None):
        return None
    if not (_per_channel(mean, j.width, &center) and _per_channel(var, j.width, &spread)
            and _per_channel(gamma, j.width, &j.gamma) and _per_channel(beta, j.width, &j.beta)):
        return None
    _folded = _new_folds(&j, 3)
    for c in range(j.width):
        if spread[c] < 0 or not _fold_affine(&j, c, bn_fold(
            center[c], bn_inverse_std(spread[c], eps), 1.0 if j.gamma == NULL else j.gamma[c],
            0.0 if j.beta == NULL else j.beta[c], 0.0
        )):
            return None
    y = _plain_result(&j, x, out, &apart)
    j.c.mean, j.c.scale, j.c.shift = _row(&j, 0), _row(&j, 1), _row(&j, 2)
    j.second, j.relu = _result_of, relu
    j.stream = _streams if apart and _n_bytes(&j) >= _stream_bytes else 0
    _set_threads(&j, threads(n_threads, _n_bytes(&j)))
    _run_second(&j)
    return y


def forward_plain(x, bint last, gamma, beta, eps, out, bint relu, n_threads):
    """Result, mean, invstd and mean_lo of ``batch_norm_forward``, or None."""
    cdef job j
    cdef cnp.ndarray y
    cdef bint apart
    gamma, beta = _as_double(gamma), _as_double(beta)
    if not (_is_eps(eps) and _begin_plain(&j, x, None, out, last) and j.g.whole.outer * j.g.whole.inner > 1
            and _per_channel(gamma, j.width, &j.gamma) and _per_channel(beta, j.width, &j.beta)):
        return None
    y = _plain_result(&j, x, out, &apart)
    _set_threads(&j, threads(n_threads, _n_bytes(&j)))
    if not apart and _may_stop(&j):
        return None
    invstd = _new_invstd(&j)
    j.eps, j.relu = eps, relu
    sums = _sums_if_done(_run_forward(&j, apart))
    return None if sums is None else (y, sums[1, 0], invstd, sums[2, 0])


def backward_plain(dy, x, bint last, mean, invstd, mean_lo, gamma, out, n_threads):
    """Gradients of x, gamma and beta of ``batch_norm_backward``, or None."""
    cdef job j
    cdef cnp.ndarray dx
    cdef const double *spread
    cdef bint apart
    gamma = _as_double(gamma)
    if not (_begin_plain(&j, x, dy, out, last) and dy is not None and mean is not None and invstd is not None
            and mean_lo is not None and _per_channel(mean, j.width, &j.center)
            and _per_channel(invstd, j.width, &spread)
            and _per_channel(mean_lo, j.width, &j.center_lo) and _per_channel(gamma, j.width, &j.gamma)):
        return None
    dx = _plain_result(&j, x, out, &apart)
    _set_threads(&j, threads(n_threads, _n_bytes(&j)))
    if not apart and _may_stop(&j):
        return None
    j.invstd = <double *> spread
    sums = _sums_if_done(_run_backward(&j, apart))
    return None if sums is None else (dx, sums[1, 0], sums[0, 0])


cdef bint _may_stop(job *j) noexcept:
    """Whether a task could be done where another cannot, and the long way would miss what has been overwritten."""
    return not j.is_double and 0 < _resident_channels(j) < j.width


cdef cnp.ndarray _sums_if_done(tuple found):
    cdef cnp.ndarray sums = found[0], done = found[1]
    if memchr(cnp.PyArray_DATA(done), 0, cnp.PyArray_SIZE(done)) != NULL:
        return None
    return sums if sums.shape[1] == 1 else sums[:, :1].copy()
