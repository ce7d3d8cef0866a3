"""A pipeline without its normalizing step predicts what it did."""

import importlib

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
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


def fitted(model, normalizer):
    X, y = load_diabetes(return_X_y=True)
    X = X * np.linspace(1, 1000, 10) + np.linspace(0, 100, 10)
    target = y > y.mean() if "Classifier" in model.__name__ or model.__name__ in CLASSIFIERS else y / 10
    target = np.column_stack([target, -target]) if "MultiTask" in model.__name__ else target
    options = {"max_iter": 10_000, "Cs": 2, "cv": 3}
    known = model().get_params()
    if "use_legacy_attributes" in known:  # before scikit-learn 1.9 these defaults did not warn
        options |= {"l1_ratios": (0.0,), "use_legacy_attributes": False}
    made = model(**{name: value for name, value in options.items() if name in known})
    return make_pipeline(normalizer, made).fit(X, target), X


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
    for parameters in PARAMETERS:
        pipeline, X = fitted(model, BatchNormTransformer(**parameters))
        simple = simplify(pipeline)
        assert [type(step) for _, step in simple.steps] == [model]
        ways = [way for way in ("predict_proba", "decision_function", "predict") if hasattr(pipeline, way)]
        got, expected = (getattr(p, ways[0])(X) for p in (simple, pipeline))
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        assert type(pipeline[0]) is BatchNormTransformer


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
    "steps",
    [
        (BatchNormTransformer(), DecisionTreeClassifier()),
        (BatchNormTransformer(), SVC(kernel="linear")),
        (StandardScaler(), LogisticRegression()),
        (BatchNormTransformer(), PCA(2), LogisticRegression()),
        (BatchNormTransformer(), Derived()),
        (LinearRegression(),),
        (BatchNormTransformer(), "passthrough"),
    ],
    ids=str,
)
def test_anything_else_is_left_as_it_is(steps):
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(*steps).fit(X, y)
    assert simplify(pipeline) is pipeline


def test_sparse_coefficients_and_features_never_observed_are_left():
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
    pipeline[-1].sparsify()
    assert simplify(pipeline) is pipeline
    pipeline[-1].densify()
    pipeline[0].fit(np.where(np.arange(13) == 2, np.nan, X))
    assert simplify(pipeline) is pipeline


def test_what_is_no_fitted_pipeline_is_refused():
    with pytest.raises(TypeError, match=r"^pipeline must be a scikit-learn Pipeline, got LinearRegression$"):
        simplify(LinearRegression())
    with pytest.raises(NotFittedError):
        simplify(make_pipeline(BatchNormTransformer(), LinearRegression()))
