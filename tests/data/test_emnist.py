import gzip
import hashlib
import importlib
import io
import re
import struct
import zipfile

import numpy as np
import pytest

import nnfx
from nnfx.data import emnist, read_emnist

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (rows, 28, 28), np.uint8) for rows in (6, 3)]
PARTS = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape) + array.tobytes()


def archive(name="letters", labels=None, **changes):
    """Return the zip file of a data set whose images lie on their side, as in EMNIST."""
    classes, first = len(emnist.CLASSES[name]), int(name == "letters")
    labels = labels or [RNG.integers(first, first + classes, len(each), np.uint8) for each in IMAGES]
    arrays = [IMAGES[0].swapaxes(1, 2), labels[0], IMAGES[1].swapaxes(1, 2), labels[1]]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("gzip/emnist-letters-mapping.txt", "1 65 97")
        for part, array in zip(PARTS, arrays, strict=True):
            content = changes.get(part.replace("-", "_"), gzip.compress(idx(np.ascontiguousarray(array))))
            if content is not None:
                written.writestr(f"gzip/emnist-{name}-{part}-ubyte.gz", content)
    return buffer.getvalue(), labels


@pytest.mark.parametrize("name", emnist.CLASSES)
def test_images_are_upright_and_labels_begin_at_zero(name, tmp_path):
    content, labels = archive(name)
    (tmp_path / "gzip.zip").write_bytes(content)
    for source in (content, tmp_path / "gzip.zip"):
        for examples, images, of_set in zip(read_emnist(source, name), IMAGES, labels, strict=True):
            np.testing.assert_array_equal(examples.inputs[..., 0], images)
            np.testing.assert_array_equal(examples.targets, of_set - (name == "letters"))


def test_classes_are_those_of_the_published_mappings():
    """EMNIST's own files map label 10 to A and, in the merged sets, 36 and 46 to a and t; 61 is z in the others."""
    counts = {name: len(set(classes)) for name, classes in emnist.CLASSES.items()}
    assert counts == {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
    merged, apart = emnist.CLASSES["balanced"], emnist.CLASSES["byclass"]
    assert (merged[10], merged[36], merged[43], merged[46], apart[36], apart[61]) == ("A", "a", "n", "t", "a", "z")


def test_the_source_becomes_data(tmp_path, monkeypatch):
    content, labels = archive("balanced")
    module = importlib.import_module("nnfx.data.images")
    [file] = module._SOURCES["emnist_balanced"].files
    assert file.url == "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
    (tmp_path / file.name).parent.mkdir()
    (tmp_path / file.name).write_bytes(content)
    known = file._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("NNFX_DATA", str(tmp_path))
    source = module._SOURCES["emnist_balanced"]
    monkeypatch.setitem(module._SOURCES, "emnist_balanced", source._replace(files=(known,)))
    images = nnfx.data.images("emnist_balanced")
    data = images.prepare(hold_out_test=True)
    np.testing.assert_allclose(data.valid.inputs[..., 0], IMAGES[1] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.train.targets, labels[0])
    assert data.classes == emnist.CLASSES["balanced"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no zip file", "expected a complete EMNIST zip file, got a damaged one"),
        (archive()[0][:-30], "expected a complete EMNIST zip file, got a damaged one"),
        (
            archive(test_labels_idx1=None)[0],
            "expected a zip file that contains gzip/emnist-letters-test-labels-idx1-",
        ),
        (archive(test_labels_idx1=b"\x1f\x8bno")[0], "letters: .*expected"),
        (archive(test_labels_idx1=idx(np.ones(4, np.uint8)))[0], "letters: .*expected one label for each of the 3"),
        (archive(labels=[np.zeros(6, np.uint8), np.ones(3, np.uint8)])[0], "expected labels from 1 to 26"),
        (archive(test_images_idx3=bytes(10**7))[0], "expected gzip/.* to be smaller than the zip file"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        read_emnist(data, "letters")
    with pytest.raises(ValueError, match="name: expected one of 'balanced'"):
        read_emnist(data, "latin")


@pytest.mark.parametrize("trials", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(trials, mutate):
    rng = np.random.default_rng(trials)
    whole, labels = archive()
    starts = [found.start() for found in re.finditer(b"PK", whole)]
    accepted, refused = 0, []
    for _ in range(trials):
        data = mutate(rng, whole, [start + offset for start in starts for offset in range(40)])
        try:
            found = read_emnist(data, "letters")
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1  # the checksums of zip and gzip leave only what does not matter to the contents
        for examples, images, of_set in zip(found, IMAGES, labels, strict=True):
            np.testing.assert_array_equal(examples.inputs[..., 0], images)
            np.testing.assert_array_equal(examples.targets + 1, of_set)
    assert 0.01 * trials < accepted < 0.9 * trials
    assert all(re.match("the bytes given: .*expected", message) for message in refused)
