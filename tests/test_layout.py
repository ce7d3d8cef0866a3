"""Every array becomes one of the two forms with the values where they belong, and only odd ones are copied."""

import itertools

import numpy as np
import pytest
from arrays import LAYOUTS, OTHER_DTYPES

from bncpu import _layout

SHAPES = [
    (6, 4),
    (5, 3, 7),
    (4, 3, 2, 5),
    (2, 3, 4, 5, 6),
    (1, 4, 3),
    (7, 1, 3),
    (4, 5, 1),
    (1, 1, 1),
    (0, 3, 2),
    (3, 0),
]


def per_channel(a, channel_axis):
    """The sorted values of each channel: what a form must preserve."""
    n_channels = a.shape[channel_axis]
    return np.sort(np.moveaxis(a, channel_axis, 0).reshape(n_channels, a.size // max(1, n_channels)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_form_keeps_every_value_in_its_channel(shape, name):
    for channel_axis in range(len(shape)):
        a = LAYOUTS[name](np.arange(float(np.prod(shape))).reshape(shape))
        x4, layout = _layout.canonical(a, (channel_axis,))
        assert x4.shape[0] == 1
        assert x4.shape[2] == shape[channel_axis]
        assert is_a_form(x4)
        np.testing.assert_array_equal(per_channel(x4, 2), per_channel(a, channel_axis))
        y = _layout.empty_in(layout, a.shape, a.dtype)
        layout.form(y)[...] = x4
        np.testing.assert_array_equal(y, a)


def is_a_form(x4):
    rows = x4.shape[3] == 1 and (x4.shape[2] == 1 or x4.strides[2] == 8)
    return x4.size == 0 or rows or x4.strides[3] == 8


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_kept_axes_have_a_form_in_which_values_belong_to_their_position(shape, name):
    a = LAYOUTS[name](np.arange(float(np.prod(shape))).reshape(shape))
    for n_kept in range(len(shape) + 1):
        for kept in itertools.combinations(range(len(shape)), n_kept):
            ready, layout = _layout.ready(a, kept)
            x4 = layout.view(ready)
            if x4 is None:  # kept and other axes alternate
                assert 0 in shape or len(shape) > 3
                continue
            assert is_a_form(x4)
            sizes = tuple(shape[axis] for axis in kept)
            labels = np.arange(float(np.prod(sizes))).reshape(sizes)
            (flat,) = layout.flat([labels], shape)
            np.testing.assert_array_equal(layout.unflat([flat], shape)[0], labels)
            if a.size:
                others = tuple(axis for axis in range(len(shape)) if axis not in kept)
                expected = dict(zip(labels.ravel(), a.sum(axis=others).ravel(), strict=True))
                got = dict(zip(flat, x4.sum(axis=(1, 3)).ravel(), strict=True))
                assert got == expected


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 3, 2, 5)], ids=str)
def test_only_odd_layouts_are_copied(shape, name):
    a = LAYOUTS[name](np.arange(float(np.prod(shape))).reshape(shape))
    x4, _ = _layout.canonical(a, (1,))
    copied = name == "misaligned" or (name == "channels reversed" and len(shape) == 2)
    assert np.shares_memory(x4, a) != copied


@pytest.mark.parametrize(("dtype", "expected"), [(">f4", "f4"), (">f8", "f8"), ("f2", "f4")])
def test_foreign_dtypes_become_native_ones(dtype, expected):
    a = np.arange(6.0).reshape(2, 3).astype(dtype)
    x4, _ = _layout.canonical(a, (1,))
    assert x4.dtype == np.dtype(expected)
    np.testing.assert_array_equal(x4[0, :, :, 0], a)


def test_a_broadcast_array_is_copied():
    a = np.broadcast_to(np.arange(3.0)[:, None], (4, 3, 5))
    x4, _ = _layout.canonical(a, (1,))
    np.testing.assert_array_equal(np.moveaxis(x4, 2, 0).reshape(3, -1), np.repeat([[0.0], [1], [2]], 20, axis=1))


def test_overlap_is_other_memory_that_is_shared():
    a = np.zeros(10)
    assert not _layout.overlap(a, a)
    assert not _layout.overlap(a, np.zeros(10))
    assert _layout.overlap(a[1:], a[:-1])


def test_strides_tell_which_values_have_memory_of_their_own():
    strided = np.lib.stride_tricks.as_strided
    a = np.zeros((4, 6))
    for own in (a, a.T, a[::-1, ::-2], a[:0], a[:, :1], a[1, 1], strided(a, (1, 6), (0, 8)), a[:0].T):
        assert _layout.apart(own)
    for shared in (strided(a, (4, 2), (8, 8)), strided(a, (5,), (7,)), strided(a, (4, 6), (40, 8))):
        assert not _layout.apart(shared)
    assert not _layout.apart(np.broadcast_to(a[0], (4, 6)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 0 not in shape], ids=str)
def test_a_weight_per_sample_reaches_every_position_of_the_sample(shape, name):
    a = LAYOUTS[name](np.broadcast_to(np.arange(float(shape[0])).reshape(-1, *[1] * (len(shape) - 1)), shape).copy())
    x4, layout = _layout.canonical(a, (1,))
    weights = layout.positions(np.arange(float(shape[0])), shape)
    assert weights.flags.c_contiguous
    for c in range(shape[1]):
        np.testing.assert_array_equal(x4[0, :, c], weights)


@pytest.mark.parametrize("channel_axis", [0, 1, 2, 3, -1, -4])
def test_channels_go_to_axis_1_and_back_without_a_copy(channel_axis):
    a = np.arange(120.0).reshape(2, 3, 4, 5)
    moved = _layout.channels_second(a, channel_axis)
    assert moved.shape[1] == a.shape[channel_axis]
    assert np.shares_memory(moved, a)
    np.testing.assert_array_equal(_layout.channels_back(moved, channel_axis), a)


@pytest.mark.parametrize("dtype", ["float32", "float64", *OTHER_DTYPES])
def test_results_keep_the_float_and_its_computation_has_a_kernel(dtype):
    dtype = np.dtype(dtype)
    result = _layout.result_dtype(dtype)
    assert result == OTHER_DTYPES.get(str(np.dtype(dtype)), OTHER_DTYPES.get(dtype.str, dtype))
    assert result.isnative
    assert _layout.kernel_dtype(dtype) in (np.float32, np.float64)
    assert _layout.kernel_dtype(dtype).itemsize >= result.itemsize
