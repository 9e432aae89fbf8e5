import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx.checkpoint import as_json, from_json
from nnfx.data.prepare import Report
from nnfx.data.preprocess import Preprocess
from nnfx.saving.fields import joined, split

RAW = np.array([[1.0, 1e7], [2.0, np.nan], [4.0, 3e7]])


def through_json(value):
    notes, found = split(value)
    return joined(from_json(as_json(notes)), [np.asarray(array) for array in found])


@pytest.mark.parametrize(
    "options",
    [
        {"missing": "median"},
        {"missing": "median", "standardize": False, "features": ("a", "b")},
        {"missing": "drop"},
        {"missing": "drop", "standardize": False},
    ],
)
def test_preprocessing_comes_back_bit_for_bit(options):
    preprocess = nnfx.data.prepare(RAW, np.zeros(3), **options).preprocess
    back = through_json(preprocess)
    assert jax.tree.structure(back) == jax.tree.structure(preprocess)
    for mine, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(preprocess), strict=True):
        assert (mine.dtype, np.asarray(mine).tobytes()) == (theirs.dtype, np.asarray(theirs).tobytes())
    np.testing.assert_array_equal(back(RAW[::2]), preprocess(RAW[::2]))


def test_named_tuples_and_mappings():
    report = Report(3, 0, {"a": 1}, 3, 0)
    assert through_json(report) == report


@pytest.mark.parametrize("value", [object(), {1: 2}, {"a": object()}, np.array(["a"]), b"bytes"])
def test_what_json_and_arrays_cannot_hold(value):
    scalar = jnp.zeros(())
    with pytest.raises(TypeError, match=r"preprocess\.features.*: expected arrays, numbers, strings, or tuples"):
        split(Preprocess(None, scalar, scalar, (), (1,), features=value))


def test_classes_of_others_are_neither_written_nor_imported():
    with pytest.raises(TypeError, match=r"preprocess: expected classes of nnfx.data, got nnfx.types.Mean"):
        split(nnfx.Mean(jnp.zeros(()), jnp.zeros(())))
    for name in ("subprocess.Popen", "nnfx.data.nowhere.Data", "nnfx.data.prepare.prepare", "nnfx.data.prepare.Array"):
        with pytest.raises(ValueError, match="preprocess: expected a class in this version of nnfx.data"):
            joined({"class": name, "fields": {}}, [])


def test_fields_of_another_version():
    notes, found = split(nnfx.data.prepare([[1.0], [2.0]], [0, 1]).preprocess)
    notes["fields"]["newer"] = 1
    with pytest.raises(ValueError, match="preprocess: expected the fields of nnfx.data.preprocess.Preprocess, got"):
        joined(notes, found)
