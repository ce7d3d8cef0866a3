"""How arrays are cut: by shape alone, into blocks that cover them once, into wide rows that change no bit."""

import numpy as np
import pytest
from arrays import DTYPES, normal, same_bits
from hypothesis import given
from hypothesis import strategies as st

from bncpu import _kernels, _normalize, _reference, _walk, batch_norm_backward, batch_norm_forward
from bncpu.moments import Coefficients, Gradient, fold_saved

# No array has 2**63 values.
sizes = st.integers(1, 1 << 30)


@given(sizes, st.integers(1, 1 << 20), st.one_of(st.just(1), sizes))
def test_blocks_are_few_and_one_of_their_sides_spans_its_axis(outer, channels, inner):
    outer_block, inner_block = _kernels.block_shape(outer, channels, inner)
    assert outer_block >= 1 and 1 <= inner_block <= inner
    n_blocks = -(-outer // outer_block) * -(-inner // inner_block)
    if inner_block < inner:
        assert outer_block == 1
        # Each plane is cut on its own: a rest per plane.
        assert n_blocks <= _kernels.MAX_BLOCKS + outer
    else:
        assert n_blocks <= 2 * _kernels.MAX_BLOCKS


@pytest.fixture
def walk():
    """Change how many streams are stored, and what is taken to stay in the cache."""
    yield _kernels.set_walk
    _walk.take(_walk.of_this_machine())


@pytest.fixture
def cache(walk):
    """Change what is taken to stay in the cache."""
    return lambda *resident: walk(4, *resident)


@pytest.mark.parametrize("streams", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3, 16, 100, 1500])
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_widening_changes_no_bit_in_any_number_of_streams(dtype, offset, channels, streams, isa, walk):
    walk(max(1, streams), 1 << 20)
    n, stream = 40_000 // channels, streams > 0
    arrays = normal(0, (6, n * channels + offset), mean=1.0, dtype=dtype)[:, offset:].reshape(6, n, channels)
    dy, x, z, y, dx, dz = arrays
    p = normal(1, (6, channels), dtype=dtype)

    def results(*arrays):
        dy, x, z, y, dx, dz = (a.reshape(1, n, -1, 1, copy=False) for a in arrays)
        _kernels.apply(x, y, z, *p[:3], True, stream, 1)
        _kernels.backward_apply(dy, x, z, dx, dz, *p, True, stream, 1)

    results(dy, x, z, y, dx, dz)
    # Not packed, so each row on its own.
    apart = np.full((6, n, channels + 3), 7, dtype)
    apart[:3, :, :channels] = dy, x, z
    results(*apart[:, :, :channels])
    assert same_bits(apart[3:, :, :channels], np.stack([y, dx, dz]))
    assert (apart[:, :, channels:] == 7).all()


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
# Rows; small planes, adjacent and not; several blocks of samples and of a plane; more channels than a tile; groups.
@pytest.mark.parametrize(
    "shape",
    [
        (1, 33, 10, 1),
        (1, 90, 600, 1),
        (2, 9, 7, 49),
        (1, 5, 3, 5),
        (1, 40, 6, 3136),
        (1, 1, 2, 90_001),
        (1, 3, 600, 20),
    ],
    ids=str,
)
def test_both_steps_at_once_give_the_bits_of_one_after_the_other(shape, dtype, relu, n_threads, isa, cache):
    x, dy, z = normal(7, (3, *shape), mean=1.0, dtype=dtype)
    if shape == (2, 9, 7, 49):  # planes that are not adjacent
        x, dy, z = (np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (x, dy, z))
    n = shape[0] * shape[2]
    gamma, beta = normal(8, (2, n))
    if dtype == np.float32:
        gamma[n // 2] = 1e39  # which float32 cannot hold: left to the longer way
    options = dict(residual=z if relu else None, n_threads=n_threads)

    def everything():
        y, dx, dz = (np.full_like(x, 7) for _ in range(3))
        moments, saved = _normalize.forward(x, y, gamma, beta, 1e-5, relu=relu, **options)
        c = fold_saved(saved, gamma, beta) if relu else None
        sums = _normalize.backward(dy, x, dx, saved, gamma, relu=c, dresidual=dz if relu else None, **options)
        return [*moments, *saved, saved.mean_lo, y, dx, dz, *sums]

    cache(1 << 24, 1 << 24)
    assert _kernels.resident_channels(x, 3, n_threads) or (shape[3] == 1 and n_threads == 2)
    together = everything()
    cache(0)
    assert not _kernels.resident_channels(x, 1, n_threads)
    one_after_the_other = everything()
    for a, b in zip(together, one_after_the_other, strict=True):
        assert same_bits(a, b)


def test_what_does_not_fit_the_cache_takes_one_step_after_the_other(cache):
    cache(1 << 20)

    def channels(n_threads, x, *others):
        return _kernels.resident_channels(x, 1 + sum(a is not None for a in others), n_threads)

    planes = np.empty((1, 32, 64, 3136), np.float32)
    assert channels(1, planes, None) == 2
    assert channels(1, planes, planes) == 1
    assert channels(1, np.empty((1, 128, 3, 50176), np.float32)) == 0
    # 1 MiB, all of it in the same few places of the cache
    assert channels(1, np.empty((1, 256, 16, 1024), np.float32)) == 0
    assert channels(1, np.empty((1, 64, 256, 196), np.float32)) == 20
    assert channels(1, np.empty((1, 10_000, 32, 1), np.float32)) == 0
    assert channels(1, np.empty((1, 1000, 32, 1), np.float32)) == 32
    assert channels(2, np.empty((1, 2, 64, 100), np.float32)) == 8
    assert channels(2, np.empty((1, 64, 256, 196), np.float32)) == 20
    assert channels(4, np.empty((1, 64, 256, 196), np.float32)) == 16
    assert channels(1, np.empty((1, 0, 3, 4), np.float32)) == 0


@pytest.mark.parametrize("shape", [(3, 700, 4, 1), (3, 2, 4, 50)], ids=str)
def test_channels_beyond_float32_leave_the_bits_of_the_others_alone(shape):
    x, dy, z = (normal(k, shape, dtype=np.float32) for k in (4, 5, 6))
    n = shape[0] * shape[2]
    good = Coefficients(*normal(7, (3, n)))
    gradient = Gradient(good.mean, *normal(8, (3, n)))
    odd = [2, 5, 6, 7, 11]
    rest = [i for i in range(n) if i not in odd]

    def results(c, k, relu):
        y, dx, dz = np.empty((3, *shape), np.float32)
        _normalize.apply(x, y, c, residual=z)
        _normalize.backward_apply(dy, x, dx, k, relu=c if relu else None, residual=z if relu else None,
                                  dresidual=dz if relu else None)  # fmt: skip
        return [np.moveaxis(a, 2, 1).reshape(n, -1) for a in ((y, dx, dz) if relu else (y, dx))]

    for relu in (False, True):
        calm = results(good, gradient, relu)
        for name, value in (("scale", 1e-40), ("dy_scale", 1e-40), ("x_scale", 1e-42), ("mean", 1e31)):
            c, k = (type(p)(*(a.copy() for a in p)) for p in (good, gradient))
            for p in (c, k):
                if name in p._fields:
                    getattr(p, name)[odd] *= value
            for a, b in zip(results(c, k, relu), calm, strict=True):
                assert same_bits(a[rest], b[rest])
            if name == "dy_scale" and not relu:
                d = np.moveaxis(dy, 2, 1).reshape(n, -1)[odd], np.moveaxis(x, 2, 1).reshape(n, -1)[odd]
                expected = d[0] * k.dy_scale[odd, None] + k.x_scale[odd, None] * (d[1] - k.mean[odd, None])
                expected += k.offset[odd, None]
                np.testing.assert_allclose(results(c, k, relu)[1][odd], expected, rtol=0, atol=1e-5)


def test_factors_that_float32_would_lose_are_applied_in_float64():
    dy, x = np.full((1, 9, 1, 1), 1e30, np.float32), np.zeros((1, 9, 1, 1), np.float32)
    dx, zero = np.empty_like(x), np.zeros(1)
    _normalize.backward_apply(dy, x, dx, Gradient(zero, np.array([1e-44]), zero, zero))
    np.testing.assert_allclose(dx, 1e-14, rtol=1e-6)


def test_relu_is_recomputed_in_float64_where_the_forward_pass_was():
    x, dy, zero = np.full((1, 9, 1, 1), -6e8, np.float32), np.ones((1, 9, 1, 1), np.float32), np.zeros(1)
    c = Coefficients(zero, np.array([1e30]), np.array([5e38]))  # in float32: -inf + inf
    y, dx = np.empty_like(x), np.empty_like(x)
    _normalize.apply(x, y, c, relu=True)
    _normalize.backward_apply(dy, x, dx, Gradient(zero, np.ones(1), zero, zero), relu=c)
    assert not y.any()
    assert not dx.any()
    assert not _normalize.backward_sums(dy, x, zero, relu=c).any()


def test_a_result_that_is_read_too_is_never_stored_past_the_cache():
    x, y = np.empty((2, _kernels.PAST_CACHE_BYTES // 8))
    assert _normalize.goes_past_cache(y, x, None)
    for others in ((y,), (x, y), (x, None, y[5:])):
        assert not _normalize.goes_past_cache(y, *others)
    assert not _normalize.goes_past_cache(y[1:], x)


def test_moments_of_nothing_are_empty():
    for shape in ((0, 3, 1), (0, 3, 5), (4, 3, 0)):
        got, missing = _normalize.moments(np.zeros((2, *shape)), None, skip_missing=True, n_threads=1)
        assert not missing
        np.testing.assert_array_equal(got, np.zeros((4, 6)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_coefficients_beyond_float32_take_the_long_way_in_pieces(added, relu):
    x = normal(2, (70_000, 2, 1), dtype=np.float32) * np.float32(1e-30)
    z = normal(3, x.shape, dtype=np.float32) if added else None
    c = Coefficients(np.zeros(2), np.array([1e38, 1e30]), np.zeros(2))
    y = np.empty_like(x)
    assert not _normalize.apply(x[None], y[None], c, residual=None if z is None else z[None], relu=relu)
    expected = _reference.apply(x, *c, z, relu)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_float32_coefficients_that_overflow_are_computed_in_float64():
    x = np.array([[1e-40, 3e38], [2e-40, -3e38]], np.float32)[:, :, None]
    c = Coefficients(np.array([1.5e-40, 2e38]), np.array([1e40, 1e-38]), np.zeros(2))
    y = np.empty_like(x)
    _normalize.apply(x[None], y[None], c)
    np.testing.assert_allclose(y, _reference.apply(x, *c), rtol=1e-6)


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_written_in_place_is_written_whatever_numpy_is_told_to_raise(backward, cache):
    cache(1 << 13, 1 << 13)
    x, dy = normal(9, (2, 4, 8, 400), dtype=np.float32)
    x[:, 3] = np.clip(x[:, 3], -3, 3) * np.float32(1e38)  # for which float32 does not suffice
    expected_y, saved = batch_norm_forward(x, n_threads=1)
    expected_dx = batch_norm_backward(dy, x, saved, n_threads=1)[0]
    with np.errstate(all="raise"):
        if backward:
            got, expected = batch_norm_backward(dy, x, saved, out=dy, n_threads=1)[0], expected_dx
        else:
            got, expected = batch_norm_forward(x, out=x, n_threads=1)[0], expected_y
    assert same_bits(got, expected)
