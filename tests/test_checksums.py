"""The checksums of a folder's files, against those of the standard library."""

import hashlib

import pytest

from nnfx import checksums
from nnfx.checksums import DamagedError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "inner" / "b.txt").write_text("b")
    checksums.write(tmp_path)
    return tmp_path


def test_the_files_are_those_of_sha256sum(folder):
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in ("a.bin", "inner/b.txt")
    ]
    assert (folder / "SHA256SUMS").read_text() == "".join(lines)
    seal = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (folder / "SHA256SUMS.sha256").read_text() == f"{seal}  SHA256SUMS\n"
    checksums.verify(folder)


def altered(folder):
    content = bytearray((folder / "a.bin").read_bytes())
    content[100] ^= 1
    (folder / "a.bin").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered, "a.bin is altered"),
        (lambda folder: (folder / "inner" / "b.txt").unlink(), "inner/b.txt is missing"),
        (lambda folder: (folder / "c").write_text(""), "c is unexpected"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "one without SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS.sha256").unlink(), "one without SHA256SUMS.sha256"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "expected SHA256SUMS with the checksum in"),
    ],
)
def test_every_change_is_found(folder, change, message):
    change(folder)
    with pytest.raises(DamagedError, match=message):
        checksums.verify(folder)


def test_several_changes_are_listed(folder):
    altered(folder)
    (folder / "inner" / "b.txt").unlink()
    with pytest.raises(DamagedError, match=r"inner/b.txt is missing, a.bin is altered"):
        checksums.verify(folder)
