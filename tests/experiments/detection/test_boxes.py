import numpy as np
import pytest

from experiments.detection.boxes import (
    Found,
    Score,
    best_threshold,
    match,
    precision_recall,
    suppress,
    vote,
)
from nnfx.metrics.detection import intersection_over_union


def random_boxes(random, count, size=12):
    corners = random.integers(0, size, (count, 2))
    return np.concatenate([corners, corners + random.integers(1, size // 2, (count, 2))], axis=1).astype(float)


@pytest.mark.parametrize("seed", range(20))
def test_suppression_is_that_of_loops(seed):
    random = np.random.default_rng(seed)
    boxes, scores = random_boxes(random, 25), random.integers(0, 8, 25) / 8
    kept: list[int] = []
    for i in sorted(range(25), key=lambda i: (-scores[i], i)):
        if all(intersection_over_union(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= 0.3 for j in kept):
            kept.append(i)
    assert suppress(boxes, scores, 0.3).tolist() == kept


def test_suppression_goes_by_those_kept_alone():
    boxes = np.array([[0.0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]])  # a chain whose ends hardly overlap
    assert suppress(boxes, np.array([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert suppress(boxes, np.array([0.8, 0.9, 0.7]), 0.3).tolist() == [1]
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.3).tolist() == []


def test_votes_are_summed_over_boxes_that_agree():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [40, 40, 50, 50]])
    probabilities = np.array([[0.9, 0.0], [0.0, 0.8], [0.0, 0.7], [0.3, 0.2]])
    found = vote(boxes, probabilities, agreeing=0.75)  # 1 ~ 2 (0.8), 2 ~ 3 (0.75), 1 and 3 not (0.6)
    assert found.names.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 1.5, 1.5, 0.3])
    # the first box keeps to itself, since the second has another name; those of the second and third agree on 7.07
    np.testing.assert_allclose(found.boxes[:, 3], [10, (0.8 * 8 + 0.7 * 6) / 1.5, (0.8 * 8 + 0.7 * 6) / 1.5, 50])
    assert vote(np.zeros((0, 4)), np.zeros((0, 2)), 0.75).names.shape == (0,)


def test_matching_by_hand():
    truth, names = np.array([[0.0, 0, 10, 10], [0, 20, 10, 30]]), np.array([3, 5])
    found = Found(
        np.array([[0.0, 0, 10, 9], [0, 0, 10, 10], [0, 20, 10, 30], [0, 21, 10, 31], [0, 26, 10, 36]]),
        np.array([3, 3, 7, 5, 5]),
        np.array([0.6, 0.9, 0.95, 0.5, 0.99]),
    )
    # the second has a higher score than the first; the third has a wrong name; the last overlaps by 4 of 16
    assert match(found, truth, names).tolist() == [-1, 0, -1, 1, -1]
    assert match(found, truth, names, least=0.2).tolist() == [-1, 0, -1, -1, 1]
    nameless = found._replace(names=np.zeros(5, int))
    assert match(nameless, truth, np.zeros(2, int)).tolist() == [-1, 0, 1, -1, -1]
    assert match(found, truth[:0], names[:0]).tolist() == [-1] * 5
    assert match(found.above(2.0), truth, names).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_that_of_loops_and_unmoved_by_what_is_less_sure(seed):
    random = np.random.default_rng(seed)
    truth, names = random_boxes(random, 8), random.integers(0, 2, 8)
    near = truth[random.integers(8, size=20)] + random.integers(-1, 2, (20, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    found = Found(near, random.integers(0, 2, 20), random.permutation(20) / 20)
    free, expected = set(range(8)), [-1] * 20
    for i in np.argsort(-found.scores):
        fits = {
            j: intersection_over_union(found.boxes[i : i + 1], truth[j : j + 1])[0, 0]
            for j in free
            if names[j] == found.names[i]
        }
        best = max(fits, key=lambda j: (fits[j], -j), default=None)
        if best is not None and fits[best] >= 0.4:
            expected[i] = best
            free.remove(best)
    matched = match(found, truth, names, least=0.4)
    assert matched.tolist() == expected
    assert (matched >= 0).any()
    sure = found.scores >= 0.5
    assert match(found.above(0.5), truth, names, least=0.4).tolist() == matched[sure].tolist()


def test_precision_recall_and_f1_at_every_threshold():
    random = np.random.default_rng(1)
    scores, is_right, true = random.integers(0, 10, 40) / 10, random.random(40) < 0.6, 30
    curve = precision_recall(scores, is_right, true)
    assert curve.thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    for threshold, precision, recall, f1 in zip(*curve, strict=True):
        found = scores >= threshold
        score = Score.of(int((found & is_right).sum()), int(found.sum()), true)
        np.testing.assert_allclose([precision, recall, f1], score[:3])
        np.testing.assert_allclose(f1, 2 * precision * recall / (precision + recall))
    assert best_threshold(curve) == curve.thresholds[curve.f1.argmax()]
    nothing = precision_recall(np.zeros(0), np.zeros(0, bool), 5)
    assert best_threshold(nothing) == np.inf
    assert Score.of(0, 0, 0)[:3] == (0, 0, 0)
