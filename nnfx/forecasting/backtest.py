"""Rolling-origin backtests: the forecasts that would have been made at many past times, as one compiled program.

An origin is the time of the first step to be forecast; only earlier steps are known. A forecaster is either
fixed or retrained at every origin. The hyper-parameters of `train` stay traced and a backtest is pure, so `jax.vmap`
over a learning rate compares whole backtests.

>>> import nnfx, optax
>>> from nnfx.forecasting import baselines, forecasters
>>> values, sizes = jnp.sin(jnp.arange(60.0))[:, None], {"lookback": 8, "horizon": 3, "origins": range(40, 58, 4)}
>>> model = forecasters.direct(lambda outputs: nnfx.models.mlp((8,), outputs), horizon=3)
>>> train = nnfx.fit(model, nnfx.losses.mean_square_error, optax.adam, epochs=40)
>>> tests = {
...     "network": refitted(train, values, key=jax.random.key(0), **sizes, learning_rate=0.02),
...     "naive": fixed(baselines.naive(3), {"params": {}}, values, **sizes),
... }
>>> [row["forecaster"] for row in compare(tests, {"MAE": nnfx.losses.mean_absolute_error}).rows]
['network', 'naive']
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, memo
from nnfx.data.prepare import Data
from nnfx.forecasting.heads import POINT, Head
from nnfx.forecasting.known import Channels, beside, seen, to_come
from nnfx.forecasting.scaling import Scaler
from nnfx.forecasting.values import in_floats, on_hand
from nnfx.forecasting.windows import Windows, as_data
from nnfx.mapping import map_points
from nnfx.tables import table
from nnfx.training import hyperparameters
from nnfx.training.fit import Fit
from nnfx.types import Array, Hyper, Model, PerExample, Variables

__all__ = ["Backtest", "Comparison", "compare", "fixed", "refitted"]


class Backtest(NamedTuple):
    """The forecasts made at each origin, and the values that followed.

    Attributes:
        forecasts: point forecasts, `(origins, horizon, channels)`, in the original units of the series.
        targets: the actual values, of the same shape.
        origins: the time of the first step of each forecast, `(origins,)`.
        outputs: the forecasts with all parameters of the head, `(origins, horizon, channels, parameters)`; the point
            forecasts for the head `POINT`.
        members: the outputs of each ensemble member, `(members, ...)`.
    """

    forecasts: Array
    targets: Array
    origins: Array
    outputs: Array
    members: Array


class Trained(Protocol):
    """A trained forecaster, such as an `nnfx.Run`."""

    def apply(self, inputs: Any, /) -> Array:
        """Return the forecasts for scaled windows, `(batch, horizon, channels)`."""


class _Sizes(NamedTuple):
    """The sizes that determine the shapes of a backtest."""

    channels: Channels
    lookback: int
    horizon: int
    train_windows: int = 0
    valid_windows: int = 0
    members: int = 1
    at_once: int | None = None


def fixed(
    model: Model,
    variables: Variables,
    values: Any,
    *,
    lookback: int,
    horizon: int,
    origins: ArrayLike,
    past: Any = None,
    future: Any = None,
    head: Head = POINT,
) -> Backtest:
    """Forecast from every origin with the same model, all windows in one batch.

    Args:
        model: a forecaster of the series in its original units, such as a baseline; wrap a model trained on scaled
            values in `nnfx.forecasting.forecasters.scaled`.
        variables: its variables; `{"params": {}}` for baselines without parameters.
        values: the series, `(time, channels)`, as for `nnfx.forecasting.windows`.
        lookback: the number of steps that the forecaster sees.
        horizon: the number of steps that it forecasts.
        origins: the origins, integers in ascending order from `lookback` to `time − horizon`; static.
        past: exogenous columns that are known up to each origin, as for `nnfx.forecasting.windows`.
        future: exogenous columns that are known ahead, up to the end of each forecast; the lookback must then be at
            least the horizon.
        head: the meaning of the model's outputs.

    Returns:
        The forecasts and the actual values.

    Raises:
        TypeError: if `model` is not a Model, if a series does not contain real numbers, or if times or sizes are not
            integers.
        ValueError: for origins that are out of range or not ascending, values of the wrong rank or not finite,
            exogenous columns whose times differ from those of the values, or forecasts that are not
            `(origins, horizon, channels)`.

    Example:
        >>> from nnfx.forecasting import baselines
        >>> values = jnp.arange(6.0)[:, None]
        >>> test = fixed(baselines.naive(2), {"params": {}}, values, lookback=2, horizon=2, origins=[3, 4])
        >>> test.forecasts[:, :, 0].tolist(), test.targets[:, :, 0].tolist()
        ([[2.0, 2.0], [3.0, 3.0]], [[3.0, 4.0], [4.0, 5.0]])
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as baselines.naive(24), got {checks.describe(model)}")
    rows, channels, times = _checked(values, past, future, lookback, horizon, origins, least=lookback)
    return _fixed(model, head, _Sizes(channels, lookback, horizon), variables, rows, times)


@memo.compiled(static=3)
def _fixed(model: Model, head: Head, sizes: _Sizes, variables: Variables, rows: Array, origins: Array) -> Backtest:
    inputs = seen(rows, sizes.channels, origins, sizes.lookback, sizes.horizon)
    return _backtest(head, sizes, rows, origins, model.apply(variables, inputs)[None])


def refitted(
    train: Fit | Callable[..., Trained],
    values: Any,
    *,
    key: Array,
    lookback: int,
    horizon: int,
    origins: ArrayLike,
    past: Any = None,
    future: Any = None,
    head: Head = POINT,
    members: int = 1,
    train_windows: int | None = None,
    valid_windows: int = 0,
    at_once: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    **hyper: ArrayLike,
) -> Backtest:
    """Retrain at every origin on the steps before it, and forecast from the origin.

    All columns are scaled by the mean and the standard deviation of the steps before the origin, and cut into windows
    whose targets lie before it. Earlier origins have fewer windows. So that one program serves all origins, the
    missing windows are copies of the first window, with weight zero. These copies take up places in minibatches; with
    full batches, a backtest equals separate fits to the series truncated at each origin.

    Member m at origin t is trained with the key `fold_in(fold_in(key, t), m)`.

    Args:
        train: the result of `nnfx.fit` for a model from windows `(batch, lookback, channels)` to forecasts; or any
            pure function `(key, data, **hyper)` whose result has an `apply` method that takes windows.
        values: the series, `(time, channels)`, as for `nnfx.forecasting.windows`.
        key: a typed key.
        lookback: the number of steps that a forecaster sees.
        horizon: the number of steps that it forecasts.
        origins: the origins, integers in ascending order up to `time − horizon`; static.
        past: exogenous columns that are known up to each origin, as for `nnfx.forecasting.windows`.
        future: exogenous columns that are known ahead: at each origin, a forecaster sees them up to the end of its
            forecast, and is trained on earlier steps; the lookback must then be at least the horizon.
        head: the meaning of the model's outputs.
        members: the number of networks to train at each origin, each with its own key; the forecast pools them.
        train_windows: the largest number of windows to train on, the latest ones; None for all.
        valid_windows: the number of latest windows to hold out, for stopping rules and for choosing the best weights;
            no held-out target appears in a training window.
        at_once: the number of origins that a device processes in parallel, to limit memory use; None for all of its
            origins.
        devices: the devices over which the origins are distributed; by default, all devices of this process.
        **hyper: the hyper-parameters that `train` takes; traced.

    Returns:
        The forecasts, including those of every member, and the actual values.

    Raises:
        TypeError: for a key that is not typed, a series that does not contain real numbers, or sizes that are not
            integers.
        ValueError: for origins that are out of range, not ascending, or too early for a single window, values of the
            wrong rank or not finite, exogenous columns whose times differ from those of the values, or forecasts
            that are not `(horizon, channels)`; and whenever `train` raises one.

    Example:
        >>> import nnfx, optax
        >>> from nnfx.forecasting import baselines
        >>> values = jnp.sin(jnp.arange(60.0))[:, None]
        >>> train = nnfx.fit(baselines.linear(2), nnfx.losses.mean_square_error, optax.sgd, epochs=5)
        >>> options = {"lookback": 4, "horizon": 2, "origins": [40, 50], "members": 3, "learning_rate": 0.1}
        >>> test = refitted(train, values, key=jax.random.key(0), **options)
        >>> test.forecasts.shape, test.members.shape
        ((2, 2, 1), (3, 2, 2, 1))

    References:
        Tashman, *Out-of-sample tests of forecasting accuracy*, International Journal of Forecasting 2000.
    """
    if not callable(train):
        raise TypeError(f"train: expected a function, as returned by nnfx.fit, got {checks.describe(train)}")
    checks.key("key", key)
    checks.positive_integer("members", members)
    for name, size in {"train_windows": train_windows, "at_once": at_once}.items():
        if size is not None:
            checks.positive_integer(name, size)
    checks.non_negative_integer("valid_windows", valid_windows)
    if isinstance(train, Fit):
        hyperparameters.check(hyper, train.all_factories)
    held_out = valid_windows + horizon - 1 if valid_windows else 0
    least = lookback + horizon + held_out
    rows, channels, times = _checked(values, past, future, lookback, horizon, origins, least)
    most = int(times[-1]) - held_out - lookback - horizon + 1
    sizes = _Sizes(
        channels,
        lookback,
        horizon,
        train_windows=most if train_windows is None else min(train_windows, most),
        valid_windows=valid_windows,
        members=members,
        at_once=at_once,
    )
    over = tuple(devices or jax.local_devices())[: len(times)]
    return _refitted(train, head, sizes, over, key, rows, times, hyperparameters.as_arrays(hyper))


@memo.compiled(static=4)
def _refitted(
    train: Callable[..., Trained],
    head: Head,
    sizes: _Sizes,
    devices: tuple[jax.Device, ...],
    key: Array,
    rows: Array,
    origins: Array,
    hyper: Hyper,
) -> Backtest:
    values, lookback, horizon = sizes.channels.values, sizes.lookback, sizes.horizon

    def at(known_to_all: tuple[Array, Array, Hyper], origin: Array) -> Array:
        key, rows, hyper = known_to_all
        scaler = Scaler.of(rows, where=jnp.arange(len(rows)) < origin)
        scaled = scaler(rows)
        data = _known_data(scaled, origin, sizes)
        inputs = seen(scaled, sizes.channels, origin[None], lookback, horizon)

        def of_member(number: Array) -> Array:
            run = train(jax.random.fold_in(jax.random.fold_in(key, origin), number), data, **hyper)
            return run.apply(inputs)[0]

        outputs = jax.vmap(of_member)(jnp.arange(sizes.members))
        _check_outputs("train", outputs, head, sizes)
        return head.affine(outputs, scaler.mean[None, :, :values], scaler.scale[None, :, :values])

    outputs = map_points(at, (key, rows, hyper), origins, at_once=sizes.at_once, devices=devices)[: len(origins)]
    return _backtest(head, sizes, rows, origins, jnp.moveaxis(outputs, 1, 0))


def _known_data(scaled: Array, origin: Array, sizes: _Sizes) -> Data:
    """Cut the windows whose targets are known at an origin; unused rows repeat the first window, with weight zero."""
    channels, lookback, horizon, count, held_out = sizes[:5]

    def cut(origins: Array) -> Windows:
        inputs = seen(scaled, channels, origins, lookback, horizon)
        return Windows(inputs, to_come(scaled, channels, origins, horizon))

    known = origin - horizon + 1  # the origins of windows, all before this one
    valid = cut(known - held_out + jnp.arange(held_out)) if held_out else None
    to_train = known - (held_out + horizon - 1 if held_out else 0)
    first = jnp.maximum(to_train - count, lookback)
    origins = first + jnp.arange(count)
    is_known = origins < to_train
    data = as_data(cut(jnp.where(is_known, origins, first)), valid)
    weights = is_known.astype(data.train.weights.dtype)
    return dataclasses.replace(data, train=data.train._replace(weights=weights))


def _backtest(head: Head, sizes: _Sizes, rows: Array, origins: Array, members: Array) -> Backtest:
    """Pool the members and pair their forecasts with the actual values."""
    _check_outputs("model", members[0], head, sizes)
    outputs = head.pool(members)
    targets = to_come(rows, sizes.channels, origins, sizes.horizon)
    return Backtest(head.point(outputs), targets, origins, outputs, members)


def _check_outputs(name: str, outputs: Array, head: Head, sizes: _Sizes) -> None:
    wanted = (sizes.horizon, sizes.channels.values, *([head.parameters] if head.parameters else []))
    if outputs.shape[1:] != wanted:
        expected = ", ".join(["batch", *map(str, wanted)])
        raise ValueError(
            f"{name}: expected forecasts ({expected}) for this horizon and head, got {outputs.shape[1:]} per window"
        )


def _checked(
    values: Any, past: Any, future: Any, lookback: int, horizon: int, origins: ArrayLike, least: int
) -> tuple[Array, Channels, np.ndarray]:
    """Check the series and the origins; return the rows of all columns, the numbers of columns, and the origins."""
    checks.positive_integer("lookback", lookback)
    checks.positive_integer("horizon", horizon)
    x = on_hand("values", values)
    if x.ndim != 2:
        raise ValueError(f"values: expected one series, (time, channels), got {checks.describe(x)}; map over several")
    rows, channels = beside(values, in_floats("values", values), past, future)
    if channels.future and lookback < horizon:
        raise ValueError(
            f"lookback: expected at least the horizon, {horizon}, if columns are known ahead, got {lookback}"
        )
    if not checks.is_concrete(origins):
        raise TypeError("origins: expected concrete times when the backtest is compiled, got traced ones")
    times = np.asarray(origins)
    if times.dtype.kind not in "iu":
        raise TypeError(f"origins: expected integer times, got {checks.describe(times)}")
    if times.ndim != 1 or times.size == 0 or (times[1:] <= times[:-1]).any():
        raise ValueError(f"origins: expected one or more ascending times, (origins,), got {checks.describe(times)}")
    latest = len(rows) - horizon
    if times[0] < least or times[-1] > latest:
        raise ValueError(
            f"origins: expected times from {least}, the first after a whole window, to {latest}, the last before a"
            f" whole horizon, got {times[0]} to {times[-1]}"
        )
    return rows, channels, times.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scores of several forecasters at the same origins.

    Attributes:
        rows: one dictionary per forecaster, with its name and its mean scores, sorted by the first score, best first.
        by_origin: the scores at each origin, `(origins,)`, by forecaster and score.
    """

    rows: list[dict[str, Any]]
    by_origin: dict[str, dict[str, np.ndarray]]

    def __str__(self) -> str:
        """Return the rows as a table."""
        return table(list(self.rows[0]), [list(row.values()) for row in self.rows])


def compare(backtests: Mapping[str, Backtest], scores: Mapping[str, PerExample]) -> Comparison:
    """Compare the scores of several forecasters at the same origins.

    Args:
        backtests: the backtests, keyed by the name of the forecaster.
        scores: the scores, keyed by name, each a function from point forecasts and targets
            `(origins, horizon, channels)` to one number per origin, lower being better, such as the functions in
            `nnfx.forecasting.scores`; bind other arguments beforehand, as in
            `functools.partial(scores.mase, scale=scale)`.

    Returns:
        The scores at each origin, and their means.

    Raises:
        TypeError: if one of `backtests` is not a Backtest.
        ValueError: if there are no backtests or no scores, if origins or targets differ from those of the first
            backtest, or if a score is not one number per origin.

    Example:
        >>> from nnfx import losses
        >>> from nnfx.forecasting import baselines
        >>> values, sizes = jnp.arange(9.0)[:, None], {"lookback": 2, "horizon": 1, "origins": [5, 6, 7]}
        >>> models = {"naive": baselines.naive(1), "drift": baselines.drift(1)}
        >>> tests = {name: fixed(model, {"params": {}}, values, **sizes) for name, model in models.items()}
        >>> print(compare(tests, {"MAE": losses.mean_absolute_error}))
        forecaster  MAE
        ----------  ---
        drift         0
        naive         1
    """
    if not backtests or not scores:
        raise ValueError(f"backtests, scores: expected at least one of each, got {len(backtests)} and {len(scores)}")
    first = next(iter(backtests))
    by_origin: dict[str, dict[str, np.ndarray]] = {}
    for name, test in backtests.items():
        if not isinstance(test, Backtest):
            raise TypeError(f"backtests[{name!r}]: expected a Backtest, got {checks.describe(test)}")
        other = backtests[first]
        for field in ("origins", "targets"):
            if not np.array_equal(getattr(test, field), getattr(other, field)):
                raise ValueError(f"backtests[{name!r}]: expected the same {field} as {first!r}, got different ones")
        by_origin[name] = {
            score: np.asarray(function(test.forecasts, test.targets), np.float64) for score, function in scores.items()
        }
        for score, found in by_origin[name].items():
            if found.shape != test.origins.shape:
                raise ValueError(f"scores[{score!r}]: expected one number per origin, got {checks.describe(found)}")
    rows = [
        {"forecaster": name, **{score: float(found.mean()) for score, found in columns.items()}}
        for name, columns in by_origin.items()
    ]
    ranking = next(iter(scores))
    return Comparison(sorted(rows, key=lambda row: (np.isnan(row[ranking]), row[ranking])), by_origin)
