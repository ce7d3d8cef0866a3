"""The console command ``bncpu``."""

from __future__ import annotations

import argparse
import csv
import glob
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bncpu._tables import Reading

# What is not needed to read the arguments is imported where it is used: `bncpu --version` waits for nothing.

Parser = argparse.ArgumentParser
Work = Callable[[], "str | int | None"]

TABLES = ".npy, .csv, .tsv, .jsonl, .parquet, .arrow, .feather or .ipc; text also with .gz, .zst or .bz2"
FORMATS = ("csv", "tsv", "jsonl", "npy", "parquet", "arrow")
COMPRESSIONS = ("", ".gz", ".zst", ".bz2")


class Stopped(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Version(argparse.Action):
    def __call__(self, parser: Parser, *_: Any) -> None:
        from bncpu import __version__

        print(f"bncpu {__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0; 1 after an error, or if a report is beyond its limit; 128 and the number of the signal that ended it, 130
        after Ctrl-C; with a line on stderr. Wrong arguments exit with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        work = COMMANDS[options.command](options.parser, options)
    except KeyboardInterrupt:
        _tell("interrupted")
        return 128 + signal.SIGINT
    return _run(work)


def _parser() -> Parser:
    parser = argparse.ArgumentParser(prog="bncpu", description="Batch normalization for NumPy people.")
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str, description: str, examples: str = "") -> Parser:
        added: Parser = commands.add_parser(name, help=what, description=description, epilog=examples or None)
        added.set_defaults(parser=added)
        return added

    demo = add(
        "demo",
        "stream real data through BatchNormTransformer, beside StandardScaler",
        "Stream the digits and 531,720 patches of two photographs, both from scikit-learn, or the numbers "
        "of a file, through BatchNormTransformer; compare with StandardScaler. A file is never loaded whole.",
        "examples: bncpu demo; bncpu demo measurements.parquet --picture settling.png",
    )
    demo.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a table, as bncpu fit takes it")
    demo.add_argument("--picture", type=Path, default=Path("bncpu-demo.png"), help="where to save it (%(default)s)")
    demo.add_argument(
        "--rows", type=int, default=None, help="use only the first so many rows of FILE, or of each photograph"
    )
    bench = add(
        "bench",
        "how fast it is on this machine, beside what memory allows and other libraries",
        "Time our functions on this machine, in turn with the least that memory must do for them (read "
        "the array, copy it, or make a third of two) and with every library that is installed and can do the same. "
        "Takes about a minute; mind what else keeps the processors busy.",
        "examples: bncpu bench; bncpu bench --threads 2 --json here.json --picture here.png",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="save every figure with its spread")
    bench.add_argument("--picture", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    bench.add_argument("--markdown", action="store_true", help="print the table as the README has it")
    bench.add_argument("--threads", type=int, default=1, help="for everybody (%(default)s)")
    bench.add_argument("--seconds", type=float, default=1.5, help="of measuring for each row (%(default)s)")
    bench.add_argument("--compile", action="store_true", help="torch.compile, too: a minute or more of compiling")
    _add_fit(add)
    _add_transform(add)
    _add_report(add)
    _add_states(add)
    add("versions", "print versions and what the kernels use, for bug reports", "")
    completion = add(
        "completion",
        "print what makes a shell complete our options",
        "Print a script that makes a shell complete the names and options of the commands.",
        'example: eval "$(bncpu completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _add_fit(add: Callable[..., Parser]) -> None:
    fit = add(
        "fit",
        "learn the statistics of files of any size",
        f"Learn mean and variance of every column of numbers in {TABLES}; nothing is loaded whole. A label of 0 and 1 "
        "is numbers, too: --exclude it. The rows of all files are one stream. A checkpoint, OUT.partial, is written "
        "every few seconds until the end, and --resume goes on from there after a crash, to the same result.",
        "example: bncpu fit 'measured/*.parquet' -o state.json --resume",
    )
    _add_inputs(fit)
    fit.add_argument("-o", "--out", type=Path, help="the state file to write")
    fit.add_argument("--dry-run", action="store_true", help="only say what would be learned of each column, and why")
    forgetting = fit.add_mutually_exclusive_group()
    forgetting.add_argument(
        "--momentum", type=float, metavar="M", help="average over batches: the old mean and variance weigh M"
    )
    forgetting.add_argument("--halflife", type=float, metavar="H", help="a row counts half as much after H later rows")
    forgetting.add_argument("--window", type=int, metavar="N", help="learn the last N rows only")
    fit.add_argument("--eps", type=float, default=0.0, help="added to the variance (%(default)s)")
    fit.add_argument("--ddof", type=float, default=0.0, help="the variance divides by n - ddof (%(default)s)")
    fit.add_argument("--clip", type=float, metavar="C", help="let transform limit its results to -C..C")
    fit.add_argument("--batch-rows", type=int, metavar="N", help="rows learned at a time (as many as make 8 MiB)")
    which = fit.add_mutually_exclusive_group()
    which.add_argument(
        "--columns",
        metavar="A,B,C",
        action="append",
        default=[],
        help="only these, in this order (default: all numbers)",
    )
    which.add_argument("--exclude", metavar="A,B,C", action="append", default=[], help="not these: a label, say")
    fit.add_argument("--weights", metavar="COLUMN", help="the column that holds sample weights")
    fit.add_argument("--resume", action="store_true", help="go on from OUT.partial if it is there")
    fit.add_argument("--force", action="store_true", help="replace whatever file OUT is")
    _add_reading(fit)


def _add_transform(add: Callable[..., Parser]) -> None:
    transform = add(
        "transform",
        "normalize files of any size",
        "Normalize the columns that the state knows, by name; others stay as they are, in their place. "
        f"The formats follow from the endings of the files: {TABLES}. Several files go to a folder, "
        "under their own names.",
        "examples: bncpu transform state.json measured.csv -o normalized.parquet; "
        "bncpu transform state.json measured -o normalized/",
    )
    transform.add_argument("state", type=Path, metavar="STATE", help="what bncpu fit wrote")
    _add_inputs(transform)
    transform.add_argument("-o", "--out", required=True, help="the file or folder to write; - is standard output")
    transform.add_argument("--inverse", action="store_true", help="undo a normalization")
    transform.add_argument("--float32", action="store_true", help="write single precision, half the size")
    transform.add_argument("--force", action="store_true", help="replace a file that is there")
    _add_reading(transform)


def _add_report(add: Callable[..., Parser]) -> None:
    report = add(
        "report",
        "how files differ from a state: drift",
        "Print how the columns of files differ from the statistics in a state, the largest difference first.",
        "example: bncpu report state.json today.csv --max-shift 0.5",
    )
    report.add_argument("state", type=Path, metavar="STATE", help="what bncpu fit wrote")
    _add_inputs(report)
    report.add_argument("--json", action="store_true", help="print every figure as JSON")
    report.add_argument(
        "--min-shift",
        type=float,
        default=0.1,
        metavar="S",
        help="remark on means that moved by S standard deviations (%(default)s)",
    )
    report.add_argument(
        "--max-shift",
        type=float,
        metavar="S",
        help="exit with 1 if a mean has moved by more standard deviations, or a constant has changed",
    )
    _add_reading(report)


def _add_states(add: Callable[..., Parser]) -> None:
    merge = add(
        "merge",
        "join states as if one fit had seen all rows",
        "Join the cumulative statistics of several states. The parameters are those of the first.",
        "example: bncpu merge monday.json tuesday.json -o both.json",
    )
    merge.add_argument("states", type=Path, nargs="+", metavar="STATE")
    merge.add_argument("-o", "--out", type=Path, required=True, help="the state file to write")
    merge.add_argument("--force", action="store_true", help="replace whatever file OUT is")
    merge.add_argument("--quiet", action="store_true", help="say nothing but errors")

    what = "Print the parameters and statistics in a state file."
    show = add("show", "print a state", what, "example: bncpu show state.json")
    show.add_argument("state", type=Path, metavar="STATE")
    show.add_argument("--json", action="store_true", help="print it as JSON")


def _add_inputs(parser: Parser) -> None:
    what = "a table; a folder of them; a pattern in quotes; - is standard input"
    parser.add_argument("inputs", nargs="+", metavar="IN", help=what)


def _add_reading(parser: Parser) -> None:
    text = parser.add_argument_group(
        "reading",
        "What is not given is found out, and said unless it is usual. All but --format and --encoding are for CSV.",
    )
    text.add_argument(
        "--format",
        choices=[f"{name}{end}" for name in FORMATS for end in (COMPRESSIONS if name in FORMATS[:3] else ("",))],
        metavar="F",
        help=f"of - and of names without a known ending: {', '.join(FORMATS)}; text also with .gz, .zst or .bz2",
    )
    text.add_argument("--delimiter", metavar="D", help="between columns: one character, or tab")
    text.add_argument("--decimal", choices=(".", ","), help="in front of fractions")
    text.add_argument("--encoding", metavar="E", help="cp1252, say")
    text.add_argument("--comment", metavar="C", help="leave out lines that begin with this character")
    text.add_argument("--skip-rows", type=int, default=0, metavar="N", help="leave out the first N lines")
    text.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="whether the first line has the names of the columns"
    )
    text.add_argument("--missing", action="append", default=[], metavar="TEXT", help="a missing value; may be repeated")
    text.add_argument("--strict", action="store_true", help="stop where a note about a guess would be printed")
    text.add_argument("--quiet", action="store_true", help="say nothing but errors")


# ---- what each command does ----


def _demo(parser: Parser, options: argparse.Namespace) -> Work:
    if options.rows is not None and options.rows < 1:
        parser.error(f"--rows must be at least 1, got {options.rows}")
    _in_existing_folder(parser, "--picture", options.picture)

    def work() -> None:
        from bncpu import _files, _tables, demo

        with _files.temporary_files(_tables.Reading()) as reading:
            demo.run(options.picture, options.file, options.rows, reading)

    return work


def _bench(parser: Parser, options: argparse.Namespace) -> Work:
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    for name in ("json", "picture"):
        if getattr(options, name) is not None:
            _in_existing_folder(parser, f"--{name}", getattr(options, name))

    def work() -> int:
        from bncpu import bench

        return bench.run(options)

    return work


def _versions(parser: Parser, options: argparse.Namespace) -> Work:
    def work() -> None:
        from bncpu import show_versions

        show_versions()

    return work


def _completion(parser: Parser, options: argparse.Namespace) -> Work:
    def work() -> None:
        try:
            import shtab
        except ImportError:
            raise ImportError("completion needs shtab: pip install 'bncpu[io]'") from None
        print(shtab.complete(_parser(), shell=options.shell))

    return work


def _fit(parser: Parser, options: argparse.Namespace) -> Work:
    if options.out is None and not options.dry_run:
        parser.error("the following arguments are required: -o/--out")
    if options.out is not None:
        _in_existing_folder(parser, "-o", options.out)
    if options.batch_rows is not None and options.batch_rows < 1:
        parser.error(f"--batch-rows must be at least 1, got {options.batch_rows}")
    columns, excluded = (_names(parser, option, getattr(options, option)) for option in ("columns", "exclude"))
    if options.weights in columns:
        parser.error(f"--weights {options.weights} is one of --columns")
    reading = _reading(parser, options)
    from bncpu import BatchNormTransformer, _files, _inputs, _stream, state

    parameters = {name: getattr(options, name) for name in ("momentum", "halflife", "window", "eps", "ddof", "clip")}
    transformer = BatchNormTransformer(**parameters)
    try:
        state.parameters(transformer)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    plan = _stream.Plan(transformer, columns or None, options.weights, options.batch_rows, excluded, reading)
    tell = _teller(options)

    def work() -> str | None:
        inputs = _inputs.found(options.inputs, tell)
        if options.dry_run:
            print(_files.dry_run(inputs, plan, tell))
            return None
        return _files.fit(inputs, options.out, plan, resume=options.resume, force=options.force, tell=tell)

    return work


def _names(parser: Parser, option: str, values: list[str]) -> list[str]:
    """The names of an option, which may be given several times."""
    given = [next(csv.reader([value]), []) for value in values]
    names = [name for some in given for name in some]
    if not all(given) or not all(names) or len(set(names)) < len(names):
        parser.error(f"--{option} must be different names with commas between them, got {','.join(values)!r}")
    return names


def _transform(parser: Parser, options: argparse.Namespace) -> Work:
    reading = _reading(parser, options)
    from bncpu import _files, _inputs

    if not options.out:
        parser.error("-o must name a file or a folder, got ''")
    out, tell = Path(options.out), _teller(options)
    patterns = any(glob.has_magic(name) for name in options.inputs)
    many = len(options.inputs) > 1 or options.out.endswith("/") or any(Path(name).is_dir() for name in options.inputs)
    if not many and not patterns and not out.is_dir():
        if out != _inputs.STANDARD:
            _in_existing_folder(parser, "-o", out)
        if out != _inputs.STANDARD and _inputs.ending(out) is None and options.format is None:
            parser.error(f"-o must end in {TABLES}, or be a folder/; got {out}")
    change = _files.Change(options.inverse, options.float32, reading, options.force)

    def work() -> str:
        inputs = _inputs.found(options.inputs, tell)
        outs = _files.outputs(options.inputs, inputs, Path(out), options.format, as_folder=many)
        return _files.transform(options.state, inputs, outs, change, tell=tell)

    return work


def _report(parser: Parser, options: argparse.Namespace) -> Work:
    for name in ("min_shift", "max_shift"):
        value = getattr(options, name)
        if value is not None and not value >= 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative, got {value}")
    reading = _reading(parser, options)
    from bncpu import _files, _inputs

    tell = _teller(options)

    def work() -> int:
        inputs = _inputs.found(options.inputs, tell)
        found = _files.report(options.state, inputs, options.min_shift, options.max_shift, reading, tell)
        print(_files.as_json(found) if options.json else found.report)
        if found.beyond:
            _tell(f"beyond --max-shift {options.max_shift:g}: {', '.join(found.beyond)}")
        return 1 if found.beyond else 0

    return work


def _merge(parser: Parser, options: argparse.Namespace) -> Work:
    _in_existing_folder(parser, "-o", options.out)

    def work() -> str:
        from bncpu import _files

        return _files.merge(options.states, options.out, force=options.force)

    return work


def _show(parser: Parser, options: argparse.Namespace) -> Work:
    def work() -> None:
        from bncpu import _files

        print(_files.show(options.state, as_json=options.json))

    return work


FILE_COMMANDS = {"fit": _fit, "transform": _transform, "report": _report, "merge": _merge, "show": _show}
COMMANDS = {**FILE_COMMANDS, "demo": _demo, "bench": _bench, "versions": _versions, "completion": _completion}


def _reading(parser: Parser, options: argparse.Namespace) -> Reading:
    if options.skip_rows < 0:
        parser.error(f"--skip-rows must not be negative, got {options.skip_rows}")
    if not all(isinstance(text, str) for text in options.missing):
        parser.error("--missing must be a text")
    for name in ("delimiter", "comment"):
        value = getattr(options, name)
        if value is not None and (len(value) != 1 or value in '"\n\r') and value not in ("tab", "\\t"):
            parser.error(f"--{name} must be one character, got {value!r}")
    from bncpu._tables import Reading

    given = {name: getattr(options, name) for name in Reading._fields if name != "temporary"}
    return Reading(**given)


def _in_existing_folder(parser: Parser, option: str, path: Path) -> None:
    if not path.name or (str(path) == "-" and option == "-o"):
        parser.error(f"{option} must name a file, got {str(path)!r}")
    if not path.parent.is_dir():
        parser.error(f"{option} must be in an existing folder, got {path}")


# ---- running it ----


def _run(work: Work) -> int:
    """Run `work` and return the exit status. Errors and warnings become lines on stderr."""
    with warnings.catch_warnings(), _ended_by_signals():
        warnings.showwarning = lambda message, *_: _tell(str(message))
        try:
            said = work()
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt as stop:
            _tell("interrupted")
            return 128 + int(getattr(stop, "number", signal.SIGINT))
        except BrokenPipeError:
            # What reads has had enough, as in `bncpu show state.json | head -1`.
            sys.stdout = None  # or Python would flush it at its end
            return 0
        except Exception as error:
            stopped = getattr(error, "number", None)
            if stopped is not None:
                _tell(str(error))
                return 128 + int(stopped)
            return _failed(error)
    if isinstance(said, int):
        return said
    if said and sys.stderr is not None and sys.stderr.isatty():
        print(said, file=sys.stderr)
    return 0


def _failed(error: Exception) -> int:
    """Say what went wrong in a line; what is a fault of ours is raised."""
    no_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    if isinstance(error, MemoryError) or no_thread:
        _tell(f"not enough memory ({error}); a smaller --batch-rows needs less")
        return 1
    if isinstance(error, (ImportError, OSError, ValueError)) or "Arrow" in type(error).__name__:
        _tell(str(error))
        return 1
    raise error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that ask a process to end do what Ctrl-C does.

    Not while modules are imported: then nothing has been written, and libraries do not expect an exception there.
    """

    def end(number: int, _: object) -> None:
        raise Stopped(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        try:
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                before[number] = signal.signal(number, end)
        except ValueError:  # not the main thread
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _teller(options: argparse.Namespace) -> Callable[[str], None]:
    """What takes lines for the user."""
    if options.quiet:
        from bncpu import _stream

        _stream.SHOWS_PROGRESS = False

    def tell(line: str) -> None:
        if options.strict:
            raise ValueError(f"{line} (--strict)")
        if not options.quiet:
            _tell(line)

    return tell


def _tell(line: str) -> None:
    if sys.stderr is None:  # closed
        return
    print(f"bncpu: {' '.join(line.split())}", file=sys.stderr)
