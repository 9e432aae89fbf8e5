"""Code shared by experiments on images: predictions, confusion matrices, and the worst mistakes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.common import Results


class Predictions(NamedTuple):
    """A classifier's predictions for images on which it was not trained.

    Attributes:
        images: `(rows, height, width, channels)`, from 0 to 1.
        labels: the true classes, `(rows,)`.
        probabilities: `(rows, classes)`.
    """

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """The fraction of images whose most probable class is the true one."""
        return float((self.predicted == self.labels).mean())

    def confusion(self) -> np.ndarray:
        """Count how many images of each true class (row) were taken for each class (column)."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def worst(self) -> np.ndarray:
        """Return the rows of all mistakes, in ascending order of the true class's probability."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(self.probabilities[wrong, self.labels[wrong]], kind="stable")]


def mistakes_of(counts: np.ndarray) -> np.ndarray:
    """Return the percentage of each true class (row) taken for each other class (column); zero on the diagonal.

    >>> mistakes_of(np.array([[3, 1], [0, 5]])).tolist()
    [[0.0, 25.0], [0.0, 0.0]]
    """
    mistakes = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(mistakes, 0)
    return mistakes


def draw_confusion(axis: Axes, counts: np.ndarray, classes: Sequence[str], largest: float | None = None) -> Any:
    """Plot a confusion matrix; only mistakes are coloured, since the many correct predictions would dominate.

    Args:
        axis: where to plot.
        counts: images by true class (rows) and predicted class (columns).
        classes: the names of the classes.
        largest: the percentage of a class that gets the darkest colour; by default the largest percentage plotted.

    Returns:
        The plotted image, from which to make a colour bar; its values are percentages of the true class.
    """
    mistakes = mistakes_of(counts)
    is_right = np.eye(len(counts), dtype=bool)
    top = max(float(mistakes.max()) if largest is None else largest, 0.1)
    colours = mpl.colormaps["Blues"].with_extremes(bad="0.88")
    drawn = axis.imshow(np.where(is_right, np.nan, mistakes), cmap=colours, vmin=0, vmax=top)
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            is_dark = mistakes[true, predicted] > 0.6 * top
            axis.text(predicted, true, str(count), ha="center", va="center", color="white" if is_dark else "black")
    slanted: dict[str, Any] = {} if max(map(len, classes)) < 3 else {"rotation": 40, "ha": "right"}
    axis.set_xticks(range(len(classes)), classes, **slanted)
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(visible=False)
    return drawn


def draw_mistakes(
    results: Results, predictions: Predictions, classes: Sequence[str], among: str, shown: int = 24, columns: int = 8
) -> None:
    """Plot the worst mistakes, each with the predicted and the true class and the probabilities of both.

    Args:
        results: where the figure is saved, as `worst_mistakes.png`.
        predictions: the predictions whose mistakes are plotted.
        classes: the names of the classes.
        among: what the images are, such as "test images".
        shown: the largest number of mistakes to plot.
        columns: how many to plot side by side.
    """
    mistakes = predictions.worst()
    rows = max(1, -(-min(shown, len(mistakes)) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.55 * columns, 1.95 * rows + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, mistakes[:shown], strict=False):
        axis.imshow(predictions.images[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        lines = [
            f"{word}: {classes[label]}, {predictions.probabilities[row, label]:.1%}"
            for word, label in (("said", predictions.predicted[row]), ("true", predictions.labels[row]))
        ]
        axis.set_title("\n".join(lines), fontsize=8)
    chosen = f"the {shown} worst of {len(mistakes):,}" if len(mistakes) > shown else f"all {len(mistakes)}"
    figure.suptitle(f"{chosen} mistakes among {len(predictions.labels):,} {among}, the worst first", fontsize=11)
    results.figure("worst_mistakes", figure)
