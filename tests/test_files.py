"""The commands over files: what they make of a stream of files, whatever the format, the cuts and the interruptions."""

import csv
import gzip
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from arrays import examples, normal, slow

from bncpu import BatchNormTransformer, _door, _inputs, _tables, _text, cli

ENDINGS = ["npy", "csv", "csv.gz", "parquet", "arrow", "feather", "ipc"]
NAMES = ["a", "b c", "d,e"]


def write(path, X, names=NAMES, extra=None, **options):
    """A table in the format of the ending of `path`, with the columns `extra` before the others; .ipc as a stream."""
    if path.suffix == ".npy":
        np.save(path, X)
        return path
    table = pa.table({**(extra or {}), **dict(zip(names, X.T, strict=True))})
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".gz":
        with pa.CompressedOutputStream(str(path), "gzip") as file:
            pyarrow.csv.write_csv(table, file)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, **options)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, **options)
    else:
        make = pa.ipc.new_stream if path.suffix == ".ipc" else pa.ipc.new_file
        with make(path, table.schema) as file:
            file.write_table(table, max_chunksize=70)
    return path


def read(path):
    """All columns of a table, by name."""
    if path.suffix == ".npy":
        return dict(enumerate(np.load(path).T))
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
    elif path.suffix in (".csv", ".gz"):
        table = pyarrow.csv.read_csv(path)
    else:
        with pa.memory_map(str(path)) as file:
            make = pa.ipc.open_file if file.read(6) == b"ARROW1" else pa.ipc.open_stream
            file.seek(0)
            table = make(file).read_all()
    return {name: column.to_numpy() for name, column in zip(table.schema.names, table.columns, strict=True)}


def run(*arguments):
    return cli.main(list(map(str, arguments)))


def learned(X, batch_rows, order="F", weights=None, **parameters):
    """The same by hand, in batches of that size, the last one shorter."""
    bn = BatchNormTransformer(**parameters)
    for start in range(0, len(X), batch_rows):
        part = slice(start, start + batch_rows)
        bn.partial_fit(np.array(X[part], order=order), sample_weight=None if weights is None else weights[part])
    return bn


def same(path, bn, names=NAMES):
    state = BatchNormTransformer.load(path)
    np.testing.assert_array_equal(state._state.running.values, bn._state.running.values)
    assert (state.n_batches_seen_, state.n_features_in_) == (bn.n_batches_seen_, bn.n_features_in_)
    np.testing.assert_array_equal(state.n_samples_seen_, bn.n_samples_seen_)
    assert list(getattr(state, "feature_names_in_", [])) == ([] if names is None else names)


@pytest.fixture
def X():
    return normal(0, (1000, 3), mean=[1.0, -50.0, 1e6])


# ---- fit ----


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_fit_has_the_bits_of_partial_fit_in_every_format(ending, X, tmp_path):
    path, out = write(tmp_path / f"x.{ending}", X), tmp_path / "state.json"
    assert run("fit", path, "-o", out, "--batch-rows", 128) == 0
    npy = ending == "npy"
    same(out, learned(X, 128, "C" if npy else "F"), None if npy else NAMES)
    assert os.listdir(tmp_path) == [out.name, path.name] or sorted(os.listdir(tmp_path)) == [out.name, path.name]


@pytest.mark.parametrize("kind", ["float64", "float32", "integers", "missing", "mixed"])
def test_what_is_learned_where_it_is_decoded_has_the_bits_of_partial_fit(kind, X, tmp_path, monkeypatch):
    X = X.astype(np.float32 if kind == "float32" else np.float64)
    if kind == "integers":
        X = X.round()
    if kind == "missing":
        X[::7, 1] = np.nan  # which pandas writes as nulls
    columns = {name: pa.array(x, from_pandas=True) for name, x in zip(NAMES, X.T, strict=True)}
    if kind in ("integers", "mixed"):
        X[:, 2] = X[:, 2].round()
        columns[NAMES[2]] = pa.array(X[:, 2].astype(np.int64))
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=300)
    pieces, some = [], _tables.Parquet.learned_share
    monkeypatch.setattr(
        _tables.Parquet, "learned_share", lambda *args: (pieces.append(piece) or piece for piece in some(*args))
    )
    assert run("fit", tmp_path / "x.parquet", "-o", tmp_path / "state.json", "--batch-rows", 128) == 0
    same(tmp_path / "state.json", learned(X, 128))
    n_shares = min(pa.cpu_count(), 3)
    assert sum(found is not None for _, found in pieces) == 7 * n_shares
    assert sum(batch is not None for batch, _ in pieces) == n_shares


def test_infinity_in_what_was_learned_where_it_was_decoded_is_found(X, tmp_path, capsys):
    first = write(tmp_path / "1.parquet", X[:256])
    X[600, 2] = X[601, 0] = np.inf
    second = write(tmp_path / "2.parquet", X[256:], row_group_size=300)
    assert run("fit", first, second, "-o", tmp_path / "state.json", "--batch-rows", 128) == 1
    error = capsys.readouterr().err
    assert f"{str(second)!r}, row 344: infinity in column 'd,e' and 1 more" in error
    assert sorted(os.listdir(tmp_path)) == [first.name, second.name]


@pytest.mark.parametrize("cuts", [[500], [1, 2, 3, 999], [128, 256], [0, 1000]])
@pytest.mark.parametrize("ending", ["npy", "parquet", "csv"])
def test_batches_do_not_depend_on_where_files_end(ending, cuts, X, tmp_path):
    for k, part in enumerate(np.split(X, cuts)):
        if len(part) or ending != "csv":
            write(tmp_path / f"{k}.{ending}", part)
    out = tmp_path / "state.json"
    assert run("fit", tmp_path, "-o", out, "--batch-rows", 128) == 0
    same(out, learned(X, 128, "C" if ending == "npy" else "F"), None if ending == "npy" else NAMES)


@pytest.mark.parametrize("row_group_size", [7, 300, 5000])
def test_batches_do_not_depend_on_row_groups(row_group_size, X, tmp_path):
    path, out = write(tmp_path / "x.parquet", X, row_group_size=row_group_size), tmp_path / "state.json"
    assert run("fit", path, "-o", out, "--batch-rows", 99) == 0
    same(out, learned(X, 99))


@pytest.mark.parametrize("n_rows", [255, 256, 257, 258, 259])
@pytest.mark.parametrize("ddof", [0, 2])
def test_with_momentum_a_small_rest_joins_the_batch_before_it(n_rows, ddof, X, tmp_path):
    path, out = write(tmp_path / "x.npy", X[:n_rows]), tmp_path / "state.json"
    assert run("fit", path, "-o", out, "--batch-rows", 128, "--momentum", 0.9, "--ddof", ddof) == 0
    same(out, BatchNormTransformer(momentum=0.9, ddof=ddof, batch_size=128).fit(X[:n_rows]), None)


def test_halflife_eps_and_ddof_are_those_of_the_transformer(X, tmp_path):
    path, out = write(tmp_path / "x.parquet", X), tmp_path / "state.json"
    assert run("fit", path, "-o", out, "--batch-rows", 100, "--halflife", 30, "--eps", 0.1, "--ddof", 1) == 0
    bn = learned(X, 100, halflife=30, eps=0.1, ddof=1)
    same(out, bn)
    np.testing.assert_array_equal(BatchNormTransformer.load(out).scale_, bn.scale_)


def test_a_window_learns_the_last_rows_of_the_files_and_goes_on_after_a_checkpoint(X, tmp_path):
    first, second, out = tmp_path / "1.npy", tmp_path / "2.npy", tmp_path / "state.json"
    np.save(first, X[:300])
    np.save(second, X[300:])
    assert run("fit", first, second, "-o", out, "--batch-rows", 100, "--window", 250) == 0
    loaded = BatchNormTransformer.load(out)
    np.testing.assert_allclose(loaded.running_mean_, X[-250:].mean(axis=0), rtol=1e-12)
    assert loaded.partial_fit(X[:10]).n_samples_seen_ == len(X) + 10
    np.testing.assert_allclose(loaded.running_var_, np.r_[X[-240:], X[:10]].var(axis=0), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint64", "bool", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_is_learned_in_its_dtype_and_order(dtype, order, X, tmp_path):
    X = np.array(np.abs(X) % 100, dtype=dtype, order=order)
    path, out = write(tmp_path / "x.npy", X), tmp_path / "state.json"
    assert run("fit", path, "-o", out, "--batch-rows", 300) == 0
    same(out, learned(X, 300, order), None)


def test_npys_of_several_dtypes_and_orders_are_one_stream_of_float64(X, tmp_path):
    parts = [X[:300].astype(np.float32), np.asfortranarray(X[300:600]), np.round(X[600:]).astype(int)]
    paths = [write(tmp_path / f"{k}.npy", part) for k, part in enumerate(parts)]
    assert run("fit", *paths, "-o", tmp_path / "state.json", "--batch-rows", 128) == 0
    same(tmp_path / "state.json", learned(np.concatenate(parts), 128), None)


def test_single_precision_stays_only_where_all_columns_have_it(X, tmp_path, monkeypatch):
    seen = []
    learn = BatchNormTransformer.partial_fit
    monkeypatch.setattr(
        BatchNormTransformer, "partial_fit", lambda bn, X, **rest: seen.append(X.dtype) or learn(bn, X, **rest)
    )
    single = write(tmp_path / "single.parquet", X.astype(np.float32), extra={"n": range(1000)})
    for columns, dtype in (("a,b c", "float32"), ("a,n", "float64")):
        assert run("fit", single, "-o", tmp_path / "state.json", "--columns", columns) == 0
        assert seen.pop() == dtype and not seen


def test_columns_are_taken_by_name_in_the_order_given(X, tmp_path):
    first = write(tmp_path / "0.csv", X[:500], extra={"text": ["x"] * 500})
    second = write(tmp_path / "1.arrow", X[500:, ::-1], NAMES[::-1])
    assert run("fit", first, second, "-o", tmp_path / "state.json", "--batch-rows", 64, "--columns", '"d,e",a') == 0
    same(tmp_path / "state.json", learned(X[:, [2, 0]], 64), ["d,e", "a"])


def test_excluded_columns_are_not_learned_and_pass_through_transform(X, tmp_path):
    first = write(tmp_path / "0.csv", X[:500].round(3), extra={"label": [0, 1] * 250})
    second = write(tmp_path / "1.parquet", X[500:].round(3), extra={"label": [0, 1] * 250})
    state = tmp_path / "state.json"
    assert run("fit", first, second, "-o", state, "--batch-rows", 64, "--exclude", 'label,"b c"') == 0
    same(state, learned(X.round(3)[:, [0, 2]], 64), ["a", "d,e"])
    assert run("transform", state, second, "-o", tmp_path / "y.parquet") == 0
    y = read(tmp_path / "y.parquet")
    np.testing.assert_array_equal(y["label"], [0, 1] * 250)
    np.testing.assert_array_equal(y["b c"], X[500:, 1].round(3))
    assert not np.array_equal(y["a"], X[500:, 0].round(3))


def test_text_columns_are_left_out_and_said_so(X, tmp_path, capsys):
    path = write(tmp_path / "x.csv", X, extra={"id": [f"r{i}" for i in range(1000)], "day": ["2026-01-01"] * 1000})
    assert run("fit", path, "-o", tmp_path / "state.json", "--batch-rows", 64) == 0
    assert capsys.readouterr().err == "bncpu: left out, not numbers: id, day\n"
    same(tmp_path / "state.json", learned(X, 64))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_weights_come_from_their_column_in_full_precision(dtype, X, tmp_path):
    weights = np.random.default_rng(1).uniform(0, 3, 1000)
    path = write(tmp_path / "x.parquet", X.astype(dtype), extra={"w": weights})
    assert run("fit", path, "-o", tmp_path / "state.json", "--weights", "w", "--batch-rows", 130) == 0
    same(tmp_path / "state.json", learned(X.astype(dtype), 130, weights=weights))


def test_folders_patterns_and_files_are_read_in_order(X, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "_hidden").mkdir()
    parts = np.split(X, 5)
    names = ["deep/a.csv", "deep/er/b.parquet", "p2.csv", "p10.csv", "last.feather"]
    for name, part in zip(["deep/a.csv", "deep/er/b.parquet", "p10.csv", "p2.csv", "last.feather"], parts, strict=True):
        write(tmp_path / name, part)
    for ignored in ("deep/readme.txt", "deep/.x.csv", "deep/_hidden/x.csv"):
        (tmp_path / ignored).write_text("nothing")
    inputs = [tmp_path / "deep", tmp_path / "p*.csv", tmp_path / "last.feather"]
    assert [p.relative_to(tmp_path).as_posix() for p in _inputs.found(list(map(str, inputs)), print)] == [
        *names[:2],
        "p10.csv",
        "p2.csv",
        "last.feather",
    ]
    assert run("fit", *inputs, "-o", tmp_path / "s.json", "--batch-rows", 64) == 0
    same(tmp_path / "s.json", learned(X, 64))


def test_the_default_batch_depends_on_the_number_of_columns_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("bncpu._tables.BATCH_BYTES", 8 * 3 * 100)
    X = normal(3, (1000, 3)).astype(np.float32)
    path = write(tmp_path / "x.npy", X)
    assert run("fit", path, "-o", tmp_path / "s.json") == 0
    same(tmp_path / "s.json", learned(X, 100, "C"), None)


# ---- interrupted ----

# Each child is killed a moment after a batch; one that should be killed after more batches than are left ends.
KILLED = """
    import os, random, signal, sys, threading, time
    from bncpu import BatchNormTransformer, _files, cli
    import pyarrow.csv, pyarrow.parquet
    _files.CHECKPOINT_SECONDS = 0
    *arguments, out, rounds = sys.argv[1:]
    rng, learn, whole, n_resumed = random.Random(0), BatchNormTransformer.partial_fit, None, 0

    def fitted(n_batches):
        delay = rng.uniform(0, 0.01)
        child = os.fork()
        if child == 0:
            def learn_or_die(bn, X, **rest):
                nonlocal n_batches
                n_batches -= 1
                if n_batches == 0:
                    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
                return learn(bn, X, **rest)
            BatchNormTransformer.partial_fit = learn_or_die
            os._exit(cli.main(["fit", *arguments, "-o", out, "--resume"]))
        ended = os.waitpid(child, 0)[1]
        assert ended in (0, signal.SIGKILL), ended
        return ended == 0 or os.path.exists(out)

    for _ in range(1 + int(rounds)):
        while not fitted(-1 if whole is None else rng.randrange(20)):
            n_resumed += os.path.exists(out + ".partial")
        if os.path.exists(out + ".partial"):  # killed before it was removed
            assert fitted(-1)
        with open(out, "rb") as file:
            content = file.read()
        whole = whole or content
        assert content == whole
        assert not os.path.exists(out + ".partial")
        os.remove(out)
    print(n_resumed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fit_killed_at_random_moments_goes_on_to_the_same_bytes(tmp_path):
    X, w = normal(4, (20_000, 3)), np.random.default_rng(5).uniform(0, 2, 20_000)
    names = ["0.csv", "1.parquet", "2.arrow", "3.csv.gz", "4.ipc"]
    parts = [slice(0, 6000), slice(6000, 6001), slice(6001, 13_000), slice(13_000, 13_100), slice(13_100, 20_000)]
    for name, part in zip(names, parts, strict=True):
        write(tmp_path / name, X[part], extra={"w": w[part]})
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), "--batch-rows", "512"]
    command += ["--momentum", "0.9", "--weights", "w", str(tmp_path / "state.json"), str(examples(2, 20))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2


def test_ctrl_c_keeps_what_was_learned_and_says_how_to_go_on(X, tmp_path, capsys, monkeypatch):
    path, out = write(tmp_path / "x.csv", X), tmp_path / "state.json"
    arguments = ("fit", path, "-o", out, "--batch-rows", 64)
    learn, n_calls = BatchNormTransformer.partial_fit, 0

    def interrupted(bn, *args, **rest):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            raise KeyboardInterrupt
        learn(bn, *args, **rest)
        if n_calls == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(BatchNormTransformer, "partial_fit", interrupted)
    for more in ([], ["--resume"]):
        assert run(*arguments, *more) == 130
        line = capsys.readouterr().err
        assert line == f"bncpu: interrupted; the same command with --resume goes on from '{out}.partial'\n"
        assert not out.exists()
    monkeypatch.undo()
    assert run(*arguments, "--resume") == 0
    same(out, learned(X, 64))
    assert sorted(os.listdir(tmp_path)) == ["state.json", "x.csv"]


@pytest.mark.parametrize("row_group_size", [100, 256, 300, 1000])
@pytest.mark.parametrize("cut", [256, 300])
def test_a_resumed_fit_of_parquet_reads_and_learns_every_row_once(cut, row_group_size, X, tmp_path, monkeypatch):
    paths = [
        write(tmp_path / f"{k}.parquet", part, row_group_size=row_group_size)
        for k, part in enumerate((X[:cut], X[cut:]))
    ]
    out, learn, expected = tmp_path / "state.json", BatchNormTransformer.partial_fit, learned(X, 128)
    monkeypatch.setattr(_tables.Parquet, "values", lambda *args: pytest.fail("read again"))

    def interrupted(bn, *args, **rest):
        if getattr(bn, "n_batches_seen_", 0) == stops[-1]:
            raise KeyboardInterrupt
        learn(bn, *args, **rest)

    stops = []
    for n_batches in range(1, 8):
        stops.append(n_batches)
        arguments = ("fit", *paths, "-o", out, "--batch-rows", 128)
        with monkeypatch.context() as patch:
            patch.setattr(BatchNormTransformer, "partial_fit", interrupted)
            assert run(*arguments) == 130
        assert run(*arguments, "--resume") == 0
        same(out, expected)


def test_ctrl_c_before_anything_was_learned_keeps_nothing(X, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **rest):
        raise KeyboardInterrupt

    path = write(tmp_path / "x.csv", X)
    monkeypatch.setattr(BatchNormTransformer, "partial_fit", interrupted)
    assert run("fit", path, "-o", tmp_path / "state.json", "--resume") == 130
    assert capsys.readouterr().err == "bncpu: interrupted; nothing is kept\n"
    monkeypatch.undo()
    run("fit", path, "-o", tmp_path / "state.json")
    monkeypatch.setattr(BatchNormTransformer, "transform", interrupted)
    (tmp_path / "out.csv").write_text("old")
    assert run("transform", tmp_path / "state.json", path, "-o", tmp_path / "out.csv", "--force") == 130
    assert capsys.readouterr().err == f"bncpu: interrupted; '{tmp_path / 'out.csv'}' is as it was\n"
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "state.json", "x.csv"]


@pytest.fixture
def checkpoint(X, tmp_path, monkeypatch, capsys):
    """A fit of two files that failed in the second; gives its arguments."""
    first, second = write(tmp_path / "0.csv", X[:500]), write(tmp_path / "1.csv", X[500:])
    monkeypatch.setattr("bncpu._files.CHECKPOINT_SECONDS", 0)
    learn = BatchNormTransformer.partial_fit

    def failing(bn, *args, **rest):
        if getattr(bn, "n_batches_seen_", 0) == 6:
            raise OSError("the disk is gone")
        return learn(bn, *args, **rest)

    arguments = ["fit", first, second, "-o", tmp_path / "state.json", "--batch-rows", 100]
    with monkeypatch.context() as patch:
        patch.setattr(BatchNormTransformer, "partial_fit", failing)
        assert run(*arguments) == 1
    return arguments


def test_a_failed_fit_says_that_its_checkpoint_stays_and_skips_what_was_read(
    checkpoint, X, tmp_path, capsys, monkeypatch
):
    partial = tmp_path / "state.json.partial"
    assert capsys.readouterr().err == f"bncpu: the disk is gone (the checkpoint '{partial}' stays)\n"
    opened = []
    pieces = _text.Csv.record_batches
    monkeypatch.setattr(
        _text.Csv, "record_batches", lambda table, *rest: opened.append(table.path.name) or pieces(table, *rest)
    )
    assert run(*checkpoint, "--resume") == 0
    assert opened == ["1.csv"]
    same(tmp_path / "state.json", learned(X, 100))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eps", 0.5], r"--eps was 0\.0, and is 0\.5"),
        (["--halflife", 9], r"--halflife was None, and is 9\.0"),
        (["--columns", "a"], r"--columns was \['a', 'b c', 'd,e'\], and is \['a'\]"),
        (["--batch-rows", 99], "--batch-rows was 100, and is 99"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(more, message, checkpoint, tmp_path, capsys):
    before = (tmp_path / "state.json.partial").read_bytes()
    capsys.readouterr()
    assert run(*checkpoint, *more, "--resume") == 1
    line = rf"bncpu: '.*state\.json\.partial' is of another fit: {message}; start afresh without --resume\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert (tmp_path / "state.json.partial").read_bytes() == before and not (tmp_path / "state.json").exists()
    assert run(*checkpoint, *more) == 0
    assert not (tmp_path / "state.json.partial").exists()


def test_a_checkpoint_of_other_files_is_refused(checkpoint, X, tmp_path, capsys):
    first, second = checkpoint[1:3]
    other = write(tmp_path / "other.csv", X)
    rest = [*checkpoint[3:], "--resume"]
    for inputs, message in (
        ([first, other], f"'{second}' was read, not '{other}'"),
        ([first], "there were 2 input files, and are 1"),
        ([first, second, other], "there were 2 input files, and are 3"),
    ):
        capsys.readouterr()
        assert run("fit", *inputs, *rest) == 1
        assert message in capsys.readouterr().err
    os.utime(first, ns=(1, 1))
    assert run(*checkpoint, "--resume") == 1
    assert f"'{first}' has changed" in capsys.readouterr().err
    (tmp_path / "state.json.partial").write_text("{}")
    assert run(*checkpoint, "--resume") == 1
    assert "is no checkpoint of a fit: it does not begin like one; start afresh" in capsys.readouterr().err


def test_nothing_to_resume_is_a_fresh_start(X, tmp_path):
    path = write(tmp_path / "x.csv", X)
    assert run("fit", path, "-o", tmp_path / "state.json", "--batch-rows", 64, "--resume") == 0
    same(tmp_path / "state.json", learned(X, 64))


# ---- memory ----

# Each file is several times what the process may have beside what it has after its imports.
LIMITED = """
    import re, resource, sys
    from bncpu import _files, cli
    import pyarrow.csv, pyarrow.parquet, pyarrow.ipc
    with open("/proc/self/status") as file:
        now = int(re.search(r"VmData:\\s+(\\d+)", file.read())[1]) << 10
    array, table, state = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (now + (80 << 20), -1))
    assert cli.main(["fit", array, "-o", state, "--batch-rows", "30000"]) == 0
    assert cli.main(["transform", state, array, "-o", state + ".parquet"]) == 0
    assert cli.main(["fit", table, "-o", state, "--batch-rows", "30000"]) == 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not limit the memory of a process")
@pytest.mark.parametrize("times", [2, *slow(10)])
def test_files_several_times_larger_than_memory_are_learned_and_transformed(times, tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:  # zeros that take no place on the disk
        shape = (times * (80 << 20) // 64, 8)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + shape[0] * 64)
    n_rows = (80 << 20) // 64
    part = pa.table({name: np.arange(n_rows) % 7.0 for name in "abcdefgh"})
    with pyarrow.parquet.ParquetWriter(tmp_path / "x.parquet", part.schema) as file:
        for _ in range(times):
            file.write_table(part)
    small_stacks = ["sh", "-c", 'ulimit -s 1024; exec "$@"', "sh"]  # of threads, which count
    command = [*small_stacks, sys.executable, "-c", textwrap.dedent(LIMITED).replace("\\\\", "\\")]
    paths = [str(tmp_path / name) for name in ("x.npy", "x.parquet", "state.json")]
    # What is mapped counts, used or not; pyarrow's own allocator and glibc's arenas keep more of it.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    state = BatchNormTransformer.load(tmp_path / "state.json")
    assert state.n_samples_seen_ == times * n_rows
    assert state.mean_ == pytest.approx(np.full(8, 3), rel=1e-4)
    assert pyarrow.parquet.read_metadata(tmp_path / "state.json.parquet").num_rows == shape[0]


# ---- transform ----


@pytest.mark.parametrize("into", ENDINGS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_transformed_into_every_other(ending, into, X, tmp_path, monkeypatch):
    monkeypatch.setattr("bncpu._files.TRANSFORM_BYTES", 8 * 3 * 77)
    path, state, out = write(tmp_path / f"x.{ending}", X), tmp_path / "state.json", tmp_path / f"out.{into}"
    assert run("fit", path, "-o", state) == run("transform", state, path, "-o", out) == 0
    bn = BatchNormTransformer.load(state)
    Y = bn._apply(_door.Samples(_door.as_batch(X)), bn._state.forward, None, None)
    columns = read(out)
    expected = range(3) if into == "npy" else ["x0", "x1", "x2"] if ending == "npy" else NAMES
    assert list(columns) == list(expected)
    np.testing.assert_array_equal(np.stack(list(columns.values()), axis=1), Y)


@pytest.mark.parametrize(("dtype", "result"), [("float32", "float32"), ("float64", "float64"), ("int16", "float64")])
@pytest.mark.parametrize("ending", ["npy", "parquet"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_results_are_double_unless_the_input_is_single(ending, dtype, result, order, X, tmp_path):
    X = np.array(X, dtype=dtype, order=order)
    path, state, out = write(tmp_path / f"x.{ending}", X), tmp_path / "state.json", tmp_path / f"out.{ending}"
    assert run("fit", path, "-o", state) == run("transform", state, path, "-o", out) == 0
    Y = np.stack(list(read(out).values()), axis=1)
    assert Y.dtype == result
    bn = BatchNormTransformer.load(state)
    np.testing.assert_array_equal(Y, bn._apply(_door.Samples(_door.as_batch(X)), bn._state.forward, None, None))


@pytest.mark.parametrize("into", ["csv", "parquet", "arrow"])
@pytest.mark.parametrize("ending", ["csv", "parquet", "ipc"])
def test_other_columns_are_carried_through_in_their_place(ending, into, X, tmp_path):
    ids = [f"r{k}" for k in range(1000)]
    extra = {"id": ids, "label": np.arange(1000), "day": pa.array(np.arange(1000, dtype=np.int32), pa.date32())}
    path, state, out = (
        write(tmp_path / f"x.{ending}", X, extra=extra),
        tmp_path / "state.json",
        tmp_path / f"out.{into}",
    )
    assert run("fit", path, "-o", state, "--columns", '"d,e",a') == run("transform", state, path, "-o", out) == 0
    before, after = read(path), read(out)
    assert list(before) == list(after) == ["id", "label", "day", *NAMES]
    for name in ("id", "label", "day", "b c"):
        # Text stays text, where the other format could tell a type.
        same = before[name].astype(str).astype(object) if ending == "csv" and into != "csv" else before[name]
        np.testing.assert_array_equal(same, after[name])
        assert same.dtype == after[name].dtype
    bn = BatchNormTransformer().fit(X[:, [2, 0]])
    np.testing.assert_allclose(np.stack([after["d,e"], after["a"]], axis=1), bn.transform(X[:, [2, 0]]), rtol=1e-9)


def test_text_of_a_csv_stays_as_it_is(tmp_path):
    (tmp_path / "x.csv").write_text('id,x,n,t\n007,1,1e2,NA\n008,,0.10,"two\nlines"\n009,3,,""\n')
    state, out = tmp_path / "state.json", tmp_path / "out.csv"
    assert run("fit", tmp_path / "x.csv", "-o", state, "--columns", "x") == 0
    assert run("transform", state, tmp_path / "x.csv", "-o", out) == 0
    with open(out, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "x", "n", "t"]
    assert [[row[0], *row[2:]] for row in rows[1:]] == [
        ["007", "1e2", "NA"],
        ["008", "0.10", "two\nlines"],
        ["009", "", ""],
    ]
    assert [row[1] for row in rows[1:]] == ["-1", "", "1"]


def test_a_null_stays_a_null_and_nan_stays_nan(tmp_path):
    pyarrow.parquet.write_table(pa.table({"x": [1.0, None, float("nan"), 3.0]}), tmp_path / "x.parquet")
    state, out = tmp_path / "state.json", tmp_path / "out.parquet"
    assert (
        run("fit", tmp_path / "x.parquet", "-o", state)
        == run("transform", state, tmp_path / "x.parquet", "-o", out)
        == 0
    )
    first, null, nan, last = pyarrow.parquet.read_table(out)["x"].to_pylist()
    assert (first, null, last) == (-1, None, 1) and np.isnan(nan)


def test_columns_are_found_by_name_wherever_they_are(X, tmp_path):
    write(tmp_path / "x.parquet", X)
    write(tmp_path / "turned.csv", X[:, ::-1], NAMES[::-1])
    state, out = tmp_path / "state.json", tmp_path / "out.parquet"
    assert run("fit", tmp_path / "x.parquet", "-o", state) == 0
    assert run("transform", state, tmp_path / "turned.csv", "-o", out) == 0
    assert list(read(out)) == NAMES[::-1]
    np.testing.assert_allclose([read(out)[name].std() for name in NAMES], 1)


def test_a_state_made_in_python_transforms_files(X, tmp_path):
    path, state, out = write(tmp_path / "x.csv", X), tmp_path / "state.json", tmp_path / "out.npy"
    bn = BatchNormTransformer(gamma=[1, 2, 3], beta=[0, 1, 2]).fit(X)
    bn.save(state)
    assert run("transform", state, path, "-o", out) == 0
    np.testing.assert_array_equal(np.load(out), bn.transform(X))


# ---- merge and show ----


def test_merged_states_are_those_of_all_rows(X, tmp_path):
    states = []
    for k, part in enumerate(np.split(X, [300, 310])):
        states.append(tmp_path / f"{k}.json")
        run("fit", write(tmp_path / f"{k}.parquet", part), "-o", states[-1])
    assert run("merge", *states, "-o", tmp_path / "all.json") == 0
    merged = BatchNormTransformer.load(tmp_path / "all.json")
    np.testing.assert_allclose(merged.mean_, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(merged.var_, X.var(axis=0), rtol=1e-12)
    assert merged.n_samples_seen_ == 1000 and list(merged.feature_names_in_) == NAMES


def test_show_prints_what_a_state_holds(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("name,speed\nx,1\ny,\nz,3\n")
    run("fit", tmp_path / "x.csv", "-o", tmp_path / "state.json", "--halflife", "1e9", "--eps", "0.5")
    capsys.readouterr()
    assert run("show", tmp_path / "state.json") == 0
    assert capsys.readouterr().out.splitlines() == [
        "halflife statistics of 2 rows in 1 batch(es); parameters: eps=0.5, halflife=1000000000.0",
        "",
        "column     mean      std  count",
        "speed   2.00000  1.00000      2",
    ]


def test_show_prints_a_half_life_of_time(tmp_path, capsys):
    times = np.datetime64("2020-01-01") + np.arange(4)
    bn = BatchNormTransformer(halflife=np.timedelta64(36, "h")).partial_fit(np.arange(4.0)[:, None], times=times)
    bn.save(tmp_path / "state.json")
    assert run("show", tmp_path / "state.json") == 0
    head = "timed halflife statistics of 4 rows in 1 batch(es); parameters: halflife=1 day, 12:00:00"
    assert capsys.readouterr().out.splitlines()[0] == head


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n\n3,oops\n", r"line 4: 'oops' in column 'b' is no number"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 fields, not 2"),
        ('t,a,b\n"one\ntwo",1,2\nx,3,-inf\n', "line 4: infinity in column 'b'; leave it out or make it missing"),
        ("a,b\r\n1,inf\r\n\r\ninf,3\r\n", "line 2: infinity in column 'b' and 1 more; leave it out or make it missing"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("command", ["fit", "transform"])
def test_a_bad_row_of_a_csv_is_named_by_its_line(command, compressed, text, message, tmp_path, capsys):
    filler = {2: "1,2\n", 3: "u,1,2\n"}[len(text.split("\n")[0].split(","))]
    head, rest = text.split("\n", 1)
    if "oops" in text:  # not in the first block, which decides what a column holds
        n = 400_000
        text, message = head + "\n" + filler * n + rest, message.replace("line 4", f"line {n + 4:,}")
    path, state, out = tmp_path / "x.csv", tmp_path / "state.json", tmp_path / "out.csv"
    path.write_bytes(text.encode())
    if compressed:
        path = tmp_path / "x.csv.gz"
        path.write_bytes(gzip.compress(text.encode(), 1))
    BatchNormTransformer().fit(pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0]})).save(state)
    before, arguments = state.read_bytes(), {"fit": (path, "-o", state), "transform": (state, path, "-o", out)}
    assert run(command, *arguments[command]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"bncpu: '{path}', {message}"
    assert state.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted({path.name, "x.csv", "state.json"})


@pytest.mark.parametrize("ending", ["npy", "parquet", "arrow"])
def test_a_bad_row_of_a_binary_file_is_named_by_its_number(ending, X, tmp_path, capsys):
    first = write(tmp_path / f"0.{ending}", X[:321])
    X[700, 1] = -np.inf
    second, out = write(tmp_path / f"1.{ending}", X[321:]), tmp_path / "state.json"
    assert run("fit", first, second, "-o", out, "--batch-rows", 50) == 1
    column = "x1" if ending == "npy" else "b c"
    where = f"'{second}', row 379: infinity in column '{column}'"
    assert capsys.readouterr().err == f"bncpu: {where}; leave it out or make it missing\n"
    assert not out.exists()
    run("fit", first, "-o", out)
    old = write(tmp_path / f"out.{ending}", X[:2]).read_bytes()
    assert run("transform", out, second, "-o", tmp_path / f"out.{ending}", "--force") == 1
    assert where in capsys.readouterr().err
    assert (tmp_path / f"out.{ending}").read_bytes() == old
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_bad_weight_is_named_by_its_line(weight, X, tmp_path, capsys):
    weights = np.ones(1000)
    weights[432] = weight
    path = write(tmp_path / "x.csv", X, extra={"w": weights})
    assert run("fit", path, "-o", tmp_path / "s.json", "--weights", "w", "--batch-rows", 100) == 1
    message = f"'{path}', line 434: the weight is {weight:g}; weights must be finite and not negative"
    assert capsys.readouterr().err == f"bncpu: {message}\n"


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({"0.csv": "a,b\n1,2\n", "1.csv": "a,c\n1,2\n"}, [], "1.csv' has no column 'b'"),
        ({"0.csv": "a,b\n1,2\n", "1.csv": "a,b\n1,x\n"}, [], "the column 'b' of '.*1.csv' does not hold numbers"),
        ({"0.csv": "a\n1\n", "1.csv": "a,b\n1,2\n"}, [], "1.csv' has a column 'b' of numbers, '.*0.csv' has not"),
        ({"0.csv": "a\n1\n"}, ["--columns", "b"], "0.csv' has no column 'b'"),
        ({"0.csv": "a\n1\n"}, ["--weights", "b"], "0.csv' has no column 'b'"),
        ({"0.csv": "a\n1\n"}, ["--weights", "a"], "0.csv' has no column of numbers beside the weights"),
        ({"0.csv": "a\nx\n"}, [], "0.csv' has no column of numbers"),
        ({"0.csv": "a,b\n1,2\n"}, ["--exclude", "c"], "0.csv' has no column 'c'"),
        ({"0.csv": "a,b\n1,2\n"}, ["--exclude", "a,b"], "0.csv' has no column of numbers beside .* those excluded"),
        ({"0.csv": "a\n1\n"}, ["--momentum", "0.9"], "line 2.*: with momentum a batch needs at least two values"),
        ({"0.csv": "a,w\n1,0\n"}, ["--weights", "w"], "line 2.*at least one non-zero number"),
        ({}, [], "no table in '.*in'"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(files, more, message, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    assert run("fit", tmp_path / "in", "-o", tmp_path / "s.json", *more) == 1
    assert re.fullmatch(rf"(bncpu: left out, .*\n)?bncpu: .*{message}.*\n", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["in"]


def test_npys_that_do_not_fit_are_one_line(X, tmp_path, capsys):
    whole, narrow = write(tmp_path / "0.npy", X), write(tmp_path / "1.npy", X[:, :2])
    table = write(tmp_path / "2.csv", X, ["x0", "x1", "x2"])
    cut_off = tmp_path / "3.npy"
    cut_off.write_bytes(whole.read_bytes()[:-5])
    out = tmp_path / "s.json"
    for arguments, message in (
        ([whole, narrow], "1.npy' has other columns than '.*0.npy': 2 without names, not 3 without names"),
        ([whole, table], "2.csv' has other columns than '.*0.npy': 3, not 3 without names"),
        ([whole, "--columns", "x0"], "0.npy' has no column names, for --columns, --exclude or --weights"),
        ([cut_off], "3.npy' is not an array of numbers as np.save writes it: 5 bytes are missing at its end"),
        ([whole, tmp_path / "." / "0.npy"], "0.npy' is named twice"),
        ([tmp_path / "9*.npy"], r"no file matches '.*9\*.npy'"),
        ([tmp_path / "9.npy"], "No such file or directory: '.*9.npy'"),
    ):
        assert run("fit", *arguments, "-o", out) == 1
        assert re.fullmatch(rf"bncpu: .*{message}\n", capsys.readouterr().err)
        assert not out.exists()


def test_an_output_that_is_an_input_is_refused(X, tmp_path, capsys):
    path, state = write(tmp_path / "x.npy", X), tmp_path / "s.json"
    run("fit", path, "-o", state)
    for arguments in (["fit", path, "-o", path], ["transform", state, path, "-o", path]):
        before = path.read_bytes()
        assert run(*arguments) == 1
        assert capsys.readouterr().err == f"bncpu: the output '{path}' is an input\n"
        assert path.read_bytes() == before


def test_a_table_that_the_state_does_not_fit_is_one_line(X, tmp_path, capsys):
    table, array = write(tmp_path / "x.csv", X, extra={"id": range(1000)}), write(tmp_path / "x.npy", X[:, :2])
    state, out = tmp_path / "s.json", tmp_path / "out.npy"
    run("fit", table, "-o", state, "--columns", "a,b c")
    other = write(tmp_path / "other.csv", X, ["a", "b", "c"])
    (tmp_path / "three.npy").write_bytes(write(tmp_path / "y.npy", X).read_bytes())
    for source, message in (
        (table, "a .npy cannot hold the column 'id' of '.*x.csv' beside the numbers"),
        (other, "other.csv' has no column 'b c'"),
        (tmp_path / "three.npy", "three.npy' has 3 columns of numbers, and '.*s.json' 2"),
    ):
        assert run("transform", state, source, "-o", out) == 1
        assert re.fullmatch(rf"bncpu: .*{message}\n", capsys.readouterr().err)
        assert not out.exists()
    assert run("transform", state, array, "-o", out) == 0


def test_states_that_cannot_be_merged_are_named(X, tmp_path, capsys):
    path = write(tmp_path / "x.parquet", X)
    for name, more in (("all", []), ("two", ["--columns", "a,b c"]), ("decayed", ["--halflife", 9])):
        run("fit", path, "-o", tmp_path / f"{name}.json", *more)
    whole, out = tmp_path / "all.json", tmp_path / "out.json"
    for other, message in (
        (tmp_path / "two.json", "two.json' cannot be merged into '.*all.json': other must have 3 features, got 2"),
        (tmp_path / "decayed.json", "decayed.json' has halflife statistics; merge needs cumulative ones, .*"),
        (path, "x.parquet' is not a state file of BatchNormTransformer: it does not begin like one"),
    ):
        assert run("merge", whole, other, "-o", out) == 1
        assert re.fullmatch(rf"bncpu: .*{message}\n", capsys.readouterr().err)
        assert not out.exists()


def test_too_large_a_batch_is_one_line(X, tmp_path, capsys):
    assert run("fit", write(tmp_path / "x.npy", X), "-o", tmp_path / "s.json", "--batch-rows", 10**15) == 1
    assert re.fullmatch(r"bncpu: not enough memory .*; a smaller --batch-rows needs less\n", capsys.readouterr().err)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this platform has no pseudo-terminals")
def test_a_terminal_sees_how_far_it_is(X, tmp_path):
    path, out = write(tmp_path / "x.csv", X), tmp_path / "state.json"
    main, side = os.openpty()
    command = [sys.executable, "-m", "bncpu", "fit", str(path), "-o", str(out), "--batch-rows", "99"]
    env = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    done = subprocess.run(command, stderr=side, stdout=subprocess.PIPE, check=True, env=env)
    os.close(side)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.stdout == b""
    assert re.search(r"fit.*100%.* rows/s .* MB/s", shown)
    assert shown.endswith(f"1,000 rows, 3 columns, 11 batches: {out}\r\n")


@pytest.mark.parametrize("name", ["a.csv", "new.csv", "new.parquet", "NEW.NPY", "a.csv.gz"])
def test_a_state_with_the_name_of_a_table_is_refused(name, tmp_path, capsys):
    """As where the name of the state was forgotten."""
    for table in ("a.csv", "b.csv"):
        (tmp_path / table).write_text("x\n1\n2\n")
    state = tmp_path / "state.json"
    assert run("fit", "-o", state, tmp_path / "b.csv") == 0
    for command in (("fit", "-o", tmp_path / name, tmp_path / "b.csv"), ("merge", "-o", tmp_path / name, state, state)):
        assert run(*command) == 1
        assert "must name a state" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "b.csv", "state.json"]
    assert (tmp_path / "a.csv").read_text() == "x\n1\n2\n"


def test_no_file_of_somebody_else_is_replaced_by_a_state_or_a_checkpoint(tmp_path, capsys):
    (tmp_path / "b.csv").write_text("x\n1\n2\n")
    for name in ("notes.txt", "state.partial"):
        (tmp_path / name).write_text("mine")
        assert run("fit", "-o", tmp_path / name.replace(".partial", ""), tmp_path / "b.csv") == 1
        assert "no file of bncpu's" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"


def test_a_clip_of_fit_limits_what_transform_writes(tmp_path):
    X = np.random.default_rng(0).standard_normal((100, 2))
    np.save(tmp_path / "x.npy", X)
    state, y = str(tmp_path / "state.json"), str(tmp_path / "y.npy")
    assert cli.main(["fit", str(tmp_path / "x.npy"), "-o", state, "--clip", "0.5"]) == 0
    assert cli.main(["transform", state, str(tmp_path / "x.npy"), "-o", y]) == 0
    np.testing.assert_array_equal(np.load(y), np.clip(BatchNormTransformer().fit_transform(X), -0.5, 0.5))
