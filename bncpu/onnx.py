"""ONNX: a pipeline with a fitted BatchNormTransformer becomes a graph with one BatchNormalization node in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from bncpu.sklearn import StandardScaler
from bncpu.transformer import BatchNormTransformer

try:
    import onnx
    from skl2onnx import update_registered_converter
    from skl2onnx.common._apply_operation import apply_clip
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, guess_proto_type
    from skl2onnx.common.utils import check_input_and_output_numbers
    from skl2onnx.operator_converters.common import concatenate_variables
    from skl2onnx.operator_converters.scaler_op import convert_sklearn_scaler
    from skl2onnx.shape_calculators.scaler import calculate_sklearn_scaler_output_shapes
except ImportError as error:
    raise ImportError(f"converting to ONNX needs {error.name}: pip install 'bncpu[onnx]'") from error

__all__ = ["register"]


def register() -> None:
    """Teach skl2onnx to convert :class:`~bncpu.BatchNormTransformer`, alone or in a pipeline.

    And :class:`bncpu.sklearn.StandardScaler`, as skl2onnx converts scikit-learn's.

    The transformer becomes one ``BatchNormalization`` node [1]_ for inference, with `clip` a ``Clip`` node after it. It
    computes in float64 if the graph's
    input is float64, else in float32; skl2onnx has no float16. NaN stays NaN. Infinities, which `transform` refuses,
    give infinities or NaN. Variance and eps are folded into the scale.

    Runtimes compute ``x * a + b`` in the type of the graph. In float32 that keeps only 4 digits where a mean lies 1,000
    standard deviations from 0; use a float64 input then. A value exactly on the threshold of a tree that follows may
    fall to the other side.

    Raises
    ------
    ImportError
        If skl2onnx or onnx is not installed. It is raised when this module is imported.

    References
    ----------
    .. [1] ONNX operators, BatchNormalization, version 15.

    Examples
    --------
    >>> import bncpu.onnx, onnxruntime, skl2onnx  # doctest: +SKIP
    >>> bncpu.onnx.register()  # doctest: +SKIP
    >>> onnx_model = skl2onnx.to_onnx(pipeline, X[:1].astype("float32"))  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession(onnx_model.SerializeToString())  # doctest: +SKIP
    >>> session.run(None, {"X": X.astype("float32")})  # doctest: +SKIP
    """
    update_registered_converter(BatchNormTransformer, "BncpuBatchNormTransformer", _shape, _convert)
    theirs = calculate_sklearn_scaler_output_shapes, convert_sklearn_scaler
    options = {"div": ["std", "div", "div_cast"]}
    update_registered_converter(StandardScaler, "BncpuStandardScaler", *theirs, options=options)


def _shape(operator: Any) -> None:
    check_is_fitted(operator.raw_operator)
    check_input_and_output_numbers(operator, input_count_range=[1, None], output_count_range=1)
    first = operator.inputs[0].type
    kind = DoubleTensorType if any(isinstance(i.type, DoubleTensorType) for i in operator.inputs) else FloatTensorType
    shape = list(first.shape)
    if len(operator.inputs) > 1:  # each input is a column
        shape[1] = operator.raw_operator.n_features_in_
    operator.outputs[0].type = kind(shape)


def _convert(scope: Any, operator: Any, container: Any) -> None:
    fitted = operator.raw_operator
    parameters = fitted._state.parameters
    n_features, axis = fitted.n_features_in_, parameters.channel_axis
    if axis not in (None, 1):
        raise ValueError(f"ONNX has channels on axis 1; channel_axis must be None or 1, got {axis}")
    kind = guess_proto_type(operator.outputs[0].type)
    wide = isinstance(operator.outputs[0].type, DoubleTensorType)
    if parameters.clip is not None and wide and container.target_opset < 12:
        raise ValueError(f"clip of float64 needs target_opset 12 or later, got {container.target_opset}")
    several = len(operator.inputs) > 1
    name = concatenate_variables(scope, operator.inputs, container) if several else operator.inputs[0].full_name
    if not all(type(given.type) is type(operator.outputs[0].type) for given in operator.inputs):
        given, name = name, scope.get_unique_variable_name("cast")
        container.add_node("Cast", given, name, to=kind, name=scope.get_unique_operator_name("Cast"))
    zeros, ones = np.zeros(n_features), np.ones(n_features)
    gamma = ones if parameters.gamma is None else parameters.gamma
    statistics = {
        # The divisor itself, exactly, also for constant features. Its square may overflow float32.
        "scale": gamma if fitted.scale_ is None else gamma / fitted.scale_,
        "B": zeros if parameters.beta is None else parameters.beta,
        "mean": fitted.running_mean_ if parameters.with_mean else zeros,
        "var": ones,
    }
    # A feature never observed is NaN.
    statistics["mean"] = np.where(np.isnan(fitted.running_mean_), np.nan, statistics["mean"])
    names = [name]
    for parameter, values in statistics.items():
        names.append(scope.get_unique_variable_name(parameter))
        container.add_initializer(names[-1], kind, [n_features], values.tolist())
    clip, result = parameters.clip, operator.outputs[0].full_name
    normalized = result if clip is None else scope.get_unique_variable_name("normalized")
    container.add_node(
        "BatchNormalization",
        names,
        normalized,
        name=scope.get_unique_operator_name("BatchNormalization"),
        epsilon=0.0,
        op_version=min(15, onnx.defs.onnx_opset_version(), container.target_opset),
    )
    if clip is not None:
        most = (np.float64 if wide else np.float32)(clip)
        apply_clip(scope, normalized, result, container, min=-most, max=most)
