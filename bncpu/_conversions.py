"""The methods of the transformer that make it of layers of other libraries, and give them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from bncpu import _layers
from bncpu import state as states
from bncpu.running import Kind, Layer
from bncpu.state import State


class LayerMixin:
    """Layers of PyTorch, Keras, Flax and ONNX as transformers; none of these libraries is imported."""

    _state: State
    _as_it_is: Any
    from_statistics: Any

    @classmethod
    def from_torch(
        cls,
        state_dict: Mapping[str, Any],
        prefix: str = "",
        momentum: float | None = None,
        eps: float = 1e-5,
        *,
        channel_axis: int | None = None,
    ) -> Self:
        """The transformer that does what a batch norm layer of PyTorch does in ``eval()``.

        PyTorch need not be installed. ``running_var`` is taken as it stands, as PyTorch's inference does: it was
        made with the divisor n - 1.

        Parameters
        ----------
        state_dict : mapping of str to tensor or array-like
            Of the layer, or of a module around it. ``weight`` becomes `gamma`, ``bias`` `beta`.
        prefix : str, default=""
            What comes before ``running_mean`` in the names, such as ``"features.1."``.
        momentum : float in [0, 1), optional
            To go on with :meth:`partial_fit` as the layer would in ``train()``, with ``ddof=1``: 1 minus the momentum
            of the layer, whose 0.1 is 0.9 here. By default the result is for inference: PyTorch does not tell how
            many samples it has seen, so nothing can be added to them.
        eps : float, default=1e-5
            That of the layer, which is not in its state.
        channel_axis : int, optional
            1 for BatchNorm2d and images.

        Returns
        -------
        BatchNormTransformer
            Fitted; `n_samples_seen_` counts from 0, `n_batches_seen_` from 1; :meth:`to_torch` counts from the layer's
            ``num_batches_tracked``, 1 if there is none. In a pipeline that is fitted, wrap it in
            :class:`~sklearn.frozen.FrozenEstimator`, or it learns anew.

        Raises
        ------
        TypeError
            If `state_dict` is no mapping of names to numbers.
        ValueError
            If it holds no running statistics under `prefix`, they do not fit each other, or a number is out of range.

        See Also
        --------
        BatchNormTransformer.to_torch : The way back.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> state = {"bn.weight": [2.0], "bn.bias": [1.0], "bn.running_mean": [5.0], "bn.running_var": [4.0]}
        >>> BatchNormTransformer.from_torch(state, prefix="bn.", eps=0).transform([[7.0]])
        array([[3.]])
        """
        return cls._from_layer(_layers.from_torch(state_dict, prefix), momentum, 1, eps, channel_axis)

    @classmethod
    def from_keras(
        cls,
        weights: Sequence[Any],
        momentum: float | None = None,
        eps: float = 1e-3,
        *,
        center: bool = True,
        scale: bool = True,
        channel_axis: int | None = None,
    ) -> Self:
        """The transformer that does what a BatchNormalization layer of Keras does with ``training=False``.

        Keras need not be installed.

        Parameters
        ----------
        weights : sequence of array-like of shape (n_features,)
            ``layer.get_weights()``: gamma, beta, moving mean, moving variance.
        momentum : float in [0, 1), optional
            To go on with :meth:`partial_fit` as the layer would in training, with ``ddof=0``: that of the layer, as it
            is. By default the result is for inference: the layer does not tell how many samples it has seen.
        eps : float, default=1e-3
            ``layer.epsilon``, which is not among its weights.
        center, scale : bool, default=True
            Those of the layer: whether it has a beta and a gamma.
        channel_axis : int, optional
            -1 for images.

        Returns
        -------
        BatchNormTransformer
            Fitted; `n_samples_seen_` counts from 0, `n_batches_seen_` from 1. In a pipeline that is fitted, wrap it in
            :class:`~sklearn.frozen.FrozenEstimator`, or it learns anew.

        Raises
        ------
        TypeError
            If the weights are not numbers.
        ValueError
            If their number or shapes do not fit, or a number is out of range.

        See Also
        --------
        BatchNormTransformer.to_keras : The way back.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer.from_keras([[2.0], [1.0], [5.0], [4.0]], eps=0).transform([[7.0]])
        array([[3.]])
        """
        layer = _layers.from_keras(weights, center=center, scale=scale)
        return cls._from_layer(layer, momentum, 0, eps, channel_axis)

    @classmethod
    def from_flax(
        cls,
        params: Mapping[str, Any] | None,
        batch_stats: Mapping[str, Any],
        prefix: str = "",
        momentum: float | None = None,
        eps: float = 1e-5,
        *,
        channel_axis: int | None = None,
    ) -> Self:
        """The transformer that does what a BatchNorm layer of Flax does with ``use_running_average=True``.

        Flax need not be installed.

        Parameters
        ----------
        params : mapping or None
            ``variables["params"]`` of the layer, or of a module around it. ``scale`` becomes `gamma`, ``bias`` `beta`.
            None for a layer that has neither.
        batch_stats : mapping
            ``variables["batch_stats"]``, with ``mean`` and ``var``.
        prefix : str, default=""
            Where in both the layer is, such as ``"Block_0/BatchNorm_0"``.
        momentum : float in [0, 1), optional
            To go on with :meth:`partial_fit` as the layer would in training, with ``ddof=0``: that of the layer, as it
            is. By default the result is for inference: the layer does not tell how many samples it has seen.
        eps : float, default=1e-5
            ``epsilon`` of the layer, which is not among its variables.
        channel_axis : int, optional
            -1 for images.

        Returns
        -------
        BatchNormTransformer
            Fitted; `n_samples_seen_` counts from 0, `n_batches_seen_` from 1. In a pipeline that is fitted, wrap it in
            :class:`~sklearn.frozen.FrozenEstimator`, or it learns anew.

        Raises
        ------
        TypeError
            If an argument is no mapping of names to numbers.
        ValueError
            If there is no layer under `prefix`, its arrays do not fit each other, or a number is out of range.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> params = {"BatchNorm_0": {"scale": [2.0], "bias": [1.0]}}
        >>> batch_stats = {"BatchNorm_0": {"mean": [5.0], "var": [4.0]}}
        >>> BatchNormTransformer.from_flax(params, batch_stats, "BatchNorm_0", eps=0).transform([[7.0]])
        array([[3.]])
        """
        layer = _layers.from_flax(params, batch_stats, prefix)
        return cls._from_layer(layer, momentum, 0, eps, channel_axis)

    @classmethod
    def from_onnx(
        cls,
        scale: ArrayLike,
        B: ArrayLike,
        mean: ArrayLike,
        var: ArrayLike,
        momentum: float | None = None,
        eps: float = 1e-5,
        *,
        channel_axis: int | None = None,
    ) -> Self:
        """The transformer that does what the operator BatchNormalization of ONNX does with ``training_mode=0``.

        ONNX need not be installed.

        Parameters
        ----------
        scale, B, mean, var : array-like of shape (n_features,)
            Inputs 1 to 4 of the node. ``scale`` becomes `gamma`, ``B`` `beta`.
        momentum : float in [0, 1), optional
            To go on with :meth:`partial_fit` as with ``training_mode=1``, with ``ddof=0``: that of the node, as it is;
            0.9 if it has none. By default the result is for inference.
        eps : float, default=1e-5
            ``epsilon`` of the node; 1e-5 if it has none.
        channel_axis : int, optional
            1 for images.

        Returns
        -------
        BatchNormTransformer
            Fitted; `n_samples_seen_` counts from 0, `n_batches_seen_` from 1. In a pipeline that is fitted, wrap it in
            :class:`~sklearn.frozen.FrozenEstimator`, or it learns anew.

        Raises
        ------
        TypeError
            If the inputs are not numbers.
        ValueError
            If their shapes do not fit each other, or a number is out of range.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer.from_onnx([2.0], [1.0], [5.0], [4.0], eps=0).transform([[7.0]])
        array([[3.]])
        """
        return cls._from_layer(_layers.from_onnx(scale, B, mean, var), momentum, 0, eps, channel_axis)

    @classmethod
    def _from_layer(
        cls, layer: _layers.Layer, momentum: float | None, ddof: float, eps: float, axis: int | None
    ) -> Self:
        affine = {"gamma": layer.gamma, "beta": layer.beta, "eps": eps, "channel_axis": axis}
        kind = {} if momentum is None else {"momentum": momentum, "ddof": ddof}
        made = cls.from_statistics(layer.mean, layer.var, 1, **affine, **kind)
        state = made._state
        states.warn_of_pytorchs_momentum(state.parameters)
        known: Kind = Layer() if state.kind.merges else state.kind
        n_tracked = 0 if layer.n_batches is None else layer.n_batches - state.n_batches
        made._state = State.of(known, state.running, 0, state.n_batches, state.parameters, n_tracked)
        return made

    def to_torch(self) -> dict[str, NDArray[Any]]:
        """The state of a layer of PyTorch that does in ``eval()`` what :meth:`transform` does.

        Make the layer with this transformer's `eps`, ``affine``, and with 1 minus its `momentum` if it is to go on
        learning.
        ``running_var`` is what PyTorch adds `eps` to: `running_var_`, but for constant features, and all with
        ``with_std=False``, which have a variance and a weight that leave them as they are.

        Returns
        -------
        dict of str to ndarray
            ``weight``, ``bias``, ``running_mean`` and ``running_var`` of shape (n_features,), float64, and
            ``num_batches_tracked``, int64: `n_batches_seen_`, after :meth:`from_torch` added to what the layer had
            tracked. ``{name: torch.from_numpy(a) for name, a in state.items()}`` is what
            ``load_state_dict`` takes, which rounds to the type of the layer.

        Raises
        ------
        NotFittedError
            If nothing has been learned.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer(eps=1e-5).fit([[0.0], [4.0]]).to_torch()["running_var"]
        array([4.])
        """
        check_is_fitted(self)
        now = self._as_it_is()
        return _layers.to_torch(_layers.of(now._state))

    def to_keras(self) -> list[NDArray[Any]]:
        """The weights of a layer of Keras that does with ``training=False`` what :meth:`transform` does.

        Make the layer with ``epsilon=eps`` of this transformer, with its `momentum` if it is to go on learning, and
        with ``center`` and ``scale``. The moving variance is as :meth:`to_torch` says.

        Returns
        -------
        list of ndarray of shape (n_features,), float64
            For ``layer.set_weights``: gamma, beta, moving mean, moving variance.

        Raises
        ------
        NotFittedError
            If nothing has been learned.

        Examples
        --------
        >>> from bncpu import BatchNormTransformer
        >>> BatchNormTransformer(eps=1e-3).fit([[0.0], [4.0]]).to_keras()
        [array([1.]), array([0.]), array([2.]), array([4.])]
        """
        check_is_fitted(self)
        return _layers.to_keras(_layers.of(self._state))
