"""What casts to float and is no number, what has gaps, and what streams give: learned rightly or refused by name."""

import datetime
import decimal
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pytest
from arrays import normal, polars, same_bits
from scipy import sparse

from bncpu import BatchNormDisplay, BatchNormTransformer, batch_norm

NUMBERS = normal(1, (6, 2))
DATES = np.array(["2020-01-01", "2020-01-03", "NaT", "2021-01-01", "2022-01-01", "2022-01-05"], "M8[s]")
DURATIONS = DATES - DATES[0]


def unchanged(bn, call, *given, match, error=TypeError):
    before = repr(bn.__dict__)
    with pytest.raises(error, match=match):
        call(*given)
    assert repr(bn.__dict__) == before


# ---- dates, durations and records ----

NO_NUMBERS = {
    "dates": lambda: DATES.reshape(3, 2),
    "durations": lambda: DURATIONS.reshape(3, 2),
    "days": lambda: DATES.astype("M8[D]").reshape(3, 2),
    "a list of dates": lambda: [list(row) for row in DATES.reshape(3, 2)],
    "objects that are dates": lambda: np.array([[np.datetime64("2020"), 1.0]] * 3, object),
    "records": lambda: np.zeros((3, 2), [("a", "f4")]),
    "a column of dates": lambda: pd.DataFrame({"n": NUMBERS[:3, 0], "when": DATES[:3]}),
    "a column of dates with a zone": lambda: pd.DataFrame(
        {"n": NUMBERS[:3, 0], "when": pd.to_datetime(DATES[:3]).tz_localize("UTC")}
    ),
    "a column of durations": lambda: pd.DataFrame({"n": NUMBERS[:3, 0], "when": DURATIONS[:3]}),
    "a column of periods": lambda: pd.DataFrame(
        {"n": NUMBERS[:3, 0], "when": pd.period_range("2020", periods=3, freq="D")}
    ),
    "a column of arrow's dates": lambda: pd.DataFrame(
        {"n": NUMBERS[:3, 0], "when": pd.array(DATES[:3].astype(object), dtype=pd.ArrowDtype(pa.timestamp("s")))}
    ),
    "polars": lambda: polars().DataFrame({"n": NUMBERS[:3, 0], "when": DATES[:3].astype("M8[us]")}),
    "polars durations": lambda: polars().DataFrame({"n": NUMBERS[:3, 0], "when": DURATIONS[:3].astype("m8[us]")}),
    "pyarrow": lambda: pa.table({"n": NUMBERS[:3, 0], "when": pa.array(DATES[:3])}),
    "pyarrow date32": lambda: pa.table({"n": NUMBERS[:3, 0], "when": pa.array(DATES[:3].astype("M8[D]"))}),
    "a record batch": lambda: pa.record_batch({"n": pa.array(NUMBERS[:3, 0]), "when": pa.array(DURATIONS[:3])}),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_dates_durations_and_records_are_no_numbers(kind):
    X = NO_NUMBERS[kind]()
    named = "'when'" if hasattr(X, "columns") else ""
    match = f"X must hold numbers, got .*{named}.*leave it out, or make numbers of it"
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, X, match=match)
    unchanged(bn, bn.partial_fit, X, match=match)
    unchanged(bn, bn.fit_stream, [X], match=match)
    bn.fit(NUMBERS if not named else pd.DataFrame(NUMBERS, columns=["n", "when"]))
    unchanged(bn, bn.transform, X, match=match)
    unchanged(bn, bn.inverse_transform, X, match=match)


def test_blocks_of_dates_are_no_numbers():
    da = pytest.importorskip("dask.array")
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, da.from_array(DATES.reshape(3, 2)), match="X must hold numbers, got datetime64")


def test_dates_are_no_weights():
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, NUMBERS, None, DURATIONS, match="sample_weight must hold numbers, got timedelta64")


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("x", ValueError, "'x' in row 1 of column"),
        (10**400, ValueError, "in row 1 of column"),
        (pd.NA, TypeError, "<NA> in row 1 of column"),
        (datetime.date(2020, 1, 1), TypeError, "datetime.date.* in row 1 of column"),
        (decimal.Decimal("sNaN"), ValueError, "sNaN.* in row 1 of column"),
    ],
)
def test_objects_that_are_no_numbers_are_named_with_their_column(value, error, says):
    X = np.array([[1.0, 2.0], [3.0, value], [4.0, None]], object)
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, X, match=f"X must hold numbers, got .*{says} 1", error=error)
    frame = pd.DataFrame(X, columns=["a", "b"])
    if not isinstance(value, str):
        frame["a"] = frame["a"].astype(float)
    unchanged(bn, bn.fit, frame, match="X must hold numbers, got .*'b'", error=error)
    bn.fit(NUMBERS)
    for call in (bn.transform, bn.inverse_transform):
        unchanged(bn, call, X, match=f"X must hold numbers, got .*{says} 1", error=error)


def test_objects_in_blocks_are_named_by_their_place_in_the_whole():
    da = pytest.importorskip("dask.array")
    X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, "x"]], object)
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, da.from_array(X, chunks=(2, 1)), match="got 'x' in row 2 of column 1", error=ValueError)
    y = bn.fit(NUMBERS).transform(da.from_array(X, chunks=(2, 1)))
    with pytest.raises(ValueError, match="got 'x' in row 0 of a block of column 1"):
        y.compute()


@pytest.mark.parametrize("values", [[[1.0], [2.0]], [{"c": 1}, {"c": 2}]])
def test_columns_of_lists_and_structs_are_no_numbers(values):
    X = polars().DataFrame({"a": [1.0, 2.0], "b": values})
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, X, match="in row 0 of column 'b': it is not one value")


@pytest.mark.parametrize(
    ("X", "kind"),
    [({"a": [1.0]}, "dict"), ({1.0, 2.0}, "set"), (iter([[1.0]]), "list_iterator"), (map(abs, [1]), "map")],
)
def test_what_has_no_rows_and_columns_is_refused_by_its_type(X, kind):
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, X, match=f"X must be an array, a frame or a sparse matrix, got a {kind}")


class Recorded:
    """A tensor whose gradients are recorded, as far as one can tell."""

    requires_grad, shape, ndim = True, (3, 2), 2

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_tensors_that_record_gradients_are_refused():
    bn = BatchNormTransformer().fit(NUMBERS)
    for call in (bn.fit, bn.partial_fit, bn.transform, bn.inverse_transform):
        unchanged(bn, call, Recorded(), match=r"X must not require gradients, .*: pass X.detach\(\)")
    unchanged(bn, bn.fit, NUMBERS, None, Recorded(), match=r"sample_weight must not require gradients")


@pytest.mark.parametrize("name", ["Int128", "UInt128"])
def test_integers_of_128_bits_are_numbers(name):
    pl = polars()
    if not hasattr(pl, name):
        return  # of later versions
    values = [1, 2, 2**70]
    X = pl.DataFrame({"a": pl.Series(values, dtype=getattr(pl, name)), "b": [1.0, 2.0, 3.0]})
    expected = BatchNormTransformer().fit(np.array([values, [1, 2, 3]], float).T)
    np.testing.assert_array_equal(BatchNormTransformer().fit(X).mean_, expected.mean_)


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_text_of_other_tables_is_named_as_that_of_pandas(library):
    data = {"a": [1.0, 2.0], "b": ["x", "y"]}
    X = polars().DataFrame(data) if library == "polars" else pa.table(data)
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, X, match="X must hold numbers, got 'x' in row 0 of column 'b'", error=ValueError)


def test_a_lazy_frame_is_to_be_collected_first():
    bn = BatchNormTransformer().fit(NUMBERS)
    lazy = polars().DataFrame(NUMBERS).lazy()
    for call in (bn.fit, bn.partial_fit, bn.transform, bn.inverse_transform):
        unchanged(bn, call, lazy, match=r"X must be in memory, got a LazyFrame; collect\(\) it first")


def test_columns_of_float32_stay_float32_in_every_table():
    data = {"a": NUMBERS[:, 0].astype("f4"), "b": NUMBERS[:, 1].astype("f4")}
    whole = np.stack([*data.values()], axis=1)
    expected = BatchNormTransformer().fit_transform(whole)
    for X in (pd.DataFrame(data), polars().DataFrame(data), pa.table(data)):
        bn = BatchNormTransformer()
        y = bn.fit(X).transform(X)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, expected, rtol=1e-6)


# ---- masked arrays ----


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i4", "u1"])
def test_masked_values_are_missing(dtype):
    values = np.arange(12).reshape(6, 2).astype(dtype)
    X = np.ma.masked_array(values, mask=values % 5 == 0)
    gaps = np.where(X.mask, np.nan, values.astype("f8")).astype(dtype if dtype[0] == "f" else "f8")
    for learn in ("fit", "partial_fit"):
        bn, expected = (getattr(BatchNormTransformer(), learn)(a) for a in (X, gaps))
        assert same_bits(bn.mean_, expected.mean_)
        assert same_bits(bn.var_, expected.var_)
    assert same_bits(bn.transform(X), expected.transform(gaps))
    assert type(bn.transform(X)) is np.ndarray
    assert same_bits(bn.inverse_transform(X), expected.inverse_transform(gaps))
    assert same_bits(BatchNormTransformer().fit_stream([X, X]).mean_, expected.mean_)
    assert same_bits(BatchNormTransformer().fit([*X]).mean_, expected.mean_)
    nothing_masked = np.ma.masked_array(values)
    assert same_bits(BatchNormTransformer().fit(nothing_masked).var_, BatchNormTransformer().fit(values).var_)


def test_masked_pixels_rows_and_weights():
    images = np.ma.masked_greater(normal(2, (5, 3, 4, 4)), 1.0)
    bn = BatchNormTransformer(channel_axis=1).fit(images)
    np.testing.assert_allclose(bn.mean_, images.mean(axis=(0, 2, 3)), rtol=1e-12)
    weights = np.ma.masked_array(np.ones(6), mask=[0, 1, 0, 0, 1, 0])
    expected = BatchNormTransformer().fit(NUMBERS, sample_weight=weights.filled(0))
    assert same_bits(BatchNormTransformer().fit(NUMBERS, sample_weight=weights).mean_, expected.mean_)
    assert same_bits(BatchNormTransformer(batch_size=2).fit(np.ma.masked_array(NUMBERS)).mean_.round(12),
                     BatchNormTransformer().fit(NUMBERS).mean_.round(12))  # fmt: skip


def test_masked_blocks():
    da = pytest.importorskip("dask.array")
    X = np.ma.masked_greater(normal(3, (20, 2)), 0.5)
    bn = BatchNormTransformer().fit(da.from_array(X, chunks=(5, 2)))
    np.testing.assert_allclose(bn.mean_, X.mean(axis=0), rtol=1e-12)


# ---- streams ----


class Tensor:
    """A tensor in CPU memory, of a library that is not NumPy."""

    def __init__(self, a):
        self.a, self.shape, self.ndim = a, a.shape, a.ndim

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


FRAME = pd.DataFrame(NUMBERS, columns=["a", "b"])
Y = np.arange(6)
PAIRS = {
    "arrays": lambda: (NUMBERS, Y),
    "three": lambda: (NUMBERS, Y, Y),
    "a frame": lambda: (FRAME, Y),
    "polars": lambda: (polars().DataFrame({"a": NUMBERS[:, 0], "b": NUMBERS[:, 1]}), Y),
    "pyarrow": lambda: (pa.table({"a": NUMBERS[:, 0], "b": NUMBERS[:, 1]}), Y),
    "a list": lambda: (NUMBERS.tolist(), Y),
    "tensors": lambda: (Tensor(NUMBERS), Tensor(Y)),
    "a list of tensors": lambda: [Tensor(NUMBERS), Tensor(Y)],
    "a list with a frame": lambda: [FRAME, Y],
}


@pytest.mark.parametrize("kind", PAIRS)
def test_of_a_pair_the_first_is_the_batch(kind):
    bn = BatchNormTransformer().fit_stream([PAIRS[kind](), PAIRS[kind]()])
    assert bn.n_samples_seen_ == 12
    np.testing.assert_allclose(bn.mean_, NUMBERS.mean(axis=0), rtol=1e-12)


def test_a_list_of_arrays_is_a_batch():
    image = normal(4, (4, 4, 3))
    bn = BatchNormTransformer(channel_axis=-1).fit_stream([[image, image + 100]])
    expected = BatchNormTransformer(channel_axis=-1).fit(np.stack([image, image + 100]))
    assert same_bits(bn.mean_, expected.mean_)
    assert bn.n_samples_seen_ == expected.n_samples_seen_
    assert BatchNormTransformer().fit_stream([[NUMBERS[0], NUMBERS[1]]]).n_samples_seen_ == 2


@pytest.mark.parametrize(
    ("batches", "error", "says"),
    [
        ([(NUMBERS[:, 0], Y)], ValueError, "Expected 2D array, got 1D array"),
        ([[Tensor(NUMBERS), Tensor(NUMBERS)]], TypeError, "say by key= which part is X"),
        ([{"x": NUMBERS}], TypeError, "got a dict; say by key= which part"),
        (enumerate([NUMBERS]), TypeError, r"got 0; of tuples the first is taken, key= names another"),
        (FRAME.groupby([0, 0, 1, 1, 2, 2]), TypeError, "of tuples the first is taken"),
        (NUMBERS, TypeError, "batches must be an iterable of batches, got one ndarray"),
        (FRAME, TypeError, "got one DataFrame"),
    ],
)
def test_what_is_no_batch_is_refused(batches, error, says):
    bn = BatchNormTransformer().fit(NUMBERS)
    unchanged(bn, bn.fit_stream, batches, match=says, error=error)


def test_images_are_no_stream_of_images():
    bn = BatchNormTransformer(channel_axis=1)
    for one in (np.zeros((5, 3, 8, 4)), np.zeros((5, 3, 8))):
        unchanged(bn, bn.fit_stream, one, match="got one ndarray")
    assert BatchNormTransformer().fit_stream(normal(5, (4, 6, 2))).n_samples_seen_ == 24


def test_key_says_what_the_batch_is():
    expected = BatchNormTransformer().fit_stream([NUMBERS, NUMBERS])
    for batches, key in (
        ([{"x": NUMBERS, "y": Y}] * 2, "x"),
        (enumerate([NUMBERS, NUMBERS]), 1),
        ([[Tensor(NUMBERS), Tensor(NUMBERS)]] * 2, 0),
        ([FRAME.assign(label=Y)] * 2, ["a", "b"]),
        ([{"deep": {"x": NUMBERS}}] * 2, lambda item: item["deep"]["x"]),
    ):
        bn = BatchNormTransformer().fit_stream(batches, key=key)
        assert same_bits(bn.mean_, expected.mean_)
        assert bn.n_samples_seen_ == 12
    with pytest.raises(KeyError) as caught:
        BatchNormTransformer().fit_stream([{"x": NUMBERS}], key="z")
    assert caught.value.__notes__ == ["in batch 1 of the stream"]


@pytest.mark.parametrize(
    "empty", [NUMBERS[:0], FRAME[:0], [], (NUMBERS[:0], Y[:0])], ids=["array", "frame", "list", "pair"]
)
def test_batches_without_rows_are_skipped(empty):
    bn = BatchNormTransformer().fit_stream([empty, NUMBERS, empty, NUMBERS])
    assert bn.n_batches_seen_ == 2
    with pytest.raises(ValueError, match="at least one batch"):
        BatchNormTransformer().fit_stream([empty])


def test_a_drawn_stream_takes_what_fit_stream_takes():
    pytest.importorskip("matplotlib")
    display = BatchNormDisplay.from_stream(BatchNormTransformer(), [(NUMBERS, Y), NUMBERS[:0], NUMBERS])
    assert display.n_seen.tolist() == [6, 12]
    with pytest.raises(TypeError, match="got one ndarray"):
        BatchNormDisplay.from_stream(BatchNormTransformer(), NUMBERS)


def test_workers_without_rows_change_nothing():
    bn, other = BatchNormTransformer().fit(NUMBERS), BatchNormTransformer()
    before = repr(bn.__dict__)
    assert bn.merge(other) is bn
    assert repr(bn.__dict__) == before
    fresh = BatchNormTransformer()
    assert fresh.merge(other) is fresh
    assert not hasattr(fresh, "running_mean_")
    with pytest.raises(ValueError, match="halflife"):
        bn.merge(BatchNormTransformer(halflife=3.0))


ENCODED = pa.array([1.0, None, 5.0]).dictionary_encode()


@pytest.mark.parametrize(
    "column",
    [
        ENCODED,
        pa.chunked_array([ENCODED, ENCODED]),
        pa.array([1, None, 5]).dictionary_encode(),
        pa.RunEndEncodedArray.from_arrays([1, 2, 3], pa.array([1.0, None, 5.0])),
    ],
    ids=["dictionary", "chunks", "integers", "run ends"],
)
@pytest.mark.parametrize("batches", [False, True])
def test_nulls_of_encoded_columns_are_missing(column, batches):
    table = pa.table({"a": column})
    X = table.to_batches()[0] if batches else table
    bn = BatchNormTransformer().fit(X)
    assert bn.mean_ == 3
    np.testing.assert_array_equal(bn.transform(X)[:3, 0], [-1, np.nan, 1])


@pytest.mark.parametrize(
    "X",
    [
        pd.DataFrame({"when": pd.Categorical(DATES)}),
        pd.DataFrame({"when": pd.Categorical(DATES - DATES[0])}),
        pa.table({"when": pa.array(DATES).dictionary_encode()}),
        pa.table({"when": pa.RunEndEncodedArray.from_arrays([3], pa.array(DATES[:1]))}),
    ],
    ids=["categories", "categories of durations", "dictionary", "run ends"],
)
def test_dates_in_other_clothes_are_no_numbers(X):
    bn = BatchNormTransformer()
    for call in (bn.fit, bn.partial_fit):
        unchanged(bn, call, X, match="X must hold numbers, got column 'when'")


def test_masked_rows_of_dates_are_no_numbers():
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit, [np.ma.masked_array(DATES, mask=DATES[0] == DATES)], match="X must hold numbers")


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (pa.array(DATES), "sample_weight must hold numbers, got timestamp"),
        (pd.Series(pd.Categorical(DATES)), "sample_weight must hold numbers, got datetime64"),
        (np.nan, "sample_weight must be finite"),
        ([datetime.date(2020, 1, 1)] * 3, "sample_weight must hold numbers"),
        (np.array([1, pd.NA, 1], object), "sample_weight must hold numbers"),
        (["x", 1, 1], "sample_weight must hold numbers"),
    ],
)
def test_weights_that_are_no_numbers_are_named(weights, match):
    bn = BatchNormTransformer()
    n = 3 if np.ndim(weights) == 0 else len(weights)
    with pytest.raises((TypeError, ValueError), match=match):
        bn.fit(np.arange(float(n))[:, None], sample_weight=weights)


def test_what_gives_no_batches_is_refused():
    bn = BatchNormTransformer()
    unchanged(bn, bn.fit_stream, 5, match="batches must be an iterable of batches, got 5")


@pytest.mark.parametrize(
    ("item", "key"), [({"x": NUMBERS}, "z"), ((0, NUMBERS), 9), (NUMBERS, "a"), (5, lambda x: x[0])]
)
def test_a_key_of_no_part_is_named(item, key):
    bn = BatchNormTransformer()
    with pytest.raises((IndexError, KeyError, TypeError), match=r"key=.* must be that of a part"):
        bn.fit_stream([item], key=key)
    assert "n_features_in_" not in vars(bn)


@pytest.mark.parametrize(
    "features", [np.ma.masked_array([0, 1], [0, 1]), ["a", 1], slice("a", "c"), slice(0, 2, 0), [[]]]
)
def test_features_that_are_none_are_refused(features):
    bn = BatchNormTransformer().fit(pd.DataFrame(NUMBERS, columns=["a", "1"]))
    with pytest.raises((TypeError, ValueError), match="features must"):
        bn.select(features)


# ---- kinds found by trying what others report ----


def with_entries(kind, index):
    """A sparse matrix of shape (3, 2) with an index that SciPy does not look at."""
    if kind == "coo":
        X = sparse.coo_matrix((np.ones(2), ([0, 1], [0, 1])), shape=(3, 2))
        X.col = np.array([0, index])
        return X
    if kind == "bsr":
        blocks = np.ones((2, 1, 2)), np.array([0, index // 2]), np.array([0, 1, 1, 2])
        return sparse.bsr_matrix(blocks, shape=(3, 2))
    if kind == "lil":
        X = sparse.lil_matrix((3, 2))
        X.rows[1], X.data[1] = [index], [1.0]
        return X
    if kind == "csc":
        return sparse.csc_array((np.ones(3), [0, 1, index + 1], [0, 2, 3]), shape=(3, 2))
    return sparse.csr_matrix((np.ones(3), [0, 1, index], [0, 1, 2, 3]), shape=(3, 2))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "lil"])
@pytest.mark.parametrize("index", [2, 7, 10**7, -2])
def test_sparse_entries_outside_the_shape_are_refused(kind, index):
    odd = index // 2 if kind == "bsr" else index + (kind == "csc")
    says = rf"^X must be a sparse matrix with entries in its shape \(3, 2\), got the index {odd}$"
    fitted = BatchNormTransformer(with_mean=False).fit(np.eye(2))
    before = pickle.dumps(fitted)
    for call in (
        fitted.partial_fit,
        fitted.transform,
        fitted.inverse_transform,
        BatchNormTransformer(with_mean=False).fit,
    ):
        with pytest.raises(ValueError, match=says):
            call(with_entries(kind, index))
    assert pickle.dumps(fitted) == before


@pytest.mark.parametrize(("part", "values"), [("indptr", [0, 3, 1, 3]), ("indptr", [1, 1, 2, 3]), ("data", [1.0, 1.0])])
def test_sparse_matrices_that_were_taken_apart_are_refused(part, values):
    X = sparse.csr_matrix(np.eye(3))
    setattr(X, part, np.array(values, getattr(X, part).dtype))
    with pytest.raises(ValueError, match=r"^X must be a sparse matrix"):
        BatchNormTransformer(with_mean=False).fit(X)


IN_PANDAS = pd.arrays.ArrowExtensionArray
MOMENTS = pa.array([1, 2], pa.timestamp("s")), pa.array([1, 2], pa.duration("s")), pa.array([1, 2], pa.date32())


@pytest.mark.parametrize("values", MOMENTS, ids=lambda values: str(values.type))
def test_encoded_dates_of_pandas_are_no_numbers(values):
    frame = pd.DataFrame({"a": [3.0, 5.0], "when": IN_PANDAS(values.dictionary_encode())})
    with pytest.raises(TypeError, match=r"^X must hold numbers, got column 'when' \("):
        BatchNormTransformer().fit(frame)
    frame["when"] = IN_PANDAS(pa.compute.run_end_encode(values))
    with pytest.raises(TypeError, match=r"^X must hold numbers, got column 'when' \(run_end_encoded<"):
        BatchNormTransformer().fit(frame)
    numbers = IN_PANDAS(pa.array([1, 3]).dictionary_encode())
    assert BatchNormTransformer().fit(pd.DataFrame({"a": numbers})).mean_ == 2


@pytest.mark.parametrize("cell", [np.array("2026-01-01", "M8[s]"), np.array(3, "m8[s]"), np.zeros(1, [("a", "i8")])[0]])
def test_cells_that_are_dates_or_records_are_no_numbers(cell):
    column = np.empty((2, 1), object)
    column[0, 0], column[1, 0] = 1.0, cell
    for X in (column, pd.DataFrame({"a": column[:, 0]})):
        with pytest.raises(TypeError, match=r"^X must hold numbers, got "):
            BatchNormTransformer().fit(X)
    with pytest.raises(TypeError, match=r"^sample_weight must hold numbers, got "):
        BatchNormTransformer().fit(np.ones((2, 1)), sample_weight=pd.Series(column[:, 0]))


def test_parts_of_a_sparse_value_are_clipped_together():
    bn = BatchNormTransformer(with_mean=False, clip=2.0).fit([[1.0], [3.0]])
    parts = np.array([1.5, 1.5]), np.array([0, 0])
    X = sparse.csr_matrix((*parts, np.array([0, 2, 2])), shape=(2, 1))
    assert bn.transform(X).toarray().tolist() == bn.transform(X.toarray()).tolist() == [[2.0], [0.0]]
    assert X.nnz == 2


def test_sparse_frames_of_booleans_are_learned():
    letters = pd.Series(["a", "b", "a"])
    bn = BatchNormTransformer(with_mean=False).fit(pd.get_dummies(letters, sparse=True))
    np.testing.assert_allclose(bn.var_, [2 / 9, 2 / 9], rtol=1e-15)


def test_weights_whose_sum_overflows_are_refused():
    says = r"^the variance of X overflows float64 in column\(s\) 0; scale the data, or sample_weight, first$"
    for kind in ({}, {"window": 5}, {"momentum": 0.5}, {"halflife": 3.0}):
        with pytest.raises(ValueError, match=says):
            BatchNormTransformer(**kind).partial_fit([[1.0], [2.0], [3.0]], sample_weight=[1e308] * 3)
    X, weights = np.array([[1.0], [2.0]]), np.array([8e307, 8e307])
    for given in ((X, weights), (X.tolist(), weights.tolist())):  # the short way, and the long one
        bn = BatchNormTransformer().partial_fit(given[0], sample_weight=given[1])
        before = pickle.dumps(bn)
        with pytest.raises(ValueError, match=says):
            bn.partial_fit(given[0], sample_weight=given[1])
        assert pickle.dumps(bn) == before


def test_copy_is_true_or_false():
    X = np.ones((1, 1))
    bn = BatchNormTransformer().fit([[0.0], [2.0]])
    for call, wrong in ((bn.transform, np.zeros((1, 1))), (bn.transform, "no"), (bn.inverse_transform, 1.5)):
        with pytest.raises(TypeError, match=r"^copy must be True or False, got .*; out is given by its name$"):
            call(X, wrong)
    assert X == 1


@pytest.mark.parametrize("X", [np.array([[1j], [2]]), [[1j], [2]], pd.DataFrame({"q": [1j, 2]})], ids=str)
def test_complex_numbers_are_refused_in_one_line(X):
    with pytest.raises(
        ValueError, match=r"^Complex data not supported: X must hold real numbers, got complex128.*$"
    ) as told:
        BatchNormTransformer().fit(X)
    assert "\n" not in str(told.value)


def test_strings_of_numpy_2_are_text():
    if hasattr(np.dtypes, "StringDType"):
        assert BatchNormTransformer().fit(np.array([["1"], ["3"]], np.dtypes.StringDType())).mean_ == 2
        with pytest.raises(ValueError, match=r"^X must hold numbers, got 'x' in row 1 of column 0"):
            BatchNormTransformer().fit(np.array([["1"], ["x"]], np.dtypes.StringDType()))


class NoArray:
    """As a tensor that requires grad."""

    shape, ndim, dtype = (2, 1), 2, np.dtype("f8")

    def __array__(self, *args, **kwargs):
        raise RuntimeError("call detach() first")

    def __len__(self):
        return 2


def test_what_cannot_become_an_array_is_named():
    with pytest.raises(TypeError, match=r"^X must be an array in memory, got a NoArray: call detach\(\) first$"):
        BatchNormTransformer().fit(NoArray())
    with pytest.raises(TypeError, match=r"^sample_weight must be an array in memory, got .*: call detach\(\) first$"):
        BatchNormTransformer().fit([[1.0], [2.0]], sample_weight=NoArray())


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_parameters_without_a_number_are_refused(library):
    column = {
        "pandas": lambda: pd.Series([1, None], dtype="Int64"),
        "polars": lambda: polars().Series([1, None]),
        "pyarrow": lambda: pa.array([1, None]),
    }[library]()
    with pytest.raises(TypeError, match=r"^var must have no missing values, got a .* with some$"):
        batch_norm(np.ones((3, 2)), np.zeros(2), column)
    with pytest.raises((TypeError, ValueError), match=r"^var must "):
        batch_norm(np.ones((3, 2)), np.zeros(2), pd.DataFrame({"a": [1, None]}))
