"""Write asv's pages of the kept history into a folder, complete: a browser needs nothing from elsewhere.

    python asv_benches/pages.py FOLDER [CONFIGURATION]

CONFIGURATION is history.conf.json; with asv.conf.json the pages are those of your own runs. asv 0.6 loads jQuery, Flot
and Bootstrap from other sites. asv 0.5 brought them along: pip gets its sources, and the addresses become local.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
WITH_SCRIPTS = "0.5.1"


def publish(folder, configuration):
    """Run `asv publish`."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "asv",
            "publish",
            "--no-pull",
            "--config",
            str(configuration),
            "--html-dir",
            str(folder),
        ],
        check=True,
    )


def scripts():
    """What pages load, by name."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "asv", "--dest", folder]
        subprocess.run([*pip, f"asv=={WITH_SCRIPTS}"], check=True)
        with tarfile.open(next(Path(folder).iterdir())) as sources:
            found = [member for member in sources if "/www/vendor/" in member.name and member.isfile()]
            return {Path(member.name).name: sources.extractfile(member).read() for member in found}


def bare(name):
    """jquery.flot for jquery.flot-0.8.3.min.js, with its ending."""
    return re.sub(r"-[\d.]+\d(?=\.)|\.min(?=\.)", "", name)


def localize(folder, found):
    """Let the page load `found` from beside itself."""
    names = {bare(name): name for name in found}
    page = folder / "index.html"

    def local(tag):
        name = names[bare(tag["name"])]
        (folder / name).write_bytes(found[name])
        return f'{tag["start"]}="{name}"'

    text = page.read_text(encoding="utf-8")
    text = re.sub(r' (integrity|crossorigin|referrerpolicy)="[^"]*"', "", text)
    text = re.sub(r'(?P<start><script src|<link rel="stylesheet" href)="https://[^"]*/(?P<name>[^"/]+)"', local, text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    publish(folder, HERE / "history.conf.json" if len(sys.argv) < 3 else Path(sys.argv[2]).resolve())
    localize(folder, scripts())
