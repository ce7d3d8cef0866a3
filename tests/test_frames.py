"""Frames with the columns of fit are not shown to scikit-learn; what comes of them is as if they were."""

import pickle
import sys
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from arrays import MODES, examples, normal, polars
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import issparse
from sklearn import config_context
from test_small_calls import content

from bncpu import BatchNormTransformer, _door

NAMES = ["a", "b", "c"]


@contextmanager
def validation(runs):
    """Whether scikit-learn's validation runs for every frame, or must not run at all."""

    def refuse(*_, **__):
        raise AssertionError("scikit-learn's validation ran")

    with pytest.MonkeyPatch.context() as patch:
        if runs:
            patch.setattr(_door, "numbers_of_frame", lambda *_: None)
        else:
            patch.setattr(_door, "validate_data", refuse)
        yield


def described(value):
    """A result, to the bit and with all that its kind can tell."""
    if isinstance(value, pd.DataFrame):
        columns = [described(value.iloc[:, k].to_numpy()) for k in range(value.shape[1])]
        axes = [(type(axis), axis.dtype, list(axis), axis.names) for axis in value.axes]
        return type(value), axes, columns, list(value.dtypes), value.attrs
    if isinstance(value, pd.Series):
        return type(value), described(value.to_frame())
    if isinstance(value, dict):
        return {name: described(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        flags = value.flags.c_contiguous, value.flags.f_contiguous, value.flags.writeable
        # The bytes of a long double are not all its own.
        values = value.tolist() if value.dtype in (object, np.longdouble) else value.tobytes("A")
        return type(value), value.dtype, value.shape, flags, values
    if issparse(value):
        return type(value), described(value.toarray())
    return content(value) if isinstance(value, BatchNormTransformer) else value


def outcome(call, *arguments, **options):
    """What a call returns or raises, and its warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            result = described(call(*arguments, **options))
        except Exception as error:
            result = type(error), str(error), getattr(error, "__notes__", None)
    return result, [(warning.category, str(warning.message)) for warning in told]


def assert_both_ways_agree(bn, make):
    """Whatever is done with a frame, with and without scikit-learn's validation; `make` makes it anew."""
    calls = {
        "transform": lambda t, X: t.transform(X),
        "transform to copy": lambda t, X: t.transform(X, copy=True),
        "transform in place": lambda t, X: t.transform(X, copy=False),
        "transform into out": lambda t, X: t.transform(X, out=np.zeros(X.shape)),
        "pandas": lambda t, X: t.set_output(transform="pandas").transform(X),
        "partial_fit": lambda t, X: t.partial_fit(X),
        "partial_fit of weights": lambda t, X: t.partial_fit(X, sample_weight=np.arange(len(X)) + 0.5),
        "report": lambda t, X: t.report(X).columns["mean"],
    }
    for name, call in calls.items():
        found = []
        for runs in (False, True):
            t, X = pickle.loads(pickle.dumps(bn)), make()
            with validation(runs=True) if runs else warnings.catch_warnings():
                found.append((outcome(call, t, X), described(t), described(X)))
        assert repr(found[0]) == repr(found[1]), name  # NaN equals itself so


# ---- frames of every kind ----

COLUMNS = {
    "float64": lambda rng, n: rng.standard_normal(n),
    "float32": lambda rng, n: rng.standard_normal(n).astype("f4"),
    "float16": lambda rng, n: rng.standard_normal(n).astype("f2"),
    "longdouble": lambda rng, n: rng.standard_normal(n).astype(np.longdouble),
    "byte-swapped": lambda rng, n: rng.standard_normal(n).astype(">f8"),
    "int64": lambda rng, n: rng.integers(-(2**62), 2**62, n),
    "int8": lambda rng, n: rng.integers(-9, 9, n).astype("i1"),
    "int16": lambda rng, n: rng.integers(-9, 9, n).astype("i2"),
    "uint8": lambda rng, n: rng.integers(0, 9, n).astype("u1"),
    "uint64": lambda rng, n: rng.integers(2**63, 2**64, n, dtype="u8"),
    "bool": lambda rng, n: rng.random(n) < 0.5,
    "object": lambda rng, n: rng.integers(0, 9, n).astype(object),
    "text": lambda rng, n: pd.Series(["x"] * n),
    "numbers as text": lambda rng, n: pd.Series(["1"] * n),
    "complex": lambda rng, n: rng.standard_normal(n) * 1j,
    "Int64": lambda rng, n: pd.array(rng.integers(0, 9, n), "Int64"),
    "Int64 with a gap": lambda rng, n: pd.array([pd.NA, 1, 2, 3, 4, 5, 6, 7][:n], "Int64"),
    "Float64": lambda rng, n: pd.array(rng.standard_normal(n), "Float64"),
    "boolean": lambda rng, n: pd.array(rng.random(n) < 0.5, "boolean"),
    "categories": lambda rng, n: pd.Categorical(rng.integers(0, 3, n) / 2),
    "categories of text": lambda rng, n: pd.Categorical(["x"] * n),
    "dates": lambda rng, n: pd.date_range("2024", periods=n),
    "spans": lambda rng, n: pd.to_timedelta(np.arange(n), "s"),
    "sparse": lambda rng, n: pd.arrays.SparseArray(rng.integers(0, 2, n) * 1.5),
    "arrow": lambda rng, n: pd.array(rng.standard_normal(n), "double[pyarrow]"),
}
PLAIN = ["float64", "float32", "int64", "int8", "int16", "uint8", "uint64", "bool"]


class Frame(pd.DataFrame):
    """A subclass as users write it."""

    @property
    def _constructor(self):
        return Frame


class Shuffled(pd.DataFrame):
    """A subclass that is not what its columns say."""

    def __array__(self, *args, **options):
        return np.zeros(self.shape)


class Text(str):
    """A name that is no string of Python's own."""

    __slots__ = ()


OTHER_COLUMNS = {
    "equal": lambda X: X.columns.copy(deep=True),
    "the same": lambda X: X.columns,
    "of objects": lambda X: pd.Index(NAMES, dtype=object),
    "with a name": lambda X: X.columns.rename("features"),
    "in another order": lambda X: ["b", "a", "c"],
    "with another": lambda X: ["a", "b", "x"],
    "twice": lambda X: ["a", "a", "c"],
    "numbers": lambda X: [0, 1, 2],
    "numbered": lambda X: pd.RangeIndex(3),
    "numbered from 1": lambda X: pd.RangeIndex(1, 4),
    "fractions": lambda X: [0.5, 1.5, 2.5],
    "mixed": lambda X: ["a", 1, "c"],
    "a missing one": lambda X: ["a", None, "c"],
    "not a number": lambda X: ["a", np.nan, "c"],
    "subclasses": lambda X: pd.Index([Text(name) for name in NAMES], dtype=object),
    "one subclass": lambda X: pd.Index(["a", Text("b"), "c"], dtype=object),
    "NumPy's strings": lambda X: pd.Index([np.str_(name) for name in NAMES], dtype=object),
    "bytes": lambda X: [name.encode() for name in NAMES],
    "levels": lambda X: pd.MultiIndex.from_tuples([(name, 1) for name in NAMES]),
    "levels of one": lambda X: pd.MultiIndex.from_arrays([NAMES]),
    "categories": lambda X: pd.CategoricalIndex(NAMES),
    "dates": lambda X: pd.date_range("2024", periods=3),
    "attributes": lambda X: ["dtype", "__dlpack__", "__array_namespace__"],
}

FORMS = {
    "as it is": lambda X: X,
    "a subclass": Frame,
    "a hostile subclass": Shuffled,
    "a row of more": lambda X: pd.concat([X, X], ignore_index=True).iloc[: len(X)],
    "every second row": lambda X: X.loc[X.index.repeat(2)].iloc[::2],
    "consolidated": lambda X: X.copy(),
    "with an index": lambda X: X.set_axis([f"r{k}" for k in range(len(X))]),
    "with dates": lambda X: X.set_axis(pd.date_range("2024", periods=len(X), name="day")),
    "with attributes": lambda X: X.assign() if X.attrs.update(unit="m") else X,
    "no rows": lambda X: X[:0],
    "a column less": lambda X: X.iloc[:, :-1],
    "a column more": lambda X: pd.concat([X, X.iloc[:, :1].set_axis(["d"], axis=1)], axis=1),
    "no columns": lambda X: X.iloc[:, :0],
    "a column twice": lambda X: pd.concat([X, X.iloc[:, :1]], axis=1),
    "a dictionary": lambda X: {name: X[name] for name in X} if X.columns.is_unique else X,
    "a series": lambda X: X.iloc[:, 0],
    "an array": lambda X: X.to_numpy(),
}


def one_array(rng, kind, n):
    """Of numbers in one block of memory, C or F."""
    order = "CF"[rng.integers(2)]
    return pd.DataFrame(np.asarray(rng.standard_normal((n, 3)) * 9, kind, order=order), columns=NAMES)


def frame(rng, n):
    """Numbers that are taken the short way, often, and anything else."""
    if rng.random() < 0.4:
        return one_array(rng, rng.choice(["f8", "f4", "i4", "bool", "f2"]), n)
    kinds = [*COLUMNS] if rng.random() < 0.5 else PLAIN
    return pd.DataFrame({name: COLUMNS[rng.choice(kinds)](rng, n) for name in NAMES})


def with_odd_values(rng, X):
    X = X.copy()
    for value in rng.choice([np.nan, np.inf, -np.inf, 1e300, 0.0], rng.integers(1, 3)):
        column = rng.integers(X.shape[1])
        if X.dtypes.iloc[column] in (np.float32, np.float64):
            X.iloc[rng.integers(len(X)), column] = min(value, 1e30) if np.isfinite(value) else value
    return X


def some_frame(seed):
    rng = np.random.default_rng(seed)
    X = frame(rng, rng.choice([1, 1, 2, 7]))
    if rng.random() < 0.3:
        X = with_odd_values(rng, X)
    if rng.random() < 0.3:
        X.columns = OTHER_COLUMNS[rng.choice([*OTHER_COLUMNS])](X)
    if rng.random() < 0.4:
        with suppress(ValueError):  # pandas takes no rows of byte-swapped numbers
            return FORMS[rng.choice([*FORMS])](X)
    return X


def fitted(mode="cumulative", columns=NAMES, **parameters):
    X = pd.DataFrame(normal(1, (9, 3), mean=2.0))
    X.columns = columns if columns is not None else X.columns
    return BatchNormTransformer(**MODES[mode], **parameters).fit(X)


@settings(max_examples=examples(60, 5000))
@given(st.integers(0, 2**32), st.sampled_from([*MODES]), st.sampled_from([NAMES, None]))
def test_any_frame_gives_the_same_results_errors_and_warnings(seed, mode, columns):
    assert_both_ways_agree(fitted(mode, columns), lambda: some_frame(seed))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_every_type(kind, n):
    bn, rng = fitted(), np.random.default_rng(2)
    column = COLUMNS[kind](rng, n)
    assert_both_ways_agree(bn, lambda: pd.DataFrame(dict.fromkeys(NAMES, column)))
    for other in (*PLAIN, "float16", "object"):
        beside = COLUMNS[other](rng, n)
        X = pd.DataFrame({"a": column, "b": beside, "c": beside})
        found = [outcome(pickle.loads(pickle.dumps(bn)).transform, X)]
        with validation(runs=True):
            found.append(outcome(bn.transform, X))
        assert repr(found[0]) == repr(found[1]), other


@pytest.mark.parametrize("columns", [NAMES, None, "as given"])
@pytest.mark.parametrize("other", OTHER_COLUMNS)
def test_columns_of_every_name(other, columns):
    X = pd.DataFrame(normal(3, (1, 3)), columns=NAMES)
    X.columns = OTHER_COLUMNS[other](X)
    names = NAMES
    if columns is None:
        names = None
    elif columns == "as given":
        names = X.columns
    try:
        bn = fitted(columns=names)
    except (TypeError, ValueError):  # names that scikit-learn refuses
        bn = fitted()
    assert_both_ways_agree(bn, X.copy)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 4])
def test_frames_of_every_form(form, n):
    for kind in ("f8", "f4", "i8"):
        X = pd.DataFrame(normal(4, (n, 3), std=9.0).astype(kind), columns=NAMES)
        assert_both_ways_agree(fitted(), lambda X=X: FORMS[form](X.copy()))


@pytest.mark.parametrize("parameters", [
    {"copy": False}, {"with_mean": False}, {"gamma": [1.0, 0.0, 2.0], "beta": [1, 2, 3]}, {"eps": 0.5, "ddof": 1},
    {"n_threads": 1}, {"with_std": False, "batch_size": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_frames_with_every_parameter(mode, parameters):
    for n in (1, 4):
        for kind in ("f8", "f4", "i8"):
            X = pd.DataFrame(normal(4, (n, 3), std=9.0).astype(kind), columns=NAMES)
            assert_both_ways_agree(fitted(mode, **parameters), X.copy)


@pytest.mark.parametrize(("name", "value"), [
    ("n_threads", 0), ("copy", None), ("eps", -1.0), ("gamma", [1.0]), ("momentum", 0.5), ("channel_axis", 1),
    ("halflife", 3.0), ("batch_size", 0),
])  # fmt: skip
def test_changed_parameters_act_and_are_refused_as_ever(name, value):
    bn = fitted().set_params(**{name: value})
    assert_both_ways_agree(bn, lambda: pd.DataFrame(normal(5, (1, 3)), columns=NAMES))


def test_names_that_stand_twice_in_a_file_are_left_to_scikit_learn():
    bn = BatchNormTransformer.from_statistics([0.0] * 3, [1.0] * 3, 5, feature_names=["a", "a", "b"])
    assert_both_ways_agree(bn, lambda: pd.DataFrame(np.ones((1, 3)), columns=["a", "a", "b"]))


def test_settings_of_scikit_learn_act_as_ever():
    bn, X = fitted(), pd.DataFrame(normal(5, (1, 3)), columns=NAMES)
    with config_context(transform_output="pandas"):
        assert_both_ways_agree(bn, X.copy)
        expected = outcome(bn.transform, X)
    # scikit-learn 1.6 by itself takes no frame with this setting.
    with config_context(array_api_dispatch=True, transform_output="pandas"):
        assert repr(outcome(bn.transform, X)) == repr(expected)


def test_unfitted_and_merged_and_loaded_transformers(tmp_path):
    X = pd.DataFrame(normal(6, (1, 3)), columns=NAMES)
    bn = fitted()
    bn.save(tmp_path / "state.json")
    merged, loaded = fitted().merge(bn), BatchNormTransformer.load(tmp_path / "state.json")
    for t in (BatchNormTransformer(), merged, loaded):
        assert_both_ways_agree(t, X.copy)
    with validation(runs=False):
        merged.transform(X)
        loaded.partial_fit(X)


# ---- other libraries ----


def tables():
    numbers = normal(7, (4, 3), std=9.0)
    single, whole = numbers.astype("f4"), numbers.astype("i8")
    columns = {
        "double": numbers.T, "single": single.T, "whole": whole.T, "mixed": [numbers[:, 0], single[:, 1], whole[:, 2]],
        "of 16 bits": whole.astype("i2").T, "infinite": numbers.T * [[1.0, np.inf, 1.0, 1.0]],
        "missing": [numbers[:, 0], [None, 1, 2, 3], whole[:, 2]], "text": [["x"] * 4, numbers[:, 1], numbers[:, 2]],
        "true": [[True, False, True, True], numbers[:, 1], numbers[:, 2]],
        "dates": [pd.date_range("2024", periods=4)] * 3,
    }  # fmt: skip
    return {name: dict(zip(NAMES, data, strict=True)) for name, data in columns.items()}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("change", [lambda X: X, lambda X: X.select(["b", "a", "c"]), lambda X: X.select(["a", "b"])])
@pytest.mark.parametrize("library", ["polars", "pyarrow", "pyarrow's batches"])
@pytest.mark.parametrize("kind", tables())
def test_tables_of_other_libraries(kind, library, change, n):
    data = tables()[kind]
    if library == "polars":
        X = polars().DataFrame(data)
    else:
        X = (pa.table if library == "pyarrow" else pa.record_batch)({name: pa.array(data[name]) for name in data})
    X = change(X).slice(0, n)
    bn = fitted()
    calls = [bn.transform, lambda X: pickle.loads(pickle.dumps(bn)).partial_fit(X)]
    if library == "polars":
        calls.append(pickle.loads(pickle.dumps(bn)).set_output(transform="polars").transform)
    for call in calls:
        found = [outcome(call, X)]
        with validation(runs=True):
            found.append(outcome(call, X))
        assert repr(found[0]) == repr(found[1])


# ---- the short way is taken ----


@pytest.mark.parametrize("columns", [NAMES, None])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("kind", ["f8", "f4", "i8", "mixed"])
def test_columns_of_fit_are_not_shown_to_scikit_learn(kind, n, columns):
    X = pd.DataFrame(normal(8, (n, 3), std=9.0).astype("f8" if kind == "mixed" else kind))
    X.columns = columns if columns is not None else X.columns
    if kind == "mixed":
        X = X.astype({X.columns[0]: "i4", X.columns[1]: "bool"})
    bn = fitted(columns=columns)
    with validation(runs=False):
        bn.partial_fit(X).transform(X)
        bn.partial_fit(X, sample_weight=np.ones(n)).transform(X, copy=False)
        bn.set_output(transform="pandas").transform(X)
    assert bn.n_samples_seen_ == 9 + 2 * n


def test_other_tables_are_not_shown_to_scikit_learn_either():
    data = dict(zip(NAMES, normal(8, (3, 2)), strict=True))
    for X in (polars().DataFrame(data), pa.table(data)):
        bn = fitted()
        with validation(runs=False):
            bn.partial_fit(X).transform(X)


def test_one_row_teaches_and_is_transformed_by_the_compiled_functions(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this call took the long way")

    bn = fitted()
    monkeypatch.setattr(BatchNormTransformer, "_apply", refuse)
    monkeypatch.setattr(BatchNormTransformer, "_fit", refuse)
    for X in (pd.DataFrame(normal(8, (5, 3)), columns=NAMES).iloc[2:3], pd.DataFrame([{"a": 1, "b": 2.5, "c": True}])):
        bn.partial_fit(X).transform(X)


def test_without_the_libraries_nothing_of_them_is_looked_for(monkeypatch):
    X = pd.DataFrame(normal(8, (1, 3)), columns=NAMES)
    for name in ("pandas", "polars", "pyarrow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert _door.numbers_of_frame(X, np.array(NAMES, object)) is None
    assert _door.numbers_of_frame(None, None) is None


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_names_are_checked_in_inverse_transform_as_in_transform(library):
    make = pa.table if library == "pyarrow" else pytest.importorskip(library).DataFrame
    columns = {name: np.random.default_rng(k).normal(k, k + 1, 20) for k, name in enumerate(NAMES)}
    bn = BatchNormTransformer().fit(make(columns))
    z = dict(zip(NAMES, bn.transform(make(columns)).T, strict=True))
    np.testing.assert_allclose(bn.inverse_transform(make(z)), np.column_stack(list(columns.values())), rtol=1e-14)
    for call in (bn.transform, bn.inverse_transform):
        with pytest.raises(ValueError, match="feature names should match"):
            call(make({name: z[name] for name in "cab"}))
        with pytest.raises(ValueError, match=r"feature names should match|expecting 3 features"):
            call(make({name: z[name] for name in "ab"}))
    with pytest.raises(ValueError, match="feature names should match"):
        bn.inverse_transform(make({f"{name}2": values for name, values in z.items()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.inverse_transform(np.column_stack(list(z.values())))  # has lost its names


def test_the_columns_of_a_frame_that_set_output_made_cannot_be_mixed_up():
    X = np.random.default_rng(0).normal([1, 5], [2, 3], (10, 2))
    bn = BatchNormTransformer().fit(X).set_output(transform="pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(bn.inverse_transform(bn.transform(X)), X, rtol=1e-14)
        bn.inverse_transform(pd.DataFrame(X, columns=["of", "others"]))
    with pytest.raises(ValueError, match="order of transform, x0, x1; got x1, x0"):
        bn.inverse_transform(bn.transform(X)[["x1", "x0"]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_inverse_transform_returns_what_transform_does(library):
    frame = pd.DataFrame(np.arange(12.0).reshape(4, 3), columns=NAMES, index=list("wxyz"))
    if library == "polars":
        pytest.importorskip("polars")
    bn = BatchNormTransformer().fit(frame)
    assert type(bn.inverse_transform(frame)) is np.ndarray
    bn.set_output(transform=library)
    z = bn.transform(frame)
    back = bn.inverse_transform(z)
    assert type(back) is type(z)
    assert list(back.columns) == NAMES
    if library == "pandas":
        assert back.index.equals(frame.index)
    np.testing.assert_allclose(back, frame, rtol=1e-14, atol=1e-14)
    with config_context(transform_output="pandas"):
        assert type(BatchNormTransformer().fit(frame).inverse_transform(z.to_numpy())) is pd.DataFrame
    with pytest.raises(ValueError, match="set_output"):
        BatchNormTransformer(channel_axis=1).fit(frame.to_numpy()).set_output(transform=library).inverse_transform(
            frame.to_numpy()
        )
