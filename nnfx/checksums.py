"""Checksums of the files in a folder, in the format of `sha256sum -c`, and a checksum of that list."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from nnfx import checks

_SUMS, _SEAL = "SHA256SUMS", "SHA256SUMS.sha256"


class DamagedError(ValueError):
    """Raised for a checkpoint whose files differ from those that were written."""


def write(folder: Path) -> None:
    """Write the checksum of every file in a folder, and a checksum of that list, into the folder."""
    (folder / _SUMS).write_text(_lines(_checksums(folder)))
    (folder / _SEAL).write_text(_lines({_SUMS: _checksum(folder / _SUMS)}))


def verify(path: Path) -> None:
    """Compare every file of a folder with its checksum.

    Raises:
        DamagedError: if a file is missing, unexpected or altered.
    """
    for name in (_SUMS, _SEAL):
        if not (path / name).is_file():
            raise DamagedError(f"{path}: expected a complete checkpoint, got one without {name}")
    if (path / _SEAL).read_bytes() != _lines({_SUMS: _checksum(path / _SUMS)}).encode():
        raise DamagedError(f"{path}: expected {_SUMS} with the checksum in {_SEAL}, got a different one")
    lines = (path / _SUMS).read_text().splitlines()
    wanted = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
    got = _checksums(path)
    problems = [
        *(f"{name} is missing" for name in sorted(wanted.keys() - got.keys())),
        *(f"{name} is unexpected" for name in sorted(got.keys() - wanted.keys())),
        *(f"{name} is altered" for name in sorted(wanted.keys() & got.keys()) if wanted[name] != got[name]),
    ]
    if problems:
        raise DamagedError(
            f"{path}: expected the files as they were written, got changes: {checks.listed(problems, ', ')}"
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if not file.is_dir())
    named = {file.relative_to(path).as_posix(): file for file in files}
    return {name: _checksum(file) for name, file in sorted(named.items()) if name not in (_SUMS, _SEAL)}


def _lines(checksums: Mapping[str, str]) -> str:
    """Return checksums in the format of `sha256sum`."""
    return "".join(f"{checksum}  {name}\n" for name, checksum in checksums.items())
