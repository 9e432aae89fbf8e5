import gzip
import re
import time

import numpy as np
import pytest

from nnfx.data.ts import read_ts
from nnfx.types import Sequences

MOTIONS = b"""%# Accelerometers and gyroscopes.
@problemName BasicMotions
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength true
@seriesLength 3
@classLabel true Standing Running
@data
-0.740653,?,10.208449:2,3.5,-4:Standing
1,2,3:4,5,6:Running
7,8,9:1e2,11,12:Standing
"""
UNEQUAL = MOTIONS.replace(b"equalLength true", b"equalLength false").replace(b"1,2,3:4,5,6", b"1:4")


def change(old, new, data=MOTIONS):
    assert old in data
    return data.replace(old, new)


def test_series_of_equal_length_are_one_array(tmp_path):
    path = tmp_path / "motions.ts"
    path.write_bytes(MOTIONS)
    for source in (path, gzip.compress(MOTIONS), MOTIONS.replace(b"\n", b"\r\n") + b"\n\n"):
        found = read_ts(source, missing="nan")
        wanted = [
            [[-0.740653, 2], [np.nan, 3.5], [10.208449, -4]],
            [[1, 4], [2, 5], [3, 6]],
            [[7, 100], [8, 11], [9, 12]],
        ]
        np.testing.assert_array_equal(found.inputs, wanted)
        assert found.inputs.dtype == np.float64
        assert (found.targets.tolist(), found.classes) == ([0, 1, 0], ("Standing", "Running"))
        assert found.targets.dtype == np.int32


def test_series_of_unequal_length_keep_their_lengths():
    found = read_ts(UNEQUAL, missing="previous")
    assert isinstance(found.inputs, Sequences)
    assert found.inputs.lengths.tolist() == [3, 1, 3]
    np.testing.assert_array_equal(found.inputs.values[0, :, 0], [-0.740653, -0.740653, 10.208449])
    np.testing.assert_array_equal(found.inputs.values[1], [[1, 4], [0, 0], [0, 0]])
    assert isinstance(read_ts(change(b"1:4", b"1,2,3:4,5,6", UNEQUAL), missing="nan").inputs, np.ndarray)


def test_targets_may_be_numbers_or_none():
    numbers = read_ts(b"@targetLabel true\n@data\n1,2:0.5\n3,4:-2\n")
    assert (numbers.targets.tolist(), numbers.classes) == ([0.5, -2.0], ())
    assert numbers.inputs.shape == (2, 2, 1)
    bare = read_ts(b"@classLabel false\n@data\n1,2\n3,4\n")
    assert (bare.targets, bare.classes, bare.inputs[..., 0].tolist()) == (None, (), [[1, 2], [3, 4]])


def test_labels_and_tags_are_read_as_they_are_written():
    found = read_ts(b"@CLASSLABEL  True\t-1  1 a\n@Data\n1:1\n2:-1\n3:a\n")
    assert (found.targets.tolist(), found.classes) == ([1, 0, 2], ("-1", "1", "a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a header that ends with @data, got none"),
        (MOTIONS[: MOTIONS.index(b"-0.74")], "expected at least one example, got none"),
        (change(b"timeStamps false", b"timeStamps true"), "line 3: expected values without times, got @time"),
        (change(b"equalLength true", b"equalLength"), "line 7: expected @equallength true or .* false, got ''"),
        (change(b"true Standing", b"yes Standing"), "line 9: expected @classlabel true or .* false, got 'yes S"),
        (change(b"true Standing Running", b"true"), "line 9: expected @classLabel true .* distinct class labels, got"),
        (change(b"e Standing R", b"e Running R"), r"line 9: .* distinct class labels, got .*'Running', 'Running'\]"),
        (change(b"@dimensions 2", b"@targetLabel true"), "expected @classLabel true or @targetLabel true, got both"),
        (change(b"@classLabel", b"@classes"), "expected @classLabel or @targetLabel in the header, got neither"),
        (change(b"6:Running", b"6:running"), "line 12: expected one of the labels Standing, Running, got 'running'"),
        (change(b":4,5,6", b""), "line 12: expected 2 channels of the same length, got 1 of lengths 3"),
        (change(b"4,5,6", b"4,5"), "line 12: expected 2 channels of the same length, got 2 of lengths 3, 2"),
        (change(b"1,2,3:4,5,6:", b""), "line 12: expected 2 channels of the same length, got 0 of lengths none"),
        (change(b"1,2,3:4,5,6", b"1:4"), "line 12: expected 3 values in each channel, got 1"),
        (change(b"4,5,6", b"4,,6"), "line 12, channel 2, value 2: expected a finite number, got ''"),
        (change(b"4,5,6", b"4,x,6"), "line 12, channel 2, value 2: expected a finite number, got 'x'"),
        (b"@targetLabel true\n@data\n1:x\n", "line 3, target, value 1: expected a finite number, got 'x'"),
        (b"@targetLabel true\n@data\n1:?\n", r"line 3: expected a number as the target, got '\?'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data, message, tmp_path):
    path = tmp_path / "motions.ts"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_ts(path, missing="nan")


def test_missing_values_are_refused_unless_asked_for():
    with pytest.raises(ValueError, match=r"line 11, channel 1, value 2: .*got '\?'; missing='nan' or 'previous'"):
        read_ts(MOTIONS)
    with pytest.raises(ValueError, match="line 11: expected a number as the first value, got none"):
        read_ts(change(b"-0.740653", b"NaN"), missing="previous")
    with pytest.raises(ValueError, match="missing: expected one of"):
        read_ts(MOTIONS, missing="drop")


def test_padding_cannot_exhaust_the_memory():
    header = b"@equalLength false\n@classLabel false\n@data\n"
    text = header + b",".join([b"1"] * 20_000) + b"\n" + b"1\n" * 20_000
    with pytest.raises(ValueError, match="expected at most 100 times as many values .* for 40000 values"):
        read_ts(text)


@pytest.mark.slow
def test_the_time_is_linear_in_the_size():
    def seconds(rows):
        text = b"@classLabel false\n@data\n" + b"1.5,2.5,3.5,4.5:1,2,3,4\n" * rows
        began = time.perf_counter()
        assert read_ts(text).inputs.shape == (rows, 4, 2)
        return time.perf_counter() - began

    seconds(10)
    assert seconds(40_000) < 8 * min(seconds(10_000) for _ in range(3)) + 0.2


# Mutations


def reference(data):
    """Return the values and the labels in a file that was accepted, split in the plainest way."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", data.decode())]
    words = [line.split() for line in lines]
    at = next(number for number, each in enumerate(words) if each and each[0].lower() == "@data")
    tags = {each[0].lower(): each[1:] for each in words[:at] if each}
    has_label = (tags.get("@classlabel") or tags["@targetlabel"])[0].lower() == "true"
    rows = [line.split(":") for line in lines[at + 1 :] if line and line[0] not in "#%"]
    missing = ("?", "nan", "NaN")
    values = [
        [
            [np.nan if v.strip() in missing else float(v) for v in channel.split(",")]
            for channel in row[: len(row) - has_label]
        ]
        for row in rows
    ]
    return [np.array(each).T for each in values], [row[-1].strip() for row in rows] if has_label else None


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    accepted, refused = 0, []
    for trial in range(trials):
        data = UNEQUAL if trial % 2 else MOTIONS
        data = mutate(rng, gzip.compress(data) if trial % 10 == 0 else data, range(100, len(data)))
        try:
            found = read_ts(data, missing="nan")
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        values, labels = reference(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        is_padded = isinstance(found.inputs, Sequences)
        lengths = found.inputs.lengths if is_padded else [found.inputs.shape[1]] * len(found.inputs)
        for row, length, wanted in zip(
            found.inputs.values if is_padded else found.inputs, lengths, values, strict=True
        ):
            np.testing.assert_array_equal(row[:length], wanted)
            assert not row[length:].any()
        if found.classes:
            assert [found.classes[target] for target in found.targets] == labels
    assert 0.05 * trials < accepted < 0.9 * trials
    assert all(re.match("the bytes given: .*expected", message) for message in refused)
