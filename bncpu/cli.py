"""The console command ``bncpu``."""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bncpu import BatchNormTransformer, __version__, _files, _tables, bench, show_versions, state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0; 1 after an error and 130 after Ctrl-C, with a line on stderr. Wrong arguments exit with 2.
    """
    parser = argparse.ArgumentParser(prog="bncpu", description="Batch normalization for NumPy people.")
    parser.add_argument("--version", action="version", version=f"bncpu {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="stream real data through BatchNormTransformer, beside StandardScaler",
        description="Stream the digits and 531,720 patches of two photographs, both from scikit-learn, or the numbers "
        "of a file, through BatchNormTransformer; compare with StandardScaler. A file is never loaded whole.",
        epilog="examples: bncpu demo; bncpu demo measurements.parquet --picture settling.png",
    )
    demo.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a table in .npy, .csv or .parquet")
    demo.add_argument("--picture", type=Path, default=Path("bncpu-demo.png"), help="where to save it (%(default)s)")
    demo.add_argument(
        "--rows", type=int, default=None, help="use only the first so many rows of FILE, or of each photograph"
    )
    benchmark = commands.add_parser(
        "bench",
        help="how fast it is on this machine, beside what memory allows and other libraries",
        description="Time our functions on this machine, in turn with the least that memory must do for them (read "
        "the array, copy it, or make a third of two) and with every library that is installed and can do the same. "
        "Takes about a minute; mind what else keeps the processors busy.",
        epilog="examples: bncpu bench; bncpu bench --threads 2 --json here.json --picture here.png",
    )
    bench.add_arguments(benchmark)
    _add_file_commands(commands)
    commands.add_parser("versions", help="print versions and what the kernels use, for bug reports")
    options = parser.parse_args(arguments)
    if options.command == "versions":
        show_versions()
        return 0
    if options.command == "bench":
        return _bench(parser, options)
    if options.command in FILE_COMMANDS:
        return _run(FILE_COMMANDS[options.command](parser, options))
    if options.rows is not None and options.rows < 1:
        parser.error(f"--rows must be at least 1, got {options.rows}")
    if not options.picture.parent.is_dir():
        parser.error(f"--picture must be in an existing folder, got {options.picture}")
    try:
        from bncpu import demo as demonstration

        demonstration.run(options.picture, options.file, options.rows)
    except (ImportError, OSError, ValueError) as error:
        print(f"bncpu: {error}", file=sys.stderr)
        return 1
    return 0


def _bench(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    for name in ("json", "picture"):
        path = getattr(options, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{name} must be in an existing folder, got {path}")
    try:
        return bench.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"bncpu: {error}", file=sys.stderr)
        return 1


# ---- over files ----

TABLES = ".npy, .csv, .csv.gz, .parquet, .arrow, .feather or .ipc"


def _add_file_commands(commands: Any) -> None:
    def add(name: str, what: str, description: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=description, epilog=f"example: {example}")

    fit = add(
        "fit",
        "learn the statistics of files of any size",
        f"Learn mean and variance of every column of numbers in {TABLES}; nothing is loaded whole. A label of 0 and 1 "
        "is numbers, too: --exclude it. The rows of all files are one stream. A checkpoint, OUT.partial, is written "
        "every few seconds until the end, and --resume goes on from there after a crash, to the same result.",
        "bncpu fit 'measured/*.parquet' -o state.json --resume",
    )
    fit.add_argument("inputs", nargs="+", metavar="IN", help=f"{TABLES}; a folder of them; or a pattern in quotes")
    fit.add_argument("-o", "--out", type=Path, required=True, help="the state file to write")
    forgetting = fit.add_mutually_exclusive_group()
    forgetting.add_argument("--momentum", type=float, metavar="M", help="weight of the old value: average over batches")
    forgetting.add_argument("--halflife", type=float, metavar="H", help="rows after which a row counts half")
    forgetting.add_argument("--window", type=int, metavar="N", help="learn the last N rows only")
    fit.add_argument("--eps", type=float, default=0.0, help="added to the variance (%(default)s)")
    fit.add_argument("--ddof", type=float, default=0.0, help="the variance divides by n - ddof (%(default)s)")
    fit.add_argument("--clip", type=float, metavar="C", help="let transform limit its results to -C..C")
    fit.add_argument("--batch-rows", type=int, metavar="N", help="rows learned at a time (as many as make 8 MiB)")
    which = fit.add_mutually_exclusive_group()
    which.add_argument("--columns", metavar="A,B,C", help="only these, in this order (all that hold numbers)")
    which.add_argument("--exclude", metavar="A,B,C", help="all that hold numbers but these: a label, say")
    fit.add_argument("--weights", metavar="COLUMN", help="the column that holds sample weights")
    fit.add_argument("--resume", action="store_true", help="go on from OUT.partial if it is there")

    transform = add(
        "transform",
        "normalize a file of any size",
        "Normalize the columns that the state knows, by name; others stay as they are, in their place. "
        f"The format of both files follows from their endings: {TABLES}.",
        "bncpu transform state.json measured.csv -o normalized.parquet",
    )
    transform.add_argument("state", type=Path, metavar="STATE", help="what bncpu fit wrote")
    transform.add_argument("input", type=Path, metavar="IN")
    transform.add_argument("-o", "--out", type=Path, required=True)

    merge = add(
        "merge",
        "join states as if one fit had seen all rows",
        "Join the cumulative statistics of several states. The parameters are those of the first.",
        "bncpu merge monday.json tuesday.json -o both.json",
    )
    merge.add_argument("states", type=Path, nargs="+", metavar="STATE")
    merge.add_argument("-o", "--out", type=Path, required=True, help="the state file to write")

    show = add("show", "print a state", "Print the parameters and statistics in a state file.", "bncpu show state.json")
    show.add_argument("state", type=Path, metavar="STATE")


def _fit(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], str | None]:
    _in_existing_folder(parser, options.out)
    if options.batch_rows is not None and options.batch_rows < 1:
        parser.error(f"--batch-rows must be at least 1, got {options.batch_rows}")
    columns, excluded = (_names(parser, option, getattr(options, option)) for option in ("columns", "exclude"))
    if options.weights in columns:
        parser.error(f"--weights {options.weights} is one of --columns")
    parameters = {name: getattr(options, name) for name in ("momentum", "halflife", "window", "eps", "ddof", "clip")}
    transformer = BatchNormTransformer(**parameters)
    try:
        state.parameters(transformer)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    plan = _files.Plan(transformer, columns or None, options.weights, options.batch_rows, excluded)
    return lambda: _files.fit(_files.found(options.inputs), options.out, plan, resume=options.resume, tell=_tell)


def _names(parser: argparse.ArgumentParser, option: str, value: str | None) -> list[str]:
    names = [] if value is None else next(csv.reader([value]), [])
    if value is not None and (not all(names) or len(set(names)) < len(names) or not names):
        parser.error(f"--{option} must be different names with commas between them, got {value!r}")
    return names


def _transform(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], str | None]:
    _in_existing_folder(parser, options.out)
    if _tables.ending(options.out) is None:
        parser.error(f"-o must end in {TABLES}, got {options.out}")
    return lambda: _files.transform(options.state, options.input, options.out)


def _merge(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], str | None]:
    _in_existing_folder(parser, options.out)
    return lambda: _files.merge(options.states, options.out)


def _show(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Callable[[], str | None]:
    return lambda: print(_files.show(options.state))


FILE_COMMANDS = {"fit": _fit, "transform": _transform, "merge": _merge, "show": _show}


def _in_existing_folder(parser: argparse.ArgumentParser, path: Path) -> None:
    if not path.parent.is_dir():
        parser.error(f"-o must be in an existing folder, got {path}")


def _run(work: Callable[[], str | None]) -> int:
    """Run `work` and return the exit status. Errors and warnings become lines on stderr."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _tell(str(message))
        try:
            said = work()
        except KeyboardInterrupt:
            _tell("interrupted")
            return 130
        except _files.Interrupted as stop:
            _tell(str(stop))
            return 130
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "start new thread" not in str(error):
                raise
            _tell(f"not enough memory ({error}); a smaller --batch-rows needs less")
            return 1
        except (ImportError, OSError, ValueError) as error:
            _tell(str(error))
            return 1
    if said and sys.stderr.isatty():
        print(said, file=sys.stderr)
    return 0


def _tell(line: str) -> None:
    print(f"bncpu: {' '.join(line.split())}", file=sys.stderr)
