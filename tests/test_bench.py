"""The measuring: what it does with candidates whose time is known, and what it prints. Nothing here depends on time."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from bncpu import bench, cli
from bncpu._contenders import OURS, PEERS, Case
from bncpu._yardsticks import Limit, Yardstick
from bncpu.bench import Figure, Row, interleaved


class World:
    """A clock, and candidates that move it on by so many seconds a call."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def clock(self):
        return self.now

    def candidate(self, name, seconds):
        def call():
            self.now += seconds
            self.called.append(name)

        return call


def test_rounds_hold_the_seconds_of_each_candidate():
    world = World()
    times = interleaved({n: world.candidate(n, s) for n, s in (("a", 0.25), ("b", 0.5))}, 10, clock=world.clock)
    np.testing.assert_array_equal(times["a"], np.full(len(times["a"]), 0.25))
    np.testing.assert_array_equal(times["b"][np.isfinite(times["b"])], 0.5)
    assert len(times["a"]) == len(times["b"]) >= 13


def test_every_round_has_a_new_order():
    world = World()
    interleaved({name: world.candidate(name, 1.0) for name in "abc"}, 60, clock=world.clock)
    rounds = {"".join(world.called[k : k + 3]) for k in range(0, len(world.called), 3)}
    assert len(rounds) > 3
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)


def test_the_slow_sit_out_rounds_but_not_the_first():
    world = World()
    times = interleaved({"a": world.candidate("a", 0.01), "z": world.candidate("z", 10.0)}, 1, clock=world.clock)
    assert np.isfinite(times["z"]).sum() == bench.LEAST_ROUNDS
    world = World()
    times = interleaved({"a": world.candidate("a", 0.01), "z": world.candidate("z", 1.0)}, 100, clock=world.clock)
    assert np.isfinite(times["a"]).all()
    assert np.isnan(times["z"]).sum() > 0


def test_short_calls_are_repeated_for_a_millisecond():
    world = World()
    times = interleaved({"a": world.candidate("a", 1e-5)}, 0, short=True, clock=world.clock)
    assert len(world.called) == 1 + 10 + 100 * bench.LEAST_ROUNDS
    np.testing.assert_allclose(times["a"], 1e-5)
    world = World()
    interleaved({"a": world.candidate("a", 2e-3)}, 0, short=True, clock=world.clock)
    assert len(world.called) == 1 + bench.LEAST_ROUNDS


def test_figures_leave_out_the_rounds_that_a_candidate_sat_out():
    assert Figure.of(np.array([1.0, np.nan, 2.0, 3.0])) == (2.0, 1.5, 2.5, 3)


@pytest.fixture
def rows():
    """Ours won one row and lost the other."""
    won = {OURS: Figure(0.8, 0.75, 0.85, 9), "NumPy": Figure(2.0, 1.9, 2.1, 9)}
    lost = {OURS: Figure(2.0, 1.9, 2.1, 9), "NumPy": Figure(1.0, 0.9, 1.1, 9)}
    gone = {"river": "not installed", "Numba": "cannot do it"}
    copy, read = Yardstick("memmove", 0.01, 256 * 10**6), Yardstick("two streams", 0.008, 128 * 10**6)
    return [
        Row(
            Case("transform", (10**6, 32)), 1, Limit(copy=1), 0.01, {"copy": copy},
            won, {"NumPy": Figure(0.4, 0.3, 0.5, 9)}, gone,
        ),
        Row(
            Case("fit", (10**6, 32)), 1, Limit(read=1), 0.008, {"read": read},
            lost, {"NumPy": Figure(2.0, 1.6, 2.5, 9)}, gone,
        ),
    ]  # fmt: skip


def test_no_two_rows_have_the_same_name():
    assert len({case.name for case in bench.CASES}) == len(bench.CASES)


def test_losses_are_printed(rows):
    text = "\n".join(bench.report(rows, bench.notes(rows, "bncpu bench")))
    assert "Faster than we are, as parts of our time:\n  fit 1M x 32 float32: NumPy 0.50" in text
    assert "transform 1M x 32  copy  0.80* (0.75-0.85)   2.00\n" in text
    assert "fit 1M x 32        read   2.00 (1.90-2.10)  1.00*\n" in text


def test_rates_are_said_for_every_size_of_arrays(rows):
    said = "\n".join(bench.notes(rows, "bncpu bench"))
    assert "\nYardsticks in GB/s, of arrays of 128 MB: read 16.0 (two streams), copy 25.6 (memmove).\n" in said
    other = rows[0]._replace(case=Case("transform", (65_536, 32)), n_threads=2)
    assert bench.rates([rows[0], other]) == [
        "128 MB, 1 thread: copy 25.6 (memmove)",
        "8.39 MB, 2 threads: copy 25.6 (memmove)",
    ]
    assert bench.rates([rows[0]._replace(case=Case("transform", (32, 10)))]) == []
    assert "1 and 2 threads" in "\n".join(bench.notes([rows[0], other], "bncpu bench"))


def test_no_loss_is_said_so(rows):
    assert bench.report(rows[:1], [])[-1] == "No peer is faster anywhere."


def test_markdown_has_as_many_cells_in_every_line(rows):
    lines = bench.report(rows, ["a note"], as_markdown=True)[0].splitlines()
    assert lines[1] == "|---|--:|--:|--:|"
    assert {line.count("|") for line in lines} == {5}


def test_a_case_that_a_peer_cannot_do_is_not_available(rows):
    del rows[0].figures["NumPy"]
    assert bench.table(rows)[1][-1] == "n/a"


def test_notes_say_what_is_not_installed_and_what_failed(rows):
    rows[0].missing["PyTorch"] = "RuntimeError: no such thing"
    said = "\n".join(bench.notes([row._replace(n_threads=None) for row in rows], "bncpu bench"))
    assert "Not installed: river.\n" in said
    assert "PyTorch failed: RuntimeError: no such thing." in said
    assert "as many threads as each takes" in said


def absent(data):
    raise ImportError


def broken(data):
    return lambda: 1 / 0


def test_a_peer_that_is_absent_or_fails_stops_nobody(monkeypatch):
    monkeypatch.setitem(PEERS, "absent", absent)
    monkeypatch.setitem(PEERS, "broken", broken)
    monkeypatch.setitem(PEERS, "unable", lambda data: None)
    row = bench.measure(Case("fit", (16, 4)), 0, peers=("absent", "broken", "unable", "NumPy"), least_rounds=1)
    assert list(row.figures) == [OURS, "NumPy"]
    assert row.missing == {
        "absent": "not installed",
        "broken": "ZeroDivisionError: division by zero",
        "unable": "cannot do it",
    }


def test_our_own_failure_is_not_hidden(monkeypatch):
    monkeypatch.setattr(bench._contenders, "ours", broken)
    with pytest.raises(ZeroDivisionError):
        bench.measure(Case("fit", (16, 4)), 0, peers=())


@pytest.fixture
def quick(monkeypatch):
    """One round at the smallest size, with the peers that are always there."""
    monkeypatch.setenv("BNCPU_BENCH_SMALLEST", "1")
    for name in ("numba", "torch", "onnxruntime", "sklearnex", "sklearnex.basic_statistics", "dask_ml.preprocessing"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(bench._contenders, "_onednn_library", lambda: absent(None))
    monkeypatch.setitem(sys.modules, "river.preprocessing", None)


def test_the_command_prints_and_saves_everything(quick, tmp_path, capsys):
    files = {"--json": tmp_path / "b.json", "--picture": tmp_path / "b.png"}
    assert cli.main(["bench", *(str(word) for pair in files.items() for word in pair)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Not installed: Numba, PyTorch, .*, dask-ml\.\n", out)
    assert "`bncpu bench`" in out
    measured = [line.split(": ")[0] for line in out.splitlines()[: len(bench.CASES)]]
    assert measured == [case.smallest().name for case in bench.CASES]
    assert files["--picture"].read_bytes().startswith(b"\x89PNG")
    saved = json.loads(files["--json"].read_text())
    assert saved["version"] == 2
    assert saved["machine"]["threads"] == 1
    assert saved["peers"].keys() == {"StandardScaler", "NumPy"}
    assert [row["operation"] for row in saved["rows"]] == [case.operation for case in bench.CASES]
    for row in saved["rows"]:
        assert row["unit"] == "us"
        assert row["threads"] == 1
        assert row["limit_seconds"] > 0
        assert row["yardsticks"].keys() == {name for name, n in row["limit"].items() if n}
        assert all(found["gb_per_second"] > 0 for found in row["yardsticks"].values())
        assert row["figures"][OURS].keys() == {"median", "low", "high", "rounds"}
        assert row["our_time_over_theirs"].keys() == row["figures"].keys() - {OURS}
        assert row["missing"]["Numba"] == "not installed"


def test_the_command_writes_markdown_alone(quick, capsys):
    assert cli.main(["bench", "--markdown", "--threads", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("|  | unit | bncpu |")
    assert "`bncpu bench --threads 2`" in out


def test_a_missing_picture_library_is_named_before_anything_is_measured(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["bench", "--picture", str(tmp_path / "b.png")]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"bncpu: --picture needs matplotlib\S*: pip install 'bncpu\[bench\]'\n", printed.err)
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "nowhere/x.json"], "--json must be in an existing folder, got nowhere"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def goals(monkeypatch):
    """comparisons/goals.py, on nothing but hostile data."""
    path = Path(__file__).parents[1] / "comparisons" / "goals.py"
    spec = importlib.util.spec_from_file_location("goals", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["goals.py", "--alone", "--only", "none of them"])
    return module


@pytest.mark.slow
def test_goals_are_measured_after_right_results_only(goals, monkeypatch, capsys):
    assert goals.main() == 0
    assert "0 wrong." in capsys.readouterr().out
    right = goals.bncpu.batch_norm_moments

    def wrong(x, **options):
        moments = right(x, **options)
        return moments._replace(m2=moments.m2 * (1 + 1e-10))

    monkeypatch.setattr(goals.bncpu, "batch_norm_moments", wrong)
    assert goals.main() == 1
    out = capsys.readouterr().out
    assert "WRONG  float32 rows, standard normal: variance: error 1.0e-10, tolerance 1.0e-11\n" in out
    assert "best peer" not in out


def test_a_missed_goal_is_marked(goals, rows):
    transform = goals.Goal(rows[0].case, 0.85)
    shown = goals.line(goals.cells(transform, rows[0]))
    assert re.fullmatch(r"transform 1M x 32 float32 +1 +copy +0.80 \(0.75-0.85\) +<= 0.85 +met +NumPy 2.00", shown)
    assert "MISSED" in goals.cells(transform._replace(multiple=0.75), rows[0])
    only_measured = goals.cells(transform._replace(multiple=None), rows[0])
    assert not {"met", "MISSED"}.intersection(only_measured)
    assert goals.missed([(transform, rows[0]), (goals.Goal(rows[1].case, 1.1), rows[1])]) == [
        "fit 1M x 32 float32, 1 thread: 2.00, goal 1.10"
    ]


def test_a_goal_may_allow_for_the_call_itself(goals, rows):
    row = rows[0]._replace(limit_seconds=1e-5)
    goal = goals.Goal(row.case, 1.25, 3)
    assert goal.most(row) == pytest.approx(1.55)
    assert str(goal) == "<= 1.25 + 3 us"
    small = Case("transform", (32, 10))
    assert goals.Goal(small, 0, 2.5).most(row._replace(case=small)) == 2.5
    assert str(goals.Goal(small, 0, 2.5)) == "<= 2.5 us"
    assert goal.most(row._replace(case=small)) is None  # all at its smallest


def test_the_table_of_goals_is_markdown_under_the_name_of_the_processor(goals, rows):
    results = [(goals.Goal(row.case, 1.05), row) for row in rows]
    lines = goals.as_markdown(results, ["a note"], goals.missed(results), bench.losses(rows)).splitlines()
    assert lines[0] == f"### {bench.machine(None)['processor']}"
    assert lines[2] == "|  | threads | unit | bncpu | goal |  | best peer |"
    assert lines[4] == "| transform 1M x 32 float32 | 1 | copy | 0.80 (0.75-0.85) | <= 1.05 | met | NumPy 2.00 |"
    assert "- fit 1M x 32 float32, 1 thread: 2.00, goal 1.05" in lines
    assert "- fit 1M x 32 float32: NumPy 0.50" in lines


def test_large_arrays_and_arrays_in_a_cache_have_goals_of_their_own(goals):
    for goal in goals.GOALS:
        if goal.multiple and goal.case.is_large:
            assert (goal.multiple <= 1.3, goal.microseconds) == (True, 0), goal
        elif goal.multiple:
            assert goal.multiple >= 1.25 and goal.case.unit == "limit", goal
    assert len({goal.case for goal in goals.GOALS}) == len(goals.GOALS)
