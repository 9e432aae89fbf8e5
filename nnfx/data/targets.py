"""Preprocessing of targets: text becomes classes, classes get weights, and numbers are standardised."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nnfx import checks
from nnfx.data import measure
from nnfx.data.encode import text
from nnfx.data.sequences import real_steps

__all__ = ["as_classes", "class_factors", "over_steps", "standardized"]


def as_classes(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as integers, and the class names: first numbers, then text, both sorted.

    >>> as_classes(np.array(["dog", "cat", "dog"], object))
    (array([1, 0, 1]), ('cat', 'dog'))
    """
    known = sorted(set(labels), key=lambda value: (isinstance(value, str), value))
    classes = tuple(dict.fromkeys(map(text, known)))
    place = {name: i for i, name in enumerate(classes)}
    return np.array([place[text(label)] for label in labels]), classes


def class_factors(
    class_weight: Any, targets: np.ndarray, classes: Sequence[str], weights: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Return the factor by which to multiply the weight of each row, `(rows,)`.

    `"balanced"` gives `W / (C W_c)` to class c: W is the total weight of all training rows, W_c the total weight of
    training rows of class c, and C the number of classes that occur in them.

    Args:
        class_weight: `"balanced"`, or a factor for each class, keyed by its name or integer; 1 for other classes.
        targets: the class of each row, by position.
        classes: the names of the classes; empty if they are integers.
        weights: the weight of each row, `(rows,)`.
        train: the positions of the training rows.

    Raises:
        TypeError: for a class weight that is neither, and targets that are not classes.
        ValueError: for unknown classes, and factors that are negative or not finite.

    References:
        scikit-learn's `compute_class_weight`.
    """
    if targets.dtype.kind not in "iub" or targets.size != len(targets):
        raise TypeError(
            f"class_weight: expected one class per row as targets, integers or text, got {checks.describe(targets)}"
        )
    labels, of_row = np.unique(targets.reshape(-1).astype(int), return_inverse=True)
    if isinstance(class_weight, str):
        checks.choice("class_weight", class_weight, ("balanced",))
        totals = np.bincount(of_row[train], weights[train], len(labels))
        present = totals > 0
        factors = np.where(present, totals.sum() / (present.sum() * np.where(present, totals, 1)), 1.0)
        return factors[of_row]
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight: expected 'balanced' or a mapping from class to weight, got {checks.describe(class_weight)}"
        )
    known = {(classes[label] if classes else label): i for i, label in enumerate(labels.tolist())}
    factors = np.ones(len(labels))
    for name, value in class_weight.items():
        if (text(name) if classes else name) not in known:
            raise ValueError(f"class_weight: expected classes among {', '.join(map(repr, known))}, got {name!r}")
        checks.number(f"class_weight[{name!r}]", value, minimum=0)
        factors[known[text(name) if classes else name]] = value
    return factors[of_row]


def standardized(
    targets: np.ndarray, rows: np.ndarray, known: np.ndarray | None, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return standardised targets, and their mean and standard deviation over the given rows, `(1, ...)` each.

    Args:
        targets: `(rows, ...)`; or `(rows, time, ...)`, one at each step of a sequence.
        rows: the positions of the rows to measure.
        known: which targets to measure, of their shape; others, such as missing ones, are left out of the statistics.
            None for all.
        lengths: the number of real steps of each row, if the targets belong to steps; the mean and the deviation
            over all real steps are then `(1, 1, ...)`.

    Raises:
        TypeError: for targets that are not floats.
    """
    if not jnp.issubdtype(targets.dtype, np.floating):
        raise TypeError(
            f"standardize_targets: expected targets that are floats, got {checks.describe(targets)}; convert them"
            " with astype(float)"
        )
    exact = targets.astype(np.float64)
    mean, scale = measure.moments(*over_steps(exact, rows, known, lengths))
    if lengths is not None:
        mean, scale = mean[None], scale[None]
    return (exact - mean) / scale, mean, scale


def over_steps(
    targets: np.ndarray, rows: np.ndarray, known: np.ndarray | None, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the arguments of `measure.spread`, with the real steps of sequences as rows if there are lengths.

    >>> over_steps(np.array([[1.0, 9.0], [3.0, 4.0]]), np.array([1]), None, np.array([1, 2]))
    (array([1., 3., 4.]), array([1, 2]), None)
    """
    if lengths is None:
        return targets, rows, known
    steps = real_steps(targets, lengths)
    measured = np.isin(steps.rows, np.arange(len(targets))[rows])  # the rows may be positions or a mask
    return steps.values, np.flatnonzero(measured), None if known is None else real_steps(known, lengths).values
