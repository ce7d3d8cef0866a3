"""Bad arguments of a norm function get an error that names argument, expected and got; nothing is changed.

Those of backward passes: tests/test_functional.py. Those of layer, RMS, instance and group norm: tests/test_norms.py.
"""

import numpy as np
import pytest
from arrays import LAYOUTS

import bncpu
from bncpu import batch_norm, batch_norm_forward

X = np.zeros((4, 3))
SHARED = np.lib.stride_tricks.as_strided(np.zeros(1), X.shape, (0, 0))  # one value, many times


REFUSED_BY_FORWARD = [
    (dict(x=[[1.0]]), TypeError, "x must be a NumPy array, got list"),
    (dict(x=X.astype(int)), TypeError, "x must be float16, float32 or float64, got int64; convert it first"),
    (dict(x=X.astype(complex)), TypeError, "got complex128"),
    (dict(x=X[0]), ValueError, r"at least 2 dimensions, \(N, C, ...\); got shape \(3,\)"),
    (dict(channel_axis=2), ValueError, r"channel_axis must name an axis of x of shape \(4, 3\), got 2"),
    (dict(channel_axis=1.0), TypeError, "channel_axis"),
    (dict(gamma=np.ones(2)), ValueError, r"gamma must have shape \(3,\), one value per channel; got \(2,\)"),
    (dict(beta=np.ones((3, 1))), ValueError, r"beta must have shape \(3,\)"),
    (dict(gamma=["a"] * 3), TypeError, "gamma must hold real numbers"),
    (dict(gamma=np.ones(3) * 1j), TypeError, "gamma must hold real numbers, got complex128"),
    (dict(eps=-1e-5), ValueError, "eps == -1e-05, must be >= 0"),
    (dict(eps=np.nan), ValueError, "eps must be finite, got nan"),
    (dict(eps="1"), TypeError, "eps must be an instance of"),
    (dict(momentum=1.5), ValueError, "momentum == 1.5, must be <= 1"),
    (dict(momentum=np.nan), ValueError, "momentum must be finite"),
    (dict(ddof=-1), ValueError, "ddof == -1, must be >= 0"),
    (dict(ddof=4), ValueError, "needs at least 5 values per channel, got 4"),
    (dict(n_threads=0), ValueError, "n_threads == 0, must be >= 1"),
    (dict(n_threads=1.5), TypeError, "n_threads"),
    (dict(activation="gelu"), ValueError, "activation must be None or 'relu', got 'gelu'"),
    (dict(residual=np.zeros((4, 2))), ValueError, r"residual must have the shape of the input, \(4, 3\); got \(4, 2\)"),
    (dict(residual=X.astype("f4")), TypeError, "residual must be float64 like the input, got float32"),
    (dict(out=X.tolist()), TypeError, "out must be a NumPy array, got list"),
    (dict(out=LAYOUTS["read-only"](X)), ValueError, "out must be writeable, got a read-only array"),
    (dict(out=SHARED), ValueError, "out must have memory of its own for every value; got shape"),
    (dict(running_mean=None), ValueError, "must be given together"),
    (dict(running_mean=[0, 0, 0]), TypeError, "running_mean must be a NumPy array, which .* got list"),
    (dict(running_mean=np.zeros(3, int)), TypeError, "running_mean must be floating point, got int64"),
    (dict(running_mean=np.zeros(4)), ValueError, r"running_mean must have shape \(3,\)"),
    (dict(running_var=LAYOUTS["read-only"](np.ones(3))), ValueError, "running_var must be writeable"),
    (dict(running_var=SHARED[0, :3]), ValueError, "running_var must have memory of its own for every value"),
    (dict(x=X[:1]), ValueError, "needs at least 2 values per channel, got 1"),
    (dict(x=np.ma.masked_array(X)), TypeError, "x must be a NumPy array, got MaskedArray"),
    (dict(gamma=[[1], [1, 2]]), ValueError, r"gamma must have shape \(3,\): "),
    (dict(activation=np.array(["relu", "x"])), ValueError, "activation must be None or 'relu'"),
    (dict(eps=True), TypeError, "eps must be a number, got True"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), REFUSED_BY_FORWARD, ids=lambda v: str(v)[:40] if isinstance(v, str) else ""
)
def test_a_refused_forward_names_the_argument_and_changes_nothing(change, error, message):
    arguments = dict(x=X.copy(), running_mean=np.zeros(3), running_var=np.ones(3), out=np.full((4, 3), 7.0)) | change
    if arguments["out"] is not change.get("out") and np.shape(arguments["x"]) != (4, 3):
        del arguments["out"]
    kept = {name: np.array(a) for name, a in arguments.items() if isinstance(a, np.ndarray)}
    with pytest.raises(error, match=message):
        batch_norm_forward(arguments.pop("x"), **arguments)
    for name, before in kept.items():
        if name in arguments:
            np.testing.assert_array_equal(arguments[name], before)


def test_shared_running_arrays_are_refused():
    a, x = np.ones(3), np.zeros((4, 3))
    with pytest.raises(ValueError, match="running_mean and running_var must not share memory"):
        batch_norm_forward(x, running_mean=a, running_var=a)
    with pytest.raises(ValueError, match="running_var and x must not share memory"):
        batch_norm_forward(x, running_mean=a, running_var=x[0])
    out = np.zeros((4, 3))
    with pytest.raises(ValueError, match="running_mean and out must not share memory"):
        batch_norm_forward(x, running_mean=out[0], running_var=a, out=out)


@pytest.mark.parametrize(
    ("mean", "var", "error", "message"),
    [
        (None, np.ones(3), TypeError, r"mean must be an array of shape \(3,\), got None"),
        (np.ones(3), None, TypeError, r"var must be an array of shape \(3,\), got None"),
        (np.ones(3), [1, -1, 1], ValueError, "var must not be negative, got -1"),
        (np.ones(4), np.ones(3), ValueError, r"mean must have shape \(3,\)"),
    ],
)
def test_refused_statistics(mean, var, error, message):
    with pytest.raises(error, match=message):
        batch_norm(X, mean, var)


def test_moments_and_sums_that_cannot_be_are_refused():
    x = np.random.default_rng(0).normal(size=(6, 2))
    good, n = bncpu.batch_norm_moments(x), np.full(2, 6.0)
    for field, values in (("count", n * np.inf), ("count", n * np.nan), ("m2", -n)):
        with pytest.raises(ValueError, match=f"moments.{field} must be finite and not negative"):
            bncpu.batch_norm_forward(x, moments=good._replace(**{field: values}))
    _, saved = bncpu.batch_norm_forward(x)
    by_hand = bncpu.SavedStatistics(*saved)
    sums = bncpu.batch_norm_backward_sums(x, x, by_hand)
    with pytest.raises(ValueError, match=r"sums\.count must be finite"):
        bncpu.batch_norm_backward(x, x, by_hand, sums=sums._replace(count=n * np.nan))
    for wrong in ("frozen", "a", 1.0):
        with pytest.raises(TypeError, match="sums must be BackwardSums"):
            bncpu.batch_norm_backward(x, x, by_hand, sums=wrong)


@pytest.mark.parametrize("change", [{"call": "x"}, {"call": (1, 2)}, {"kind": np.ones(3)}])
def test_saved_statistics_made_up_are_refused_by_name(change):
    x = np.random.default_rng(0).normal(size=(6, 2))
    _, saved = bncpu.batch_norm_forward(x)
    with pytest.raises((TypeError, ValueError), match="saved"):
        bncpu.batch_norm_backward(x, x, saved._replace(**change))


def test_narrow_integers_are_integers():
    x = np.random.default_rng(0).normal(size=(2, 300, 4))
    np.testing.assert_array_equal(bncpu.group_norm(x, np.uint8(2)), bncpu.group_norm(x, 2))
    weight = np.random.default_rng(1).normal(size=(8, 200, 3, 3))
    new, _ = bncpu.fold_conv(weight, None, np.zeros(400), np.ones(400), channel_axis=1, groups=np.uint8(2))
    assert new.shape == weight.shape
