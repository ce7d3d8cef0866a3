# The machine: its instruction sets, threads and caches, and how results are stored past the caches.
#
# All of it is set before anything runs, and none of it changes a bit of a result.

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
    void bn_raise_flags(int *flags, int bits) noexcept nogil


# ---- instruction sets ----

# The leaves for each that this processor can run, fastest first, and those in use.
cdef bn_leaves *_all_leaves[4]
cdef int _n_leaves = bn_variants(_all_leaves)
cdef bn_leaves *_leaves = _all_leaves[0]


def isa_variants():
    """Names of the instruction sets this processor can run, fastest first."""
    return tuple(_all_leaves[i].name.decode() for i in range(_n_leaves))


def isa():
    """Name of the instruction set in use."""
    return _leaves.name.decode()


def use_isa(name):
    """Switch to the instruction set `name`. For tests and measurements; not while a kernel runs."""
    global _leaves
    for i in range(_n_leaves):
        if _all_leaves[i].name.decode() == name:
            _leaves = _all_leaves[i]
            return
    raise ValueError(f"BNCPU_ISA must be one of {', '.join(isa_variants())} on this machine; got {name!r}")


# ---- threads ----

# Below this many bytes a thread, waking it costs more than it saves.
BYTES_PER_THREAD = 512 << 10

cdef Py_ssize_t _bytes_per_thread = BYTES_PER_THREAD
cdef bytes _loadavg


def openmp_version():
    """Date of the OpenMP specification built against, such as 201511; 0 without OpenMP."""
    return bn_openmp_version()


def max_threads():
    """Threads OpenMP allows now: OMP_NUM_THREADS, threadpoolctl and joblib have had their say."""
    return bn_max_threads()


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


cdef inline int _paying(Py_ssize_t n_threads, Py_ssize_t n_bytes) noexcept nogil:
    return max(1, min(n_threads, n_bytes // _bytes_per_thread))


def threads(n_threads, Py_ssize_t n_bytes):
    """What a kernel that reads `n_bytes` is given for a user's `n_threads`: not more than pay, or None as it is."""
    return None if n_threads is None else _paying(min(n_threads, 1 << 20), n_bytes)


def allowed_threads(Py_ssize_t n_bytes):
    """Threads that a kernel which reads `n_bytes` takes on an idle machine if it is given None."""
    return _paying(max_threads(), n_bytes)


# ---- caches, and stores past them ----

# From this size on, storing past the cache wins; below it the result would be missed in the cache. Where both steps of
# a pass are one, the result is not in the cache before it is written, and storing past it pays earlier.
PAST_CACHE_BYTES = 16 << 20
PAST_CACHE_BYTES_FUSED = 4 << 20

cdef Py_ssize_t _past_cache_bytes = PAST_CACHE_BYTES, _past_cache_bytes_fused = PAST_CACHE_BYTES_FUSED

# What the leaves are given as `past_cache` where results are stored so: in how many streams, 1 or 4, and how
# far ahead of one what is read is fetched.
cdef int _walk = 1

# What of the arrays that are read stays in the second-level cache from one step of a pass to the next: half of one that
# holds 16 lines for each place within 128 KiB.
cdef Py_ssize_t _resident_bytes = 1 << 20, _places_bytes = 128 << 10, _places_deep = 8


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
    global _walk, _resident_bytes, _places_deep
    _walk, _resident_bytes, _places_deep = streams + ahead, resident_bytes, places_deep
