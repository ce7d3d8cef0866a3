"""The kernels: `moments` and `apply` forward, `backward_sums` and `backward_apply` backward.

Where one block has whole channels, one kernel does both steps of a direction: `forward`, `backward`. For the
transformer, `collect` is `moments` that leaves NaN out and weights samples.

All kernels go through an array in the same way, in both memory forms. An array is ``(outer, channels, inner)``, in
vectors of n values. In the form of planes a vector holds n adjacent values of one channel; in the form of rows, where
inner is 1, one value of each of n channels. A block has `columns` x `members` threads. A column is a vector of the
channels axis. Its values are shared among its members in this block and in other blocks of the same column, which are
called slices. The forms differ in whether the lanes of a vector are added up in the end, and in what lies side by side
in memory: columns of rows, members of planes.

Large rows that vectors do not fit are taken several as one, in which channels are repeated: `collect` writes moments of
their columns, `fold_moments` merges those of a channel, `fold` adds up gradients.

Norms of samples take the same kernels over other views, with a sample, a group or a plane for a channel. The kind says
which statistics and parameters belong to a value (`Kind.belonging`). `fold` adds the sums of planes up to those of
groups and channels. A short plane has a warp for itself.

A thread sums deviations from its own first value, then moves them to its mean. If the first value is an outlier, the
sum has up to one more rounding for each value. Members and slices are merged in an order that depends on the plan
alone: slices as a tree, in which the last block of a group to finish merges the group. The last of all computes the
statistics. A mean is kept as two numbers, so that a large mean costs no digits.

In the order of a reader: `_arguments` has what kernels are given, `_columns` the walk, `_moments` the sums of a thread
and the statistics, `_merging` how threads and slices come together, `_results` the forward pass, `_backward` the
backward one. Functions named `make_...` make device functions for a kind of kernel, with its constants and variants in
them; each kernel below is made likewise, and calls two or three of these.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, float64

from . import _compat
from ._arguments import (
    Address,
    Affine,
    Backward,
    Forward,
    Gradients,
    Kind,
    Pair,
    Parts,
    Running,
    Statistics,
    Sums,
    Walk,
    Weights,
    Workspace,
)
from ._backward import make_sum_gradients, make_sum_pairs, make_write_gradients
from ._moments import make_finish_moments, make_fold_moments, make_sum_moments, make_write_moments
from ._results import make_write_results


class Kernels(NamedTuple):
    """The kernels of a kind, compiled when they are first launched."""

    moments: Any
    apply: Any
    forward: Any  # moments and apply, for plans of one slice
    backward_sums: Any
    backward_apply: Any
    backward: Any  # both, for plans of one slice
    fold: Any
    collect: Any
    fold_moments: Any


@cache
def kernels(kind: Kind) -> Kernels:
    """The kernels of a kind."""
    return Kernels(
        _moments(kind),
        _apply(kind),
        _forward(kind),
        _backward_sums(kind),
        _backward_apply(kind),
        _backward(kind),
        _fold(kind),
        _collect(kind),
        _fold_moments(kind),
    )


def _moments(kind: Kind) -> Any:
    entries = kind.entries
    sum_moments, finish_moments = make_sum_moments(kind), make_finish_moments(kind)

    @_compat.kernel(kind)
    def moments(x: Address, walk: Walk, workspace: Workspace, statistics: Statistics, eps: float, running: Running):
        """Mean and inverse standard deviation of every channel. Running statistics are updated."""
        parts = cuda.shared.array((4, entries), float64)
        if sum_moments(x, walk, Weights(x, 0, 1), workspace, parts):
            finish_moments(parts, walk, statistics, eps, running)

    return moments


def _apply(kind: Kind) -> Any:
    write_results = make_write_results(kind, last_first=kind.is_of_samples)

    @_compat.kernel(kind)
    def apply(data: Forward, walk: Walk, statistics: Statistics, affine: Affine, eps: float):
        """``activation(gamma * (x - mean) * invstd + beta + z)``."""
        write_results(data, walk, statistics, affine, eps)

    return apply


def _forward(kind: Kind) -> Any:
    entries = kind.entries
    sum_moments, finish_moments = make_sum_moments(kind), make_finish_moments(kind)
    write_results = make_write_results(kind)

    @_compat.kernel(kind)
    def forward(data: Forward, walk: Walk, statistics: Statistics, affine: Affine, eps: float, running: Running):
        """`moments`, then `apply`."""
        parts = cuda.shared.array((4, entries), float64)
        sum_moments(data.x, walk, Weights(data.x, 0, 1), Workspace(data.x, data.x), parts)
        finish_moments(parts, walk, statistics, eps, running)
        cuda.syncthreads()
        write_results(data, walk, statistics, affine, eps)

    return forward


def _backward_sums(kind: Kind) -> Any:
    entries, sum_gradients = kind.entries, make_sum_gradients(kind)

    @_compat.kernel(kind)
    def backward_sums(
        data: Backward, walk: Walk, workspace: Workspace, statistics: Statistics, affine: Affine, sums: Sums
    ):
        """``sum(dy * x_hat)`` and ``sum(dy)``, dy being 0 where ReLU gave 0: `Sums`."""
        parts = cuda.shared.array((2, entries), float64)
        sum_gradients(data, walk, workspace, statistics, affine, sums, parts)

    return backward_sums


def _backward_apply(kind: Kind) -> Any:
    write_gradients = make_write_gradients(kind, last_first=kind.is_of_samples)

    @_compat.kernel(kind)
    def backward_apply(
        data: Backward, gradients: Gradients, walk: Walk, statistics: Statistics, affine: Affine, sums: Sums,
        per_value: float,
    ):  # fmt: skip
        """``dx = gamma * invstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))``.

        `per_value` is 1 over the number of values of a channel.
        """
        write_gradients(data, gradients, walk, statistics, affine, sums, per_value)

    return backward_apply


def _backward(kind: Kind) -> Any:
    entries = kind.entries
    sum_gradients, write_gradients = make_sum_gradients(kind), make_write_gradients(kind)

    @_compat.kernel(kind)
    def backward(
        data: Backward, gradients: Gradients, walk: Walk, statistics: Statistics, affine: Affine, sums: Sums,
        per_value: float,
    ):  # fmt: skip
        """`backward_sums`, then `backward_apply`."""
        parts = cuda.shared.array((2, entries), float64)
        sum_gradients(data, walk, Workspace(data.x, data.x), statistics, affine, sums, parts)
        cuda.syncthreads()
        write_gradients(data, gradients, walk, statistics, affine, sums, per_value)

    return backward


def _fold(kind: Kind) -> Any:
    entries, sum_pairs = kind.entries, make_sum_pairs(kind)

    @_compat.kernel(kind)
    def fold(pair: Pair, walk: Walk, workspace: Workspace, result: Pair):
        """The sums of two arrays of float64 over every column: of sums of planes, those of groups or channels."""
        parts = cuda.shared.array((2, entries), float64)
        sum_pairs(pair, walk, workspace, result, parts)

    return fold


def _collect(kind: Kind) -> Any:
    entries = kind.entries
    sum_moments, write_moments = make_sum_moments(kind), make_write_moments(kind)

    @_compat.kernel(kind)
    def collect(x: Address, walk: Walk, workspace: Workspace, weights: Weights, result: Parts):
        """Count, mean, its low part and m2 of every channel."""
        parts = cuda.shared.array((4, entries), float64)
        if sum_moments(x, walk, weights, workspace, parts):
            write_moments(parts, walk, result)

    return collect


def _fold_moments(kind: Kind) -> Any:
    entries, fold, finish_moments = kind.entries, make_fold_moments(kind), make_finish_moments(kind)

    @_compat.kernel(kind)
    def fold_moments(
        given: Parts, walk: Walk, workspace: Workspace, statistics: Statistics, eps: float, running: Running
    ):
        """`moments` of what `collect` has written, of all parts that lie in a column."""
        parts = cuda.shared.array((4, entries), float64)
        if fold(given, walk, workspace, parts):
            finish_moments(parts, walk, statistics, eps, running)

    return fold_moments
