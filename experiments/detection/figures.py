"""Figures of the objects found: scenes, precision against recall, and the network's output for every window."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from experiments.common import BLUE, GREY, ORANGE, SKY, Results
from experiments.detection import detector
from experiments.detection.boxes import Curve, Found, Score, match
from experiments.detection.scenes import SIZE, Scene
from nnfx.types import Variables

SHOWN = 8
"""The number of scenes plotted."""
WITH_WRONG = 2
"""The number of these scenes that are chosen because of a wrong detection."""


def draw_scenes(
    results: Results, finds: list[Found], truth: Scene, is_right: list[np.ndarray], classes: tuple[str, ...]
) -> None:
    """Plot the first test scenes, and the first other scenes with wrong detections, with true and detected boxes."""
    first = list(range(min(SHOWN - WITH_WRONG, len(finds))))
    wrong = [i for i in range(len(first), len(finds)) if not is_right[i].all()]
    figure, axes = plt.subplots(2, SHOWN // 2, figsize=(13, 7.2))
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis, i in zip(axes.ravel(), first + wrong[:WITH_WRONG], strict=False):
        draw_picture(axis, truth.picture[i])
        axis.set(ylim=(SIZE, -7))  # room for names above boxes at the top
        draw_boxes(axis, truth.boxes[i], "white", linestyle=":", linewidth=1.8)
        matched = match(finds[i], truth.boxes[i], truth.names[i])
        for k in np.setdiff1d(np.arange(len(truth.names[i])), matched):
            write(axis, truth.boxes[i][k], f"{classes[truth.names[i][k]]} missed", "white", below=True)
        for box, name, votes, is_hit in zip(*finds[i], is_right[i], strict=True):
            draw_boxes(axis, box[None], SKY if is_hit else ORANGE, linewidth=1.4 if is_hit else 2.6)
            write(axis, box, f"{classes[name]} ({votes:.1f})" + ("" if is_hit else " ✗"), SKY if is_hit else ORANGE)
    handles = [
        Line2D([], [], color="black", linestyle=":", label="true (white in the pictures)"),
        Line2D([], [], color=SKY, linewidth=2, label="found, name and box right"),
        Line2D([], [], color=ORANGE, linewidth=3, label="found, wrong (✗)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(
        f"The first {len(first)} test scenes, and the first others with wrong finds: the names found (votes)",
        fontsize=11,
    )
    results.figure("scenes", figure)


def write(axis: Axes, box: np.ndarray, text: str, colour: str, below: bool = False) -> None:
    """Write text above or below a box."""
    axis.text(
        float(np.clip(box[1], 0, SIZE - 20)),
        min(box[2] + 1, SIZE - 5) if below else box[0] - 1,
        text,
        color=colour,
        fontsize=8,
        fontweight="bold",
        va="top" if below else "bottom",
        bbox={"facecolor": "black", "alpha": 0.65, "pad": 0.6, "linewidth": 0},
    )


def draw_picture(axis: Axes, picture: np.ndarray) -> None:
    """Plot a picture with the edges of its pixels at integers, as in the coordinates of boxes."""
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(0, SIZE, SIZE, 0))


def draw_boxes(axis: Axes, boxes: np.ndarray, colour: str, **style: Any) -> None:
    """Plot the outlines of boxes."""
    for top, left, bottom, right_edge in boxes:
        axis.add_patch(Rectangle((left, top), right_edge - left, bottom - top, fill=False, edgecolor=colour, **style))


def draw_curves(
    results: Results, curves: dict[str, Curve], scores: dict[str, Score], by_name: dict[str, Score]
) -> None:
    """Plot precision against recall with the threshold marked, and precision and recall for each class."""
    figure, (left, right_axis) = plt.subplots(1, 2, figsize=(11, 4.6))
    panels = [left]
    if min(min(scores[name].recall, scores[name].precision) for name in curves) > 0.85:
        panels.append(left.inset_axes((0.1, 0.36, 0.55, 0.5), xlim=(0.85, 1), ylim=(0.85, 1)))
        left.indicate_inset_zoom(panels[1], edgecolor="black")
    for axis in panels:
        for (name, each), colour, style in zip(curves.items(), (BLUE, GREY, ORANGE), ("-", ":", "--"), strict=True):
            axis.plot(each.recall, each.precision, style, color=colour, label=name)
            axis.plot(scores[name].recall, scores[name].precision, "o", color=colour, markeredgecolor="black")
    left.plot([], [], "o", color="white", markeredgecolor="black", label="at the threshold chosen on validation scenes")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title="as the threshold falls")
    left.legend(loc="lower left")
    places = np.arange(len(by_name))
    precisions, recalls = ([getattr(each, part) for each in by_name.values()] for part in ("precision", "recall"))
    right_axis.plot(places - 0.12, precisions, "s", color=BLUE, label="precision", markersize=7)
    right_axis.plot(places + 0.12, recalls, "o", color=ORANGE, markeredgecolor="black", label="recall", markersize=7)
    labels = [f"{name}\n({each.true})" for name, each in by_name.items()]
    right_axis.set_xticks(places, labels, rotation=45 if max(map(len, by_name)) > 3 else 0)
    lowest = min(precisions + recalls)
    right_axis.set(
        xlabel="class (number in the test scenes)",
        ylim=(min(0.7, lowest - 0.02), 1.02),
        title="each class, at the threshold",
    )
    right_axis.legend(loc="lower left", ncols=2)
    figure.suptitle(
        f"Objects found in scenes: F1 = {scores['test'].f1:.3f} on the test scenes, name and box (IoU ≥ 0.5) required",
        fontsize=11,
    )
    results.figure("precision_recall", figure)


def draw_maps(results: Results, width: int, variables: Variables, truth: Scene, classes: tuple[str, ...]) -> None:
    """Plot the probability of the tallest object's name in every window of the fullest scene among those shown."""
    scene = int(np.argmax([len(names) for names in truth.names[:SHOWN]]))
    boxes, names = truth.boxes[scene], truth.names[scene]
    name = int(names[np.argmax(boxes[:, 2] - boxes[:, 0])])
    probabilities = detector.slide(width, variables, jnp.asarray(truth.picture[scene][None])).probabilities[0, :, name]
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.6))
    draw_picture(axes[0, 0], truth.picture[scene])
    axes[0, 0].set(title="the scene")
    start = 0
    for axis, side, height in zip(axes.ravel()[1:], detector.SIDES, detector.HEIGHTS, strict=False):
        steps = detector.windows_along(side)
        maps = np.asarray(probabilities[start : start + steps**2]).reshape(steps, steps)
        start += steps**2
        ends = np.array([-0.5, steps - 0.5]) * detector.STRIDE
        low, high = detector.middles_of_windows(ends, side / SIZE)
        shown = axis.imshow(maps, cmap="viridis", vmin=0, vmax=1, extent=(low, high, high, low))
        axis.set(title=f"for objects {height:.0f} pixels high", facecolor="black")
    for axis in axes.ravel()[:-1]:
        draw_boxes(axis, boxes[names != name], "white", linestyle=":", linewidth=1.2)
        draw_boxes(axis, boxes[names == name], ORANGE, linewidth=2)
        axis.set(xlim=(0, SIZE), ylim=(SIZE, 0))
        axis.grid(visible=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("pixels")
    handles = [
        Line2D([], [], color=ORANGE, linewidth=2, label=f"true {classes[name]}"),
        Line2D([], [], color="black", linestyle=":", label="another object (white here)"),
        Patch(color="black", label="beyond the centre of the last window"),
    ]
    axes[-1, -1].set_axis_off()
    axes[-1, -1].legend(handles=handles, loc="center")
    figure.colorbar(shown, ax=axes, label=f"probability of {classes[name]} at the centre of a window", shrink=0.8)
    figure.suptitle(f"Where the network sees {classes[name]} in a test scene: one pass for each scale", fontsize=11)
    results.figure("score_maps", figure)
