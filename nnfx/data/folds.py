"""Folds: the same rows, standardised and filled again as each of several parts is held out in turn.

Prepared data have been standardised and filled with the statistics of all their rows. What a fold trains on may depend
on its own rows only, so its medians, means and scales are measured again, in float64 on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.data.preprocess import Preprocess
from nnfx.types import Array, Batch

__all__ = ["Folds"]

_ABSENT = 2.0**127
"""A scale so large that it erases a column about which the fold's own rows say nothing."""


class Folds(NamedTuple):
    """How the rows are divided into folds, and how prepared inputs become those of each fold.

    Attributes:
        of_row: the fold that holds out each row, `(rows,)`.
        preprocess: the map from raw features for each fold, `(folds, ...)`.
        change: what to subtract from prepared inputs, what to divide them by afterwards, and what to replace missing
            values with beforehand, `(folds, 1, ...)` each; None if nothing was standardised or filled.
    """

    of_row: Array
    preprocess: Preprocess
    change: tuple[Array, Array, Array | None] | None

    @classmethod
    def of(cls, data: Batch, preprocess: Preprocess, of_row: Array, count: int) -> "Folds":
        """Measure what each fold trains on.

        Rows of weight zero are not measured. A feature that is missing from all rows that a fold trains on, and an
        indicator that they never set, are zero throughout the fold.

        Args:
            data: prepared data, none of them held out.
            preprocess: the map that prepared them.
            of_row: the fold that holds out each row, `(rows,)`.
            count: the number of folds.

        Raises:
            ValueError: for features whose spread within a fold is lost in the rounding of the prepared inputs.
        """
        if not preprocess.mean.ndim and not preprocess.fills:
            stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), preprocess)
            return cls(of_row, stacked, None)
        inputs, fold_of_row = np.asarray(data.inputs), np.asarray(of_row)
        measured = np.asarray(data.weights) > 0
        mean, scale = (np.broadcast_to(each, _shape(preprocess, inputs)) for each in preprocess.exact[:2])
        missing = _missing(inputs, preprocess)
        changes, maps = [], []
        for fold in range(count):
            rows = measured & (fold_of_row != fold)
            shift, ratio, fill = _measure(inputs, rows, missing, preprocess, scale)
            changes.append((shift, ratio, fill))
            features = None if fill is None else fill.shape[1]
            maps.append(
                Preprocess.of(
                    None if fill is None else mean[:, :features] + scale[:, :features] * fill,
                    mean + scale * shift,
                    np.where(ratio == _ABSENT, _ABSENT, scale * ratio),
                    preprocess.indicators,
                    preprocess.shape,
                    preprocess.mean.dtype,
                    features=preprocess.features,
                    keep_integers=preprocess.keep_integers,
                )
            )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps)
        change = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts), inputs.dtype), *changes)
        return cls(of_row, stacked, change)

    def inputs(self, inputs: Array, preprocess: Preprocess, fold: Array) -> Array:
        """Return prepared inputs as the preprocessing of a fold would give them; the fold may be traced."""
        if self.change is None:
            return inputs
        shift, ratio, fill = self.change
        if fill is not None and preprocess.indicators:
            at = jnp.array(preprocess.indicators)
            is_missing = inputs[:, fill.shape[2] :] > 0
            inputs = inputs.at[:, at].set(jnp.where(is_missing, fill[fold][:, at], inputs[:, at]))
        return (inputs - shift[fold]) / ratio[fold]


def _shape(preprocess: Preprocess, inputs: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the statistics, with scalars expanded to all features."""
    return preprocess.mean.shape if preprocess.mean.ndim else (1, *inputs.shape[1:])


def _missing(inputs: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return where values were filled in, `(rows, indicators)`, according to the indicators."""
    if not preprocess.indicators:
        return np.zeros((len(inputs), 0), bool)
    return inputs[:, -len(preprocess.indicators) :] > 0  # 0 and 1, shifted by a mean in between


def _measure(
    inputs: np.ndarray, rows: np.ndarray, missing: np.ndarray, preprocess: Preprocess, scale_of_all: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the mean, the scale and the medians of some rows, in units of the prepared inputs."""
    shape = _shape(preprocess, inputs)
    x = inputs[rows].astype(np.float64)
    unknown = np.zeros(shape, bool)
    fill = None
    if preprocess.fills:
        at = list(preprocess.indicators)
        count = inputs.shape[1] - len(at)
        fill = np.median(x[:, :count], axis=0, keepdims=True) if len(x) else np.zeros((1, count))
        for column, lost in zip(at, missing[rows].T, strict=True):
            known = x[~lost, column]
            fill[0, column] = np.median(known) if len(known) else 0.0
            unknown[0, column] = not len(known)
            x[lost, column] = fill[0, column]
        unknown[0, count:] = ~missing[rows].any(0)
    if not preprocess.mean.ndim:
        return np.zeros(shape), np.where(unknown, _ABSENT, 1.0), fill
    if not len(x):
        return np.zeros(shape), np.ones(shape), fill
    pooled = (0, *(i for i in range(1, x.ndim) if shape[i] == 1 != inputs.shape[i]))
    mean, scale = x.mean(pooled, keepdims=True), x.std(pooled, keepdims=True)
    step = np.abs(x).max(pooled, keepdims=True) * float(np.finfo(inputs.dtype).eps)  # to which the inputs were rounded
    is_constant = scale <= 1e-12 * np.abs(mean)
    is_lost = ~is_constant & (step > 1e-2 * scale)
    if is_lost.any():
        worst = int(is_lost.reshape(shape[1], -1).any(1).argmax())
        name = preprocess.features[worst] if worst < len(preprocess.features) else f"x{worst}"
        raise ValueError(
            f"folds: expected features that {inputs.dtype} can tell apart in the rows of each fold, got {name!r}, whose"
            " largest values are all in one fold; first take its logarithm or clip it"
        )
    return mean, np.where(unknown, _ABSENT, np.where(is_constant, 1 / scale_of_all, scale)), fill
