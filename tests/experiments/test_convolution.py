import numpy as np
import pytest
from scipy import ndimage, signal

from experiments import convolution


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (1, 1)])
def test_sliding_by_hand_is_correlation(shape):
    random = np.random.default_rng(0)
    image, kernel = random.integers(-9, 17, (8, 7)), random.integers(-3, 4, shape)
    np.testing.assert_array_equal(convolution.slide(image, kernel), signal.correlate2d(image, kernel, mode="valid"))


@pytest.mark.parametrize("shape", [(6, 6), (5, 8)])
def test_pooling_by_hand_is_a_maximum_filter_at_every_second_place(shape):
    sums = np.random.default_rng(1).integers(-9, 9, shape)
    everywhere = ndimage.maximum_filter(sums, size=2, origin=-1)
    height, width = (size // 2 for size in shape)
    np.testing.assert_array_equal(convolution.pool(sums), everywhere[::2, ::2][:height, :width])


def test_the_sum_that_is_written_out_is_the_one_in_the_table():
    digit = np.random.default_rng(2).integers(0, 17, (8, 8))
    words = convolution.products(digit)
    assert words.count("·") == 9
    total = sum(int(a) * int(b.strip("()").replace("−", "-")) for a, b in (p.split("·") for p in words.split(" + ")))
    assert total == convolution.slide(digit, convolution.EDGE)[convolution.PLACE]


def test_a_difference_is_seen():
    sums = np.arange(9).reshape(3, 3)
    assert convolution.compare(sums, convolution.as_batch(sums)) == 0
    assert convolution.compare(sums, convolution.as_batch(sums).at[0, 1, 1, 0].add(2)) == 2
