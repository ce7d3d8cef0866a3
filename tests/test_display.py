"""Pictures show the numbers they say they show."""

import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormDisplay, BatchNormTransformer

RNG = np.random.default_rng(0)
BATCHES = RNG.standard_normal((20, 16, 6)) + np.arange(6)


@pytest.fixture(autouse=True)
def no_window():
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


def test_a_stream_is_drawn_as_it_was_learned():
    t = BatchNormTransformer(halflife=100)
    display = BatchNormDisplay.from_stream(t, BATCHES)
    assert not hasattr(t, "n_features_in_")
    np.testing.assert_array_equal(display.n_seen, np.arange(1, 21) * 16)
    np.testing.assert_allclose(display.batch_mean, BATCHES.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(display.batch_std, BATCHES.std(axis=1), rtol=1e-12)
    for batch in BATCHES:
        t.partial_fit(batch)
    np.testing.assert_array_equal(display.running_mean[-1], t.running_mean_)
    assert display.axes_.shape == (2, 4)
    dots, line = display.axes_[1, 2].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), display.running_std[:, 2])
    np.testing.assert_array_equal(dots.get_ydata(), display.batch_std[:, 2])
    assert display.axes_[0, 2].get_title() == "x2"
    assert "standard deviation" in display.axes_[1, 0].get_ylabel()
    again = display.plot(features=[5])
    assert (again is display, display.axes_.shape) == (True, (2, 1))


def test_streams_of_pairs_and_sparse_matrices_are_drawn():
    display = BatchNormDisplay.from_stream(BatchNormTransformer(), [(batch, np.zeros(16)) for batch in BATCHES])
    np.testing.assert_allclose(display.batch_mean, BATCHES.mean(axis=1), rtol=1e-12)
    sparse = BatchNormDisplay.from_stream(BatchNormTransformer(with_mean=False), map(csr_array, BATCHES))
    np.testing.assert_array_equal(sparse.n_seen, display.n_seen)


def test_drift_is_drawn_as_it_is_reported():
    t = BatchNormTransformer().fit(np.concatenate(BATCHES))
    x = BATCHES[0] + [0, 0, 2, 0, 0, 0]
    figure = plt.figure()
    display = BatchNormDisplay.from_estimator(t, x, figure=figure)
    assert display.figure_ is figure
    columns = t.report(x).columns
    drawn = display.axes_[0].containers[0].lines[0].get_xdata()
    np.testing.assert_allclose(drawn, columns["shift"], rtol=1e-12)
    np.testing.assert_allclose(display.axes_[1].containers[0].lines[0].get_xdata() ** 2, columns["variance_ratio"])
    assert [label.get_text() for label in display.axes_[0].get_yticklabels()] == [f"x{k}" for k in range(6)]
    only = BatchNormDisplay.from_estimator(t, x, features=["x2"])
    np.testing.assert_allclose(only.axes_[0].containers[0].lines[0].get_xdata(), columns["shift"][2])


def test_features_that_were_constant_or_are_missing_have_a_word_and_every_row_has_room():
    x = np.concatenate(BATCHES)
    x[:, 1], x[:, 2], x[:, 3] = 0.1, 7, np.nan
    t, now = BatchNormTransformer().fit(x), x[:50].copy()
    now[:, 2], now[:, 4] = BATCHES[0, 0, 0] + np.arange(50), np.nan
    display = BatchNormDisplay.from_estimator(t, now)
    said = {text.get_position()[1]: text.get_text() for text in display.axes_[0].texts}
    assert said == {
        1: "constant", 2: "constant before, not here", 3: "never observed, missing in this data",
        4: "missing in this data",
    }  # fmt: skip
    for ax in display.axes_:
        drawn = ax.containers[0].lines[0].get_xdata()
        np.testing.assert_array_equal(np.isfinite(drawn), [True, False, False, False, False, True])
        assert ax.get_ylim() == (5.5, -0.5)


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    with pytest.raises(NotFittedError):
        BatchNormDisplay.from_estimator(BatchNormTransformer(), BATCHES[0])
    with pytest.raises(ValueError, match=r"^batches must hold at least one batch, got none$"):
        BatchNormDisplay.from_stream(BatchNormTransformer(), [])
    t = BatchNormTransformer().fit(BATCHES[0])
    for features, error in (
        ([7], ValueError),
        (["y"], ValueError),
        ([], ValueError),
        ("x2", TypeError),
        (1, TypeError),
    ):
        with pytest.raises(error, match=r"^features must"):
            BatchNormDisplay.from_estimator(t, BATCHES[1], features=features)
    with pytest.raises(TypeError, match=r"^estimator must be a BatchNormTransformer, got StandardScaler$"):
        BatchNormDisplay.from_estimator(StandardScaler(), BATCHES[0])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^BatchNormDisplay needs matplotlib: pip install 'bncpu\[plot\]'$"):
        BatchNormDisplay.from_stream(BatchNormTransformer(), BATCHES)
