import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nnfx.metrics import detection
from nnfx.metrics.detection import Detections, Objects, evaluate, intersection_over_union

SQUARE = [0.0, 0, 10, 10]
NAN = float("nan")


def random_boxes(random, count, size=12):
    corners = random.integers(0, size, (count, 2))
    return np.concatenate([corners, corners + random.integers(1, size // 2, (count, 2))], axis=1).astype(float)


def painted(box, size=20):
    canvas = np.zeros((size, size), bool)
    top, left, bottom, right = box.astype(int)
    canvas[top:bottom, left:right] = True
    return canvas


def test_intersection_over_union_by_hand():
    boxes = np.array([[0.0, 0, 4, 2], [2, 1, 6, 3], [4, 0, 6, 2], [1, 0.5, 3, 1.5]])
    # areas 8, 8, 4 and 2; shared: 2 × 1, none and 2 × 1 with the first, 2 × 1 and 1 × ½ with the second
    expected = [[1, 2 / 14, 0, 0.25], [2 / 14, 1, 2 / 10, 0.5 / 9.5]]
    np.testing.assert_allclose(intersection_over_union(boxes[:2], boxes), expected)
    assert intersection_over_union([], boxes).shape == (0, 4)
    assert intersection_over_union([[1, 1, 1, 5]], [[1, 1, 1, 5]]).tolist() == [[0]], "no area, nothing shared"


def test_intersection_over_union_counts_pixels():
    random = np.random.default_rng(0)
    left, right = random_boxes(random, 20), random_boxes(random, 30)
    masks = [np.stack([painted(box).ravel() for box in boxes]) for boxes in (left, right)]
    both = (masks[0][:, None] & masks[1][None]).sum(-1)
    either = (masks[0][:, None] | masks[1][None]).sum(-1)
    np.testing.assert_allclose(intersection_over_union(left, right), both / either)


# by hand


def test_a_perfect_detector_and_one_that_sees_nothing():
    truth = [Objects([SQUARE, [20, 20, 80, 80], [0, 100, 100, 200]], [0, 1, 1]), Objects([], [])]
    boxes, labels = truth[0][:2]
    perfect = evaluate([Detections(boxes, labels, [0.3, 0.2, 0.1]), Detections([], [], [])], truth)
    recall_of_one = (1 + 1 / 2) / 2  # class 1 has two objects
    assert set(perfect.summary()) == {
        *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
        *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
    }
    assert {name: value for name, value in perfect.summary().items() if value != 1} == {"AR_1": recall_of_one}
    blind = evaluate([Detections([], [], [])] * 2, truth)
    assert set(blind.summary().values()) == {0}


def test_precision_is_read_at_101_recalls():
    truth = [Objects([SQUARE, [0, 20, 10, 30], [0, 40, 10, 50], [0, 60, 10, 70]], [0] * 4)]
    far = [50, 50, 60, 60]
    found = [Detections([SQUARE, far, [0, 20, 10, 30], [0, 40, 10, 50]], [0] * 4, [0.9, 0.8, 0.7, 0.6])]
    evaluation = evaluate(found, truth)
    # right, wrong, right, right: precision 1, ½, ⅔, ¾ at recall ¼, ¼, ½, ¾; so 1 up to 0.25, ¾ up to 0.75, then 0
    expected = (26 * 1 + 50 * 0.75) / 101
    assert evaluation.average_precision() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(evaluation.precision[0, [0, 25, 26, 75, 76, 100], 0, 0, 2], [1, 1, 0.75, 0.75, 0, 0])
    assert evaluation.average_recall() == 0.75


def test_a_box_counts_at_the_thresholds_that_it_reaches():
    # it covers 8 of 10 columns: right at 0.5, 0.55, …, 0.8, which are seven of ten
    evaluation = evaluate([Detections([[0, 0, 10, 8]], [0], [1.0])], [Objects([SQUARE], [0])])
    assert evaluation.average_precision() == pytest.approx(0.7)
    assert [evaluation.average_precision(threshold) for threshold in (0.5, 0.75, 0.8, 0.85)] == [1, 1, 1, 0]
    own = evaluate(
        [Detections([[0.1, 0.1, 0.4, 0.7]], [0], [1])], [Objects([[0.1, 0.1, 0.4, 0.7]], [0])], thresholds=[1.0]
    )
    assert own.average_precision() == 1
    assert set(own.summary()) & {"AP50", "AP75"} == set()


def test_the_second_detection_of_an_object_is_wrong_and_so_is_another_class():
    truth = [Objects([SQUARE], [2])]
    twice = Detections([[0, 0, 10, 9], SQUARE], [2, 2], [0.9, 0.8])
    assert evaluate([twice], truth).average_precision(0.5) == 1, "full recall is reached before the wrong one"
    first = Detections([[50, 50, 60, 60], SQUARE], [2, 2], [0.9, 0.8])
    assert evaluate([first], truth).average_precision() == pytest.approx(0.5)
    other = evaluate([Detections([SQUARE], [3], [0.9])], truth)
    assert other.labels == (2, 3)
    assert other.average_precision() == 0
    assert np.isnan(other.average_precision(label=3)), "a class without objects has no precision"


def test_of_objects_that_overlap_as_much_the_last_is_taken():
    first, last, between = [0, 0, 10, 10], [0, 10, 10, 20], [0, 5, 10, 15]  # a third of what both cover is shared
    truth = [Objects([first, last], [0, 0])]
    for second, right in ((first, 2), (last, 1)):
        found = [Detections([between, second], [0, 0], [0.9, 0.8])]
        assert evaluate(found, truth, thresholds=[0.3]).average_recall() == right / 2


def test_areas_and_limits():
    small, medium, both = SQUARE, [0, 20, 40, 60], [0, 100, 32, 132]  # of 100, 1600 and 1024 square pixels
    truth = [Objects([small, medium, both], [0, 0, 0])]
    found = [Detections([small, both], [0, 0], [0.9, 0.8])]
    evaluation = evaluate(found, truth)
    # a square of 32 by 32 pixels belongs to both ranges
    assert evaluation.average_recall(area="small") == 1
    assert evaluation.average_recall(area="medium") == 0.5
    assert evaluation.average_precision(area="medium") == pytest.approx(51 / 101)
    assert np.isnan(evaluation.average_precision(area="large"))
    assert [evaluation.average_recall(limit=limit) for limit in (1, 10)] == pytest.approx([1 / 3, 2 / 3])
    masks = [truth[0]._replace(areas=[1, 1, 1e5])]  # areas of masks, not of boxes
    assert evaluate(found, masks).average_recall(area="large") == 1
    ranges = {"all": (0, 1e10), "tiny": (0, 99)}
    assert np.isnan(evaluate(found, truth, areas=ranges).summary()["AP_tiny"])


def test_a_crowd_absorbs_what_lies_within_it():
    truth = [Objects([SQUARE, [100, 100, 200, 200]], [0, 0], crowd=[False, True])]
    within = [[110, 110, 120, 120], [130, 130, 150, 150]]
    found = [Detections([*within, SQUARE], [0] * 3, [0.9, 0.8, 0.7])]
    assert evaluate(found, truth).average_precision() == 1, "neither right nor wrong"
    alone = [truth[0]._replace(crowd=None)]
    assert evaluate(found, alone).average_precision() < 0.2
    assert np.isnan(evaluate(found, [Objects([SQUARE], [0], crowd=[1])]).average_precision())


def test_no_images_have_no_precision():
    evaluation = evaluate([], [])
    assert evaluation.labels == ()
    assert all(np.isnan(value) for value in evaluation.summary().values())


def test_arrays_of_any_kind_give_the_same():
    random = np.random.default_rng(3)
    boxes, scores = random_boxes(random, 8), random.integers(0, 8, 8) / 8
    expected = evaluate([Detections(boxes, np.arange(8) % 2, scores)], [Objects(boxes[::2], [0, 1, 0, 1])])
    given = evaluate(
        [Detections(jnp.asarray(boxes), jnp.arange(8) % 2, scores.tolist())],
        [Objects(boxes[::2].tolist(), np.array([0, 1, 0, 1], np.uint8))],
    )
    np.testing.assert_array_equal(given.precision, expected.precision)
    assert given.precision.dtype == np.float64


# against the code of COCO's authors


def reference(found, truth, **options):
    """Return precision and recall as pycocotools computes them, with NaN for what does not exist, and its summary."""
    coco = pytest.importorskip("pycocotools.coco").COCO
    from pycocotools.cocoeval import COCOeval

    def sized(box):
        left, top, right, bottom = (float(edge) for edge in box)
        return [left, top, right - left, bottom - top]

    annotations, detections = [], []
    labels = sorted({int(label) for each in (*found, *truth) for label in np.asarray(each.labels)})
    for image, (detected, objects) in enumerate(zip(found, truth, strict=True)):
        crowd = np.zeros(len(objects.labels)) if objects.crowd is None else objects.crowd
        for k, (box, label) in enumerate(zip(objects.boxes, objects.labels, strict=True)):
            bbox = sized(box)
            area = bbox[2] * bbox[3] if objects.areas is None else float(objects.areas[k])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(crowd[k]),
                }
            )
        detections += [
            {"image_id": image, "category_id": int(label), "bbox": sized(box), "score": float(score)}
            for box, label, score in zip(*detected, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        true = coco()
        true.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in labels],
            "annotations": annotations,
        }
        true.createIndex()
        measured = COCOeval(true, true.loadRes(detections), "bbox")
        for name, value in options.items():
            setattr(measured.params, name, value)
        measured.evaluate()
        measured.accumulate()
        if not options:
            measured.summarize()
    values = [np.where(measured.eval[part] == -1, np.nan, measured.eval[part]) for part in ("precision", "recall")]
    return *values, np.where(np.asarray(measured.stats) == -1, np.nan, measured.stats) if not options else None


def scenes(seed, images, most, *, classes=4, size=150, levels=10, crowds=0.0, masks=False):
    """Draw objects and detections near them, with equal scores, equal overlaps, and images that hold nothing."""
    random = np.random.default_rng(seed)

    def boxes(count):
        corners, sides = random.integers(0, size, (count, 2)), np.exp(random.uniform(1, 5, (count, 2))).astype(int)
        return np.concatenate([corners, corners + sides], axis=1).astype(float)

    found, truth = [], []
    for _ in range(images):
        true = boxes(random.integers(0, most, endpoint=True))
        near = np.repeat(true, random.integers(0, 4, len(true)), axis=0)
        near += np.round(random.normal(0, 0.06, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        detected = random.permutation(np.concatenate([near, boxes(random.integers(0, most, endpoint=True))]))
        labels = random.integers(1, classes, len(true))  # the last class has no objects
        guesses = np.where(random.random(len(detected)) < 0.2, classes, random.integers(1, classes, len(detected)))
        found.append(Detections(detected, guesses, random.integers(0, levels, len(detected)) / levels))
        is_crowd = random.random(len(true)) < crowds if crowds else None
        truth.append(Objects(true, labels, is_crowd, random.uniform(1, 2e4, len(true)) if masks else None))
    return found, truth


CASES = {
    "few": {"images": 12, "most": 5},
    "one class": {"images": 20, "most": 8, "classes": 2},
    "small pictures": {"images": 8, "most": 12, "size": 12},  # many boxes overlap another as much
    "all scores equal": {"images": 10, "most": 6, "levels": 1},
    "crowds": {"images": 15, "most": 8, "classes": 2, "crowds": 0.3},
    "masks": {"images": 15, "most": 8, "masks": True, "crowds": 0.1},
    "more than 100 in an image": {"images": 2, "most": 120, "classes": 2, "size": 60},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_against_pycocotools(case, seed):
    found, truth = scenes(seed, **case)
    precision, recall, summary = reference(found, truth)
    evaluation = evaluate(found, truth)
    np.testing.assert_allclose(evaluation.precision, precision, rtol=0, atol=1e-6)
    np.testing.assert_allclose(evaluation.recall, recall, rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(evaluation.summary().values()), summary, rtol=0, atol=1e-6)
    assert np.nanmin(evaluation.precision) < np.nanmax(evaluation.precision)
    assert np.isnan(evaluation.average_precision(label=evaluation.labels[-1]))


def test_options_against_pycocotools():
    found, truth = scenes(5, images=10, most=8)
    found.append(Detections(np.array([[0.0, 5, 10, 15], [0, 10, 10, 20]]), [1, 1], [0.9, 0.8]))  # as above
    truth.append(Objects(np.array([[0.0, 0, 10, 10], [0, 10, 10, 20]]), [1, 1]))
    precision, recall, _ = reference(
        found,
        truth,
        iouThrs=np.array([0.3, 0.6]),
        maxDets=[2, 5],
        areaRng=[[0, 1e10], [100, 900]],
        areaRngLbl=["all", "x"],
    )
    evaluation = evaluate(found, truth, thresholds=[0.6, 0.3], limits=[5, 2], areas={"all": (0, 1e10), "x": (100, 900)})
    np.testing.assert_allclose(evaluation.precision, precision, rtol=0, atol=1e-6)
    np.testing.assert_allclose(evaluation.recall, recall, rtol=0, atol=1e-6)


# wrong input


@pytest.mark.parametrize(
    ("found", "truth", "error", "message"),
    [
        ([], [Objects([], [])], ValueError, "found: expected the detections of each of the 1 images, got 0"),
        ([([], [], [])], [Objects([], [])], TypeError, r"found\[0\]: expected Detections, got \(\[\], \[\], \[\]\)"),
        ([Detections([], [], [])], [([], [])], TypeError, r"truth\[0\]: expected Objects, got \(\[\], \[\]\)"),
        (
            [Detections([[0, 0, 1]], [0], [1])],
            [Objects([], [])],
            ValueError,
            r"found\[0\].boxes: expected \(boxes, 4\)",
        ),
        (
            [Detections([SQUARE], [0, 1], [1])],
            [Objects([], [])],
            ValueError,
            r"found\[0\].labels: expected one for each",
        ),
        ([Detections([SQUARE], [0], [])], [Objects([], [])], ValueError, r"found\[0\].scores: expected one for each"),
        ([Detections([SQUARE], [0], [NAN])], [Objects([], [])], ValueError, r"found\[0\].scores: expected finite"),
        (
            [Detections([], [], [])],
            [Objects([SQUARE], [0.5])],
            ValueError,
            r"truth\[0\].labels: expected integers, got",
        ),
        ([Detections([], [], [])], [Objects([SQUARE], ["cat"])], TypeError, r"truth\[0\].labels: expected"),
        ([Detections([], [], [])], [Objects([[0, 0, NAN, 1]], [0])], ValueError, r"truth\[0\].boxes: expected finite"),
        ([Detections([], [], [])], [Objects([SQUARE], [0], [0, 1])], ValueError, r"truth\[0\].crowd: expected one"),
        (
            [Detections([], [], [])],
            [Objects([SQUARE, [20, 20, 10, 10]], [0, 0])],
            ValueError,
            r"truth\[0\].boxes: expected corners \(low, low, high, high\), got \[20.0, 20.0, 10.0, 10.0\] at 1",
        ),
    ],
)
def test_wrong_images(found, truth, error, message):
    with pytest.raises(error, match=message):
        evaluate(found, truth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": []}, "thresholds: expected a sequence of at least one"),
        ({"thresholds": 0.5}, "thresholds: expected a sequence of at least one number, got 0.5"),
        ({"thresholds": [0.0]}, r"thresholds\[0\]: expected"),
        ({"thresholds": [0.5, 1.5]}, r"thresholds\[1\]: expected"),
        ({"limits": []}, "limits: expected a sequence of at least one"),
        ({"limits": [0]}, r"limits\[0\]: expected a positive integer, got 0"),
        ({"areas": {"small": (0, 1)}}, "areas: expected ranges by name, one of them 'all'"),
        ({"areas": {"all": (5, 1)}}, r"areas\['all'\]: expected \(least, largest\), got \(5, 1\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate([], [], **options)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"threshold": 0.52}, "threshold: expected one of 0.5, 0.55, .*, got 0.52"),
        ({"area": "tiny"}, "area: expected one of 'all', 'small', 'medium', 'large', got 'tiny'"),
        ({"limit": 7}, "limit: expected one of 1, 10, 100, got 7"),
        ({"label": 3}, "label: expected one of 0, got 3"),
    ],
)
def test_what_was_not_evaluated(asked, message):
    evaluation = evaluate([Detections([SQUARE], [0], [1])], [Objects([SQUARE], [0])])
    for method in (evaluation.average_precision, evaluation.average_recall):
        with pytest.raises(ValueError, match=message):
            method(**asked)


def test_the_thresholds_and_areas_are_those_of_coco():
    assert pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]) == detection.THRESHOLDS
    assert len(detection.RECALLS) == 101
    assert list(detection.AREAS) == ["all", "small", "medium", "large"]
    assert jax.config.read("jax_enable_x64") is False, "and yet everything is float64"
