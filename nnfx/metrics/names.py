"""Look-up of metrics by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnfx import checks, losses
from nnfx.metrics import counts, errors, per_example, ranks, tokens
from nnfx.types import Array

Metric = Callable[..., Array]
ByName = Mapping[str, Metric | str] | Sequence[Metric | str] | Metric | str
"""Metrics as passed to `nnfx.fit`: one or more functions or names, or a mapping from names of your choice to these."""

NAMED: dict[str, Metric] = {
    function.__name__: function
    for function in (
        per_example.accuracy,
        ranks.average_precision,
        counts.balanced_accuracy,
        per_example.binary_accuracy,
        tokens.bits_per_token,
        per_example.brier,
        counts.f1,
        per_example.log_loss,
        losses.mean_absolute_error,
        per_example.mean_absolute_percentage_error,
        losses.mean_square_error,
        tokens.perplexity,
        counts.precision,
        errors.r2,
        counts.recall,
        ranks.roc_auc,
        errors.root_mean_square_error,
    )
}


def get(name: str) -> Metric:
    """Return a metric by name.

    Args:
        name: the name of a metric in `nnfx.metrics`, or of an error in `nnfx.losses`, such as `"mean_square_error"`.

    Raises:
        ValueError: for an unknown name; the error lists the known ones.

    Example:
        >>> get("roc_auc").__name__
        'roc_auc'
    """
    if name not in NAMED:
        raise ValueError(f"metrics: expected a function, or one of {', '.join(NAMED)}, got {name!r}")
    return NAMED[name]


def by_name(metrics: Any) -> dict[str, Any]:
    """Convert metrics as passed to `nnfx.fit` to a dictionary by name.

    Args:
        metrics: a function or the name of a metric; a sequence or a mapping of these; or None.

    Raises:
        TypeError: for metrics of another type, and for functions without a name that are not in a mapping.
        ValueError: for unknown names, and names that occur twice.

    Example:
        >>> sorted(by_name(["accuracy", losses.mean_absolute_error]))
        ['accuracy', 'mean_absolute_error']
        >>> list(by_name({"auc": "roc_auc"}))
        ['auc']
    """
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        return {name: get(metric) if isinstance(metric, str) else metric for name, metric in metrics.items()}
    if isinstance(metrics, str) or callable(metrics):
        metrics = (metrics,)
    if not isinstance(metrics, Sequence):
        raise TypeError(
            f'metrics: expected functions or names, such as {{"auc": nnfx.metrics.roc_auc}} or ["accuracy"], got'
            f" {checks.describe(metrics)}"
        )
    found: dict[str, Any] = {}
    for metric in metrics:
        function = get(metric) if isinstance(metric, str) else metric
        name = getattr(function, "__name__", None)
        if not callable(function) or name in (None, "<lambda>"):
            raise TypeError(
                f"metrics: expected functions with a name, or a mapping from names to functions, got"
                f" {checks.describe(function)}"
            )
        if name in found:
            raise ValueError(f"metrics: expected unique names, got {name!r} twice")
        found[str(name)] = function
    return found
