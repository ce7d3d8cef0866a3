"""Measure with `bncpu bench` and put its table and plot into README.md.

    pip install -r comparisons/requirements.txt -r comparisons/peers.txt && pip install ".[bench]"
    python comparisons/readme.py

On an otherwise idle machine. Everything between the two marks in the README is replaced by what the command prints.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = "docs/bench.png"
MARKED = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", flags=re.DOTALL)

command = ["bncpu", "bench", "--markdown", "--picture", PICTURE]
printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
readme = ROOT / "README.md"
text, replaced = MARKED.subn(
    lambda _: f"\n![What each operation costs in bncpu and in other libraries]({PICTURE})\n\n{printed}\n",
    readme.read_text(),
)
assert replaced == 1
readme.write_text(text)
