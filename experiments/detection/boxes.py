"""Let boxes vote, remove overlapping boxes, match the rest with true boxes, and count how many are correct.

A box is given by its edges (top, left, bottom, right), a set of boxes by an array `(boxes, 4)`.
"""

from typing import NamedTuple

import numpy as np

from nnfx.metrics.detection import intersection_over_union


class Found(NamedTuple):
    """The detections in a picture.

    Attributes:
        boxes: the box of each detection, `(found, 4)`.
        names: the class of each detection, `(found,)`.
        scores: the score of each detection, `(found,)`; larger means more certain.
    """

    boxes: np.ndarray
    names: np.ndarray
    scores: np.ndarray

    def above(self, threshold: float) -> "Found":
        """Return the detections whose scores are at least the threshold."""
        kept = self.scores >= threshold
        return Found(self.boxes[kept], self.names[kept], self.scores[kept])


class Curve(NamedTuple):
    """Precision and recall as the threshold falls; each is `(thresholds,)`.

    Attributes:
        thresholds: all distinct scores, in descending order.
        precision: the fraction of detections at each threshold that are correct.
        recall: the fraction of true objects that were found.
        f1: the harmonic mean of precision and recall.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class Score(NamedTuple):
    """The quality of the detections at one threshold.

    Attributes:
        precision: the fraction of detections that are correct; 0 if nothing was found.
        recall: the fraction of true objects that were found.
        f1: the harmonic mean of precision and recall.
        found: the number of detections, correct or wrong.
        true: the number of true objects.
    """

    precision: float
    recall: float
    f1: float
    found: int
    true: int

    @classmethod
    def of(cls, right: int, found: int, true: int) -> "Score":
        """Compute the score from the numbers of correct detections, of all detections and of true objects.

        >>> Score.of(right=2, found=4, true=2)
        Score(precision=0.5, recall=1.0, f1=0.6666666666666666, found=4, true=2)
        """
        return cls(right / max(found, 1), right / max(true, 1), 2 * right / max(found + true, 1), found, true)


def vote(boxes: np.ndarray, probabilities: np.ndarray, agreeing: float) -> Found:
    """Let windows whose boxes nearly agree vote: a name's score is the sum of its probabilities over these windows.

    Several neighbouring windows see an object, but often only one sees a piece of clutter, so the sum separates
    objects from clutter better than its largest term. Windows beside an object place the box too far towards
    themselves; the mean over all windows does not.

    Args:
        boxes: the boxes of the windows, `(windows, 4)`.
        probabilities: the probabilities of the names, `(windows, names)`.
        agreeing: the smallest intersection over union at which two boxes count as the same object.

    Returns:
        For each window the name with the most votes, the sum of these votes, and the mean of the boxes that agree,
        weighted by their votes for that name.

    Example:
        >>> boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
        >>> found = vote(boxes, np.array([[0.5, 0.25], [0.125, 0.75], [0.0, 0.5]]), agreeing=0.7)
        >>> found.names, found.scores, found.boxes[0]
        (array([1, 1, 1]), array([1. , 1. , 0.5]), array([ 0.  ,  0.  , 10.  ,  9.25]))
    """
    agree = (intersection_over_union(boxes, boxes) >= agreeing).astype(probabilities.dtype)
    votes = agree @ probabilities
    names, most = votes.argmax(1), votes.max(1)
    return Found((agree * probabilities[:, names].T) @ boxes / most[:, None], names, most)


def suppress(boxes: np.ndarray, scores: np.ndarray, most_shared: float) -> np.ndarray:
    """Keep the best of overlapping boxes: by descending score, drop boxes that overlap too much with a kept box.

    Args:
        boxes: the boxes, `(boxes, 4)`.
        scores: the score of each box, `(boxes,)`; of equal scores, the first comes first.
        most_shared: the intersection over union above which two boxes count as one object.

    Returns:
        The positions of the boxes kept, in descending order of score.

    Example:
        >>> boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
        >>> suppress(boxes, np.array([0.8, 0.9, 0.3]), most_shared=0.5)
        array([1, 2])
    """
    order = np.argsort(-scores, kind="stable")
    is_same = intersection_over_union(boxes[order], boxes[order]) > most_shared
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~is_same[i, i + 1 :]
    return order[alive]


def match(found: Found, boxes: np.ndarray, names: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Match detections with true objects, by descending score: each takes the free object that it overlaps most.

    Args:
        found: the detections in a picture.
        boxes: the true boxes, `(true, 4)`.
        names: the names of the true objects, `(true,)`, which must agree; set all names equal to ignore them.
        least: the smallest intersection over union for a match.

    Returns:
        The position of each detection's true object, `(found,)`; −1 if it has none. Every true object is matched at
        most once, so a second detection of an object counts as wrong, and no match depends on detections with lower
        scores.
    """
    matched = np.full(len(found.scores), -1)
    if not len(names):
        return matched
    fits = intersection_over_union(found.boxes, boxes)
    fits[(found.names[:, None] != names[None]) | (fits < least)] = -1
    for i in np.argsort(-found.scores, kind="stable"):
        best = int(fits[i].argmax())
        if fits[i, best] >= 0:
            matched[i] = best
            fits[:, best] = -1
    return matched


def precision_recall(scores: np.ndarray, is_right: np.ndarray, true: int) -> Curve:
    """Compute precision and recall at every threshold.

    Args:
        scores: the scores of all detections in all pictures, `(found,)`.
        is_right: whether each detection is correct, `(found,)`.
        true: the number of true objects in all pictures.

    Example:
        >>> curve = precision_recall(np.array([0.9, 0.5, 0.7]), np.array([True, True, False]), true=4)
        >>> curve.thresholds, curve.precision.round(2), curve.recall
        (array([0.9, 0.7, 0.5]), array([1.  , 0.5 , 0.67]), array([0.25, 0.25, 0.5 ]))
    """
    order = np.argsort(-scores, kind="stable")
    thresholds, right = scores[order], np.cumsum(is_right[order])
    found = np.arange(1, len(order) + 1)
    # detections with equal scores pass a threshold together
    is_last = np.append(thresholds[1:] != thresholds[:-1], True)[: len(order)]
    thresholds, right, found = thresholds[is_last], right[is_last], found[is_last]
    return Curve(thresholds, right / found, right / max(true, 1), 2 * right / (found + true))


def best_threshold(curve: Curve) -> float:
    """Return the highest threshold with the largest F1; infinity if nothing was found."""
    return float(curve.thresholds[curve.f1.argmax()]) if len(curve.f1) else float("inf")
