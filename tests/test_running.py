"""Kinds of running statistics: what they refuse, windows, and that nobody else tells them apart."""

import ast
import copy
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from arrays import DTYPES, GOOD, examples, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import bncpu
from bncpu import BatchNormTransformer, running


def test_with_momentum_a_batch_needs_two_values():
    bn = BatchNormTransformer(momentum=0.9).fit(GOOD)
    before = pickle.dumps(bn)
    one = GOOD.copy()
    one[1:, 2] = np.nan
    weights = np.r_[1.0, np.zeros(19)]
    for X, w, message in [
        (GOOD[:1], None, "n_samples=1; halflife accepts single rows"),
        (one, None, r"one value in column\(s\) 2"),
        (one, np.ones(20), r"one value in column\(s\) 2"),
        (GOOD, weights, "n_samples=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            bn.partial_fit(X, sample_weight=w)
    assert pickle.dumps(bn) == before
    for ddof in (20, 25):
        with pytest.raises(ValueError, match=f"more than ddof={ddof} values.*got 20 in column"):
            bn.set_params(ddof=ddof).partial_fit(GOOD)
    with pytest.raises(ValueError, match=r"more than ddof=1 values, or total sample_weight.*got 0\.2 in column"):
        bn.set_params(ddof=1).partial_fit(GOOD, sample_weight=np.full(20, 0.01))
    for accepting in (BatchNormTransformer(), BatchNormTransformer(halflife=9)):
        assert accepting.partial_fit(GOOD[:1]).n_samples_seen_ == 1


def test_statistics_of_one_kind_are_not_continued_as_another():
    bn = BatchNormTransformer().fit(GOOD)
    with pytest.raises(ValueError, match="cannot continue cumulative statistics in momentum mode; call fit"):
        bn.set_params(momentum=0.9).partial_fit(GOOD)
    assert bn.fit(GOOD).partial_fit(GOOD).n_batches_seen_ == 2


# ---- windows ----


def stream(X, sizes, weights=None, **parameters):
    """A transformer after X in batches of these sizes, and a rest; and how many rows it has seen."""
    bn, ends = BatchNormTransformer(**parameters), [*np.cumsum(sizes)[np.cumsum(sizes) < len(X)], len(X)]
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        bn.partial_fit(X[start:stop], sample_weight=None if weights is None else weights[start:stop])
        yield bn, stop


@given(st.integers(1, 400), st.lists(st.integers(1, 300), max_size=12), st.sampled_from([0.0, 1e6]), st.integers(0, 99))
@settings(max_examples=examples(30, 300))
def test_a_window_has_the_statistics_of_its_last_rows_after_every_batch_of_any_split(window, sizes, mean, seed):
    X = normal(seed, (700, 2)) + mean
    for bn, n in stream(X, sizes, window=window):
        last = X[:n][-window:]
        # At a mean of 1e6 NumPy's own mean and variance have errors of about 1e-16 * 1e6 standard deviations; a window
        # of one row has the variance 0 exactly, NumPy's the square of that error at most.
        np.testing.assert_allclose(bn.running_mean_, last.mean(axis=0), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(bn.running_var_, last.var(axis=0), rtol=1e-10, atol=1e-20 * mean**2)
        assert bn.n_samples_seen_ == n


@pytest.mark.parametrize("dtype", [*DTYPES, "int16"])
def test_single_rows_are_as_exact_as_one_batch(dtype):
    X = (normal(1, (900, 3)) * 100).astype(dtype)
    for window in (1, 100, 300):
        for bn, n in stream(X, [500, *[1] * 400], window=window):
            if n % 50 == 0:
                one = BatchNormTransformer(window=window).fit(X[:n])
                np.testing.assert_allclose(bn.running_var_, one.running_var_, rtol=1e-12, atol=1e-30)
        assert bn.n_batches_seen_ == 401


def test_a_window_does_not_drift_where_subtracting_would():
    """Values of 1e12 pass through a window of 50: what subtracts keeps their rounding errors for good."""
    X = np.r_[normal(2, (200, 1)), normal(3, (200, 1)) * 1e12, normal(4, (200, 1))]
    *_, (bn, _) = stream(X, [7] * 85, window=50)
    last = [Fraction(x) for x in X[-50:, 0].tolist()]
    mean = sum(last) / 50
    np.testing.assert_allclose(bn.running_mean_, [float(mean)], rtol=1e-14)
    np.testing.assert_allclose(bn.running_var_, [float(sum((x - mean) ** 2 for x in last) / 50)], rtol=1e-14)


def test_weights_gaps_and_images_are_as_those_of_the_last_rows():
    X, weights = normal(5, (300, 4, 3)), np.random.default_rng(6).uniform(0.5, 2, 300)
    X[np.random.default_rng(7).uniform(size=X.shape) < 0.2] = np.nan
    for bn, n in stream(X, [90, 5, 5, 100, 1], weights, window=70, channel_axis=1):
        one = BatchNormTransformer(channel_axis=1).fit(X[:n][-70:], sample_weight=weights[:n][-70:])
        np.testing.assert_allclose(bn.running_var_, one.running_var_, rtol=1e-12)
    gone = X[:, :, 0].copy()
    gone[200:, 2] = np.nan
    *_, (bn, _) = stream(gone, [64] * 4, window=80)
    assert np.isnan(bn.running_mean_[2]) and not np.isnan(bn.running_mean_[0])
    mixed = BatchNormTransformer(window=30).partial_fit(GOOD, sample_weight=np.full(20, 2.0)).partial_fit(GOOD)
    expected = BatchNormTransformer().fit(np.r_[GOOD[10:], GOOD], sample_weight=[2.0] * 10 + [1.0] * 20)
    np.testing.assert_allclose(mixed.running_var_, expected.running_var_, rtol=1e-12)


def test_a_window_of_another_length_holds_from_the_next_batch_on():
    X = normal(8, (500, 2))
    bn = BatchNormTransformer(window=300).fit(X[:400]).set_params(window=50).partial_fit(X[400:410])
    np.testing.assert_allclose(bn.running_mean_, X[360:410].mean(axis=0), rtol=1e-12)
    bn.set_params(window=1000).partial_fit(X[410:])
    np.testing.assert_allclose(bn.running_mean_, X[360:].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("size", [7, 300, 3000])
def test_a_window_keeps_its_rows_and_less_than_a_piece_more(size):
    X = normal(9, (20_000, 5))
    *_, (bn, _) = stream(X, [size] * (18_000 // size), window=1000)
    pieces = bn._state.running.recent.pieces
    assert 1000 <= sum(len(piece.rows) for piece in pieces) < 1000 + running.PIECE_ROWS
    assert all(piece.rows.base is None for piece in pieces)  # nothing else lives on with it


@pytest.mark.parametrize("window", [1, 40, 1000])
def test_a_copy_a_pickle_and_a_file_of_a_window_go_on_to_the_same_bits(window, tmp_path):
    X = normal(10, (2500, 3)).astype(np.float32)
    *_, (bn, _) = stream(X, [700, 1, 1, 390, 900], np.full(2500, 0.5) if window == 40 else None, window=window)
    bn.save(tmp_path / "state.json")
    copies = [copy.deepcopy(bn), pickle.loads(pickle.dumps(bn)), BatchNormTransformer.load(tmp_path / "state.json")]
    for other in copies:
        assert same_bits(other.running_var_, bn.running_var_)
    for batch in np.array_split(X[::-1], 5):
        bn.partial_fit(batch)
        for other in copies:
            assert same_bits(other.partial_fit(batch).running_var_, bn.running_var_)
            assert same_bits(other.running_mean_, bn.running_mean_)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.pop("rows"),
        lambda kept: kept.update(lengths=[1, *kept["lengths"]]),
        lambda kept: kept.update(gone=10**6),
        lambda kept: kept.update(n_older=10**6),
        lambda kept: kept["rows"].update(dtype="O"),
        lambda kept: kept["rows"].update(base64="!"),
        lambda kept: kept.update(weights=kept["rows"]),
    ],
)
def test_rows_of_a_window_that_do_not_fit_are_refused(change):
    kept = bncpu.state.content(BatchNormTransformer(window=300).fit(normal(11, (900, 3))))
    change(kept["recent"])
    with pytest.raises(ValueError, match="recent"):
        bncpu.state.restored(BatchNormTransformer, kept)


def test_a_state_has_the_rows_of_a_window_and_no_other_state_has():
    window, other = (bncpu.state.content(BatchNormTransformer(window=w).fit(GOOD)) for w in (9, None))
    other["recent"] = window.pop("recent")
    for kept in (window, other):
        with pytest.raises(ValueError, match="must have the entry 'recent', and no other state may"):
            bncpu.state.restored(BatchNormTransformer, kept)


def test_bfloat16_is_kept_as_what_holds_it():
    import ml_dtypes

    X = normal(12, (300, 2)).astype(ml_dtypes.bfloat16)
    bn = BatchNormTransformer(window=100).partial_fit(X[:150]).partial_fit(X[150:])
    np.testing.assert_allclose(bn.running_mean_, X[200:].astype(float).mean(axis=0), rtol=1e-12)


def test_a_loaded_window_has_the_statistics_of_its_rows_whatever_stands_beside_them():
    bn = BatchNormTransformer(window=9).fit(GOOD)
    kept = bncpu.state.content(bn)
    kept["mean"], kept["m2"] = [0.0] * 3, [1.0] * 3
    assert same_bits(bncpu.state.restored(BatchNormTransformer, kept).running_var_, bn.running_var_)
    for value, message in ((1e200, "recent overflows float64"), (np.inf, "recent must be pieces of rows")):
        kept["recent"]["rows"] = bncpu.state._bytes(np.where(np.arange(9)[:, None] == 4, value, GOOD[-9:]))
        with pytest.raises(ValueError, match=message):
            bncpu.state.restored(BatchNormTransformer, {**kept, "recent": {**kept["recent"], "lengths": [9]}})


def test_what_a_window_cannot_be_is_refused():
    bn, S = BatchNormTransformer(window=10).fit(GOOD), sparse.eye_array(9, format="csr")
    for call, error, message in [
        (lambda: BatchNormTransformer(window=0).fit(GOOD), ValueError, "window == 0"),
        (lambda: BatchNormTransformer(window=2.5).fit(GOOD), TypeError, "window must be"),
        (
            lambda: BatchNormTransformer(window=5, halflife=3).fit(GOOD),
            ValueError,
            "halflife and window exclude",
        ),
        (lambda: BatchNormTransformer(window=5, with_mean=False).fit(S), TypeError, "got a sparse matrix"),
        (lambda: bn.merge(BatchNormTransformer().fit(GOOD)), ValueError, "self uses window"),
        (lambda: BatchNormTransformer().fit(GOOD).merge(bn), ValueError, "other uses window"),
        (lambda: BatchNormTransformer().fit(GOOD).set_params(window=9).partial_fit(GOOD), ValueError, "in window mode"),
        (lambda: BatchNormTransformer.from_statistics([1.0], [1.0], 3, window=9), ValueError, "needs the rows"),
    ]:
        with pytest.raises(error, match=message):
            call()


# ---- one module knows the kinds ----


def test_momentum_halflife_and_window_are_compared_with_none_where_kinds_are_made_only():
    """So a new kind is a class in running.py and a parameter in state.py."""
    allowed = {
        ("running.py", "kind_of"),
        ("state.py", "warn_of_pytorchs_momentum"),
        ("_conversions.py", "_from_layer"),  # a layer's momentum, or none: for inference only
    }
    found = set()
    for path in Path(bncpu.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Compare) and any(isinstance(o, (ast.Is, ast.IsNot)) for o in node.ops):
                        left = getattr(node.left, "id", getattr(node.left, "attr", ""))
                        if left in ("momentum", "halflife", "window"):
                            found.add((path.name, function.name))
                    if isinstance(node, ast.Compare):
                        texts = {getattr(part, "value", None) for part in ast.walk(node)}
                        assert not texts & {"momentum", "halflife", "window", "cumulative"}, (path.name, function.name)
    assert found - allowed == {("_batches.py", "joined"), ("_batches.py", "moments"), ("_batches.py", "summary"),
                               ("_dask.py", "summary")}  # fmt: skip  # recency, or none
