"""Folds for cross-validation: the same rows, standardised and filled anew for each held-out fold.

Preprocessed data have been standardised and filled with statistics of all rows. The training rows of a fold may not
depend on its held-out rows, so medians, means, scales and the categories that occur are measured again for each fold,
in float64 on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx.data import encode, measure
from nnfx.data.permutation import permutation
from nnfx.data.preprocess import MEANINGS, Preprocess
from nnfx.data.sequences import real_steps
from nnfx.data.targets import over_steps
from nnfx.types import Array, Batch, Sequences

__all__ = ["Folds", "assign", "counted"]

_ABSENT = 2.0**127
"""A scale so large that it sets to zero a column that does not occur in the fold's training rows."""


def assign(key: Array, weights: Any, folds: int) -> Array:
    """Assign each row at random to the fold that holds it out, `(rows,)`; fold sizes differ by at most one row.

    The numbers of rows with positive weight also differ by at most one.

    Args:
        key: a typed key.
        weights: the weights of the rows, `(rows, ...)`.
        folds: the number of folds.

    >>> np.bincount(assign(jax.random.key(0), np.ones(10), folds=3)).tolist()
    [4, 3, 3]
    """
    has_weight = counted(weights)
    drawn = np.asarray(permutation(key, len(has_weight)))
    ranks = np.empty_like(drawn)
    ranks[np.lexsort((drawn, ~has_weight))] = np.arange(len(drawn))
    return jnp.asarray(ranks % folds)


def counted(weights: Any) -> np.ndarray:
    """Return which rows have a positive weight, `(rows,)`."""
    weights = np.asarray(weights)
    has_weight: np.ndarray = (weights > 0).reshape(len(weights), -1).any(1)
    return has_weight


class Folds(NamedTuple):
    """The division of the rows into folds, and the map from preprocessed inputs to the inputs of each fold.

    Attributes:
        of_row: the fold that holds out each row, `(rows,)`.
        preprocess: the map from raw features for each fold, `(folds, ...)`.
        change: what to subtract from preprocessed inputs, what to divide them by, and what to replace missing ones
            with, `(folds, 1, ...)` each; None if nothing was standardised, filled or encoded.
        target_change: what to subtract from standardised targets, and what to divide them by,
            `(folds, 1, ...)` each; None if they were not standardised.
    """

    of_row: Array
    preprocess: Preprocess
    change: tuple[Array, Array, Array | None] | None
    target_change: tuple[Array, Array] | None = None

    @classmethod
    def of(cls, data: Batch, preprocess: Preprocess, of_row: Array, count: int) -> "Folds":
        """Measure the training rows of each fold.

        Rows of weight zero are ignored. A feature that is missing from all training rows of a fold, an indicator that
        is never set in them, and the column of a category that does not occur in them are zero throughout the fold.

        Args:
            data: preprocessed data, without a held-out split.
            preprocess: the map by which they were preprocessed.
            of_row: the fold that holds out each row, `(rows,)`.
            count: the number of folds.

        Raises:
            ValueError: for features whose spread within a fold is lost in the rounding of the preprocessed inputs.
        """
        changes_inputs = preprocess.mean.ndim or preprocess.fills or preprocess.encoding
        if not changes_inputs and preprocess.target_mean is None:
            return cls(of_row, jax.tree.map(lambda leaf: jnp.stack([leaf] * count), preprocess), None)
        fold_of_row = np.asarray(of_row)
        weights = np.asarray(data.weights)
        has_weight = counted(weights)
        measured = [has_weight & (fold_of_row != fold) for fold in range(count)]
        lengths = np.asarray(data.inputs.lengths) if preprocess.by_step else None
        target_maps, target_change = _targets(np.asarray(data.targets), weights, lengths, measured, preprocess)
        if not changes_inputs:
            maps = [dataclasses.replace(preprocess, **targets) for targets in target_maps]
            return cls(of_row, jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps), None, target_change)
        if isinstance(data.inputs, Sequences):  # sequences, whose steps are measured like rows
            steps = real_steps(*map(np.asarray, data.inputs[:2]))
            inputs, measured = steps.values[:, None], [rows[steps.rows] for rows in measured]
        else:
            inputs = np.asarray(data.inputs)
        mean, scale = (np.broadcast_to(each, _shape(preprocess, inputs)) for each in preprocess.exact[:2])
        missing = _missing(inputs, preprocess)
        meanings = {name: getattr(preprocess, name) for name in MEANINGS}
        changes, maps = [], []
        for rows, targets in zip(measured, target_maps, strict=True):
            shift, ratio, fill = _measure(inputs, rows, missing, preprocess, scale)
            changes.append((shift, ratio, fill))
            features = None if fill is None else fill.shape[1]
            maps.append(
                Preprocess.of(
                    None if fill is None else mean[:, :features] + scale[:, :features] * fill,
                    mean + scale * shift,
                    np.where(ratio == _ABSENT, _ABSENT, scale * ratio),
                    preprocess.mean.dtype,
                    **meanings,
                    **targets,
                )
            )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *maps)
        change = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts), inputs.dtype), *changes)
        return cls(of_row, stacked, change, target_change)

    def inputs(self, inputs: Any, preprocess: Preprocess, fold: Array) -> Any:
        """Convert preprocessed inputs to what a fold's own preprocessing would produce; the fold may be traced."""
        if self.change is None:
            return inputs
        shift, ratio, fill = self.change
        if isinstance(inputs, Sequences):  # their padding is zero again when a step fills it
            return inputs._replace(values=(inputs.values - shift[fold]) / ratio[fold])
        if fill is not None and preprocess.indicators:
            at = jnp.array(preprocess.indicators)
            is_missing = inputs[:, fill.shape[2] :] > 0
            inputs = inputs.at[:, at].set(jnp.where(is_missing, fill[fold][:, at], inputs[:, at]))
        return (inputs - shift[fold]) / ratio[fold]

    def targets(self, targets: Array, fold: Array) -> Array:
        """Convert standardised targets to what a fold's own standardisation would produce.

        Other targets stay unchanged. The fold may be traced.
        """
        if self.target_change is None:
            return targets
        shift, ratio = self.target_change
        return (targets - shift[fold]) / ratio[fold]


def _targets(
    targets: np.ndarray,
    weights: np.ndarray,
    lengths: np.ndarray | None,
    measured: Sequence[np.ndarray],
    preprocess: Preprocess,
) -> tuple[list[dict[str, Any]], tuple[Array, Array] | None]:
    """Return the target fields of each fold's map, and the changes to standardised targets, as in `target_change`."""
    if preprocess.target_mean is None or preprocess.target_scale is None:
        return [{}] * len(measured), None
    mean, scale = (np.asarray(each, np.float64) for each in (preprocess.target_mean, preprocess.target_scale))
    exact, fields, changes = targets.astype(np.float64), [], []
    known = measure.has_weight(weights, exact.shape)
    for rows in measured:
        own = rows if rows.any() else np.ones_like(rows)
        shift, ratio = measure.spread(*over_steps(exact, own, known, lengths))
        if lengths is not None:
            shift, ratio = shift[None], ratio[None]
        ratio = np.where(ratio <= 1e-6, 1 / scale, ratio)  # constant up to rounding
        in_raw_units = {"target_mean": mean + scale * shift, "target_scale": scale * ratio}
        fields.append({name: jnp.asarray(each, preprocess.target_mean.dtype) for name, each in in_raw_units.items()})
        changes.append((shift, ratio))
    shifts, ratios = (jnp.asarray(np.stack(each), targets.dtype) for each in zip(*changes, strict=True))
    return fields, (shifts, ratios)


def _shape(preprocess: Preprocess, inputs: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the statistics, with scalars expanded to all features."""
    return preprocess.mean.shape if preprocess.mean.ndim else (1, *inputs.shape[1:])


def _missing(inputs: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return whether each value with an indicator was filled in, `(rows, indicators)`."""
    if not preprocess.indicators:
        return np.zeros((len(inputs), 0), bool)
    return inputs[:, -len(preprocess.indicators) :] > 0  # 0 or 1, minus a mean between them


def _measure(
    inputs: np.ndarray, rows: np.ndarray, missing: np.ndarray, preprocess: Preprocess, scale_of_all: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the mean, the scale and the medians of the given rows, in the units of the preprocessed inputs."""
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
    flags, categories = (np.flatnonzero(each) for each in encode.flags(preprocess.encoding))
    if len(categories):
        unknown[0, categories] = ~(x[:, categories] > 0).any(0)
    if not preprocess.mean.ndim:
        return np.zeros(shape), np.where(unknown, _ABSENT, 1.0), fill
    if not len(x):
        return np.zeros(shape), np.ones(shape), fill
    pooled = (0, *(i for i in range(1, x.ndim) if shape[i] == 1 != inputs.shape[i]))
    mean, scale = x.mean(pooled, keepdims=True), x.std(pooled, keepdims=True)
    mean[:, flags], scale[:, flags] = 0, 1
    step = np.abs(x).max(pooled, keepdims=True) * float(np.finfo(inputs.dtype).eps)  # the rounding step of the inputs
    is_constant = scale <= 1e-12 * np.abs(mean)
    is_lost = ~is_constant & (step > 1e-2 * scale)
    if is_lost.any():
        worst = int(is_lost.reshape(shape[-1 if preprocess.takes_sequences else 1], -1).any(1).argmax())
        names = encode.names(preprocess.encoding, preprocess.features) if preprocess.encoding else preprocess.features
        name = names[worst] if worst < len(names) else f"x{worst}"
        raise ValueError(
            f"folds: expected features that {inputs.dtype} can tell apart in the rows of each fold, got {name!r}, whose"
            " largest values are all in one fold; take its logarithm or clip it first"
        )
    return mean, np.where(unknown, _ABSENT, np.where(is_constant, 1 / scale_of_all, scale)), fill
