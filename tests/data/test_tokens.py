import numpy as np
import pytest

from nnfx.data import next_tokens


@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 20, 23])
@pytest.mark.parametrize(("length", "context"), [(1, 0), (3, 0), (3, 2), (7, 3), (40, 39)])
def test_every_token_but_the_first_is_a_target_once_after_enough_others(count, length, context):
    tokens = np.arange(count) + 100
    batch = next_tokens(tokens, length, context)
    inputs, targets, has_weight = (np.asarray(part) for part in (batch.inputs, batch.targets, batch.weights == 1))
    assert inputs.shape == targets.shape == has_weight.shape == (len(inputs), length)
    assert sorted(targets[has_weight]) == list(tokens[1:])
    np.testing.assert_array_equal(targets[has_weight], inputs[has_weight] + 1)
    for row, column in zip(*np.nonzero(has_weight), strict=True):
        np.testing.assert_array_equal(np.diff(inputs[row, : column + 1]), 1)
        assert column >= context or inputs[row, 0] == 100
    assert has_weight.any(1).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0, 2.0], 1), TypeError, "tokens: expected integers, got float64"),
        (([1], 1), ValueError, r"tokens: expected shape \(tokens,\) with at least two non-negative integers, got"),
        (([[1, 2]], 1), ValueError, r"tokens: expected shape \(tokens,\) with at least two"),
        (([1, -2], 1), ValueError, r"tokens: expected shape \(tokens,\) with at least two non-negative"),
        (([1, 2**31], 1), ValueError, "tokens: expected integers that int32 can hold, got 2147483648"),
        (([1, 2], 0), ValueError, "length: expected a positive integer, got 0"),
        (([1, 2], 3, -1), ValueError, "context: expected a non-negative integer, got -1"),
        (([1, 2], 3, 3), ValueError, "context: expected less than the length of 3, got 3"),
    ],
)
def test_wrong_input(arguments, error, message):
    with pytest.raises(error, match=message):
        next_tokens(*arguments)
