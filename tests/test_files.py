"""The commands over files: what they make of a stream of files, whatever the format, the cuts and the interruptions."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from arrays import examples, normal

from bncpu import BatchNormTransformer, _files, cli

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
        table = pyarrow.feather.read_table(path)
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
    np.testing.assert_array_equal(state._learned.values, bn._learned.values)
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
    assert [p.relative_to(tmp_path).as_posix() for p in _files.found(list(map(str, inputs)))] == [
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
@pytest.mark.parametrize("options", [["--momentum", "0.9"], ["--weights", "w", "--halflife", "1000"]])
def test_a_fit_killed_at_random_moments_goes_on_to_the_same_bytes(options, tmp_path):
    X, w = normal(4, (20_000, 3)), np.random.default_rng(5).uniform(0, 2, 20_000)
    names = ["0.csv", "1.parquet", "2.arrow", "3.csv.gz", "4.ipc"]
    parts = [slice(0, 6000), slice(6000, 6001), slice(6001, 13_000), slice(13_000, 13_100), slice(13_100, 20_000)]
    for name, part in zip(names, parts, strict=True):
        write(tmp_path / name, X[part], extra={"w": w[part]} if "--weights" in options else None)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), "--batch-rows", "512", *options]
    command += [str(tmp_path / "state.json"), str(examples(2, 10))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
