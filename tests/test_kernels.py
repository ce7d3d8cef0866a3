"""The compiled loops, through the functions that cut arrays for them, against the reference and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from arrays import DTYPES, exact_moments, hostile_columns, normal, same_bits, slow

from bncpu import _kernels, _normalize, _reference
from bncpu.moments import Coefficients, Gradient, variance

U = {np.dtype(dtype): np.finfo(dtype).eps for dtype in DTYPES}

# (outer, channels, inner): folded and unfolded rows, several blocks and tiles, planes with and without
# a tail, planes shorter than the lanes, pieces of one long plane.
SHAPES = [
    (1, 1, 1), (2, 3, 1), (33, 10, 1), (1001, 7, 1), *slow((20_011, 32, 1)), (700, 513, 1), (3, 1500, 1),
    (5, 3, 7), (64, 5, 49), (9, 4, 196), (1, 3, 200_003), *slow((40, 3, 3136)), (2, 600, 17),
]  # fmt: skip


def moments(x3, weights=None, *, skip_missing=False, n_threads=1):
    return _normalize.moments(x3[None], weights, skip_missing=skip_missing, n_threads=n_threads)[0]


def apply(x3, y3, c, *, residual=None, **options):
    residual = None if residual is None else residual[None]
    return _normalize.apply(x3[None], y3[None], c, residual=residual, **options)


@pytest.mark.parametrize("mean", [0.0, -1e4, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_equal_the_reference(shape, dtype, mean, isa):
    x = normal(1, shape, mean, dtype=dtype)
    count, center, m2 = _reference.moments(x)
    got = moments(x)
    np.testing.assert_array_equal(got.count, count)
    # Both sum n terms of size 1 in float64; the reference's mean is rounded to float64.
    np.testing.assert_allclose(got.mean, center, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-12, atol=1e-12 * (mean == 0) + 1e-18 * mean**2)


@pytest.mark.parametrize("order", ["rows", "planes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_hostile_columns_equal_exact_fractions(dtype, order, isa):
    names, x = hostile_columns(999, dtype)
    got = moments(x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None])
    for c, name in enumerate(names):
        _, mean, m2 = exact_moments(x[:, c])
        spread = float(m2 / 999) ** 0.5
        # 64 units: sums of 1e3 terms, each within 8 standard deviations of its shift.
        assert abs(exact_difference(mean, got.mean[c], got.mean_lo[c])) <= 64 * 2.0**-52 * spread, name
        assert abs(got.m2[c] - float(m2)) <= 1e-13 * float(m2), name


def exact_difference(exact, hi, lo):
    return float(exact - Fraction(float(hi)) - Fraction(float(lo)))


@pytest.mark.parametrize("order", ["rows", "planes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_channel_has_variance_zero_and_its_value_as_mean(dtype, order, isa):
    value = dtype(1e8 / 3)
    x = np.full((5000, 3), value)
    got = moments(x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None])
    assert np.all(got.m2 == 0)
    assert np.all(got.mean == np.float64(value))
    assert np.all(got.mean_lo == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["rows", "planes"])
def test_weighted_moments_equal_exact_fractions(dtype, order, isa):
    x = normal(2, (301, 5), mean=1e4, dtype=dtype)
    x[0] = 1e9  # an outlier that hardly counts must not be what everything is measured from
    w = np.random.default_rng(3).integers(0, 5, 301) / 4.0
    w[0] = 1e-30
    got = moments(x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None], w)
    for c in range(5):
        count, mean, m2 = exact_moments(x[:, c], w)
        assert got.count[c] == pytest.approx(float(count), rel=1e-15)
        assert abs(exact_difference(mean, got.mean[c], got.mean_lo[c])) <= 1e-14
        assert got.m2[c] == pytest.approx(float(m2), rel=1e-13)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("width", [1, 7, 8, 16, 24, 40, 64, 72, 600])
def test_every_row_has_its_own_weight_however_many_are_summed_as_one(width, missing, isa):
    x, w = normal(46, (403, width), mean=2.0), np.random.default_rng(7).integers(0, 9, 403) / 8.0
    if missing:
        x[np.random.default_rng(8).random(x.shape) < 0.1] = np.nan
    got = moments(x[:, :, None], w, skip_missing=True)
    count, mean, m2 = _reference.moments(x[:, :, None], w, skip_missing=True)
    np.testing.assert_array_equal(got.count, count)  # multiples of 1/8
    np.testing.assert_allclose(got.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-13)


@pytest.mark.parametrize("order", ["rows", "planes"])
@pytest.mark.parametrize("halflife", [0.5, 30.0, 1e5])
@pytest.mark.parametrize("shape", [(1, 3), (1000, 3), (20000, 8), (70000, 1), (9000, 40)], ids=str)
def test_recency_is_a_weight_that_halves_whatever_the_blocks(shape, halflife, order, isa):
    x = normal(47, shape, mean=3.0)
    x3 = x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None]
    got, _ = _normalize.moments(x3[None], None, skip_missing=True, n_threads=2, halflife=halflife)
    count, mean, m2 = _reference.moments(x3, 0.5 ** (np.arange(len(x) - 1, -1, -1) / halflife))
    np.testing.assert_allclose(got.count, count, rtol=1e-13)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-12, atol=1e-300)


def test_weights_of_planes_belong_to_outer_and_inner_positions(isa):
    x, w = normal(45, (7, 3, 50)), np.random.default_rng(4).random((7, 50))
    count, mean, m2 = _reference.moments(x, w.reshape(-1))
    got = moments(x, w.reshape(-1))
    np.testing.assert_allclose(got.count, count, rtol=1e-14)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["rows", "planes"])
def test_missing_values_are_left_out_per_channel(dtype, order, weighted, isa):
    rng = np.random.default_rng(4)
    x = normal(5, (2003, 6), mean=-1e4, dtype=dtype)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[0, 0] = np.nan  # the value a block is shifted by
    x[:, 1] = np.nan  # never observed
    w = rng.integers(0, 4, len(x)).astype(float) if weighted else None
    x3 = x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None]
    got, missing = _normalize.moments(x3[None], w, skip_missing=True, n_threads=1)
    count, mean, m2 = _reference.moments(x3, w, skip_missing=True)
    assert missing
    np.testing.assert_array_equal(got.count, count)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-12)
    assert got.count[1] == got.mean[1] == got.m2[1] == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["rows", "planes"])
def test_a_channel_without_gaps_has_the_same_bits_beside_one_with_gaps(order, weighted, isa):
    whole = normal(6, (5000, 4), mean=3.0, dtype=np.float32)
    holed = whole.copy()
    holed[7::11, 2] = np.nan
    w = np.random.default_rng(6).random(5000) if weighted else None
    a, b = (
        moments(x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None], w, skip_missing=True)
        for x in (whole, holed)
    )
    for m, n in zip(a, b, strict=True):
        np.testing.assert_array_equal(m[[0, 1, 3]], n[[0, 1, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ["rows", "planes"])
def test_without_skipping_nan_and_infinity_stay_in_their_channel(order, bad, isa):
    x = normal(7, (100, 5))
    clean = moments(np.ascontiguousarray(x.T)[None] if order == "planes" else x[:, :, None])
    x[50, 3] = bad
    got = moments(np.ascontiguousarray(x.T)[None] if order == "planes" else x[:, :, None])
    assert not np.isfinite(variance(got)[3])
    others = [0, 1, 2, 4]
    assert np.all(got.m2[others] == clean.m2[others])
    assert np.all(got.mean[others] == clean.mean[others])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ["rows", "planes"])
def test_infinity_is_never_taken_for_missing(order, weighted, isa):
    for infinite in (slice(0, 1), slice(3, 4), slice(0, 9), slice(0, 20)):
        x = normal(7, (20, 3))
        x[5, 1] = np.nan
        x[infinite, 2] = np.inf
        got = moments(
            x[:, :, None] if order == "rows" else np.ascontiguousarray(x.T)[None],
            np.arange(1.0, 21) if weighted else None,
            skip_missing=True,
        )
        assert np.all(np.isfinite(got.m2[:2]))
        assert not np.isfinite(got.m2[2])


def coefficients(n_channels, mean=0.0, seed=8):
    rng = np.random.default_rng(seed)
    return Coefficients(
        mean + rng.standard_normal(n_channels), rng.uniform(0.5, 2, n_channels), rng.standard_normal(n_channels)
    )


@pytest.mark.parametrize("mean", [0.0, -1e4, 1e6])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_apply_equals_the_reference(shape, dtype, added, relu, mean, isa):
    x = normal(9, shape, mean, dtype=dtype)
    z = normal(10, shape, dtype=dtype) if added else None
    c = coefficients(shape[1], mean)
    y = np.empty_like(x)
    assert not apply(x, y, c, residual=z, relu=relu, n_threads=1)
    expected = _reference.apply(x, *c, z, relu)
    # Four roundings (subtract, scale, shift, residual) of terms no larger than these.
    scale, shift = c.scale[:, None], c.shift[:, None]
    terms = np.abs((x - c.mean[:, None]) * scale) + np.abs(shift) + scale + (0 if z is None else np.abs(z))
    assert np.all(np.abs(y - expected) <= 4 * U[x.dtype] * terms)


def test_apply_in_float32_at_mean_1e6_is_exact_to_rounding(isa):
    x = normal(11, (4000, 8, 1), mean=1e6, dtype=np.float32)
    m = moments(x)
    std = np.sqrt(variance(m))
    y = np.empty_like(x)
    apply(x, y, Coefficients(m.mean, 1 / std, np.zeros(8)))
    np.testing.assert_allclose(y, _reference.apply(x, m.mean, 1 / std, np.zeros(8)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(40, 7, 1), (3, 5, 50), (1, 3, 300_000), *slow((300_001, 31, 1), (1, 3, 3_000_000))], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_reports_infinity_and_not_nan(shape, dtype, isa):
    x = np.zeros(shape, dtype)
    y, c = np.empty_like(x), Coefficients(*np.zeros((3, shape[1])))
    x.reshape(-1)[:: max(1, x.size // 100)] = np.nan
    assert not apply(x, y, c)
    for at in (0, x.size // 2, x.size - 1):
        for bad in (np.inf, -np.inf):
            before = x.flat[at]
            x.flat[at] = bad
            assert apply(x, y, c)
            x.flat[at] = before
    assert not apply(x, y, c)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_keeps_nan_and_comes_after_the_residual(dtype, isa):
    x = np.array([[-1.0, -1.0, np.nan, 2.0] * 9], dtype).reshape(36, 1, 1)
    z = np.array([[2.0, 0.0, 0.0, -3.0] * 9], dtype).reshape(36, 1, 1)
    for shape in ((36, 1, 1), (1, 1, 36), (1, 36, 1)):
        y = np.empty(shape, dtype)
        c = Coefficients(np.zeros(shape[1]), np.ones(shape[1]), np.zeros(shape[1]))
        apply(x.reshape(shape), y, c, residual=z.reshape(shape), relu=True)
        np.testing.assert_array_equal(y.reshape(-1, 4), [[1, 0, np.nan, 0]] * 9)


# Cut into several blocks; the slow ones are stored past the cache, too.
BIG_SHAPES = [
    (9001, 64, 1), (1, 3, 300_001),
    *slow((150_007, 31, 1), (70_000, 64, 1), (20, 33, 8000), (1, 3, 1_500_001), (2000, 2200, 1)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", BIG_SHAPES, ids=str)
def test_same_bits_for_any_thread_count_and_variant(shape, dtype):
    x = normal(12, shape, mean=5.0, dtype=dtype)
    x[0, 0, 0] = 1e7
    x[:, 1].reshape(-1)[::97] = np.nan
    c = coefficients(shape[1])
    seen = set()
    before = _kernels.isa()
    try:
        for isa in _kernels.isa_variants():
            _kernels.use_isa(isa)
            for n_threads in (1, 2, 3, 7):
                y = np.empty_like(x)
                apply(x, y, c, n_threads=n_threads)
                m, _ = _normalize.moments(x[None], None, skip_missing=True, n_threads=n_threads)
                seen.add((y.tobytes(), *(a.tobytes() for a in m)))
    finally:
        _kernels.use_isa(before)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_in_any_batch_streamed_or_in_place(dtype, isa):
    channels = 24
    x = normal(13, (_kernels.PAST_CACHE_BYTES // channels // np.dtype(dtype).itemsize + 100, channels, 1), dtype=dtype)
    c = coefficients(channels)
    y = np.empty_like(x)
    assert y.nbytes >= _kernels.PAST_CACHE_BYTES
    apply(x, y, c)
    for rows in (slice(0, 1), slice(5, 6), slice(-1, None), slice(3, 1000), slice(77, 100_000)):
        part = np.empty_like(x[rows])
        apply(x[rows], part, c)
        assert same_bits(part, y[rows])
    shifted = np.empty(y.size + 3, dtype)[3:].reshape(y.shape)  # another alignment
    apply(x, shifted, c)
    assert same_bits(shifted, y)
    planes = np.ascontiguousarray(x[..., 0].T)[None]
    as_planes = np.empty_like(planes)
    apply(planes, as_planes, c)
    assert same_bits(np.ascontiguousarray(as_planes[0].T)[..., None], y)
    apply(x, x, c)
    assert same_bits(x, y)


# ---- backward ----


def gradients(shape, dtype, mean=0.0):
    """x, dy and a residual, the coefficients of a forward pass, and where that gives more than 0."""
    x, dy, z = normal(14, shape, mean, dtype=dtype), normal(15, shape, dtype=dtype), normal(16, shape, dtype=dtype)
    return x, dy, z, coefficients(shape[1], mean)


def passed(x, z, c):
    y = np.empty_like(x)
    apply(x, y, c, residual=z)
    return y > 0


def gradient_of(n_channels, mean):
    return Gradient(mean, *np.random.default_rng(17).standard_normal((3, n_channels)))


HOW = {"plain": (False, False), "relu": (True, False), "relu after a residual": (True, True)}


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_the_gradient_equal_the_definition(shape, dtype, how, mean, isa):
    relu, added = HOW[how]
    x, dy, z, c = gradients(shape, dtype, mean)
    z4 = z[None] if added else None
    got = _normalize.backward_sums(dy[None], x[None], c.mean, relu=c if relu else None, residual=z4, n_threads=1)
    g = dy.astype(np.float64) * (passed(x, z if added else None, c) if relu else True)
    products = g * (x - c.mean[:, None])
    for sums, terms in zip(got, (g, products), strict=True):
        # Sums of n terms in float64, in another order than here.
        bound = 1e-15 * np.abs(terms).sum(axis=(0, 2)) + 1e-30
        assert np.all(np.abs(sums - terms.sum(axis=(0, 2))) <= 4 * bound)


@pytest.mark.parametrize("mean", [0.0, -1e4])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_equals_the_definition(shape, dtype, how, mean, isa):
    relu, added = HOW[how]
    x, dy, z, c = gradients(shape, dtype, mean)
    k = gradient_of(shape[1], c.mean)
    dx, dz = np.empty_like(x), np.empty_like(x)
    _normalize.backward_apply(
        dy[None], x[None], dx[None], k, relu=c if relu else None,
        residual=z[None] if added else None, dresidual=dz[None] if added else None, n_threads=1,
    )  # fmt: skip
    g = dy * (passed(x, z if added else None, c) if relu else True)
    if added:
        np.testing.assert_array_equal(dz, g)
    along = k.x_scale[:, None] * (x - c.mean[:, None])
    expected = k.dy_scale[:, None] * g + along + k.offset[:, None]
    # Five roundings of terms no larger than these; x - mean is exact or rounded once.
    terms = np.abs(k.dy_scale[:, None] * g) + np.abs(along) + np.abs(k.offset[:, None]) + np.abs(k.x_scale[:, None])
    assert np.all(np.abs(dx - expected) <= 4 * U[x.dtype] * terms)


def test_groups_have_sums_and_coefficients_of_their_own(isa):
    for shape in ((5, 40, 7, 1), (4, 3, 6, 50), (3, 700, 2, 1), (6, 1, 5, 300)):
        groups, _, channels, _ = shape
        x, dy = normal(18, shape), normal(19, shape)
        c = coefficients(groups * channels)
        k = gradient_of(groups * channels, c.mean)
        y, dx = np.empty_like(x), np.empty_like(x)
        _normalize.apply(x, y, c, n_threads=2)
        _normalize.backward_apply(dy, x, dx, k, relu=c, n_threads=2)
        m, _ = _normalize.moments(x, None, skip_missing=False, n_threads=2)
        sums = _normalize.backward_sums(dy, x, c.mean, relu=c, n_threads=2)
        for g in range(groups):
            own, at = slice(g * channels, (g + 1) * channels), slice(g, g + 1)
            some, part = Coefficients(*(p[own] for p in c)), np.empty_like(x[at])
            _normalize.apply(x[at], part, some)
            assert same_bits(part, y[at])
            _normalize.backward_apply(dy[at], x[at], part, Gradient(*(p[own] for p in k)), relu=some)
            assert same_bits(part, dx[at])
            alone, _ = _normalize.moments(x[at], None, skip_missing=False, n_threads=1)
            np.testing.assert_array_equal(np.array(m)[:, own], np.array(alone))
            np.testing.assert_array_equal(sums[:, own], _normalize.backward_sums(dy[at], x[at], some.mean, relu=some))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", BIG_SHAPES, ids=str)
def test_gradients_have_the_same_bits_for_any_thread_count_and_variant(shape, dtype):
    x, dy, z, c = gradients(shape, dtype)
    k, seen = gradient_of(shape[1], c.mean), set()
    before = _kernels.isa()
    try:
        for isa in _kernels.isa_variants():
            _kernels.use_isa(isa)
            for n_threads in (1, 2, 3):
                dx, dz = np.empty((2, *x.shape), dtype)
                four = (a[None] for a in (dy, x, dx))
                _normalize.backward_apply(*four, k, relu=c, residual=z[None], dresidual=dz[None], n_threads=n_threads)
                sums = _normalize.backward_sums(
                    dy[None], x[None], c.mean, relu=c, residual=z[None], n_threads=n_threads
                )
                seen.add((dx.tobytes(), dz.tobytes(), sums.tobytes()))
    finally:
        _kernels.use_isa(before)
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_and_written_in_place_a_gradient_has_the_same_bits(dtype, isa):
    for shape in ((_kernels.PAST_CACHE_BYTES // 24 // np.dtype(dtype).itemsize + 100, 24, 1), (30, 7, 20_011)):
        x, dy, _, c = gradients(shape, dtype)
        k, dx = gradient_of(shape[1], c.mean), np.empty_like(x)
        assert _normalize.goes_past_cache(dx, x, dy)
        _normalize.backward_apply(dy[None], x[None], dx[None], k, relu=c)
        for rows in (slice(0, 1), slice(3, 9)):
            part = np.empty_like(x[rows])
            _normalize.backward_apply(dy[rows][None], x[rows][None], part[None], k, relu=c)
            assert same_bits(part, dx[rows])
        _normalize.backward_apply(dy[None], x[None], dy[None], k, relu=c)
        assert same_bits(dy, dx)


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_any_one_array_of_narrow_rows_may_lie_in_a_wider_one(wide, isa):
    x, dy, z, c = gradients((3000, 6, 1), np.float32)
    expected = _normalize.backward_sums(dy[None], x[None], c.mean, relu=c, residual=z[None])
    arrays = [np.concatenate([a, a], axis=1)[:, :6] if i == wide else a for i, a in enumerate((dy, x, z))]
    dy, x, z = (a[None] for a in arrays)
    # Not folded, so added in another order.
    np.testing.assert_allclose(_normalize.backward_sums(dy, x, c.mean, relu=c, residual=z), expected, rtol=1e-12)


def test_arrays_of_one_form_may_have_different_strides(isa):
    for shape in ((40, 6, 1), (5, 6, 30)):
        x, dy, z, c = gradients(shape, np.float32)
        k, expected = gradient_of(6, c.mean), np.empty_like(x)
        _normalize.backward_apply(dy[None], x[None], expected[None], k, relu=c)
        wider = [np.concatenate([a, a], axis=0 if at else 1)[:, :6][: len(x)] for at, a in enumerate((dy, x))]
        result = np.zeros((len(x), 12, shape[2]), np.float32)[:, 3:9]
        _normalize.backward_apply(wider[0][None], wider[1][None], result[None], k, relu=c)
        np.testing.assert_array_equal(result, expected)
        apply(x, expected, c, residual=z)
        apply(wider[1], result, c, residual=np.concatenate([z, z], axis=1)[:, :6])
        np.testing.assert_array_equal(result, expected)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"BNCPU_ISA must be one of .*; got 'mmx'"):
        _kernels.use_isa("mmx")


YARDS = pytest.mark.parametrize("n", [0, 1, 7, 100, 3_000, 600_001])


@YARDS
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("streams", [0, 1, 4])
def test_the_yardsticks_write_every_value_and_nothing_else(streams, n_threads, n, isa):
    x, y, memory = normal(9, n, dtype=np.float32), normal(8, n, dtype=np.float32), np.empty(n + 40, np.float32)
    both = (x.view(np.int32) ^ y.view(np.int32)).view(np.float32)
    for offset in (0, 5, 16):
        to = memory[offset : offset + n]
        for write, expected in (
            (lambda to=to: _kernels.copy(x, to, n_threads, streams), x),
            (lambda to=to: _kernels.triad(x, y, to, n_threads, streams), both),
        ):
            memory[:] = 3
            write()
            assert same_bits(to, expected)
            assert np.all(memory[:offset] == 3) and np.all(memory[offset + n :] == 3)


@YARDS
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_the_yardstick_reads_every_value_once(streams, n_threads, n, isa):
    x = normal(9, n + 3, dtype=np.float32)
    for offset in (0, 3):
        part = x[offset : offset + n]
        words = np.zeros(-(-n // 2), np.int64)
        words.view(np.int32)[:n] = part.view(np.int32)
        assert _kernels.read(part, n_threads, streams) == np.bitwise_xor.reduce(words)
