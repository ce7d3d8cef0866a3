"""What is made of transformers: a pipeline that learns in batches, one without the transformer, several joined."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from bncpu import _names
from bncpu import state as states
from bncpu._infinities import some
from bncpu.state import State
from bncpu.transformer import BatchNormTransformer

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


def _last_learns_in_batches(pipeline: Pipeline) -> bool:
    last = pipeline.steps[-1][1]
    return _passes(last) or _learns(last) or not get_tags(last).requires_fit


def _passes(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def _learns(step: Any) -> bool:
    return hasattr(step, "partial_fit") and not _is_frozen(step)


class StreamingPipeline(Pipeline):  # numpydoc ignore=PR02
    """A Pipeline with ``partial_fit``; :func:`bncpu.streaming_pipeline` makes it.

    Parameters
    ----------
    steps : list of tuple of (str, estimator)
        As in :class:`sklearn.pipeline.Pipeline`.
    transform_input : list of str, optional
        As there, with metadata routing, in scikit-learn 1.6 and later; :meth:`partial_fit` does not use it.
    memory : str or joblib.Memory, optional
        As there; :meth:`partial_fit` does not use it.
    verbose : bool, default=False
        As there; :meth:`partial_fit` prints nothing.

    Examples
    --------
    >>> from sklearn.linear_model import SGDRegressor
    >>> from bncpu import BatchNormTransformer
    >>> from bncpu.pipelines import StreamingPipeline
    >>> pipeline = StreamingPipeline([("scale", BatchNormTransformer()), ("model", SGDRegressor(random_state=0))])
    >>> pipeline.partial_fit([[0.0], [1.0]], [0.0, 1.0]).predict([[1.0]]).shape
    (1,)
    """

    @available_if(_last_learns_in_batches)
    def partial_fit(self, X: Any, y: Any = None, *, classes: Any = None, **params: Any) -> StreamingPipeline:
        """Learn from the next batch: each step in turn, from what the steps before it, which have learned, make of it.

        A transformer without ``partial_fit`` only transforms: it must need no fit, or have been fitted. If a step
        refuses its batch, no transformer before it has learned from that.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Whatever the first step takes.
        y : array-like of shape (n_samples,), optional
            What the last step is to predict. Every step gets it.
        classes : array-like of shape (n_classes,), optional
            For the last step, if it is a classifier: all classes that will come. It needs them at the first batch.
        **params : dict
            For a step's ``partial_fit``: ``step__name=value``; with metadata routing on, ``name=value`` for the steps
            that have requested it.

        Returns
        -------
        StreamingPipeline
            Itself.

        Raises
        ------
        TypeError
            If a transformer can neither learn in batches nor transform without a fit.
        ValueError
            If `params` names no step, or a step refuses its batch.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.linear_model import SGDClassifier
        >>> from bncpu import BatchNormTransformer, streaming_pipeline
        >>> X, y = load_wine(return_X_y=True)
        >>> order = np.random.default_rng(0).permutation(len(X))
        >>> pipeline = streaming_pipeline(BatchNormTransformer(), SGDClassifier(random_state=0))
        >>> for rows in np.array_split(order, 6):
        ...     pipeline = pipeline.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
        >>> pipeline.score(X, y) > 0.9
        True
        """
        self._validate_params()
        self._validate_steps()
        routed = self._params_of_steps(params)
        *transformers, (last_name, last) = self.steps
        if classes is not None:
            routed[last_name]["classes"] = classes
        for name, step in self.steps:
            if routed[name] and not _learns(step):
                raise ValueError(f"step {name!r} does not learn, and takes no {', '.join(routed[name])}")
        transformers = [(name, step) for name, step in transformers if not _passes(step)]
        for name, step in transformers:
            _check_learns_or_transforms(name, step)
        before: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
        try:
            for name, step in transformers:
                if _learns(step):
                    before += _kept(step)
                    step.partial_fit(X, y, **routed[name])
                X = step.transform(X)
            if _learns(last):
                last.partial_fit(X, y, **routed[last_name])
        except BaseException:
            for estimator, attributes, copies in reversed(before):
                _restore(estimator, attributes, copies)
            raise
        return self

    def get_metadata_routing(self) -> Any:
        """What each step has requested, also for :meth:`partial_fit`.

        Returns
        -------
        MetadataRouter
            As in :class:`sklearn.pipeline.Pipeline`.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer, streaming_pipeline
        >>> streaming_pipeline(BatchNormTransformer()).get_metadata_routing() is not None
        True
        """
        router = super().get_metadata_routing()
        for name, step in self.steps:
            if _learns(step):
                router._route_mappings[name].mapping.add(caller="partial_fit", callee="partial_fit")
        return router

    def _params_of_steps(self, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What goes to the ``partial_fit`` of each step, by the step's name."""
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "partial_fit", **params)
            return {name: dict(routed[name].get("partial_fit", {})) for name, _ in self.steps}
        found: dict[str, dict[str, Any]] = {name: {} for name, _ in self.steps}
        for key, value in params.items():
            name, separator, parameter = key.partition("__")
            if not separator or name not in found:
                raise ValueError(
                    f"{key}= must name a step of this pipeline, as {self.steps[-1][0]}__{parameter or key}= does; its "
                    f"steps are {', '.join(found)}"
                )
            found[name][parameter] = value
        return found


def _kept(step: Any) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """An estimator and those within it, with the attributes of each, and copies of these."""
    within = step.get_params(deep=True).values() if hasattr(step, "get_params") else ()
    estimators = [step, *(part for part in within if isinstance(part, BaseEstimator) and part is not step)]
    known = {id(estimator): estimator for estimator in estimators}
    return [(estimator, dict(vars(estimator)), _copies(estimator, known)) for estimator in estimators]


def _copies(estimator: Any, known: dict[int, Any]) -> dict[str, Any]:
    if type(estimator) is BatchNormTransformer:  # it changes nothing in place, and may hold a window of rows
        return dict(vars(estimator))
    copies = {}
    for name, value in vars(estimator).items():
        try:
            copies[name] = copy.deepcopy(value, known)
        except Exception:  # a lock, an open file, a tensor that is part of a graph
            copies[name] = value
    return copies


def _restore(estimator: Any, attributes: dict[str, Any], copies: dict[str, Any]) -> None:
    """Give an estimator its attributes back: copies only of what has been changed in place."""
    estimator.__dict__ = {
        name: value if _is_as_before(value, copies[name]) else copies[name] for name, value in attributes.items()
    }


def _is_as_before(value: Any, before: Any) -> bool:
    if value is before:
        return True
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape == before.shape and value.tobytes() == before.tobytes()
    try:
        return pickle.dumps(value) == pickle.dumps(before)
    except Exception:
        return False


def _check_learns_or_transforms(name: str, step: Any) -> None:
    if _learns(step) or not get_tags(step).requires_fit:
        return
    try:
        check_is_fitted(step)
    except NotFittedError:
        raise TypeError(
            f"step {name!r} has no partial_fit and is not fitted: fit {type(step).__name__} before, or use another, as "
            "IncrementalPCA for PCA"
        ) from None


def streaming_pipeline(*steps: Any, memory: Any = None, verbose: bool = False) -> StreamingPipeline:
    """A scikit-learn Pipeline that learns in batches: its ``partial_fit`` goes through all steps.

    Parameters
    ----------
    *steps : estimator
        Transformers, and at the end any estimator; their names are made as in :func:`sklearn.pipeline.make_pipeline`.
    memory : str or joblib.Memory, optional
        For ``fit``, as in make_pipeline.
    verbose : bool, default=False
        For ``fit``, as in make_pipeline.

    Returns
    -------
    StreamingPipeline
        A :class:`~sklearn.pipeline.Pipeline` in every other respect.

    See Also
    --------
    bncpu.pipelines.StreamingPipeline : What it returns, with names of your own for the steps.

    Notes
    -----
    A step learns from what the steps before it made of the batch, as they were then. So the first batches are scaled by
    statistics of few rows. If that matters, let the scaler learn from a first pass, and freeze it
    (:class:`sklearn.frozen.FrozenEstimator`).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.cluster import MiniBatchKMeans
    >>> from sklearn.decomposition import IncrementalPCA
    >>> from bncpu import BatchNormTransformer, streaming_pipeline
    >>> pipeline = streaming_pipeline(BatchNormTransformer(), IncrementalPCA(2), MiniBatchKMeans(2, random_state=0))
    >>> for batch in np.random.default_rng(0).normal(size=(5, 100, 8)):
    ...     pipeline = pipeline.partial_fit(batch)
    >>> pipeline.predict(batch).shape
    (100,)
    """
    return StreamingPipeline(make_pipeline(*steps).steps, memory=memory, verbose=verbose)


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


def concatenate(*transformers: BatchNormTransformer) -> BatchNormTransformer:
    """Join transformers of different features: one that does to all of them what each does to its own.

    Parameters
    ----------
    *transformers : BatchNormTransformer
        Fitted, of one class, with the same parameters but for `gamma` and `beta`, which are joined. All with names of
        features, or none. Their numbers of samples may differ. Those with `halflife` or `momentum` are taken to end at
        the same row; with `momentum` after as many batches. With `window` they must hold the same rows.

    Returns
    -------
    BatchNormTransformer
        A new one, with the features of the first, then those of the second, and so on. `n_batches_seen_` is the
        largest. It can go on learning.

    Raises
    ------
    NotFittedError
        If one has learned nothing.
    TypeError
        If one is no BatchNormTransformer, or of another class than the first.
    ValueError
        If there is none, their parameters or kinds differ, or two features have the same name.

    See Also
    --------
    BatchNormTransformer.select : The way back.
    BatchNormTransformer.merge : The same features of more samples.

    Examples
    --------
    >>> from bncpu import BatchNormTransformer, concatenate
    >>> height, weight = BatchNormTransformer().fit([[1.6], [1.8]]), BatchNormTransformer().fit([[60.0], [80.0]])
    >>> concatenate(height, weight).transform([[1.8, 70.0]]).round(6)
    array([[1., 0.]])
    """
    if not transformers:
        raise ValueError("transformers must be at least one, got none")
    kind = type(transformers[0])
    for t in transformers:
        if type(t) is not kind or not issubclass(kind, BatchNormTransformer):
            raise TypeError(f"transformers must be of one class, a BatchNormTransformer, got {type(t).__name__}")
        check_is_fitted(t)
    parts = [t._as_it_is() for t in transformers]
    made, sizes = parts[0]._apart(), [part.n_features_in_ for part in parts]
    states.alike(parts)
    names = _names.joined_names([getattr(part, "feature_names_in_", None) for part in parts])
    for name, default in states.OF_FEATURES.items():
        values = [getattr(part, name) for part in parts]
        for own, size in zip(values, sizes, strict=True):
            states.finite_per_channel(name, own, size)
        setattr(made, name, states.joined(values, sizes, default))
    made._state = State.beside([part._state for part in parts])
    made.n_features_in_ = sum(sizes)
    if names is not None:
        made.feature_names_in_ = names
    return made


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
