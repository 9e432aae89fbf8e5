import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

from nnfx import checkpoint
from nnfx.checkpoint import DamagedError
from nnfx.host.checkpoints import Checkpoints


def state():
    return {"a": jnp.arange(3.0), "key": jax.random.key(5)}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "epoch-00000001", state())["a"], state()["a"])

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
