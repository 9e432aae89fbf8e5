"""Metrics: measures of the quality of predictions, other than the loss.

Per-example metrics, `(outputs, targets) -> (batch,)`, are averaged over all rows. Overall metrics, `(outputs, targets,
weights) -> scalar`, such as areas under curves, are computed once from all rows; `overall` marks your own functions
as overall metrics. In `nnfx.fit(..., metrics=["accuracy", "roc_auc"])`, each row with positive weight counts once;
`weighted` makes rows count by their weight.

`nnfx.metrics.detection` compares boxes: COCO's average precision and recall for object detection.
"""

from nnfx.metrics import detection
from nnfx.metrics.counts import balanced_accuracy, confusion_matrix, f1, precision, recall
from nnfx.metrics.errors import r2, root_mean_square_error
from nnfx.metrics.marks import overall, weighted
from nnfx.metrics.names import get
from nnfx.metrics.per_example import (
    accuracy,
    binary_accuracy,
    brier,
    log_loss,
    mean_absolute_percentage_error,
)
from nnfx.metrics.ranks import average_precision, roc_auc
from nnfx.metrics.tokens import bits_per_token, perplexity

__all__ = [
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "binary_accuracy",
    "bits_per_token",
    "brier",
    "confusion_matrix",
    "detection",
    "f1",
    "get",
    "log_loss",
    "mean_absolute_percentage_error",
    "overall",
    "perplexity",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "root_mean_square_error",
    "weighted",
]
