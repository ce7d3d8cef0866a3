"""The state of a transformer: its parameters, statistics known from elsewhere, merging."""

import pickle
import warnings

import numpy as np
import pytest
from arrays import GOOD, named
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormTransformer

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
