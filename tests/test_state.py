"""The state of a transformer: parameters, statistics known from elsewhere, merging; features selected and joined."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from arrays import GOOD, named, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormTransformer, concatenate

NAMED = named()

PARAMETERS = [
    (dict(momentum=1.0), ValueError, "momentum == 1.0, must be < 1"),
    (dict(momentum=-0.1), ValueError, "momentum == -0.1, must be >= 0"),
    (dict(momentum="0.9"), TypeError, "momentum must be an instance of"),
    (dict(eps=10**400), ValueError, "eps must be finite"),
    (dict(n_threads=True), TypeError, "n_threads must be an integer, got True"),
    (dict(batch_size=0), ValueError, "batch_size == 0, must be >= 1"),
    (dict(batch_size=True), TypeError, "batch_size must be an integer, got True"),
    (dict(channel_axis=False), TypeError, "channel_axis must be an integer, got False"),
    (dict(halflife=0), ValueError, "halflife == 0, must be > 0"),
    (dict(halflife=np.inf), ValueError, "halflife must be finite"),
    (dict(momentum=0.9, halflife=3), ValueError, "exclude each other, got momentum=0.9 and halflife=3"),
    (dict(eps=-1), ValueError, "eps == -1, must be >= 0"),
    (dict(ddof=np.nan), ValueError, "ddof must be finite, got nan"),
    (dict(n_threads=0), ValueError, "n_threads == 0, must be >= 1"),
    (dict(with_mean=1), TypeError, "with_mean must be True or False, got 1"),
    (dict(copy="no"), TypeError, "copy must be True or False, got 'no'"),
    (dict(gamma=[1, 2]), ValueError, r"gamma must have shape \(3,\), one value per channel; got \(2,\)"),
    (dict(beta=[1, np.inf, 0]), ValueError, "beta must be finite, got inf"),
]


@pytest.mark.parametrize(("change", "error", "message"), PARAMETERS, ids=lambda v: str(v)[:40])
def test_refused_parameters_leave_every_byte(change, error, message):
    for method in ("fit", "partial_fit"):
        bn = BatchNormTransformer(**change)
        before = pickle.dumps(bn)
        with pytest.raises(error, match=message):
            getattr(bn, method)(GOOD)
        assert pickle.dumps(bn) == before


def test_merge_refusals_name_the_side():
    bn = BatchNormTransformer().fit(GOOD)
    for other, error, message in [
        (StandardScaler().fit(GOOD), TypeError, "other must be a BatchNormTransformer, got StandardScaler"),
        (BatchNormTransformer(halflife=3).fit(GOOD), ValueError, "cumulative statistics.*; other uses halflife"),
        (BatchNormTransformer(ddof=1).fit(GOOD), ValueError, "other must have ddof=0, got 1"),
        (BatchNormTransformer().fit(NAMED), ValueError, "other must have the feature names None"),
    ]:
        before = pickle.dumps(bn)
        with pytest.raises(error, match=message):
            bn.merge(other)
        assert pickle.dumps(bn) == before


def test_a_momentum_that_looks_like_pytorchs_warns():
    with pytest.warns(UserWarning, match="PyTorch's 0.05 is 0.95 here"):
        bn = BatchNormTransformer(momentum=0.05).fit(GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.partial_fit(GOOD)
        BatchNormTransformer(momentum=0.9).fit(GOOD)
        BatchNormTransformer(momentum=0.0).fit(GOOD)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0], [1.0], 3), ValueError, r"var must have shape \(2,\)"),
        (([1.0], [-1.0], 3), ValueError, "var must not be negative, got -1.0"),
        (([1.0], [1.0], -3), ValueError, "n_samples must be finite and not negative, got -3"),
        (([1.0], [1.0], np.nan), ValueError, "n_samples must be finite"),
        (([1.0], [1.0], np.inf), ValueError, "n_samples must be finite"),
        (([1.0], [1e308], 100), ValueError, "overflows float64"),
        (([1.0], [1.0], [1, 2]), ValueError, r"n_samples must have shape \(1,\)"),
        (([np.nan], [1.0], 3), ValueError, "mean must be finite where n_samples is not 0, got nan at 0"),
        (([1.0], [np.inf], 3), ValueError, "var must be finite"),
        ((1.0, 1.0, 3), ValueError, r"mean must have shape \(1,\)"),
        ((None, [1.0], 3), TypeError, "mean must be an array"),
        ((["a"], [1.0], 3), TypeError, "mean must hold real numbers"),
        (([], [], 3), ValueError, "at least one feature"),
    ],
)
def test_statistics_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchNormTransformer.from_statistics(*arguments)


def test_statistics_need_more_samples_than_ddof():
    with pytest.raises(ValueError, match="n_samples must be above ddof=1, got 1 at 0"):
        BatchNormTransformer.from_statistics([1.0], [1.0], 1, ddof=1)
    with pytest.raises(ValueError, match="eps == -1"):
        BatchNormTransformer.from_statistics([1.0], [1.0], 1, eps=-1)


def test_the_mode_that_the_parameters_ask_for_cannot_be_merged_either():
    bn = BatchNormTransformer().fit(GOOD)
    with pytest.raises(ValueError, match="self uses halflife"):
        clone(bn).set_params(halflife=3).merge(bn)
    with pytest.raises(ValueError, match="other uses momentum"):
        clone(bn).merge(clone(bn).fit(GOOD).set_params(momentum=0.9))


@pytest.mark.parametrize("kind", [{}, {"halflife": 9.0}, {"window": 9}])
@pytest.mark.parametrize("weights", [None, np.ones(2)], ids=["plain", "weighted"])
def test_what_overflows_only_with_what_was_seen_before_is_refused(kind, weights):
    bn = BatchNormTransformer(**kind).partial_fit([[1e200], [1e200]], sample_weight=weights)
    before = pickle.dumps(bn)
    with pytest.raises(ValueError, match=r"variance of X overflows float64 in column\(s\) 0"):
        bn.partial_fit(np.array([[-1e200], [-1e200]]), sample_weight=weights)
    assert pickle.dumps(bn) == before


class Foreign:
    """An array of another library: in CPU memory, or where it cannot be had from."""

    def __init__(self, values, error=None):
        self.values, self.error = np.asarray(values, np.float32), error

    def size(self):
        raise AssertionError("of PyTorch this is a method")

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return self.values


class Shared:
    """An array that knows DLPack only."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)


@pytest.mark.parametrize("of_library", [Foreign, Shared])
def test_from_statistics_takes_arrays_of_other_libraries(of_library):
    expected = BatchNormTransformer.from_statistics([0.0, 1.0, 2.0], [1.0, 4.0, 9.0], [10, 20, 30])
    mean, var, count = (of_library(values) for values in ([0.0, 1.0, 2.0], [1.0, 4.0, 9.0], [10.0, 20.0, 30.0]))
    bn = BatchNormTransformer.from_statistics(mean, var, count, beta=of_library([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(bn.scale_, expected.scale_)
    np.testing.assert_array_equal(bn.n_samples_seen_, [10, 20, 30])
    np.testing.assert_array_equal(bn.transform([[0.0, 1.0, 2.0]]), [[1, 2, 3]])
    for error in (RuntimeError("requires grad"), TypeError("on a GPU")):
        with pytest.raises(TypeError, match=f"var must hold real numbers in CPU memory, got Foreign: {error}"):
            BatchNormTransformer.from_statistics(mean, Foreign([1.0], error), 10)


def test_a_number_in_from_statistics_stands_for_all_features():
    several = BatchNormTransformer.from_statistics(0.0, np.array([1.0, 4.0]), 10)
    np.testing.assert_array_equal(several.transform([[2.0, 2.0]]), [[2, 1]])
    counts = BatchNormTransformer.from_statistics(0, 1, [5, 6])
    np.testing.assert_array_equal(counts.n_samples_seen_, [5, 6])
    with pytest.raises(ValueError, match=r"var must have shape \(2,\), one value per channel; got \(1,\)"):
        BatchNormTransformer.from_statistics([1, 2], [1], 10)


def test_a_variance_that_is_not_known_goes_with_what_does_not_need_it():
    theirs = StandardScaler(with_std=False).fit([[1.0, 2.0], [3.0, 6.0]])
    bn = BatchNormTransformer.from_statistics(theirs.mean_, theirs.var_, theirs.n_samples_seen_, with_std=False)
    np.testing.assert_array_equal(bn.transform([[3.0, 6.0]]), theirs.transform([[3.0, 6.0]]))
    assert bn.partial_fit([[5.0, 10.0]]).running_mean_.tolist() == [3.0, 6.0]
    with pytest.raises(TypeError, match=r"var must be .*; got None, which goes with with_std=False only"):
        BatchNormTransformer.from_statistics([1.0], None, 10)


# ---- some of the features, features of several ----

N = 5
KINDS = {
    "cumulative": {},
    "halflife": {"halflife": 7.0},
    "momentum": {"momentum": 0.9, "ddof": 1},
    "window": {"window": 17},
    "affine": {"gamma": [2, 0, -1, 3, 1], "beta": np.arange(5.0), "eps": 1e-3},
}
CHOICES = {
    "a name": ("c", [2]),
    "names": (["e", "a"], [4, 0]),
    "an index of pandas": (pd.Index(["b", "c"]), [1, 2]),
    "an index": (-1, [4]),
    "indices": (np.array([3, -4], np.int8), [3, 1]),
    "a mask": ([True, False, False, True, False], [0, 3]),
    "a slice": (slice(None, None, -2), [4, 2, 0]),
}


def gaps():
    X = normal(1, (40, N), mean=[0, 1e6, 0.1, 3, -5])
    X[::3, 1] = np.nan
    X[:, 4] = np.nan
    return X


def frame(X):
    return pd.DataFrame(X, columns=list("abcde"))


def fitted(kind, X=None, **options):
    X = frame(gaps() if X is None else X)
    return BatchNormTransformer(**KINDS[kind]).partial_fit(X, **options).partial_fit(X[:9])


def bytes_of(bn, folder):
    bn.save(folder / "state.json")
    return (folder / "state.json").read_bytes()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_selected_does_what_it_did_before(kind, choice, tmp_path):
    features, indices = CHOICES[choice]
    bn, X = fitted(kind), frame(gaps())
    before = bytes_of(bn, tmp_path)
    some = bn.select(features)
    assert some.feature_names_in_.tolist() == [list("abcde")[i] for i in indices]
    assert some.n_features_in_ == len(indices)
    y, expected = some.transform(X.iloc[:, indices]), bn.transform(X)[:, indices]
    if kind == "window":  # summed anew
        np.testing.assert_allclose(y, expected, rtol=1e-13)
    else:
        assert same_bits(y, expected)
    counts = np.broadcast_to(bn.n_samples_seen_, N)[indices]
    np.testing.assert_array_equal(some.n_samples_seen_, counts)
    assert bytes_of(bn, tmp_path) == before
    some.save(tmp_path / "state.json")
    loaded = BatchNormTransformer.load(tmp_path / "state.json")
    assert same_bits(loaded.transform(X.iloc[:, indices]), y)
    some.partial_fit(X.iloc[:, indices])
    bn.partial_fit(X)
    np.testing.assert_allclose(some.running_var_, bn.running_var_[indices], rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(N)), st.integers(1, N - 1), st.sampled_from(sorted(KINDS)), st.booleans())
def test_what_is_selected_and_joined_is_the_same_state(tmp_path_factory, order, cut, kind, weighted):
    folder = tmp_path_factory.getbasetemp()
    bn = fitted(kind, sample_weight=np.linspace(0.5, 2, 40) if weighted else None)
    parts = bn.select(order[:cut]), bn.select(order[cut:])
    joined = concatenate(*parts)
    assert bytes_of(joined.select(np.argsort(order)), folder) == bytes_of(bn, folder)
    assert bytes_of(concatenate(bn), folder) == bytes_of(bn, folder)
    X = frame(gaps()).iloc[:, order]
    expected = np.hstack([part.transform(X[part.feature_names_in_]) for part in parts])
    np.testing.assert_allclose(joined.transform(X), expected, rtol=1e-13)


def test_transformers_of_different_rows_keep_their_statistics():
    a, b = normal(0, (10, 2)), normal(1, (25, 1), mean=3)
    left, right = (
        BatchNormTransformer(beta=[1, 2]).fit(a),
        BatchNormTransformer(gamma=[4]).partial_fit(b).partial_fit(b),
    )
    joined = concatenate(left, right)
    assert joined.n_samples_seen_.tolist() == [10, 10, 50]
    assert joined.n_batches_seen_ == 2
    X = np.hstack([a, b[:10]])
    assert same_bits(joined.transform(X), np.hstack([left.transform(a), right.transform(b[:10])]))
    assert (joined.gamma.tolist(), joined.beta.tolist()) == ([1, 1, 4], [1, 2, 0])
    again = BatchNormTransformer(gamma=[1, 1, 4], beta=[1, 2, 0]).fit(a.repeat(2, axis=1)[:, :3])
    joined.merge(again)
    assert joined.n_samples_seen_.tolist() == [20, 20, 60]
    images = BatchNormTransformer(channel_axis=-1).fit(normal(2, (3, 4, 4, 3)))
    pixels = normal(3, (2, 4, 4, 3))
    both = concatenate(images.select([2]), images.select([0, 1]))
    assert same_bits(both.transform(pixels[..., [2, 0, 1]]), images.transform(pixels)[..., [2, 0, 1]])
    layer = BatchNormTransformer.from_keras([[2.0, 3.0], [1.0, 0.0], [5.0, 6.0], [4.0, 1.0]])
    swapped = layer.select([1, 0])
    assert same_bits(swapped.transform([[1.0, 2.0]]), layer.transform([[2.0, 1.0]])[:, ::-1])
    with pytest.raises(ValueError, match="statistics of a layer"):
        swapped.partial_fit([[1.0, 2.0]])


def test_a_selection_has_an_output_of_its_own():
    bn = fitted("cumulative").set_output(transform="default")
    bn.select(["a"]).set_output(transform="pandas")
    concatenate(bn).set_output(transform="pandas")
    assert type(bn.transform(frame(gaps()))) is np.ndarray


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ("z", ValueError, "names of fit, got 'z', which is unknown"),
        (["a", "a"], ValueError, "each feature once"),
        ([0, -5], ValueError, "each feature once"),
        (5, ValueError, "indices below 5, got 5"),
        ([-6], ValueError, "indices below 5, got -6"),
        ([True, False], TypeError, "a mask of 5 booleans"),
        (True, TypeError, "features must be names"),
        ([False] * 5, ValueError, "at least one feature"),
        ([], ValueError, "at least one feature"),
        (slice(3, 3), ValueError, "at least one feature"),
        ([[0, 1]], TypeError, "features must be names"),
        (1.0, TypeError, "features must be names"),
        (None, TypeError, "features must be names"),
        (["a", 1], TypeError, r"features must be names|unknown"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(features, error, message):
    with pytest.raises(error if features != ["a", 1] else (TypeError, ValueError), match=message):
        fitted("cumulative").select(features)


def test_names_must_be_known_and_tell_features_apart():
    nameless = BatchNormTransformer().fit(gaps())
    with pytest.raises(ValueError, match="fit saw no names"):
        nameless.select("a")
    twice = BatchNormTransformer.from_statistics([1.0, 2.0], [1.0, 1.0], 9, feature_names=["a", "a"])
    with pytest.raises(ValueError, match="the name of several features"):
        twice.select("a")
    named = fitted("cumulative")
    with pytest.raises(ValueError, match="different features, got 'b' twice"):
        concatenate(named.select(["a", "b"]), named.select(["b", "c"]))
    with pytest.raises(ValueError, match="all have names"):
        concatenate(named, nameless)


def test_what_does_not_fit_together_is_not_joined():
    bn, X = BatchNormTransformer().fit(gaps()), gaps()
    for other, message in [
        (BatchNormTransformer(eps=1.0).fit(X), "the same eps, got 0.0 and 1.0"),
        (BatchNormTransformer(halflife=3).fit(X), "one kind, got cumulative and halflife"),
        (BatchNormTransformer(copy=False).fit(X), "the same copy"),
        (BatchNormTransformer(with_std=False).fit(X).set_params(with_std=True), "the same with_std"),
        (BatchNormTransformer.from_keras([[1.0]] * 4, eps=0.0), "one kind, got cumulative and inference"),
    ]:
        with pytest.raises(ValueError, match=message):
            concatenate(bn, other)
    with pytest.raises(ValueError, match="the same momentum"):
        concatenate(BatchNormTransformer(momentum=0.5).fit(X), BatchNormTransformer(momentum=0.9).fit(X))
    with pytest.raises(ValueError, match="must have learned 2 of them"):
        averaged = BatchNormTransformer(momentum=0.5).fit(X)
        concatenate(averaged, BatchNormTransformer(momentum=0.5).fit(X).partial_fit(X))
    window = BatchNormTransformer(window=8).fit(X)
    for rows in (X[:5], X[:8].astype(np.float32)):
        with pytest.raises(ValueError, match="same rows"):
            concatenate(window, BatchNormTransformer(window=8).fit(rows))
    with pytest.raises(ValueError, match="at least one"):
        concatenate()
    for other in (BatchNormTransformer(), [bn], None):
        with pytest.raises((TypeError, ValueError)):
            concatenate(bn, other)
