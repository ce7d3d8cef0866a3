"""The arrays of a pass: cut into parts that cover every sample once and change no bit, copied only where needed."""

import numpy as np
import pytest
from arrays import LAYOUTS, normal, same_bits

from bncpu import _passes, group_norm_backward, group_norm_forward, layer_norm_backward, layer_norm_forward
from bncpu._passes import Pass
from bncpu.moments import Coefficients


@pytest.mark.parametrize("values", [1, 100, 10**9])
@pytest.mark.parametrize("shape", [(17, 4), (9, 4, 5), (1, 3, 4), (0, 3)], ids=str)
def test_parts_cover_every_sample_once(shape, values):
    x = np.arange(float(np.prod(shape))).reshape(shape)
    arrays = Pass(x, (tuple(range(len(shape) - 1)),), dy=x, residual=-x, relu=True)
    parts = list(arrays.parts(values))
    for name, expected in (("x", x), ("dy", x), ("residual", -x)):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), expected)
    for part in parts:
        np.testing.assert_array_equal(part.x, x[part.at])
        assert len(parts) == 1 or len(part.x) == 1 or part.x.size <= values
        part.result[...] = part.x
        part.dresidual[...] = part.dy
    np.testing.assert_array_equal(arrays.result(), x)
    np.testing.assert_array_equal(arrays.dresidual()[0], x)


def test_samples_that_do_not_lie_one_after_the_other_are_one_part():
    x = normal(0, (30, 4, 5))
    for a, kept in ((np.asfortranarray(x), (0,)), (x, (1,)), (x.transpose(1, 0, 2), (0,))):
        assert len(list(Pass(a, (kept,)).parts(1))) == 1
    assert len(list(Pass(x, ((0,),)).parts(1))) == 30


def test_scratch_is_the_same_memory_for_each_part():
    arrays = Pass(normal(1, (10, 6)), ((0,),))
    pairs = list(zip(arrays.parts(24), arrays.scratch(2, 24), strict=True))
    assert [len(part.x) for part, _ in pairs] == [4, 4, 2]
    for part, (a, b) in pairs:
        assert a.shape == b.shape == part.x.shape
        assert not np.shares_memory(a, b)
        assert np.shares_memory(a, pairs[0][1][0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_fits_is_used_as_it_is(name):
    x = normal(2, (6, 4, 5))
    a = LAYOUTS[name](x)
    arrays = Pass(x, ((1,),), dy=a, out=None if name == "read-only" else a)
    fits = name in ("C order", "every second row", "rows reversed", "channels reversed", "columns of a wider array")
    assert np.shares_memory(arrays.whole.dy, a) == (fits or name == "read-only")
    assert np.shares_memory(arrays.whole.result, a) == fits
    np.testing.assert_array_equal(arrays.whole.dy, x)


def test_a_result_that_would_be_read_after_it_was_written_is_made_elsewhere():
    x = normal(3, (8, 4))
    assert np.shares_memory(Pass(x, ((1,),), out=x).whole.result, x)
    assert not np.shares_memory(Pass(x[1:], ((1,),), out=x[:-1]).whole.result, x)
    assert not np.shares_memory(Pass(x[1:].copy(), ((1,),), dy=x[1:], out=x[:-1]).whole.result, x)
    assert not np.shares_memory(Pass(x[1:].copy(), ((1,),), residual=x[1:], out=x[:-1]).whole.result, x)


def test_values_that_broadcast_against_the_kept_axes_are_enough():
    x = normal(4, (3, 4, 5))
    arrays = Pass(x, ((0, 1),))
    mean, scale = normal(5, (3, 1)), normal(6, (4,))
    arrays.whole.apply(Coefficients(mean, scale, np.zeros(())))
    np.testing.assert_allclose(arrays.result(), (x - mean[..., None]) * scale[:, None], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_cutting_into_parts_changes_no_bit(channel_axis, monkeypatch):
    x, dy, z = normal(7, (3, 40, 12, 6), dtype=np.float32)
    gamma, beta = normal(8, (2, x.shape[channel_axis]))
    options = dict(channel_axis=channel_axis, activation="relu", residual=z)

    def results():
        for forward, backward, argument in (
            (layer_norm_forward, layer_norm_backward, x.shape[channel_axis]),
            (group_norm_forward, group_norm_backward, 3),
        ):
            y, saved = forward(x, argument, gamma, beta, **options)
            dx, dgamma, dbeta, dz = backward(dy, x, saved, gamma, beta=beta, **options)
            yield [y, *saved, dx, dz], [dgamma, dbeta]

    whole = list(results())
    monkeypatch.setattr(_passes, "PART", 500)
    monkeypatch.setattr("bncpu.group_norms.CHANNELS", 20)
    for (arrays, sums), (expected, whole_sums) in zip(results(), whole, strict=True):
        for a, b in zip(arrays, expected, strict=True):
            assert same_bits(a, b)
        np.testing.assert_allclose(sums, whole_sums, rtol=1e-12, atol=1e-12)
