"""Checks that several modules share: what they return, and that an error names the argument and what came."""

import re

import ml_dtypes
import numpy as np
import pytest
from arrays import same_bits

import bncpu
from bncpu import _checks


def outcome(error):
    return pytest.raises(type(error), match=f"^{error}")


def test_parameters_are_float64_of_one_shape():
    values = np.float32([1, 2, 3])
    found = _checks.per_channel("a", values, 3)
    assert found.dtype == np.float64
    assert not np.shares_memory(found, values)
    assert _checks.per_channel("a", None, 3) is None
    with outcome(TypeError(r"a must be an array of shape \(3,\), got None")):
        _checks.required("a", None, 3)
    with outcome(ValueError(r"a must have shape \(2,\), one value per channel; got \(3,\)")):
        _checks.per_channel("a", values, 2)
    with outcome(TypeError("a must hold real numbers, got complex128")):
        _checks.parameter("a", [1j], (1,))
    with outcome(ValueError("a must not be negative, got -2.0")):
        _checks.variances("a", [1, -2], 2)


class Tensor:
    """What NumPy sees of a tensor of PyTorch: none that follows gradients, is on a device, or is of bfloat16."""

    def __init__(self, a, refuses=None, dtype="torch.float64"):
        self.a, self.refuses, self.dtype = np.asarray(a), refuses, dtype
        self.shape = self.a.shape

    def detach(self):
        return Tensor(self.a, None if isinstance(self.refuses, RuntimeError) else self.refuses, self.dtype)

    def float(self):
        return Tensor(self.a.astype(np.float32))

    def __array__(self, dtype=None, copy=None):
        if self.refuses is not None:
            raise self.refuses
        return self.a


GRADIENT = RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
DEVICE = TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
BFLOAT16 = TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize(
    "a",
    [
        Tensor([1, 2, 3]),
        Tensor([1, 2, 3], GRADIENT),
        Tensor([1, 2, 3], BFLOAT16, "torch.bfloat16"),
        np.array([1, 2, 3], ml_dtypes.bfloat16),
        np.array([1, 2, 3], ">f2"),
    ],
    ids=["tensor", "parameter", "tensor in bfloat16", "bfloat16", "byte-swapped"],
)
def test_parameters_of_networks_are_taken_by_every_function(a):
    found = _checks.per_channel("a", a, 3)
    assert found.dtype == np.float64 and found.dtype.isnative
    np.testing.assert_array_equal(found, [1, 2, 3])
    x = np.arange(12.0).reshape(4, 3)
    assert same_bits(bncpu.batch_norm_forward(x, a, a)[0], bncpu.batch_norm_forward(x, found, found)[0])
    assert same_bits(bncpu.layer_norm(x, 3, a, a), bncpu.layer_norm(x, 3, found, found))
    for got, expected in zip(bncpu.fold_linear(x.T, a, a, a), bncpu.fold_linear(x.T, *[found] * 3), strict=True):
        assert same_bits(got, expected)
    parts = [bncpu.Moments(*[a] * 4)] * 2
    assert bncpu.merge(*parts) == bncpu.merge(*[bncpu.Moments(*[found] * 4)] * 2)


def test_a_parameter_on_a_device_or_of_another_shape_is_refused_with_what_to_do():
    with outcome(TypeError(r"a must hold real numbers in CPU memory, got Tensor: can't convert cuda:0 .* Tensor\.cpu")):
        _checks.per_channel("a", Tensor([1, 2, 3], DEVICE), 3)
    for shape in ((1, 3, 1, 1), (3, 1)):
        expected = (
            rf"a must have shape \(3,\), one value per channel; got {re.escape(str(shape))}; reshape it to \(3,\)$"
        )
        with outcome(ValueError(expected)):
            _checks.per_channel("a", np.ones(shape), 3)
    with outcome(ValueError(r"a must have shape \(3,\), one value per channel; got \(3, 3\)$")):
        _checks.per_channel("a", np.ones((3, 3)), 3)
    with outcome(TypeError("a must hold real numbers, got float8_e4m3fn")):
        _checks.per_channel("a", np.ones(3, ml_dtypes.float8_e4m3fn), 3)


def test_data_are_arrays_of_numpy_in_floats_that_the_kernels_know():
    _checks.floats("a", np.zeros(3, np.float16))
    for a in ([0.0], np.ma.array([0.0]), np.zeros(3, int), np.zeros(3, np.longdouble)):
        with pytest.raises(TypeError, match=r"^a must be "):
            _checks.floats("a", a)


def test_what_receives_a_result_has_memory_for_every_value():
    a = np.zeros((2, 3))
    _checks.like("out", a, a, writeable=True)
    _checks.like("out", np.zeros((2, 3), "f4"), a, np.dtype("f4"), writeable=True)
    with outcome(TypeError("out must be float32 like the result, got float64")):
        _checks.like("out", a, a, np.dtype("f4"))
    with outcome(ValueError("out must be writeable")):
        _checks.written("out", np.broadcast_to(a, a.shape))
    shared = np.lib.stride_tricks.as_strided(np.zeros(1), (2, 3), (0, 0))
    with outcome(ValueError("out must have memory of its own for every value")):
        _checks.like("out", shared, a, writeable=True)
