"""Fold a fitted transformer into the linear model behind it: one step less, the same predictions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from bncpu._infinities import some
from bncpu.transformer import BatchNormTransformer

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Models whose predictions depend on X only by X @ coef_.T + intercept_. Listed by module and name, as importing them
# takes time. Not SGDOneClassSVM: its score_samples is X @ coef_.T alone, which has no place for the mean.
LINEAR = {
    "linear_model": {
        "ElasticNet", "ElasticNetCV", "GammaRegressor", "HuberRegressor", "Lars", "LarsCV", "Lasso", "LassoCV",
        "LassoLars", "LassoLarsCV", "LassoLarsIC", "LinearRegression", "LogisticRegression", "LogisticRegressionCV",
        "MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV",
        "OrthogonalMatchingPursuit", "Perceptron", "PoissonRegressor", "QuantileRegressor", "Ridge", "RidgeCV",
        "RidgeClassifier", "RidgeClassifierCV", "SGDClassifier", "SGDRegressor", "TheilSenRegressor",
        "TweedieRegressor",
    },
    "svm": {"LinearSVC", "LinearSVR"},
}  # fmt: skip


def simplify(pipeline: Pipeline, *, strict: bool = False) -> Pipeline:
    """Fold the fitted BatchNormTransformer before the last step of a pipeline into that step, if it is linear.

    The transformer computes ``(x - mean) * scale + shift``, so ``coef_ * scale`` and
    ``intercept_ + coef_ @ (shift - mean * scale)`` do both steps at once. Predictions are the same, up to rounding.
    Use it for deployment: if the result is fitted again, it learns without normalization.

    Parameters
    ----------
    pipeline : Pipeline
        Fitted. Not modified.
    strict : bool, default=False
        Raise an error that says why, if the pipeline cannot be folded.

    Returns
    -------
    Pipeline
        A copy without the transformer, whose last step is a copy of the model with other `coef_` and `intercept_`. The
        pipeline itself, if it cannot be folded: if its last step is not exactly a linear model of scikit-learn, or has
        sparse coefficients; if the step before is not a BatchNormTransformer, or has a `channel_axis`, a `clip` or a
        feature never observed.

    Raises
    ------
    TypeError
        If `pipeline` is not a Pipeline.
    ValueError
        With ``strict=True``, if it cannot be folded.
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
    normalizer, model = _last_two(pipeline)
    obstacle = _obstacle(normalizer, model)
    if obstacle and strict:
        raise ValueError(f"pipeline cannot be simplified: {obstacle}")
    if obstacle:
        return pipeline
    simple = copy.copy(pipeline)
    folded = _folded(model, normalizer._state.forward, normalizer)
    simple.steps = [*copy.deepcopy(pipeline.steps[:-2]), (pipeline.steps[-1][0], folded)]
    return simple


def _last_two(pipeline: Pipeline) -> tuple[Any, Any]:
    """The last step, and the one before, taken out of a FrozenEstimator; None if there is none."""
    before = pipeline.steps[-2][1] if len(pipeline.steps) > 1 else None
    return getattr(before, "estimator", before) if _is_frozen(before) else before, pipeline.steps[-1][1]


def _obstacle(normalizer: Any, model: Any) -> str | None:
    """Why a transformer cannot be folded into the model behind it; None if it can."""
    if type(normalizer) is not BatchNormTransformer:
        return f"the step before the last must be a BatchNormTransformer, got {_name(normalizer)}"
    if not _is_linear(type(model)):
        return f"the last step must be one of scikit-learn's linear models that simplify knows, got {_name(model)}"
    check_is_fitted(normalizer)
    check_is_fitted(model)
    if normalizer.channel_axis is not None:
        return f"its BatchNormTransformer has channel_axis={normalizer.channel_axis}, for arrays of images"
    clip = normalizer._state.parameters.clip
    if clip is not None:
        return f"its BatchNormTransformer has clip={clip:g}, which is not linear"
    if not isinstance(model.coef_, np.ndarray):
        return f"coef_ of {_name(model)} is sparse; densify() makes it an array"
    bad = np.flatnonzero(~np.isfinite(normalizer._state.forward).all(axis=0))
    if len(bad):
        return f"its BatchNormTransformer has nothing finite to apply to column(s) {some(bad)}, as if never observed"
    return None


def _name(step: Any) -> str:
    return repr(step) if step is None or isinstance(step, str) else type(step).__name__


def _is_frozen(step: Any) -> bool:
    return type(step).__module__.startswith("sklearn.frozen")


def _is_linear(kind: type) -> bool:
    package, _, module = kind.__module__.partition(".")
    return package == "sklearn" and kind.__name__ in LINEAR.get(module.partition(".")[0], ())


def _folded(model: Any, forward: Any, normalizer: BatchNormTransformer) -> Any:
    folded = copy.deepcopy(model)
    coef: NDArray[Any] = model.coef_.astype(np.float64)
    folded.coef_ = coef * forward.scale
    folded.intercept_ = model.intercept_ + coef @ (forward.shift - forward.mean * forward.scale)
    if hasattr(normalizer, "feature_names_in_"):
        folded.feature_names_in_ = normalizer.feature_names_in_
    elif hasattr(folded, "feature_names_in_"):
        del folded.feature_names_in_  # names that set_output had given to the model
    return folded
