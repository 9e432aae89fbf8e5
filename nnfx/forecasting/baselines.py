"""Baselines to compare forecasters with, as models from `(batch, lookback, channels)` to `(batch, horizon, channels)`.

Baselines without parameters repeat or extend the past; baselines with parameters are linear in the past and are
trained like any model. All baselines forecast each channel from its own past alone.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from nnfx import checks, ops
from nnfx.models import from_linen
from nnfx.types import Apply, Array, Model, Variables, at_least_float32

__all__ = ["dlinear", "drift", "linear", "naive", "naive2", "nlinear", "seasonal_naive", "without_exogenous"]


def naive(horizon: int) -> Model:
    """The last value, repeated: `ŷₜ₊ₕ = yₜ`, the best forecast of a random walk.

    Args:
        horizon: the number of steps to forecast.

    Returns:
        A model without parameters.

    Raises:
        TypeError, ValueError: for a horizon that is not a positive integer.

    Example:
        >>> model, past = naive(horizon=2), jnp.array([3.0, 1.0, 4.0]).reshape(1, 3, 1)
        >>> model.apply(model.init(jax.random.key(0), past), past)[0, :, 0].tolist()
        [4.0, 4.0]
    """
    return seasonal_naive(horizon, period=1)


def seasonal_naive(horizon: int, period: int) -> Model:
    """The last season, repeated: `ŷₜ₊ₕ = yₜ₋ₘ₊ₕ` for h up to m, and periodically beyond.

    Args:
        horizon: the number of steps to forecast.
        period: m, the number of steps in a season.

    Returns:
        A model without parameters; its lookback must be at least the period.

    Raises:
        TypeError, ValueError: for a horizon or a period that is not a positive integer.

    Example:
        >>> model, past = seasonal_naive(horizon=3, period=2), jnp.array([3.0, 1.0, 4.0]).reshape(1, 3, 1)
        >>> model.apply(model.init(jax.random.key(0), past), past)[0, :, 0].tolist()
        [1.0, 4.0, 1.0]
    """
    checks.positive_integer("horizon", horizon)
    checks.positive_integer("period", period)

    def forecast(y: Array) -> Array:
        return _repeated(y[:, -period:], horizon)

    return _without_parameters(forecast, lookback=period)


def drift(horizon: int) -> Model:
    """The line through the first and the last value, extended: `ŷₜ₊ₕ = yₜ + h (yₜ − y₁) / (t − 1)`.

    Args:
        horizon: the number of steps to forecast.

    Returns:
        A model without parameters; its lookback must be at least 2.

    Raises:
        TypeError, ValueError: for a horizon that is not a positive integer.

    Example:
        >>> model, past = drift(horizon=2), jnp.array([1.0, 9.0, 5.0]).reshape(1, 3, 1)
        >>> model.apply(model.init(jax.random.key(0), past), past)[0, :, 0].tolist()
        [7.0, 9.0]
    """
    checks.positive_integer("horizon", horizon)

    def forecast(y: Array) -> Array:
        slope = (y[:, -1:] - y[:, :1]) / (y.shape[1] - 1)
        return y[:, -1:] + slope * jnp.arange(1, horizon + 1, dtype=slope.dtype).reshape(1, -1, 1)

    return _without_parameters(forecast, lookback=2)


def naive2(horizon: int, period: int) -> Model:
    """Naive2 of the M4 competition: the naive forecast of the deseasonalised series, with its season restored.

    A series is seasonal if its autocorrelation at a lag of one period, m, exceeds its 90 % limit, `|rₘ| > 1.645 √((1 +
    2 Σ rₖ²) / n)`, where the sum is over k < m. The season is taken from a classical multiplicative decomposition: the
    mean, over all seasons, of the ratio of each step to its centred moving average, normalised to a mean of 1. Series
    that are not seasonal, are shorter than three seasons, or have values that are not positive are forecast by
    `naive`.

    Args:
        horizon: the number of steps to forecast.
        period: m, the number of steps in a season; 1 if there is none.

    Returns:
        A model without parameters, whose input is the whole history of a series.

    Raises:
        TypeError, ValueError: for a horizon or a period that is not a positive integer.

    Example:
        >>> model, past = naive2(horizon=3, period=2), jnp.array([1.0, 3.0] * 20).reshape(1, 40, 1)
        >>> model.apply(model.init(jax.random.key(0), past), past)[0, :, 0].round().astype(int).tolist()
        [1, 3, 1]

    References:
        Makridakis, Spiliotis and Assimakopoulos, *The M4 competition: 100,000 time series and 61 forecasting methods*,
        International Journal of Forecasting 2020, and the code of its benchmarks.
    """
    checks.positive_integer("horizon", horizon)
    checks.positive_integer("period", period)

    def forecast(y: Array) -> Array:
        last = _repeated(y[:, -1:], horizon)
        if period == 1 or y.shape[1] < 3 * period:
            return last
        is_seasonal = _is_seasonal(y, period) & (y > 0).all(1)
        season = _season(jnp.where(is_seasonal[:, None], y, 1), period)
        return jnp.where(is_seasonal[:, None], last / season[:, -1:] * _repeated(season, horizon), last)

    return _without_parameters(forecast, lookback=1)


def _is_seasonal(y: Array, period: int) -> Array:
    """Return whether the autocorrelation at a lag of one period exceeds its 90 % limit, `(batch, channels)`."""
    centred = y - y.mean(1, keepdims=True)

    def covariance(lag: Array) -> Array:
        is_within = (jnp.arange(y.shape[1]) >= lag).reshape(1, -1, 1)
        return jnp.where(is_within, centred * jnp.roll(centred, lag, axis=1), 0).sum(1)

    correlations = jax.lax.map(covariance, jnp.arange(1, period + 1)) / jnp.square(centred).sum(1)[None]
    bound = 1.645 * jnp.sqrt((1 + 2 * jnp.square(correlations[:-1]).sum(0)) / y.shape[1])
    return jnp.abs(correlations[-1]) > bound  # False for a constant series, for which both are NaN


def _season(y: Array, period: int) -> Array:
    """Return the seasonal factors of the last `period` steps of each series, `(batch, period, channels)`."""
    length, edge = y.shape[1], period // 2
    trend = ops.avg_pool(y, period, strides=1)
    if period % 2 == 0:  # average the two means centred half a step before and after
        trend = (trend[:, 1:] + trend[:, :-1]) / 2
    ratios = y[:, edge : length - edge] / trend
    around = ((0, 0), (-(length - edge) % period, edge), (0, 0))  # pad at the start to whole seasons
    seasons = jnp.pad(ratios, around).reshape(len(y), -1, period, y.shape[-1])
    counts = jnp.pad(jnp.ones((1, ratios.shape[1], 1), y.dtype), around).reshape(1, -1, period, 1)
    season = seasons.sum(1) / counts.sum(1)
    return season / season.mean(1, keepdims=True)


def _repeated(y: Array, horizon: int) -> Array:
    """Repeat steps `(batch, steps, channels)` periodically to `(batch, horizon, channels)`."""
    return jnp.tile(y, (1, -(-horizon // y.shape[1]), 1))[:, :horizon]


def _without_parameters(forecast: Callable[[Array], Array], lookback: int) -> Model:
    """Make a model without parameters from a function of at least `lookback` past steps."""
    compiled = jax.jit(forecast)

    def init(key: Array, inputs: Any) -> Variables:
        checks.key("key", key)
        _check_past(inputs, lookback)
        return {"params": {}}

    def apply(
        variables: Variables,  # noqa: ARG001 -- there are no variables
        inputs: Any,
        *,
        key: Array | None = None,  # noqa: ARG001 -- nothing is random
        weights: Array | None = None,  # noqa: ARG001 -- examples do not mix
        train: bool = False,
    ) -> Any:
        _check_past(inputs, lookback)
        outputs = compiled(inputs)
        return (outputs, {}) if train else outputs

    return Model(init, cast(Apply, apply))


def _check_past(inputs: Any, lookback: int = 1) -> None:
    if getattr(inputs, "ndim", None) != 3 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            f"inputs: expected windows of floats, (batch, lookback, channels), got {checks.describe(inputs)}"
        )
    if inputs.shape[1] < lookback:
        raise ValueError(f"inputs: expected a lookback of at least {lookback}, got {checks.describe(inputs)}")


def without_exogenous(model: Model, channels: int) -> Model:
    """Hide the exogenous channels from a model, so that it sees only the first channels of its inputs, the targets.

    Args:
        model: a forecaster of the target channels.
        channels: the number of target channels.

    Returns:
        A model with the same parameters as `model`.

    Raises:
        TypeError: if `model` is not a Model.
        ValueError: for a number of channels that is not a positive integer; and, when applied, for inputs with fewer
            channels.

    Example:
        >>> model, past = without_exogenous(naive(horizon=2), channels=1), jnp.ones((5, 3, 4))
        >>> model.apply(model.init(jax.random.key(0), past), past).shape
        (5, 2, 1)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as baselines.naive(24), got {checks.describe(model)}")
    checks.positive_integer("channels", channels)

    def seen(inputs: Any) -> Any:
        _check_past(inputs)
        if inputs.shape[-1] < channels:
            raise ValueError(f"inputs: expected at least {channels} channels, got {checks.describe(inputs)}")
        return inputs[..., :channels]

    def init(key: Array, inputs: Any) -> Variables:
        return model.init(key, seen(inputs))

    def apply(variables: Variables, inputs: Any, **options: Any) -> Any:
        return model.apply(variables, seen(inputs), **options)

    return Model(init, cast(Apply, apply))


def linear(horizon: int, individual: bool = False) -> Model:
    """An affine map of the past of each channel: `ŷ = Wᵀy + b`.

    Args:
        horizon: H, the number of steps to forecast.
        individual: whether each channel has its own weights; otherwise, all channels share their weights.

    Returns:
        A model with the parameters `linear`: a kernel `(lookback, H)` and a bias `(H,)`, with a leading axis of
        channels if they are individual; both are drawn from `U(−1/√L, 1/√L)` for a lookback of L.

    Raises:
        TypeError, ValueError: for a horizon that is not a positive integer.

    Example:
        >>> model, past = linear(horizon=2), jnp.ones((5, 3, 4))
        >>> model.apply(model.init(jax.random.key(0), past), past).shape
        (5, 2, 4)

    References:
        Zeng, Chen, Zhang and Xu, *Are transformers effective for time series forecasting?*, AAAI 2023.
    """
    checks.positive_integer("horizon", horizon)
    return from_linen(Linear(horizon, individual))


def nlinear(horizon: int, individual: bool = False) -> Model:
    """An affine map of the past relative to its last value, which follows shifts in level: `ŷ = Wᵀ(y − yₜ) + b + yₜ`.

    Args:
        horizon: H, the number of steps to forecast.
        individual: whether each channel has its own weights; otherwise, all channels share their weights.

    Returns:
        A model with the parameters of `linear`.

    Raises:
        TypeError, ValueError: for a horizon that is not a positive integer.

    Example:
        >>> model, past = nlinear(horizon=2), jnp.ones((5, 3, 4))
        >>> variables = model.init(jax.random.key(0), past)
        >>> jnp.allclose(model.apply(variables, past + 7.0), model.apply(variables, past) + 7.0).item()
        True

    References:
        Zeng, Chen, Zhang and Xu, *Are transformers effective for time series forecasting?*, AAAI 2023.
    """
    checks.positive_integer("horizon", horizon)
    return from_linen(NLinear(horizon, individual))


def dlinear(horizon: int, kernel: int = 25, individual: bool = False) -> Model:
    """Affine maps of the trend and the remainder: `ŷ = Wᵀ(y − Ay) + b + Vᵀ(Ay) + c`, where A is a moving average.

    The moving average is centred, and the past is padded by repeating its first and last values. As the average is
    linear, it is applied to the weights instead of the past, once for a whole batch: `ŷ = (W + Aᵀ(V − W))ᵀ y + b + c`.

    Args:
        horizon: H, the number of steps to forecast.
        kernel: the odd number of steps that the moving average covers.
        individual: whether each channel has its own weights; otherwise, all channels share their weights.

    Returns:
        A model with the parameters `seasonal` and `trend`, each shaped like those of `linear`.

    Raises:
        TypeError, ValueError: for a horizon or a kernel that is not a positive integer, or an even kernel.

    Example:
        >>> model, past = dlinear(horizon=2), jnp.ones((5, 3, 4))
        >>> model.apply(model.init(jax.random.key(0), past), past).shape
        (5, 2, 4)

    References:
        Zeng, Chen, Zhang and Xu, *Are transformers effective for time series forecasting?*, AAAI 2023, section 4.
    """
    checks.positive_integer("horizon", horizon)
    checks.positive_integer("kernel", kernel)
    if kernel % 2 == 0:
        raise ValueError(f"kernel: expected an odd number of steps, got {kernel}")
    return from_linen(DLinear(horizon, kernel, individual))


class Weights(nn.Module):
    """The weights of an affine map from past to future, initialised as in PyTorch."""

    horizon: int
    individual: bool

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Return the kernel, `(channels or 1, lookback, horizon)`, and the bias, `(channels or 1, horizon)`."""
        _check_past(x)
        _, lookback, channels = x.shape
        bound = lookback**-0.5

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        each = (channels,) if self.individual else ()
        kernel = self.param("kernel", draw, (*each, lookback, self.horizon))
        bias = self.param("bias", draw, (*each, self.horizon))
        return (kernel, bias) if self.individual else (kernel[None], bias[None])


def _affine(x: Array, kernel: Array, bias: Array) -> Array:
    """Map the past of each channel to its forecast; channels that share their weights are mapped in one product."""
    y = jnp.einsum("blc,lh->bhc", x, kernel[0]) if len(kernel) == 1 else jnp.einsum("blc,clh->bhc", x, kernel)
    return y + bias.T[None]


class Linear(nn.Module):
    """An affine map of the past of each channel."""

    horizon: int
    individual: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the forecast, `(batch, horizon, channels)`."""
        return _affine(x, *Weights(self.horizon, self.individual, name="linear")(x))


class NLinear(nn.Module):
    """An affine map of the past relative to its last value."""

    horizon: int
    individual: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the forecast, `(batch, horizon, channels)`."""
        _check_past(x)
        last = x[:, -1:]
        return _affine(x - last, *Weights(self.horizon, self.individual, name="linear")(x)) + last


class DLinear(nn.Module):
    """Affine maps of the trend and the remainder."""

    horizon: int
    kernel: int
    individual: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the forecast, `(batch, horizon, channels)`."""
        seasonal, seasonal_bias = Weights(self.horizon, self.individual, name="seasonal")(x)
        trend, trend_bias = Weights(self.horizon, self.individual, name="trend")(x)
        average = _moving_average(x.shape[1], self.kernel, at_least_float32(x.dtype))
        averaged = jnp.einsum("tl,cth->clh", average, (trend - seasonal).astype(average.dtype))
        return _affine(x, seasonal + averaged.astype(seasonal.dtype), seasonal_bias + trend_bias)


def _moving_average(length: int, kernel: int, dtype: Any) -> Array:
    """Return A, whose row t contains the weight of each step in the average around t, with the end values repeated."""
    reach = kernel // 2
    about, step = jnp.arange(length)[:, None], jnp.arange(length)[None]
    times = (jnp.abs(about - step) <= reach).astype(int)
    times += jnp.where(step == 0, jnp.maximum(reach - about, 0), 0)
    times += jnp.where(step == length - 1, jnp.maximum(reach - (length - 1 - about), 0), 0)
    return times.astype(dtype) / kernel
