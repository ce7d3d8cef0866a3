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
