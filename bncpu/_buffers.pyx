# cython: language_level=3, autotestdict=False, freethreading_compatible=True
"""Arrays for large results, in memory of earlier results: a memory handler for NumPy.

NumPy lets an array have its own allocator (NEP 49). These arrays own their data like any other. When the last
reference to one is gone, views included, its block joins the list in ``src/blocks.h``, where the next result finds it.
"""

import os

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport strcpy
cimport numpy as cnp

import numpy as np

cnp.import_array()


cdef extern from "numpy/arrayobject.h":
    # Cython's own declarations of these came after NumPy 2.1.
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept
        void *(*calloc)(void *ctx, size_t n, size_t size) noexcept
        void *(*realloc)(void *ctx, void *data, size_t size) noexcept
        void (*free)(void *ctx, void *data, size_t size) noexcept
    ctypedef struct PyDataMem_Handler:
        char *name
        unsigned char version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()
    PyObject *PyDataMem_DefaultHandler

cdef extern from "blocks.h":
    size_t bn_pool_waiting() noexcept
    size_t bn_pool_release() noexcept
    size_t bn_pool_limit() noexcept
    size_t bn_pool_set_limit(size_t limit) noexcept
    size_t bn_pool_set_least(size_t least) noexcept
    bint bn_pool_pays(size_t size) noexcept
    void bn_pool_before_fork() noexcept
    void bn_pool_after_fork_in_parent() noexcept
    void bn_pool_after_fork_in_child() noexcept
    void *bn_block_new(void *context, size_t size) noexcept
    void *bn_block_new_zeroed(void *context, size_t n, size_t size) noexcept
    void *bn_block_resize(void *context, void *data, size_t size) noexcept
    void bn_block_free(void *context, void *data, size_t size) noexcept


# ---- the memory handler ----

cdef PyDataMem_Handler _handler
strcpy(_handler.name, b"bncpu")
_handler.version = 1
_handler.allocator.ctx = NULL
_handler.allocator.malloc = bn_block_new
_handler.allocator.calloc = bn_block_new_zeroed
_handler.allocator.realloc = bn_block_resize
_handler.allocator.free = bn_block_free
cdef object _capsule = PyCapsule_New(&_handler, b"mem_handler", NULL)


def empty(shape, dtype):
    """``numpy.empty``. Large arrays reuse memory, unless the user has set another allocator than NumPy's own."""
    cdef double n_bytes = dtype.itemsize  # a double, as the product may overflow: NumPy refuses such a shape
    cdef Py_ssize_t length
    for length in shape:
        n_bytes *= length
    if not _reusable(n_bytes):
        return np.empty(shape, dtype)
    before = PyDataMem_SetHandler(_capsule)
    try:
        return np.empty(shape, dtype)
    finally:
        PyDataMem_SetHandler(before)


def empty_like(prototype, dtype, order="K"):
    """``numpy.empty_like``, likewise; always a plain ndarray."""
    if not _reusable(<double>prototype.size * dtype.itemsize):
        return np.empty_like(prototype, dtype, order, subok=False)
    before = PyDataMem_SetHandler(_capsule)
    try:
        return np.empty_like(prototype, dtype, order, subok=False)
    finally:
        PyDataMem_SetHandler(before)


cdef bint _reusable(double n_bytes):
    if n_bytes > 1e18 or not bn_pool_pays(<size_t>n_bytes):
        return False
    in_use = PyDataMem_GetHandler()
    return <PyObject *>in_use == PyDataMem_DefaultHandler


# ---- blocks that wait for reuse ----

def waiting():
    """Bytes that wait for reuse."""
    return bn_pool_waiting()


def release():
    """Free all blocks that wait; return their size in bytes."""
    return bn_pool_release()


def set_limit(size_t n_bytes):
    """Let at most `n_bytes` wait; return the limit before."""
    return bn_pool_set_limit(n_bytes)


def limit():
    """How many bytes may wait."""
    return bn_pool_limit()


def set_least(size_t n_bytes):
    """Reuse memory for arrays of `n_bytes` and more; return the bound before. For tests."""
    return bn_pool_set_least(n_bytes)


# ---- forks ----

def _before_fork():
    bn_pool_before_fork()


def _after_fork_in_parent():
    bn_pool_after_fork_in_parent()


def _after_fork_in_child():
    bn_pool_after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
