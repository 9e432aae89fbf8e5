"""From raw arrays to data ready for training: checked, split, filled, standardised, on the device."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks
from nnfx.types import Array, Batch, at_least_float32

Missing = Literal["error", "drop", "median"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["median", "mean", "scale"],
    meta_fields=["indicators", "shape"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
    """The map from raw features to those a model is trained on, fixed by the training part alone.

    Missing values (NaN) become the median, an indicator is appended for each feature in `indicators`, and
    the result is standardised: `(x − mean) / scale`.

    Attributes:
        median: `(1, features)`; a scalar NaN where nothing is filled.
        mean: `(1, features + indicators)`, or a scalar zero where nothing is standardised.
        scale: like `mean`; the standard deviation, and 1 for a constant feature.
        indicators: the positions of the features with an indicator of being missing.
        shape: that of a raw example.
    """

    median: Array
    mean: Array
    scale: Array
    indicators: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, inputs: ArrayLike) -> Array:
        """Return raw inputs `(batch, features)` as the model wants them, `(batch, features + indicators)`.

        Raises:
            ValueError: for another number of features, or concrete values that are infinite, or missing where
                nothing is filled.
        """
        x = jnp.asarray(inputs)
        checks.numeric("inputs", x)
        if x.shape[1:] != self.shape or x.ndim == 0:
            expected = ", ".join(["batch", *map(str, self.shape)])
            raise ValueError(f"inputs: expected raw features ({expected}), got {checks.describe(x)}")
        if not jnp.issubdtype(x.dtype, np.floating):
            x = x.astype(self.mean.dtype)
        missing = jnp.isnan(x)
        x = jnp.where(missing, self.median.astype(x.dtype), x)
        checks.finite("inputs", x)
        if self.indicators:
            x = jnp.concatenate([x, missing[:, jnp.array(self.indicators)].astype(x.dtype)], axis=1)
        return ((x - self.mean) / self.scale).astype(x.dtype)

    def raw_units(self, kernel: Array, bias: Array) -> tuple[Array, Array]:
        """Return the weights and bias of the same affine map, but on raw features.

        `W (x − mean) / scale + b = W' x + b'` with `W' = W / scale` and `b' = b − W' mean`.

        Args:
            kernel: W, `(features, outputs)`.
            bias: b, `(outputs,)`.
        """
        raw = kernel / jnp.broadcast_to(self.scale.reshape(-1, 1), kernel.shape)
        mean = jnp.broadcast_to(self.mean.reshape(-1, 1), kernel.shape)
        return raw, bias - (raw * mean).sum(0)


class Report(NamedTuple):
    """What preparing the data did to its rows.

    Attributes:
        rows: rows given.
        dropped: rows left out for a missing value.
        filled: the number of missing values filled, by feature.
        train: rows to train on.
        valid: rows held out.
    """

    rows: int
    dropped: int
    filled: dict[str, int]
    train: int
    valid: int

    def __str__(self) -> str:
        """Say it in one line."""
        filled = ", ".join(f"{count} of {name}" for name, count in self.filled.items()) or "none"
        return (
            f"{self.rows} rows: {self.train} to train on, {self.valid} held out,"
            f" {self.dropped} dropped for missing values; values filled: {filled}"
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["train", "valid", "preprocess"],
    meta_fields=["features", "report"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Data ready for training, on the device.

    Attributes:
        train: what is trained on.
        valid: what is held out, or None.
        preprocess: from raw features to those of `train` and `valid`.
        features: the names of the features of `train`, indicators included.
        report: what preparing did to the rows.
    """

    train: Batch
    valid: Batch | None
    preprocess: Preprocess
    features: tuple[str, ...] = ()
    report: Report | None = None


def prepare(
    inputs: Any,
    targets: Any,
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    missing: Missing = "error",
    standardize: bool = True,
    weights: Any = None,
    features: Sequence[str] | None = None,
) -> Data:
    """Make data ready for training: check, split by key, fill what is missing, standardise, move to the device.

    Medians, means and standard deviations are those of the training part alone, and are kept in
    `data.preprocess`, so that predictions take raw features.

    Args:
        inputs: `(rows, ...)`, numbers or booleans; integers and booleans become the default float.
        targets: `(rows, ...)`, numbers or booleans.
        key: a typed key that draws which rows are held out.
        valid_fraction: the part of the rows to hold out, at least 0 and below 1.
        missing: what to do about NaN in the inputs: `"error"`; `"drop"` the row; or fill in the training
            `"median"` and append an indicator column for each feature that misses values there, for inputs
            `(rows, features)`.
        standardize: whether to bring every feature to mean 0 and standard deviation 1.
        weights: `(rows,)`, none negative and some positive in each part; one each where not given. They do not
            enter the statistics.
        features: the names of the features.

    Returns:
        The training part, the held-out part, and the map between raw and prepared features.

    Raises:
        TypeError: for arrays that are not of real numbers, or a key that is not typed.
        ValueError: for empty data, lengths that differ, infinite or (see `missing`) NaN features, targets
            that are not finite, negative weights, or a fraction that leaves either part empty.

    Example:
        >>> data = prepare(np.array([[1.0], [3.0], [5.0]]), np.array([0, 1, 1]))
        >>> data.train.inputs.ravel()
        Array([-1.2247449,  0.       ,  1.2247449], dtype=float32)
        >>> data.preprocess(np.array([[3.0]]))
        Array([[0.]], dtype=float32)
    """
    x, y, w = _checked_arrays(inputs, targets, weights)
    checks.choice("missing", missing, ("error", "drop", "median"))
    if isinstance(features, str):
        raise TypeError(f"features: expected a sequence of names, got {features!r}")
    if features is not None and len(features) != x.shape[1]:
        raise ValueError(f"features: expected {x.shape[1]} names, got {len(features)}")
    names = tuple(features) if features is not None else tuple(f"x{i}" for i in range(x.shape[1]))
    shape, dtype = x.shape[1:], _device_dtype(x.dtype, at_least=float)
    x = x.astype(np.float64 if standardize or missing == "median" else dtype)

    lost = np.isnan(x)
    kept = np.ones(len(x), bool)
    if missing == "drop":
        kept = ~lost.reshape(len(x), -1).any(1)
    checks.finite("inputs", x if missing == "error" else np.where(lost, 0, x))
    train, valid = split(key, np.flatnonzero(kept), valid_fraction)

    median = np.full((), np.nan)
    indicators: tuple[int, ...] = ()
    filled: dict[str, int] = {}
    if missing == "median":
        median, indicators = _medians(x, lost, train, names)
        filled = {names[i]: int(lost[:, i].sum()) for i in range(x.shape[1]) if lost[:, i].any()}
        x = np.concatenate([np.where(lost, median, x), lost[:, indicators]], axis=1)
        names += tuple(f"{names[i]} missing" for i in indicators)
    mean, scale = np.zeros(()), np.ones(())
    if standardize:
        mean, scale = x[train].mean(0, keepdims=True), x[train].std(0, keepdims=True)
        scale[scale <= 1e-12 * np.abs(mean)] = 1
        _check_resolution(mean, scale, names)
        x = (x - mean) / scale

    precise = at_least_float32(dtype)

    def batch(name: str, rows: np.ndarray) -> Batch:
        checks.weights(f"weights of {name}", w[rows])
        return Batch(jnp.asarray(x[rows], dtype), jnp.asarray(y[rows]), jnp.asarray(w[rows], precise))

    return Data(
        train=batch("data.train", train),
        valid=batch("data.valid", valid) if len(valid) else None,
        preprocess=Preprocess(
            jnp.asarray(median, precise), jnp.asarray(mean, precise), jnp.asarray(scale, precise), indicators, shape
        ),
        features=names,
        report=Report(len(kept), int((~kept).sum()), filled, len(train), len(valid)),
    )


def _checked_arrays(inputs: Any, targets: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays on the host, after checking all but the inputs' values."""
    x, y = np.asarray(inputs), np.asarray(targets)
    for name, value in (("inputs", x), ("targets", y)):
        if value.ndim == 0 or value.size == 0:
            raise ValueError(f"{name}: expected at least one row, got {checks.describe(value)}")
        checks.numeric(name, value)
    if x.ndim < 2:
        raise ValueError(f"inputs: expected (rows, features, ...), got {checks.describe(x)}")
    if len(x) != len(y):
        raise ValueError(f"targets: expected as many rows as inputs, {len(x)}, got {len(y)}")
    w = np.ones(len(x)) if weights is None else np.asarray(weights)
    checks.numeric("weights", w)
    if w.shape != (len(x),):
        raise ValueError(f"weights: expected one per row, ({len(x)},), got {checks.describe(w)}")
    checks.finite("targets", y)
    checks.weights("weights", w)
    on_device = y.astype(_device_dtype(y.dtype, at_least=int))
    if jnp.issubdtype(y.dtype, np.integer) and (on_device != y).any():
        raise ValueError(f"targets: expected integers that {on_device.dtype} can hold, got {np.abs(y).max()}")
    return x, on_device, w


def _medians(
    x: np.ndarray, lost: np.ndarray, train: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the medians of the training part, and which features miss values there."""
    if x.ndim != 2:
        raise ValueError(f"inputs: expected (rows, features) to fill in medians, got {checks.describe(x)}")
    unknown = lost[train].all(0)
    if unknown.any():
        raise ValueError(f"inputs: expected known values of {names[int(unknown.argmax())]!r}, got only NaN")
    indicators = tuple(int(i) for i in np.flatnonzero(lost[train].any(0)))
    return np.nanmedian(x[train], axis=0, keepdims=True), indicators


def _check_resolution(mean: np.ndarray, scale: np.ndarray, names: tuple[str, ...]) -> None:
    """Refuse features whose spread is lost in the rounding of a float32, in which predictions get them."""
    lost = (np.abs(mean) > 1e5 * scale).reshape(mean.shape[1], -1).any(1)
    if lost.any():
        raise ValueError(
            f"inputs: expected features that float32 can tell apart, got {names[int(lost.argmax())]!r} with a mean"
            " of over 100,000 standard deviations; subtract an offset first"
        )


def _device_dtype(dtype: Any, at_least: type) -> Any:
    """Return the dtype that the device has for these values, booleans and integers being numbers of a kind."""
    kind = np.floating if at_least is float else np.number
    return jax.dtypes.canonicalize_dtype(dtype if jnp.issubdtype(dtype, kind) else at_least)


def split(key: Array | None, rows: np.ndarray, valid_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw which rows are held out; both parts keep the order of the data."""
    if len(rows) == 0:
        raise ValueError("inputs: expected at least one row without a missing value, got none")
    checks.number("valid_fraction", valid_fraction, minimum=0, below=1)
    if valid_fraction == 0:
        return rows, rows[:0]
    checks.key("key", key)
    count = round(valid_fraction * len(rows))
    if not 0 < count < len(rows):
        raise ValueError(
            f"valid_fraction: expected to leave rows in both parts, got {valid_fraction:g} of {len(rows)} rows"
        )
    order = np.asarray(jax.random.permutation(cast(Array, key), len(rows)))
    return np.sort(rows[order[count:]]), np.sort(rows[order[:count]])
