"""``bncpu demo``: real data through BatchNormTransformer in a Pipeline, checked and timed while you watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

from bncpu import BatchNormTransformer
from bncpu._kernels import max_threads

try:
    import matplotlib.figure
    import PIL  # noqa: F401  (scikit-learn opens the photographs with it)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
except ImportError as error:
    raise ImportError(f"the demo needs {error.name}: pip install 'bncpu[demo]'") from error

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
PATCH = (8, 8, 3)
ROWS_PER_BATCH = 12

Batch = NDArray[np.float32]


class Stream(NamedTuple):
    """What one pass over the patches showed."""

    normalizer: BatchNormTransformer
    means: NDArray[np.float64]  # (n_batches, n_features), after each batch
    stds: NDArray[np.float64]


def run(picture: Path, rows: int | None = None) -> None:
    """Show everything, and save `picture`; `rows` stops each photograph early."""
    console = Console(highlight=False, soft_wrap=True)
    digits(console)
    stream = learn(console, rows)
    batches = list(patches(rows))
    agree(console, stream.normalizer, np.concatenate(batches))
    race(console, batches)
    save_picture(stream, picture)
    console.print(f"\nThe running statistics settling: {picture}")


def digits(console: Console) -> None:
    """A Pipeline whose normalization was learned batch by batch, against one without."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
    normalizer = BatchNormTransformer()
    for batch in np.array_split(X_train, 20):
        normalizer.partial_fit(batch)
    classifier = LogisticRegression(max_iter=1000)
    raw = classifier.fit(X_train, y_train).score(X_test, y_test)
    # Frozen: the Pipeline's fit uses the streamed statistics instead of learning new ones.
    pipeline = make_pipeline(FrozenEstimator(normalizer), classifier).fit(X_train, y_train)
    whole = BatchNormTransformer().fit(X_train)
    console.print(f"[bold]Digits[/bold]: {len(X_train)} images of 8 x 8 in 20 batches")
    console.print(f"  streamed against fit on all: {difference(normalizer, whole)}")
    console.print(
        f"  logistic regression, accuracy on {len(X_test)} others: "
        f"raw {raw:.3f}, normalized {pipeline.score(X_test, y_test):.3f}"
    )


def patches(rows: int | None = None) -> Iterator[Batch]:
    """All overlapping 8 x 8 x 3 patches of both photographs, a strip of each at a time, as float32 rows.

    The strips come in random order: from top to bottom the stream would drift from sky to ground.
    """
    both = [w[:rows] for w in windows()]
    for start in np.random.default_rng(0).permutation(np.arange(0, len(both[0]), ROWS_PER_BATCH)):
        strips = [w[start : start + ROWS_PER_BATCH].reshape(-1, np.prod(PATCH)) for w in both]
        yield np.concatenate(strips).astype(np.float32)


def windows() -> Iterator[NDArray[np.uint8]]:
    """Views of each photograph, (rows, columns, 8, 8, 3)."""
    return (sliding_window_view(load_sample_image(name), PATCH)[:, :, 0] for name in PHOTOGRAPHS)


def learn(console: Console, rows: int | None) -> Stream:
    """One pass over the patches, keeping the running statistics after each batch."""
    console.print("\n[bold]Patches[/bold]: all 8 x 8 x 3 pieces of two photographs, made batch by batch")
    normalizer = BatchNormTransformer()
    means, stds = [], []
    n_batches = -(-len(next(windows())[:rows]) // ROWS_PER_BATCH)
    columns = (TextColumn("  learning"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for batch in progress.track(patches(rows), total=n_batches):
            normalizer.partial_fit(batch)
            means.append(normalizer.running_mean_)
            stds.append(np.sqrt(normalizer.running_var_))
    shape = f"{normalizer.n_samples_seen_:,} x {normalizer.n_features_in_}"
    console.print(f"  {shape} float32 in {normalizer.n_batches_seen_} batch(es)")
    return Stream(normalizer, np.array(means), np.array(stds))


def agree(console: Console, streamed: BatchNormTransformer, X: Batch) -> None:
    """The largest difference between the stream and a fit on everything."""
    console.print(f"  streamed against fit on all: {difference(streamed, BatchNormTransformer().fit(X))}")
    console.print(f"  streamed against StandardScaler's fit on all: {difference(streamed, StandardScaler().fit(X))}")


def difference(a: Any, b: Any) -> str:
    """The largest differences of two fitted transformers."""
    varying = b.var_ > 0
    mean = np.max(np.abs(a.mean_ - b.mean_)[varying] / b.scale_[varying])
    var = np.max(np.abs(a.var_[varying] / b.var_[varying] - 1))
    return f"means differ by at most {mean:.0e} standard deviations, variances by {var:.0e} of themselves"


def race(console: Console, batches: list[Batch]) -> None:
    """Throughput beside StandardScaler, batch by batch in turn, as medians."""
    ours, theirs = BatchNormTransformer(), StandardScaler()
    seconds: dict[str, dict[str, list[float]]] = {}
    for k, batch in enumerate(batches):
        for scaler in (ours, theirs) if k % 2 else (theirs, ours):
            for method in ("partial_fit", "transform"):
                start = time.perf_counter()
                getattr(scaler, method)(batch)
                elapsed = time.perf_counter() - start
                seconds.setdefault(method, {}).setdefault(type(scaler).__name__, []).append(elapsed)
    console.print(
        f"\n[bold]Speed[/bold], batches of {len(batches[0]):,} rows, medians of {len(batches)} calls in turn, "
        f"{max_threads()} thread(s) for BatchNormTransformer"
    )
    for method, times in seconds.items():
        fast, slow = (median(times[type(scaler).__name__]) for scaler in (ours, theirs))
        rates = [len(batches[0]) / t / 1e6 for t in (fast, slow)]
        console.print(
            f"  {method:11}  BatchNormTransformer {rates[0]:6.1f} M rows/s   "
            f"StandardScaler {rates[1]:6.1f} M rows/s   {slow / fast:.1f} times as fast"
        )


def save_picture(stream: Stream, path: Path) -> None:
    """Running mean and standard deviation of the three colours at a patch's centre, and where they end."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    seen = np.arange(1, len(stream.means) + 1)
    centre = np.ravel_multi_index((4, 4, 0), PATCH)
    looks = (("red", "#d55e00", "-"), ("green", "#009e73", "--"), ("blue", "#0072b2", ":"))  # colour-blind safe
    panels = (("Running mean", stream.means), ("Running standard deviation", stream.stds))
    for axes, (title, values) in zip(figure.subplots(1, 2), panels, strict=True):
        for channel, (name, colour, line) in enumerate(looks):
            axes.plot(seen, values[:, centre + channel], line, color=colour, label=name, linewidth=2)
            axes.axhline(values[-1, centre + channel], color=colour, linewidth=0.6)
        axes.set(title=title, xlabel="batches seen", ylabel="brightness of the centre pixel (0-255)")
        axes.grid(alpha=0.3)
    figure.supxlabel("thin lines: after all batches", fontsize="small")
    figure.legend(*axes.get_legend_handles_labels(), title="channel", loc="outside right center")
    figure.savefig(path, dpi=110)
