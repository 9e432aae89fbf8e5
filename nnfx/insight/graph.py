"""A plot of a dense network as a graph, with its forward values and backpropagated errors for one example."""

from typing import TYPE_CHECKING, Any

import numpy as np

from nnfx import checks
from nnfx.insight.backpropagation import Backpropagation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

POSITIVE, NEGATIVE, QUIET = "#0072B2", "#D55E00", "#BBBBBB"
"""Okabe and Ito's blue and vermilion, which people with colour blindness can tell apart."""
LABELLED = 40
"""The largest number of edges between two layers that are labelled with numbers."""
RADIUS, APART = 0.23, 2.6
"""The size of a node, and the distance between columns, in units of the distance between rows."""


def draw(found: Backpropagation, example: int = 0) -> "Figure":
    """Plot a network as a graph: values in the nodes, errors below the nodes, weights and gradients on the edges.

    The width of an edge shows the magnitude of this example's contribution to the gradient of the edge's weight,
    `|xᵢ δⱼ|`, and its colour shows the contribution's sign. The plot is legible for a few layers of a few units.

    Args:
        found: the result of `nnfx.insight.backpropagation.lay_open`.
        example: the index of the example to plot, within the batch.

    Returns:
        A Matplotlib figure, for the caller to save or show.

    Raises:
        ValueError: for an example out of range.
        ModuleNotFoundError: if Matplotlib is not installed.
    """
    checks.number("example", example, minimum=0, below=len(found.losses))
    example = int(example)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib: required to plot, but not installed: pip install 'nnfx[experiments]'"
        ) from error
    columns = [np.asarray(found.layers[0].inputs[example])]
    columns += [np.asarray(layer.outputs[example]) for layer in found.layers]
    width, height = APART * (len(columns) - 1) + 1.2, max(map(len, columns)) + 1.0
    figure = Figure(figsize=(1.1 * width, 1.1 * height + 0.8), layout="constrained")
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.set(aspect="equal", xlim=(-0.6, width - 0.6), ylim=(-height / 2, height / 2))
    contributions = [_contributions(found, number, example) for number in range(len(found.layers))]
    largest = max(float(np.abs(each).max()) for each in contributions) or 1.0
    names = ["inputs", *(layer.name for layer in found.layers)]
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        axis.text(APART * number, height / 2 - 0.15, name, ha="center", va="top", fontsize=9, weight="bold")
        if number == 0:
            _nodes(axis, 0, column, [])
            continue
        layer = found.layers[number - 1]
        _edges(axis, number - 1, np.asarray(layer.kernel), contributions[number - 1], largest)
        deltas = _by_unit(np.asarray(layer.deltas[example]), len(column))
        back = zip(np.asarray(layer.errors[example]), deltas, strict=True)
        _nodes(axis, number, column, [f"∂L/∂h {_short(error)}\nδ {_short(delta)}" for error, delta in back])
    axis.set_title(
        f"example {example}, whose loss is {float(found.losses[example]):.4g}: h forward within the nodes, and back"
        " below them\n∂L/∂h and δ = ∂L/∂z; on the edges W : xδ, its part of ∂L/∂W, blue where positive, orange where"
        " negative",
        fontsize=9,
    )
    return figure


def _short(number: float) -> str:
    return f"{number:.2g}".replace("-", "−")


def _by_unit(deltas: np.ndarray, units: int) -> np.ndarray:
    """Return the sum over the maxout pieces of each unit; all but the largest piece are zero."""
    return deltas.reshape(units, -1).sum(1)


def _contributions(found: Backpropagation, number: int, example: int) -> np.ndarray:
    """Return the contribution of one example to the gradient of each edge, `xᵢ δⱼ`, `(inputs, units)`."""
    layer = found.layers[number]
    deltas = _by_unit(np.asarray(layer.deltas[example]), layer.outputs.shape[1])
    return np.outer(np.asarray(layer.inputs[example]), deltas)


def _place(column: int, row: int, rows: int) -> tuple[float, float]:
    return APART * column, (rows - 1) / 2 - row


def _edges(axis: "Axes", number: int, kernel: np.ndarray, contributions: np.ndarray, largest: float) -> None:
    """Plot the edges from one layer to the next, labelled with numbers if there are few edges."""
    rows, units = contributions.shape
    for i in range(rows):
        for j in range(units):
            (x0, y0), (x1, y1) = _place(number, i, rows), _place(number + 1, j, units)
            part = contributions[i, j]
            colour = QUIET if part == 0 else POSITIVE if part > 0 else NEGATIVE
            width = 0.5 + 4.5 * abs(part) / largest
            axis.plot([x0, x1], [y0, y1], color=colour, linewidth=width, alpha=0.75, zorder=1, solid_capstyle="round")
            if rows * units <= LABELLED and kernel.shape[1] == units:
                near = 0.3 + 0.16 * (i % 3)  # staggered, so that labels of crossing edges do not overlap
                axis.text(
                    x0 + near * (x1 - x0),
                    y0 + near * (y1 - y0),
                    f"{_short(kernel[i, j])} : {_short(part)}",
                    fontsize=6.5,
                    ha="center",
                    va="center",
                    rotation=float(np.degrees(np.arctan2(y1 - y0, x1 - x0))),
                    rotation_mode="anchor",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
                    zorder=2,
                )


def _nodes(axis: "Axes", column: int, values: np.ndarray, back: list[str]) -> None:
    """Plot the units of a layer, each with its value inside and its errors below."""
    from matplotlib.patches import Circle

    for row, value in enumerate(values):
        x, y = _place(column, row, len(values))
        axis.add_patch(Circle((x, y), RADIUS, facecolor="white", edgecolor="black", linewidth=1, zorder=3))
        axis.text(x, y, _short(value), ha="center", va="center", fontsize=8, zorder=4)
        if back:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            place: dict[str, Any] = {
                "ha": "center",
                "va": "top",
                "fontsize": 7,
                "color": "#444444",
                "bbox": box,
                "zorder": 4,
            }
            axis.text(x, y - RADIUS - 0.04, back[row], **place)
