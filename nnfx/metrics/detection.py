"""Average precision and recall for object detection, as defined by the COCO benchmark.

A box is given by its corners, `(low, low, high, high)`: either left, top, right, bottom or top, left, bottom, right, in
the same order for all boxes. COCO's own files contain `(left, top, width, height)`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nnfx import checks
from nnfx.metrics.boxes import Detections, Objects, areas_of, checked_images, intersection_over_union, overlap

__all__ = [
    "AREAS",
    "RECALLS",
    "THRESHOLDS",
    "Detections",
    "Evaluation",
    "Objects",
    "evaluate",
    "intersection_over_union",
]

THRESHOLDS = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
"""The thresholds on intersection over union at which COCO evaluates detections: 0.50, 0.55, …, 0.95."""
RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO evaluates the precision: 0, 0.01, …, 1."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of areas in square pixels, with both ends included."""


class Evaluation(NamedTuple):
    """Precision and recall by threshold, class, area range and limit, as in COCO; NaN where a class has no objects.

    Attributes:
        precision: the best precision at each recall or above; 0 beyond the largest recall;
            `(thresholds, recalls, classes, areas, limits)`, float64.
        recall: the largest recall, `(thresholds, classes, areas, limits)`, float64.
        thresholds: the minimum intersections over union, in ascending order.
        labels: the classes that occur among objects or detections, in ascending order.
        areas: the names of the area ranges.
        limits: the maximum numbers of detections per class and image, in ascending order.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: tuple[float, ...]
    labels: tuple[int, ...]
    areas: tuple[str, ...]
    limits: tuple[int, ...]

    def average_precision(
        self, threshold: float | None = None, *, area: str = "all", limit: int | None = None, label: int | None = None
    ) -> float:
        """The mean of the precision over recalls, classes and thresholds: COCO's AP, often called mAP.

        Args:
            threshold: a single threshold, such as 0.5 for AP50; by default, the mean over all thresholds.
            area: the name of an area range.
            limit: the maximum number of detections per class and image; the largest limit by default.
            label: a single class; by default, the mean over all classes that have objects.

        Returns:
            A number between 0 and 1; NaN if no class has objects in the area range.

        Raises:
            ValueError: for a threshold, area, limit or label that was not evaluated.

        Example:
            >>> truth = [Objects([[0, 0, 10, 10], [20, 20, 30, 30]], [3, 3])]
            >>> found = [Detections([[0, 0, 10, 10], [20, 20, 30, 27]], [3, 3], [0.9, 0.8])]
            >>> evaluation = evaluate(found, truth)
            >>> evaluation.average_precision(0.5), round(evaluation.average_precision(0.75), 4)
            (1.0, 0.505)
        """
        return _mean(self._selected(self.precision, threshold, area, limit, label))

    def average_recall(
        self, threshold: float | None = None, *, area: str = "all", limit: int | None = None, label: int | None = None
    ) -> float:
        """The mean of the largest recall over classes and thresholds, COCO's AR; arguments as for `average_precision`.

        Example:
            >>> truth = [Objects([[0, 0, 10, 10], [20, 20, 30, 30]], [3, 3])]
            >>> evaluate([Detections([[0, 0, 10, 10]], [3], [0.9])], truth).average_recall()
            0.5
        """
        return _mean(self._selected(self.recall, threshold, area, limit, label))

    def summary(self) -> dict[str, float]:
        """Return the scores that COCO reports: AP, AP50, AP75, and AP by area; AR by limit, and AR by area.

        AP50, AP75 and scores by area are left out if their threshold or area range was not evaluated.

        Example:
            >>> truth = [Objects([[0, 0, 10, 10], [20, 20, 80, 80]], [3, 5])]
            >>> summary = evaluate([Detections([[0, 0, 10, 10]], [3], [0.9])], truth).summary()
            >>> summary["AP"], summary["AP_small"], summary["AP_medium"], summary["AP_large"]
            (0.5, 1.0, 0.0, nan)
        """
        sizes = [area for area in self.areas if area != "all"]
        at = {f"AP{100 * each:.0f}": each for each in (0.5, 0.75) if np.isclose(each, self.thresholds).any()}
        return {
            "AP": self.average_precision(),
            **{name: self.average_precision(threshold) for name, threshold in at.items()},
            **{f"AP_{area}": self.average_precision(area=area) for area in sizes},
            **{f"AR_{limit}": self.average_recall(limit=limit) for limit in self.limits},
            **{f"AR_{area}": self.average_recall(area=area) for area in sizes},
        }

    def _selected(
        self, values: np.ndarray, threshold: float | None, area: str, limit: int | None, label: int | None
    ) -> np.ndarray:
        """Return the requested entries of an array `(thresholds, ..., classes, areas, limits)`."""
        checks.choice("area", area, self.areas)
        values = values[..., self.areas.index(area), -1 if limit is None else _place("limit", limit, self.limits)]
        if label is not None:
            values = values[..., _place("label", label, self.labels)]
        return values if threshold is None else values[_place("threshold", threshold, self.thresholds)]


def evaluate(
    found: Iterable[Detections],
    truth: Iterable[Objects],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    areas: Mapping[str, tuple[float, float]] = AREAS,
    limits: Sequence[int] = (1, 10, 100),
) -> Evaluation:
    """Evaluate detections against the true objects, image by image, as COCO does.

    In descending order of score, each detection is matched to the unmatched object of its class and image with the
    largest intersection over union (in a tie, the last) that is at least the threshold; an unmatched detection is
    wrong. Over all images, `precision = right / (right + wrong)` and `recall = right / objects` after each detection.
    The precision at recall `r = 0, 0.01, …, 1` is the best precision at any recall `≥ r`, and its mean over r is the
    average precision.

    For each area range, objects outside the range need not be found. Detections matched to such an object, and
    unmatched detections outside the range, count neither as right nor as wrong.

    Everything is computed by NumPy on the host, in float64.

    Args:
        found: the detections in each image. Among equal scores, earlier images and positions come first.
        truth: the objects in each image.
        thresholds: the minimum intersections over union, above 0 and at most 1.
        areas: area ranges by name, with both ends included; one of them is `"all"`.
        limits: the maximum numbers of detections per class and image; those with the highest scores count.

    Returns:
        Precision and recall by threshold, class, area range and limit, with methods that average them.

    Raises:
        TypeError: for images that are not `Detections` and `Objects`, or arrays that are not numbers.
        ValueError: for different numbers of images, shapes that do not match, boxes whose low corner exceeds the
            high one, labels that are not integers, numbers that are not finite; and for thresholds, areas or limits out
            of bounds.

    Example:
        >>> truth = [Objects([[0, 0, 10, 10]], [0]), Objects([[5, 5, 9, 9], [20, 0, 40, 30]], [0, 1])]
        >>> found = [Detections([[0, 0, 10, 10]], [0], [0.9]), Detections([[20, 0, 40, 28]], [1], [0.8])]
        >>> evaluation = evaluate(found, truth)
        >>> {name: round(value, 3) for name, value in evaluation.summary().items() if name in ("AP", "AP50", "AR_100")}
        {'AP': 0.702, 'AP50': 0.752, 'AR_100': 0.7}
        >>> round(evaluation.average_precision(label=0), 3)
        0.505

    References:
        Lin et al., *Microsoft COCO: common objects in context*, ECCV 2014, and the evaluation code of its authors,
        pycocotools.
    """
    thresholds, ranges, limits = _checked_options(thresholds, areas, limits)
    pairs = checked_images(found, truth)
    levels = np.minimum(thresholds, 1 - 1e-10)  # rounding must not keep a box from matching itself
    by_label: dict[int, list[_Judged]] = defaultdict(list)
    for detections, objects in pairs:
        for label in np.union1d(detections.labels, objects.labels):
            judged = _judged(_of(label, detections), _of(label, objects), levels, ranges, limits[-1])
            by_label[int(label)].append(judged)
    labels = sorted(by_label)
    precision = np.full((len(thresholds), len(RECALLS), len(labels), len(areas), len(limits)), np.nan)
    recall = np.full((len(thresholds), len(labels), len(areas), len(limits)), np.nan)
    for k, label in enumerate(labels):
        for m, limit in enumerate(limits):
            precision[:, :, k, :, m], recall[:, k, :, m] = _precision_recall(by_label[label], limit)
    return Evaluation(precision, recall, thresholds, tuple(labels), tuple(areas), limits)


class _Judged(NamedTuple):
    """The evaluated detections of one class in one image, in descending order of score.

    Attributes:
        scores: the confidence in each detection, `(detections,)`.
        right: whether each detection counts as right, `(areas, thresholds, detections)`.
        wrong: whether each detection counts as wrong, of the same shape; detections that are neither are ignored.
        objects: the number of objects to be found, `(areas,)`.
    """

    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: np.ndarray


def _judged(found: Any, truth: Any, thresholds: np.ndarray, ranges: np.ndarray, limit: int) -> _Judged:
    order = np.argsort(-found.scores, kind="stable")[:limit]
    boxes = found.boxes[order]
    truth = type(truth)(*(part[::-1] for part in truth))  # in a tie of overlaps, COCO takes the last object
    low, high = ranges[:, :1], ranges[:, 1:]
    ignored = truth.crowd | (truth.areas < low) | (truth.areas > high)
    is_taking, is_void = _taken(overlap(boxes, truth.boxes, truth.crowd), truth.crowd, ignored, thresholds)
    is_void |= ~is_taking & ((areas_of(boxes) < low) | (areas_of(boxes) > high))[:, None]
    return _Judged(found.scores[order], is_taking & ~is_void, ~is_taking & ~is_void, (~ignored).sum(1))


def _taken(
    shared: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each detection is matched, and whether to an ignored object, as `(areas, thresholds, detections)`.

    Args:
        shared: the overlap of each detection with each object, `(detections, objects)`.
        crowd: which objects any number of detections may match, `(objects,)`.
        ignored: which objects only match detections that fit no other object, `(areas, objects)`.
        thresholds: the minimum overlaps.
    """
    is_taking, is_void = np.zeros((2, len(ignored), len(thresholds), len(shared)), bool)
    free = np.ones((len(ignored), len(thresholds), len(crowd)), bool)
    ignored = np.broadcast_to(ignored[:, None], free.shape)
    for i in np.flatnonzero(shared.max(1, initial=0) >= thresholds.min()):
        fits = free & (shared[i] >= thresholds[:, None])
        counted = fits & ~ignored
        choice = np.where(counted.any(-1, keepdims=True), counted, fits)
        best = np.where(choice, shared[i], -1).argmax(-1)[..., None]
        is_taking[..., i] = choice.any(-1)
        is_void[..., i] = is_taking[..., i] & np.take_along_axis(ignored, best, -1)[..., 0]
        free &= ~(is_taking[..., i, None] & (best == np.arange(len(crowd)))) | crowd
    return is_taking, is_void


def _precision_recall(images: list[_Judged], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the precisions `(thresholds, recalls, areas)` and largest recalls `(thresholds, areas)` of a class."""
    scores = np.concatenate([image.scores[:limit] for image in images])
    order = np.argsort(-scores, kind="stable")
    right, wrong = (
        np.concatenate([getattr(image, part)[..., :limit] for image in images], -1)[..., order].cumsum(-1)
        for part in ("right", "wrong")
    )
    objects = np.sum([image.objects for image in images], 0)
    areas, thresholds, _ = right.shape
    precisions, recalls = np.full((thresholds, len(RECALLS), areas), np.nan), np.full((thresholds, areas), np.nan)
    best = np.maximum.accumulate((right / np.maximum(right + wrong, 1))[..., ::-1], -1)[..., ::-1]
    best = np.concatenate([best, np.zeros((areas, thresholds, 1))], -1)
    for a in np.flatnonzero(objects):
        reached = right[a] / objects[a]
        recalls[:, a] = reached.max(-1, initial=0)
        for t in range(thresholds):
            precisions[t, :, a] = best[a, t, np.searchsorted(reached[t], RECALLS)]
    return precisions, recalls


def _of(label: int, parts: Any) -> Any:
    """Return the detections or objects of one class."""
    return type(parts)(*(part[parts.labels == label] for part in parts))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _place(name: str, value: float, among: Sequence[float]) -> int:
    """Return the position of a number among the evaluated ones."""
    checks.number(name, value)
    places = np.flatnonzero(np.isclose(value, among, rtol=0, atol=1e-9))
    if not len(places):
        raise ValueError(f"{name}: expected one of {', '.join(f'{each:g}' for each in among)}, got {value:g}")
    return int(places[0])


def _checked_options(thresholds: Any, areas: Any, limits: Any) -> tuple[tuple[float, ...], np.ndarray, tuple[int, ...]]:
    """Return the thresholds in ascending order, the area ranges, `(areas, 2)`, and the limits in ascending order."""
    for name, values in {"thresholds": thresholds, "limits": limits}.items():
        if np.ndim(values) != 1 or not len(values):
            raise ValueError(f"{name}: expected a sequence of at least one number, got {checks.describe(values)}")
    for i, threshold in enumerate(thresholds):
        checks.number(f"thresholds[{i}]", threshold, above=0, maximum=1)
    for i, limit in enumerate(limits):
        checks.positive_integer(f"limits[{i}]", limit)
    if not isinstance(areas, Mapping) or "all" not in areas:
        raise ValueError(f"areas: expected ranges by name, one of them 'all', got {checks.describe(areas)}")
    for name, ends in areas.items():
        if np.shape(ends) != (2,) or not 0 <= ends[0] <= ends[1]:
            raise ValueError(f"areas[{name!r}]: expected (least, largest), got {checks.describe(ends)}")
    return tuple(sorted(map(float, thresholds))), np.array(list(areas.values()), float), tuple(sorted(map(int, limits)))
