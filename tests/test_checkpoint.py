import json
import pickle
import shutil
import subprocess
import sys
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

from nnfx import checkpoint
from nnfx.checkpoint import Checkpoints, DamagedError

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
            continue  # an empty file can be neither
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
    with pytest.raises(DamagedError, match="got others: arrays/more is additional"):
        checkpoint.load(saved, state())


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_the_checksums(saved):
    for name in ("SHA256SUMS", "SHA256SUMS.sha256"):
        subprocess.run(["sha256sum", "--quiet", "--strict", "-c", name], cwd=saved, check=True)
    listed = {line.split("  ")[1] for line in (saved / "SHA256SUMS").read_text().splitlines()}
    found = {file.relative_to(saved).as_posix() for file in files_of(saved)}
    assert found == listed | {"SHA256SUMS", "SHA256SUMS.sha256"}


def test_another_tree_is_refused_leaf_by_leaf(saved):
    other = state()._replace(
        params={"hidden": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3)}, "output": jnp.zeros(1)},
        opt_state=(jnp.asarray(3, jnp.int32), (), {}, None),
    )
    with pytest.raises(ValueError, match="expected the leaves of this run, got others") as error:
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
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    checkpoint.save(tmp_path / "later", state())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"later: expected a checkpoint of format 1, got 2, made by nnfx \d"):
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
        ({"a": jax.ShapeDtypeStruct((), jnp.float32)}, TypeError, "tree: expected arrays with values, got shapes"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(tmp_path, tree, error, message):
    with pytest.raises(error, match=message):
        checkpoint.save(tmp_path / "one", tree)
    assert not list(tmp_path.iterdir())


def test_paths_that_are_there_or_not(saved, tmp_path):
    with pytest.raises(FileExistsError, match="saved: expected nothing there yet"):
        checkpoint.save(saved, state())
    with pytest.raises(FileNotFoundError, match="none: expected a checkpoint, which is a folder"):
        checkpoint.load(tmp_path / "none", state())
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "one", state(), {"about": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def names(checkpoints):
    return [int(path.name.removeprefix("epoch-")) for path in checkpoints.paths()]


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = [5.0, 1.0, np.nan, 0.5, 4.0, 3.0, 6.0]
    with Checkpoints(tmp_path, keep_last=2, keep_best=2) as checkpoints:
        for epoch, loss in enumerate(losses, start=1):
            checkpoints.save(epoch, state(), loss=loss)
    assert names(checkpoints) == [2, 4, 6, 7]
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.save(8, state(), loss=np.nan)
    assert names(checkpoints) == [4, 8]
    with Checkpoints(tmp_path, keep_last=1, keep_best=0) as checkpoints:
        checkpoints.save(9, state(), loss=1.0)
    assert names(checkpoints) == [9]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "epoch-00000009"]
    (tmp_path / "epoch-00000009").rename(tmp_path / "epoch-99999999")
    with Checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.save(10**8, state(), loss=1.0)
    assert names(checkpoints) == [99_999_999, 10**8]


def test_a_save_takes_the_arrays_as_they_are_when_it_is_asked_for(tmp_path):
    mutable = np.arange(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": mutable}, loss=0.0)
        mutable[:] = 9
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "epoch-00000001", {"a": mutable})["a"], [0, 1, 2])


def test_what_a_killed_save_leaves_is_no_checkpoint_and_goes(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), loss=0.0)
    for left_over in (".epoch-00000002.77", ".epoch-00000001.dropped"):
        shutil.copytree(tmp_path / "epoch-00000001", tmp_path / left_over)
    (tmp_path / ".epoch-00000002.77" / "SHA256SUMS").unlink()
    assert names(checkpoints) == [1]
    with Checkpoints(tmp_path) as checkpoints:
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "epoch-00000001"]


def test_a_folder_belongs_to_one_process(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with (
            pytest.raises(BlockingIOError, match="expected no other run to be saved here, got one that is going on"),
            Checkpoints(tmp_path),
        ):
            pass
        checkpoints.save(1, state(), loss=0.0)
    with Checkpoints(tmp_path) as checkpoints:
        assert names(checkpoints) == [1]


def test_the_newest_good_one_is_offered_or_taken(tmp_path):
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.save(epoch, {"a": jnp.full(3, epoch)}, loss=0.0)
    flip_a_bit(tmp_path / "epoch-00000003" / "checkpoint.json")
    (tmp_path / "epoch-00000002" / "SHA256SUMS").unlink()

    def like(_):
        return {"a": jnp.zeros(3, int)}

    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            DamagedError,
            match=r"3: expected the files.*the newest good checkpoint is .*1: skip_damaged=True goes on from there",
        ):
            checkpoints.resume(like)
        assert names(checkpoints) == [1, 2, 3]
        with pytest.warns(UserWarning, match="damaged") as warned:
            path, description, tree = checkpoints.resume(like, skip_damaged=True)
        assert len(warned) == 2
        assert path.name == "epoch-00000001"
        assert description.about["epoch"] == 1
        np.testing.assert_array_equal(tree["a"], 1)
        assert names(checkpoints) == [1]
        assert (tmp_path / "epoch-00000003.damaged").is_dir()
        flip_a_bit(path / "checkpoint.json")
        checkpoints.save(2, tree, loss=1.0)  # a damaged one beside it does no harm
        checkpoints.wait()
        shutil.rmtree(tmp_path / "epoch-00000002")
        for skip_damaged in (False, True):
            with pytest.raises(DamagedError, match="1: expected .*; no checkpoint in .* can be used"):
                checkpoints.resume(like, skip_damaged=skip_damaged)
    with Checkpoints(tmp_path / "other") as checkpoints:
        assert checkpoints.resume(like) is None


def test_a_save_that_fails_is_told_and_what_was_saved_stays(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), loss=0.0)
        checkpoints.wait()
        monkeypatch.setattr(orbax, "save", full)
        checkpoints.save(2, state(), loss=0.0)
        with pytest.raises(
            OSError, match=r"2: expected a checkpoint to be written, got .*No space left.*newest checkpoint is .*1"
        ):
            checkpoints.save(3, state(), loss=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "epoch-00000001"]
    same_bits(checkpoint.load(tmp_path / "epoch-00000001", state()), state())

    def fail():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, state(), loss=0.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as error:
        fail()
    assert "expected a checkpoint to be written" in error.value.__notes__[0]


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file: expected a folder for checkpoints, got a file"):
        Checkpoints(tmp_path / "file").__enter__()
    for name, value in (("keep_last", 0), ("keep_best", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected a .*integer, got {value}"):
            Checkpoints(tmp_path, **{name: value})


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise checkpoint.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checkpoint.metadata, "version", missing)
    assert checkpoint.versions()["nnfx"] == "unknown"


def test_importing_the_library_imports_neither_orbax_nor_tqdm():
    code = "import sys, nnfx; print([m for m in ('orbax.checkpoint', 'tqdm', 'tensorboard') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
