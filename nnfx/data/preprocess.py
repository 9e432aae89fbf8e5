"""The map from raw features to the features that a model is trained on."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.arrays import as_numpy, column_names, is_exact, to_device
from nnfx.data import encode, sequences
from nnfx.data.frames import in_order_of
from nnfx.memo import one_program
from nnfx.types import Array, Sequences

__all__ = ["Preprocess", "each"]

_NUMBERS_AT_ONCE = 2**17
"""How many numbers to process at a time: few enough to stay in a cache."""


MEANINGS = ("indicators", "shape", "features", "keep_integers", "encoding", "unseen", "classes", "by_step")
"""The fields that are not arrays, which are the same for every fold."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["median", "mean", "scale", "remainder", "target_mean", "target_scale"],
    meta_fields=MEANINGS,
)
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
    """The map from raw features to preprocessed ones, and from a model's outputs back to the units of the targets.

    Both maps are determined by the training split alone. Categories and booleans of a frame become 0/1 columns.
    Missing numbers (NaN) become the median, an indicator is appended for each feature in `indicators`, and everything
    but the 0/1 columns is standardised: `(x − mean) / scale`. Concrete inputs are processed just as the training data
    were, in float64 on the host where applicable, so raw training rows give the preprocessed rows bit for bit.

    Attributes:
        median: the values to fill in, `(1, features)`; None, or a scalar NaN, if nothing is filled.
        mean: the mean, `(1, features + indicators)`, or a scalar zero if nothing is standardised.
        scale: the standard deviation, or 1 for a constant feature; shaped like `mean`.
        indicators: the positions of the features that have an indicator for missing values.
        shape: the shape of a raw example, with categories as 0/1 columns; for sequences, −1 in place of the number
            of steps.
        features: the names of the raw features, by which the columns of a frame are selected; empty if they have none.
        keep_integers: whether integers stay integers, as tokens do; None keeps them if their shape is
            `(batch, n)` and they are neither standardised nor filled.
        remainder: the rounding errors of the mean, the scale and the median, to be added back; None if there are none.
        encoding: for each column of a frame, None for numbers, `()` for booleans, or its categories, the last of which
            is None if missing values form a separate category; empty if all columns are numbers.
        unseen: what to do about categories that did not occur in training: `"error"` raises an error, and `"other"`
            encodes them as 0 in all columns.
        classes: the names of the classes, by label; empty if they have none.
        target_mean: the mean of the targets, `(1, ...)`; None if they are not standardised.
        target_scale: the standard deviation of the targets, like `target_mean`.
        by_step: whether the targets that are standardised belong to the steps of sequences; all steps then share a
            mean and a deviation, `(1, 1, ...)`.
    """

    median: Array | None
    mean: Array
    scale: Array
    indicators: tuple[int, ...]
    shape: tuple[int, ...]
    features: tuple[str, ...] = ()
    keep_integers: bool | None = None
    remainder: tuple[Array, Array, Array | None] | None = None
    encoding: encode.Encoding = ()
    unseen: str = "error"
    classes: tuple[str, ...] = ()
    target_mean: Array | None = None
    target_scale: Array | None = None
    by_step: bool = False

    @classmethod
    def of(
        cls,
        median: np.ndarray | None,
        mean: np.ndarray,
        scale: np.ndarray,
        dtype: Any,
        **others: Any,
    ) -> "Preprocess":
        """Create the map from statistics in float64, each stored as the sum of two numbers of a lower precision.

        Args:
            median: the attribute, in float64.
            mean: the attribute, in float64.
            scale: the attribute, in float64.
            dtype: the dtype in which to store them.
            **others: all other attributes that differ from their defaults.
        """
        (mean, mean_rest), (scale, scale_rest) = _halves(mean, dtype), _halves(scale, dtype)
        median, median_rest = (None, None) if median is None else _halves(median, dtype)
        changes_nothing = median is None and not mean.ndim and not (mean_rest.any() or scale_rest.any())
        rest = None if changes_nothing else (mean_rest, scale_rest, median_rest)
        numbers: Any = jax.device_put((median, mean, scale, rest))
        return cls(numbers[0], numbers[1], numbers[2], remainder=numbers[3], **others)

    @property
    def fills(self) -> bool:
        """Whether missing values are filled."""
        return self.median is not None and np.ndim(self.median) > 0

    @property
    def exact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The mean, the scale and the median in float64, on the host; the median is None if nothing is filled."""
        rest = self.remainder or (None, None, None)
        numbers = (self.mean, self.scale, self.median if self.fills else None)
        mean, scale, median = (_sum(number, left) for number, left in zip(numbers, rest, strict=True))
        assert mean is not None
        assert scale is not None
        return mean, scale, median

    def __call__(self, inputs: Any) -> Any:
        """Preprocess raw inputs `(batch, features)` into model inputs of shape `(batch, features + indicators)`.

        Args:
            inputs: an array, a list, a tensor, or a frame, whose columns are reordered to match `features`. If the
                model was trained on a frame with categories, an array must contain the encoded columns. If it was
                trained on `Sequences`, pass `Sequences` of any number of steps, or an array without padding.

        Raises:
            TypeError: for inputs that do not contain real numbers, columns of a different kind from those in training,
                and `Sequences` for a model that was not trained on them.
            ValueError: for a wrong number of features, columns with other names, categories that did not occur in
                training (see `unseen`), or concrete values that are infinite, missing (if nothing is filled), or not
                integers (if integers are kept).
        """
        if self.takes_sequences:
            return self._sequences(inputs)
        if isinstance(inputs, Sequences):
            raise TypeError(
                "inputs: expected raw features as one array or frame, as in training, got Sequences; pass preprocessed"
                " inputs to run.apply"
            )
        x = self._encoded(in_order_of(self.features, inputs))
        if not _stays(x):
            x = self._as_numbers(x)
        checks.numeric("inputs", x)
        if x.shape[1:] != self.shape or x.ndim == 0:
            expected = ", ".join(["batch", *map(str, self.shape)])
            hint = ", or a frame with the columns used in training" if self.encoding else ""
            raise ValueError(f"inputs: expected raw features ({expected}){hint}, got {checks.describe(x)}")
        if self._keeps(x.dtype):
            return _as_integers(x)
        loses_nothing = self.remainder is None and is_exact(x.dtype, self.mean.dtype)  # such as images
        on_host = isinstance(x, np.ndarray) and _is_local(self) and not loses_nothing
        return jax.device_put(self._on_host(x)) if on_host else self._on_device(x)

    @property
    def takes_sequences(self) -> bool:
        """Whether examples are sequences, each with its own number of steps."""
        return self.shape[:1] == (sequences.ANY_TIME,)

    def _sequences(self, inputs: Any) -> Sequences:
        """Preprocess the real steps of sequences; all other steps become zero."""
        given = inputs if isinstance(inputs, Sequences) else Sequences(as_numpy("inputs", inputs))
        values: Any = given.values
        lengths: Any = given.lengths
        if _is_local(inputs):
            values, lengths = sequences.read("inputs", given)
        else:
            lengths = jnp.full(values.shape[0], values.shape[1]) if lengths is None else lengths
            values = sequences.without_padding(jnp, values, lengths)
        if values.ndim != 1 + len(self.shape) or values.shape[2:] != self.shape[1:]:
            expected = ", ".join(["batch", "time", *map(str, self.shape[1:])])
            raise ValueError(f"inputs: expected sequences ({expected}), got {checks.describe(values)}")
        prepared = dataclasses.replace(self, shape=values.shape[1:])(values)
        return sequences.on_device(sequences.without_padding(jnp, prepared, jnp.asarray(lengths)), lengths)

    def _encoded(self, inputs: Any) -> Any:
        """Encode a frame as numbers if the training rows contained categories; return anything else unchanged."""
        if not self.encoding:
            return inputs
        columns = encode.columns("inputs", inputs, self.features or None, encode.kinds_of(self.encoding))
        if columns is None:
            return inputs
        return encode.encoded(columns, self.encoding, unseen=self.unseen, fills=self.fills)

    def _as_numbers(self, inputs: Any) -> Any:
        """Return inputs as numbers on the host; for a frame, an error names the column that contains something else."""
        try:
            return as_numpy("inputs", inputs, masked_as_nan=True)
        except TypeError:
            names = column_names(inputs)
            if names is None or self.encoding:
                raise
            columns = encode.columns("inputs", inputs, self.features or None, ["number"] * len(names))
            if columns is None:
                raise
            return encode.encoded(columns, (None,) * len(columns))

    def _check_finite(self, x: Any) -> None:
        """Require finite numbers; the error names the column, if it has a name."""
        names = encode.names(self.encoding, self.features) if self.encoding else self.features
        try:
            checks.finite("inputs", x)
        except ValueError as error:
            if not names or x.ndim != 2:
                raise
            column = names[int(np.argwhere(~np.isfinite(np.asarray(x, np.float64)))[0, 1])]
            raise ValueError(f"{error}, column {column!r}") from None

    def raw_outputs(self, outputs: Any, axis: int = 0) -> Any:
        """Convert outputs z to the original units of the targets, `scale · z + mean`, if the targets were standardised.

        Args:
            outputs: outputs of the shape of the targets; for a single output, also `(batch, 1)`.
            axis: the axis of the rows; 1 for stacked maps, each with the outputs of its own model.

        Raises:
            ValueError: for outputs of another shape, such as the parameters of a distribution.
        """
        if self.target_mean is None or self.target_scale is None:
            return outputs
        axes = axis + 1 + self.by_step  # the axes of the rows and the steps, of any size
        shape = self.target_mean.shape[axes:]
        if not hasattr(outputs, "shape") or outputs.ndim < axes or outputs.shape[axes:] not in (shape, (*shape, 1)):
            expected = ", ".join([*("batch", "time")[: 1 + self.by_step], *map(str, shape)])
            raise ValueError(
                f"outputs: expected ({expected}) like the standardised targets, got"
                f" {checks.describe(outputs)}; run.apply returns other outputs unchanged"
            )
        shape = (*self.target_mean.shape, *[1] * (outputs.ndim - self.target_mean.ndim))
        statistics = self.target_mean, self.target_scale
        if isinstance(outputs, jax.Array) and _is_local((statistics, outputs)):
            # on the host, so that no program is compiled for each number of rows
            exact_mean, exact_scale = (np.asarray(each, np.float64).reshape(shape) for each in statistics)
            raw = np.asarray(outputs, np.float64) * exact_scale + exact_mean
            dtype = jnp.promote_types(outputs.dtype, self.target_mean.dtype)
            return jax.device_put(raw.astype(dtype), outputs.sharding)
        mean, scale = (each.reshape(shape) for each in statistics)
        return outputs * scale + mean

    def _keeps(self, dtype: Any) -> bool:
        """Return whether inputs of a dtype go to the model as integers."""
        if self.keep_integers is not None:
            return self.keep_integers
        if not jnp.issubdtype(dtype, np.integer) or len(self.shape) != 1 or np.ndim(self.mean) or np.ndim(self.scale):
            return False
        return _is_local(self) and float(self.mean) == 0 and float(self.scale) == 1

    def _on_host(self, x: np.ndarray) -> np.ndarray:
        """Compute in float64, a block of rows at a time, and round once."""
        dtype = self._dtype(x.dtype)
        mean, scale, median = self.exact
        features = x.shape[1:] if not self.indicators else (x.shape[1] + len(self.indicators),)
        prepared = np.empty((len(x), *features), dtype)
        may_miss = jnp.issubdtype(x.dtype, np.floating)
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, prepared[:1].size))
        for i in range(0, len(x), at_once):
            raw = x[i : i + at_once].astype(np.float64)
            if may_miss and (missing := np.isnan(raw)).any() and median is not None:
                raw = np.where(missing, median, raw)
            if may_miss and not np.isfinite(raw).all():
                self._check_finite(x if median is None else np.where(np.isnan(x), median, x))
            if self.indicators:
                flags = missing[:, self.indicators] if may_miss else np.zeros((len(raw), len(self.indicators)))
                raw = np.concatenate([raw, flags], axis=1)
            raw -= mean
            raw /= scale
            with np.errstate(over="ignore"):
                prepared[i : i + at_once] = raw
        if not np.isfinite(prepared).all():
            raise ValueError(f"inputs: expected numbers that {dtype} can hold after preprocessing, got larger ones")
        return prepared

    def _on_device(self, x: Any) -> Array:
        """Compute in the device's precision, for inputs that are traced or sharded over devices."""
        if isinstance(x, np.ndarray) and not jnp.issubdtype(x.dtype, np.floating):
            x = x.astype(self.mean.dtype)  # before JAX narrows integers to 32 bits
        x = jnp.asarray(x).astype(self._dtype(x.dtype))
        missing = jnp.isnan(x)
        if self.fills:
            x = jnp.where(missing, jnp.asarray(self.median, x.dtype), x)
        self._check_finite(x)
        if self.indicators:
            x = jnp.concatenate([x, missing[:, jnp.array(self.indicators)].astype(x.dtype)], axis=1)
        centred = x - self.mean.astype(x.dtype)
        if self.remainder is not None:
            centred = centred - self.remainder[0].astype(x.dtype)
        return centred / self.scale.astype(x.dtype)

    def _dtype(self, given: Any) -> Any:
        """Return the dtype of preprocessed inputs: the dtype of the map, or of the inputs if it is more precise."""
        own = self.mean.dtype
        return (
            jnp.promote_types(jax.dtypes.canonicalize_dtype(given), own) if jnp.issubdtype(given, np.floating) else own
        )

    def raw_units(self, kernel: Array, bias: Array) -> tuple[Array, Array]:
        """Convert the weights and bias of an affine map from preprocessed features to raw features.

        `W (x − mean) / scale + b = W' x + b'` with `W' = W / scale` and `b' = b − W' mean`.

        Args:
            kernel: W, `(features, outputs)`.
            bias: b, `(outputs,)`.
        """
        return _raw_units(self.mean, self.scale, kernel, bias)


@one_program
def _raw_units(mean: Array, scale: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    raw = kernel / jnp.broadcast_to(scale.reshape(-1, 1), kernel.shape)
    return raw, bias - (raw * jnp.broadcast_to(mean.reshape(-1, 1), kernel.shape)).sum(0)


def each(stacked: Preprocess, inputs: Any) -> Any:
    """Preprocess raw inputs with each of several maps, into `(maps, batch, ...)`.

    Args:
        stacked: the maps, stacked along the first axis of every array.
        inputs: raw inputs, as for a single map.
    """
    leaves, tree = jax.tree.flatten(stacked)
    if not _is_local(stacked):
        return jax.vmap(lambda preprocess: preprocess(inputs))(stacked)
    leaves = [np.asarray(leaf) for leaf in leaves]
    prepared: dict[bytes, Any] = {}
    maps = []
    for i in range(len(leaves[0])):
        own = b"".join(leaf[i].tobytes() for leaf in leaves)
        if own not in prepared:
            prepared[own] = jax.tree.unflatten(tree, [leaf[i] for leaf in leaves])(inputs)
        maps.append(prepared[own])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps)


def _halves(numbers: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers rounded to a dtype, and the rounding errors in the same dtype."""
    rounded = numbers.astype(dtype)
    return rounded, (numbers - rounded.astype(np.float64)).astype(dtype)


def _sum(number: Any, remainder: Any) -> np.ndarray | None:
    if number is None:
        return None
    return np.asarray(number, np.float64) + (0 if remainder is None else np.asarray(remainder, np.float64))


def _stays(inputs: Any) -> bool:
    """Return whether inputs are a concrete JAX array that should stay on its devices."""
    if not isinstance(inputs, jax.Array) or isinstance(inputs, jax.core.Tracer):
        return False
    is_key = jnp.issubdtype(inputs.dtype, jax.dtypes.prng_key)
    return not is_key and not (inputs.is_fully_addressable and _is_on_cpu(inputs))


def _is_on_cpu(array: jax.Array) -> bool:
    return {device.platform for device in array.devices()} == {"cpu"}


def _is_local(tree: Any) -> bool:
    """Return whether this process can read every array of a tree."""
    return checks.is_concrete(tree) and all(
        getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree)
    )


def _as_integers(x: Any) -> Array:
    """Return tokens in the integer dtype of the device."""
    if isinstance(x, np.ndarray):
        return to_device("inputs", x, int)
    return x if jnp.issubdtype(x.dtype, np.integer) else x.astype(int)
