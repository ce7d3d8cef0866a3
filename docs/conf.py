"""How the documentation is built; .ci/run docs does it, with the extra `docs`. Nothing is fetched from a network."""

import os
import shutil
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.transforms import Transform
from sphinx import addnodes

HERE = Path(__file__).parent
ROOT = HERE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORGE = f"{PROJECT['urls']['Source']}/blob/main/"

project = PROJECT["name"]
author = "The bncpu developers"
version = release = PROJECT["version"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "explore", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]

# ---- Markdown: anchors as forges make them ----

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# ---- the reference, from docstrings ----

default_role = "code"  # names of parameters
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"sklearn\..*"),  # other projects' pages are not looked up
    (r"py:meth", r"fit"),  # in the docstrings of scikit-learn that our StandardScaler carries
    (r"py:obj", r".*[a-z]_|.*\.(columns|notes)"),  # attributes stand in the docstring of their class
]
autodoc_mock_imports = autosummary_mock_imports = ["cuda", "llvmlite", "numba", "numba_cuda", "onnx", "skl2onnx"]
autodoc_typehints = "none"  # numpydoc's types say more
numpydoc_show_class_members = False  # _templates/autosummary/class.rst lists methods
templates_path = ["_templates"]
python_display_short_literal_types = True

# ---- the gallery, run ----

sphinx_gallery_conf = {
    "examples_dirs": "../examples/evidence",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"(networks|conftest|test_\w+)\.py$",
    "abort_on_example_error": True,
    "parallel": 2,
    "show_memory": False,
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "copyfile_regex": r"networks\.py|.*\.json",
    "write_computation_times": False,
    "capture_repr": (),  # only what is printed
}
os.environ["MPLBACKEND"] = "Agg"

# ---- looks ----

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.highlight-none) > div.highlight > pre"


LINKS = addnodes.pending_xref, addnodes.download_reference
SHOWN = {
    "CHANGELOG.md": "changelog",
    "comparisons/README.md": "comparisons",
    "examples/evidence/GALLERY_HEADER.rst": "gallery/index",
}


def page_of(path):
    """The page that shows a file of the repository, if there is one."""
    if path.parts[:2] == ("examples", "evidence") and path.suffix == ".py" and path.stem != "networks":
        return f"gallery/{path.stem}"
    return SHOWN.get(path.as_posix())


class RepositoryLinks(Transform):
    """Links to files outside docs/, written for forges: to the page of the file, or to the forge if it has none."""

    default_priority = 1

    def apply(self):
        """Change the links of one page."""
        env = self.document.settings.env
        here = Path(env.doc2path(env.docname)).parent
        links = [link for kind in LINKS for link in self.document.findall(kind) if link["reftype"] == "myst"]
        for link in links:
            target, _, anchor = link["reftarget"].partition("#")
            names = [target]
            if link.get("refdomain") == "doc":  # a page by its name, or a file outside by its path, without an ending
                names, anchor = [f"{target}.md", f"{target}.rst"], link.get("reftargetid")
            found = [path for name in names if target and (path := Path(os.path.normpath(here / name))).exists()]
            if not found or found[0].is_relative_to(HERE):
                continue
            path = found[0].relative_to(ROOT)
            if page := page_of(path):
                new = addnodes.pending_xref(
                    refdomain="doc", reftarget=page, reftargetid=anchor or None, refdoc=env.docname, reftype="myst",
                    refexplicit=link["refexplicit"],
                )  # fmt: skip
            elif path.suffix in (".py", ".sh"):  # to download
                continue
            else:
                new = nodes.reference(refuri=FORGE + path.as_posix() + (f"#{anchor}" if anchor else ""))
            new.extend(link.children)
            link.replace_self(new)


def add_the_interactive_page(app, error):
    """Put docs/explore into the site, as it is: html_extra_path would put its contents beside ours."""
    if error is None and app.builder.format == "html":
        ours = shutil.ignore_patterns("test_*", "__pycache__")
        shutil.copytree(HERE / "explore", Path(app.outdir) / "explore", ignore=ours, dirs_exist_ok=True)


def setup(app):
    """Called by Sphinx."""
    app.add_transform(RepositoryLinks)
    app.connect("build-finished", add_the_interactive_page)
