"""``bncpu bench``: our speed on this machine, compared with what memory allows and with the libraries installed.

Timings of separate runs differ by 10 % and more, so runs are not compared. All candidates take turns in one process, in
a new random order every round. A figure is a median over the rounds: a candidate's time divided by the limit of its
operation (`_yardsticks.py`), which is measured on the same arrays in the same round.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import shlex
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import bncpu
from bncpu import _contenders, _kernels, _pictures
from bncpu._contenders import OURS, PEERS, SLOW_TO_PREPARE, Call, Case, Data
from bncpu._yardsticks import ARRAYS, LOOPS, Limit, Yardstick, limit_of, loops

LEAST_ROUNDS = 3
REST = 0.01  # seconds
SECONDS = 1.5  # for the rounds of a row, so that all take less than a minute
SECONDS_PER_TURN = 1e-3  # short calls are repeated until a turn takes so long
HOPELESS = 1.5  # a loop that takes so many times as long as the fastest of its yardstick is not measured further

# The rows of `bncpu bench`: large arrays, then small calls.
CASES = (
    Case("transform", (1_000_000, 32)),
    Case("transform", (1_000_000, 32), fresh=True),
    Case("fit", (1_000_000, 32)),
    Case("fit", (1_000_000, 32), dtype="float64"),
    Case("partial_fit", (1_000_000, 32)),
    Case("batch_norm", (32, 64, 56, 56), "NCHW"),
    Case("batch_norm_forward", (1_000_000, 32)),
    Case("batch_norm_forward", (32, 64, 56, 56), "NCHW"),
    Case("batch_norm_forward", (32, 56, 56, 64), "NHWC"),
    Case("batch_norm_backward", (32, 64, 56, 56), "NCHW"),
    Case("transform", (32, 10), dtype="float64"),
    Case("partial_fit", (32, 10), dtype="float64"),
    Case("batch_norm_forward", (32, 10), dtype="float64"),
)

COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # Okabe and Ito's
MARKS = "Dosv^<>PX*hp8"


class Figure(NamedTuple):
    """Median and quartiles of the rounds, and the number of rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Figure:
        """Summarize one value per round, NaN in rounds that a candidate skipped."""
        present = values[np.isfinite(values)]
        low, median, high = np.quantile(present, [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high, len(present))


class Row(NamedTuple):
    """The result of one case.

    Attributes
    ----------
    case : Case
    n_threads : int or None
        For all candidates; None leaves the number to each library.
    limit : Limit
        The passes over memory that the operation needs at least.
    limit_seconds : float
        The time of these passes: the median over the rounds.
    yardsticks : dict of str to Yardstick
        The yardsticks in the limit.
    figures : dict of str to Figure
        By candidate, ours first: multiples of the limit, or microseconds, depending on ``case.unit``.
    shares : dict of str to Figure
        Our time divided by that of each peer in the same round: above 1 the peer is faster.
    missing : dict of str to str
        Why a peer has no figure.
    """

    case: Case
    n_threads: int | None
    limit: Limit
    limit_seconds: float
    yardsticks: dict[str, Yardstick]
    figures: dict[str, Figure]
    shares: dict[str, Figure]
    missing: dict[str, str]

    @property
    def unit(self) -> str:
        """The unit of the figures: the limit, as text, or "us"."""
        return "us" if self.case.unit == "us" else str(self.limit)

    @property
    def multiple(self) -> float:
        """Our time over the limit, whatever the unit."""
        ours = self.figures[OURS].median
        return ours if self.case.unit == "limit" else ours * 1e-6 / self.limit_seconds

    @property
    def losses(self) -> dict[str, Figure]:
        """The peers that took less time than we did."""
        return {name: share for name, share in self.shares.items() if share.median > 1}


def interleaved(
    candidates: Mapping[Any, Callable[[], object]],
    seconds: float,
    *,
    least_rounds: int = LEAST_ROUNDS,
    short: bool = False,
    rest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, NDArray[np.float64]]:
    """Let all candidates take turns.

    Parameters
    ----------
    candidates : mapping of callable
        Calls without arguments, by name. Each must have been called once before, to warm up.
    seconds : float
        How long rounds go on. A candidate that has used more than 1.5 times its equal share of the time so far skips
        a round, so that slow candidates leave enough rounds for fast ones.
    least_rounds : int, default=3
        The least number of rounds of each candidate, however long they take.
    short : bool, default=False
        Repeat each call until a turn takes a millisecond.
    rest : float, default=0.0
        Seconds to wait before each turn. OpenMP's threads stay awake for some milliseconds after their work, and those
        of one library would occupy the processors when it is the next one's turn.
    clock : callable, default=time.perf_counter
        In seconds.

    Returns
    -------
    dict of ndarray of shape (n_rounds,), float64
        By the names of `candidates`: seconds per call, NaN in rounds that a candidate skipped.
    """
    names = list(candidates)
    repeats = dict.fromkeys(names, 1)
    if short:
        for name in names:
            if _turn(candidates[name], 1, clock) < SECONDS_PER_TURN:
                repeats[name] = max(1, int(SECONDS_PER_TURN / max(_turn(candidates[name], 10, clock), 1e-9)))
    rng = np.random.default_rng(0)
    rounds: list[dict[Any, float]] = []
    spent, turns = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    start = clock()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while (used := clock() - start) < seconds or min(turns.values()) < least_rounds:
            results = {}
            for k in rng.permutation(len(names)):
                name = names[k]
                if turns[name] >= least_rounds and (spent[name] > 1.5 * used / len(names) or used >= seconds):
                    continue
                time.sleep(rest)
                results[name] = _turn(candidates[name], repeats[name], clock)
                spent[name] += results[name] * repeats[name]
                turns[name] += 1
            rounds.append(results)
    finally:
        if collecting:
            gc.enable()
    return {name: np.array([results.get(name, np.nan) for results in rounds]) for name in names}


def _turn(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per call."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def measure(
    case: Case,
    seconds: float = SECONDS,
    *,
    n_threads: int | None = 1,
    peers: Iterable[str] = PEERS,
    least_rounds: int = LEAST_ROUNDS,
) -> Row:
    """Measure one case: its limit, our function and the `peers`.

    Parameters
    ----------
    case : Case
    seconds : float, default=1.5
        Time for the rounds. Preparation and the first call of each candidate come before that.
    n_threads : int or None, default=1
        For all candidates; None leaves the number to each library.
    peers : iterable of str, optional
        Keys of ``PEERS``.
    least_rounds : int, default=3
        The least number of rounds of each candidate.

    Returns
    -------
    Row
    """
    data = Data(case, n_threads)
    ours = _contenders.ours(data)
    assert ours is not None
    limit = limit_of(data)
    entrants: dict[str, Call] = {OURS: ours}
    missing: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the peers
        for name in peers:
            try:
                call = PEERS[name](data)
                if call is not None:
                    _contenders.limit_threads(n_threads)
                    with threadpool_limits(n_threads):
                        call()
            except ImportError:
                missing[name] = "not installed"
            except Exception as error:  # an error of one peer must not stop the others
                missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                if call is None:
                    missing[name] = "cannot do it"
                else:
                    entrants[name] = call
        with threadpool_limits(n_threads):
            ours()
            how = _Turns(least_rounds, not case.is_large, 0.0 if n_threads == 1 else REST)
            ways = _fast_loops(loops(data, limit.yardsticks), how)
            times = interleaved({**entrants, **ways}, seconds, **how._asdict())
    yardsticks = _yardsticks({way: times[way] for way in ways}, case.n_bytes)
    at_least = limit.seconds(lambda name: times[name, yardsticks[name].loop])
    unit = at_least if case.unit == "limit" else np.full(len(at_least), 1e-6)
    return Row(
        case,
        n_threads,
        limit,
        float(np.nanmedian(at_least)),
        yardsticks,
        {name: Figure.of(times[name] / unit) for name in entrants},
        {name: Figure.of(times[OURS] / times[name]) for name in entrants if name != OURS},
        missing,
    )


class _Turns(NamedTuple):
    """Options of ``interleaved``."""

    least_rounds: int
    short: bool
    rest: float


def _fast_loops(ways: dict[tuple[str, str], Call], how: _Turns) -> dict[tuple[str, str], Call]:
    """Leave out loops that are much slower than the fastest of their yardstick, so that the others get more rounds."""
    for call in ways.values():
        call()
    times = {way: float(np.nanmedian(taken)) for way, taken in interleaved(ways, 0.0, **how._asdict()).items()}
    best = {name: min(times[way] for way in ways if way[0] == name) for name, _ in ways}
    return {way: call for way, call in ways.items() if times[way] <= HOPELESS * best[way[0]]}


def _yardsticks(times: dict[tuple[str, str], NDArray[np.float64]], n_bytes: int) -> dict[str, Yardstick]:
    """The loop with the least median time of each yardstick."""
    medians = {way: float(np.nanmedian(taken)) for way, taken in times.items()}
    fastest: dict[str, Yardstick] = {}
    for (name, loop), taken in sorted(medians.items(), key=lambda item: item[1]):
        fastest.setdefault(name, Yardstick(loop, taken, ARRAYS[name] * n_bytes))
    return fastest


def yardsticks(
    case: Case,
    seconds: float = SECONDS,
    *,
    n_threads: int = 1,
    names: Sequence[str] = tuple(LOOPS),
    least_rounds: int = LEAST_ROUNDS,
) -> dict[str, Yardstick]:
    """Measure nothing but yardsticks.

    Parameters
    ----------
    case : Case
        The case whose arrays are used. For a triad of three different arrays, a case with a gradient.
    seconds : float, default=1.5
    n_threads : int, default=1
    names : sequence of str, optional
        Keys of ``LOOPS``.
    least_rounds : int, default=3

    Returns
    -------
    dict of str to Yardstick
    """
    how = _Turns(least_rounds, not case.is_large, 0.0 if n_threads == 1 else REST)
    ways = _fast_loops(loops(Data(case, n_threads), names), how)
    return _yardsticks(interleaved(ways, seconds, **how._asdict()), case.n_bytes)


def smallest() -> bool:
    """Whether BNCPU_BENCH_SMALLEST asks for one round of everything at its smallest size, to check that it runs."""
    return os.environ.get("BNCPU_BENCH_SMALLEST", "") not in ("", "0")


def machine(n_threads: int | None) -> dict[str, str | int | None]:
    """Describe where and when this runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bncpu": bncpu.__version__,
        "instruction set": _kernels.isa(),
        "processors": os.cpu_count(),
        "threads": n_threads,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def peer_versions(names: Iterable[str]) -> dict[str, str]:
    """Say which version of each of these peers is installed."""
    versions = {}
    for name in names:
        package = _contenders.PACKAGES.get(name)
        if package is not None:
            try:
                versions[name] = version(package)
            except PackageNotFoundError:
                versions[name] = "?"
    return versions


def as_json(rows: Sequence[Row], command: str, n_threads: int | None) -> dict[str, Any]:
    """All results, for `--json`.

    Parameters
    ----------
    rows : sequence of Row
    command : str
        The command that made the rows.
    n_threads : int or None

    Returns
    -------
    dict
        JSON values.
    """
    return {
        "version": 2,
        "command": command,
        "machine": machine(n_threads),
        "peers": peer_versions(_entrants(rows)),
        "rows": [
            {
                **row.case._asdict(),
                "label": row.case.label,
                "threads": row.n_threads,
                "unit": row.unit,
                "limit": row.limit._asdict(),
                "limit_seconds": row.limit_seconds,
                "yardsticks": {
                    name: {**found._asdict(), "gb_per_second": found.gb_per_second}
                    for name, found in row.yardsticks.items()
                },
                "figures": {name: figure._asdict() for name, figure in row.figures.items()},
                "our_time_over_theirs": {name: figure._asdict() for name, figure in row.shares.items()},
                "missing": row.missing,
            }
            for row in rows
        ],
        "losses": losses(rows),
    }


def _entrants(rows: Sequence[Row]) -> list[str]:
    """The candidates with a figure in some row, in the order of ``PEERS``."""
    return [name for name in (OURS, *PEERS) if any(name in row.figures for row in rows)]


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of cells, heads first. The fastest candidate of a row has a star."""
    names = _entrants(rows)
    lines = [["", "unit", *names]]
    mixed = len({row.case.dtype for row in rows}) > 1
    for row in rows:
        cells = [row.case.name if mixed else row.case.label, row.unit]
        fastest = min(row.figures, key=lambda name: row.figures[name].median)
        for name in names:
            figure = row.figures.get(name)
            star = "*" if name == fastest else ""
            spread = f" ({number(figure.low)}-{number(figure.high)})" if figure and name == OURS else ""
            cells.append("n/a" if figure is None else f"{number(figure.median)}{star}{spread}")
        lines.append(cells)
    return lines


def number(value: float) -> str:
    """Three digits, at most two decimals."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def plain(lines: Sequence[Sequence[str]]) -> str:
    """Align columns with spaces."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Write a table as in a README."""
    head, *rest = (f"| {' | '.join(cell.replace('*', chr(92) + '*') for cell in line)} |" for line in lines)
    rule = "|" + "|".join(["---", *["--:"] * (len(lines[0]) - 1)]) + "|"
    return "\n".join([head, rule, *rest])


def losses(rows: Sequence[Row]) -> list[str]:
    """For every row where a peer was faster: which, and its time as a part of ours."""
    several = len({row.n_threads for row in rows}) > 1
    return [
        f"{row.case.name}{f', {_threads([row])}' if several else ''}: "
        + ", ".join(f"{name} {number(1 / share.median)}" for name, share in row.losses.items())
        for row in rows
        if row.losses
    ]


def _threads(rows: Sequence[Row]) -> str:
    """The number of threads, as text."""
    found = list(dict.fromkeys(row.n_threads for row in rows))
    if found == [None]:
        return "as many threads as each takes"
    return " and ".join(map(str, found)) + (" thread" if found == [1] else " threads")


def rates(rows: Sequence[Row]) -> list[str]:
    """The speed of the yardsticks, for every size of arrays and number of threads."""
    several = len({row.n_threads for row in rows}) > 1
    found: dict[str, dict[str, list[Yardstick]]] = {}
    for row in rows:
        if row.case.unit == "limit":
            size = f"{row.case.n_bytes / 1e6:.3g} MB" + (f", {_threads([row])}" if several else "")
            for name, yardstick in row.yardsticks.items():
                found.setdefault(size, {}).setdefault(name, []).append(yardstick)
    return [
        f"{size}: "
        + ", ".join(
            f"{name} {number(float(np.median([y.gb_per_second for y in by_name[name]])))} "
            f"({' or '.join(sorted({y.loop for y in by_name[name]}))})"
            for name in LOOPS
            if name in by_name
        )
        for size, by_name in found.items()
    ]


def notes(rows: Sequence[Row], command: str, peers: Iterable[str] = PEERS) -> list[str]:
    """Lines that explain the figures and say how they were measured."""
    here = machine(None)
    absent = [name for name in peers if all(row.missing.get(name) == "not installed" for row in rows)]
    broken = {name: why for row in rows for name, why in row.missing.items() if ":" in why}
    kinds = " and ".join(sorted({row.case.dtype for row in rows}))
    lines = [
        "Figures are in the unit of their row: microseconds (us), or what memory takes at least, by the fastest loops "
        "that read the array (read), copy it (copy), or make a third of two (triad). "
        "Medians of calls in turn, our quartiles in brackets, * the fastest.",
        f"`{command}`, {here['date']}, {here['processor']}, {here['instruction set']}, {_threads(rows)}, "
        f"Python {here['python']}, NumPy {here['numpy']}, {kinds}.",
    ]
    measured_rates = rates(rows)
    if measured_rates:
        lines.append(f"Yardsticks in GB/s, of arrays of {'; '.join(measured_rates)}.")
    found = peer_versions(_entrants(rows))
    if found:
        lines.append("Peers: " + ", ".join(f"{name} {number}" for name, number in found.items()) + ".")
    if absent:
        lines.append(f"Not installed: {', '.join(absent)}.")
    return lines + [f"{name} failed: {why}." for name, why in broken.items()]


def _matplotlib() -> Any:
    """matplotlib.figure, which draws without a screen."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(f"--picture needs {error.name}: pip install 'bncpu[bench]'") from None
    return matplotlib.figure


def save_picture(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Draw every figure on a logarithmic axis: one panel for large arrays, one for small calls."""
    figures = _matplotlib()
    names = _entrants(rows)
    panels = [(unit, [row for row in rows if row.case.unit == unit]) for unit in ("limit", "us")]
    panels = [(unit, chosen) for unit, chosen in panels if chosen]
    figure = figures.Figure(figsize=(9, 1.6 + 0.36 * len(rows)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, height_ratios=[len(chosen) + 0.5 for _, chosen in panels], squeeze=False)
    for axes, (unit, chosen) in zip(all_axes[:, 0], panels, strict=True):
        for k, name in enumerate(names):
            places = [y for y, row in enumerate(chosen) if name in row.figures]
            found = [chosen[y].figures[name] for y in places]
            middle = [f.median for f in found]
            spread = [[f.median - f.low for f in found], [f.high - f.median for f in found]]
            axes.errorbar(
                middle,
                places,
                xerr=spread if found else None,
                fmt=MARKS[k % len(MARKS)],
                color="black" if name == OURS else COLOURS[k % len(COLOURS)],
                markeredgecolor="black",
                markeredgewidth=0.4,
                markersize=9 if name == OURS else 6,
                zorder=3 if name == OURS else 2,
                linestyle="none",
                label=name,
            )
        if unit == "limit":
            axes.axvline(1, color="grey", linewidth=1, zorder=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(chosen)), [row.case.name for row in chosen])
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        axes.set_xlabel("time over that of the limit, which memory sets" if unit == "limit" else "microseconds a call")
        axes.grid(alpha=0.3, axis="x", which="both")
        axes.grid(alpha=0.2, axis="y")
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle("Less is better", fontsize="medium")
    figure.supxlabel(caption, fontsize="x-small")
    _pictures.save(figure, path)


def run(options: argparse.Namespace) -> int:
    """Measure, print and save. Returns 0, whoever is faster."""
    _pictures.may_replace(options.json)
    _pictures.may_replace(options.picture)
    if options.picture is not None:
        _matplotlib()  # so that it fails before a minute of measuring, not after
    command = _command(options)
    peers = [name for name in PEERS if options.compile or name not in SLOW_TO_PREPARE]
    rows = []
    for row in measured(CASES, options.seconds, options.threads, peers):
        rows.append(row)
        if not options.markdown:
            ours = row.figures[OURS]
            print(f"{row.case.name}: {number(ours.median)} ({row.unit})", flush=True)
    said = notes(rows, command, peers)
    print("\n".join(report(rows, said, as_markdown=options.markdown)))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(rows, command, options.threads), indent=1) + "\n", encoding="utf-8")
    if options.picture is not None:
        save_picture(rows, options.picture, said[1].replace("`", ""))
    return 0


def report(rows: Sequence[Row], said: Sequence[str], *, as_markdown: bool = False) -> list[str]:
    """Lines of the table, its explanations, and the rows where a peer is faster."""
    lost = losses(rows)
    heading = ["Faster than we are, as parts of our time:"] if lost else ["No peer is faster anywhere."]
    if as_markdown:
        return [
            markdown(table(rows)),
            "",
            "\n".join(said),
            "",
            *heading,
            *(["", *(f"- {line}" for line in lost)] * bool(lost)),
        ]
    return ["", plain(table(rows)), "", *said, "", *heading, *(f"  {line}" for line in lost)]


def measured(cases: Sequence[Case], seconds: float, n_threads: int | None, peers: Sequence[str]) -> Iterator[Row]:
    """Measure the cases one after the other; if `smallest`, one round of each with few values."""
    for case in cases:
        if smallest():
            yield measure(case.smallest(), 0.0, n_threads=n_threads, peers=peers, least_rounds=1)
        else:
            yield measure(case, seconds, n_threads=n_threads, peers=peers)


def _command(options: argparse.Namespace) -> str:
    """The command line that repeats this run, without output files."""
    words = ["bncpu", "bench"]
    words += ["--threads", str(options.threads)] if options.threads != 1 else []
    words += ["--seconds", f"{options.seconds:g}"] if options.seconds != SECONDS else []
    words += ["--compile"] if options.compile else []
    return shlex.join(words)
