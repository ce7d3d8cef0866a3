"""A pipeline without its normalizing step predicts what it did; one that learns in batches, what its steps learn."""

import importlib
import inspect
import pickle
import threading

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_diabetes, load_wine
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

import bncpu.sklearn
from bncpu import BatchNormTransformer, simplify, streaming_pipeline
from bncpu.pipelines import LINEAR, StreamingPipeline

PARAMETERS = [{}, {"eps": 1e-3, "gamma": np.linspace(-1, 2, 10), "beta": np.linspace(-1, 1, 10)}]


# Models that take their time to learn; `simplify` does the same to each of its kind.
LONG_TO_LEARN = ("HuberRegressor", "LogisticRegressionCV", "PoissonRegressor", "TheilSenRegressor")
CLASSIFIERS = ("LogisticRegression", "LogisticRegressionCV", "Perceptron", "LinearSVC")


# What models predict from X; `score` takes y, too.
WAYS = ("predict", "decision_function", "predict_proba", "predict_log_proba", "score_samples", "transform", "score")
KNOWN = {*WAYS, "fit", "partial_fit", "path"}


def fitted(model, normalizer):
    X, y = load_diabetes(return_X_y=True)
    X = X * np.linspace(1, 1000, 10) + np.linspace(0, 100, 10)
    target = y > y.mean() if "Classifier" in model.__name__ or model.__name__ in CLASSIFIERS else y / 10
    target = np.column_stack([target, -target]) if "MultiTask" in model.__name__ else target
    options = {"max_iter": 10_000, "Cs": 2, "cv": 3}
    if model.__name__ == "SGDClassifier":
        options["loss"] = "log_loss"  # which has probabilities
    known = model().get_params()
    if "use_legacy_attributes" in known:  # before scikit-learn 1.9 these defaults did not warn
        options |= {"l1_ratios": (0.0,), "use_legacy_attributes": False}
    made = model(**{name: value for name, value in options.items() if name in known})
    return make_pipeline(normalizer, made).fit(X, target), X, target


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # defaults of LogisticRegressionCV that scikit-learn is changing
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            getattr(importlib.import_module(f"sklearn.{module}"), name),
            marks=[pytest.mark.slow] if name in LONG_TO_LEARN else [],
            id=name,
        )
        for module, names in LINEAR.items()
        for name in sorted(names)
    ],
)
def test_predictions_stay_the_same_but_for_rounding(model):
    public = {name for name in dir(model) if not name.startswith("_") and callable(getattr(model, name))}
    assert {name for name in public if "X" in inspect.signature(getattr(model, name)).parameters} <= KNOWN
    for parameters in PARAMETERS:
        pipeline, X, target = fitted(model, BatchNormTransformer(**parameters))
        simple = simplify(pipeline, strict=True)
        assert [type(step) for _, step in simple.steps] == [model]
        ways = [way for way in WAYS if hasattr(pipeline, way)]
        assert ways == [way for way in WAYS if hasattr(simple, way)]
        for way in ways:
            given = (X, target) if way == "score" else (X,)
            got, expected = (np.asarray(getattr(p, way)(*given), np.float64) for p in (simple, pipeline))
            size = max(1, np.abs(expected[np.isfinite(expected)]).max(initial=0))  # log_proba may be -inf
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * size, err_msg=way)
        assert type(pipeline[0]) is BatchNormTransformer


def test_a_model_without_a_place_for_the_mean_is_left():
    """`score_samples` of SGDOneClassSVM has no intercept: decision_function could be folded, but not both."""
    X, _ = load_wine(return_X_y=True)
    pipeline = make_pipeline(BatchNormTransformer(), SGDOneClassSVM()).fit(X)
    assert simplify(pipeline) is pipeline


def test_names_of_features_are_still_checked():
    X, y = load_wine(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
    simple = simplify(pipeline)
    np.testing.assert_array_equal(simple.predict(X), pipeline.predict(X))
    with pytest.raises(ValueError, match="feature names"):
        simple.predict(X.rename(columns={"alcohol": "wine"}))
    as_frame = make_pipeline(BatchNormTransformer(), LogisticRegression()).set_output(transform="pandas")
    as_frame.fit(X.to_numpy(), y)
    np.testing.assert_array_equal(simplify(as_frame).predict(X.to_numpy()), as_frame.predict(X.to_numpy()))


def test_steps_before_stay():
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), PCA(3), BatchNormTransformer(), LogisticRegression(), verbose=False)
    simple = simplify(pipeline.fit(X, y))
    assert [name for name, _ in simple.steps] == ["standardscaler", "pca", "logisticregression"]
    np.testing.assert_allclose(simple.predict_proba(X), pipeline.predict_proba(X), rtol=1e-12)


def test_a_frozen_layer_is_folded_and_what_comes_before_is_a_copy():
    X, y = load_wine(return_X_y=True)
    layer = FrozenEstimator(BatchNormTransformer().fit(X))
    pipeline = make_pipeline(StandardScaler(with_mean=False, with_std=False), layer, LogisticRegression()).fit(X, y)
    simple = simplify(pipeline)
    np.testing.assert_allclose(simple.predict_proba(X), pipeline.predict_proba(X), rtol=1e-10)
    simple.set_output(transform="pandas")
    assert isinstance(pipeline[0].transform(X), np.ndarray)


class Derived(LinearRegression):
    """May compute something else."""


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((BatchNormTransformer(), DecisionTreeClassifier()), "the last step must be .* got DecisionTreeClassifier"),
        ((BatchNormTransformer(), SVC(kernel="linear")), "the last step must be .* got SVC"),
        ((StandardScaler(), LogisticRegression()), "the step before the last must be .* got StandardScaler"),
        ((BatchNormTransformer(), PCA(2), LogisticRegression()), "the step before the last must be .* got PCA"),
        ((BatchNormTransformer(), Derived()), "the last step must be .* got Derived"),
        ((LinearRegression(),), "the step before the last must be .* got None"),
        ((BatchNormTransformer(), "passthrough"), "the last step must be .* got 'passthrough'"),
        (("passthrough", LinearRegression()), "the step before the last must be .* got 'passthrough'"),
        ((BatchNormTransformer(clip=1.0), LogisticRegression()), "its BatchNormTransformer has clip=1, .*"),
    ],
    ids=str,
)
def test_anything_else_is_left_as_it_is_and_strict_says_why(steps, why):
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(*steps).fit(X, y)
    assert simplify(pipeline) is pipeline
    with pytest.raises(ValueError, match=f"^pipeline cannot be simplified: {why}$"):
        simplify(pipeline, strict=True)


def test_sparse_coefficients_and_features_never_observed_are_left():
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
    pipeline[-1].sparsify()
    assert simplify(pipeline) is pipeline
    with pytest.raises(ValueError, match=r"^pipeline cannot be simplified: coef_ of LogisticRegression is sparse"):
        simplify(pipeline, strict=True)
    pipeline[-1].densify()
    pipeline[0].fit(np.where(np.arange(13) == 2, np.nan, X))
    assert simplify(pipeline) is pipeline
    with pytest.raises(ValueError, match=r"nothing finite to apply to column\(s\) 2, as if never observed$"):
        simplify(pipeline, strict=True)
    pipeline[0].set_params(channel_axis=1).fit(X)
    with pytest.raises(ValueError, match=r"has channel_axis=1, for arrays of images$"):
        simplify(pipeline, strict=True)


def test_what_is_no_fitted_pipeline_is_refused():
    with pytest.raises(TypeError, match=r"^pipeline must be a scikit-learn Pipeline, got LinearRegression$"):
        simplify(LinearRegression())
    with pytest.raises(NotFittedError):
        simplify(make_pipeline(BatchNormTransformer(), LinearRegression()))


# ---- pipelines that learn in batches ----

X, Y = load_wine(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(X))
BATCHES = [(X[rows], Y[rows]) for rows in np.array_split(ORDER, 6)]


@pytest.mark.parametrize("scaler", [BatchNormTransformer, StandardScaler, bncpu.sklearn.StandardScaler])
def test_the_steps_learn_one_after_the_other(scaler):
    pipeline = streaming_pipeline(scaler(), IncrementalPCA(5), SGDClassifier(random_state=0))
    scale, pca, model = scaler(), IncrementalPCA(5), SGDClassifier(random_state=0)
    for x, y in BATCHES:
        assert pipeline.partial_fit(x, y, classes=[0, 1, 2]) is pipeline
        z = scale.partial_fit(x).transform(x)
        model.partial_fit(pca.partial_fit(z).transform(z), y, classes=[0, 1, 2])
    np.testing.assert_array_equal(pipeline[-1].coef_, model.coef_)
    np.testing.assert_array_equal(pipeline.predict(X), model.predict(pca.transform(scale.transform(X))))
    assert pipeline.score(X, Y) > 0.9


def test_it_is_a_pipeline_in_every_other_respect():
    steps = BatchNormTransformer(), LogisticRegression()
    ours, theirs = streaming_pipeline(*steps, verbose=True), make_pipeline(*map(clone, steps))
    assert isinstance(ours, Pipeline)
    assert [name for name, _ in ours.steps] == [name for name, _ in theirs.steps]
    assert ours.verbose
    assert not hasattr(ours, "partial_fit")  # as LogisticRegression has none
    ours.set_params(verbose=False)
    np.testing.assert_array_equal(ours.fit(X, Y).predict_proba(X), theirs.fit(X, Y).predict_proba(X))
    for other in (clone(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is StreamingPipeline
    assert type(ours[:1]) is StreamingPipeline


def test_clusters():
    pipeline = streaming_pipeline(BatchNormTransformer(), MiniBatchKMeans(3, random_state=0, n_init=1))
    for x, _ in BATCHES:
        pipeline.partial_fit(x)
    assert pipeline.predict(X).shape == (len(X),)


def test_the_last_step_may_be_a_transformer_or_pass_through():
    alone = BatchNormTransformer()
    pipelines = [streaming_pipeline(BatchNormTransformer()), streaming_pipeline(BatchNormTransformer(), "passthrough")]
    for x, _ in BATCHES:
        alone.partial_fit(x)
        for pipeline in pipelines:
            pipeline.partial_fit(x)
    for pipeline in pipelines:
        np.testing.assert_array_equal(pipeline.transform(X), alone.transform(X))


def test_transformers_that_do_not_learn():
    frozen = FrozenEstimator(StandardScaler().fit(X))
    pipeline = streaming_pipeline(FunctionTransformer(np.log1p), Normalizer(), None, SGDRegressor(random_state=0))
    frozen_first = streaming_pipeline(frozen, SGDRegressor(random_state=0))
    for x, y in BATCHES:
        pipeline.partial_fit(x, y)
        frozen_first.partial_fit(x, y)
    np.testing.assert_array_equal(frozen.estimator.mean_, StandardScaler().fit(X).mean_)
    text = streaming_pipeline(HashingVectorizer(n_features=16), SGDClassifier(random_state=0))
    assert text.partial_fit(["good", "bad"], [1, 0], classes=[0, 1]).predict(["good"]).shape == (1,)


def test_a_transformer_that_cannot_learn_in_batches_is_named():
    pipeline = streaming_pipeline(BatchNormTransformer(), PCA(2), SGDClassifier())
    with pytest.raises(TypeError, match=r"step 'pca' has no partial_fit and is not fitted: fit PCA before"):
        pipeline.partial_fit(*BATCHES[0], classes=[0, 1, 2])
    assert not hasattr(pipeline[0], "n_features_in_")
    pipeline[1].fit(X)
    pipeline.partial_fit(*BATCHES[0], classes=[0, 1, 2])


def test_a_refused_batch_changes_no_transformer():
    pipeline = streaming_pipeline(BatchNormTransformer(), IncrementalPCA(3), SGDClassifier(random_state=0))
    pipeline.partial_fit(*BATCHES[0], classes=[0, 1, 2])
    before = pickle.dumps([step for _, step in pipeline.steps[:-1]])
    for x, y in [(X[:9], Y[:8]), (X[:9, :3], Y[:9]), (X[:9] * np.inf, Y[:9])]:
        with pytest.raises(ValueError):
            pipeline.partial_fit(x, y, classes=[0, 1, 2])
        assert pickle.dumps([step for _, step in pipeline.steps[:-1]]) == before


class TestParameters:
    """What goes to which step."""

    W = np.linspace(0, 1, len(BATCHES[0][0]))

    def test_by_the_name_of_the_step(self):
        pipeline = streaming_pipeline(BatchNormTransformer(), SGDRegressor(random_state=0))
        x, y = BATCHES[0]
        pipeline.partial_fit(x, y, batchnormtransformer__sample_weight=self.W, sgdregressor__sample_weight=self.W)
        np.testing.assert_array_equal(pipeline[0].mean_, BatchNormTransformer().fit(x, None, self.W).mean_)
        z = pipeline[0].transform(x)
        expected = SGDRegressor(random_state=0).partial_fit(z, y, self.W)
        np.testing.assert_array_equal(pipeline[1].coef_, expected.coef_)

    def test_by_request(self):
        x, y = BATCHES[0]
        with sklearn.config_context(enable_metadata_routing=True):
            scaler = BatchNormTransformer().set_partial_fit_request(sample_weight=True, times=False)
            model = SGDRegressor(random_state=0).set_partial_fit_request(sample_weight=False)
            pipeline = streaming_pipeline(scaler, FunctionTransformer(), model).partial_fit(x, y, sample_weight=self.W)
            with pytest.raises(TypeError, match="weights"):
                pipeline.partial_fit(x, y, weights=self.W)
        np.testing.assert_array_equal(pipeline[0].mean_, BatchNormTransformer().fit(x, None, self.W).mean_)
        expected = SGDRegressor(random_state=0).partial_fit(pipeline[0].transform(x), y)
        np.testing.assert_array_equal(pipeline[-1].coef_, expected.coef_)

    @pytest.mark.parametrize("name", ["sample_weight", "nothing__sample_weight"])
    def test_a_name_of_no_step(self, name):
        pipeline = streaming_pipeline(BatchNormTransformer(), SGDRegressor())
        with pytest.raises(ValueError, match=rf"{name}= must name a step .*sgdregressor__sample_weight="):
            pipeline.partial_fit(*BATCHES[0], **{name: self.W})


class Slow(TransformerMixin, BaseEstimator):
    """A transformer that changes its arrays in place."""

    def fit(self, X, y=None):
        """Forget."""
        self.seen_ = np.zeros(1)
        return self.partial_fit(X)

    def partial_fit(self, X, y=None):
        """Count."""
        if not hasattr(self, "seen_"):
            self.seen_ = np.zeros(1)
        self.seen_ += len(X)
        return self

    def transform(self, X):
        """Nothing."""
        return X


def test_what_a_transformer_changes_in_place_is_restored():
    pipeline = streaming_pipeline(Slow(), SGDRegressor())
    pipeline.partial_fit(*BATCHES[0])
    with pytest.raises(ValueError):
        pipeline.partial_fit(X[:5], Y[:4])
    assert pipeline[0].seen_ == len(BATCHES[0][0])


def test_the_objects_of_the_user_learn():
    inner, pca = BatchNormTransformer(), IncrementalPCA(3)
    pipeline = streaming_pipeline(streaming_pipeline(inner, pca), SGDClassifier(random_state=0))
    pipeline.partial_fit(*BATCHES[0], classes=[0, 1, 2])
    assert inner.n_batches_seen_ == 1
    before = pickle.dumps(pipeline)
    with pytest.raises(ValueError):
        pipeline.partial_fit(X[:9], Y[:8])
    assert pickle.dumps(pipeline) == before
    assert pipeline[0][0] is inner
    assert pipeline[0][1] is pca


def test_requests_go_through_nested_pipelines():
    x, y = BATCHES[0]
    w = TestParameters.W
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = BatchNormTransformer().set_partial_fit_request(sample_weight=True, times=False)
        model = SGDRegressor(random_state=0).set_partial_fit_request(sample_weight=False)
        pipeline = streaming_pipeline(streaming_pipeline(scaler, FunctionTransformer()), model)
        pipeline.partial_fit(x, y, sample_weight=w)
    np.testing.assert_array_equal(scaler.mean_, BatchNormTransformer().fit(x, None, w).mean_)


def test_odd_steps():
    x, y = BATCHES[0]
    locked = Slow()
    locked.lock = threading.Lock()
    streaming_pipeline(locked, SGDRegressor()).partial_fit(x, y).partial_fit(x, y)
    scaler = BatchNormTransformer()
    StreamingPipeline([("a", scaler), ("b", scaler)]).partial_fit(x)
    assert scaler.n_batches_seen_ == 2
    streaming_pipeline("passthrough").partial_fit(x)
    with pytest.raises(sklearn.utils._param_validation.InvalidParameterError, match="verbose"):
        streaming_pipeline(scaler, verbose="much").partial_fit(x)
    with pytest.raises(ValueError, match="step 'functiontransformer' does not learn, and takes no sample_weight"):
        streaming_pipeline(FunctionTransformer(), scaler).partial_fit(x, functiontransformer__sample_weight=y)
    with pytest.raises(ValueError, match="step 'passthrough' does not learn, and takes no classes"):
        streaming_pipeline(scaler, "passthrough").partial_fit(x, classes=[0, 1])


def test_the_same_step_twice_is_restored():
    step = BatchNormTransformer()
    pipeline = StreamingPipeline([("a", step), ("b", step), ("model", SGDRegressor())])
    pipeline.partial_fit(*BATCHES[0])
    before = pickle.dumps(step)
    with pytest.raises(ValueError):
        pipeline.partial_fit(X[:9], Y[:8])
    assert pickle.dumps(step) == before


class Logging(Slow):
    """A transformer with a list of the user's, a generator, and a lock."""

    def __init__(self, log, random_state):
        self.log = log
        self.random_state = random_state

    def partial_fit(self, X, y=None):
        """Count, write down, draw."""
        super().partial_fit(X)
        self.log.append(len(X))
        self.random_state.random()
        if not hasattr(self, "lock"):
            self.lock = threading.Lock()
        return self


def test_what_a_user_has_given_to_a_step_is_what_it_uses():
    log, generator = [], np.random.default_rng(0)
    step = Logging(log, generator)
    pipeline = streaming_pipeline(step, SGDRegressor())
    pipeline.partial_fit(X[:10], Y[:10]).partial_fit(X[:7], Y[:7])
    assert log == [10, 7]
    assert step.log is log
    assert generator.random() == np.random.default_rng(0).random(3)[2]
    with pytest.raises(ValueError):
        pipeline.partial_fit(X[:5], Y[:4])
    assert step.log == [10, 7]
    assert step.seen_ == 17


def test_refused_batches_cost_no_digits():
    rng = np.random.default_rng(0)
    pipeline = streaming_pipeline(bncpu.sklearn.StandardScaler(), SGDRegressor())
    batches = [rng.normal(size=(7, 1)) + 1e6 for _ in range(100)]
    for x in batches:
        pipeline.partial_fit(x, x[:, 0])
        with pytest.raises(ValueError):
            pipeline.partial_fit(x, x[:5, 0])
    exact = np.concatenate(batches) - 1e6
    np.testing.assert_allclose(pipeline[0].var_, exact.var(axis=0), rtol=1e-13)
