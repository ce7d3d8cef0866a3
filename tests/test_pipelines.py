"""A pipeline without its normalizing step predicts what it did."""

import importlib
import inspect

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDOneClassSVM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from bncpu import BatchNormTransformer, simplify
from bncpu.pipelines import LINEAR

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
