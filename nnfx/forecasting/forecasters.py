"""Wrappers from `Model` to `Model` that turn networks into forecasters, or change what a forecaster sees and returns.

A forecaster maps windows of the past `(batch, lookback, channels)` to forecasts `(batch, horizon, channels)`, with a
trailing axis of parameters if it has a head. A wrapper has the same variables as the model it wraps, so weights
trained in one wrapper can be used in another, and wrappers compose:

>>> import nnfx
>>> network = direct(lambda outputs: nnfx.models.mlp((16,), outputs), horizon=12)
>>> model = channel_independent(normalized(network))
>>> past = jnp.ones((5, 24, 7))
>>> model.apply(model.init(jax.random.key(0), past), past).shape
(5, 12, 7)
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from nnfx import checks
from nnfx.forecasting.heads import POINT, Head
from nnfx.forecasting.scaling import Scaler
from nnfx.types import Apply, Array, Model, Variables

__all__ = ["channel_independent", "direct", "normalized", "recursive", "scaled"]

Statistic = Literal["last", "mean_std"]
EPSILON = 1e-5
"""Added to the variance of a window, which may be zero, in the units of the scaled series."""


def direct(network: Model | Callable[[int], Model], horizon: int, channels: int = 1, head: Head = POINT) -> Model:
    """A forecaster of the whole horizon at once, from a network with one output per step, channel and parameter.

    Args:
        network: a function from the number of outputs to a model, such as
            `lambda outputs: nnfx.models.mlp((64,), outputs)`; or a model with
            `horizon × channels × parameters` outputs.
        horizon: the number of steps to forecast.
        channels: the number of channels of the series.
        head: the meaning of the outputs, such as `nnfx.forecasting.heads.GAUSSIAN`.

    Returns:
        A model from windows `(batch, lookback, channels)` to forecasts `(batch, horizon, channels)`, or
        `(batch, horizon, channels, parameters)`.

    Raises:
        TypeError: for a network that is neither a model nor a function, or sizes that are not integers.
        ValueError: for sizes that are not positive and, when applied, for the wrong number of outputs.

    Example:
        >>> import nnfx
        >>> model = direct(lambda outputs: nnfx.models.mlp((16,), outputs), horizon=4, channels=2)
        >>> past = jnp.ones((3, 10, 2))
        >>> model.apply(model.init(jax.random.key(0), past), past).shape
        (3, 4, 2)
    """
    checks.positive_integer("horizon", horizon)
    checks.positive_integer("channels", channels)
    sizes = (horizon, channels, head.parameters) if head.parameters else (horizon, channels)
    width = math.prod(sizes)
    if not isinstance(network, Model) and not callable(network):
        raise TypeError(f"network: expected a Model or a function that makes one, got {checks.describe(network)}")
    model = network if isinstance(network, Model) else network(width)
    _require_model("network", model)

    def arranged(outputs: Array) -> Array:
        if outputs.ndim != 2 or outputs.shape[1] != width:
            wanted = " × ".join(map(str, sizes))
            raise ValueError(
                f"network: expected {wanted} = {width} outputs, (batch, {width}), got {checks.describe(outputs)}"
            )
        return head.constrain(outputs.reshape(-1, *sizes))

    return _through(model, lambda inputs, weights: _View(_windows(inputs), weights, arranged))


def recursive(model: Model, horizon: int) -> Model:
    """A forecaster of a few steps, applied to its own forecasts until they cover the horizon.

    After each application, the window advances by the k steps that the model forecasts. Either train the result
    through the whole horizon, or train `model` by itself and use its variables here: both have the same structure.

    Args:
        model: a point forecaster of all its channels, from `(batch, lookback, channels)` to `(batch, k, channels)`.
        horizon: the number of steps to forecast.

    Returns:
        A model from windows `(batch, lookback, channels)` to forecasts `(batch, horizon, channels)`.

    Raises:
        ValueError: when applied, if the model does not forecast one number for each channel of its windows.

    Example:
        >>> import nnfx
        >>> one_step = direct(lambda outputs: nnfx.models.mlp((16,), outputs), horizon=1)
        >>> past = jnp.ones((3, 10, 1))
        >>> recursive(one_step, horizon=30).apply(one_step.init(jax.random.key(0), past), past).shape
        (3, 30, 1)
    """
    _require_model("model", model)
    checks.positive_integer("horizon", horizon)

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        inputs = _windows(inputs)
        batch, lookback, channels = inputs.shape
        own = jax.eval_shape(model.apply, variables, inputs)
        if own.ndim != 3 or own.shape[2] != channels:
            raise ValueError(
                f"model: expected point forecasts of all {channels} channels of its windows, ({batch}, steps,"
                f" {channels}), got {checks.describe(own)}"
            )

        inputs = inputs.astype(jnp.promote_types(inputs.dtype, own.dtype))  # so that forecasts fed back are not rounded

        def advance(carry: tuple[Array, Any], step: Array) -> tuple[tuple[Array, Any], Array]:
            window, state = carry
            current = {"params": variables.get("params", {}), **state}
            own_key = None if key is None else jax.random.fold_in(key, step)
            if train:
                outputs, state = model.apply(current, window, key=own_key, weights=weights, train=True)
            else:
                outputs = model.apply(current, window, key=own_key, weights=weights)
            window = jnp.concatenate([window, outputs.astype(window.dtype)], axis=1)[:, -lookback:]
            return (window, dict(state)), outputs

        state = {name: value for name, value in variables.items() if name != "params"}
        (_, state), blocks = jax.lax.scan(advance, (inputs, state), jnp.arange(-(-horizon // own.shape[1])))
        forecasts = jnp.moveaxis(blocks, 0, 1).reshape(batch, -1, channels)[:, :horizon]
        return (forecasts, state) if train else forecasts

    return Model(lambda key, inputs: model.init(key, _windows(inputs)), cast(Apply, apply))


def normalized(model: Model, by: Statistic = "last", head: Head = POINT, channels: int | None = None) -> Model:
    """A forecaster that sees each window relative to its own level, which is restored in the forecasts.

    With `"last"`, the last value of the window is subtracted; with `"mean_std"` the window is standardised, `(x − m) /
    √(v + 10⁻⁵)`, by its mean m and variance v. With either, a network need not extrapolate when a series drifts. No
    trainable parameters are added.

    Args:
        model: a forecaster.
        by: the normalisation of each window and channel, `"last"` or `"mean_std"`.
        head: the meaning of the model's outputs.
        channels: the number of channels that are forecast, which come first and are normalised; the others are
            exogenous, and are passed on unchanged. None for all channels.

    Returns:
        A model with the same shapes.

    Raises:
        ValueError: for an unknown `by`, or more channels than the windows have.

    Example:
        A model that always forecasts zero becomes the naive forecast:

        >>> zero = Model(lambda key, x: {"params": {}}, lambda variables, x, **_: jnp.zeros((len(x), 2, 1)))
        >>> normalized(zero).apply({}, jnp.array([[[5.0], [7.0]]]))
        Array([[[7.],
                [7.]]], dtype=float32)

    References:
        Zeng et al., *Are transformers effective for time series forecasting?*, AAAI 2023 (NLinear).
        Kim et al., *Reversible instance normalization for accurate time-series forecasting against distribution
        shift*, ICLR 2022, without its affine parameters.
    """
    _require_model("model", model)
    checks.choice("by", by, ("last", "mean_std"))
    if channels is not None:
        checks.positive_integer("channels", channels)

    def view(inputs: Array, weights: Array | None) -> "_View":
        inputs = _windows(inputs)
        count = inputs.shape[2] if channels is None else channels
        if count > inputs.shape[2]:
            raise ValueError(f"channels: expected at most the {inputs.shape[2]} channels of the windows, got {count}")
        own = inputs[:, :, :count]
        if by == "last":
            shift, scale = own[:, -1:], jnp.ones((1, 1, count), own.dtype)
        else:
            shift = own.mean(1, keepdims=True)
            scale = jnp.sqrt(own.var(1, keepdims=True) + jnp.asarray(EPSILON, own.dtype))
        seen = jnp.concatenate([(own - shift) / scale, inputs[:, :, count:]], axis=2)
        return _View(seen, weights, _restored(head, shift, scale))

    return _through(model, view)


def scaled(model: Model, scaler: Scaler, head: Head = POINT, channels: int | None = None) -> Model:
    """A forecaster of the unscaled series, made from a forecaster f of the scaled series: `σ f((x − μ) / σ) + μ`.

    Args:
        model: a forecaster, such as one trained on windows of `scaler(values)`.
        scaler: the scaler of a single series and its exogenous columns, made by `nnfx.forecasting.Scaler.of` from the
            training values.
        head: the meaning of the model's outputs.
        channels: the number of channels that are forecast, which come first; the others are exogenous. None for all.

    Returns:
        A model with the same shapes, in the original units of the series.

    Raises:
        TypeError: if `model` is not a Model, or if `scaler` is not the scaler of a single series.
        ValueError: for more channels than the scaler has.

    Example:
        >>> zero = Model(lambda key, x: {"params": {}}, lambda variables, x, **_: jnp.zeros((len(x), 2, 1)))
        >>> scaled(zero, Scaler.of(jnp.array([[3.0], [5.0]]))).apply({}, jnp.ones((1, 4, 1)))
        Array([[[4.],
                [4.]]], dtype=float32)
    """
    _require_model("model", model)
    if not isinstance(scaler, Scaler) or scaler.mean.ndim != 2:
        raise TypeError(f"scaler: expected the Scaler of a single series, got {checks.describe(scaler)}")
    count = scaler.mean.shape[1] if channels is None else channels
    checks.positive_integer("channels", count)
    if count > scaler.mean.shape[1]:
        raise ValueError(f"channels: expected at most the {scaler.mean.shape[1]} channels of the scaler, got {count}")

    def view(inputs: Array, weights: Array | None) -> "_View":
        inputs = _windows(inputs)
        seen = scaler(inputs.astype(scaler.mean.dtype)).astype(inputs.dtype)
        return _View(seen, weights, _restored(head, scaler.mean[None, :, :count], scaler.scale[None, :, :count]))

    return _through(model, view)


def channel_independent(model: Model) -> Model:
    """A forecaster of one channel applied to each channel of a series, with the same weights.

    Args:
        model: a forecaster from `(batch, lookback, 1)` to `(batch, horizon, 1)`, possibly with a trailing axis of
            parameters.

    Returns:
        A model from `(batch, lookback, channels)` to `(batch, horizon, channels)`, for any number of channels.

    Raises:
        ValueError: when applied, if the model forecasts more than one channel.

    Example:
        >>> import nnfx
        >>> model = channel_independent(direct(nnfx.models.mlp((), outputs=4), horizon=4))
        >>> past = jnp.ones((3, 10, 7))
        >>> variables = model.init(jax.random.key(0), past)
        >>> variables["params"]["output"]["kernel"].shape, model.apply(variables, past).shape
        ((10, 4), (3, 4, 7))

    References:
        Nie et al., *A time series is worth 64 words: long-term forecasting with transformers*, ICLR 2023, section 3.1.
    """
    _require_model("model", model)

    def view(inputs: Array, weights: Array | None) -> "_View":
        inputs = _windows(inputs)
        batch, lookback, channels = inputs.shape
        apart = jnp.moveaxis(inputs, 2, 1).reshape(batch * channels, lookback, 1)

        def together(outputs: Array) -> Array:
            if outputs.ndim < 3 or outputs.shape[2] != 1:
                raise ValueError(
                    f"model: expected forecasts of one channel, (batch, horizon, 1), got {checks.describe(outputs)}"
                )
            alone = outputs[:, :, 0]
            return jnp.moveaxis(alone.reshape(batch, channels, *alone.shape[1:]), 1, 2)

        return _View(apart, None if weights is None else jnp.repeat(weights, channels), together)

    return _through(model, view)


def _restored(head: Head, shift: Array, scale: Array) -> Callable[[Array], Array]:
    """Return the function that maps outputs back to the original units of the inputs."""

    def restore(outputs: Array) -> Array:
        behind = (shift.shape[2], head.parameters) if head.parameters else (shift.shape[2],)
        if outputs.ndim != 2 + len(behind) or outputs.shape[2:] != behind:
            wanted = ", ".join(["batch", "horizon", *map(str, behind)])
            raise ValueError(f"model: expected outputs ({wanted}) for this head, got {checks.describe(outputs)}")
        return head.affine(outputs, shift.astype(outputs.dtype), scale.astype(outputs.dtype))

    return restore


class _View(NamedTuple):
    """The inputs that a wrapper passes to its model, and how it interprets the outputs."""

    inputs: Array
    weights: Array | None
    restore: Callable[[Array], Array]


def _through(model: Model, view: Callable[[Array, Array | None], _View]) -> Model:
    """Return a model that sees its inputs through a view, with the variables of the wrapped model."""

    def init(key: Array, inputs: Any) -> Variables:
        return model.init(key, view(inputs, None).inputs)

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        seen = view(inputs, weights)
        if not train:
            return seen.restore(model.apply(variables, seen.inputs, key=key, weights=seen.weights))
        outputs, state = model.apply(variables, seen.inputs, key=key, weights=seen.weights, train=True)
        return seen.restore(outputs), state

    return Model(init, cast(Apply, apply))


def _require_model(name: str, model: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"{name}: expected a Model, got {checks.describe(model)}")


def _windows(inputs: Any) -> Array:
    """Return windows as an array, after checking their rank and dtype."""
    if getattr(inputs, "ndim", None) != 3 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"inputs: expected windows of floats, (batch, lookback, channels), got {checks.describe(inputs)}"
        )
    return jnp.asarray(inputs)
