import concurrent.futures
import json
import pickle
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as orbax

from nnfx import checkpoint, paths
from nnfx.checkpoint import DamagedError

DTYPES = ["float32", "float16", "int32", "int8", "uint32", "uint8", "bool", "complex64", "float64", "int64"]
EXOTIC = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4]


class State(NamedTuple):
    params: Any
    opt_state: Any
    key: Any


def state():
    return State(
        {"hidden": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(3, jnp.bfloat16)}},
        (jnp.asarray(3, jnp.int32), (), {"mu": jnp.array([-0.0, jnp.nan, jnp.inf])}, None),
        jax.random.key(5),
    )


def same_bits(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "saved", state(), {"epoch": 3})
    return tmp_path / "saved"


arrays = st.one_of(
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
    hnp.arrays(np.int8, hnp.array_shapes(max_dims=2, max_side=3), elements=st.integers(-7, 7)).flatmap(
        lambda array: st.sampled_from(EXOTIC).map(array.astype)
    ),
)
trees = st.recursive(
    st.one_of(arrays, st.none(), st.builds(jax.random.key, st.integers(0, 9), impl=st.sampled_from(["rbg", None]))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b/c", "0", "é"]), inner, max_size=3),
        st.builds(State, inner, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees)
def test_any_tree_comes_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("trees") / "one"
    checkpoint.save(path, tree)
    same_bits(checkpoint.load(path, tree), tree)


def test_a_state_comes_back_into_its_shapes_alone(saved):
    shapes = jax.eval_shape(state)
    loaded = checkpoint.load(saved, shapes)
    same_bits(loaded, state())
    assert all(isinstance(leaf, jax.Array) and not leaf.committed for leaf in jax.tree.leaves(loaded))
    assert checkpoint.read(saved).about == {"epoch": 3}
    assert checkpoint.read(saved).versions["jax"] == jax.__version__
    assert checkpoint.read(saved).leaves[".params['hidden']['bias']"] == "bfloat16[3]"


def test_arrays_come_back_on_the_devices_that_are_asked_for(tmp_path):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    array = jax.device_put(jnp.arange(16.0), rows)
    checkpoint.save(tmp_path / "one", {"a": array, "b": np.arange(3)})
    back = checkpoint.load(tmp_path / "one", {"a": array, "b": np.zeros(3, int)})
    assert back["a"].sharding == rows
    assert isinstance(back["b"], np.ndarray)
    same_bits(back["a"], array)
    moved = checkpoint.load(
        tmp_path / "one",
        {"a": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())), "b": back["b"]},
    )
    assert moved["a"].sharding.is_fully_replicated


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FAULTS = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": flip_a_bit,
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
    "lengthened": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_file_can_be_other_than_it_was_written(saved, tmp_path, fault):
    files = files_of(saved)
    assert len(files) >= 8
    for file in files:
        if fault != "lengthened" and fault != "removed" and not file.stat().st_size:
            continue  # neither is possible for an empty file
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        FAULTS[fault](copy / file.relative_to(saved))
        with pytest.raises(DamagedError, match=r"copy: expected .*(SHA256SUMS|missing|altered)"):
            checkpoint.load(copy, state())
        shutil.rmtree(copy)
    same_bits(checkpoint.load(saved, state()), state())


def test_every_single_bit_of_the_small_files_counts(saved):
    for name in ("SHA256SUMS.sha256", "checkpoint.json"):
        whole = (saved / name).read_bytes()
        for i in range(0, 8 * len(whole), 7):
            content = bytearray(whole)
            content[i // 8] ^= 1 << i % 8
            (saved / name).write_bytes(content)
            with pytest.raises(DamagedError):
                checkpoint.read(saved)
        (saved / name).write_bytes(whole)


def test_a_file_that_was_not_written_is_refused(saved):
    (saved / "arrays" / "more").write_text("x")
    with pytest.raises(DamagedError, match="got changes: arrays/more is unexpected"):
        checkpoint.load(saved, state())


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_the_checksums(saved):
    for name in ("SHA256SUMS", "SHA256SUMS.sha256"):
        subprocess.run(["sha256sum", "--quiet", "--strict", "-c", name], cwd=saved, check=True)
    listed = {line.split("  ")[1] for line in (saved / "SHA256SUMS").read_text().splitlines()}
    found = {file.relative_to(saved).as_posix() for file in files_of(saved)}
    assert found == listed | {"SHA256SUMS", "SHA256SUMS.sha256"}


def test_leaves_come_back_by_path_without_the_tree(tmp_path):
    tree = state()._replace(key=jnp.zeros((0, 2), jnp.int8))
    checkpoint.save(tmp_path / "one", tree, {"epoch": 3})
    description, leaves = checkpoint.load_by_path(tmp_path / "one")
    assert description.about == {"epoch": 3}
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert list(leaves) == list(expected)
    for name, leaf in leaves.items():
        assert isinstance(leaf, np.ndarray)
        assert (leaf.dtype, leaf.shape) == (expected[name].dtype, expected[name].shape)
        assert leaf.tobytes() == np.asarray(expected[name]).tobytes()


def test_random_keys_need_the_tree(saved):
    with pytest.raises(ValueError, match=r"saved: expected a checkpoint without random keys, got one at \.key"):
        checkpoint.load_by_path(saved)


def test_another_tree_is_refused_leaf_by_leaf(saved):
    other = state()._replace(
        params={"hidden": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3)}, "output": jnp.zeros(1)},
        opt_state=(jnp.asarray(3, jnp.int32), (), {}, None),
    )
    with pytest.raises(ValueError, match="expected the leaves of this run, got different ones") as error:
        checkpoint.load(saved, other)
    assert not isinstance(error.value, DamagedError)
    lines = str(error.value).split("\n")
    for line in (
        "  .params['hidden']['kernel']: expected float32[2,4], got float32[2,3]",
        "  .params['hidden']['bias']: expected float32[3], got bfloat16[3]",
        "  .params['output']: expected float32[1], got nothing",
        "  .opt_state[2]['mu']: expected nothing, got float32[3]",
    ):
        assert line in lines
    with pytest.raises(ValueError, match=r"\.key: expected key<rbg>\[\], got key<fry>\[\]"):
        checkpoint.load(saved, state()._replace(key=jax.random.key(0, impl="rbg")))
    many = {str(i): jnp.zeros(1) for i in range(30)}
    with pytest.raises(ValueError, match=r"  and \d+ more\n$"):
        checkpoint.load(saved, many)


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    checkpoint.save(tmp_path / "later", state())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"later: expected a checkpoint of format 2, got 3, written by nnfx \d"):
        checkpoint.load(tmp_path / "later", state())


def test_loading_executes_nothing(saved, monkeypatch):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("something was unpickled"))
    same_bits(checkpoint.load(saved, state()), state())
    for file in files_of(saved):
        assert file.suffix != ".pkl"
        assert b"\x80\x04\x95" not in file.read_bytes(), "the beginning of a pickle"
    json.loads((saved / "checkpoint.json").read_text())


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orbax, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path / "one", state())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": "text"}, TypeError, r"tree: expected arrays, got 'text' at \['a'\]"),
        ({"a": 1.5}, TypeError, "tree: expected arrays, got 1.5"),
        ({"a": np.array(["x"])}, TypeError, "tree: expected arrays of numbers or keys"),
        ({"a": np.array([object()])}, TypeError, "tree: expected arrays of numbers or keys"),
        ({"a": jax.ShapeDtypeStruct((), jnp.float32)}, TypeError, "tree: expected concrete arrays, got shapes"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(tmp_path, tree, error, message):
    with pytest.raises(error, match=message):
        checkpoint.save(tmp_path / "one", tree)
    assert not list(tmp_path.iterdir())


def test_paths_that_are_there_or_not(saved, tmp_path):
    with pytest.raises(FileExistsError, match="saved: expected a path that does not exist yet"):
        checkpoint.save(saved, state())
    with pytest.raises(FileNotFoundError, match="none: expected a checkpoint folder"):
        checkpoint.load(tmp_path / "none", state())
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "one", state(), {"about": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_notes_are_json_that_every_reader_knows(tmp_path):
    about = {
        "loss": float("nan"),
        "all": [float("inf"), -float("inf"), 1.5, None, "NaN"],
        "in": {"a": np.float64("nan")},
    }
    checkpoint.save(tmp_path / "one", state(), about)
    text = (tmp_path / "one" / "checkpoint.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    np.testing.assert_equal(checkpoint.read(tmp_path / "one").about, about)


def test_the_clock_may_be_set_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    real, calls = time.time, []

    def clock(jump_at):
        calls.clear()

        def now():
            calls.append(None)
            return real() + (7200 if len(calls) >= jump_at else 0)

        return now

    monkeypatch.setattr(time, "time", clock(10**9))
    checkpoint.save(tmp_path / "0", state())
    for i, jump_at in enumerate(np.linspace(1, len(calls), 12).astype(int), start=1):
        monkeypatch.setattr(time, "time", clock(jump_at))
        checkpoint.save(tmp_path / str(i), state())
        same_bits(checkpoint.load(tmp_path / str(i), state()), state())


def test_a_write_that_takes_too_long_is_tried_again(tmp_path, monkeypatch):
    write, calls = orbax.save, []

    def once(path, arrays):
        calls.append(path)
        write(path, arrays)
        if len(calls) == 1:
            raise TimeoutError

    monkeypatch.setattr(orbax, "save", once)
    checkpoint.save(tmp_path / "one", state())
    assert len(calls) == 2
    same_bits(checkpoint.load(tmp_path / "one", state()), state())


def test_files_that_vanish_while_a_failed_attempt_is_removed(tmp_path, monkeypatch):
    write, remove, calls, removals = orbax.save, paths.remove, [], []

    def once(path, arrays):
        calls.append(path)
        write(path, arrays)
        if len(calls) == 1:
            raise TimeoutError

    def later(path):
        removals.append(path)
        if len(removals) < 3:
            raise FileNotFoundError(path / "manifest.lock")
        remove(path)

    monkeypatch.setattr(orbax, "save", once)
    monkeypatch.setattr(paths, "remove", later)
    checkpoint.save(tmp_path / "one", state())
    assert len(calls) == 2
    same_bits(checkpoint.load(tmp_path / "one", state()), state())


def test_one_thread_at_a_time_reads_or_writes(tmp_path, monkeypatch):
    inside, most = [], []

    def alone(function):
        def watched(*args):
            inside.append(args)
            most.append(len(inside))
            time.sleep(0.05)
            result = function(*args)
            inside.pop()
            return result

        return watched

    checkpoint.save(tmp_path / "first", {"w": np.ones(3)})
    monkeypatch.setattr(orbax, "save", alone(orbax.save))
    monkeypatch.setattr(orbax, "load", alone(orbax.load))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        saved = [threads.submit(checkpoint.save, tmp_path / str(i), {"w": np.full(3, i)}) for i in range(3)]
        loaded = threads.submit(checkpoint.load, tmp_path / "first", {"w": np.ones(3)})
        for each in (*saved, loaded):
            each.result()
    assert most == [1] * 4
    assert [checkpoint.load(tmp_path / str(i), {"w": np.arange(3)})["w"][0] for i in range(3)] == [0, 1, 2]


def test_a_link_is_there_as_well(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="one: expected a path that does not exist yet"):
        checkpoint.save(tmp_path / "one", state())
    assert not (tmp_path / "nowhere").exists()


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise checkpoint.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checkpoint.metadata, "version", missing)
    assert checkpoint.versions()["nnfx"] == "unknown"


def test_importing_the_library_imports_nothing_that_is_slow_or_optional():
    late = ("orbax.checkpoint", "tqdm", "tensorboard", "sklearn", "pandas", "polars", "pyarrow", "grain")
    late += ("equinox", "haiku", "safetensors", "jax2onnx", "onnx", "onnxruntime", "nnfx.sklearn")
    late += ("datasets", "flax.nnx", "keras", "matplotlib", "mlflow", "pooch", "torch", "tyro", "wandb")
    code = f"import sys, nnfx; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
