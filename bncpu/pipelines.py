"""Fold a fitted transformer into the linear model behind it: one step less, the same predictions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from bncpu.transformer import BatchNormTransformer

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Models whose predictions depend on X only by X @ coef_.T, plus intercept_ or minus offset_. Listed by module and name,
# as importing them takes time.
LINEAR = {
    "linear_model": {
        "ElasticNet", "ElasticNetCV", "GammaRegressor", "HuberRegressor", "Lars", "LarsCV", "Lasso", "LassoCV",
        "LassoLars", "LassoLarsCV", "LassoLarsIC", "LinearRegression", "LogisticRegression", "LogisticRegressionCV",
        "MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV",
        "OrthogonalMatchingPursuit", "Perceptron", "PoissonRegressor", "QuantileRegressor", "Ridge", "RidgeCV",
        "RidgeClassifier", "RidgeClassifierCV", "SGDClassifier", "SGDOneClassSVM", "SGDRegressor", "TheilSenRegressor",
        "TweedieRegressor",
    },
    "svm": {"LinearSVC", "LinearSVR"},
}  # fmt: skip


def simplify(pipeline: Pipeline) -> Pipeline:
    """Fold the fitted BatchNormTransformer before the last step of a pipeline into that step, if it is linear.

    The transformer computes ``(x - mean) * scale + shift``, so ``coef_ * scale`` and
    ``intercept_ + coef_ @ (shift - mean * scale)`` do both steps at once. Predictions are the same, up to rounding.
    Use it for deployment: if the result is fitted again, it learns without normalization.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted. Not modified.

    Returns
    -------
    Pipeline
        A copy without the transformer, whose last step is a copy of the model with other `coef_` and `intercept_`. The
        pipeline itself, if it cannot be folded: if its last step is not exactly a linear model of scikit-learn, or has
        sparse coefficients; if the step before is not a BatchNormTransformer, or has a `channel_axis` or a feature
        never observed.

    Raises
    ------
    TypeError
        If `pipeline` is not a Pipeline.
    NotFittedError
        If it is not fitted.

    Notes
    -----
    Linear models refuse NaN and infinities themselves. The new coefficients are float64. So predictions from float32
    data are float64, where the pipeline may have computed in float32.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 2: the linear function that is folded.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from bncpu import BatchNormTransformer, simplify
    >>> X, y = load_wine(return_X_y=True)
    >>> pipeline = make_pipeline(BatchNormTransformer(), LogisticRegression()).fit(X, y)
    >>> deployed = simplify(pipeline)
    >>> [name for name, _ in deployed.steps]
    ['logisticregression']
    >>> bool(np.abs(deployed.predict_proba(X) - pipeline.predict_proba(X)).max() < 1e-12)
    True
    """
    from sklearn.pipeline import Pipeline

    if not isinstance(pipeline, Pipeline):
        raise TypeError(f"pipeline must be a scikit-learn Pipeline, got {type(pipeline).__name__}")
    check_is_fitted(pipeline)
    if len(pipeline.steps) < 2:
        return pipeline
    (_, normalizer), (name, model) = pipeline.steps[-2:]
    normalizer = getattr(normalizer, "estimator", normalizer) if _is_frozen(normalizer) else normalizer
    if type(normalizer) is not BatchNormTransformer or not _is_linear(type(model)):
        return pipeline
    check_is_fitted(normalizer)
    check_is_fitted(model)
    forward = normalizer._state.forward
    known = all(np.all(np.isfinite(a)) for a in forward)
    if normalizer.channel_axis is not None or not isinstance(model.coef_, np.ndarray) or not known:
        return pipeline
    simple = copy.copy(pipeline)
    simple.steps = [*copy.deepcopy(pipeline.steps[:-2]), (name, _folded(model, forward, normalizer))]
    return simple


def _is_frozen(step: Any) -> bool:
    return type(step).__module__.startswith("sklearn.frozen")


def _is_linear(kind: type) -> bool:
    package, _, module = kind.__module__.partition(".")
    return package == "sklearn" and kind.__name__ in LINEAR.get(module.partition(".")[0], ())


def _folded(model: Any, forward: Any, normalizer: BatchNormTransformer) -> Any:
    folded = copy.deepcopy(model)
    coef: NDArray[Any] = model.coef_.astype(np.float64)
    folded.coef_ = coef * forward.scale
    constant = coef @ (forward.shift - forward.mean * forward.scale)
    if hasattr(model, "offset_"):
        folded.offset_ = model.offset_ - constant
    else:
        folded.intercept_ = model.intercept_ + constant
    if hasattr(normalizer, "feature_names_in_"):
        folded.feature_names_in_ = normalizer.feature_names_in_
    elif hasattr(folded, "feature_names_in_"):
        del folded.feature_names_in_  # names that set_output had given to the model
    return folded
