import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

from nnfx import checkpoint, checksums
from nnfx.checkpoint import DamagedError
from nnfx.sessions import checkpoints as host_checkpoints
from nnfx.sessions.checkpoints import Checkpoints


def state():
    return {"a": jnp.arange(3.0), "key": jax.random.key(5)}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def names(checkpoints):
    return [int(path.name.removeprefix("epoch-")) for path in checkpoints.paths()]


def test_the_last_and_the_best_are_kept(tmp_path):
    losses = [5.0, 1.0, np.nan, 0.5, -np.inf, 3.0, 6.0]
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
            pytest.raises(BlockingIOError, match="another active run is using this folder"),
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
            match=r"3: expected the files.*the newest good checkpoint is .*1: skip_damaged=True resumes from it",
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
        checkpoints.save(2, tree, loss=1.0)  # a damaged checkpoint beside it has no effect
        checkpoints.wait()
        shutil.rmtree(tmp_path / "epoch-00000002")
        for skip_damaged in (False, True):
            with pytest.raises(DamagedError, match="1: expected .*; no usable checkpoint in "):
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
            OSError, match=r"2: could not write a checkpoint: .*No space left.*newest checkpoint is .*1"
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
    assert "could not write a checkpoint" in error.value.__notes__[0]


def test_stray_files_and_links_are_no_checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), loss=0.0)
    (tmp_path / "epoch-00000002").write_text("stray")
    (tmp_path / "epoch-notes").write_text("stray")
    (tmp_path / "epoch-00000003").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".epoch-00000004.1a").symlink_to(tmp_path / "epoch-00000001")
    (tmp_path / ".epoch-00000005.1a").write_text("left over")
    with Checkpoints(tmp_path) as checkpoints:
        assert names(checkpoints) == [1]
        assert checkpoints.resume(lambda _: state()) is not None
        for number in (2, 3):
            checkpoints.save(number, state(), loss=0.0)
    assert names(checkpoints) == [1, 2, 3]
    kept = {path.name.partition(".stray")[0]: path for path in tmp_path.glob("*.stray*")}
    assert kept["epoch-00000002"].read_text() == "stray"
    assert kept["epoch-00000003"].is_symlink()
    assert not list(tmp_path.glob(".epoch-*"))


@pytest.mark.parametrize(
    "fault",
    [
        lambda path: path.joinpath("checkpoint.json").chmod(0) or path.joinpath("SHA256SUMS").unlink(),
        lambda path: reseal(path, {"format": checkpoint.FORMAT}),
        lambda path: reseal(path, []),
        lambda path: reseal(path, {"format": checkpoint.FORMAT, "leaves": 1, "versions": {}, "about": {}}),
    ],
)
def test_whatever_is_wrong_with_a_checkpoint_it_can_be_passed_over(tmp_path, fault):
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, state(), loss=0.0)
    fault(tmp_path / "epoch-00000002")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            DamagedError, match="2: (expected|could not) .*; the newest good checkpoint is .*1: skip_damaged=True"
        ):
            checkpoints.resume(lambda _: state())
        with pytest.warns(UserWarning, match="it was renamed to epoch-00000002.damaged"):
            path, _, _ = checkpoints.resume(lambda _: state(), skip_damaged=True)
    assert path.name == "epoch-00000001"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("x"), RuntimeError("Orbax says no")])
def test_whatever_loading_raises_an_older_one_may_do(tmp_path, monkeypatch, error):
    with Checkpoints(tmp_path, keep_last=3) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, state(), loss=0.0)
    load = orbax.load

    def fail(path, like):
        if "00000002" in str(path):
            raise error
        return load(path, like)

    monkeypatch.setattr(orbax, "load", fail)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(DamagedError, match=f"2: could not read the checkpoint: {type(error).__name__}"):
            checkpoints.resume(lambda _: state())
        with pytest.warns(UserWarning, match="damaged"):
            path, _, _ = checkpoints.resume(lambda _: state(), skip_damaged=True)
    assert path.name == "epoch-00000001"


def reseal(path, content):
    """Write other notes, with matching checksums."""
    (path / "checkpoint.json").write_text(json.dumps(content))
    lines = [f"{checksums._checksum(path / name)}  {name}" for name in sorted(checksums._checksums(path))]
    (path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    (path / "SHA256SUMS.sha256").write_text(f"{checksums._checksum(path / 'SHA256SUMS')}  SHA256SUMS\n")


def test_a_checkpoint_is_verified_once(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), loss=0.0)
    verified, verify = [], checksums.verify
    monkeypatch.setattr(checksums, "verify", lambda path: verified.append(path) or verify(path))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.resume(lambda _: state()) is not None
    assert len(verified) == 1


def test_a_lock_is_neither_emptied_nor_followed(tmp_path):
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".lock").hardlink_to(tmp_path / "outside")
    with Checkpoints(tmp_path / "folder"):
        pass
    assert (tmp_path / "outside").read_text() == "kept"


def test_a_folder_that_cannot_be_written_can_be_read(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), loss=0.0)

    def refused(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(host_checkpoints, "lock", refused)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.resume(lambda _: state()) is not None
        with pytest.raises(PermissionError, match="Permission denied"):
            checkpoints.save(2, state(), loss=0.0)
    with pytest.raises(PermissionError, match="Permission denied"):
        Checkpoints(tmp_path / "empty").__enter__()


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file: expected a folder for checkpoints, got a file"):
        Checkpoints(tmp_path / "file").__enter__()
