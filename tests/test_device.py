"""Device arrays are recognised by their type, and a batch of them has samples and channels where one in memory has."""

import sys

import numpy as np
import pytest

import bncpu
from bncpu._device import ColumnBatch, DeviceBatch
from bncpu._layout import channels_second
from bncpu.gpu._library import library_of


class Array(np.ndarray):
    """What CuPy's arrays look like, in memory."""

    def get(self):
        return np.asarray(self)


Array.__module__ = "cupy"


def like_cupys(a):
    return np.asarray(a).view(Array)


@pytest.mark.parametrize("channel_axis", [1, 2, 3])
def test_a_batch_has_samples_first_and_channels_second(channel_axis):
    a = np.arange(120.0).reshape(5, 2, 3, 4)
    batch = DeviceBatch(like_cupys(a), channel_axis)
    expected = channels_second(a, channel_axis)
    assert (batch.shape, batch.ndim, batch.size, len(batch)) == (expected.shape, 4, 120, 5)
    np.testing.assert_array_equal(batch.in_memory(), expected)
    np.testing.assert_array_equal(batch[1:3].in_memory(), expected[1:3])


def test_arrays_in_memory_are_not_taken_for_device_arrays():
    class Tensor:
        is_cuda = False

    Tensor.__module__ = "torch"
    for a in (np.ones(3), [1.0], Tensor(), None):
        assert library_of(a) is None
    Tensor.is_cuda = True
    assert (library_of(Tensor()), library_of(like_cupys(1))) == ("torch", "cupy")


@pytest.mark.parametrize(
    "call",
    [
        lambda x, t: bncpu.batch_norm(x, x[0], x[0]),
        lambda x, t: bncpu.batch_norm_forward(x),
        lambda x, t: bncpu.batch_norm_backward(x, x, None),
        lambda x, t: bncpu.batch_norm_backward_frozen(x, x, None),
        lambda x, t: t.fit(x),
        lambda x, t: t.partial_fit(x),
        lambda x, t: t.transform(x),
        lambda x, t: t.inverse_transform(x),
    ],
)
def test_a_device_array_without_the_extra_is_one_line(call, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bncpu.gpu._")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    t = bncpu.BatchNormTransformer().fit([[1.0, 2.0], [2.0, 5.0]])
    before = t.__getstate__()
    with pytest.raises(ImportError, match=r"^numba-cuda is not installed: pip install 'bncpu\[gpu\]'$"):
        call(like_cupys(np.ones((2, 2))), t)
    assert t.__getstate__().keys() == before.keys()
    np.testing.assert_array_equal(t.running_var_, [0.25, 2.25])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{}, {"momentum": 0.9}, {"halflife": 40.0}], ids=str)
def test_columns_that_lie_apart_are_learned_with_the_bits_of_one_array(parameters, dtype):
    rng = np.random.default_rng(0)
    apart, whole = (bncpu.BatchNormTransformer(**parameters) for _ in range(2))
    for n, weighted in ((30_000, False), (7, True), (5000, True)):
        X = (rng.standard_normal((n, 5)) + 10.0 ** np.arange(5)).astype(dtype)
        X[rng.random((n, 5)) < 0.01] = np.nan
        weights = rng.random(n) if weighted else None
        apart.partial_fit(ColumnBatch([np.ascontiguousarray(X[:, c]) for c in range(5)]), sample_weight=weights)
        whole.partial_fit(np.asfortranarray(X), sample_weight=weights)
        assert apart._state.running.values.tobytes() == whole._state.running.values.tobytes()
    np.testing.assert_array_equal(apart.n_samples_seen_, whole.n_samples_seen_)
    X[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"row\(s\) 3, column\(s\) 2\."):
        apart.partial_fit(ColumnBatch(list(np.ascontiguousarray(X.T))))


def test_clip_is_not_for_a_device():
    t = bncpu.BatchNormTransformer(clip=1).fit([[1.0], [2.0]])
    with pytest.raises(TypeError, match=r"^clip=1.0 is for arrays in CPU memory, got a device array; clip the result"):
        t.transform(like_cupys(np.ones((2, 1))))
