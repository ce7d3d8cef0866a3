"""Measure with `bncpu bench`: its table goes into docs/performance.md, five rows and a picture into README.md.

    pip install -r comparisons/requirements.txt -r comparisons/peers.txt && pip install ".[bench]"
    python comparisons/readme.py            # a minute or two, on an otherwise idle machine
    python comparisons/readme.py --keep     # only README.md and its picture, from the tables that are there

The page keeps a table for each kind of processor; that of this one is replaced. README.md shows all of them.
"""

import re
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
README, PAGE, PICTURE = ROOT / "README.md", ROOT / "docs/performance.md", ROOT / "docs/bench.png"
TABLES = re.compile(r"<!-- bench: (.*?) -->\n(.*?)<!-- /bench -->", flags=re.DOTALL)
MARKED = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", flags=re.DOTALL)
ROWS = (
    "transform 1M x 32 float32",
    "fit 1M x 32 float32",
    "batch_norm_forward 1M x 32 float32",
    "batch_norm_backward NCHW 32 x 64 x 56 x 56 float32",
    "partial_fit 32 x 10 float64",
)
OURS, SCALER = "bncpu", "StandardScaler"


def measure():
    """Put what `bncpu bench` prints here in the place of this processor's table, or behind the last one."""
    command = ["bncpu", "bench", "--markdown"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    processor = re.search(r"^`bncpu bench`, [\d-]+, (.*?), \d+ thread", printed, flags=re.MULTILINE)[1]
    block = f"<!-- bench: {processor} -->\n\n### {processor}\n\n{printed}\n<!-- /bench -->"
    page = PAGE.read_text()
    before = next((m for m in TABLES.finditer(page) if m[1] == processor), None)
    last = [*TABLES.finditer(page)][-1].end()
    start, stop, gap = (last, last, "\n\n") if before is None else (*before.span(), "")
    PAGE.write_text(page[:start] + gap + block + page[stop:])


def figures(block):
    """Of each row: its unit, and the medians by the name of the library, as printed."""
    lines = [line.strip("|").split("|") for line in block.splitlines() if line.startswith("|")]
    names = [name.strip() for name in lines[0]][2:]
    found = {}
    for label, unit, *cells in lines[2:]:
        numbers = [re.match(r"[\d.]+", cell.strip()) for cell in cells]
        found[label.strip()] = unit.strip(), {n: m[0] for n, m in zip(names, numbers, strict=True) if m}
    return found


def best_other(medians):
    """The fastest library beside ours and scikit-learn's."""
    others = [name for name in medians if name not in (OURS, SCALER)]
    return min(others, key=lambda name: float(medians[name]))


def table(tables):
    """Five rows, with three columns for each processor."""
    names = [name for processor in tables for name in (f"bncpu, {processor}", "best other", SCALER)]
    yield "| | unit | " + " | ".join(names) + " |"
    yield "|---|---|" + "--:|" * len(names)
    for label in ROWS:
        cells = [next(iter(tables.values()))[label][0]]
        for rows in tables.values():
            medians = rows[label][1]
            name = best_other(medians)
            cells += [f"**{medians[OURS]}**", f"{medians[name]} {name}", medians.get(SCALER, "")]
        yield f"| {label} | " + " | ".join(cells) + " |"


def draw(tables):
    """All rows that have a limit, ours and the others, a panel for each processor."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (processor, rows) in zip(panels, tables.items(), strict=True):
        shown = {k: {n: float(v) for n, v in m.items()} for k, (unit, m) in rows.items() if unit != "us"}
        others = [(v, y) for y, m in enumerate(shown.values()) for n, v in m.items() if n not in (OURS, SCALER)]
        axes.plot(*zip(*others, strict=True), "D", color="tab:blue", alpha=0.5, markersize=4, label="other libraries")
        scaler = [(m[SCALER], y) for y, m in enumerate(shown.values()) if SCALER in m]
        axes.plot(*zip(*scaler, strict=True), "s", color="tab:orange", markersize=5, label=SCALER)
        axes.plot([m[OURS] for m in shown.values()], range(len(shown)), "o", color="black", markersize=7, label=OURS)
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(shown)), shown, fontsize="small")
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_title(processor, fontsize="medium")
        axes.grid(alpha=0.3, axis="x")
    figure.supxlabel("time over what memory takes at least: 1 cannot be beaten", fontsize="small")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=3, fontsize="small")
    figure.savefig(PICTURE, dpi=110)


def main():
    """Replace what is between the marks."""
    if sys.argv[1:] != ["--keep"]:
        measure()
    tables = {m[1]: figures(m[2]) for m in TABLES.finditer(PAGE.read_text())}
    draw(tables)
    alt = "What each operation costs in bncpu and in other libraries, on each processor"
    shown = f"\n![{alt}]({PICTURE.relative_to(ROOT)})\n\n" + "\n".join(table(tables)) + "\n\n"
    text, replaced = MARKED.subn(lambda _: shown, README.read_text())
    assert replaced == 1
    README.write_text(text)


if __name__ == "__main__":
    main()
