"""StandardScaler and scale on our kernels: all is as in scikit-learn, but for speed and digits."""

import copy
import fractions
import importlib.util
import inspect
import logging
import pickle
import subprocess
import sys
import textwrap
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

from bncpu.sklearn import StandardScaler, scale

THEIRS, THEIR_SCALE = sklearn.preprocessing.StandardScaler, sklearn.preprocessing.scale
HAS_CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None  # from scikit-learn 1.9 on
ATTRIBUTES = ("mean_", "var_", "scale_", "n_samples_seen_")


def data(dtype="float64", n=200, width=5, seed=0):
    """Rows of several means and spreads, and two gaps if the type has any."""
    x = (np.random.default_rng(seed).normal(size=(n, width)) * [1, 10, 3, 2, 5] + [0, 50, -7, 1, 20]).astype(dtype)
    if x.dtype.kind == "f":
        x[3, 1] = x[-1, 2] = np.nan
    return x


def same_attributes(a, b, rtol=1e-12):
    """Whether two scalers have the same attributes, of the same types, up to rounding."""
    assert vars(a).keys() == vars(b).keys()
    for name in ATTRIBUTES:
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y), name
        if x is not None:
            assert np.asarray(x).dtype == np.asarray(y).dtype, name
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in scikit-learn, for arrays of others
@parametrize_with_checks(
    [StandardScaler(), StandardScaler(with_mean=False)],
    expected_failed_checks=lambda scaler: {
        "check_array_api_same_namespace": "scikit-learn's own scaler fails it, too",
        # Before 1.7 it gave sparse data to all.
        **(
            {"check_sample_weight_equivalence_on_sparse_data": "as above"}
            if scaler.with_mean and parse_version(sklearn.__version__) < parse_version("1.7")
            else {}
        ),
    },
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


class TestLikeTheirs:
    """Results, attributes and their types are those of scikit-learn."""

    @pytest.mark.parametrize("with_mean", [True, False])
    @pytest.mark.parametrize("with_std", [True, False])
    @pytest.mark.parametrize("form", ["C", "F", "strided", "swapped", "list", "frame", "object"])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8", "int64", "bool", "uint32"])
    def test_every_form_of_x(self, dtype, form, with_mean, with_std):
        x = as_form(data(dtype), form)
        a, b = (kind(with_mean=with_mean, with_std=with_std).fit(x) for kind in (THEIRS, StandardScaler))
        same_attributes(a, b)
        y, z = a.transform(x), b.transform(x)
        assert type(y) is type(z)
        assert y.dtype == z.dtype
        assert y.flags.c_contiguous == z.flags.c_contiguous
        eps = np.finfo(y.dtype).eps
        np.testing.assert_allclose(z, y, rtol=100 * eps, atol=1000 * eps)  # of a mean of 50
        back = b.inverse_transform(z)
        assert back.dtype == a.inverse_transform(z).dtype
        np.testing.assert_allclose(back, np.asarray(x, float), rtol=100 * eps, atol=100 * eps)

    @pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_batches(self, dtype, weighted):
        x = data(dtype)
        w = np.random.default_rng(1).random(len(x)) if weighted else None
        a, b = THEIRS(), StandardScaler()
        for rows in np.array_split(np.arange(len(x)), 7):
            for scaler in (a, b):
                scaler.partial_fit(x[rows], None, None if w is None else w[rows])
            same_attributes(a, b)

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("with_mean", [True, False])
    @pytest.mark.parametrize("with_std", [True, False])
    @pytest.mark.parametrize("form", ["C", "F", "strided", "list", "frame"])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "int16"])
    def test_scale(self, dtype, form, with_mean, with_std, axis):
        x = as_form(data(dtype), form)
        how = {"axis": axis, "with_mean": with_mean, "with_std": with_std}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their numerical issues
            y, z = THEIR_SCALE(x, **how), scale(x, **how)
        assert (type(y), y.dtype, y.flags.c_contiguous) == (type(z), z.dtype, z.flags.c_contiguous)
        eps = np.finfo(y.dtype).eps
        np.testing.assert_allclose(z, y, rtol=1000 * eps, atol=1000 * eps)

    def test_copy_false_overwrites(self):
        for order in "CF":
            x = np.asarray(data(), order=order)
            expected = THEIRS().fit(x).transform(x)
            b = StandardScaler(copy=False).fit(x)
            assert b.transform(x) is x
            np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-12)
            assert b.inverse_transform(x, copy=False) is x
            np.testing.assert_allclose(x, data(), rtol=1e-12)

    def test_set_output_and_names(self):
        frame = pd.DataFrame(data(), columns=list("abcde"))
        a, b = (kind().set_output(transform="pandas").fit(frame) for kind in (THEIRS, StandardScaler))
        pd.testing.assert_frame_equal(a.transform(frame), b.transform(frame), rtol=1e-12)
        assert list(b.feature_names_in_) == list("abcde")
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            b.transform(data())
        b.fit(data())
        assert not hasattr(b, "feature_names_in_")

    def test_attributes_can_be_set(self):
        x = data()
        a, b = THEIRS().fit(x), StandardScaler().fit(x)
        for scaler in (a, b):
            scaler.mean_ = np.arange(5.0)
            scaler.scale_[2] = 7
            scaler.var_ = scaler.scale_**2
            scaler.n_samples_seen_ = np.int64(10)
        np.testing.assert_allclose(a.transform(x), b.transform(x), rtol=1e-12)
        same_attributes(a.partial_fit(x), b.partial_fit(x))

    def test_one_attribute_is_set(self):
        x = data()
        a, b = THEIRS().fit(x), StandardScaler().fit(x)
        for name, value in (("mean_", np.arange(5.0)), ("var_", np.arange(1.0, 6)), ("n_samples_seen_", np.int64(7))):
            for scaler in (a, b):
                setattr(scaler, name, value)
                scaler.partial_fit(x)
            same_attributes(a, b)
        for scaler in (a, b):
            del scaler.scale_
            with np.errstate(all="ignore"):
                scaler.partial_fit(x)
        same_attributes(a, b)

    def test_parameters_change_between_batches(self):
        a, b = THEIRS(), StandardScaler()
        for with_std in (True, False, True, False):
            for scaler in (a, b):
                scaler.set_params(with_std=with_std).partial_fit(data())
            same_attributes(a, b)
        said = []
        for kind in (THEIRS, StandardScaler):
            with pytest.raises(TypeError) as error:
                kind(with_std=False).fit(data()).set_params(with_std=True).partial_fit(data())
            said.append(str(error.value))
        assert said[0] == said[1]

    def test_a_subclass_that_cannot_be_hashed(self):
        class Compared(StandardScaler):
            def __eq__(self, other):
                return self is other

            __hash__ = None

        same_attributes(THEIRS().fit(data()), Compared().fit(data()))

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
    @pytest.mark.parametrize("library", ["polars", "pyarrow"])
    def test_tables(self, library, dtype):
        x = data(dtype)[4:-1]
        columns = {name: x[:, i] for i, name in enumerate("abcde")}
        table = pl.DataFrame(columns) if library == "polars" else pa.table(columns)
        for kind_of_call in ("fit", "partial_fit"):
            a, b = (getattr(kind(), kind_of_call)(table) for kind in (THEIRS, StandardScaler))
            same_attributes(a, b)
            y, z = a.transform(table), b.transform(table)
            assert (y.dtype, y.flags.c_contiguous) == (z.dtype, z.flags.c_contiguous)
            np.testing.assert_allclose(z, y, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize(
        "kind", [float, int, bool, np.float32, np.float16, np.int8, np.longdouble, str, complex, list]
    )
    @pytest.mark.parametrize("row", [list, tuple, np.array])
    def test_lists_of_rows(self, kind, row):
        x = [row([kind(v) if kind is not list else [v] for v in values]) for values in ((0, 1), (1, 1), (4, 5))]
        said = []
        for scaler, function in ((THEIRS(), THEIR_SCALE), (StandardScaler(), scale)):
            try:
                y = scaler.fit(x).transform(x)
                back, scaled = scaler.inverse_transform(x), function(x)
            except (TypeError, ValueError) as error:
                said.append((type(error), str(error)))
            else:
                said.append([y.dtype, back.dtype, scaled.dtype, *np.round(scaled.astype(float), 2).ravel().tolist()])
        assert said[0] == said[1]

    def test_a_scale_of_nothing(self):
        x = data()
        said = []
        for kind in (THEIRS, StandardScaler):
            scaler = kind().fit(x)
            scaler.scale_[:2] = 0, 1e-320
            with np.errstate(all="ignore"):
                said.append(scaler.transform(x))
        np.testing.assert_allclose(said[1], said[0], rtol=1e-12)

    def test_a_class_that_says_itself_whether_it_is_fitted(self):
        class Never(StandardScaler):
            def __sklearn_is_fitted__(self):
                return False

        with pytest.raises(sklearn.exceptions.NotFittedError):
            Never().fit(data()).transform(data())

    def test_keywords(self):
        for y, z in (
            (THEIRS().fit(X=data()).transform(X=data()), StandardScaler().fit(X=data()).transform(X=data())),
            (THEIRS().fit_transform(X=data()), StandardScaler().fit_transform(X=data())),
            (THEIR_SCALE(X=data()), scale(X=data())),
        ):
            np.testing.assert_allclose(z, y, rtol=1e-11, atol=1e-11)

    def test_numpy_may_be_told_to_raise(self):
        b = StandardScaler()
        with np.errstate(all="raise"), pytest.raises(FloatingPointError):
            b.fit(data() * 1e-160)
        same_attributes(StandardScaler().fit(data()), b.partial_fit(data()))

    def test_signatures_and_docstrings_are_theirs(self):
        for name in ("fit", "partial_fit", "transform", "inverse_transform", "fit_transform"):
            assert inspect.signature(getattr(StandardScaler, name)) == inspect.signature(getattr(THEIRS, name))
            assert getattr(StandardScaler, name).__doc__ == getattr(THEIRS, name).__doc__
        assert inspect.signature(scale) == inspect.signature(THEIR_SCALE)
        assert isinstance(StandardScaler(), THEIRS)
        assert StandardScaler()._get_doc_link() == THEIRS()._get_doc_link()
        assert repr(StandardScaler(copy=False)) == repr(THEIRS(copy=False))

    def test_metadata_is_routed(self):
        x, w = data(), np.arange(200.0)
        with sklearn.config_context(enable_metadata_routing=True):
            scaler = StandardScaler().set_fit_request(sample_weight=True)
            routed = make_pipeline(scaler).fit(x, sample_weight=w)
            same_attributes(routed[0], clone(scaler).fit(x, None, w))

    def test_a_pipeline_without_callbacks_is_ours(self, called):
        make_pipeline(StandardScaler(), LogisticRegression()).fit(np.nan_to_num(data()), data()[:, 0] > 0)
        assert called() == {"StandardScaler.partial_fit: bncpu": 1, "StandardScaler.transform: bncpu": 1}


WRONG = {
    "an infinity": [[1.0], [np.inf]],
    "an infinity in float32": np.array([[1.0], [-np.inf]], np.float32),
    "no rows": np.zeros((0, 5)),
    "no columns": np.zeros((5, 0)),
    "one axis": np.arange(5.0),
    "three axes": np.zeros((2, 2, 2)),
    "text": [["a"], ["b"]],
    "complex": np.zeros((5, 2), complex),
    "rows of several lengths": [[1.0], [1.0, 2.0]],
    "None": None,
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "inverse_transform", "scale"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_as_there(wrong, method):
    x, said = WRONG[wrong], []
    for kind, function in ((THEIRS, THEIR_SCALE), (StandardScaler, scale)):
        scaler = kind().fit([[0.0], [1.0]])
        call = function if method == "scale" else getattr(scaler, method)
        try:
            said.append(repr(call(x)))
        except (TypeError, ValueError) as error:
            said.append((type(error), str(error)))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("fit", {"X": [[np.inf, 2.0]], "sample_weight": [0.0]}),
        ("fit", {"X": [[1.0, 2.0]], "sample_weight": [1.0, 2.0]}),
        ("fit", {"X": [[1.0, 2.0]], "sample_weight": [np.nan]}),
        ("fit", {"X": [[1.0, 2.0]], "weights": [1.0]}),
        ("partial_fit", {"X": [[1.0, 2.0]]}),
        ("transform", {"X": [[1.0, 2.0]]}),
        ("transform", {}),
    ],
)
def test_wrong_arguments_are_refused_as_there(method, arguments):
    said = []
    for kind in (THEIRS, StandardScaler):
        with pytest.raises((TypeError, ValueError)) as error:
            getattr(kind().fit([[0.0], [1.0]]), method)(**arguments)
        said.append((error.type, str(error.value).replace("StandardScaler.", "")))
    assert said[0] == said[1]


def as_form(x, form):
    """`x` in another container or memory order."""
    if form == "F":
        return np.asfortranarray(x)
    if form == "strided":
        return np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)[::2, ::2]
    if form == "swapped":
        return x.astype(x.dtype.newbyteorder())
    if form == "list":
        return x.tolist()
    if form == "frame":
        return pd.DataFrame(x)
    return x.astype(object) if form == "object" else x


class TestLeftToTheirs:
    """What the kernels do not do, scikit-learn does, and `calls` says why."""

    @pytest.mark.parametrize(
        ("why", "call"),
        [
            ("X is sparse", lambda kind: kind(with_mean=False).fit(scipy.sparse.csr_array(np.nan_to_num(data())))),
            ("it neither centers nor scales", lambda kind: kind(with_mean=False, with_std=False).fit(data())),
            ("weights are negative, or all 0", lambda kind: kind().fit(data(), None, np.linspace(-1, 9, 200))),
            ("a parameter is not True or False", lambda kind: kind(with_mean=np.True_).fit(data())),
        ],
    )
    def test_why(self, why, call, called):
        a, b = call(THEIRS), call(StandardScaler)
        assert called() == {f"StandardScaler.partial_fit: scikit-learn, because {why}": 1}
        for name in ATTRIBUTES:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))

    def test_a_read_only_array_is_not_overwritten(self, called):
        x = data()
        x.flags.writeable = False
        b = StandardScaler(copy=False).fit(x)
        try:
            expected = THEIRS(copy=False).fit(x).transform(x)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)):
                b.transform(x)
        else:
            np.testing.assert_allclose(b.transform(x), expected, rtol=1e-12)
        assert any("read-only" in call for call in called())

    def test_an_infinity_leaves_x_as_it_is(self):
        b = StandardScaler(copy=False).fit(data())
        x = data()
        x[-1, -1] = np.inf
        before = x.copy()
        with pytest.raises(ValueError, match="infinity"):
            b.transform(x)
        np.testing.assert_array_equal(x, before)

    def test_scale_of_one_axis_and_of_what_is_nearly_constant(self, called):
        scale(np.arange(5.0))
        scale(np.array([[1.0], [1 + 1e-16], [1 - 1e-16]]))
        assert sorted(called()) == [
            "scale: scikit-learn, because X has not 2 axes, or is refused",
            "scale: scikit-learn, because a feature is nearly constant",
        ]

    def test_an_unfitted_scaler(self):
        with pytest.raises(sklearn.exceptions.NotFittedError):
            StandardScaler().transform([[1.0]])

    if HAS_CALLBACKS:

        def test_callbacks(self, called):
            StandardScaler().set_callbacks(Counting()).fit(data())
            assert called() == {"StandardScaler.partial_fit: scikit-learn, because it has callbacks": 1}


class Counting:
    """A callback that does nothing."""

    def setup(self, estimator, context):
        """Nothing to set up."""

    def teardown(self, estimator, context):
        """Nothing to tear down."""

    def on_fit_task_begin(self, *args, **kwargs):
        """A step begins."""

    def on_fit_task_end(self, *args, **kwargs):
        """A step ends."""


class TestMoreExact:
    """Where scikit-learn loses digits, or everything."""

    def test_a_feature_missing_from_a_batch_keeps_its_statistics(self):
        x = data()[:10]
        gap = x.copy()
        gap[:, 1] = np.nan
        b = StandardScaler().partial_fit(x).partial_fit(gap).partial_fit(x)
        with np.errstate(all="ignore"):
            assert np.isnan(THEIRS().partial_fit(x).partial_fit(gap).partial_fit(x).var_[1])
        np.testing.assert_allclose(b.var_[1], np.nanvar(x[:, 1]), rtol=1e-12)

    def test_scale_far_from_zero(self):
        x = np.full((1000, 1), 1.7e18) + np.random.default_rng(0).integers(-8, 8, (1000, 1)) * 256.0
        assert abs(scale(x).mean()) < 1e-15

    def test_weights_are_not_cut_to_whole_numbers(self):
        x = data()[4:10]
        b = StandardScaler().fit(x, None, np.full(6, 0.15)).partial_fit(x + 10)
        np.testing.assert_allclose(b.n_samples_seen_, 6.9, rtol=1e-15)
        np.testing.assert_allclose(b.mean_, (x.sum(axis=0) * 0.15 + (x + 10).sum(axis=0)) / 6.9, rtol=1e-14)

    def test_float32_far_from_zero(self):
        x = (np.random.default_rng(0).normal(size=(1000, 1)) + 1e5).astype(np.float32)
        exact = (x.astype(float) - x.astype(float).mean()) / x.astype(float).std()
        b = StandardScaler().fit(x).transform(x)
        assert np.abs(b - exact).max() < 1e-6  # scikit-learn 1.9: 1e-3, of the mean that it rounds to float32

    @given(st.lists(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=9), min_size=1, max_size=6))
    @settings(deadline=None)
    def test_batches_against_fractions(self, batches):
        b = StandardScaler()
        for batch in batches:
            b.partial_fit(np.array(batch, float)[:, None] + 1e9)
        values = [fractions.Fraction(v) + 10**9 for batch in batches for v in batch]
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        np.testing.assert_allclose(b.mean_[0], float(mean), rtol=1e-15)
        np.testing.assert_allclose(b.var_[0], float(var), rtol=1e-12)
        assert b.n_samples_seen_ == len(values)


class Own(StandardScaler):
    """Someone's subclass."""


class TestCopies:
    """Copies and pickles; who has no bncpu reads scikit-learn's class."""

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickles_and_copies_are_ours(self, protocol):
        b = StandardScaler().fit(data())
        for other in (pickle.loads(pickle.dumps(b, protocol)), copy.copy(b), copy.deepcopy(b)):
            assert type(other) is StandardScaler
            assert vars(other).keys() == vars(b).keys()
            same_attributes(b, other, rtol=0)
        assert type(clone(b)) is StandardScaler

    def test_a_pickle_of_another_version_warns(self):
        b = StandardScaler().fit(data())
        with pytest.warns(sklearn.exceptions.InconsistentVersionWarning, match="StandardScaler"):
            b.__setstate__({**vars(b), "_sklearn_version": "0.1"})

    @pytest.mark.parametrize("kind", [StandardScaler, Own])
    def test_a_copy_goes_on_from_the_attributes(self, kind):
        x = data()[:10]
        x[:, 1] = np.nan
        b = kind().partial_fit(x)
        other = pickle.loads(pickle.dumps(b)).partial_fit(data())
        same_attributes(b.partial_fit(data()), other, rtol=1e-14)

    def test_a_subclass_stays_one(self):
        b = Own().fit(data())
        for other in (pickle.loads(pickle.dumps(b)), copy.copy(b), copy.deepcopy(b)):
            assert type(other) is Own
            same_attributes(b, other, rtol=0)

    def test_a_pickle_is_read_without_bncpu(self, tmp_path):
        b = make_pipeline(StandardScaler(), LogisticRegression())
        b.fit(np.nan_to_num(data()), data()[:, 0] > 0)
        joblib.dump(b, tmp_path / "b")
        found = run(
            """
            import joblib, sys, warnings

            from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

            class Others:
                def find_spec(self, name, path=None, target=None):
                    return None if name.partition(".")[0] == "bncpu" else PathFinder.find_spec(name, path, target)

            sys.meta_path[:] = BuiltinImporter, FrozenImporter, Others()
            warnings.simplefilter("error")
            b = joblib.load(sys.argv[1])
            print(type(b[0]).__module__, b[0].mean_.tolist(), "_sklearn_version" in vars(b[0]))
            """,
            tmp_path / "b",
        )
        assert found == f"sklearn.preprocessing._data {b[0].mean_.tolist()} False\n"


@pytest.mark.parametrize("arguments", [((), {}), ((data(), 0), {}), ((data(),), {"foo": 1}), ((data(),), {"axis": 2})])
def test_wrong_arguments_of_scale_are_refused_as_there(arguments):
    said = []
    for function in (THEIR_SCALE, scale):
        with pytest.raises((TypeError, ValueError)) as error:
            function(*arguments[0], **arguments[1])
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_the_log_names_what_was_given(caplog):
    with caplog.at_level(logging.INFO, "bncpu.accel"):
        scaler = StandardScaler().fit(X=data("float32"))
        StandardScaler(with_mean=False).fit(scipy.sparse.csr_array(np.eye(2)))
        scaler.transform(X=data("float32"))
    assert [record.message for record in caplog.records] == [
        "StandardScaler.partial_fit: bncpu of ndarray float32 (200, 5)",
        "StandardScaler.partial_fit: scikit-learn, because X is sparse of csr_array float64 (2, 2)",
        "StandardScaler.transform: bncpu of ndarray float32 (200, 5)",
    ]


def run(program, *arguments):
    """What a program prints in a process of its own."""
    line = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout
