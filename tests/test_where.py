"""`where=`: values that do not count, as padding and missing pixels, in the statistics of every norm."""

import numpy as np
import pytest
from arrays import examples, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import bncpu
from bncpu import _kernels, _passes, _reference

# Rounding of results of some units, computed in the dtype; gradients and sums of thousands of values add up more.
TOLERANCE = {np.float32: 5e-5, np.float64: 1e-10}


class Norm:
    """One of the norms, called for an array with channels on an axis; its reference takes a full-size `where`."""

    def __init__(self, name, *first):
        self.name, self.first = name, first

    def forward(self, library, x, p, **options):
        parameters = p["gamma"] if self.name == "rms_norm" else (p["gamma"], p["beta"])
        parameters = parameters if isinstance(parameters, tuple) else (parameters,)
        return getattr(library, f"{self.name}_forward")(x, *self.first, *parameters, **options)

    def backward(self, library, dy, x, saved, p, **options):
        beta = {} if self.name == "rms_norm" else {"beta": p["beta"]}
        return getattr(library, f"{self.name}_backward")(dy, x, saved, p["gamma"], **beta, **options)


def case(seed, shape, axis, dtype=np.float64, order="C"):
    """x and dy, one value per channel of gamma and beta, and where each position counts, all of the last included."""
    rng = np.random.default_rng(seed)
    x, dy, z = (np.asarray(rng.normal(m, 2.0, shape).astype(dtype), order=order) for m in (5.0, 0.0, 0.0))
    n = shape[axis]
    positions = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    where = rng.random(positions) < rng.choice([0.1, 0.5, 0.9])
    where[..., -2:] = True
    return x, dy, z, {"gamma": rng.normal(size=n), "beta": rng.normal(size=n)}, where


def full(where, x, axis):
    return np.broadcast_to(np.expand_dims(where, axis), x.shape)


NORMS = {
    "batch": lambda n: Norm("batch_norm"),
    "instance": lambda n: Norm("instance_norm"),
    "group": lambda n: Norm("group_norm", 2),
    "layer": lambda n: Norm("layer_norm", n),
    "rms": lambda n: Norm("rms_norm", n),
}
SHAPES = [
    ((6, 8, 5, 7), 1),
    ((6, 5, 7, 8), -1),
    ((3, 6, 40), 1),
    ((4, 30, 6), 2),
    ((2, 16, 33, 31), 1),
    ((300, 3, 2), 0),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("relu", [False, True])
def test_results_and_gradients_are_those_of_the_reference(isa, dtype, norm, relu):
    for seed, ((shape, axis), order, with_residual) in enumerate(
        [(shape, order, z) for shape in SHAPES for order in "CF" for z in (False, True)]
    ):
        x, dy, z, p, where = case(seed, shape, axis, dtype, order)
        options = {
            "channel_axis": axis,
            "activation": "relu" if relu else None,
            "residual": z if with_residual else None,
        }
        if norm == "group" and shape[axis] % 2:
            continue
        called = NORMS[norm](shape[axis])
        y, saved = called.forward(bncpu, x, p, where=where, **options)
        kept = {"channel_axis": axis, "where": full(where, x, axis)}
        expected = called.forward(_reference, x, p, **kept)[0] + (z if with_residual else 0.0)
        expected = np.maximum(expected, 0) if relu else expected
        bound = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        assert_allclose(y, expected, **bound)
        # With the same statistics: ReLU must let the same values through.
        ours = called.backward(bncpu, dy, x, saved, p, where=where, **options)
        theirs = called.backward(_reference, dy, x, saved, p, **options | kept)
        for got, wanted in zip(ours, theirs, strict=True):
            size = max(1.0, float(np.abs(wanted).max()))
            assert_allclose(got, wanted.reshape(got.shape), rtol=0, atol=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("shape", [(7, 5), (4000, 3), (600, 8), (5, 4, 9, 9), (2, 3, 70_000), (900, 2100)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_is_that_of_the_values_that_count_alone(shape, dtype):
    """Gather, normalize, scatter."""
    x, dy, _, p, where = case(1, shape, 1, dtype)
    at, dy = full(where, x, 1), np.where(full(where, x, 1), dy, dtype(0))
    y, saved = bncpu.batch_norm_forward(x, **p, where=where)
    dx, dgamma, dbeta = bncpu.batch_norm_backward(dy, x, saved, p["gamma"], where=where)
    rows, drows = (np.moveaxis(a, 1, -1)[where] for a in (x, dy))
    y_rows, saved_rows = bncpu.batch_norm_forward(rows, **p)
    dx_rows, dgamma_rows, dbeta_rows = bncpu.batch_norm_backward(drows, rows, saved_rows, p["gamma"])
    bound = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert saved.count == saved_rows.count == len(rows)
    assert_allclose(saved.mean, saved_rows.mean, rtol=1e-12)
    assert_allclose(saved.invstd, saved_rows.invstd, rtol=1e-9)
    assert_allclose(np.moveaxis(y, 1, -1)[where], y_rows, **bound)
    assert_allclose(np.moveaxis(dx, 1, -1)[where], dx_rows, **bound)
    assert_array_equal(dx[~at], 0)
    assert_allclose(dgamma, dgamma_rows, rtol=1e-6, atol=1e-3)
    assert_allclose(dbeta, dbeta_rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_finite_differences(norm):
    x, dy, z, p, where = case(2, (3, 4, 5), 1)
    where[1, :3] = where[2] = False
    where[2, :2] = True
    called, step = NORMS[norm](4), 1e-6
    options = {"channel_axis": 1, "activation": "relu", "residual": z, "where": where}

    def loss(**changed):
        given = {"x": x, **p, **options, **changed}
        parameters = {"gamma": given.pop("gamma"), "beta": given.pop("beta")}
        return float((called.forward(bncpu, given.pop("x"), parameters, **given)[0] * dy).sum())

    _, saved = called.forward(bncpu, x, p, **options)
    dx, dgamma, *more = called.backward(bncpu, dy, x, saved, p, **options)
    wanted = {"x": dx, "gamma": dgamma, "residual": more[-1]} | ({} if norm == "rms" else {"beta": more[0]})
    for name, gradient in wanted.items():
        a = {"x": x, "residual": z, **p}[name]
        for index in np.ndindex(a.shape):
            up, down = a.copy(), a.copy()
            up[index] += step
            down[index] -= step
            difference = (loss(**{name: up}) - loss(**{name: down})) / (2 * step)
            assert_allclose(gradient[index], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_what_does_not_count_may_be_anything(norm, garbage):
    """Missing pixels are NaN, and their loss is 0: no gradient sees them."""
    x, dy, z, p, where = case(3, (4, 6, 9, 7), 1, np.float32)
    at, called = full(where, x, 1), NORMS[norm](6)
    dy = np.where(at, dy, np.float32(0))
    spoiled = np.where(at, x, np.float32(garbage))
    found = []
    for data in (x, spoiled):
        for activation in (None, "relu"):
            options = {"channel_axis": 1, "where": where, "activation": activation, "residual": z}
            y, saved = called.forward(bncpu, data, p, **options)
            found.append([y, saved.invstd, *called.backward(bncpu, dy, data, saved, p, **options)])
    for clean, other in zip(found[:2], found[2:], strict=True):
        assert_array_equal(clean[0][at], other[0][at])
        for a, b in zip(clean[1:], other[1:], strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [8, 300, 5000])
def test_every_byte_but_0_is_true(norm, size):
    x, dy, z, p, _ = case(3, (4, 6, size), 1, np.float32)
    image = np.where(np.arange(4 * size).reshape(4, size) % 3 == 0, np.uint8(0), np.uint8(255))
    called = NORMS[norm](6)
    found = []
    for where in (image.view(bool), image > 0):
        where = np.repeat(where[:, None], 6, axis=1) if norm in ("layer", "rms") else where
        options = {"channel_axis": 1, "where": where, "residual": z}
        y, saved = called.forward(bncpu, x, p, **options)
        found.append([y, saved.invstd, np.asarray(saved.count), *called.backward(bncpu, dy, x, saved, p, **options)])
    for got, expected in zip(*found, strict=True):
        assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("how", ["alone", "relu", "residual"])
@pytest.mark.parametrize("shape", [(100_000, 3), (30_000, 10), (10_000, 32), *slow((250_000, 24))])
def test_gradients_of_many_short_rows(isa, shape, how, dtype):
    """These are joined to wide rows. Large results start where a line of the cache does, here within a short row."""
    x, dy, z, p, where = case(11, shape, 1, dtype)
    memory = np.empty(x.size + 5, dtype)
    options = {"activation": None if how == "alone" else "relu", "residual": z if how == "residual" else None}
    _, saved = bncpu.batch_norm_forward(x, **p, where=where, **options)
    counts = {"where": full(where, x, 1)}
    y, mean, var = _reference.batch_norm_forward(x, **p, **counts)
    dy[abs(y + z if how == "residual" else y) < 1e-4] = 0  # there rounding decides what ReLU lets through
    statistics = mean, 1 / np.sqrt(var + 1e-5)
    expected = _reference.batch_norm_backward(dy, x, statistics, **p, **options, **counts)
    for n_threads in (1, 2):
        given = {**p, **options, "where": where, "out": memory[5:].reshape(shape), "n_threads": n_threads}
        dx, *gradients = bncpu.batch_norm_backward(dy, x, saved, **given)
        for got, right in zip((dx, *gradients), expected, strict=True):
            assert_allclose(got, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * abs(right).max())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_where_in_the_memory_of_the_result_is_read_before(norm, activation, channel_axis):
    shape = (8, 6, 6)
    x, dy, z, p, where = case(12, shape, channel_axis, np.float32)
    called = NORMS[norm](6)
    for residual in (None, z):
        options = {"channel_axis": channel_axis, "activation": activation, "residual": residual}
        y, saved = called.forward(bncpu, x, p, where=where, **options)
        dx, *_ = called.backward(bncpu, dy, x, saved, p, where=where, **options)
        for expected in (y, dx):
            out = np.empty(shape, np.float32)
            there = out.view(bool).reshape(-1)[: where.size].reshape(where.shape)
            there[...] = where
            if expected is y:
                _, same = called.forward(bncpu, x, p, where=there, out=out, **options)
                assert same.call == saved.call
            else:
                called.backward(bncpu, dy, x, saved, p, where=there, out=out, **options)
            assert_array_equal(out, expected)


def test_nan_that_counts_stays_in_its_channel():
    x, dy, _, p, where = case(4, (8, 3, 6), 1)
    clean, saved = bncpu.batch_norm_forward(x, **p, where=where)
    x[7, 1, 5] = np.nan
    y, saved = bncpu.batch_norm_forward(x, **p, where=where)
    dx, dgamma, _ = bncpu.batch_norm_backward(dy, x, saved, p["gamma"], where=where)
    assert np.isnan(y[:, 1]).all()
    assert np.isnan(dx[:, 1]).all()
    assert np.isnan(dgamma[1])
    assert_array_equal(y[:, [0, 2]], clean[:, [0, 2]])
    assert np.isfinite(dx[:, [0, 2]]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_where_everything_counts_nothing_changes(norm):
    x, dy, _, p, where = case(5, (5, 4, 6, 3), 1)
    called = NORMS[norm](4)
    y, saved = called.forward(bncpu, x, p, channel_axis=1)
    every, saved_every = called.forward(bncpu, x, p, channel_axis=1, where=np.ones_like(where))
    assert_allclose(every, y, rtol=1e-12, atol=1e-12)
    assert_array_equal(saved_every.count, saved.count)
    for a, b in zip(
        called.backward(bncpu, dy, x, saved_every, p, channel_axis=1, where=np.ones_like(where)),
        called.backward(bncpu, dy, x, saved, p, channel_axis=1),
        strict=True,
    ):
        assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "rms"])
def test_a_sample_without_values_gets_beta_and_no_gradient(norm):
    x, dy, _, p, where = case(6, (3, 4, 5), 1)
    where[1] = False
    called = NORMS[norm](4)
    y, saved = called.forward(bncpu, x, p, channel_axis=1, where=where)
    dx, *_ = called.backward(bncpu, dy, x, saved, p, channel_axis=1, where=where)
    beta = np.zeros(4) if norm == "rms" else p["beta"]
    assert_array_equal(y[1], np.broadcast_to(beta[:, None], (4, 5)))
    assert_array_equal(dx[1], 0)


@pytest.mark.parametrize("layout", ["planes", "rows"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_bits_do_not_depend_on_threads_or_instruction_set(norm, layout, isa):
    shape, axis = ((4, 8, 60, 50), 1) if layout == "planes" else ((4, 60, 50, 8), 3)
    x, dy, _, p, where = case(7, shape, axis, np.float32)
    found = []
    for variant, n_threads in [("c", 1), (isa, 1), (isa, 2)]:
        _kernels.use_isa(variant)
        options = {"channel_axis": axis, "where": where, "n_threads": n_threads}
        y, saved = NORMS[norm](8).forward(bncpu, x, p, **options)
        found.append([y, *saved, *NORMS[norm](8).backward(bncpu, dy, x, saved, p, **options)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_samples_in_parts_give_the_same(norm, monkeypatch):
    x, dy, _, p, where = case(8, (9, 4, 6, 5), 1)
    called, found = NORMS[norm](4), []
    for part in (_passes.PART, 200):
        monkeypatch.setattr(_passes, "PART", part)
        monkeypatch.setattr("bncpu.group_norms.CHANNELS", part)
        y, saved = called.forward(bncpu, x, p, channel_axis=1, where=where)
        found.append([y, *saved, *called.backward(bncpu, dy, x, saved, p, channel_axis=1, where=where)])
    for a, b in zip(*found, strict=True):
        assert_allclose(a, b, rtol=1e-13, atol=1e-13)


@settings(max_examples=examples(30, 3000))
@given(st.integers(0, 2**32 - 1))
def test_parts_of_a_batch_merge_into_the_whole(seed):
    rng = np.random.default_rng(seed)
    x, dy, z, p, where = case(seed, (7, 3, 11), 1)
    cuts = np.sort(rng.integers(0, 8, 2))
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, 7], strict=True)]
    given = {"activation": "relu", "beta": p["beta"]}
    y, saved = bncpu.batch_norm_forward(x, **p, activation="relu", residual=z, where=where)
    dx, dgamma, *_ = bncpu.batch_norm_backward(dy, x, saved, p["gamma"], residual=z, where=where, **given)
    moments = bncpu.merge(*(bncpu.batch_norm_moments(x[part], where=where[part]) for part in parts))
    assert_allclose(moments.count, where.sum())
    whole = [
        bncpu.batch_norm_forward(x[part], **p, activation="relu", residual=z[part], moments=moments, where=where[part])
        for part in parts
    ]
    assert_allclose(np.concatenate([result for result, _ in whole]), y, rtol=1e-10, atol=1e-10)
    sums = bncpu.merge(
        *(
            bncpu.batch_norm_backward_sums(
                dy[part], x[part], s, p["gamma"], residual=z[part], where=where[part], **given
            )
            for part, (_, s) in zip(parts, whole, strict=True)
        )
    )
    gradients = [
        bncpu.batch_norm_backward(
            dy[part], x[part], s, p["gamma"], residual=z[part], where=where[part], sums=sums, **given
        )
        for part, (_, s) in zip(parts, whole, strict=True)
    ]
    assert_allclose(np.concatenate([some[0] for some in gradients]), dx, rtol=1e-8, atol=1e-8)
    assert_allclose(sums.dgamma, dgamma, rtol=1e-8, atol=1e-8)


def test_running_statistics_are_those_of_what_counts():
    x, _, _, _, where = case(9, (6, 3, 8), 1)
    rows = np.moveaxis(x, 1, -1)[where]
    mean, var = np.zeros(3), np.ones(3)
    bncpu.batch_norm_forward(x, where=where, running_mean=mean, running_var=var, momentum=0.75, ddof=1)
    assert_allclose(mean, 0.25 * rows.mean(axis=0), rtol=1e-12)
    assert_allclose(var, 0.75 + 0.25 * rows.var(axis=0, ddof=1), rtol=1e-12)


def test_running_statistics_of_instances_leave_out_samples_without_values():
    x, _, _, _, where = case(10, (4, 3, 8), 1)
    where[2] = False
    seen = [x[n][:, where[n]] for n in (0, 1, 3)]
    mean, var = np.zeros(3), np.zeros(3)
    bncpu.instance_norm(x, where=where, running_mean=mean, running_var=var, momentum=0.0, ddof=1)
    assert_allclose(mean, np.mean([s.mean(axis=1) for s in seen], axis=0), rtol=1e-12)
    assert_allclose(var, np.mean([s.var(axis=1, ddof=1) for s in seen], axis=0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_coefficients_beyond_float32_are_computed_in_float64(dtype):
    rng = np.random.default_rng(11)
    x, dy = (rng.normal(size=(40, 3, 6)).astype(dtype) for _ in range(2))
    x[:, 1] *= dtype(1e-3)
    where, gamma = rng.random((40, 6)) < 0.7, np.array([1.0, 1e-39, 2.0])
    _, saved = bncpu.batch_norm_forward(x, gamma, where=where)
    dx, dgamma, _ = bncpu.batch_norm_backward(dy, x, saved, gamma, where=where)
    wanted = _reference.batch_norm_backward(dy, x, saved, gamma, where=full(where, x, 1))
    assert_allclose(dgamma, wanted[1], rtol=1e-6, atol=1e-2)
    assert_allclose(dx, wanted[0], rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(wanted[0]).max())


@pytest.mark.parametrize(
    ("shape", "where", "same"),
    [
        ((4, 3, 6, 5), (4, 1, 1), (4, 6, 5)),
        ((4, 3, 6, 5), (6, 5), (4, 6, 5)),
        ((4, 3, 6, 5), (4, 1, 6, 5), (4, 6, 5)),
        ((4, 3, 6, 5), (1, 1, 1, 5), (4, 6, 5)),
        ((9, 3), (9,), (9,)),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_where_broadcasts(norm, shape, where, same):
    if norm != "batch" and len(shape) == 2:
        return
    x = np.random.default_rng(12).normal(size=shape)
    some = np.ones(where, bool)
    some.flat[0] = False
    called, p = Norm(f"{norm}_norm", *([3] if norm == "group" else [])), {"gamma": None, "beta": None}
    positions = np.broadcast_to(some[:, 0] if some.ndim == x.ndim else some, same)
    assert_array_equal(
        called.forward(bncpu, x, p, where=some)[0], called.forward(bncpu, x, p, where=np.array(positions))[0]
    )


@pytest.mark.parametrize("n_axes", [1, 2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layer_norm_leaves_out_single_values(n_axes, order):
    rng = np.random.default_rng(13)
    x, dy = (np.asarray(rng.normal(size=(5, 4, 6, 7)), order=order) for _ in range(2))
    where = rng.random(x.shape) < 0.6
    shape = x.shape[-n_axes:]
    p = {"gamma": rng.normal(size=shape), "beta": rng.normal(size=shape)}
    for name in ("layer_norm", "rms_norm"):
        called = Norm(name, shape)
        y, saved = called.forward(bncpu, x, p, where=where)
        assert_allclose(y, called.forward(_reference, x, p, where=where)[0], rtol=1e-11, atol=1e-11)
        ours = called.backward(bncpu, dy, x, saved, p, where=where)
        for a, b in zip(ours, called.backward(_reference, dy, x, saved, p, where=where), strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_backward_pass_with_another_where_is_refused():
    x, dy, _, p, where = case(14, (6, 4, 9), 1)
    other = where.copy()
    other[0, np.flatnonzero(~other[0])[0]] = True
    for norm in NORMS.values():
        called = norm(4)
        _, saved = called.forward(bncpu, x, p, channel_axis=1, where=where)
        for wrong in (None, other):
            if called.name.startswith(("layer", "rms")) and wrong is None:
                continue  # checked below: a position has all its values or none
            with pytest.raises(ValueError, match="same where"):
                called.backward(bncpu, dy, x, saved, p, channel_axis=1, where=wrong)
    _, saved = bncpu.layer_norm_forward(x, 4, channel_axis=1, where=where)
    with pytest.raises(ValueError, match="same where"):
        bncpu.layer_norm_backward(dy, x, saved, channel_axis=1)


@pytest.mark.parametrize(
    ("where", "error", "match"),
    [
        (np.ones((4, 6)), TypeError, "where must be boolean, True for values that count; got float64"),
        (np.ones((4, 6), int), TypeError, "where must be boolean"),
        (
            np.ones((4, 3, 6), bool),
            ValueError,
            r"where must broadcast to the shape of x, \(4, 3, 6\), without its axis 1",
        ),
        (np.ones((3, 6), bool), ValueError, r"without its axis 1; got \(3, 6\)"),
        (np.ones((2, 4, 1, 6), bool), ValueError, "where must broadcast"),
        (np.ma.masked_array(np.ones((4, 6), bool), False), TypeError, "where must be a NumPy array, got MaskedArray"),
        ("padding", TypeError, "where must be a NumPy array, got str"),
        ([[True], [True, False]], ValueError, "where must be an array of booleans"),
        (np.zeros((4, 6), bool), ValueError, "needs at least 2 values per channel, got 0"),
        (np.arange(24).reshape(4, 6) == 3, ValueError, "needs at least 2 values per channel, got 1"),
    ],
)
def test_bad_where_is_refused_by_name(where, error, match):
    x = np.zeros((4, 3, 6))
    mean, var = np.zeros(3), np.ones(3)
    with pytest.raises(error, match=match):
        bncpu.batch_norm_forward(x, where=where, running_mean=mean, running_var=var)
    assert_array_equal([mean, var], [np.zeros(3), np.ones(3)])


@pytest.mark.parametrize(("shape", "axes"), [((2, 3, 1), None), ((2, 1, 4, 5), 1), ((2, 3, 4, 1), None)])
def test_single_values_give_beta_whether_they_count_or_not(shape, axes):
    x, dy, _, _, _ = case(16, shape, -1)
    where = np.random.default_rng(17).random(shape) < 0.5
    for name, beta in (("layer_norm", [2.0]), ("rms_norm", None)):
        called, p = Norm(name, 1), {"gamma": np.array([3.0]), "beta": beta and np.array(beta)}
        y, saved = called.forward(bncpu, x, p, channel_axis=axes, where=where)
        expected = called.forward(_reference, x, p, channel_axis=axes, where=where)[0]
        assert_allclose(y, expected, atol=1e-12)
        dx, *_ = called.backward(bncpu, dy, x, saved, p, channel_axis=axes, where=where)
        wanted, *_ = called.backward(_reference, dy, x, saved, p, channel_axis=axes, where=where)
        assert_allclose(dx, wanted, atol=1e-9)


def test_another_where_of_as_many_values_is_refused():
    x, dy, _, p, where = case(18, (4, 6, 5), 1)
    where[:] = True
    other = where.copy()
    where[0, 0] = other[1, 1] = False
    for norm in NORMS.values():
        called = norm(6)
        _, saved = called.forward(bncpu, x, p, channel_axis=1, where=where)
        with pytest.raises(ValueError, match="the same where"):
            called.backward(bncpu, dy, x, saved, p, channel_axis=1, where=other)
        called.backward(bncpu, dy, x, saved, p, channel_axis=1, where=where.tolist())


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4)])
def test_where_of_nothing_gives_nothing(shape):
    x, where = np.zeros(shape), np.ones((shape[0], *shape[2:]), bool)
    for norm in NORMS.values():
        called = norm(4)
        assert called.forward(bncpu, x, {"gamma": None, "beta": None}, channel_axis=1, where=where)[0].shape == shape


def test_an_instance_of_one_value_is_refused():
    with pytest.raises(ValueError, match="needs at least 2 values per channel of a sample, got 1"):
        bncpu.instance_norm(np.zeros((2, 3, 4)), where=np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool))


def test_where_of_several_normalized_axes_has_all_of_them():
    with pytest.raises(ValueError, match=r"where must broadcast to the shape of x, \(4, 3, 6\); got \(4, 6\)"):
        bncpu.layer_norm(np.zeros((4, 3, 6)), (3, 6), where=np.ones((4, 6), bool))


# ---- the transformer: weights of positions ----


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_weights_of_positions_weigh_each_value(axis, order, dtype):
    rng = np.random.default_rng(20)
    X = np.asarray(rng.integers(0, 200, (6, 5, 7, 4)).astype(dtype), order=order)
    weights = rng.integers(0, 3, np.delete(X.shape, axis)).astype(float)
    bn = bncpu.BatchNormTransformer(channel_axis=axis).fit(X, sample_weight=weights)
    rows = np.repeat(np.moveaxis(X, axis, -1).reshape(-1, X.shape[axis]), weights.astype(int).ravel(), axis=0)
    plain = bncpu.BatchNormTransformer().fit(rows)
    assert_allclose(bn.running_mean_, plain.running_mean_, rtol=1e-12)
    assert_allclose(bn.running_var_, plain.running_var_, rtol=1e-12)
    assert bn.n_samples_seen_ == plain.n_samples_seen_ == weights.sum()


def test_positions_of_weight_0_are_those_that_do_not_count():
    x, _, _, _, where = case(21, (6, 3, 8), 1)
    bn = bncpu.BatchNormTransformer(channel_axis=1)
    bn.partial_fit(x[:2], sample_weight=where[:2]).partial_fit(x[2:], sample_weight=where[2:])
    moments = bncpu.batch_norm_moments(x, where=where)
    assert_allclose(bn.running_mean_, moments.mean, rtol=1e-12)
    assert_allclose(bn.running_var_, moments.m2 / moments.count, rtol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_weights_of_positions_in_a_stream(missing):
    """With halflife and momentum, against the definitions; NaN is left out as ever."""
    rng = np.random.default_rng(22)
    X, weights = rng.normal(size=(7, 2, 5)), rng.random((7, 5))
    X[3, 1, 2] = np.nan if missing else 1.0
    age = 0.5 ** ((6 - np.arange(7.0)) / 2)
    for kind in ({"halflife": 2}, {"momentum": 0.75}):
        bn = bncpu.BatchNormTransformer(channel_axis=1, **kind)
        bn.partial_fit(X[:3], sample_weight=weights[:3]).partial_fit(X[3:], sample_weight=weights[3:])
        for c in range(2):
            w, values = np.where(np.isnan(X[:, c]), 0.0, weights), np.nan_to_num(X[:, c])
            if "halflife" in kind:
                mean = np.average(values, weights=w * age[:, None])
                var = np.average((values - mean) ** 2, weights=w * age[:, None])
            else:
                some = [np.average(values[part], weights=w[part]) for part in (slice(3), slice(3, 7))]
                spread = [
                    np.average((values[part] - m) ** 2, weights=w[part])
                    for part, m in zip((slice(3), slice(3, 7)), some, strict=True)
                ]
                each = np.array([0.75, 1.0]) * 0.25 / (1 - 0.75**2)
                mean, var = each @ some, each @ spread
            assert_allclose([bn.running_mean_[c], bn.running_var_[c]], [mean, var], rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((4, 6), r"for each of 4 samples, or for each of their positions, \(4, 5\); got shape \(4, 6\)"),
        ((4, 3, 5), r"got shape \(4, 3, 5\)"),
        ((20,), "sample_weight.shape"),
    ],
)
def test_weights_of_another_shape_are_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        bncpu.BatchNormTransformer(channel_axis=1).fit(np.ones((4, 3, 5)), sample_weight=np.ones(shape))


def test_weights_of_positions_are_refused_where_they_cannot_be():
    X = np.random.default_rng(23).normal(size=(4, 3, 5))
    with pytest.raises(ValueError, match="with window, sample_weight must have one weight per sample"):
        bncpu.BatchNormTransformer(channel_axis=1, window=3).partial_fit(X, sample_weight=np.ones((4, 5)))
    with pytest.raises(ValueError, match="1D"):
        bncpu.BatchNormTransformer().fit(X[:, :, 0], sample_weight=np.ones((4, 1)))
    with pytest.raises(ValueError, match="non-zero"):
        bncpu.BatchNormTransformer(channel_axis=1).fit(X, sample_weight=np.zeros((4, 5)))
    with pytest.raises(ValueError, match="egative"):
        bncpu.BatchNormTransformer(channel_axis=1).fit(X, sample_weight=-np.ones((4, 5)))


def test_a_report_takes_weights_of_positions():
    X = np.random.default_rng(24).normal(size=(40, 2, 30))
    weights = np.ones((40, 30))
    weights[:, 20:] = 0
    bn = bncpu.BatchNormTransformer(channel_axis=1).fit(X)
    report = bn.report(X, sample_weight=weights)
    assert_allclose(report.columns["shift"], bn.report(X[:, :, :20]).columns["shift"], atol=1e-12)


@pytest.mark.parametrize(
    "where",
    [np.zeros(7, "M8[s]"), np.ones(7), np.ones(7, object), "all", 1],
    ids=["dates", "numbers", "objects", "text", "number"],
)
def test_a_backward_pass_names_what_is_no_where(where):
    x = np.arange(35.0).reshape(7, 5)
    _, saved = bncpu.batch_norm_forward(x)
    with pytest.raises(TypeError, match=r"^where must be"):
        bncpu.batch_norm_backward(x, x, saved, where=where)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_what_does_not_count_may_be_too_large_to_be_normalized(activation):
    x = np.array([[1e-40, 1.25, -0.5, 1e30]], np.float32)
    dy, where = np.full_like(x, -1e20), np.array([[True, False, False, False]])
    _, saved = bncpu.rms_norm_forward(x, 4, np.zeros(4), eps=0, where=where, activation=activation)
    dx, _ = bncpu.rms_norm_backward(dy, x, saved, np.zeros(4), where=where, activation=activation)
    assert_array_equal(dx, 0)
    for norm in (bncpu.rms_norm_forward, bncpu.layer_norm_forward):
        counts = where | (np.arange(4) == 1) & (norm is bncpu.layer_norm_forward)
        values = np.where(counts, x * np.float32(1e-40), x) if counts.sum() > 1 else x
        for gamma in (np.zeros(4), np.full(4, 1e-36)):
            wide = norm(values.astype(float), 4, gamma, eps=0, where=counts, residual=x.astype(float))[0]
            assert_allclose(norm(values, 4, gamma, eps=0, where=counts, residual=x)[0], wide, rtol=1e-6)


@pytest.mark.parametrize("name", ["dy", "x", "residual"])
def test_gradients_may_take_the_place_of_anything_though_a_value_that_counts_is_nan(name):
    """Sums that are no numbers are made again, so nothing may have been written by then."""
    rng = np.random.default_rng(0)
    x, dy, z = rng.standard_normal((3, 15, 15, 90)).astype(np.float32)
    x[0, 0, 0] = np.nan
    common = {"activation": "relu", "where": np.ones((15, 90), bool)}
    _, saved = bncpu.batch_norm_forward(x, residual=z, **common)
    expected = bncpu.batch_norm_backward(dy, x, saved, residual=z, **common)
    arrays = {"dy": dy.copy(), "x": x.copy(), "residual": z.copy()}
    got = bncpu.batch_norm_backward(**arrays, saved=saved, out=arrays[name], **common)
    for a, b in zip(got, expected, strict=True):
        assert_array_equal(a, b)
