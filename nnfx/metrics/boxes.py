"""Bounding boxes of objects and detections, and the overlap of boxes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from nnfx import arrays, checks

__all__ = ["Detections", "Objects", "intersection_over_union"]


class Objects(NamedTuple):
    """The objects in an image.

    Attributes:
        boxes: the corners of the boxes, `(objects, 4)`, floats.
        labels: the class of each object, integers `(objects,)`.
        crowd: whether each box contains a crowd, `(objects,)`; False by default. A crowd need not be found, and any
            number of detections within it count neither as right nor as wrong.
        areas: the area of each object, which determines its size range, `(objects,)`; by default, the area of its box.
            COCO uses the areas of its segmentation masks.
    """

    boxes: ArrayLike
    labels: ArrayLike
    crowd: ArrayLike | None = None
    areas: ArrayLike | None = None


class Detections(NamedTuple):
    """The detections in an image.

    Attributes:
        boxes: the corners of the boxes, `(detections, 4)`, floats.
        labels: the class of each detection, integers `(detections,)`.
        scores: the score of each detection, `(detections,)`; larger means more certain.
    """

    boxes: ArrayLike
    labels: ArrayLike
    scores: ArrayLike


def intersection_over_union(left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """Return the intersection of each pair of boxes divided by their union (IoU); 0 for boxes without an area.

    Args:
        left: boxes, `(left, 4)`.
        right: boxes, `(right, 4)`.

    Returns:
        Numbers between 0 and 1, `(left, right)`, float64.

    Raises:
        TypeError: for anything other than numbers.
        ValueError: for other shapes, numbers that are not finite, or boxes whose low corner exceeds the high one.

    Example:
        >>> intersection_over_union([[0, 0, 2, 2]], [[0, 1, 2, 3], [0, 0, 2, 2], [5, 5, 6, 6]]).round(3)
        array([[0.333, 1.   , 0.   ]])
    """
    left, right = _boxes("left", left), _boxes("right", right)
    return overlap(left, right, np.zeros(len(right), bool))


def overlap(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return intersection over union, or for a crowd intersection over the detection's area, `(found, truth)`."""
    sides = np.minimum(found[:, None, 2:], truth[None, :, 2:]) - np.maximum(found[:, None, :2], truth[None, :, :2])
    both = sides.clip(0).prod(-1)
    areas = areas_of(found)[:, None]
    either = np.where(crowd, areas, areas + areas_of(truth) - both)
    return both / np.where(either > 0, either, 1)


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes `(boxes, 4)`."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def checked_images(found: Iterable[Detections], truth: Iterable[Objects]) -> list[tuple[Any, Any]]:
    """Return the detections and objects of each image as NumPy arrays, after checking them.

    Raises:
        TypeError: for images that are not `Detections` and `Objects`, or arrays that are not numbers.
        ValueError: for different numbers of images, and for boxes, labels, scores, crowds or areas that do not match.
    """
    found, truth = list(found), list(truth)
    if len(found) != len(truth):
        raise ValueError(f"found: expected the detections of each of the {len(truth)} images, got {len(found)}")
    return [
        (_detections(f"found[{i}]", detections), _objects(f"truth[{i}]", objects))
        for i, (detections, objects) in enumerate(zip(found, truth, strict=True))
    ]


def _detections(name: str, given: Any) -> Detections:
    if not isinstance(given, Detections):
        raise TypeError(f"{name}: expected Detections, got {checks.describe(given)}")
    boxes = _boxes(f"{name}.boxes", given.boxes)
    return Detections(
        boxes,
        _labels(f"{name}.labels", given.labels, len(boxes)),
        _vector(f"{name}.scores", given.scores, len(boxes)),
    )


def _objects(name: str, given: Any) -> Objects:
    if not isinstance(given, Objects):
        raise TypeError(f"{name}: expected Objects, got {checks.describe(given)}")
    boxes = _boxes(f"{name}.boxes", given.boxes)
    crowd = np.zeros(len(boxes)) if given.crowd is None else given.crowd
    areas = areas_of(boxes) if given.areas is None else given.areas
    return Objects(
        boxes,
        _labels(f"{name}.labels", given.labels, len(boxes)),
        _vector(f"{name}.crowd", crowd, len(boxes)) != 0,
        _vector(f"{name}.areas", areas, len(boxes)),
    )


def _boxes(name: str, value: Any) -> np.ndarray:
    boxes = arrays.as_numpy(name, value).astype(np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected (boxes, 4), got {checks.describe(boxes)}")
    checks.finite(name, boxes)
    is_wrong = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise ValueError(f"{name}: expected corners (low, low, high, high), got {boxes[first].tolist()} at {first}")
    return boxes


def _vector(name: str, value: Any, rows: int) -> np.ndarray:
    vector = arrays.as_numpy(name, value).astype(np.float64)
    if vector.shape != (rows,):
        raise ValueError(f"{name}: expected one for each box, ({rows},), got {checks.describe(vector)}")
    checks.finite(name, vector)
    return vector


def _labels(name: str, value: Any, rows: int) -> np.ndarray:
    labels = _vector(name, value, rows)
    if (is_part := labels % 1 != 0).any():
        raise ValueError(f"{name}: expected integers, got {labels[is_part][0]:g}")
    return labels.astype(np.int64)
