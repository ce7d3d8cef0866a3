"""Pictures of running statistics, after scikit-learn's conventions for displays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import _num_samples, check_is_fitted

from bncpu import _door, _scalars
from bncpu._report import std_ratio
from bncpu.transformer import BatchNormTransformer

BATCH, RUNNING = "#0072b2", "#d55e00"  # colour-blind safe
STREAM_FEATURES = 4
ESTIMATOR_FEATURES = 20

Float64 = NDArray[np.float64]


class BatchNormDisplay:
    """Running statistics beside those of batches.

    Make one with :meth:`from_stream`, which shows how running statistics settle or forget, batch by batch, or with
    :meth:`from_estimator`, which shows how far new data has drifted from what was learned.

    Parameters
    ----------
    n_seen : ndarray of shape (n_batches,), or None
        Samples seen after each batch of a stream; None for an estimator.
    batch_mean, batch_std : ndarray of shape (n_batches, n_features)
        Statistics of each batch alone. For an estimator, those of all new data, as one batch.
    running_mean, running_std : ndarray of shape (n_batches, n_features)
        Running statistics after each batch. For an estimator, its running statistics, as one row.
    feature_names : iterable of str
        The names of all features.
    errors : tuple of two ndarrays of shape (n_features,), optional
        Standard errors: of the differences of means, in running standard deviations; and of the ratios of standard
        deviations.
    remarks : iterable of str, optional
        For an estimator: what to write in the row of a feature that cannot be drawn, such as "constant"; "" if it can.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure that :meth:`plot` has drawn.
    axes_ : ndarray of matplotlib Axes
        The axes in the figure: for a stream of shape (2, n_shown), with a column for each feature; for an estimator
        of shape (2,).

    See Also
    --------
    BatchNormTransformer.report : The same comparison, and more, in numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import BatchNormDisplay, BatchNormTransformer
    >>> batches = np.random.default_rng(0).standard_normal((50, 32, 2))
    >>> display = BatchNormDisplay.from_stream(BatchNormTransformer(), batches)  # doctest: +SKIP
    >>> display.figure_.savefig("stream.png")  # doctest: +SKIP
    """

    def __init__(
        self, *, n_seen: NDArray[np.int64] | None, batch_mean: Float64, batch_std: Float64, running_mean: Float64,
        running_std: Float64, feature_names: Iterable[str], errors: tuple[Float64, Float64] | None = None,
        remarks: Iterable[str] | None = None,
    ) -> None:  # fmt: skip
        self.n_seen = n_seen
        self.batch_mean, self.batch_std = batch_mean, batch_std
        self.running_mean, self.running_std = running_mean, running_std
        self.feature_names = list(feature_names)
        self.errors = errors
        self.remarks = [""] * len(self.feature_names) if remarks is None else list(remarks)

    @classmethod
    def from_stream(
        cls, estimator: BatchNormTransformer, batches: Iterable[Any], *,
        features: Sequence[int | str] | None = None, figure: Any = None,
    ) -> BatchNormDisplay:  # fmt: skip
        """Stream batches through a copy of a transformer, and draw its statistics after every batch.

        Parameters
        ----------
        estimator : BatchNormTransformer
            Its parameters are used, not what it has learned. Not modified.
        batches : iterable
            What ``fit_stream`` takes.
        features : sequence of int or str, optional
            Which to draw; by default the first 4.
        figure : matplotlib Figure or SubFigure, optional
            Where to draw; by default a new one of pyplot.

        Returns
        -------
        BatchNormDisplay
            Drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no batch, or one is refused.

        Examples
        --------
        >>> import numpy as np
        >>> from bncpu import BatchNormDisplay, BatchNormTransformer
        >>> batches = np.random.default_rng(0).standard_normal((50, 32, 2))
        >>> display = BatchNormDisplay.from_stream(BatchNormTransformer(halflife=200), batches)  # doctest: +SKIP
        """
        _pyplot()
        _transformer(estimator)
        running, rows, seen = clone(estimator), [], 0
        for item in _door.stream(estimator, batches):
            batch = _door.of_stream(item)
            if _door.is_empty(batch):
                continue
            alone = clone(estimator).set_params(momentum=None, halflife=None, window=None, batch_size=None).fit(batch)
            running.partial_fit(batch)
            seen += _num_samples(batch)
            spreads = (np.sqrt(t.running_var_) for t in (alone, running))
            rows.append((seen, alone.running_mean_, running.running_mean_, *spreads))
        if not rows:
            raise ValueError("batches must hold at least one batch, got none")
        n_seen, batch_mean, running_mean, batch_std, running_std = map(np.array, zip(*rows, strict=True))
        display = cls(
            n_seen=n_seen, batch_mean=batch_mean, batch_std=batch_std, running_mean=running_mean,
            running_std=running_std, feature_names=running.get_feature_names_out(),
        )  # fmt: skip
        return display.plot(features=features, figure=figure)

    @classmethod
    def from_estimator(
        cls, estimator: BatchNormTransformer, X: Any, *, features: Sequence[int | str] | None = None, figure: Any = None
    ) -> BatchNormDisplay:
        """Draw how far the means and the spreads of new data lie from the running statistics.

        In the row of a feature that was constant, or is missing, a word says so.

        Parameters
        ----------
        estimator : BatchNormTransformer
            Fitted. Not modified.
        X : array-like of shape (n_samples, n_features)
            What ``transform`` takes.
        features : sequence of int or str, optional
            Which to draw; by default the 20 whose mean and spread differ most.
        figure : matplotlib Figure or SubFigure, optional
            Where to draw; by default a new one of pyplot.

        Returns
        -------
        BatchNormDisplay
            Drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the transformer has learned nothing.

        Examples
        --------
        >>> from bncpu import BatchNormDisplay, BatchNormTransformer
        >>> from sklearn.datasets import load_wine
        >>> X = load_wine().data
        >>> display = BatchNormDisplay.from_estimator(BatchNormTransformer().fit(X[:60]), X[60:])  # doctest: +SKIP
        """
        _pyplot()
        _transformer(estimator)
        check_is_fitted(estimator)
        c = estimator.report(X).columns
        display = cls(
            n_seen=None, batch_mean=c["mean"][None], batch_std=c["std"][None], running_mean=c["running_mean"][None],
            running_std=c["running_std"][None], feature_names=c["feature"],
            errors=(c["shift_error"], std_ratio(c)[1]), remarks=np.where(np.isnan(c["shift"]), c["remarks"], ""),
        )  # fmt: skip
        return display.plot(features=features, figure=figure)

    def plot(self, *, features: Sequence[int | str] | None = None, figure: Any = None) -> BatchNormDisplay:
        """Draw what was collected.

        Parameters
        ----------
        features : sequence of int or str, optional
            Which to draw.
        figure : matplotlib Figure or SubFigure, optional
            Where to draw; by default a new one of pyplot.

        Returns
        -------
        BatchNormDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> display.plot(features=[0, 3])  # doctest: +SKIP
        """
        if self.n_seen is None:
            self._plot_drift(features, figure)
        else:
            self._plot_stream(features, figure)
        return self

    def _plot_stream(self, features: Sequence[int | str] | None, figure: Any) -> None:
        shown = self._shown(range(min(STREAM_FEATURES, len(self.feature_names))) if features is None else features)
        self.figure_ = figure or _pyplot().figure(figsize=(2 + 2.8 * len(shown), 5), layout="constrained")
        self.axes_ = self.figure_.subplots(2, len(shown), sharex=True, squeeze=False)
        lines = (("mean", self.batch_mean, self.running_mean), ("standard deviation", self.batch_std, self.running_std))
        for (what, batch, running), row in zip(lines, self.axes_, strict=True):
            for k, ax in zip(shown, row, strict=True):
                ax.plot(self.n_seen, batch[:, k], ".", color=BATCH, alpha=0.5, label="each batch")
                ax.plot(self.n_seen, running[:, k], "-", color=RUNNING, linewidth=2, label="running")
            row[0].set_ylabel(f"{what}\n(unit of the feature)")
        for k, top, bottom in zip(shown, *self.axes_, strict=True):
            top.set_title(self.feature_names[k])
            bottom.set_xlabel("samples seen")
        self._legend(self.axes_[0, 0])

    def _plot_drift(self, features: Sequence[int | str] | None, figure: Any) -> None:
        with np.errstate(all="ignore"):
            shift = (self.batch_mean[0] - self.running_mean[0]) / self.running_std[0]
            ratio = self.batch_std[0] / self.running_std[0]
        if features is None:
            far = np.nan_to_num(np.hypot(shift, ratio - 1), nan=-1.0)
            features = np.sort(np.argsort(-far, kind="stable")[:ESTIMATOR_FEATURES]).tolist()
        shown = self._shown(features)
        shift, ratio = (np.where([remark != "" for remark in self.remarks], np.nan, a) for a in (shift, ratio))
        places, names = np.arange(len(shown)), [self.feature_names[k] for k in shown]
        self.figure_ = figure or _pyplot().figure(figsize=(8, 1.5 + 0.26 * len(shown)), layout="constrained")
        self.axes_ = self.figure_.subplots(1, 2, sharey=True)
        errors = self.errors or (None, None)
        panels = (
            (shift, 0.0, errors[0], "mean: distance from the running mean\n(running standard deviations)"),
            (ratio, 1.0, errors[1], "standard deviation\n(multiples of the running one)"),
        )
        for ax, (values, expected, error, label) in zip(self.axes_, panels, strict=True):
            ax.axvline(expected, color=RUNNING, linewidth=2, label="running")
            bars = None if error is None else 2 * error[shown]
            ax.errorbar(
                values[shown], places, xerr=bars, fmt="o", color=BATCH, capsize=2, label="new data, ± 2 standard errors"
            )
            ax.set_xlabel(label)
            ax.grid(axis="y", alpha=0.3)
        self.axes_[0].set_yticks(places, names)
        self.axes_[0].set_ylim(len(shown) - 0.5, -0.5)  # from above, with room for the first and the last
        across, behind = self.axes_[0].get_yaxis_transform(), {"facecolor": "white", "edgecolor": "none", "pad": 1}
        for place, k in zip(places, shown, strict=True):
            if self.remarks[k]:
                self.axes_[0].text(
                    0.02, place, self.remarks[k], transform=across, va="center", bbox=behind, color="dimgray"
                )
        self._legend(self.axes_[0])

    def _shown(self, features: Any) -> list[int]:
        """Indices of features given by index or name."""
        n = len(self.feature_names)
        if isinstance(features, (str, int)) or not all(isinstance(f, (str, int, np.integer)) for f in features):
            raise TypeError(f"features must be a list of indices or names, got {_scalars.shown(features)}")
        known = {name: k for k, name in enumerate(self.feature_names)}
        shown = [known.get(f, n) if isinstance(f, str) else int(f) for f in features]
        if not shown or not all(-n <= k < n for k in shown):
            raise ValueError(f"features must name some of the {n} features, got {_scalars.shown(list(features))}")
        return shown

    def _legend(self, ax: Any) -> None:
        handles, labels = ax.get_legend_handles_labels()
        self.figure_.legend(handles, labels, loc="outside upper center", ncols=2)


def _transformer(estimator: Any) -> None:
    if not isinstance(estimator, BatchNormTransformer):
        raise TypeError(f"estimator must be a BatchNormTransformer, got {type(estimator).__name__}")


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("BatchNormDisplay needs matplotlib: pip install 'bncpu[plot]'") from None
    return pyplot
