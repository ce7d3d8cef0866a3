"""Infinities are refused by row and column, and results that overflow are warned of."""

import contextlib
import warnings

import numpy as np
import pandas as pd
import pytest
from arrays import GOOD, with_value
from scipy import sparse

from bncpu import BatchNormTransformer


def test_infinity_is_refused_in_place_too():
    for gamma in (None, [0, 0, 0]):
        bn = BatchNormTransformer(gamma=gamma, copy=False).fit(GOOD)
        with pytest.raises(ValueError, match="contains infinity"):
            bn.transform(with_value(3, 1, np.inf))


def test_places_of_infinities_are_few_and_counted_on_the_right_axis():
    X = np.full((40, 300), np.inf)
    with pytest.raises(ValueError, match=r"row\(s\) 0, 1, 2, 3, 4, \.\.\., column\(s\) 0, 1, 2, 3, 4, \.\.\.\."):
        BatchNormTransformer().fit(X)
    with pytest.raises(ValueError, match=r"sample\(s\) 0, 1, 2, channel\(s\) 0, 1\."):
        BatchNormTransformer(channel_axis=0).fit(X[:2, :3])


def test_infinity_is_refused_whatever_lies_between_the_rows():
    bn = BatchNormTransformer().fit(GOOD)
    wide = np.zeros((20, 7))
    wide[:, :3] = with_value(5, 2, np.inf)
    for X in (wide[:, :3], np.asfortranarray(wide[:, :3]), wide[:, :3].copy()):
        with pytest.raises(ValueError, match=r"row\(s\) 5, column\(s\) 2"):
            bn.transform(X)


# ---- results beyond their type ----

LARGE = {np.float16: 60000.0, np.float32: 3e38, np.float64: 1.7e308}
LAYOUTS = {
    "C": lambda X: X,
    "F": np.asfortranarray,
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "a frame": lambda X: pd.DataFrame(X, columns=["a", "b", "c"]),
}


def doubling(**parameters):
    """Multiplies by 2."""
    return BatchNormTransformer.from_statistics([0.0] * 3, [0.25] * 3, 10, **parameters)


@contextlib.contextmanager
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("n", [1, 3, 70, 40_000])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LARGE)
def test_a_result_beyond_its_type_is_warned_of_and_infinity_refused(dtype, layout, n, isa):
    X = np.zeros((n, 3), dtype)
    X[-1] = [1, -LARGE[dtype], np.nan]
    bn, given = doubling(), LAYOUTS[layout](X)
    if layout == "a frame":
        bn.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    with pytest.warns(RuntimeWarning, match=rf"results overflow {np.dtype(dtype)} in column\(s\) 1[ ,]") as said:
        y = bn.transform(given)
    assert len(said) == 1
    np.testing.assert_array_equal(y[-1], [2, -np.inf, np.nan])
    assert not y[:-1].any()
    X[-1, 1] = np.finfo(dtype).max / 2
    with silence():
        np.testing.assert_array_equal(bn.transform(LAYOUTS[layout](X))[-1], [2, np.finfo(dtype).max, np.nan])
    for where in ({-1}, {0, -1}):
        bad = X.copy()
        bad[list(where), 0] = np.inf
        with pytest.raises(ValueError, match=r"contains infinity.*column\(s\) 0"):
            bn.transform(LAYOUTS[layout](bad))


@pytest.mark.parametrize("n", [2, 40_000])
@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("way", ["copy=False", "out", "out is X", "F and copy=False", "columns and copy=False"])
def test_what_overwrites_tells_apart_what_was_infinite_before_and_is_now(way, dtype, n, isa):
    def transformed(values, bn):
        X = np.zeros((n, 3), dtype)
        X[-1] = values
        if way == "F and copy=False":
            X = np.asfortranarray(X)
        if way == "columns and copy=False":
            X = np.repeat(X, 2, axis=1)[:, ::2]
        if "copy=False" in way:
            return bn.transform(X, copy=False)
        return bn.transform(X, out=X if way == "out is X" else np.empty_like(X))

    with pytest.warns(RuntimeWarning, match="results overflow .* 0, 2, and"):
        y = transformed([LARGE[dtype], 1, -LARGE[dtype]], doubling())
    np.testing.assert_array_equal(y[-1], [np.inf, 2, -np.inf])
    assert not y[:-1].any()
    with silence():
        transformed([np.nan, 1, 2], doubling())
    for gamma in (None, [1, 0, 1]):
        with pytest.raises(ValueError, match="contains infinity"):
            transformed([0, -np.inf, 0], doubling(gamma=gamma))


@pytest.mark.parametrize("dtype", LARGE)
def test_infinity_is_refused_where_the_result_would_not_show_it(dtype):
    never = BatchNormTransformer.from_statistics([0.0] * 3, [1.0] * 3, [5, 0, 5])
    for bn in (doubling(gamma=[0, 1, 0]), never, doubling(gamma=[0, 0, 0], with_std=False)):
        for layout in LAYOUTS.values():
            X = np.zeros((9, 3), dtype)
            X[4, 1 if bn is never else 2] = np.inf
            given = layout(X)
            with pytest.raises(ValueError, match=r"contains infinity.*row\(s\) 4"):
                bn.transform(getattr(given, "to_numpy", lambda given=given: given)())
    S = sparse.csr_array(np.array([[1.0, np.inf, 0.0]]))
    with pytest.raises(ValueError, match=r"contains infinity.*column\(s\) 1"):
        doubling(with_mean=False, gamma=[1, 0, 1]).transform(S)


def test_results_that_only_rounding_to_their_type_makes_infinite_are_warned_of():
    bn = BatchNormTransformer().fit([[0.0], [2e5]])
    with pytest.warns(RuntimeWarning, match="results overflow float16 in column"):
        assert bn.inverse_transform(np.array([[0.5]], np.float16)) == np.inf
    with silence():
        assert bn.inverse_transform(np.array([[-0.5]], np.float16)) == 50000
        assert bn.inverse_transform(np.array([[0.5]], np.float32)) == 150000
    small = BatchNormTransformer.from_statistics([0.0], [1e-60], 10, dtype=np.float32)
    with pytest.warns(RuntimeWarning, match="results overflow float32"):
        assert small.transform([[1e10]]) == np.inf
    wide = BatchNormTransformer.from_statistics([0.0], [1e-100], 10)  # not in float32 arithmetic
    with pytest.warns(RuntimeWarning, match="results overflow float32"):
        assert wide.transform(np.array([[1.0]], np.float32)) == np.inf
    with silence():
        assert wide.transform([[1.0]]) == pytest.approx(1e50)


def test_overflow_is_named_by_the_names_and_axes_of_the_caller():
    frame = pd.DataFrame({"left": [0.0, 1.0], "right": [0.0, 1.0]})
    bn = BatchNormTransformer(gamma=[1, 5e307]).fit(frame).set_output(transform="pandas")
    with pytest.warns(RuntimeWarning, match=r"results overflow float64 in column\(s\) 1 \('right'\), and"):
        bn.transform(frame * 100)
    with pytest.warns(RuntimeWarning, match=r"in channel\(s\) 1, and"):
        BatchNormTransformer(gamma=[1, 5e307], channel_axis=-1).fit(np.eye(4).reshape(2, 4, 2)).transform(
            np.full((2, 4, 2), 100.0)
        )
    S = sparse.csc_array(np.array([[0.0, 1.0], [4.0, 100.0]]))
    bn = BatchNormTransformer(with_mean=False, gamma=[1, 1e307]).fit(np.eye(2))
    for X in (S, S.tocsr(), S.astype(np.float32)):
        with pytest.warns(RuntimeWarning, match=r"in column\(s\) 1, and"):
            y = bn.transform(X)
        assert np.isinf(y.toarray()[1]).tolist() == [False, True]
    with pytest.warns(RuntimeWarning, match="results overflow float32"):
        doubling(with_mean=False, gamma=[1e30] * 3, dtype=np.float32).transform(sparse.csr_array([[1e10, 0, 0]]))


def test_a_constant_column_that_moves_after_many_half_lives_is_not_infinite_without_a_word():
    bn = BatchNormTransformer(halflife=10).partial_fit([[0], [1]]).partial_fit(np.zeros((2600, 1)))
    x = np.ones((1, 1), np.float32)
    with pytest.warns(RuntimeWarning, match="clip= limits them, and eps= the scale"):
        assert bn.transform(x) == np.inf
    for parameters in ({"eps": 1e-5}, {"clip": 10}):
        cured = BatchNormTransformer(halflife=10, **parameters).partial_fit([[0], [1]]).partial_fit(np.zeros((2600, 1)))
        with silence():
            assert cured.transform(x) == pytest.approx(1e5**0.5 if "eps" in parameters else 10)
