import jax
import numpy as np
import pytest

import nnfx
from experiments.detection import scenes
from nnfx.metrics.detection import intersection_over_union


@pytest.fixture(scope="module")
def digits():
    return scenes.split_items(jax.random.key(0), held_out=0.3)


def test_no_digit_is_in_two_parts(digits):
    everything = np.asarray(nnfx.data.digits().train.inputs)[..., 0]
    assert sum(len(part.names) for part in digits.values()) == len(everything) == 1797
    together = np.concatenate([part.images for part in digits.values()])
    np.testing.assert_array_equal(np.sort(together.reshape(1797, -1), axis=0), np.sort(everything.reshape(1797, -1), 0))
    assert [len(digits[part].names) for part in ("train", "validation", "test")] == [1258, 270, 269]
    seen = {part: {image.tobytes() for image in digits[part].images} for part in digits}
    assert seen["train"].isdisjoint(seen["test"] | seen["validation"])
    assert seen["validation"].isdisjoint(seen["test"])


def test_scenes_are_decided_by_their_seed(digits):
    three, two = (scenes.draw_scenes((4, 1), digits["train"], count) for count in (3, 2))
    np.testing.assert_array_equal(three.picture[:2], two.picture)
    for i in range(2):
        np.testing.assert_array_equal(three.boxes[i], two.boxes[i])
        np.testing.assert_array_equal(three.names[i], two.names[i])
        alone = scenes.draw_scene((4, 1, i), digits["train"])
        np.testing.assert_array_equal(alone.picture, two.picture[i])
    for seed in ((4, 2), (5, 1)):
        assert (scenes.draw_scenes(seed, digits["train"], 2).picture != two.picture).mean() > 0.9
    assert two.picture.dtype == np.float32
    assert two.picture.min() >= 0
    assert two.picture.max() <= 1


@pytest.mark.parametrize("i", range(30))
def test_boxes_are_tight_around_what_was_pasted(digits, i):
    picture, boxes, names = scenes.draw_scene((i,), digits["train"], most=1, clutter=False)
    assert names.shape == (1,)
    np.testing.assert_array_equal(boxes[0], scenes.extent(picture >= scenes.EDGE))
    assert picture.max() > 0.8


def test_boxes_of_several_digits_hold_all_bright_ink_and_reach_no_further(digits):
    counts = []
    for i in range(30):
        picture, boxes, names = scenes.draw_scene((i, 7), digits["test"], clutter=False)
        outside = picture.copy()
        for top, left, bottom, right in boxes.astype(int):
            ink = picture[top:bottom, left:right] >= scenes.EDGE
            assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
            outside[top:bottom, left:right] = 0
        assert (outside < scenes.EDGE).all()
        assert (boxes >= 0).all()
        assert (boxes <= scenes.SIZE).all()
        assert (intersection_over_union(boxes, boxes) - np.eye(len(boxes))).max() <= scenes.MOST_SHARED
        counts.append(len(names))
    assert set(counts) == set(range(1, 7))


def test_clutter_is_behind_the_digits_and_changes_nothing_else(digits):
    with_clutter = scenes.draw_scenes((0, 0), digits["train"], 20)
    without = scenes.draw_scenes((0, 0), digits["train"], 20, clutter=False)
    for i in range(20):
        np.testing.assert_array_equal(with_clutter.boxes[i], without.boxes[i])
        np.testing.assert_array_equal(with_clutter.names[i], without.names[i])
        brightest = without.picture[i] > 0.99
        elsewhere = without.picture[i] == 0
        assert with_clutter.picture[i][brightest].mean() > with_clutter.picture[i][elsewhere].mean() + 0.2
        assert with_clutter.picture[i][elsewhere].std() > 0.02


def test_clothing_is_drawn_like_digits(fashion_mnist_files):
    parts = scenes.split_items(jax.random.key(0), 0.3, "fashion_mnist")
    assert [len(parts[part].names) for part in ("train", "validation", "test")] == [60000, 5000, 5000]
    images = nnfx.data.images("fashion_mnist")
    bright = images.test.inputs[3, ..., 0].astype(float)  # the second image of the test part
    means = (bright[::2, ::2] + bright[1::2, ::2] + bright[::2, 1::2] + bright[1::2, 1::2]) / 4
    np.testing.assert_allclose(parts["test"].images[1], means / means.max())
    assert parts["test"].names[1] == images.test.targets[3]
    assert parts["test"].classes == images.classes
    for i in range(10):
        picture, boxes, _ = scenes.draw_scene((i,), parts["test"], most=1, clutter=False)
        np.testing.assert_array_equal(boxes[0], scenes.extent(picture >= scenes.EDGE))
        assert scenes.draw_scene((i,), parts["test"]).picture.shape == (scenes.SIZE, scenes.SIZE)


def test_a_line_is_as_wide_as_it_says():
    picture = np.zeros((scenes.SIZE, scenes.SIZE))
    scenes.draw_line(picture, np.array([10.5, 20.0]), np.array([10.5, 60.0]), width=3, brightness=0.5)
    np.testing.assert_allclose(picture[8:14, 40], [0, 0.5, 0.5, 0.5, 0, 0])
    assert picture[:, :17].max() == picture[:, 63:].max() == 0
