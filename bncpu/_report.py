"""How some data differ from the running statistics of a transformer, feature by feature."""

from __future__ import annotations

import html
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import moments
from bncpu._batches import Batch
from bncpu.moments import Moments
from bncpu.state import Parameters, State

Float64 = NDArray[np.float64]

# A standard deviation of fewer steps of the type is hardly more than rounding.
FEW_STEPS = 10
# The relative size of a step between neighbouring values; float64 for all other types.
STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}
SHRUNK = 0.01
DRIFTED = 4.0  # standard errors
CURVE_VALUES = 1 << 22
BATCH_SIZES = (2, 4, 8, 16, 32, 64, 128, 256)
LEAST_BATCHES = 8
ENOUGH_TO_TRAIN = 0.5  # small networks lost nothing at a gap of 0.4, but did at 0.6: examples/evidence/small_batches.py
SHOWN = 30


class Known(NamedTuple):
    """Statistics of each feature, and the effective number of values behind them. Both sides have the same ddof."""

    mean: Float64
    var: Float64
    n: Float64


class Report:
    """The result of :meth:`~bncpu.BatchNormTransformer.report`.

    It prints as a table, the largest difference first, and shows as an HTML table in a notebook.

    Attributes
    ----------
    columns : dict of str to ndarray of shape (n_features,)
        ``feature``: its name, and ``remarks``. ``running_mean``, ``running_std``: of the transformer; ``mean``,
        ``std``: of the data. ``effective_n``, ``running_effective_n``: effective numbers of values. ``shift``: the
        difference of the means, in running standard deviations; ``shift_error``: its standard error.
        ``variance_ratio``, ``variance_ratio_error``: of the data over the running one. ``shrinkage``: by which part of
        itself eps makes the normalized feature smaller. ``gap``: as below, infinite for a feature that was constant
        before. In the order of the features.
    gap_by_batch_size : dict of int to float
        The root mean square difference, over the features, between data normalized by its own batch of so many
        samples, as in training, and by the running statistics, as at inference.
    notes : list of str
        Explanations, and what concerns all features.
    """

    def __init__(self, columns: dict[str, NDArray[Any]], gap_by_batch_size: dict[int, float], notes: list[str]) -> None:
        self.columns = columns
        self.gap_by_batch_size = gap_by_batch_size
        self.notes = notes

    def to_frame(self) -> Any:
        """The columns as a DataFrame with a row for each feature.

        Returns
        -------
        pandas.DataFrame
            Indexed by feature.

        Raises
        ------
        ImportError
            If pandas is not installed.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer().fit([[0.0], [4.0]]).report([[1.0], [5.0]]).to_frame()["shift"].tolist()
        [0.5]
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("a report as a DataFrame needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.columns).set_index("feature")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells of the table, the largest difference first; of many features, only the first ones."""
        c = self.columns
        heads = ["feature", "mean", "std", "shift of mean", "std ratio", "values", "remarks"]
        order = np.argsort(-np.nan_to_num(c["gap"], nan=-1.0), kind="stable")[:SHOWN].tolist()
        ratio, ratio_error = std_ratio(c)
        cells = [
            [
                str(c["feature"][k]),
                f"{c['running_mean'][k]:.4g}",
                f"{c['running_std'][k]:.4g}",
                _uncertain(c["shift"][k], c["shift_error"][k], "+"),
                _uncertain(ratio[k], ratio_error[k]),
                _number(c["effective_n"][k]),
                str(c["remarks"][k]),
            ]
            for k in order
        ]
        return heads, cells

    def _below(self) -> list[str]:
        hidden = len(self.columns["feature"]) - SHOWN
        more = [f"{hidden} more features, which differ less: to_frame() has all"] if hidden > 0 else []
        curve = ", ".join(f"{size}: {gap:.2f}" for size, gap in self.gap_by_batch_size.items())
        by_size = "difference between data normalized by its own batch and by the running statistics, by batch size: "
        return [*more, *([by_size + curve] if curve else []), *self.notes]

    def __str__(self) -> str:
        heads, cells = self._table()
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        left = (0, len(heads) - 1)
        lines = [
            "  ".join(
                cell.ljust(width) if k in left else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (heads, *cells)
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *self._below()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads, cells = self._table()
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in heads)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._below())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><ul>{notes}</ul>"


def _uncertain(value: float, error: float, sign: str = "") -> str:
    """A value and its standard error, of which two digits count."""
    if np.isnan(value):
        return ""
    if not 0 < error < np.inf:
        return f"{value:{sign}.3g}"
    digits = min(max(0, 1 - math.floor(math.log10(error))), 15)
    form = "e" if abs(value) >= 1e6 else "f"
    return f"{value:{sign}z.{min(digits, 2) if form == 'e' else digits}{form}} ± {error:.{digits}f}"


def _number(n: float) -> str:
    """A number of values, which weights may make fractional."""
    return f"{n:.0f}" if abs(n) < 1e15 and n == int(n) else f"{n:.4g}"


def std_ratio(columns: dict[str, NDArray[Any]]) -> tuple[Float64, Float64]:
    """Standard deviations of the data over the running ones, and their standard errors."""
    with np.errstate(all="ignore"):
        ratio = np.sqrt(columns["variance_ratio"])
        return ratio, columns["variance_ratio_error"] / (2 * ratio)


def made(
    state: State, names: NDArray[Any] | None, X: Batch, found: Moments, squares: Float64, min_shift: float
) -> Report:
    """The report of a fitted transformer on data.

    Parameters
    ----------
    state : State
    names : ndarray of shape (n_features,), or None
    X : Batch of shape (n_samples, n_features, ...)
    found : Moments
        Of the features of X.
    squares : ndarray of shape (n_features,)
        Sums of the squares of the weights that `found` was taken with.
    min_shift : float
        As `BatchNormTransformer.report` says.
    """
    p, mean, var = state.parameters, *state.derived[:2]
    n_given = np.divide(found.count**2, squares, out=np.zeros_like(squares), where=squares > 0)
    # Weighted as if it were so many values: ddof is of those.
    each = np.divide(n_given, found.count, out=np.ones_like(squares), where=squares > 0)
    given_var = moments.variance(moments.scaled(found, each), p.ddof)
    given = Known(np.where(n_given > 0, found.mean, np.nan), given_var, n_given)
    running, constant, observed = Known(mean, var, state.effective_n), state.constant, state.running.moments.count
    curve = {} if X.dense is None else gaps(X.dense, running, ~constant & (var > 0), p.eps)
    names = np.array([f"x{k}" for k in range(len(mean))], dtype=object) if names is None else names
    columns = _columns(names, running, given, constant, observed, p, step_of(X.dtype), min_shift)
    return Report(columns, curve, _notes(state, curve, min_shift))


def step_of(dtype: Any) -> float:
    """The relative size of a step between neighbouring values of a type, of NumPy or a library like it."""
    return STEPS.get(str(getattr(dtype, "name", dtype)).rpartition(".")[2], 2.0**-52)


def _columns(
    names: NDArray[Any],
    running: Known,
    given: Known,
    constant: NDArray[np.bool_],
    observed: Float64,
    p: Parameters,
    step: float,
    min_shift: float,
) -> dict[str, NDArray[Any]]:
    """What `Report.columns` says, from statistics of both sides."""
    eps, ddof = p.eps, p.ddof
    with np.errstate(all="ignore"):
        std, given_std = np.sqrt(running.var), np.sqrt(given.var)
        shift = (given.mean - running.mean) / std
        ratio = given.var / running.var
        # If nothing has changed, the data have the running variance. That of a small sample may be too small by chance.
        shift_error = np.sqrt(np.maximum(ratio, 1) / given.n + 1 / running.n)
        ratio_error = ratio * np.sqrt(2 / (given.n - 1) + 2 / (running.n - 1))  # of normal data
        shrinkage = 1 - std / np.sqrt(running.var + eps)
        nearly = ~constant & (std < FEW_STEPS * step * np.abs(running.mean))
        gap = np.hypot(*gap_of(given.mean, given.var, running, eps))
        moved = constant & ((given.var > 0) | (given.mean != running.mean)) & (given.n > 0)
        drifted = ~constant & (np.abs(shift) > DRIFTED * shift_error) & (np.abs(shift) >= min_shift)
        large = np.abs(np.log(ratio)) >= 2 * np.log1p(min_shift)
        spread = ~constant & (np.abs(normal_score(ratio, given.n, running.n, ddof)) > DRIFTED) & large
        shrunk = ~constant & (shrinkage > SHRUNK)
    for a in (shift, shift_error, ratio, ratio_error, shrinkage):
        a[constant] = np.nan
    gap[constant] = np.where(moved[constant], np.inf, np.nan)
    for a in (ratio, ratio_error):
        a[~(given.n > 1)] = np.nan
    remarks = [
        ("never observed", observed == 0),
        ("missing in this data", given.n == 0),
        ("constant", constant & (observed > 0) & ~moved),
        ("constant before, not here", moved),
        ("nearly constant", nearly),
        ("mean has moved", drifted),
        ("spread has changed", spread),
    ]
    said = [[text for text, where in remarks if where[k]] for k in range(len(names))]
    for k in np.flatnonzero(shrunk):
        said[k].append(f"eps shrinks it by {shrinkage[k]:.0%}")
    return {
        "feature": names, "running_mean": running.mean, "running_std": std, "mean": given.mean, "std": given_std,
        "effective_n": given.n, "running_effective_n": running.n, "shift": shift, "shift_error": shift_error,
        "variance_ratio": ratio, "variance_ratio_error": ratio_error, "shrinkage": shrinkage, "gap": gap,
        "remarks": np.array([", ".join(texts) for texts in said], dtype=object),
    }  # fmt: skip


def _notes(state: State, curve: dict[int, float], min_shift: float) -> list[str]:
    """What the table does not say."""
    notes = [
        "mean, std: running ones; shift of mean: in running standard deviations; std ratio: std of this data over the "
        "running one; ±: standard errors, as if values were normal and independent",
        f"moved: by {min_shift:g} standard deviations or more; changed: by a factor of {1 + min_shift:g} or more; and "
        f"both by more than {DRIFTED:g} standard errors",
    ]
    enough = next((size for size, gap in curve.items() if gap < ENOUGH_TO_TRAIN), None)
    if curve:
        sizes = f"batches of {enough} samples and more" if enough else f"no batches of up to {max(curve)} samples"
        notes.append(
            f"{sizes} of this data come within {ENOUGH_TO_TRAIN:g} standard deviations of the running statistics; "
            "small networks lost nothing by training on batches that do"
        )
    batch = state.values_per_batch
    if batch is not None and math.isfinite(batch) and batch > 0:
        text = f"learned from batches of {_number(batch)} values of a feature on average"
        if state.kind.averages_batches:
            text += f": the running variance leaves out what differs between them, about 1 part in {_number(batch)}"
        notes.append(text)
    return notes


def normal_score(ratio: Float64, n: Float64, m: Float64, ddof: float) -> Float64:
    """How far a ratio of two variances lies from 1, in standard deviations, if both are of the same normal data.

    The cube root of F is nearly normal, for samples of any size: Paulson (1942), "An approximate normalization of the
    analysis of variance distribution", Annals of Mathematical Statistics 13.
    """
    root = np.cbrt(ratio * (1 - (ddof - 1) / (n - 1)) / (1 - (ddof - 1) / (m - 1)))
    a, b = 2 / (9 * (n - 1)), 2 / (9 * (m - 1))
    return np.where(n > 1, ((1 - b) * root - (1 - a)) / np.sqrt(b * root**2 + a), 0.0)


def gap_of(mean: Float64, var: Float64, running: Known, eps: float) -> tuple[Float64, Float64]:
    """The parts of the gap that come from spread and from mean: root mean square differences of normalized values."""
    own, theirs = np.sqrt(var + eps), np.sqrt(running.var + eps)
    std = np.sqrt(var)
    return std / np.where(own > 0, own, 1) - std / theirs, (mean - running.mean) / theirs


def gaps(X: NDArray[Any], running: Known, useful: NDArray[np.bool_], eps: float) -> dict[int, float]:
    """The gap for each batch size, for batches of rows drawn without replacement.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features, ...)
        NaN where missing.
    running : Known
    useful : ndarray of shape (n_features,), bool
        Features that are not constant.
    eps : float
    """
    if not np.any(useful):
        return {}
    most = min(BATCH_SIZES[-1] * LEAST_BATCHES, CURVE_VALUES // max(1, X[:1].size))
    drawn = np.sort(np.random.default_rng(0).permutation(len(X))[:most])
    rows = X[drawn][:, useful].astype(np.float64).reshape(len(drawn), np.count_nonzero(useful), -1)
    np.random.default_rng(1).shuffle(rows)
    known = Known(running.mean[useful], running.var[useful], running.n[useful])
    found: dict[int, float] = {}
    for size in BATCH_SIZES:
        n_batches = len(rows) // size
        if n_batches < LEAST_BATCHES:
            break
        batches = rows[: n_batches * size].reshape(n_batches, size, *rows.shape[1:])
        there = ~np.isnan(batches)
        count = there.sum(axis=(1, 3))
        with np.errstate(all="ignore"):
            mean = np.where(there, batches, 0).sum(axis=(1, 3)) / count
            var = (np.where(there, batches - mean[:, None, :, None], 0) ** 2).sum(axis=(1, 3)) / count
            squares = np.square(gap_of(mean, var, known, eps)).sum(axis=0)[count > 0]
        if squares.size:
            found[size] = float(np.sqrt(np.mean(squares)))
    return found
