"""Arrays and DataFrames of Dask: statistics in one pass over the blocks, and coefficients applied lazily.

The worker that has a block makes a `_batches.Summary` of it, of O(channels). Summaries are joined `FAN_IN` at a time,
in an order that depends on the blocks alone, so that the result does not depend on scheduler and workers. Tasks hold
only what they need of the transformer. Dask is imported in the functions: X comes from it, so it is installed.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _batches, _door, _infinities, _layout, _weights
from bncpu._batches import Summary
from bncpu._door import Block
from bncpu.moments import Coefficients, Moments
from bncpu.state import Parameters

# Summaries joined in one task.
FAN_IN = 8

# Name of the column in which a DataFrame carries its sample weights.
WEIGHTS = "bncpu sample_weight"


def weights(sample_weight: Any, X: Any) -> Any:
    """Weights as an array or Series of Dask that is cut as X is, along its rows or positions; or None."""
    if sample_weight is None:
        return None
    import dask.array

    if hasattr(X, "chunks") and hasattr(sample_weight, "to_dask_array"):  # a Series
        sample_weight = sample_weight.to_dask_array()
    sample_weight, known = _weights.of_lazy(sample_weight, X)
    if not known:
        return sample_weight
    return dask.array.asarray(sample_weight).rechunk((X.chunks[0], *X.chunks[2:])[: sample_weight.ndim])


def summary(
    t: Any, X: Any, weights: Any, p: Parameters, first_row: int, *, halflife: float | None, count_values: bool
) -> Summary:
    """`_batches.summary` of an array (N, C, ...) or a DataFrame of Dask. Its blocks are computed once.

    Parameters
    ----------
    t : BatchNormTransformer
        The transformer that learns.
    X, weights : Dask collections
        Checked by `_door.batch`, and made by `weights`.
    p : Parameters
    first_row : int
        Number of rows before X, for messages.
    halflife, count_values
        As in `_batches.summary`.
    """
    import dask.array
    from dask.highlevelgraph import HighLevelGraph

    at = Block(type(t).__name__, X.shape[1], p._replace(gamma=None, beta=None))
    options = {"halflife": halflife, "count_values": count_values, "n_threads": t.n_threads or 1}
    read, join = functools.partial(_read, at, options), functools.partial(_batches.joined, halflife=halflife)
    name = "bncpu-summary-" + dask.base.tokenize(X, weights, read, first_row)

    if halflife is not None and X.ndim > 2:  # a block must hold whole rows, in their order
        X = X.rechunk(dict.fromkeys(range(2, X.ndim), -1))
        if weights is not None and weights.ndim > 1:
            weights = weights.rechunk(dict.fromkeys(range(1, weights.ndim), -1))
    blocks, weight_keys, inputs = _inputs(X, weights, p.channel_axis)
    sizes, widths = X.chunks[:2] if hasattr(X, "chunks") else ((math.nan,) * len(blocks), (X.shape[1],))
    rows = [None if math.isnan(row) else int(row) for row in itertools.accumulate(sizes, initial=first_row)]
    columns = list(itertools.accumulate(widths, initial=0))
    tasks: dict[Any, Any] = {}
    totals = []
    for j in np.flatnonzero(widths).tolist():
        leaves = {
            (name, j, 0, n): (read, block, of_block, rows[i], columns[j], widths[j])
            for n, (i, block, of_block) in enumerate(
                (i, block, of_block)
                for i in range(len(sizes))
                for block, of_block in zip(blocks[i][j], itertools.cycle(weight_keys[i]))
            )
        }
        tasks |= leaves
        totals.append(_tree(join, list(leaves), tasks))
    tasks[name, 0] = (_beside, totals)
    # A Dask array with one object in it: Dask fuses the tasks of arrays.
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=inputs)
    total: Summary = dask.array.Array(graph, name, ((1,),), dtype=object).compute()[0]
    _door.observed(t, total.n_samples, total.n_positive, at.n_features)
    return total


def _inputs(X: Any, weights: Any, channel_axis: int | None) -> tuple[Any, list[Any], list[Any]]:
    """Keys of blocks, nested by rows, columns and positions; keys of weights, by rows and positions; their collections.

    Weights of samples have one key for all positions.
    """
    from dask.core import flatten

    in_array = hasattr(weights, "chunks")
    weight_keys, inputs = None, []
    if in_array:
        weight_keys, inputs = [list(flatten([row])) for row in weights.__dask_keys__()], [weights]
    if not hasattr(X, "chunks"):
        if weights is not None and not in_array:  # a Series: as a column of X, so that what they share is computed once
            X = X.assign(**{WEIGHTS: weights})
        # Optimization may join partitions, and weights in an array are cut as the original ones are.
        partitions = X.to_delayed(optimize_graph=not in_array)
        weight_keys = weight_keys or [[None]] * len(partitions)
        return [[[partition.key]] for partition in partitions], weight_keys, [partitions[0], *inputs]
    if channel_axis is not None:  # send blocks with the axes of the caller, not as views with other axes
        X = _layout.channels_back(X, channel_axis)
    keys, order = list(flatten(X.__dask_keys__())), np.arange(math.prod(X.numblocks)).reshape(X.numblocks)
    if channel_axis is not None:
        order = _layout.channels_second(order, channel_axis)
    order = order.reshape(*order.shape[:2], -1)
    weight_keys = weight_keys or [[None]] * len(order)
    return [[[keys[n] for n in column] for column in row] for row in order.tolist()], weight_keys, [X, *inputs]


def _tree(join: Any, keys: list[Any], tasks: dict[Any, Any]) -> Any:
    """Add tasks that join the summaries of `keys` to one, and return its key."""
    while len(keys) > 1:
        name, j, level, _ = keys[0]
        parts = [keys[start : start + FAN_IN] for start in range(0, len(keys), FAN_IN)]
        keys = [(name, j, level + 1, i) for i in range(len(parts))]
        tasks |= {key: (join, part) for key, part in zip(keys, parts, strict=True)}
    return keys[0]


def _read(
    at: Block,
    options: dict[str, Any],
    block: Any,
    weights: Any,
    first_row: int | None,
    first_column: int,
    n_features: int,
) -> Summary:
    """The summary of a block; runs in a worker."""
    at = at._replace(first_row=first_row, first_column=first_column, n_features=n_features)
    if hasattr(block, "columns") and WEIGHTS in block.columns:
        block, weights = block.drop(columns=WEIGHTS), block[WEIGHTS]
    if isinstance(block, np.ndarray):
        block = _layout.settled(block, "C")
        if at.channel_axis is not None:
            block = _layout.channels_second(block, at.channel_axis)
    names = getattr(block, "columns", None)
    X = _door.block(block, at)
    batch = _door.as_batch(X if names is None else _layout.settled(X, "F"))
    with np.errstate(over="ignore", invalid="ignore"):
        made = _batches.summary(batch, _weights.of_block(weights, X), **options)
    _infinities.finite_moments(at, batch, made.moments, names, first_row)
    return made


def _beside(parts: list[Summary]) -> NDArray[Any]:
    """One summary from those of column blocks with the same rows, in an array of one object."""
    of_each, observed, age, n_samples, n_positive, span = zip(*parts, strict=True)
    moments = Moments(*np.concatenate(of_each, axis=1))
    made = np.empty(1, dtype=object)
    made[0] = Summary(moments, np.concatenate(observed), np.concatenate(age), n_samples[0], n_positive[0], span[0])
    return made


def apply(
    t: Any, X: Any, coefficients: Coefficients, p: Parameters, wanted: np.dtype[Any] | None, clip: float | None
) -> Any:
    """`Batch.apply` of an array (N, C, ...) or a DataFrame of Dask; it runs when the result is computed."""
    at = Block(type(t).__name__, X.shape[1], p._replace(gamma=None, beta=None, clip=clip))
    if not hasattr(X, "chunks"):
        dtype = _layout.result_dtype(_door.block(X._meta, at).dtype, wanted)
        changed = functools.partial(_apply_to_frame, at, t.n_threads or 1, dtype, coefficients)
        return X.map_partitions(changed, meta=X._meta.astype(dtype), enforce_metadata=False)
    import dask.array

    dtype = _layout.result_dtype(_door.block(np.empty((0, *X.shape[1:2]), X.dtype), at).dtype, wanted)
    axes, inputs = tuple(range(X.ndim)), []
    for values in (np.arange(X.shape[1]), *coefficients):  # each block gets the values for its columns
        inputs += [dask.array.from_array(values, chunks=(X.chunks[1],)), (1,)]
    changed = functools.partial(_apply_to_array, at, t.n_threads or 1, dtype)
    options = {"dtype": dtype, "meta": X._meta.astype(dtype), "align_arrays": False, "token": "bncpu-apply"}
    return dask.array.blockwise(changed, axes, X, axes, *inputs, **options)


def _apply_to_array(
    at: Block, n_threads: int, dtype: np.dtype[Any], block: Any, columns: NDArray[Any], *coefficients: NDArray[Any]
) -> Any:
    at = at._replace(n_features=len(columns), first_column=int(columns[0]) if len(columns) else 0)
    y = _apply(at, n_threads, dtype, _door.block(block, at), Coefficients(*coefficients))
    return y.astype(dtype, copy=False)


def _apply_to_frame(at: Block, n_threads: int, dtype: np.dtype[Any], coefficients: Coefficients, frame: Any) -> Any:
    y = _apply(at, n_threads, dtype, _door.block(frame, at), coefficients, frame.columns)
    return type(frame)(y, index=frame.index, columns=frame.columns)


def _apply(
    at: Block, n_threads: int, dtype: np.dtype[Any], X: Any, coefficients: Coefficients, names: Any = None
) -> Any:
    batch = _door.as_batch(X)
    clip = at.parameters.clip
    y, seen = batch.apply(coefficients, dtype=dtype, n_threads=n_threads)
    _infinities.of_results(at, batch, y, seen, names, None, warns=clip is None)
    return _batches.clipped(y, clip)
