import jax
import numpy as np
import pytest

import nnfx
from nnfx.sweeps.points import chosen

KEY = jax.random.key(0)


def test_grids_and_random_points():
    points = nnfx.sweeps.grid(a=[1, 2], b=0.5, c=[3, 4, 5])
    assert list(zip(*(points[name].tolist() for name in "abc"), strict=True))[:4] == [
        (1, 0.5, 3), (1, 0.5, 4), (1, 0.5, 5), (2, 0.5, 3)
    ]  # fmt: skip
    drawn = nnfx.sweeps.draw(KEY, 4000, a=nnfx.sweeps.LogUniform(1e-4, 1.0), b=nnfx.sweeps.Uniform(2, 4))
    assert abs(np.log10(drawn["a"]).mean() + 2) < 0.1
    assert abs(drawn["b"].mean() - 3) < 0.05
    assert abs(np.corrcoef(np.log(drawn["a"]), drawn["b"])[0, 1]) < 0.06


def test_wrong_ranges_raise_a_clear_error():
    with pytest.raises(ValueError, match="a.low: .*above 0"):
        nnfx.sweeps.draw(KEY, 3, a=nnfx.sweeps.LogUniform(0.0, 1.0))
    with pytest.raises(TypeError, match="a: expected Uniform"):
        nnfx.sweeps.draw(KEY, 3, a=(0.0, 1.0))


def test_points_that_are_given_share_the_other_numbers():
    points = chosen(KEY, {"a": [1.0, 2.0, 3.0]}, {"b": 0.5, "c": np.float32(2)})
    assert {name: column.tolist() for name, column in points.items()} == {
        "a": [1.0, 2.0, 3.0],
        "b": [0.5] * 3,
        "c": [2.0] * 3,
    }
    for value, got in (([0.5, 0.6], r"float64\[2\]"), (np.nan, "1 not finite"), ("x", "<U1")):
        with pytest.raises((TypeError, ValueError), match=f"b: expected .*, got .*{got}"):
            chosen(KEY, {"a": [1.0]}, {"b": value})
    with pytest.raises(ValueError, match="a: expected one number for all points, .*, got one in `points` too"):
        chosen(KEY, [{"a": 1.0}], {"a": 2.0})
