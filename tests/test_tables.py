"""Tables in files come a batch at a time with every number in its column."""

import builtins
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from bncpu import _inputs, _tables

COLUMNS = {
    "whole": pa.array([1, None, 3, 4], pa.int64()),
    "small": pa.array([1, 2, None, 250], pa.uint8()),
    "text": ["a", "b", "c", "d"],
    "real": pa.array([0.1, None, float("nan"), -1e300], pa.float64()),
    "half": pa.array(np.array([1, 2, 3, 0.5], np.float16)),
    "true": pa.array([True, False, None, True]),
    "empty": pa.array([None] * 4, pa.float32()),
}
NUMBERS = np.array(
    [
        [1, 1, 0.1, 1, 1, np.nan],
        [np.nan, 2, np.nan, 2, 0, np.nan],
        [3, np.nan, np.nan, 3, np.nan, np.nan],
        [4, 250, -1e300, 0.5, 1, np.nan],
    ]
)


@pytest.fixture(params=["parquet", "csv"])
def file(request, tmp_path):
    path = tmp_path / f"table.{request.param.upper()}"
    table = pa.table(COLUMNS)
    if request.param == "csv":
        table = table.set_column(4, "half", table["half"].cast(pa.float64()))
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def test_numbers_come_as_float64_and_gaps_as_nan(file):
    table = _inputs.read(file)
    assert table.columns == ["whole", "small", "real", "half", "true", "empty"]
    assert table.left_out == ["text"]
    np.testing.assert_array_equal(np.concatenate(list(table.batches)), NUMBERS)


@pytest.mark.parametrize("dtype", ["float32", "int16", "bool", ">f8"])
def test_npy_files_keep_their_dtype(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(_tables, "BATCH_ROWS", 4)
    X = np.arange(30).reshape(10, 3).astype(dtype)
    np.save(tmp_path / "x.npy", X)
    table = _inputs.read(tmp_path / "x.npy")
    batches = [batch.copy() for batch in table.batches]
    assert table.n_batches == len(batches) == 3
    assert all(batch.dtype == dtype for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), X)
    assert table.columns == ["x0", "x1", "x2"]


def test_batches_are_as_small_as_asked_for(file, monkeypatch):
    monkeypatch.setattr(_tables, "BATCH_ROWS", 3)
    table = _inputs.read(file)
    batches = list(table.batches)
    assert table.n_batches in (None, len(batches))
    if file.suffix == ".PARQUET":
        assert [len(batch) for batch in batches] == [3, 1]


def test_a_whole_number_that_becomes_real_late_in_a_csv_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(_tables, "BATCH_BYTES", 1 << 18)
    lines = ["a,b"] + ["1,2"] * 300_000 + ["0.5,"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    table = _inputs.read(tmp_path / "x.csv")
    batches = list(table.batches)
    assert len(batches) > 3
    assert batches[-1][-1, 0] == 0.5 and np.isnan(batches[-1][-1, 1])
    assert sum(map(len, batches)) == 300_001
    lines[-1] = "1,oops"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"x\.csv', line 300,002: 'oops' in column 'b' is no number"):
        list(_inputs.read(tmp_path / "x.csv").batches)


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_a_small_file_is_cut_into_the_batches_asked_for(kind, tmp_path):
    X, path = np.random.default_rng(0).standard_normal((2000, 3)), tmp_path / f"x.{kind}"
    frame = pa.table(dict(zip("abc", X.T, strict=True)))
    {
        "npy": lambda: np.save(path, X),
        "csv": lambda: pyarrow.csv.write_csv(frame, path),
        "parquet": lambda: pyarrow.parquet.write_table(frame, path),
    }[kind]()
    batches = [batch.copy() for batch in _inputs.read(path, n_batches=20).batches]
    assert 18 <= len(batches) <= 22
    np.testing.assert_array_equal(np.concatenate(batches), X)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"1", r"the file must end in \.npy, \.csv, .*, \.ipc .*; got '.*x.txt'"),
        ("x.csv", b"a,b\nx,y\n", "has no column of numbers"),
        ("x.csv", b"", "is not a table of text: it is empty"),
        ("x.csv", b"a,b\n1,2\n3\n", "line 3 has 1 field, not 2"),
        ("x.parquet", b"not parquet", "Parquet magic bytes not found"),
        (
            "x.npy",
            b"not npy",
            "x.npy' is not an array of numbers as np.save writes it: EOF: reading magic string",
        ),
        ("x.npy", b"", "is not an array of numbers as np.save writes it"),
        (
            "x.csv",
            b"a\n1;2\n3,4\n",
            r"x.csv', line 3 has 2 fields, not 1",
        ),
        ("x.csv", "a\n\xf6\n".encode("latin-1"), "its encoding is cp1252"),
    ],
)
def test_files_that_are_no_table_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        list(_inputs.read(path).batches)


def test_a_line_of_a_csv_may_be_longer_than_what_is_parsed_at_a_time(tmp_path):
    names, row = [f"{c:->1000}" for c in range(2000)], ["1"] * 2000
    (tmp_path / "x.csv").write_text("\n".join(map(",".join, [names, row, row])))
    table = _inputs.read(tmp_path / "x.csv")
    assert table.columns == names
    assert [batch.shape for batch in table.batches] == [(2, 2000)]


def test_whole_numbers_beyond_float64s_are_rounded(tmp_path):
    pyarrow.parquet.write_table(pa.table({"id": pa.array([2**60 + 1, -(2**63)])}), tmp_path / "x.parquet")
    (batch,) = _inputs.read(tmp_path / "x.parquet").batches
    np.testing.assert_array_equal(batch[:, 0], [2.0**60, -(2.0**63)])


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="has no column of numbers"):
        _inputs.read(tmp_path / "x.csv")
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="it holds several arrays"):
        _inputs.read(tmp_path / "x.npy")


@pytest.mark.parametrize("X", [np.zeros(3), np.zeros((2, 2), complex), np.zeros((2, 2), "U1"), np.zeros((1, 2, 3))])
def test_an_array_that_is_no_table_is_refused(X, tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=re.escape(f"got {X.dtype} of {X.shape}")):
        _inputs.read(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.npy"])
def test_a_file_that_is_not_there_is_an_os_error(name, tmp_path):
    with pytest.raises(FileNotFoundError):
        _inputs.read(tmp_path / name)


def test_a_missing_pyarrow_is_named_with_its_extra(file, monkeypatch):
    imports = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"^\{file.suffix} files need pyarrow: pip install 'bncpu\[io\]'"):
        _inputs.read(file)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2"])
def test_batches_of_an_array_are_its_rows_wherever_they_begin(dtype, tmp_path):
    X = np.random.default_rng(0).integers(-999, 999, (5003, 7)).astype(dtype)
    np.save(tmp_path / "x.npy", X)
    table = _inputs.open_table(tmp_path / "x.npy", _tables.Reading())
    for skip, n_rows in ((0, 1000), (17, 999), (5002, 10)):
        batches = _tables.cut(table.pieces(table.numbers, skip), table.numbers, n_rows, np.dtype(dtype), "C")
        rows = [batch.X.copy() for batch in batches]
        assert [len(batch) for batch in rows[:-1]] == [n_rows] * ((5003 - skip - 1) // n_rows)
        np.testing.assert_array_equal(np.concatenate(rows), X[skip:])


def test_an_array_that_becomes_shorter_while_it_is_read_is_one_line(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((1000, 8)))
    table = _inputs.open_table(path, _tables.Reading())
    batches = _tables.cut(table.pieces(table.numbers), table.numbers, 100, np.dtype(float), "C")
    next(batches)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(ValueError, match=r"x\.npy' is not .*: it became shorter while it was read$"):
        list(batches)
