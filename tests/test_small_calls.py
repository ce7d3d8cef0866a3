"""Plain arrays take a short way, of the transformer small ones; it gives the bits and errors of the long one."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from arrays import DTYPES, GOOD, LAYOUTS, MODES, WITHOUT_ROWS, hostile_columns, named, normal, same_bits, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context

from bncpu import (
    BatchNormTransformer,
    SavedStatistics,
    _kernels,
    _passes,
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
)


@contextmanager
def long_way():
    """Every call takes the long way."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("apply_plain", "update_plain", "normalize_plain", "forward_plain", "backward_plain"):
            patch.setattr(_kernels, name, lambda *_: None)
        yield


@contextmanager
def short_way(transform=True, partial_fit=True):
    """A call that takes the long way fails."""

    def refuse(*_, **__):
        raise AssertionError("this call took the long way")

    with pytest.MonkeyPatch.context() as patch:
        if transform:
            patch.setattr(BatchNormTransformer, "_apply", refuse)
        if partial_fit:
            patch.setattr(BatchNormTransformer, "_fit", refuse)
        yield


def outcome(call, *arguments):
    """The result, or the error, of a call."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error), str(error)


def content(value):
    """An attribute, or all of a transformer, to the bit; pickles also show which equal objects are one."""
    if isinstance(value, BatchNormTransformer):
        return [(name, content(attribute)) for name, attribute in vars(value).items()]
    if isinstance(value, tuple):
        return [content(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist() if value.dtype == object else value.tobytes()
    return type(value), value


def assert_both_ways_agree(parameters, batches, weights=None):
    """Both ways learn the same from each batch, refuse the same, and transform all of them to the same bits."""
    short = BatchNormTransformer(**parameters).partial_fit(batches[0])
    long = pickle.loads(pickle.dumps(short))
    for X, w in zip(batches[1:], weights or [None] * len(batches), strict=False):
        got = outcome(short.partial_fit, X, None, w)
        with long_way():
            expected = outcome(long.partial_fit, X, None, w)
        assert got is short if expected is long else got == expected
        assert content(short) == content(long)
    for X in batches:
        got = outcome(short.transform, X)
        with long_way():
            expected = outcome(short.transform, X)
        assert same_bits(got, expected) if isinstance(expected, np.ndarray) else got == expected
    assert content(short) == content(long)


VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape) + 3,
    "far": lambda rng, shape: rng.standard_normal(shape) + 1e6,
    "constant": lambda rng, shape: np.full(shape, 1e8 / 3),
    "integers": lambda rng, shape: rng.integers(-2, 3, shape),
    "denormal": lambda rng, shape: rng.standard_normal(shape) * 1e-40,
    "tiny": lambda rng, shape: rng.standard_normal(shape) * 1e-300,
    "huge": lambda rng, shape: rng.standard_normal(shape) * 1e36,
    "overflowing": lambda rng, shape: rng.standard_normal(shape) * 1e160,
}


def stream(seed):
    """Parameters, and batches of one width."""
    rng = np.random.default_rng(seed)

    def one_of(*values):
        return values[rng.integers(len(values))]

    width = one_of(*range(1, 30), *rng.integers(1, 601, 10))
    parameters = {
        "eps": one_of(0.0, 0, 1e-5, 2),
        "ddof": one_of(0, 0, 1, 2.5),
        "with_mean": one_of(True, False),
        "with_std": one_of(True, False),
        "gamma": one_of(None, rng.standard_normal(width)),
        "beta": one_of(None, rng.standard_normal(width), [0.5] * width),
        **MODES[one_of(*MODES)],
    }
    batches = [normal(1, (7, width))]
    for n in rng.integers(1, one_of(5, 201), 4):
        X = VALUES[one_of(*VALUES)](rng, (n, width)).astype(float)
        X[rng.random(X.shape) < one_of(0, 0, 0.1, 0.9)] = np.nan
        if one_of(True, *[False] * 5):
            X[rng.integers(n), rng.integers(width)] = one_of(np.inf, -np.inf)
        with np.errstate(over="ignore", under="ignore"):
            batches.append(X.astype(one_of(*DTYPES)))
    return parameters, batches


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_both_ways_give_the_same_bits_state_and_errors(seed):
    assert_both_ways_agree(*stream(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (65, 1), (5, 2), (1, 10), (32, 10), (3, 511), (2, 1200), (6553, 10)])
def test_both_ways_agree_in_every_variant(shape, mode, dtype, isa):
    first, then = normal(2, (5, shape[1]), mean=1.0), normal(3, shape, mean=1e3).astype(dtype)
    then[0, 0] = 1e9  # the value all others are summed about
    assert_both_ways_agree(MODES[mode], [first, then, then])


WEIGHTS = {
    "positive": lambda rng, n: rng.random(n) + 0.1,
    "some 0": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "all 0": lambda rng, n: np.zeros(n),
    "minus 0": lambda rng, n: np.r_[-0.0, np.ones(n - 1)],
    "negative": lambda rng, n: np.r_[np.ones(n - 1), -1e-300],
    "NaN": lambda rng, n: np.r_[np.nan, np.ones(n - 1)],
    "infinite": lambda rng, n: np.r_[np.ones(n - 1), np.inf],
    "overflowing": lambda rng, n: np.full(n, 1e308),
    "float32": lambda rng, n: rng.random(n).astype(np.float32),
    "integers": lambda rng, n: rng.integers(1, 5, n),
    "a list": lambda rng, n: [1.0] * n,
    "one number": lambda rng, n: 2.0,
    "too few": lambda rng, n: np.ones(n - 1),
    "2-D": lambda rng, n: np.ones((n, 1)),
    "strided": lambda rng, n: rng.random((n, 2))[:, 0],
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_learned_or_refused_as_ever(mode, kind):
    rng = np.random.default_rng(9)
    X, holed = normal(5, (3, 60, 3)), GOOD.copy()
    holed[4, 1] = np.nan
    batches = [GOOD, *X, holed, GOOD, X[0] * 1e300]
    assert_both_ways_agree(MODES[mode], batches, [WEIGHTS[kind](rng, len(b)) for b in batches[1:]])


def test_weights_take_the_short_way():
    bn, w = BatchNormTransformer().fit(GOOD), np.full(20, 0.5)
    with short_way():
        bn.partial_fit(GOOD, sample_weight=w).partial_fit(GOOD, sample_weight=w)
    assert bn.n_samples_seen_ == 40.0 and type(bn.n_samples_seen_) is float


@pytest.mark.parametrize("mode", MODES)
def test_hostile_columns_agree(mode):
    for dtype in DTYPES:
        _, X = hostile_columns(400, dtype)
        assert_both_ways_agree({"gamma": np.arange(1.0, 10), **MODES[mode]}, np.split(X, 4))


FITTED_DATA = {
    "numbers": GOOD,
    "of 32 bits": GOOD.astype("f4"),
    "bytes": (GOOD * 9).astype("i1"),
    "one row": GOOD[:1],
    "two rows": GOOD[:2],
    "one column": GOOD[:, :1].copy(),
    "missing": np.where(GOOD > 1, np.nan, GOOD),
    "all missing": np.full((3, 3), np.nan),
    "infinite": np.where(GOOD > 1, np.inf, GOOD),
    "overflowing": GOOD * 1e200,
    "no rows": GOOD[:0],
    "no columns": GOOD[:, :0],
    "one axis": GOOD[0],
    "three axes": GOOD.reshape(5, 4, 3),
    "strided": GOOD[::2],
    "names": None,
    "a list": GOOD.tolist(),
    "text": np.array([["1", "2"]]),
}


@pytest.mark.parametrize("kind", FITTED_DATA)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        *MODES.values(),
        {"channel_axis": -1},
        {"momentum": 0.9, "channel_axis": 1},
        {"gamma": [1.0, 2.0, 3.0], "ddof": 1},
        {"batch_size": 7},
        {"eps": -1},
        {"halflife": 3, "dtype": np.float32},
    ],
    ids=str,
)
def test_fit_learns_or_refuses_as_ever(parameters, weighted, kind):
    X = named() if kind == "names" else FITTED_DATA[kind]
    w = np.arange(len(X)) + 0.5 if weighted else None
    for before in (
        BatchNormTransformer(),
        BatchNormTransformer().fit(named()),
        BatchNormTransformer().fit(GOOD[:9, :2]),
    ):
        short, long = (pickle.loads(pickle.dumps(before)).set_params(**parameters) for _ in range(2))
        got = outcome(short.fit, X, None, w)
        with long_way():
            expected = outcome(long.fit, X, None, w)
        assert got is short if expected is long else got == expected
        assert content(short) == content(long)


def test_fit_takes_the_short_way():
    with short_way():
        for parameters in ({}, {"momentum": 0.9}, {"halflife": 3}, {"channel_axis": -1}):
            bn = BatchNormTransformer(**parameters).fit(GOOD)
        assert bn.fit(GOOD[:5], sample_weight=np.ones(5)).n_samples_seen_ == 5.0


# ---- the short way is taken ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"momentum": 0.9, "eps": 1e-5},
        {"halflife": 50.0, "dtype": np.float32},
        {"ddof": 1, "n_threads": 2, "batch_size": 7, "eps": np.float64(1e-3)},
        {"with_mean": False},
        {"gamma": np.ones(3), "beta": np.arange(3.0)},
    ],
)
def test_plain_small_arrays_take_the_short_way(parameters, dtype):
    bn = BatchNormTransformer(**parameters).fit(GOOD)
    for again in (bn, pickle.loads(pickle.dumps(bn)), copy.deepcopy(bn)):
        with short_way():
            again.partial_fit(GOOD.astype(dtype)).transform(GOOD.astype(dtype), copy=True)
            again.transform(pickle.loads(pickle.dumps(GOOD.astype(dtype)[:1])))
            again.partial_fit(LAYOUTS["read-only"](GOOD))
        assert again.n_samples_seen_ == 60


def test_a_transformer_that_was_merged_loaded_or_known_takes_the_short_way(tmp_path):
    bn = BatchNormTransformer(eps=1e-3, gamma=[1, 2, 3]).fit(GOOD)
    bn.save(tmp_path / "bn.json")
    known = BatchNormTransformer.from_statistics([0.0] * 3, [1.0] * 3, 10)
    for other in (BatchNormTransformer.load(tmp_path / "bn.json"), known, BatchNormTransformer().fit(GOOD).merge(bn)):
        with short_way():
            other.partial_fit(GOOD).transform(GOOD)


def test_missing_values_and_counts_per_feature_take_the_short_way():
    X = GOOD.copy()
    X[3, 1] = np.nan
    bn = BatchNormTransformer().fit(X)
    with short_way():
        bn.partial_fit(X).partial_fit(GOOD)
        assert np.isnan(bn.transform(X)[3, 1])
    assert list(bn.n_samples_seen_) == [60, 58, 60]


# ---- the long way is taken ----


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(lambda X, lay=lay: lay(X), id=name) for name, lay in LAYOUTS.items()),
        pytest.param(lambda X: X.astype(">f8"), id="byte-swapped"),
        *(pytest.param(lambda X, t=t: X.astype(t), id=t) for t in ("f2", "?", "u1", "i2", "i4", "u8", "i8", "g")),
        pytest.param(lambda X: X.tolist(), id="list"),
        pytest.param(lambda X: X.view(np.recarray), id="subclass"),
        pytest.param(lambda X: np.ma.array(X, mask=X > 0), id="masked"),
        pytest.param(lambda X: X[:, :2], id="narrow"),
        pytest.param(lambda X: X[0], id="1-D"),
        pytest.param(lambda X: X[:0], id="empty"),
        pytest.param(lambda X: X[None], id="3-D"),
        pytest.param(lambda X: np.tile(X, (2000, 1)), id="large"),
        pytest.param(lambda X: None, id="None"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_anything_else_is_learned_transformed_or_refused_as_ever(make, mode):
    assert_both_ways_agree(MODES[mode], [GOOD, make(GOOD), make(GOOD + 1)])


def test_what_has_more_to_do_than_numbers_takes_the_long_way():
    bn = BatchNormTransformer().fit(GOOD)
    X, y = GOOD.copy(), bn.transform(GOOD)
    assert bn.transform(X, copy=False) is not None
    np.testing.assert_array_equal(X, y)
    assert same_bits(bn.transform(GOOD, out=X), y)
    assert bn.set_params(copy=False).transform(X) is X
    by_axis = BatchNormTransformer(channel_axis=0).fit(GOOD.T)
    assert same_bits(by_axis.transform(GOOD.T[:, :3].copy()), np.ascontiguousarray(y[:3].T))
    assert same_bits(by_axis.partial_fit(GOOD.T.copy()).running_mean_, by_axis.running_mean_)
    weighted = BatchNormTransformer().fit(GOOD).partial_fit(GOOD, sample_weight=np.zeros(20) + 2)
    assert weighted.n_samples_seen_ == 60.0


def test_large_counts_become_floats_as_ever():
    assert_both_ways_agree({}, [GOOD] * 3)
    bn = BatchNormTransformer.from_statistics([1.0], [1.0], 2**53 - 1)
    assert isinstance(bn.n_samples_seen_, int)
    assert bn.partial_fit(GOOD[:, :1].copy()).n_samples_seen_ == 2.0**53 + 20
    assert isinstance(bn.n_samples_seen_, float)


@pytest.mark.parametrize(
    "change",
    [
        *({"eps": v} for v in (-1.0, 1, True, np.float32(0.5), "1", None, np.ones(1), float("nan"))),
        *({"ddof": v} for v in (1, -1, None, [0])),
        *({"n_threads": v} for v in (0, 2, True, 1.0, np.int64(1))),
        *({"batch_size": v} for v in (0, 5, "5")),
        *({"copy": v} for v in (0, None, np.True_, False)),
        *({name: v} for name in ("with_mean", "with_std") for v in (False, 0, None, np.True_)),
        *({"gamma": v} for v in (None, [1, 2, 3], np.ones(2), np.full(3, np.nan), np.ones(3, "f4"), np.ones(6)[::2])),
        *({"momentum": v} for v in (0.9, 1.5, 0)),
        {"halflife": 3},
        {"channel_axis": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_changed_parameters_act_and_are_refused_as_ever(change, mode):
    short = BatchNormTransformer(**{"gamma": np.arange(3.0) + 1, **MODES[mode]}).fit(GOOD)
    long = pickle.loads(pickle.dumps(short))
    for bn in (short, long):
        bn.set_params(**change)
    for X in (GOOD, GOOD[:7]):
        for name in ("transform", "partial_fit", "transform"):
            got = outcome(getattr(short, name), X.copy())
            with long_way():
                expected = outcome(getattr(long, name), X.copy())
            assert same_bits(got, expected) if isinstance(expected, np.ndarray) else got is short or got == expected
            assert content(short) == content(long)


def test_gamma_changed_in_place_acts_at_the_next_partial_fit():
    gamma = np.ones(3)
    bn, plain = BatchNormTransformer(gamma=gamma).fit(GOOD), BatchNormTransformer().fit(GOOD)
    gamma *= 2
    assert same_bits(bn.transform(GOOD), plain.transform(GOOD))
    assert same_bits(bn.partial_fit(GOOD).transform(GOOD), 2 * plain.partial_fit(GOOD).transform(GOOD))
    with short_way():
        bn.partial_fit(GOOD)
    gamma[1] = np.inf
    before = pickle.dumps(bn)
    with pytest.raises(ValueError, match="gamma must be finite, got inf"):
        bn.partial_fit(GOOD)
    assert pickle.dumps(bn) == before


def test_a_subclass_may_compute_its_parameters():
    class Always(BatchNormTransformer):
        copy = property(lambda self: True, lambda self, value: None)
        eps = property(lambda self: 1.0, lambda self, value: None)

    bn = Always().fit(GOOD).partial_fit(GOOD)
    expected = BatchNormTransformer(eps=1.0).fit(GOOD).partial_fit(GOOD)
    assert same_bits(bn.transform(GOOD), expected.transform(GOOD))


def test_whoever_transforms_meanwhile_sees_the_state_before_or_after_a_batch():
    bn = BatchNormTransformer().fit(np.zeros((4, 3)))

    def read(_):
        return all(np.ptp(bn.transform(np.zeros((1, 3)))) == 0 for _ in range(2000))

    with ThreadPoolExecutor(2) as readers:
        equal = readers.map(read, range(2))
        for k in range(2000):
            bn.partial_fit(np.full((2, 3), float(k)))
        assert all(equal)
    assert bn.n_samples_seen_ == 4004


# ---- the functions ----

# Rows, one row, planes, planes shorter than a register, positions of length 1, one channel, more channels than a tile.
SHAPES = [(32, 10), (2, 3), (1, 4), (300, 7), (5, 512), (3, 513), (4, 3, 5, 5), (1, 6, 7), (9, 2, 3), (6, 2, 1, 1),
          (9, 1, 4), (70, 1), (1, 2, 40_000), (700, 100)]  # fmt: skip

# Several blocks or tasks: of rows, of one channel, of planes whose steps are one and apart; stored past the cache.
LARGE = [(70_001, 3), (2000, 513), (140_000, 1), (3, 1, 90_001), (40, 6, 56, 56),
         *slow((300, 8, 32, 32), (33, 128, 19, 53))]  # fmt: skip


def all_of(result):
    """Every array of a result, and what `saved` remembers beside them."""
    arrays = []
    for item in result if isinstance(result, tuple) else [result]:
        rest = [np.asarray(item.mean_lo), item.count, item.kind, item.call] if isinstance(item, SavedStatistics) else []
        arrays += [*item, *rest] if rest else [item]
    return [item.tobytes() if isinstance(item, np.ndarray) else item for item in arrays]


def counting(shape, axis=1):
    """All positions count, and some do; of an array of this shape."""
    return [None, np.random.default_rng(9).random([n for k, n in enumerate(shape) if k != axis % len(shape)]) < 0.7]


def functions(x, dy, gamma, beta, activation, in_place, where=None, **threads):
    """What the three functions make of the same arrays; `in_place` writes each result over its input."""

    def call(function, first, *rest, **options):
        first = first.copy()
        result = outcome(lambda: function(first, *rest, **options, out=first if in_place else None))
        return [all_of(result), first.tobytes()]

    n = x.shape[1]
    mean, var = np.linspace(-1, 1, n), np.linspace(0, 2, n)
    done = [call(batch_norm, x, mean, var, gamma, beta, activation=activation, **threads)]
    done += [call(batch_norm_forward, x, gamma, beta, activation=activation, where=where, **threads)]
    saved = SavedStatistics.from_variance(mean, var)._replace(kind=None)
    as_before = {"activation": activation, "beta": beta if activation else None, "where": where, **threads}
    done += [call(batch_norm_backward, dy, x, saved, gamma, **as_before)]
    try:
        _, saved = batch_norm_forward(x, gamma, beta, activation=activation, where=where)
    except ValueError:  # one value per channel
        return done
    return [*done, call(batch_norm_backward, dy, x, saved, gamma, **as_before)]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_ways_of_the_functions_give_the_same_bits(shape, dtype, activation, in_place, isa):
    x, dy = normal(1, (2, *shape), mean=3.0, dtype=dtype)
    n = shape[1]
    for gamma, beta in ((None, None), (np.linspace(-1, 2, n), np.linspace(0, 1, n)), (np.full(n, 1e39), None)):
        for where in counting(shape):
            arguments = x, dy, gamma, beta, activation, in_place, where
            short = functions(*arguments)
            with long_way():
                assert short == functions(*arguments)


@pytest.mark.parametrize("n_threads", [2, *slow(1)])
@pytest.mark.parametrize("in_place", [False, *slow(True)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_both_ways_give_the_same_bits_of_large_arrays(shape, dtype, in_place, n_threads):
    x, dy = normal(1, (2, *shape), mean=3.0, dtype=dtype)
    n = shape[1]
    beyond = np.linspace(-1, 2, n)
    beyond[n // 2] = 1e39  # what float32 cannot hold: that channel is left to the long way
    for gamma, beta, activation in (
        (None, None, None),
        (np.linspace(-1, 2, n), np.ones(n), "relu"),
        (beyond, None, None),
    ):
        for where in counting(shape):
            arguments = x, dy, gamma, beta, activation, in_place, where
            short = functions(*arguments, n_threads=n_threads)
            with long_way():
                assert short == functions(*arguments, n_threads=n_threads)


OUTS = {
    "another": lambda x: np.empty_like(x),
    "itself": lambda x: x,
    "overlapping": lambda x: np.lib.stride_tricks.as_strided(x[1:], x.shape, x.strides),
    "not packed": lambda x: np.empty((len(x), 2 * x.shape[1]), x.dtype)[:, ::2],
    "another dtype": lambda x: np.empty(x.shape, np.float32 if x.dtype == np.float64 else np.float64),
    "another shape": lambda x: np.empty(x.shape[::-1], x.dtype),
    "a list": lambda x: x.tolist(),
    "read-only": lambda x: LAYOUTS["read-only"](x),
}


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3), (50, 1), (60, 7), (20_000, 7), (3000, 600)], ids=str)
@pytest.mark.parametrize("out", OUTS)
def test_both_ways_of_transform_fill_and_refuse_the_same_out(out, shape, dtype, value):
    memory = normal(4, (shape[0] + 1, shape[1]), mean=3.0, dtype=dtype)
    bn = BatchNormTransformer(gamma=np.linspace(1, 2, shape[1])).fit(memory)
    memory[shape[0] // 2, -1] = value

    def call():
        x = memory.copy()[:-1]
        y = OUTS[out](x)
        got = outcome(lambda: bn.transform(x, out=y))
        if isinstance(got, np.ndarray):
            assert got is y
            return content(got)
        return got

    short = call()
    with long_way():
        assert short == call()


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
@pytest.mark.parametrize("shape", [(20_000, 7), (200_000, 32), (100_000, 1), (300, 600)], ids=str)
def test_plain_arrays_of_any_size_take_the_short_way(shape, mode):
    x = normal(5, shape, mean=3.0, dtype=np.float32)
    if mode != "halflife":  # which has to count gaps apart
        x[5, 0] = np.nan
    bn = BatchNormTransformer(**MODES[mode]).partial_fit(x)
    other = pickle.loads(pickle.dumps(bn))
    with short_way():
        bn.partial_fit(x[::-1].copy())
        bn.transform(x)
        bn.transform(x, out=np.empty_like(x))
    with long_way():
        other.partial_fit(x[::-1].copy())
    assert content(bn) == content(other)


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.parametrize("axis", [1, -1, 2, 3, 0])
@pytest.mark.parametrize("shape", [(6, 5, 4, 5), (1, 5, 5, 5), (7, 1, 3, 1), (5, 5, 1), (9, 5), (5, 5)], ids=str)
def test_channels_on_any_axis_are_learned_and_transformed_as_ever(shape, axis, dtype):
    if axis >= len(shape):
        axis = len(shape) - 1
    batches = [normal(seed, shape, mean=9.0, std=2.0).astype(dtype) for seed in range(4)]
    for mode in MODES.values():
        assert_both_ways_agree({"channel_axis": axis, **mode}, batches)
        assert_both_ways_agree({"channel_axis": axis, "dtype": np.float32, **mode}, batches)


@pytest.mark.parametrize("axis", [1, -1, 3])
def test_images_take_the_short_way(axis):
    X = normal(7, (6, 4, 5, 4), mean=9.0).astype(np.uint8)
    bn = BatchNormTransformer(channel_axis=axis, dtype=np.float32).fit(X)
    with short_way():
        y = bn.partial_fit(X).transform(X)
        assert bn.transform(X, out=np.empty_like(y)).dtype == np.float32
    assert bn.n_samples_seen_ == 2 * 6 * 4 * 5
    for other in (X[:, :, :, :3], X[:, :3], X[0], X[0, 0, 0]):
        assert_both_ways_agree({"channel_axis": axis}, [X, other])
    with pytest.raises(ValueError, match="with channel_axis the result is an array"):
        bn.set_output(transform="pandas").transform(X)


def test_out_with_set_output_is_refused_as_ever():
    x = normal(6, (60, 7))
    bn = BatchNormTransformer().fit(x)
    with config_context(transform_output="pandas"), pytest.raises(ValueError, match="out is only for NumPy output"):
        bn.transform(x, out=x)
    with pytest.raises(ValueError, match="out is only for NumPy output"):
        bn.set_output(transform="pandas").transform(x, out=x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1e-42], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_values_go_the_same_way_through_the_functions(dtype, activation, value):
    x, dy = normal(2, (2, 20, 5), dtype=dtype)
    x[3, 1] = dy[4, 2] = value
    x[:, 4] = 7
    short = functions(x, dy, None, None, activation, False)
    with long_way():
        assert short == functions(x, dy, None, None, activation, False)


@pytest.mark.parametrize("shape", [(50_000, 10), (32, 10, 56, 56), (256, 10, 64, 64)], ids=str)
def test_large_plain_arrays_take_the_short_way_of_the_functions(shape, monkeypatch):
    x = normal(3, shape, dtype=np.float32)
    monkeypatch.setattr(_passes.Part, "_forms", None)
    for relu in (None, "relu"):
        _, saved = batch_norm_forward(x, np.ones(10), activation=relu, n_threads=1)
        batch_norm_backward(x, x, saved, np.ones(10), activation=relu, n_threads=1)
    batch_norm(x, np.zeros(10), np.ones(10), activation="relu", out=x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [None, "relu"])
@pytest.mark.parametrize("where", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 4, 7), (1, 5, 5, 5), (40, 9), (7, 3, 1), (70, 50, 30, 3)], ids=str)
def test_channels_last_go_the_same_way_through_the_functions(shape, where, relu, dtype):
    x, dy = normal(8, (2, *shape), mean=3.0, dtype=dtype)
    one = np.arange(1.0, shape[-1] + 1)

    def call():
        last = {"channel_axis": -1, "where": counting(shape, -1)[where]}
        y, saved = batch_norm_forward(x, one, one, activation=relu, **last)
        some = [
            batch_norm(x, one, one, activation=relu, channel_axis=-1),
            y,
            saved.mean,
            saved.invstd,
            saved.mean_lo,
            saved.count,
            saved.call,
        ]
        return all_of(
            (*some, *batch_norm_backward(dy, x, saved, one, beta=one if relu else None, activation=relu, **last))
        )

    short = call()
    with long_way():
        assert short == call()


def test_channels_last_take_the_short_way_of_the_functions(monkeypatch):
    x, one = normal(3, (8, 6, 6, 10)), np.ones(10)
    monkeypatch.setattr(_passes.Part, "_forms", None)
    for where in counting(x.shape, -1):
        _, saved = batch_norm_forward(x, one, where=where, channel_axis=-1)
        batch_norm_backward(x, x, saved, one, where=where, channel_axis=-1)
    batch_norm(x, one, one, channel_axis=-1, out=x)


def test_small_plain_arrays_take_the_short_way_of_the_functions(monkeypatch):
    x = normal(3, (32, 10))
    monkeypatch.setattr(_passes.Part, "_forms", None)
    for where in counting(x.shape):
        _, saved = batch_norm_forward(x, np.ones(10), where=where, out=np.empty_like(x))
        batch_norm_backward(x, x, saved, np.ones(10), where=where)
    batch_norm(x, np.zeros(10), np.ones(10), activation="relu", n_threads=1)
    single = np.ones(10, np.float32)
    _, saved = batch_norm_forward(x.astype(np.float32), single, single, eps=0, n_threads=2)
    batch_norm_backward(x, x, saved, single)
    batch_norm(x, single, single, single, single)
    with pytest.raises(TypeError, match="NoneType"):
        batch_norm(x, np.zeros(10), np.ones(10), residual=x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("shape", [(40, 6), (5, 6, 8, 8)], ids=str)
def test_what_does_not_count_may_be_anything_as_ever(shape, value, dtype):
    x, dy = normal(3, (2, *shape), dtype=dtype)
    where = counting(shape)[1]
    np.moveaxis(x, 1, -1)[~where] = value

    def call(dy):
        y, saved = batch_norm_forward(x, where=where)
        return [all_of((y, saved)), all_of(outcome(lambda: batch_norm_backward(dy, x, saved, where=where)))]

    for gradient in (dy, np.where(np.expand_dims(where, 1), dy, dtype(0))):
        short = call(gradient)
        with long_way():
            assert short == call(gradient)


def other_arguments():
    """Arguments that the short way leaves to the long one, good and bad."""
    x = normal(4, (20, 6))
    memory = np.zeros(200)
    frozen = x.copy()
    frozen.flags.writeable = False
    shifted = memory[10:130].reshape(20, 6)
    shifted[...] = x
    return {
        "negative variance": dict(var=-np.ones(6)),
        "variance of another length": dict(var=np.ones(5)),
        "no mean": dict(mean=None),
        "mean as a list": dict(mean=[0.0] * 6),
        "float32 gamma": dict(gamma=np.ones(6, np.float32)),
        "gamma of another shape": dict(gamma=np.ones((6, 1))),
        "strided gamma": dict(gamma=np.ones(12)[::2]),
        "negative eps": dict(eps=-1.0),
        "eps that is not a number": dict(eps=np.nan),
        "infinite eps": dict(eps=np.inf),
        "integer eps": dict(eps=1),
        "eps as a truth value": dict(eps=False),
        "threads as a truth value": dict(n_threads=True),
        "read-only out": dict(out=frozen),
        "out of another shape": dict(out=np.empty((6, 20))),
        "out of another dtype": dict(out=np.empty((20, 6), np.float32)),
        "out as a list": dict(out=[]),
        "out in Fortran order": dict(out=np.empty((20, 6), order="F")),
        "out overlapping x": dict(x=shifted, out=memory[:120].reshape(20, 6)),
        "Fortran order": dict(x=np.asfortranarray(x)),
        "other byte order": dict(x=x.astype(">f8")),
        "float16": dict(x=x.astype(np.float16)),
        "integers": dict(x=np.ones((20, 6), int)),
        "a list": dict(x=x.tolist()),
        "a matrix": dict(x=np.ma.array(x)),
        "one axis": dict(x=x[0]),
        "no rows": dict(x=x[:0]),
        "channels last": dict(x=x.T.copy(), channel_axis=-2),
        "channel axis as a truth value": dict(channel_axis=True),
        "unknown activation": dict(activation="gelu"),
        "activation as an array": dict(activation=np.array(["relu"])),
        "bad threads": dict(n_threads=0),
        "where of another shape": dict(where=np.ones(6, bool)),
        "where of the shape of x": dict(where=np.ones((20, 6), bool)),
        "where that broadcasts": dict(where=np.ones(1, bool)),
        "where of integers": dict(where=np.ones(20, int)),
        "where as a list": dict(where=[True, False] * 10),
        "strided where": dict(where=(np.arange(40) % 3 > 0)[::2]),
        "no value counts": dict(where=np.zeros(20, bool)),
        "one value counts": dict(where=np.arange(20) == 3),
    }


@pytest.mark.parametrize("name", other_arguments())
def test_other_arguments_act_and_are_refused_as_ever(name):
    def call(function):
        given = {"x": normal(4, (20, 6)), "mean": np.zeros(6), "var": np.ones(6), **other_arguments()[name]}
        if function is not batch_norm:
            del given["mean"], given["var"]
        else:
            given.pop("where", None)
        if function is batch_norm_backward:
            given |= dict(dy=given["x"], saved=SavedStatistics(np.zeros(6), np.ones(6)))
            given.pop("eps", None)
        return all_of(outcome(lambda: function(**given)))

    for function in (batch_norm, batch_norm_forward, batch_norm_backward):
        short = call(function)
        with long_way():
            assert short == call(function)


@pytest.mark.parametrize(
    "options",
    [
        dict(momentum=2.0),
        dict(momentum=None),
        dict(ddof=-1),
        dict(ddof=40),
        dict(ddof=0.5),
        dict(running_mean=np.zeros(6)),
    ],
    ids=str,
)
def test_options_of_training_act_and_are_refused_as_ever(options):
    x = normal(5, (20, 6))
    short = all_of(outcome(lambda: batch_norm_forward(x, **options)))
    with long_way():
        assert short == all_of(outcome(lambda: batch_norm_forward(x, **options)))


@pytest.mark.parametrize("forgotten", ["gamma", "activation", "channel_axis", "beta", "residual"])
def test_a_short_backward_call_that_forgets_what_the_forward_pass_had_is_refused(forgotten):
    x, gamma = normal(6, (4, 4)), np.ones(4)
    options = dict(gamma=gamma, activation="relu", channel_axis=-1) if forgotten != "gamma" else dict(gamma=gamma)
    options |= {name: a for name, a in (("beta", gamma), ("residual", x)) if name == forgotten}
    _, saved = batch_norm_forward(x, **{k: v for k, v in options.items() if k != "channel_axis"} | (
        {"channel_axis": 0} if forgotten == "channel_axis" else {}))  # fmt: skip
    given = {k: v for k, v in options.items() if k != forgotten}
    with pytest.raises(ValueError, match=f"{forgotten} must be"):
        batch_norm_backward(x, x, saved, **given)
