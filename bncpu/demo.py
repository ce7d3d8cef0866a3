"""``bncpu demo``: stream real data, or yours, through BatchNormTransformer, check the results and time it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormTransformer, _inputs, _pictures, _tables
from bncpu._kernels import max_threads

try:
    import matplotlib.figure
    import PIL  # noqa: F401  (scikit-learn opens the photographs with it)
    import rich.table
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
except ImportError as error:
    raise ImportError(f"the demo needs {error.name}: pip install 'bncpu[demo]'") from error

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
PATCH = (8, 8, 3)
ROWS_PER_BATCH = 12

LOOKS = (("#d55e00", "-"), ("#009e73", "--"), ("#0072b2", ":"))  # colour-blind safe

Batch = NDArray[Any]


class Stream(NamedTuple):
    """The result of one pass over some batches."""

    normalizer: BatchNormTransformer
    peer: StandardScaler
    means: NDArray[np.float64]  # (n_batches, n_features), after each batch
    stds: NDArray[np.float64]
    seconds: dict[str, list[tuple[float, float]]]  # for each method and batch: ours, StandardScaler's
    n_rows: int


def run(
    picture: Path, file: Path | None = None, rows: int | None = None, reading: _tables.Reading | None = None
) -> None:
    """Run the demo, and save `picture`. With `rows`, use only so many rows of the file, or of each photograph."""
    _pictures.may_replace(picture)
    console = Console(highlight=False, soft_wrap=True)
    if file is None:
        digits(console)
        console.print("\n[bold]Patches[/bold]: all 8 x 8 x 3 pieces of two photographs, made batch by batch")
        seen = stream(console, patches(rows), -(-len(next(windows())[:rows]) // ROWS_PER_BATCH))
        everything = BatchNormTransformer().fit(np.concatenate(list(patches(rows))))
        console.print(f"  streamed against fit on all: {difference(seen.normalizer, everything)}")
        centre = int(np.ravel_multi_index((4, 4, 0), PATCH))
        shown = {"red": centre, "green": centre + 1, "blue": centre + 2}
        panels = {
            "Running mean\nbrightness of the centre pixel (0-255)": seen.means,
            "Running standard deviation\nbrightness of the centre pixel (0-255)": seen.stds,
        }
    else:
        table = _inputs.read(file, n_batches=20, reading=reading)
        console.print(f"[bold]{escape(file.name)}[/bold], read batch by batch")
        for line in table.said:
            console.print(f"  {escape(line)}")
        if table.left_out:
            console.print(f"  left out, not numbers: {escape(', '.join(table.left_out))}")
        seen = stream(console, first_rows(table.batches, rows), None if rows else table.n_batches, table.columns)
        columns(console, table.columns, seen.normalizer)
        varying = np.flatnonzero(seen.normalizer.running_var_ > 0)[: len(LOOKS)]
        shown = {table.columns[c]: int(c) for c in varying}
        end, unit = seen.means[-1], np.where(seen.stds[-1] > 0, seen.stds[-1], 1)
        panels = {
            "Running mean\ndistance from its end, in final standard deviations": (seen.means - end) / unit,
            "Running standard deviation\nas a share of its end": seen.stds / unit,
        }
    console.print(f"  streamed against StandardScaler's partial_fit: {difference(seen.normalizer, seen.peer)}")
    speeds(console, seen)
    save_picture(panels, shown, picture)
    console.print(f"\nThe running statistics settling: {escape(str(picture))}")


def digits(console: Console) -> None:
    """Compare a Pipeline whose normalization was learned batch by batch with one without normalization."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    normalizer = BatchNormTransformer()
    for batch in np.array_split(X_train, 20):
        normalizer.partial_fit(batch)
    classifier = LogisticRegression(max_iter=1000)
    raw = classifier.fit(X_train, y_train).score(X_test, y_test)
    # Frozen, so that the Pipeline's fit keeps the streamed statistics.
    pipeline = make_pipeline(FrozenEstimator(normalizer), classifier).fit(X_train, y_train)
    whole = BatchNormTransformer().fit(X_train)
    console.print(f"[bold]Digits[/bold]: {len(X_train)} images of 8 x 8 in 20 batches")
    console.print(f"  streamed against fit on all: {difference(normalizer, whole)}")
    console.print(
        f"  logistic regression, accuracy on {len(X_test)} others: "
        f"raw {raw:.3f}, normalized {pipeline.score(X_test, y_test):.3f}"
    )


def patches(rows: int | None = None) -> Iterator[Batch]:
    """Batches of all overlapping 8 x 8 x 3 patches of both photographs, as float32 rows; each batch is a strip of both.

    The strips come in random order. From top to bottom the stream would drift, from sky to ground.
    """
    both = [w[:rows] for w in windows()]
    for start in np.random.default_rng(0).permutation(np.arange(0, len(both[0]), ROWS_PER_BATCH)):
        strips = [w[start : start + ROWS_PER_BATCH].reshape(-1, np.prod(PATCH)) for w in both]
        yield np.concatenate(strips).astype(np.float32)


def windows() -> Iterator[NDArray[np.uint8]]:
    """For each photograph, a view of all its patches, (rows, columns, 8, 8, 3)."""
    return (sliding_window_view(load_sample_image(name), PATCH)[:, :, 0] for name in PHOTOGRAPHS)


def first_rows(batches: Iterable[Batch], rows: int | None) -> Iterator[Batch]:
    """The batches up to `rows` rows."""
    for batch in batches:
        if rows is not None and rows <= 0:
            return
        yield batch[:rows]
        rows = None if rows is None else rows - len(batch)


def stream(console: Console, batches: Iterable[Batch], n_batches: int | None, names: list[str] | None = None) -> Stream:
    """One pass: learn and transform each batch, in turn with StandardScaler."""
    ours, peer = BatchNormTransformer(), StandardScaler()
    means, stds, n_rows = [], [], 0
    seconds: dict[str, list[tuple[float, float]]] = {"partial_fit": [], "transform": []}
    bars = (TextColumn("  learning"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*bars, console=console, disable=not console.is_terminal) as progress:
        for k, batch in enumerate(progress.track(batches, total=n_batches)):
            order = (peer, ours) if k % 2 else (ours, peer)
            try:
                for method, times in seconds.items():
                    elapsed = {scaler: _seconds(getattr(scaler, method), batch) for scaler in order}
                    times.append((elapsed[ours], elapsed[peer]))
            except ValueError as error:
                raise _named(error, batch, n_rows, names) from None
            n_rows += len(batch)
            means.append(ours.running_mean_)
            stds.append(np.sqrt(ours.running_var_))
    if not means:
        raise ValueError("there are no rows")
    console.print(f"  {n_rows:,} x {ours.n_features_in_} {batch.dtype} in {len(means)} batch(es)")
    return Stream(ours, peer, np.array(means), np.array(stds), seconds, n_rows)


def _seconds(method: Any, batch: Batch) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # StandardScaler warns of columns without a value
        start = time.perf_counter()
        method(batch)
        return time.perf_counter() - start


def _named(error: ValueError, batch: Batch, first_row: int, names: list[str] | None) -> ValueError:
    """The error to raise for a refused batch, which names the place in the file."""
    rows, found = np.nonzero(np.isinf(batch))
    if not len(rows):
        return error
    column = found[0] if names is None else repr(names[found[0]])
    more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
    return ValueError(
        f"infinity in row {first_row + rows[0]:,}, column {column}{more}; leave it out or make it missing"
    )


def columns(console: Console, names: list[str], normalizer: BatchNormTransformer, most: int = 12) -> None:
    """A table of the statistics of the first columns."""
    counts = np.broadcast_to(normalizer.n_samples_seen_, len(names))
    table = rich.table.Table("column", "mean", "standard deviation", "values", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    stds = np.sqrt(normalizer.running_var_)
    for name, mean, std, count in list(zip(names, normalizer.running_mean_, stds, counts, strict=True))[:most]:
        table.add_row(escape(name), f"{mean:.6g}", f"{std:.6g}", f"{int(count):,}")
    console.print(Padding(table, (0, 2)))
    if len(names) > most:
        console.print(f"  and {len(names) - most} more columns")


def difference(a: Any, b: Any) -> str:
    """The largest differences between two fitted transformers, as text."""
    varying = np.isclose(b.scale_**2, b.var_, rtol=1e-6, atol=0)  # constants have scale 1
    if not np.any(varying):
        return "nothing varies"
    mean = np.max(np.abs(a.mean_ - b.mean_)[varying] / b.scale_[varying])
    var = np.max(np.abs(a.var_[varying] / b.var_[varying] - 1))
    return f"means differ by at most {mean:.0e} standard deviations, variances by {var:.0e} of themselves"


def speeds(console: Console, seen: Stream) -> None:
    """Print throughput, ours and StandardScaler's: medians over the batches."""
    n_batches = len(seen.means)
    rows = seen.n_rows / n_batches
    console.print(
        f"\n[bold]Speed[/bold], batches of {rows:,.0f} rows, medians of {n_batches} calls in turn, "
        f"at most {max_threads()} thread(s) for BatchNormTransformer"
    )
    for method, times in seen.seconds.items():
        fast, slow = (median(side) for side in zip(*times, strict=True))
        console.print(
            f"  {method:11}  BatchNormTransformer {rows / fast / 1e6:6.1f} M rows/s   "
            f"StandardScaler {rows / slow / 1e6:6.1f} M rows/s   {slow / fast:.1f} times as fast"
        )


def save_picture(panels: dict[str, NDArray[np.float64]], shown: dict[str, int], path: Path) -> None:
    """Draw a panel for each title, with a curve over the batches for each feature shown, and a line where it ends."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        batches = np.arange(1, len(values) + 1)
        for (name, feature), (colour, line) in zip(shown.items(), LOOKS, strict=False):
            mark = "o" if len(values) == 1 else ""
            axes.plot(
                batches,
                values[:, feature],
                line,
                marker=mark,
                color=colour,
                label=name.replace("$", r"\$"),
                linewidth=2,
            )
            axes.axhline(values[-1, feature], color=colour, linewidth=0.6)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("batches seen")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.supxlabel("thin lines: after all batches", fontsize="small")
    if shown:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    _pictures.save(figure, path)
