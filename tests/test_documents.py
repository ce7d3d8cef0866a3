"""README and pyproject say what is true: the code runs, the output is what is printed, the layers are listed."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

from sklearn.datasets import load_wine

import bncpu
from bncpu import bench, cli

ROOT = Path(__file__).parents[1]


def test_the_readme_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves a state file
    blocks = re.findall(r"```(python|text)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names, printed, compared = {}, "", 0
    for kind, body in blocks:
        if kind == "text":
            assert printed == body
            compared += 1
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(body, names)
        printed = out.getvalue()
    assert compared == 5


def test_the_readme_shows_what_the_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data, names = load_wine(return_X_y=True, as_frame=True)[0], ["alcohol", "ash", "magnesium"]
    table = data[names].assign(id=[f"wine {k}" for k in range(178)])
    table[:100].to_csv("monday.csv", index=False)
    table[100:].to_csv("tuesday.csv", index=False)
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    for command, expected in re.findall(r"^\$ bncpu (.*)\n((?:[^$].*\n|\n)*)", block, flags=re.MULTILINE):
        assert cli.main(command.split()) == 0
        printed = capsys.readouterr()
        assert printed.err + printed.out == expected
    assert Path("tuesday.parquet").exists()


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert 'pip install ".[demo]" && bncpu demo\n' in readme
    assert 'pip install -e ".[test]" && pytest\n' in readme


def test_the_readme_shows_what_bench_prints_today():
    marked = re.search(r"<!-- bench -->(.*)<!-- /bench -->", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    rows = re.findall(r"^\| (\w.*?) float\d\d \|", marked, flags=re.MULTILINE)
    assert rows == [case.label for case in bench.CASES]  # else: python comparisons/readme.py
    assert "`bncpu bench`" in marked
    assert "Faster than we are" in marked or "No peer is faster" in marked
    assert (ROOT / re.search(r"\]\((.*?\.png)\)", marked)[1]).is_file()


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert bncpu.__version__ == project["project"]["version"]
    assert f"## {bncpu.__version__}" in (ROOT / "CHANGELOG.md").read_text()


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
    assert modules - layered == {"bncpu.__init__", "bncpu.__main__", "bncpu._reference", "bncpu._versions"}
    assert layered <= modules


def test_the_loops_over_data_are_those_that_the_design_lists():
    template = (ROOT / "bncpu" / "src" / "leaves_template.h").read_text()
    functions = re.findall(
        r"^\w[\w ]* (?:NAME\(\w+\) )?NAME\((\w+)\)\(.*?^}$", template, flags=re.DOTALL | re.MULTILINE
    )
    bodies = re.findall(r"^\w[\w ]* (?:NAME\(\w+\) )?NAME\(\w+\)\(.*?^}$", template, flags=re.DOTALL | re.MULTILINE)
    looping = {name for name, body in zip(functions, bodies, strict=True) if "for (" in body}
    listed = {"rows_sums", "plane_sums", "rows_apply", "planes_apply", "choose_shift"}
    insides = {"rows_sums_step", "rows_sums_at", "rows_apply_line", "apply_line"}
    # A part walks the runs that the loops are called for; the others go over channels.
    assert looping == listed | insides | {"part_sums", "part_apply", "outer_apply"} | {"recentre", "moments"}
    kernels = (ROOT / "bncpu" / "_kernels.pyx").read_text()
    loops = re.findall(
        r"^def (\w+)\((?:(?!^c?def ).)*?^        for i in range", kernels, flags=re.DOTALL | re.MULTILINE
    )
    assert loops == ["sparse_sums"]
    for name in listed | set(loops):
        assert f"`{name}`" in (ROOT / "docs" / "design.md").read_text()


def test_every_source_has_its_test_file():
    sources = {path.stem.strip("_") for path in (ROOT / "bncpu").glob("*.py*") if path.stem.strip("_") != "init"}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert sources - {"main"} | {"gpu"} <= tests  # __main__ calls cli
    across = {"documents", "examples", "nist", "peers", "problem_sizes", "processes", "reproducibility", "scikit_learn"}
    across |= {"conditioning", "faults", "fuzz", "huge", "small_calls"}
    assert tests - sources - {"gpu"} == across
