"""What the commands promise of files, signals, pipes and results beyond one table."""

import decimal
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet
import pytest

import bncpu
from bncpu import BatchNormTransformer, _temporary, cli

COMMAND = [sys.executable, "-m", "bncpu"]


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "x.csv"
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 6.0], "b": [10.0, 20.0, 20.0, 10.0], "id": list("wxyz")})
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def state(table, tmp_path, capsys):
    assert run("fit", table, "-o", tmp_path / "state.json") == 0
    capsys.readouterr()
    return tmp_path / "state.json"


# ---- nothing is lost ----


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of resources")
def test_a_folder_without_room_is_named(tmp_path):
    import resource

    folder = tmp_path / "temporary"
    folder.mkdir()
    pd.DataFrame({"a": np.arange(100_000.0)}).to_csv(tmp_path / "x.csv.gz", index=False)

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run(
        [*COMMAND, "fit", tmp_path / "x.csv.gz", "-o", tmp_path / "state.json"],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        preexec_fn=little_room,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"x.csv.gz' needs a temporary copy, for which {str(folder)!r} has no room: File too large" in done.stderr
    assert not list(folder.iterdir())
    assert not (tmp_path / "state.json").exists()


@pytest.fixture
def signals_of_a_terminal():
    """What signals do in a terminal, wherever the tests run: under nohup, say, SIGHUP is ignored."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# Runs the command, which gets a signal when it comes to import a module.
SIGNALLED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

_, module, name, *arguments = sys.argv
number = getattr(signal, name)
signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
sys.meta_path.insert(0, Finder())
sys.argv = ["bncpu", *arguments]
from bncpu.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["sklearn.base", "duckdb"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_modules_are_imported_ends_the_command_without_a_trace(name, module, table):
    command = [sys.executable, "-c", SIGNALLED, module, name, "fit", str(table), "-o", str(table.parent / "state.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    number = getattr(signal, name)
    assert done.returncode in (128 + number, -number)
    assert "Traceback" not in done.stderr
    assert os.listdir(table.parent) == [table.name]


@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_to_end_keeps_what_was_learned(name, tmp_path, capsys, monkeypatch):
    X = np.random.default_rng(0).standard_normal((1000, 3))
    path, out = tmp_path / "x.csv", tmp_path / "state.json"
    pd.DataFrame(X, columns=list("abc")).to_csv(path, index=False)
    number, learn = getattr(signal, name), BatchNormTransformer.partial_fit

    def signalled(bn, *args, **rest):
        if getattr(bn, "n_batches_seen_", 0) == 5:
            os.kill(os.getpid(), number)
        return learn(bn, *args, **rest)

    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    with monkeypatch.context() as patch:
        patch.setattr(BatchNormTransformer, "partial_fit", signalled)
        assert run("fit", path, "-o", out, "--batch-rows", 100) == 128 + number
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["state.json.partial", "x.csv"]
    assert run("fit", path, "-o", out, "--batch-rows", 100, "--resume") == 0
    assert BatchNormTransformer.load(out).n_samples_seen_ == 1000
    with monkeypatch.context() as patch:
        patch.setattr(BatchNormTransformer, "transform", lambda *args, **rest: os.kill(os.getpid(), number))
        assert run("transform", out, path, "-o", tmp_path / "y.csv") == 128 + number
    assert "y.csv' is as it was" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["state.json", "x.csv"]


def test_what_a_killed_command_left_is_removed_by_the_next_and_what_another_writes_is_not(table, state, tmp_path):
    stale, other = tmp_path / f".bncpu-{'0' * 16}.tmp", tmp_path / ".bncpu-mine.tmp"
    stale.write_text("left")
    other.write_text("not ours")
    with _temporary.temporary(str(tmp_path)) as (path, file):
        file.write(b"being written")
        assert run("transform", state, table, "-o", tmp_path / "y.csv") == 0
        assert os.path.exists(path) and not stale.exists() and other.exists()
    assert not os.path.exists(path)


def test_a_killed_process_has_no_lock(tmp_path):
    code = (
        "import os, sys; from bncpu._temporary import temporary\nwith temporary(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 1
    _temporary.clear(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_there_is_replaced_only_by_force(table, state, tmp_path, capsys):
    for name in ("y.csv", "y.parquet", "y.npy"):
        (tmp_path / name).write_text("mine")
        assert run("transform", state, table, "-o", tmp_path / name) == 1
        assert f"{name}' is there already; --force replaces it" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
    assert run("transform", state, table, "-o", tmp_path / "y.csv", "--force") == 0
    assert (tmp_path / "y.csv").read_text() != "mine"
    (tmp_path / "notes").write_text("mine")
    for command in (["fit", table], ["merge", state]):
        for name in ("notes", "y.parquet"):
            assert run(*command, "-o", tmp_path / name) == 1
            assert (tmp_path / name).read_text() == "mine"
        assert run(*command, "-o", tmp_path / "new.csv") == 1
        assert run(*command, "-o", tmp_path / "notes", "--force") == 0
        BatchNormTransformer.load(tmp_path / "notes")
        (tmp_path / "notes").write_text("mine")


def test_pictures_and_figures_do_not_replace_what_is_not_theirs(tmp_path, capsys):
    (tmp_path / "x.png").write_text("mine")
    assert run("demo", "--rows", 12, "--picture", tmp_path / "x.png") == 1
    assert run("bench", "--seconds", 0.001, "--json", tmp_path / "x.png") == 1
    assert run("bench", "--seconds", 0.001, "--picture", tmp_path / "x.png") == 1
    assert capsys.readouterr().err.count("It is there, and no file of bncpu's") == 3
    assert (tmp_path / "x.png").read_text() == "mine"


def test_a_write_error_names_file_and_reason(table, state, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run("transform", state, table, "-o", tmp_path / "y.csv") == 1
    assert capsys.readouterr().err == f"bncpu: [Errno 28] No space left on device: '{tmp_path / 'y.csv'}'\n"


def test_a_folder_with_a_broken_or_unreadable_link_is_refused(table, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_bytes(table.read_bytes())
    (folder / "b.csv").symlink_to(tmp_path / "gone.csv")
    assert run("fit", folder, "-o", tmp_path / "s.json") == 1
    assert "No such file or directory" in capsys.readouterr().err
    (folder / "b.csv").unlink()
    (folder / "again").symlink_to(folder)  # a circle is walked once
    assert run("fit", folder, "-o", tmp_path / "s.json") == 0
    (folder / "a.parquet").write_bytes(b"")
    assert run("fit", folder, "-o", tmp_path / "s.json") == 1
    assert "a.csv' and '" in (error := capsys.readouterr().err) and "may be the same rows twice" in error


def test_a_state_is_merged_once(state, tmp_path, capsys):
    (tmp_path / "link.json").symlink_to(state)
    for other in (state, tmp_path / "link.json"):
        assert run("merge", state, other, "-o", tmp_path / "both.json") == 1
        assert "is named twice: its rows would count twice" in capsys.readouterr().err
    assert not (tmp_path / "both.json").exists()


# ---- pipes ----


def piped(*arguments, data=b"", check=True):
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=data, capture_output=True, check=False)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


def test_standard_input_and_output(table, state, tmp_path):
    piped("fit", "-", "--format", "csv", "-o", tmp_path / "s.json", data=table.read_bytes())
    assert (tmp_path / "s.json").read_bytes() == state.read_bytes()
    done = piped("transform", state, "-", "-o", "-", "--format", "csv", data=table.read_bytes())
    assert run("transform", state, table, "-o", tmp_path / "y.csv") == 0
    assert done.stdout == (tmp_path / "y.csv").read_bytes() and done.stderr == b""
    done = piped("transform", state, table, "-o", "-", "--format", "parquet")
    (tmp_path / "y.parquet").write_bytes(done.stdout)
    assert pyarrow.parquet.read_table(tmp_path / "y.parquet").num_rows == 4
    np.save(tmp_path / "x.npy", np.eye(2))
    done = piped("transform", state, "-", "-o", "-", "--format", "npy", data=(tmp_path / "x.npy").read_bytes())
    (tmp_path / "y.npy").write_bytes(done.stdout)
    bn = BatchNormTransformer.load(state)
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), bn.transform(pd.DataFrame(np.eye(2), columns=["a", "b"]))
    )
    done = piped("fit", "-", "-o", tmp_path / "t.json", data=b"a\n1\n", check=False)
    assert done.returncode == 1 and b"--format must say what - is" in done.stderr


def test_a_named_pipe_is_read(table, state, tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with subprocess.Popen([*COMMAND, "fit", str(pipe), "-o", str(tmp_path / "s.json")]) as process:
        pipe.write_bytes(table.read_bytes())
        assert process.wait() == 0
    assert (tmp_path / "s.json").read_bytes() == state.read_bytes()


def test_who_has_read_enough_hears_nothing(tmp_path):
    BatchNormTransformer().fit(np.zeros((2, 20_000))).save(tmp_path / "s.json")
    shell = f"{sys.executable} -m bncpu show {tmp_path / 's.json'} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.endswith("\n0\n")


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2"])
def test_standard_output_is_compressed_where_asked(ending, table, state, tmp_path):
    done = piped("transform", state, table, "-o", "-", "--format", f"csv.{ending}")
    assert run("transform", state, table, "-o", tmp_path / "y.csv") == 0
    how = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[ending]
    with pa.CompressedInputStream(pa.BufferReader(done.stdout), how) as file:
        assert file.read() == (tmp_path / "y.csv").read_bytes()


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-"])
def test_streams_that_are_closed_are_no_tracebacks(closed, table, tmp_path):
    of_csv = "--format csv"
    commands = (
        "fit x.csv -o s.json",
        f"fit - {of_csv} -o t.json",
        "show s.json",
        f"transform s.json x.csv -o - {of_csv}",
    )
    for command in commands:
        shell = f"{sys.executable} -m bncpu {command} {closed} < /dev/null"
        shell = shell.removesuffix(" < /dev/null") if closed == "<&-" else shell
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1)
        if command.startswith("fit x.csv"):
            assert (tmp_path / "s.json").exists() and done.stdout == ""


# ---- transform ----


def test_several_files_go_to_a_folder(table, state, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.csv", "in/deep/b.csv"):
        (tmp_path / name).write_bytes(table.read_bytes())
    assert run("transform", state, tmp_path / "in", "-o", tmp_path / "out") == 0
    for name in ("out/a.csv", "out/deep/b.csv"):
        assert pd.read_csv(tmp_path / name)["b"].tolist() == [-1, 1, 1, -1]
    assert run("transform", state, tmp_path / "in", table, "-o", f"{tmp_path / 'more'}/", "--format", "parquet") == 0
    assert sorted(path.name for path in (tmp_path / "more").rglob("*.*")) == ["a.parquet", "b.parquet", "x.parquet"]
    capsys.readouterr()
    for out, message in (
        (tmp_path / "in" / "new", "is in the input"),
        (table, "-o must name a folder"),
        (tmp_path / "new.csv", "ends like a table"),
        ("-", "cannot be written to '-'"),
    ):
        assert run("transform", state, tmp_path / "in", "-o", out) == 1
        assert message in capsys.readouterr().err
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "x.csv").write_bytes(table.read_bytes())
    assert run("transform", state, table, twin / "x.csv", "-o", tmp_path / "two") == 1
    assert "two results would be" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_inverse_and_single_precision(table, state, tmp_path):
    assert run("transform", state, table, "-o", tmp_path / "y.parquet", "--float32") == 0
    y = pyarrow.parquet.read_table(tmp_path / "y.parquet")
    assert [str(field.type) for field in y.schema] == ["float", "float", "string"]
    assert run("transform", state, tmp_path / "y.parquet", "-o", tmp_path / "back.csv", "--inverse") == 0
    back, original = pd.read_csv(tmp_path / "back.csv"), pd.read_csv(table)
    np.testing.assert_allclose(back[["a", "b"]], original[["a", "b"]], rtol=1e-6)
    assert back["id"].tolist() == original["id"].tolist()


def test_exclude_takes_a_column_away_whatever_it_is_called(tmp_path):
    (tmp_path / "x.csv").write_text(",a,a,b\n0,1,2,3\n1,3,4,5\n")
    for options, names in (
        (["--exclude", "a"], ["b"]),
        (["--columns", "b", "--columns", "column0"], ["b", "column0"]),
        (["--columns", "column0,b"], ["column0", "b"]),
    ):
        assert run("fit", tmp_path / "x.csv", "-o", tmp_path / "s.json", *options) == 0
        assert list(BatchNormTransformer.load(tmp_path / "s.json").feature_names_in_) == names
    assert run("fit", tmp_path / "x.csv", "-o", tmp_path / "t.json", "--columns", "a") == 1
    assert run("fit", tmp_path / "x.csv", "-o", tmp_path / "t.json", "--exclude", "b", "--exclude", "a") == 1
    assert run("transform", tmp_path / "s.json", tmp_path / "x.csv", "-o", tmp_path / "y.csv") == 0
    assert (tmp_path / "y.csv").read_text().splitlines()[0] == '"","a","a","b"'


# ---- what is printed ----


def test_a_dry_run_says_what_would_be_learned_and_why(table, tmp_path, capsys):
    table.write_text(",a,b,c,d,e\n0,1,x,,1,1\n1,NA,y,,oops,2\n" + "2,3,z,,3,4\n" * 8)
    assert run("fit", table, "--dry-run", "--exclude", "e") == 0
    said = capsys.readouterr()
    assert [re.split(r"  +", line) for line in said.out.splitlines()[:7]] == [
        ["column", "type", "missing"],
        ["column0", "number", "0", "it has no name"],
        ["a", "number", "1", "learned"],
        ["b", "text", "0", "not numbers"],
        ["c", "empty", "10", "learned"],
        ["d", "text", "0", "numbers but for 'oops' in line 3"],
        ["e", "number", "0", "excluded"],
    ]
    assert said.out.endswith("nothing is learned or written.\n") and os.listdir(tmp_path) == ["x.csv"]
    assert run("fit", table, "--dry-run", "--columns", "a", "--weights", "e") == 0
    assert re.search(r"(?m)^e +number +0 +weights$", capsys.readouterr().out)
    pd.DataFrame({"a": [1.0, None], "b": ["x", "y"]}, index=[3, 4]).to_parquet(tmp_path / "x.parquet")
    assert run("fit", tmp_path / "x.parquet", "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"(?m)^a +double +1 +learned$", out) and "--exclude A,B" in out
    assert re.search(r"(?m)^__index_level_0__ +int64 +0 +it is the index of a pandas DataFrame$", out)


def test_a_report_is_that_of_python_and_stops_a_pipeline(tmp_path, capsys):
    rng = np.random.default_rng(0)
    old, new = (
        pd.DataFrame(rng.standard_normal((5000, 3)) + np.array([0, 0, shift]), columns=list("abc"))
        for shift in (0, 0.5)
    )
    old.to_csv(tmp_path / "old.csv", index=False)
    new.to_parquet(tmp_path / "new.parquet")
    state = tmp_path / "s.json"
    assert run("fit", tmp_path / "old.csv", "-o", state) == 0
    capsys.readouterr()
    assert run("report", state, tmp_path / "new.parquet", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = BatchNormTransformer.load(state).report(new)
    for row, k in zip(found["features"], range(3), strict=True):
        for name, column in expected.columns.items():
            if name in ("feature", "remarks"):
                assert row[name] == column[k]
            else:
                assert row[name] == pytest.approx(column[k], rel=1e-12)
    assert found["beyond"] == []
    assert run("report", state, tmp_path / "new.parquet", "--max-shift", 0.3) == 1
    said = capsys.readouterr()
    assert said.err == "bncpu: beyond --max-shift 0.3: c\n"
    assert said.out.splitlines()[2].startswith("c ") and "mean has moved" in said.out
    assert run("report", state, tmp_path / "new.parquet", "--max-shift", 0.9) == 0
    assert run("report", state, tmp_path / "old.csv", tmp_path / "new.parquet") == 0
    new["c"] = 1.0
    new.to_csv(tmp_path / "constant.csv", index=False)
    assert run("fit", tmp_path / "constant.csv", "-o", state, "--force") == 0
    assert run("report", state, tmp_path / "old.csv", "--max-shift", 9) == 1  # a constant that is none now


def test_show_as_json(state, capsys):
    assert run("show", state, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["statistics"] == "cumulative" and shown["batches"] == 1 and shown["parameters"] == {}
    assert shown["columns"] == [
        {"column": "a", "mean": 3.0, "std": pytest.approx(3.5**0.5), "count": 4},
        {"column": "b", "mean": 15.0, "std": 5.0, "count": 4},
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_our_options(shell, capsys):
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert "--max-shift" in script or shell == "tcsh"
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_version_waits_for_no_import():
    code = "import sys; sys.argv[0] = '/bin/bncpu'; from bncpu.cli import main\ntry: main(['--version'])\n"
    code += "finally: print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"bncpu {bncpu.__version__}\nFalse\n"


# ---- binary files ----


def test_what_is_for_csv_is_refused_for_others(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.eye(3))
    pd.DataFrame({"a": [-999.0, 1.0, 3.0]}).to_parquet(tmp_path / "x.parquet")
    for name in ("x.npy", "x.parquet"):
        for option in ("--missing=-999", "--no-header", "--skip-rows=1", "--delimiter=;", "--comment=#"):
            assert run("fit", tmp_path / name, "-o", tmp_path / "s.json", option) == 1
            assert f"{name}' is no CSV, for --delimiter" in capsys.readouterr().err


def test_what_follows_a_stream_of_arrow_is_refused(tmp_path, capsys):
    batch = pa.table({"a": np.arange(100.0)})
    with pa.ipc.new_stream(tmp_path / "one.arrow", batch.schema) as file:
        file.write_table(batch)
    (tmp_path / "two.arrow").write_bytes((tmp_path / "one.arrow").read_bytes() * 2)
    assert run("fit", tmp_path / "one.arrow", "-o", tmp_path / "s.json", "--strict") == 0
    assert run("fit", tmp_path / "two.arrow", "-o", tmp_path / "t.json") == 1
    assert "byte(s) follow the end of its stream" in capsys.readouterr().err


def test_tables_of_polars_are_carried(tmp_path):
    columns = {"a": [1.0, 3.0], "s": ["01", "x"], "k": ["u", "v"]}
    frame = polars.DataFrame(columns, schema_overrides={"k": polars.Categorical})
    frame.write_ipc(tmp_path / "x.arrow")
    frame.write_parquet(tmp_path / "x.parquet")
    for source in ("x.arrow", "x.parquet"):
        assert run("fit", tmp_path / source, "-o", tmp_path / "s.json") == 0
        for ending in ("csv", "parquet", "arrow", "jsonl"):
            out = tmp_path / f"y.{ending}"
            assert run("transform", tmp_path / "s.json", tmp_path / source, "-o", out, "--force") == 0
            read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "arrow": pd.read_feather}.get(ending)
            y = pd.read_json(out, lines=True, dtype=False) if read is None else read(out)
            assert y["a"].tolist() == [-1, 1] and y["k"].astype(str).tolist() == ["u", "v"]
            assert y["s"].astype(str).tolist()[1] == "x"


@pytest.mark.parametrize(
    ("column", "into", "message"),
    [
        (pa.array([[1], [2]]), "csv", "the column 'c' (list<"),
        (pa.array([b"x", b"y"]), "csv", "the column 'c' (binary) cannot be written as text"),
        (pa.array([b"x", b"y"]), "jsonl", "the column 'c' (binary) cannot be written as text"),
        (pa.array([1.0, np.inf]), "jsonl", "the column 'c' holds inf, for which JSON has no number"),
        (pa.array([[1.0], [np.nan]]), "jsonl", "the column 'c' holds [nan], for which JSON has no number"),
    ],
)
def test_what_text_cannot_hold_is_refused_by_name(column, into, message, tmp_path, capsys):
    pyarrow.parquet.write_table(pa.table({"a": [1.0, 3.0], "c": column}), tmp_path / "x.parquet")
    assert run("fit", tmp_path / "x.parquet", "-o", tmp_path / "s.json", "--columns", "a") == 0
    assert run("transform", tmp_path / "s.json", tmp_path / "x.parquet", "-o", tmp_path / f"y.{into}") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / f"y.{into}").exists()


def test_decimals_keep_their_digits_in_json(tmp_path):
    column = pa.array([decimal.Decimal("0.10"), decimal.Decimal("12345678901234567.25")])
    pyarrow.parquet.write_table(pa.table({"a": [1.0, 3.0], "c": column}), tmp_path / "x.parquet")
    assert run("fit", tmp_path / "x.parquet", "-o", tmp_path / "s.json", "--columns", "a") == 0
    assert run("transform", tmp_path / "s.json", tmp_path / "x.parquet", "-o", tmp_path / "y.jsonl") == 0
    assert '"c": 12345678901234567.25' in (tmp_path / "y.jsonl").read_text()


# ---- names that are no files ----


def test_names_that_are_no_files_are_refused(table, state, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.csv")
    os.link(table, tmp_path / "again.csv")
    for command, message in (
        (["fit", folder, "-o", tmp_path / "t.json"], "pipe.csv' is no regular file"),
        (["fit", "", "-o", tmp_path / "t.json"], "an input has an empty name"),
        (["fit", table, tmp_path / "again.csv", "-o", tmp_path / "t.json"], "again.csv' is named twice"),
        (["transform", state, table, "-o", folder / "pipe.csv"], "is no regular file"),
    ):
        assert run(*command) == 1
        assert message in capsys.readouterr().err
    for command in (["fit", table, "-o", "-"], ["fit", table, "-o", ""], ["transform", state, table, "-o", ""]):
        with pytest.raises(SystemExit):
            run(*command)
        assert "-o must name a file" in capsys.readouterr().err
    assert run("transform", state, f"{tmp_path}/*.csv", "-o", tmp_path / "many") == 1  # the same rows twice
    os.remove(tmp_path / "again.csv")
    assert run("transform", state, f"{tmp_path}/x*.csv", "-o", f"{tmp_path / 'many'}/") == 0
    np.save(tmp_path / "long.npy", np.eye(3, dtype=np.longdouble))
    assert run("fit", tmp_path / "long.npy", "-o", tmp_path / "t.json") == 1
    assert "it must hold numbers of shape" in capsys.readouterr().err
