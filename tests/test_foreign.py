"""Functions of arrays of another library, the strict one of the array API: NumPy's bits, in shared memory."""

import array_api_strict as xp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import bncpu
from bncpu import _foreign

RNG = np.random.default_rng(0)
X, DY, Z = (RNG.normal(3, 2, (6, 4, 5)).astype(np.float32) for _ in range(3))
GAMMA, BETA = RNG.normal(size=(2, 4))
WHERE = RNG.random((6, 5)) < 0.8
WHERE[:, :2] = True
ROWS = {"gamma": RNG.normal(size=5), "beta": RNG.normal(size=5)}

# Name of the forward function, what it takes after x, and its other arguments.
FORWARD = {
    "batch_norm": ("batch_norm", (GAMMA, GAMMA**2), {"gamma": GAMMA, "residual": Z}),
    "batch_norm_forward": ("batch_norm_forward", (GAMMA, BETA), {"activation": "relu", "residual": Z, "where": WHERE}),
    "instance_norm": ("instance_norm", (GAMMA, BETA), {"where": WHERE}),
    "instance_norm_forward": ("instance_norm_forward", (GAMMA, BETA), {"residual": Z}),
    "group_norm": ("group_norm", (2, GAMMA, BETA), {}),
    "group_norm_forward": ("group_norm_forward", (2, GAMMA, BETA), {"activation": "relu"}),
    "layer_norm": ("layer_norm", (5, *ROWS.values()), {"residual": Z}),
    "layer_norm_forward": ("layer_norm_forward", (5, *ROWS.values()), {}),
    "rms_norm": ("rms_norm", (5, ROWS["gamma"]), {}),
    "rms_norm_forward": ("rms_norm_forward", (5, ROWS["gamma"]), {"activation": "relu"}),
}
BACKWARD = {
    "batch_norm": {"gamma": GAMMA, "where": WHERE},
    "instance_norm": {"gamma": GAMMA, "residual": Z, "beta": BETA, "activation": "relu"},
    "group_norm": {"gamma": GAMMA},
    "layer_norm": {"gamma": ROWS["gamma"]},
    "rms_norm": {"gamma": ROWS["gamma"]},
}


def foreign(value):
    """Arrays that the library must see as its own; parameters too."""
    return xp.asarray(value) if isinstance(value, np.ndarray) else value


def strict(arguments):
    return {name: foreign(value) for name, value in arguments.items()}


def assert_same(got, expected):
    """The same bits; arrays are of the library."""
    for a, b in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
        if isinstance(b, np.ndarray):
            assert isinstance(a, type(xp.asarray(0.0)))
            assert_array_equal(np.from_dlpack(a), b)
        else:
            assert a == b
            assert isinstance(a.invstd, np.ndarray)


@pytest.mark.parametrize("case", FORWARD)
def test_forward_functions_give_arrays_of_the_library(case):
    name, given, options = FORWARD[case]
    function = getattr(bncpu, name)
    expected = function(X, *given, **options)
    got = function(foreign(X), *map(foreign, given), **strict(options))
    assert_same(got, expected if isinstance(expected, tuple) else (expected,))


@pytest.mark.parametrize("case", BACKWARD)
def test_backward_functions_give_arrays_of_the_library(case):
    options = BACKWARD[case]
    first = {"group_norm": (2,), "layer_norm": (5,), "rms_norm": (5,)}.get(case, ())
    _, saved = getattr(bncpu, f"{case}_forward")(X, *first, **options)
    back = getattr(bncpu, f"{case}_backward")
    assert_same(back(foreign(DY), foreign(X), saved, **strict(options)), back(DY, X, saved, **options))


def test_frozen_gradients_and_sums_of_parts():
    frozen = bncpu.SavedStatistics.from_variance(BETA, GAMMA**2)
    expected = bncpu.batch_norm_backward_frozen(DY, X, frozen, GAMMA)
    assert_same(bncpu.batch_norm_backward_frozen(foreign(DY), foreign(X), frozen, foreign(GAMMA)), expected)
    moments = bncpu.batch_norm_moments(foreign(X), where=foreign(WHERE))
    assert moments == bncpu.batch_norm_moments(X, where=WHERE)
    _, saved = bncpu.batch_norm_forward(X)
    sums = bncpu.batch_norm_backward_sums(foreign(DY), foreign(X), saved)
    assert sums == bncpu.batch_norm_backward_sums(DY, X, saved)


@pytest.mark.parametrize(("function", "shape"), [("fold_linear", (4, 5)), ("fold_conv", (4, 5, 3, 3))])
def test_folded_weights_are_arrays_of_the_library(function, shape):
    fold, weight = getattr(bncpu, function), RNG.normal(size=shape).astype(np.float32)
    given = BETA, GAMMA, GAMMA**2, GAMMA
    assert_same(fold(foreign(weight), *map(foreign, given)), fold(weight, *given))
    with pytest.raises(TypeError, match=r"^weight must not require gradients, .*: pass weight.detach\(\)$"):
        fold(Tensor(__array_namespace__=lambda: xp, requires_grad=True), *given)


def test_memory_is_shared():
    x, out, running_mean, running_var = map(foreign, (X, np.empty_like(X), np.zeros(4), np.ones(4)))
    y, _ = bncpu.batch_norm_forward(x, out=out, running_mean=running_mean, running_var=running_var)
    mean, var = np.zeros(4), np.ones(4)
    expected, _ = bncpu.batch_norm_forward(X, running_mean=mean, running_var=var)
    assert y is out
    assert_array_equal(np.from_dlpack(out), expected)
    assert_array_equal(np.from_dlpack(running_mean), mean)
    assert_array_equal(np.from_dlpack(running_var), var)
    in_place, _ = bncpu.batch_norm_forward(x, out=x)
    assert in_place is x


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_strides_are_kept(channel_axis):
    wide = xp.permute_dims(foreign(X), (2, 0, 1))
    y, _ = bncpu.batch_norm_forward(wide, channel_axis=channel_axis)
    assert_array_equal(np.from_dlpack(y), bncpu.batch_norm_forward(X.transpose(2, 0, 1), channel_axis=channel_axis)[0])


class Tensor:
    """Some array of PyTorch or of a device, as far as one can tell."""

    dtype = "float32"

    def __init__(self, device=1, **attributes):
        self.device = device
        vars(self).update(attributes)

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **_):
        raise BufferError("unsupported dtype")


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (Tensor(2), "x must be a NumPy array, got Tensor"),
        (Tensor(__array_namespace__=lambda: xp, is_neg=lambda: True), "x must hold its values as they are"),
        (Tensor(), "x must be an array of NumPy, or of a library with from_dlpack; got Tensor"),
        (
            Tensor(__array_namespace__=lambda: xp),
            "x must be an array in CPU memory, got Tensor: unsupported dtype",
        ),
        (
            Tensor(__array_namespace__=lambda: xp, requires_grad=True),
            r"x must not require gradients, .*: pass x.detach\(\)",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(x, match):
    with pytest.raises(TypeError, match=match):
        bncpu.batch_norm_forward(x)


def test_arrays_of_other_types_beside_x_are_refused_by_name():
    with pytest.raises(TypeError, match="x must be float16, float32 or float64, got int64"):
        bncpu.layer_norm(xp.asarray([[1, 2]]), 2)
    with pytest.raises(TypeError, match="residual must be a NumPy array, got Array"):
        bncpu.batch_norm_forward(X, residual=foreign(Z))


def test_numpy_arrays_are_not_foreign():
    assert not any(map(_foreign.is_foreign, (X, X[0, 0, 0], np.ma.masked_array(X), [1.0], None, "x")))
