"""From raw arrays to data ready for training: checked, split, filled, standardised, on the device."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.data.preprocess import Preprocess, as_columns, frame_names, repeated
from nnfx.types import Array, Batch, at_least_float32

__all__ = ["Data", "Missing", "Preprocess", "Report", "prepare", "split"]

Missing = Literal["error", "drop", "median"]


class Report(NamedTuple):
    """What preparing the data did to its rows.

    Attributes:
        rows: rows given.
        dropped: rows left out because of a missing value.
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
        """Return the report on one line."""
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
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Data ready for training, on the device.

    Attributes:
        train: the training part.
        valid: the held-out part, or None.
        preprocess: the map from raw features to those of `train` and `valid`.
        features: the names of the features of `train`, indicators included.
        report: what preparing the data did to the rows.
    """

    train: Batch
    valid: Batch | None
    preprocess: Preprocess
    features: tuple[str, ...] = ()
    report: Report | None = None

    def __repr__(self) -> str:
        """Describe the data in a few lines.

        >>> print(prepare(np.ones((4, 2)), np.zeros(4), features=("fare", "age"), standardize=False))
        Data: 4 rows to train on, none held out
          inputs: float32[4,2] (fare, age)
          targets: float32[4]
        """
        sizes = [batch.weights.shape[0] if batch is not None else "none" for batch in (self.train, self.valid)]
        inputs = ", ".join(map(checks.describe, jax.tree.leaves(self.train.inputs)))
        names = (
            f" ({', '.join(self.features[:_SHOWN])}{', …' * (len(self.features) > _SHOWN)})" if self.features else ""
        )
        lines = [
            f"Data: {sizes[0]} rows to train on, {sizes[1]} held out",
            f"  inputs: {inputs}{names}",
            f"  targets: {', '.join(map(checks.describe, jax.tree.leaves(self.train.targets)))}",
        ]
        if self.report is not None and (self.report.dropped or self.report.filled):
            lines.append(f"  {self.report}")
        return "\n".join(lines)


_SHOWN = 8
"""How many feature names are shown."""


def prepare(
    inputs: Any,
    targets: Any,
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    missing: Missing = "error",
    standardize: bool | None = None,
    weights: Any = None,
    features: Sequence[str] | None = None,
    keep_integers: bool | None = None,
) -> Data:
    """Prepare data for training: check, split by key, fill missing values, standardise, and move to the device.

    Medians, means and standard deviations are computed in float64 from the training rows of positive weight alone, and
    kept in `data.preprocess`, so that predictions take raw features.

    Args:
        inputs: `(rows, ...)`, numbers or booleans, as an array, a list, a tensor, or a frame or Series of pandas or
            polars; integers, booleans and half precision become the default float. Masked values of a NumPy
            array and nulls of a frame count as missing, like NaN.
        targets: `(rows, ...)`, numbers or booleans, none missing.
        key: a typed key that determines which rows are held out.
        valid_fraction: the fraction of rows to hold out, at least 0 and below 1, to the nearest whole number of rows.
        missing: what to do about missing inputs: raise an `"error"`; `"drop"` the row; or, for inputs
            `(rows, features)`, fill in the training `"median"` and append an indicator column for each feature with
            missing values in the training part.
        standardize: whether to standardise every feature to mean 0 and standard deviation 1; by default, yes unless
            integers are to be kept.
        weights: `(rows,)`, none negative and some positive in each part; 1 by default. The statistics are not
            weighted, but leave out rows of weight zero.
        features: the names of the features; by default, those of a frame's columns. Predictions from frames find
            their columns by these names.
        keep_integers: whether integers, such as tokens for an embedding, stay integers and go to the model as int32;
            all other numbers become floats. None keeps integers `(rows, n)` that are neither to be standardised
            (`standardize=False`) nor filled.

    Returns:
        The training part, the held-out part, and the map between raw and prepared features.

    Raises:
        TypeError: for arrays that do not hold real numbers, or a key that is not typed.
        ValueError: for empty data, lengths that differ, infinite or (see `missing`) missing features, targets
            that are not finite, negative weights, a fraction that leaves either part empty, feature names that are not
            unique, and numbers that the device cannot hold or tell apart; the error says what to do.

    Example:
        >>> data = prepare(np.array([[1.0], [3.0], [5.0]]), np.array([0, 1, 1]))
        >>> data.train.inputs.ravel()
        Array([-1.2247449,  0.       ,  1.2247449], dtype=float32)
        >>> data.preprocess(np.array([[3.0]]))
        Array([[0.]], dtype=float32)
        >>> prepare([[17, 4], [4, 2]], [0, 1], keep_integers=True).train.inputs.dtype
        dtype('int32')
    """
    inputs = as_columns(inputs)
    x, y, w = _checked_arrays(inputs, targets, weights)
    checks.choice("missing", missing, ("error", "drop", "median"))
    for name, flag in (("standardize", standardize), ("keep_integers", keep_integers)):
        if flag is not None and not isinstance(flag, bool | np.bool_):  # text such as "no" is truthy
            raise TypeError(f"{name}: expected True, False or None, got {checks.describe(flag)}")
    given_dtype = x.dtype
    given, names = _names(features, frame_names(inputs), x.shape[1])
    is_kept = _keeps_integers(keep_integers, x, standardize, missing)
    standardize = not is_kept if standardize is None else standardize
    floats = jax.dtypes.canonicalize_dtype(x.dtype if jnp.issubdtype(x.dtype, np.floating) else float)
    precise = at_least_float32(floats)  # the precision of models, whatever that of the data
    shape, dtype = x.shape[1:], jax.dtypes.canonicalize_dtype(int) if is_kept else precise
    x = x.astype(np.float64) if standardize or missing == "median" else x

    lost = np.isnan(x)
    if missing == "error" and lost.any():
        raise ValueError(
            f"inputs: expected finite numbers, got {int(lost.sum())} not finite, the first at"
            f" {tuple(np.argwhere(lost)[0].tolist())}; missing='drop' or 'median' handles missing ones"
        )
    kept = np.ones(len(x), bool)
    if missing == "drop":
        kept = ~lost.reshape(len(x), -1).any(1)
    checks.finite("inputs", np.where(lost, 0, x) if lost.any() else x)
    train, valid = split(key, np.flatnonzero(kept), valid_fraction)
    for part, rows in (("data.train", train), ("data.valid", valid)):
        if len(rows):
            checks.weights(f"weights of {part}", w[rows])
    measured = train[w[train] > 0]

    median = None
    indicators: tuple[int, ...] = ()
    filled: dict[str, int] = {}
    if missing == "median":
        median, indicators = _medians(x, lost, measured, names)
        counts = lost.sum(0)
        filled = {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}
        x = np.concatenate([np.where(lost, median, x), lost[:, indicators]], axis=1)
        names += tuple(f"{names[i]} missing" for i in indicators)
    mean, scale = np.zeros(()), np.ones(())
    _check_range(x, names, precise)
    if standardize:
        mean, scale = x[measured].mean(0, keepdims=True), x[measured].std(0, keepdims=True)
        scale[scale <= 1e-12 * np.abs(mean)] = 1
        _check_resolution(mean, scale, names, precise)
    options = {"features": given, "keep_integers": is_kept}
    preprocess = Preprocess.of(median, mean, scale, indicators, shape, precise, **options)
    if standardize:
        mean, scale, _ = preprocess.exact
        x = (x - mean) / scale
    elif not is_kept and not arrays.is_exact(given_dtype, precise):
        arrays.check_spread("inputs", x[train], dtype=precise)

    def batch(name: str, rows: np.ndarray) -> Batch:
        return Batch(
            arrays.to_device(f"inputs of {name}", x[rows], dtype),
            jnp.asarray(y[rows]),
            jnp.asarray(w[rows], precise),
        )

    return Data(
        train=batch("data.train", train),
        valid=batch("data.valid", valid) if len(valid) else None,
        preprocess=preprocess,
        features=names,
        report=Report(len(kept), int((~kept).sum()), filled, len(train), len(valid)),
    )


def _checked_arrays(inputs: Any, targets: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays on the host, targets in their device dtype, after checking all but the inputs' values."""
    for name, value in {"inputs": inputs, "targets": targets, "weights": weights}.items():
        if not checks.is_concrete(value):
            raise TypeError(f"{name}: expected concrete values, got traced ones; prepare data outside of jit")
    x, y = arrays.as_numpy("inputs", inputs, masked_as_nan=True), arrays.as_numpy("targets", targets)
    for name, value in (("inputs", x), ("targets", y)):
        if value.ndim == 0 or value.size == 0:
            raise ValueError(f"{name}: expected at least one row, got {checks.describe(value)}")
    if x.ndim < 2:
        raise ValueError(f"inputs: expected (rows, features, ...), got {checks.describe(x)}")
    if len(x) != len(y):
        raise ValueError(f"targets: expected as many rows as inputs, {len(x)}, got {len(y)}")
    w = np.ones(len(x)) if weights is None else arrays.as_numpy("weights", weights).astype(np.float64)
    if w.shape != (len(x),):
        raise ValueError(f"weights: expected one per row, ({len(x)},), got {checks.describe(w)}")
    checks.finite("targets", y)
    checks.weights("weights", w)
    _check_weights(w)
    dtype = _device_dtype(y.dtype, at_least=int)
    arrays.check_range("targets", y, dtype)
    on_device = arrays.narrowed("targets", y, dtype)
    arrays.check_spread("targets", y)
    return x, on_device, w


def _check_weights(weights: np.ndarray) -> None:
    """Raise an error for weights that vanish on the device, or whose sum is infinite there."""
    limits = jnp.finfo(_device_dtype(weights.dtype, at_least=float))
    lowest, total = float(weights[weights > 0].min()), float(weights.sum())
    if lowest < float(limits.tiny) or total > float(limits.max):
        raise ValueError(
            f"weights: expected at least {float(limits.tiny):g} and a sum of at most {float(limits.max):g}, got"
            f" {lowest:g} and a sum of {total:g}; divide them by their mean first"
        )


def _names(
    features: Sequence[str] | None, columns: tuple[str, ...] | None, count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names given to the features, if any, and the names to call them by."""
    if isinstance(features, str):
        raise TypeError(f"features: expected a sequence of names, got {features!r}")
    if features is not None and len(features) != count:
        raise ValueError(f"features: expected {count} names, got {len(features)}")
    given = columns or () if features is None else tuple(map(str, features))
    for name in repeated(given):
        which = "features" if features is not None else "inputs"
        raise ValueError(f"{which}: expected a unique name for each feature, got {name!r} twice")
    return given, given or tuple(f"x{i}" for i in range(count))


def _keeps_integers(asked: bool | None, x: np.ndarray, standardize: bool | None, missing: Missing) -> bool:
    """Return whether the inputs stay integers."""
    are_integers = bool(jnp.issubdtype(x.dtype, np.integer))
    if asked is None:
        return are_integers and x.ndim == 2 and standardize is False and missing != "median"
    if asked and not are_integers:
        raise ValueError(f"keep_integers: expected integer inputs, none missing, got {checks.describe(x)}")
    if asked and standardize:
        raise ValueError("keep_integers: expected integers that are not standardised, got standardize=True")
    return asked


def _medians(
    x: np.ndarray, lost: np.ndarray, measured: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the medians of the measured rows, and the features with missing values among them."""
    if x.ndim != 2:
        raise ValueError(f"inputs: expected (rows, features) to fill in medians, got {checks.describe(x)}")
    unknown = lost[measured].all(0)
    if unknown.any():
        raise ValueError(f"inputs: expected some known values of {names[int(unknown.argmax())]!r}, got only NaN")
    indicators = tuple(int(i) for i in np.flatnonzero(lost[measured].any(0)))
    return np.nanmedian(x[measured], axis=0, keepdims=True), indicators


def _check_range(x: np.ndarray, names: tuple[str, ...], dtype: Any) -> None:
    """Raise an error for features that become infinite or zero in the dtype in which predictions may receive them."""
    if x.dtype != np.float64:
        return
    limits = jnp.finfo(dtype)
    largest = np.maximum(np.fmax.reduce(x), -np.fmin.reduce(x)).reshape(x.shape[1], -1).max(1)
    is_lost = (largest > float(limits.max)) | ((largest > 0) & (largest < float(limits.tiny)))
    if is_lost.any():
        first = int(is_lost.argmax())
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can hold, got {names[first]!r} with values up to"
            f" {largest[first]:g}; divide it by its scale first"
        )


def _check_resolution(mean: np.ndarray, scale: np.ndarray, names: tuple[str, ...], dtype: Any) -> None:
    """Raise an error for features whose spread is lost in the dtype in which predictions may receive them."""
    limits = jnp.finfo(dtype)
    most = 1e5 * float(np.finfo(np.float32).eps) / float(limits.eps)
    lost = (np.abs(mean) > most * scale).reshape(mean.shape[1], -1).any(1)
    if lost.any():
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can tell apart, got {names[int(lost.argmax())]!r} with"
            f" a mean of over {most:,.0f} standard deviations; subtract an offset first"
        )
    vanishing = (scale < float(limits.tiny)).reshape(scale.shape[1], -1).any(1)
    if vanishing.any():
        raise ValueError(
            f"inputs: expected features that {jnp.dtype(dtype)} can hold, got {names[int(vanishing.argmax())]!r} with a"
            f" standard deviation of {scale.min():g}; divide it by its scale first"
        )


def _device_dtype(dtype: Any, at_least: type) -> Any:
    """Return the device's dtype for these values, or for `at_least` if theirs is of a lesser kind."""
    kind = np.floating if at_least is float else np.number
    return jax.dtypes.canonicalize_dtype(dtype if jnp.issubdtype(dtype, kind) else at_least)


def split(key: Array | None, rows: np.ndarray, valid_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to hold out, and return both parts in the order of the data."""
    if len(rows) == 0:
        raise ValueError("inputs: expected at least one row without a missing value, got none")
    checks.number("valid_fraction", valid_fraction, minimum=0, below=1)
    if valid_fraction == 0:
        return rows, rows[:0]
    checks.key("key", key)
    count = round(Fraction(str(valid_fraction)) * len(rows))  # of the fraction as written, not as stored
    if not 0 < count < len(rows):
        raise ValueError(
            f"valid_fraction: expected a fraction that leaves rows in both parts, got"
            f" {valid_fraction:g} of {len(rows)} rows"
        )
    order = np.asarray(jax.random.permutation(cast(Array, key), len(rows)))
    return np.sort(rows[order[count:]]), np.sort(rows[order[:count]])
