"""Variables in files of safetensors."""

import errno
import json
import struct
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nnfx import models, trees

DTYPES = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint16", "int32", "int64", "bool"]


def by_hand(path):
    """Read a file as the format is documented: the length of a JSON header, the header, and the bytes of the arrays."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {name: (each["dtype"], each["shape"], data[slice(*each["data_offsets"])]) for name, each in header.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(dtype, tmp_path):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    drawn = np.random.default_rng(0).integers(0, 256, (3, 5, kind.itemsize), np.uint8)  # any bits, NaN among them
    array = (drawn[..., 0] > 100) if dtype == "bool" else drawn.view(kind)[..., 0]
    variables = {"params": {"layer_0": {"kernel": array, "turned": array.T, "one": array[0, 0]}, "none": array[:0]}}
    models.save_safetensors(tmp_path / "weights.safetensors", variables)
    back = models.load_safetensors(tmp_path / "weights.safetensors")
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_the_file_is_as_the_format_says(tmp_path):
    path = tmp_path / "weights.safetensors"
    kernel = jnp.arange(6.0).reshape(2, 3)
    models.save_safetensors(path, {"params": {"layer_0": {"kernel": kernel.T, "bias": jnp.ones(2, jnp.bfloat16)}}})
    found = by_hand(path)
    assert found.keys() == {"params.layer_0.kernel", "params.layer_0.bias"}
    assert found["params.layer_0.kernel"] == ("F32", [3, 2], np.arange(6.0, dtype="<f4").reshape(2, 3).T.tobytes())
    assert found["params.layer_0.bias"] == ("BF16", [2], b"\x80\x3f" * 2)


def test_a_model_starts_from_what_another_saved(tmp_path):
    x = jnp.ones((2, 3))
    model = models.from_equinox(
        lambda key: eqx.nn.Sequential(
            [eqx.nn.Linear(3, 4, key=key), eqx.nn.BatchNorm(4, "batch", mode="batch"), eqx.nn.Linear(4, 1, key=key)]
        )
    )
    variables = model.init(jax.random.key(0), x)
    models.save_safetensors(tmp_path / "weights.safetensors", variables)
    given = models.load_safetensors(tmp_path / "weights.safetensors")
    _, report = models.merge(model.init(jax.random.key(1), x), given)
    assert len(report.taken) == len(jax.tree.leaves(variables))  # the state's tuple among them
    started = models.pretrained(model, given).init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, started, variables)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    models.save_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()

    def fail(arrays, written):
        written.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save_safetensors(path, {"a": np.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("variables", "kind", "message"),
    [
        ({"a": 1.0}, TypeError, "variables: expected arrays of BOOL.*got 1.0 for a"),
        ({"a": {"b": jax.random.key(0)}}, TypeError, r"variables: expected arrays.*got key<fry>\[\] for a.b"),
        ({"a": np.zeros(2, ml_dtypes.int4)}, TypeError, r"variables: expected arrays.*got int4\[2\] for a"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "variables: expected leaves with unique names"),
        ({"a.b": np.ones(1), "a": np.ones(1)}, ValueError, "variables: expected names.*got a and a.b"),
    ],
)
def test_what_cannot_be_written(variables, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        models.save_safetensors(tmp_path / "weights.safetensors", variables)
    assert not list(tmp_path.iterdir())


def written_by_hand(path, header, data=b""):
    words = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + data)


def one(dtype, begin, end):
    return {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"abc"), "path: expected a safetensors file, got w:"),
        (lambda path: path.write_bytes(b""), "path: expected a safetensors file, got w:"),
        (lambda path: written_by_hand(path, {"a": one("U8", 0, 4)}, b"123"), "path: expected a safetensors file"),
        (lambda path: written_by_hand(path, {"a": one("F8_E8M0", 0, 1)}, b"1"), "path: expected"),
        (
            lambda path: written_by_hand(path, {"a": one("U8", 0, 1), "a.b": one("U8", 1, 2)}, b"12"),
            "path: expected names that are not prefixes of others, got a and a.b",
        ),
    ],
)
def test_what_cannot_be_read(write, message, tmp_path):
    write(tmp_path / "w")
    with pytest.raises(ValueError, match=message):
        models.load_safetensors(tmp_path / "w")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        models.load_safetensors(tmp_path / "nothing")


def test_any_altered_file_is_read_as_arrays_or_refused(tmp_path):
    path, rng = tmp_path / "w", np.random.default_rng(0)
    models.save_safetensors(path, {"params": {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.int8)}})
    whole = path.read_bytes()
    for _ in range(500):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content) // 2, 2 * len(content))])
        try:
            found = models.load_safetensors(path)
        except ValueError:
            continue
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: models.save_safetensors(tmp_path / "w", {}), lambda: models.load_safetensors(tmp_path / "w")):
        with pytest.raises(ModuleNotFoundError, match=r"safetensors: required.*nnfx\[safetensors\]"):
            call()


@pytest.mark.parametrize("trials", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_right(trials, mutate, tmp_path):
    rng = np.random.default_rng(trials)
    path = tmp_path / "weights.safetensors"
    kernel = rng.normal(size=(4, 3)).astype(np.float32)
    models.save_safetensors(path, {"params": {"kernel": kernel, "bias": np.arange(3)}, "seen": np.ones(2, np.float16)})
    whole, accepted, refused = path.read_bytes(), 0, []
    for _ in range(trials):
        path.write_bytes(mutate(rng, whole, range(250)))
        try:
            found = trees.named(models.load_safetensors(path))
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        expected = by_hand(path)
        assert {name: (list(leaf.shape), leaf.tobytes()) for name, leaf in found.items()} == {
            name: (shape, content) for name, (_, shape, content) in expected.items()
        }
    assert 0.02 * trials < accepted < 0.9 * trials
    assert all(message.startswith("path: expected ") for message in refused)
