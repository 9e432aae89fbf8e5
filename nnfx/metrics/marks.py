"""Marks on metrics: whether they are computed once from all rows, and whether rows count by their weight."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from nnfx.types import Array

__all__ = ["counted", "is_counted", "is_overall", "overall", "weighted"]

Function = TypeVar("Function", bound=Callable[..., Any])


def overall(metric: Function) -> Function:
    """Mark a metric as computed from all rows together, `(outputs, targets, weights) -> scalar`, such as an ROC AUC.

    A run computes an overall metric once per epoch, from the outputs for all held-out rows; it is not computed for the
    training rows, since the parameters change from batch to batch. Rows of weight zero must be left out.

    Example:
        >>> import jax.numpy as jnp
        >>> @overall
        ... def largest_error(outputs, targets, weights):
        ...     return jnp.where(weights > 0, jnp.abs(outputs[:, 0] - targets), 0).max()
        >>> is_overall(largest_error)
        True
    """
    metric.is_overall = True  # type: ignore[attr-defined]
    return metric


def weighted(metric: Callable[..., Array]) -> Callable[..., Array]:
    """Return a copy of a metric in which a run's rows count by their weight; by default, each row counts once.

    Example:
        >>> import nnfx
        >>> by_weight = weighted(nnfx.metrics.accuracy)  # as in nnfx.fit(..., metrics={"accuracy": by_weight})
        >>> is_counted(counted(nnfx.metrics.accuracy)), is_counted(counted(by_weight))
        (True, False)
    """
    return _marked(metric, "is_weighted")


def counted(metric: Callable[..., Array]) -> Callable[..., Array]:
    """Return a metric in which each row with positive weight counts once, unless the metric is marked by `weighted`."""
    return metric if _has(metric, "is_weighted") else _marked(metric, "is_counted")


def is_overall(metric: Callable[..., Any]) -> bool:
    """Return whether a metric is computed once from all rows."""
    return _has(metric, "is_overall")


def is_counted(metric: Callable[..., Any]) -> bool:
    """Return whether each row with positive weight counts once in a metric."""
    return _has(metric, "is_counted")


def _marked(metric: Callable[..., Array], mark: str) -> Callable[..., Array]:
    """Return a copy of a metric with one more mark."""

    @functools.wraps(metric)
    def marked(*arguments: Any, **numbers: Any) -> Array:
        return metric(*arguments, **numbers)

    marked.__dict__.update({"is_overall": is_overall(metric), mark: True})
    return marked


def _has(metric: Any, mark: str) -> bool:
    while isinstance(metric, functools.partial):
        metric = metric.func
    return bool(getattr(metric, mark, False))
