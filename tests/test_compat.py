"""What differs between versions of scikit-learn: callbacks, and what counts as an array of another library."""

import importlib.util
import pickle

import array_api_strict as xp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from arrays import normal, polars, same_bits
from scipy import sparse
from sklearn import config_context
from sklearn.preprocessing import StandardScaler

from bncpu import BatchNormTransformer, _compat, _door

X = normal(0, (53, 3), mean=2.0)
HAS_CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None


def test_callbacks_are_taken_exactly_where_standard_scaler_takes_them():
    assert hasattr(BatchNormTransformer, "set_callbacks") == hasattr(StandardScaler, "set_callbacks") == HAS_CALLBACKS


def test_a_task_that_nobody_watches_does_nothing():
    task = _compat.fit_task(BatchNormTransformer(), 3)
    assert task.call_on_fit_task_begin(estimator=None, X=None) is None
    assert task.subcontext("batch").call_on_fit_task_end(estimator=None) is False


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a,
        lambda a: a.tolist(),
        lambda a: tuple(map(tuple, a)),
        lambda a: pd.DataFrame(a, columns=["slice", "iloc_", "c"]),
        lambda a: polars().DataFrame(a, schema=["a", "b", "c"]),
        lambda a: pa.table(dict(zip("abc", a.T, strict=True))),
        sparse.csr_array,
    ],
    ids=["ndarray", "list", "tuple", "pandas", "polars", "pyarrow", "sparse"],
)
def test_rows_of_anything_with_rows(make):
    part = _door.rows(make(X), slice(10, 20))
    part = part.toarray() if sparse.issparse(part) else np.asarray(part)
    np.testing.assert_array_equal(part, X[10:20])


def test_only_arrays_of_other_libraries_are_foreign_and_only_where_dispatch_is_on():
    frames = [pd.DataFrame(X), polars().DataFrame(X), pa.table({"a": X[:, 0]})]
    for own in (X, sparse.csr_array(X), *frames, X.tolist()):
        for dispatch in (False, True):
            with config_context(array_api_dispatch=dispatch):
                assert _compat.foreign_namespace(own) is None
                # With dispatch on, scikit-learn before 1.9 itself refuses lists and frames.
                if HAS_CALLBACKS or not dispatch:
                    BatchNormTransformer(with_mean=False).fit(own)
    assert _compat.foreign_namespace(xp.asarray(X)) is None
    with config_context(array_api_dispatch=True):
        assert _compat.foreign_namespace(xp.asarray(X)) is xp


class Recorder:
    """A callback that writes down what it is told."""

    def __init__(self, stop_after=None):
        self.told = []
        self.stop_after = stop_after

    def setup(self, estimator, context):
        self.told.append(("setup", context.max_subtasks))

    def teardown(self, estimator, context):
        self.told.append(("teardown", None))

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.told.append(("begin", None if X is None else len(X)))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.told.append(("end", fitted_estimator))
        return self.stop_after is not None and self.count("end") >= self.stop_after

    def count(self, hook):
        return [name for name, _ in self.told].count(hook)


if HAS_CALLBACKS:

    @pytest.mark.parametrize("method", ["fit", "partial_fit"])
    def test_without_batch_size_there_is_one_step(method):
        recorder = Recorder()
        bn = BatchNormTransformer().set_callbacks(recorder)
        getattr(bn, method)(X)
        assert [name for name, _ in recorder.told] == ["setup", "begin", "end", "teardown"]
        assert recorder.told[0] == ("setup", 0)
        assert same_bits(recorder.told[2][1].transform(X), bn.transform(X))

    @pytest.mark.parametrize("parameters", [{}, {"momentum": 0.9}, {"halflife": 10}])
    def test_each_batch_is_a_step_that_ends_with_what_was_learned_so_far(parameters):
        recorder = Recorder()
        bn = BatchNormTransformer(batch_size=10, **parameters).set_callbacks(recorder).fit(X)
        assert recorder.told[0] == ("setup", 6)
        assert recorder.count("begin") == recorder.count("end") == 7
        assert [told for name, told in recorder.told if name == "begin"] == [53, 10, 10, 10, 10, 10, 3]
        so_far = BatchNormTransformer(**parameters)
        ends = [told for name, told in recorder.told if name == "end"]
        for k in range(6):
            so_far.partial_fit(X[10 * k : 10 * k + 10])
            assert ends[k].n_batches_seen_ == k + 1
            assert same_bits(ends[k].transform(X), so_far.transform(X))
        assert same_bits(ends[6].transform(X), bn.transform(X))

    def test_a_callback_may_stop_the_fit_after_whole_batches():
        bn = BatchNormTransformer(batch_size=10).set_callbacks(Recorder(stop_after=2)).fit(X)
        assert bn.n_batches_seen_ == 2
        assert bn.n_samples_seen_ == 20

    def test_what_a_callback_does_to_the_estimator_stays():
        class Changing(Recorder):
            def on_fit_task_end(self, estimator, context):
                estimator.calls = getattr(estimator, "calls", 0) + 1
                estimator.set_params(eps=float(estimator.calls))

        bn = BatchNormTransformer(batch_size=10).set_callbacks(Changing()).fit(X)
        assert bn.calls == 7
        assert bn.eps == 7
        assert bn.n_batches_seen_ == 6

    def test_a_refused_fit_is_torn_down_and_leaves_every_byte():
        bn = BatchNormTransformer(batch_size=10).fit(X)
        before, recorder = pickle.dumps(bn), Recorder()
        bad = X.copy()
        bad[33, 1] = np.inf
        with pytest.raises(ValueError, match=r"row\(s\) 33"):
            bn.set_callbacks(recorder).fit(bad)
        assert recorder.count("teardown") == 1
        assert recorder.count("end") == 3
        assert pickle.dumps(bn.set_callbacks()) == before

    def test_scikit_learns_progress_bar_counts_the_batches(capsys):
        from sklearn.callback import ProgressBar

        BatchNormTransformer(batch_size=10).set_callbacks(ProgressBar()).fit(X)
        printed = capsys.readouterr().out
        assert "BatchNormTransformer" in printed
        assert "100%" in printed


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_tables_are_learned_in_column_order_with_nulls_as_missing(make):
    rng = np.random.default_rng(0)
    single = rng.standard_normal(100).astype(np.float32)
    columns = {"a": pa.array([None, *range(99)]), "b": single, "c": rng.random(100)}
    X = np.asfortranarray(np.column_stack([[np.nan, *range(99)], columns["b"], columns["c"]]))
    t, expected = BatchNormTransformer().fit(make(columns)), BatchNormTransformer().fit(X)
    assert list(t.feature_names_in_) == ["a", "b", "c"]
    for found, wanted in zip(t._state.running.moments, expected._state.running.moments, strict=True):
        assert found.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(t.transform(make(columns)), expected.transform(X))
    narrow = make(dict.fromkeys("ab", single))
    assert BatchNormTransformer().fit(narrow).transform(narrow).dtype == np.float32
    with pytest.raises(ValueError, match="could not convert string to float"):
        t.partial_fit(make({**columns, "b": ["x"] * 100}))
