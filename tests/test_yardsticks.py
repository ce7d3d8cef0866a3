"""The yardsticks, and which of them an operation cannot do without. Nothing here depends on time."""

import numpy as np
import pytest

from bncpu import _kernels, _walk, _yardsticks, bench
from bncpu._contenders import TASKS, Case, Data
from bncpu._yardsticks import ARRAYS, LOOPS, RESIDENT, Limit, limit_of

SMALL = {"rows": (64, 8), "NCHW": (2, 3, 8, 8), "NHWC": (2, 8, 8, 3)}
MEBIBYTE = 1 << 20


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "loop"), [(name, loop) for name, loops in LOOPS.items() for loop in loops])
def test_every_loop_moves_what_its_yardstick_says(name, loop, dtype, n_threads):
    data = Data(Case("batch_norm_backward", (50, 7), dtype=dtype), n_threads)
    data.out[...] = 0
    x, dy, out = (a.view(f"int{8 * a.itemsize}") for a in (data.x, data.dy, data.out))
    expected = {"copy": x, "triad": (data.x + data.dy).view(x.dtype) if loop == "np.add" else x ^ dy}
    result = LOOPS[name][loop](data)()
    if name == "read":
        assert result == np.bitwise_xor.reduce(data.x.ravel().view(np.int64))
    np.testing.assert_array_equal(out, expected.get(name, 0))


def test_rates_count_what_moves():
    assert ARRAYS == {"read": 1, "copy": 2, "triad": 3}
    found = bench._yardsticks({("copy", "a"): np.array([0.5, np.nan, 0.5]), ("copy", "b"): np.array([1.0, 1.0])}, 10**9)
    assert found == {"copy": ("a", 0.5, 2 * 10**9)}
    assert found["copy"].gb_per_second == 4


@pytest.fixture
def walk():
    """What is taken to stay in the cache may be set, until the test ends."""
    yield
    _walk.take(_walk.of_this_machine())


@pytest.mark.parametrize(
    ("operation", "layout"),
    [(name, layout) for name in TASKS for layout in SMALL if layout == "rows" or name not in ("fit", "partial_fit")],
)
def test_the_limit_is_the_passes_that_an_operation_cannot_do_without(operation, layout, walk):
    expected = {
        "inference": ("copy", "copy"),
        "statistics": ("read", "read"),
        "stream": ("read", "read"),
        "training": ("read + copy", "copy"),
        "gradients": ("2 reads + triad", "triad"),
    }[TASKS[operation]]
    data = Data(Case(operation, SMALL[layout], layout))
    for resident_bytes, limit in zip((0, MEBIBYTE), expected, strict=True):
        _kernels.set_walk(1, resident_bytes)
        assert str(limit_of(data)) == limit


def test_a_gradient_stays_in_the_cache_only_with_both_of_its_arrays(monkeypatch):
    asked = {}

    def resident_channels(x, n_read, n_threads):
        asked[n_read] = x.shape, n_threads
        return 0

    monkeypatch.setattr(_kernels, "resident_channels", resident_channels)
    for operation in ("batch_norm_forward", "batch_norm_backward"):
        assert limit_of(Data(Case(operation, SMALL["NCHW"], "NCHW"), 2)).read
    assert asked == {1: ((1, 2, 3, 64), 2), 2: ((1, 2, 3, 64), 2)}
    assert set(RESIDENT) == {"training", "gradients"}


def test_the_time_of_a_limit_is_that_of_its_passes():
    taken = {"read": 1.0, "copy": 10.0, "triad": 100.0}
    assert Limit(read=2, triad=1).seconds(taken.get) == 102
    assert Limit(read=1, copy=1).seconds(taken.get) == 11
    assert Limit(read=1, copy=1).yardsticks == ("read", "copy")


class World:
    """A clock that each of the named loops moves on by so many seconds."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def loop(self, name):
        def call():
            self.now += self.seconds[name]

        return call


@pytest.fixture
def world(monkeypatch):
    """`ours` takes 3 seconds a call, reading 0.5 or 1, copying 2, 1.5 or 9."""
    world = World({"ours": 3.0, "slow": 1.0, "fast": 0.5, "plain": 2.0, "past": 1.5, "hopeless": 9.0, "other": 1.5})
    loops = {"read": ("slow", "fast"), "copy": ("plain", "past", "hopeless")}
    made = {name: {way: lambda _, way=way: world.loop(way) for way in ways} for name, ways in loops.items()}
    monkeypatch.setattr(_yardsticks, "LOOPS", made)
    monkeypatch.setattr(bench._contenders, "ours", lambda _: world.loop("ours"))
    monkeypatch.setitem(bench.PEERS, "other", lambda _: world.loop("other"))
    interleaved = bench.interleaved
    monkeypatch.setattr(bench, "interleaved", lambda *a, **how: interleaved(*a, **how, clock=lambda: world.now))
    monkeypatch.setattr(bench, "limit_of", lambda _: Limit(read=1, copy=1))
    return world


def test_a_figure_is_a_multiple_of_the_fastest_loops_together(world, monkeypatch):
    monkeypatch.setattr(bench._contenders, "SMALL_BYTES", 0)
    row = bench.measure(Case("batch_norm_forward", (64, 8)), 50, peers=["other"])
    assert (row.unit, row.limit_seconds) == ("read + copy", 2.0)
    assert row.yardsticks == {"read": ("fast", 0.5, 2048), "copy": ("past", 1.5, 4096)}
    assert {name: figure.median for name, figure in row.figures.items()} == {"bncpu": 1.5, "other": 0.75}
    assert row.multiple == 1.5
    assert row.shares["other"].median == 2


def test_small_calls_are_in_microseconds_and_have_a_multiple_all_the_same(world):
    row = bench.measure(Case("batch_norm_forward", (64, 8)), 50, peers=["other"])
    assert row.unit == "us"
    assert {name: figure.median for name, figure in row.figures.items()} == {"bncpu": 3e6, "other": 1.5e6}
    assert row.multiple == 1.5


def test_hopeless_loops_get_no_further_turns(world):
    ways = bench._fast_loops(_yardsticks.loops(None, ["read", "copy"]), bench._Turns(3, False, 0.0))
    assert list(ways) == [("read", "fast"), ("copy", "plain"), ("copy", "past")]


def test_yardsticks_alone(monkeypatch):
    found = bench.yardsticks(Case("batch_norm_backward", (64, 8)), 0.0, n_threads=2, least_rounds=1)
    assert list(found) != [] and set(found) == {"read", "copy", "triad"}
    assert all(yardstick.loop in LOOPS[name] and yardstick.gb_per_second > 0 for name, yardstick in found.items())
