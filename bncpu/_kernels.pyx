# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: autotestdict=False, freethreading_compatible=True
"""The parallel loops: arrays in one of the two forms are cut into parts, each part goes to a C leaf.

Arrays come as 4-D views (groups, outer, channels, inner), made by ``_layout``: every channel of every group
has statistics and coefficients of its own. How they are cut depends on their shape alone and every part
writes its own results, so nothing depends on the number of threads. Nothing is checked here: ``_door``,
``_arguments`` and ``_checks`` have done it. Only the short ways look at what they are given.

This file is the table of contents. Whatever calls a leaf must be in one compiled module, which has the instruction set
in use and the threads to itself. So its concepts are files in ``src/`` that are included, in the order in which they
build on one another; only what calls no leaf is a module of its own.
"""

from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.float cimport DBL_MAX
from libc.string cimport memchr, memcmp, memcpy, memset
cimport cython
cimport numpy as cnp

from bncpu._algebra cimport (
    bn_affine,
    bn_decay,
    bn_fold,
    bn_fold_backward,
    bn_fold_running,
    bn_gradient,
    bn_inverse_std,
    bn_merge,
    bn_merge_blocks,
    bn_moments,
    bn_round_affine,
    bn_round_gradient,
    bn_running,
    bn_scaled,
    bn_sum_blocks,
    bn_update_momentum,
    bn_variance,
)

import numpy as np

from bncpu import _buffers

# Modules of their own, as they use no leaves. Python code finds them here.
from bncpu._algebra import decay, fold, fold_backward, inverse_std, merge, merge_blocks, rounded  # no-cython-lint
from bncpu._algebra import rounded_gradient, sum_blocks, update_momentum, variance  # no-cython-lint
from bncpu._sparse import sparse_sums  # no-cython-lint

cnp.import_array()


# ---- what a loop is made of ----

# The loops over one part, for each instruction set: what leaves.h declares.
include "src/leaves.pxi"
# The machine: instruction sets, threads, caches; how results are stored past the caches.
include "src/machine.pxi"
# How arrays are cut into parts, by their shape alone.
include "src/parts.pxi"
# What arrays hold, and where their parts begin.
include "src/arrays.pxi"
# What a driver was called with, and the memory it works in.
include "src/job.pxi"
# What is done to a part, and with a channel in between.
include "src/steps.pxi"
# The loop over parts: one step after the other, or both over some channels while these are in the cache.
include "src/loop.pxi"

# ---- what Python code calls ----

# moments, apply, backward_sums, backward_apply; forward, backward; normalize
include "src/drivers.pxi"
# The short ways of plain arrays, which skip the checks that explain: what is plain enough for them,
include "src/plain.pxi"
# those of the functions,
include "src/functions.pxi"
# and those of the transformer, with its running statistics.
include "src/transformer.pxi"
# What the loops are measured by: read, copy, triad.
include "src/yardsticks.pxi"
