# How arrays are cut into parts: by their shape alone, so that results do not depend on the number of threads.
#
# Sums need blocks, whose moments are merged; results need none, and are cut as suits the memory.

# At most about this many blocks keep scratch memory proportional to the channels.
MAX_BLOCKS = 128

cdef Py_ssize_t _max_blocks = MAX_BLOCKS

# At most so many values are in a task of the second step.
cdef enum:
    RESULT_VALUES = 65536


ctypedef struct grid:
    # Extents of the whole, of a part, and the number of parts along each axis.
    Py_ssize_t groups, tasks
    bn_part whole, part, n_parts


ctypedef struct place:
    # Where a part begins, and what it is one of: the blocks of its channels.
    Py_ssize_t group, outer, channel, inner, block
    bn_part part


cdef inline Py_ssize_t _ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t _lowest_bit(Py_ssize_t a, Py_ssize_t most) noexcept nogil:
    """The greatest common divisor of `a` and a power of two."""
    return most if a == 0 else min(a & -a, most)


cdef inline bint _is_rows(grid g) noexcept nogil:
    return g.whole.inner == 1


cdef void _cut(grid *g, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept:
    g.part.outer, g.part.channels, g.part.inner = outer, channels, inner
    g.n_parts.outer = _ceil_div(g.whole.outer, outer)
    g.n_parts.channels = _ceil_div(g.whole.channels, channels)
    g.n_parts.inner = _ceil_div(g.whole.inner, inner)
    g.tasks = g.groups * g.n_parts.outer * g.n_parts.channels * g.n_parts.inner


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
    # Rows stay whole up to a tile, or to a quarter of one where threads share a single block; planes stay contiguous
    # over at least 32 Ki values.
    cdef Py_ssize_t outer, inner, channels
    outer, inner = _block_shape(g.whole)
    if _is_rows(g[0]):
        channels = BN_TILE if outer < g.whole.outer else BN_TILE // 4
    else:
        channels = max(1, min(BN_TILE, 32768 // inner))
    _cut(g, outer, channels, inner)


cdef void _cut_for_results(grid *g) noexcept:
    # A task is some outer positions, or one with some channels, or a piece of one plane.
    cdef Py_ssize_t inner = max(1, min(g.whole.inner, RESULT_VALUES))
    cdef Py_ssize_t channels = max(1, min(g.whole.channels, RESULT_VALUES // inner))
    _cut(g, max(1, RESULT_VALUES // (inner * max(1, g.whole.channels))), channels, inner)


cdef void _cut_for_both(grid *g, Py_ssize_t channels) noexcept:
    # A task is all blocks of some channels.
    cdef Py_ssize_t outer, inner
    outer, inner = _block_shape(g.whole)
    _cut(g, outer, channels, inner)
    g.tasks = g.groups * g.n_parts.channels


cdef inline place _place(grid g, Py_ssize_t task) noexcept nogil:
    """The part of a task of one step."""
    cdef place at
    cdef Py_ssize_t inner = task % g.n_parts.inner, channel = task // g.n_parts.inner % g.n_parts.channels
    cdef Py_ssize_t outer = task // (g.n_parts.inner * g.n_parts.channels) % g.n_parts.outer
    at.group = task // (g.n_parts.inner * g.n_parts.channels * g.n_parts.outer)
    at.outer = outer * g.part.outer
    at.channel = channel * g.part.channels
    at.inner = inner * g.part.inner
    at.block = outer * g.n_parts.inner + inner
    at.part.outer = min(g.part.outer, g.whole.outer - at.outer)
    at.part.channels = min(g.part.channels, g.whole.channels - at.channel)
    at.part.inner = min(g.part.inner, g.whole.inner - at.inner)
    return at


cdef inline place _block(grid g, Py_ssize_t task, Py_ssize_t block) noexcept nogil:
    """A block of the channels of a task of both steps."""
    cdef Py_ssize_t channel = task % g.n_parts.channels, group = task // g.n_parts.channels
    cdef Py_ssize_t outer = group * g.n_parts.outer + block // g.n_parts.inner
    return _place(g, (outer * g.n_parts.channels + channel) * g.n_parts.inner + block % g.n_parts.inner)


cdef inline Py_ssize_t _strip_outer(grid g) noexcept nogil:
    return g.whole.outer if _is_rows(g) else max(1, 8192 // (g.part.channels * g.whole.inner))


cdef inline place _strip(grid g, Py_ssize_t task, Py_ssize_t i) noexcept nogil:
    """A part for the second step, the last first: what was read last is nearest. Rows are one strip."""
    cdef place at = _block(g, task, 0)
    cdef Py_ssize_t outer = _strip_outer(g)
    at.outer = (_ceil_div(g.whole.outer, outer) - 1 - i) * outer
    at.part.outer, at.part.inner = min(outer, g.whole.outer - at.outer), g.whole.inner
    return at


cdef inline Py_ssize_t _channel(grid g, place at) noexcept nogil:
    """Number of the first channel of a part among those of all groups."""
    return at.group * g.whole.channels + at.channel
