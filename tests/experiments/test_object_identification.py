import csv
import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import nnfx
from experiments import object_identification
from experiments.detection import detector, scenes
from experiments.detection.boxes import Found

WIDTH = 3


@pytest.fixture(scope="module")
def pictures():
    digits = scenes.split_items(jax.random.key(0), held_out=0.3)["train"]
    return scenes.draw_scenes((0, 0), digits, 6)


@pytest.fixture(scope="module")
def variables():
    return detector.classifier(WIDTH).init(jax.random.key(1), jnp.zeros((1, detector.WINDOW, detector.WINDOW, 1)))


@pytest.mark.slow
def test_the_slid_network_is_the_classifier_of_every_window(pictures, variables):
    levels = [np.asarray(detector.scaled(jnp.asarray(pictures.picture[:1]), side)) for side in detector.SIDES]
    windows, middles, scales = [], [], []
    for level, side in zip(levels, detector.SIDES, strict=True):
        places = range(0, level.shape[1] - detector.WINDOW + 1, detector.STRIDE)
        assert len(places) == detector.windows_along(side)
        for top in places:
            for left in places:
                windows.append(level[0, top : top + detector.WINDOW, left : left + detector.WINDOW])
                middle = np.array([top, left]) - detector.MARGIN + detector.WINDOW / 2
                middles.append(middle * scenes.SIZE / side)
                scales.append([side / scenes.SIZE])
    outputs = np.asarray(jax.jit(detector.classifier(WIDTH).apply)(variables, np.stack(windows)))
    assert outputs.std(0).min() > 1e-3, "the windows differ"

    slid = detector.slide(WIDTH, variables, jnp.asarray(pictures.picture[:1]))
    probabilities = jax.nn.softmax(outputs[:, : detector.NAMES + 1])
    np.testing.assert_allclose(slid.probabilities[0], probabilities, atol=1e-4)
    codes = detector.encode(np.asarray(slid.boxes[0]), np.stack(middles), np.array(scales))
    np.testing.assert_allclose(codes, outputs[:, detector.NAMES + 1 :], atol=1e-4)

    smallest = detector.slid(WIDTH).apply(variables, jnp.asarray(levels[-1]))  # the maps at their original size
    along = detector.windows_along(detector.SIDES[-1])
    assert smallest.shape == (1, along, along, detector.NAMES + 5)
    np.testing.assert_allclose(smallest.reshape(along**2, -1), outputs[-(along**2) :], atol=1e-4)


def test_codes_say_where_a_box_is():
    boxes = np.array([[10.0, 20, 26, 28]])
    code = detector.encode(boxes, np.array([[18.0, 22]]), 1.0)
    np.testing.assert_allclose(code, [[0, 2 / 16, 0, np.log(0.5)]], atol=1e-12)
    np.testing.assert_allclose(
        detector.encode(2 * boxes, np.array([[36.0, 44]]), 0.5), code, atol=1e-12, err_msg="half the scale"
    )
    for scale in (0.5, 1.3):
        middles = np.array([[15.0, 25]])
        again = detector.decode(jnp.asarray(detector.encode(boxes, middles, scale)), jnp.asarray(middles), scale)
        np.testing.assert_allclose(again, boxes, rtol=1e-5)


def test_windows_are_labelled_by_what_is_in_their_middle():
    boxes = np.array([[30.0, 30, 46, 42], [60, 60, 92, 84]])  # 16 and 32 pixels high, about (38, 36) and (76, 72)
    corner = np.array([38, 36]) - detector.WINDOW // 2 + detector.MARGIN
    corners = corner + np.array([[0, 0], [3, -2], [0, 4], [5, 0], [0, 0]])
    scales = np.array([[1.0], [1], [1], [1], [0.5]])
    corners[4] = corner // 2
    labelled = detector.label(boxes, np.array([7, 2]), corners, scales)
    assert labelled[:, 0].tolist() == [7, 7, -1, detector.BACKGROUND, detector.BACKGROUND]
    np.testing.assert_allclose(labelled[0, 1:], [0, 0, 0, np.log(12 / 16)], atol=1e-12)
    np.testing.assert_allclose(labelled[1, 1:3], [-3 / 16, 2 / 16])
    large = np.array([[76, 72]]) / 2 - detector.WINDOW / 2 + detector.MARGIN
    assert detector.label(boxes, np.array([7, 2]), large.astype(int), scales[4:])[0, 0] == 2


@pytest.mark.slow
def test_crops_are_cut_as_the_network_is_slid(pictures):
    crops = detector.cut_crops((0,), pictures, per_digit=3, elsewhere=4)
    again = detector.cut_crops((0,), pictures, per_digit=3, elsewhere=4)
    np.testing.assert_array_equal(crops.windows, again.windows)
    digits = sum(map(len, pictures.names))
    is_empty = crops.targets[:, 0] == detector.BACKGROUND
    assert is_empty.sum() == 4 * 6
    assert 0.9 * 3 * digits <= (~is_empty).sum() <= 3 * digits
    assert set(crops.targets[~is_empty, 0]) <= set(np.concatenate(list(pictures.names)).tolist())
    assert np.abs(crops.targets[~is_empty, 1:3]).max() <= detector.NEAR / detector.OBJECT + 1e-6
    assert np.abs(crops.targets[~is_empty, 3]).max() <= detector.SAME + 1e-6
    levels = [np.asarray(detector.scaled(jnp.asarray(pictures.picture), side))[..., 0] for side in detector.SIDES]
    views = [
        np.lib.stride_tricks.sliding_window_view(level, (detector.WINDOW, detector.WINDOW), axis=(1, 2))
        for level in levels
    ]
    for window in crops.windows[::20, ..., 0]:
        assert any((view == window).all((-2, -1)).any() for view in views)


def test_augmentation_keeps_targets_and_lays_empty_windows_over(key):
    inputs = jnp.array([0.0, 0.5, 0.75, 1.0]).reshape(4, 1, 1, 1) * jnp.ones((1, 24, 24, 1))
    batch = nnfx.Batch(inputs, jnp.array([[10.0] * 5, [3] * 5, [10] * 5, [10] * 5]), jnp.ones(4))
    laid = detector.overlay(key, batch, overlaid=1.0)
    np.testing.assert_array_equal(laid.targets, batch.targets)
    # each is overlaid with the one before it, and the first with the last, the only one that is brighter
    np.testing.assert_array_equal(laid.inputs[1:], batch.inputs[1:])
    assert inputs[0].max() < laid.inputs[0].max() < inputs[3].max()
    np.testing.assert_array_equal(detector.overlay(key, batch, overlaid=0.0).inputs, batch.inputs)
    lit = detector.light(key, batch, contrast=0.3).inputs
    assert 0 < np.abs(lit - inputs).max() <= 0.3 + 0.1 + 1e-6
    np.testing.assert_array_equal(detector.light(key, batch, contrast=0.0).inputs, batch.inputs)


def test_boxes_count_in_the_loss_of_digits_alone():
    outputs = jnp.zeros((2, detector.NAMES + 5))
    targets = jnp.array([[3.0, 0.05, 0, 0, 0], [detector.BACKGROUND, 9, 9, 9, 9]])
    losses = detector.loss(outputs, targets, box_weight=8.0)
    np.testing.assert_allclose(losses, np.log(11) + np.array([8 * 0.05**2 / 2 / 4, 0]), rtol=1e-5)
    assert detector.accuracy(outputs.at[:, 3].set(1), targets).tolist() == [1, 0]


def test_wrong_finds_are_told_apart():
    boxes, names = np.empty(1, object), np.empty(1, object)
    boxes[0], names[0] = np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.array([1, 2])
    truth = scenes.Scene(np.zeros((1, 96, 96)), boxes, names)
    where = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [50, 55, 60, 70], [80, 80, 90, 90]]
    finds = [Found(np.array(where, float), np.array([1, 1, 7, 2, 1]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]))]
    is_right = object_identification.right(finds, truth)
    assert is_right[0].tolist() == [True, False, False, False, False]
    assert object_identification.right(finds, truth, with_names=False)[0].tolist() == [True, False, True, False, False]
    assert list(object_identification.faults(finds, truth, is_right).values()) == [1, 1, 1, 1]
    assert object_identification.score(finds, truth, is_right) == (0.2, 0.5, 2 / 7, 5, 2)
    assert object_identification.score_name(1, finds, truth, is_right) == (1 / 3, 1, 0.5, 3, 1)
    assert object_identification.score_at(0.85, finds, truth) == (1, 0.5, 2 / 3, 1, 2)


def test_average_precision_is_that_of_coco():
    boxes, names = np.empty(2, object), np.empty(2, object)
    boxes[:] = [np.array([[0.0, 0, 20, 20], [50, 50, 90, 90]]), np.array([[10.0, 10, 30, 30]])]
    names[:] = [np.array([1, 2]), np.array([1])]
    found = [
        Found(np.array([[0.0, 0, 20, 20], [50, 50, 90, 90]]), np.array([1, 3]), np.array([5.0, 4.0])),
        Found(np.array([[50.0, 10, 70, 30], [10, 10, 30, 30]]), np.array([1, 1]), np.array([9.0, 2.0])),
    ]
    measured = object_identification.evaluate(found, scenes.Scene(np.zeros((2, 96, 96)), boxes, names))
    # of class 1: wrong, right, right, so that the best precision to come is ⅔ throughout; of class 2 nothing
    assert measured["AP"] == measured["AP50"] == measured["AP75"] == pytest.approx(2 / 3 / 2)
    assert measured["AP_small"] == pytest.approx(2 / 3)
    assert measured["AP_medium"] == 0
    assert (measured["AR_1"], measured["AR_10"]) == (0.25, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("images", ["digits", "fashion_mnist"])
def test_the_experiment_writes_what_it_says(tmp_path, capsys, images, request):
    if images == "fashion_mnist":
        request.getfixturevalue("fashion_mnist_files")
    small = {"train_scenes": 60, "validation_scenes": 6, "test_scenes": 6, "epochs": 2, "width": 4, "batch_size": 32}
    summary = object_identification.main(object_identification.Config(out=tmp_path, images=images, **small))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert {"f1", "precision", "recall", "by_class", "seconds_per_scene", "seed", "scene_seeds"} <= set(written)
    assert written["scene_seeds"] == {"train": [0, 0], "validation": [0, 1], "test": [0, 2]}
    assert list(written["by_class"]) == list(nnfx.data.images(images).classes)
    parts = summary["by_class"].values()
    assert summary["average_precision"] == summary["coco"]["AP"] <= summary["coco"]["AP50"] <= 1
    whole = summary["scores"]["test"]
    assert sum(part["found"] for part in parts) == whole["found"]
    assert sum(part["true"] for part in parts) == whole["true"]
    wrong = whole["found"] - round(whole["precision"] * whole["found"])
    assert sum(summary["wrong_finds"].values()) == wrong
    assert 0 <= summary["f1"] <= summary["scores"]["test, box alone"]["f1"]
    assert summary["threshold_votes"] > 0
    assert all(seconds > 0 for seconds in summary["seconds_per_scene"].values())
    for name in ("scenes", "precision_recall", "score_maps"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert len(list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))) == 2
    assert not list(tmp_path.glob(".*")), "nothing is left written aside"
    printed = capsys.readouterr().out
    assert "F1 on test scenes" in printed
    assert "by COCO's metrics: AP 0." in printed
