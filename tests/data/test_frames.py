import numpy as np
import pytest

from nnfx.data.frames import as_columns, frame_names, in_order_of, repeated

pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
COLUMNS = {"a": [1.0, 2.0], "b": [3.0, 4.0]}


@pytest.mark.parametrize("frame", [pandas.DataFrame(COLUMNS), polars.DataFrame(COLUMNS)], ids=["pandas", "polars"])
def test_frames_are_put_in_order(frame):
    assert frame_names(frame) == ("a", "b")
    np.testing.assert_array_equal(in_order_of(("b", "a"), frame).to_numpy(), [[3, 1], [4, 2]])
    assert in_order_of((), frame) is frame
    assert frame_names(as_columns(frame["a"])) == ("a",)
    with pytest.raises(
        ValueError, match="valid: expected the 1 columns used in training, got columns without 'c' and with 'a', 'b'"
    ):
        in_order_of(("c",), frame, "valid")


def test_what_has_no_names_stays():
    array = np.ones((2, 2))
    assert in_order_of(("a", "b"), array) is as_columns(array) is array
    assert frame_names(array) is None
    assert frame_names(pandas.DataFrame(array)) is None


def test_names_that_come_twice():
    assert repeated(["a", "b", "a", "c", "b", "a"]) == ["a", "b"]
    assert repeated("abc") == []
