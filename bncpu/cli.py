"""The console command ``bncpu``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bncpu import __version__, bench, show_versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the process.

    Returns
    -------
    int
        0, or 1 after an error that has been printed in one line.
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
        help="how fast it is on this machine, beside copies and other libraries",
        description="Time our functions on this machine, in turn with plain copies of the same arrays and with every "
        "library that is installed and can do the same. Takes about half a minute; mind what else keeps the processors "
        "busy.",
        epilog="examples: bncpu bench; bncpu bench --threads 2 --json here.json --picture here.png",
    )
    bench.add_arguments(benchmark)
    commands.add_parser("versions", help="print versions and what the kernels use, for bug reports")
    options = parser.parse_args(arguments)
    if options.command == "versions":
        show_versions()
        return 0
    if options.command == "bench":
        return _bench(parser, options)
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
