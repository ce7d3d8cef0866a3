"""README, the pages of docs/ and pyproject say what is true: code runs, prints what is shown, layers are listed."""

import contextlib
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import matplotlib as mpl
import pytest
from sklearn.datasets import load_wine

import bncpu
from bncpu import bench, cli

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(page):
    """Kind and body of each fenced block, the line on which it starts, and whether it is what the last one printed."""
    text, last = (ROOT / page).read_text(encoding="utf-8"), (None, 0)
    for found in re.finditer(r"^```(\S*).*\n((?:.*\n)*?)^```$", text, flags=re.MULTILINE):
        kind, body = found.groups()
        shown = kind == "text" and last[0] == "python" and not text[last[1] : found.start()].strip()
        yield kind, body, text.count("\n", 0, found.start()) + 1, shown
        last = kind, found.end()


def of_any_argparse(text):
    """Python 3.13 and later name and break options otherwise."""
    return re.sub(r"(-\w) [A-Z]+, (--\w+ )", r"\1, \2", text).split()


def run_commands(body):
    for line, expected in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n|\n)*)", body, flags=re.MULTILINE):
        program, *arguments = shlex.split(line)
        assert program == "bncpu", line
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(arguments)
            except SystemExit as end:  # --help
                status = end.code
        assert status == 0, err.getvalue()
        printed = err.getvalue() + out.getvalue()
        if "--help" in arguments:
            printed, expected = of_any_argparse(printed), of_any_argparse(expected)
        assert printed == expected
        if "-o" in arguments:
            assert Path(arguments[arguments.index("-o") + 1]).exists()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    mpl.use("Agg")
    data, columns = load_wine(return_X_y=True, as_frame=True)[0], ["alcohol", "ash", "magnesium"]
    table = data[columns].assign(id=[f"wine {k}" for k in range(178)])
    table[:100].to_csv("monday.csv", index=False)
    table[100:].to_csv("tuesday.csv", index=False)
    names, printed = {"__name__": "__main__"}, ""
    for kind, body, line, shown in blocks(page):
        assert shown or not printed, f"{page}: what is printed before line {line} is not shown"
        if shown:
            assert printed == body
            printed = ""
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * line + body, page, "exec"), names)
            printed = out.getvalue()
        elif kind == "console":
            run_commands(body)
        else:  # sh is for shells, json for files, and what a program of comparisons/ or asv printed is text
            assert kind in ("", "json", "sh", "text") or kind.startswith("{"), f"{page}, line {line}: {kind}"
    assert not printed


def test_blocks_of_pages_are_found():
    page = "docs/quickstart.md"
    kinds = [kind for kind, *_ in blocks(page)]
    assert kinds.count("python") == len(re.findall("^```python$", (ROOT / page).read_text(), re.MULTILINE)) > 5
    assert "console" in kinds
    assert sum(shown for *_, shown in blocks(page)) == 7
    assert sum(shown for *_, shown in blocks("README.md")) == 1


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "RELEASING.md", "comparisons/README.md"])
def test_links_to_files_work_on_a_forge(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (ROOT / page).parent.joinpath(t).exists()]
    assert not missing


def test_the_template_on_the_page_is_that_of_the_examples():
    shown = {kind: body for kind, body, *_ in blocks("docs/track_your_pipeline.md")}
    folder = ROOT / "examples" / "track_pipeline"
    assert shown["python"] == (folder / "benchmarks" / "pipeline.py").read_text()
    assert shown["json"] == (folder / "asv.conf.json").read_text()


def test_the_history_is_measured_as_other_results_are():
    ours, kept = (json.loads((ROOT / "asv_benches" / f"{name}.conf.json").read_text()) for name in ("asv", "history"))
    assert ours | {"results_dir": "history"} == kept


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert 'pip install ".[demo]" && bncpu demo\n' in readme
    assert 'pip install -e ".[test]" && pytest\n' in readme


def test_the_pages_show_what_bench_prints_today():
    tables = re.findall(
        r"<!-- bench: (.*?) -->(.*?)<!-- /bench -->", (ROOT / "docs/performance.md").read_text(), re.DOTALL
    )
    assert tables
    for _, block in tables:
        rows = re.findall(r"^\| (\w.*?) float\d\d \|", block, flags=re.MULTILINE)
        assert rows == [case.label for case in bench.CASES]  # else: python comparisons/readme.py
    marked = re.search(r"<!-- bench -->(.*)<!-- /bench -->", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    shown = re.findall(r"^\| (\w.*? float\d\d) \|", marked, flags=re.MULTILINE)
    assert len(shown) == 5
    for processor, block in tables:
        assert processor in marked
        for label in shown:
            ours = re.search(rf"^\| {re.escape(label)} \| .*? \| ([\d.]+)", block, flags=re.MULTILINE)[1]
            assert f"**{ours}**" in next(line for line in marked.splitlines() if line.startswith(f"| {label} |"))


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert bncpu.__version__ == project["project"]["version"]
    assert f"## {bncpu.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {bncpu.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{bncpu.__version__}"\n' in (ROOT / "packaging" / "conda" / "recipe.yaml").read_text()


def test_the_recipe_for_conda_asks_for_what_the_project_asks_for():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text()
    host, run = (re.search(rf"^  {part}:\n((?:    .*\n)+)", recipe, re.MULTILINE)[1] for part in ("host", "run"))
    for part, required in ((host, pyproject["build-system"]["requires"]), (run, pyproject["project"]["dependencies"])):
        for name in required:
            assert f"    - {name.replace('>=', ' >=')}\n" in part
    assert f'"<{pyproject["project"]["requires-python"].removeprefix(">=")}"' in recipe
    for name, entry in pyproject["project"]["scripts"].items():
        assert f"- {name} = {entry}\n" in recipe


def test_one_address_everywhere():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    assert f"repository-code: {urls['Source']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_oldest_set_is_the_lower_bounds():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    required = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    required += [bound for name in ("dask", "io", "demo", "onnx", "plot", "test") for bound in extras[name]]
    bounds = dict(re.sub(r"\[.*\]", "", name).split(">=") for name in required if not name.startswith("bncpu["))
    pins = dict(re.findall(r"^(.+)==(.+)$", (ROOT / ".ci" / "oldest.txt").read_text(), flags=re.MULTILINE))
    for name, bound in bounds.items():
        assert f"{pins[name]}.".startswith(f"{bound}."), name


def test_every_module_has_a_place_in_the_layers_or_at_the_edge():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layered = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    modules = {f"bncpu.{path.stem}" for path in (ROOT / "bncpu").glob("*.py")}
    modules |= {f"bncpu.{path.parent.name}" for path in (ROOT / "bncpu").glob("*/__init__.py")}
    assert modules - layered == {
        "bncpu.__init__",
        "bncpu.__main__",
        "bncpu._public",
        "bncpu._reference",
        "bncpu._versions",
    }
    assert layered <= modules


def test_the_loops_over_data_are_those_that_the_design_lists():
    names = ("leaves_template.h", "sums_template.h", "results_template.h")
    template = "\n".join((ROOT / "bncpu" / "src" / name).read_text() for name in names)
    functions = re.findall(
        r"^\w[\w ]* (?:NAME\(\w+\) )?NAME\((\w+)\)\(.*?^}$", template, flags=re.DOTALL | re.MULTILINE
    )
    bodies = re.findall(r"^\w[\w ]* (?:NAME\(\w+\) )?NAME\(\w+\)\(.*?^}$", template, flags=re.DOTALL | re.MULTILINE)
    looping = {name for name, body in zip(functions, bodies, strict=True) if "for (" in body}
    listed = {"rows_sums", "plane_sums", "rows_apply", "planes_apply", "choose_shift"}
    insides = {"rows_sums_of", "rows_sums_at", "rows_apply_line", "apply_line", "crossing"}
    # A part walks the runs, or the pieces, that the loops are called for; the others go over channels.
    parts = {"part_sums", "part_apply", "outer_apply", "apply_converted"}
    # One reads what counts, and calls a loop for it.
    assert looping == listed | insides | parts | {"counted_sums", "recentre", "moments"}
    sources = [ROOT / "bncpu" / "_sparse.pyx", *sorted((ROOT / "bncpu" / "src").glob("*.pxi"))]
    kernels = "\n".join(path.read_text() for path in sources)
    loops = re.findall(
        r"^def (\w+)\((?:(?!^c?def ).)*?^        for i in range", kernels, flags=re.DOTALL | re.MULTILINE
    )
    assert loops == ["sparse_sums"]
    for name in listed | set(loops):
        assert f"`{name}`" in (ROOT / "docs" / "design.md").read_text()


def test_every_source_has_its_test_file():
    sources = {path.stem.strip("_") for path in (ROOT / "bncpu").glob("*.py*") if path.stem.strip("_") != "init"}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    elsewhere = {"layer_norms", "group_norms", "two_steps"}  # tested as one, case by case
    elsewhere |= {"stream", "writing"}  # by test_files.py
    elsewhere |= {"json_lines"}  # by test_text.py
    elsewhere |= {"conversions"}  # by test_layers.py
    elsewhere |= {"names", "weights"}  # by test_state.py and test_transformer.py
    elsewhere |= {"inputs", "pictures", "public", "temporary"}  # by test_commands.py
    # __main__ calls cli; what Python code finds in _kernels is tested through moments and the transformer.
    assert sources - elsewhere - {"main", "algebra", "sparse"} | {"gpu", "norms"} <= tests
    across = {"documents", "examples", "nist", "peers", "problem_sizes", "processes", "reproducibility", "scikit_learn"}
    across |= {"conditioning", "docstrings", "faults", "frames", "fuzz", "huge", "norms", "numbers", "short"}
    across |= {"commands", "messages", "reinforcement", "small_calls", "validation", "where"}
    across |= {"torch"}  # a folder
    assert tests - sources - {"gpu", "gpu_host", "gpu_norms"} == across


def test_every_mutant_changes_one_place():
    """One that changes nothing would pass for killed."""
    import mutants

    for mutant in mutants.MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.old) == 1, mutant.name
