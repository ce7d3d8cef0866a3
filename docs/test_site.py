"""The built site: nothing links into the void or is fetched from elsewhere, every example and public name is there.

Run by .ci/run docs, after the build.
"""

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import bncpu

DOCS = Path(__file__).parent
SITE = DOCS / "_build" / "html"
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_FETCHED = {"canonical", "next", "prev", "search", "author", "index", "edit"}


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        address = values.get(FETCHED.get(tag))
        if address and values.get("rel") not in NOT_FETCHED:
            self.loads.append(address)


@pytest.fixture(scope="module")
def pages():
    found = {path: Page(path) for path in SITE.rglob("*.html")}
    assert len(found) > 50
    return found


def test_every_local_link_and_anchor_exists(pages):
    dead = []
    for path, page in pages.items():
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            if parts.fragment.startswith("/"):  # a view of asv's page, which its script draws
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                dead.append(f"{path.relative_to(SITE)}: {address}")
    assert not dead


def test_nothing_is_loaded_from_elsewhere(pages):
    loaded = {address for page in pages.values() for address in page.loads}
    assert loaded
    assert not {address for address in loaded if urlsplit(address).netloc}
    for path in SITE.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8").replace('"', ""), path


def test_every_public_name_has_a_page():
    for module in ("bncpu", "bncpu.gpu", "bncpu.onnx"):
        for name in importlib.import_module(module).__all__:
            if name not in ("__version__", "gpu"):
                # A class is the same in both, and has one page.
                shared = module == "bncpu.gpu" and name[0].isupper()
                page = f"bncpu.{name}.html" if shared else f"{module}.{name}.html"
                assert (SITE / "api" / page).exists(), f"{module}.{name}"


def test_every_command_has_its_help_on_a_page():
    text = (DOCS / "command_line.md").read_text(encoding="utf-8")
    names = re.findall(r"^    (\w+)$|^    (\w+)  ", text[: text.index("options:")], flags=re.MULTILINE)
    assert len(names) == 9
    for name in map("".join, names):
        assert f"$ bncpu {name} --help" in text


def test_every_example_of_the_gallery_was_run():
    scripts = {path.stem for path in (DOCS.parent / "examples" / "evidence").glob("*.py")}
    scripts = {name for name in scripts if name not in ("networks", "conftest") and not name.startswith("test_")}
    assert len(scripts) == 15
    for name in scripts:
        page = (DOCS / "gallery" / f"{name}.rst").read_text(encoding="utf-8")
        assert "Total running time of the script" in page, name
        assert (SITE / "gallery" / f"{name}.html").exists()


def test_the_version_is_that_of_the_package():
    assert f"bncpu {bncpu.__version__}" in (SITE / "index.html").read_text(encoding="utf-8")
