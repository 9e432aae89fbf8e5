"""Data files: downloaded from the web, kept in a folder, and verified by their checksums."""

import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from nnfx.paths import absolute

VARIABLE = "NNFX_DATA"
"""The environment variable that names the data folder."""


class File(NamedTuple):
    """A data file.

    Attributes:
        name: its path within the data folder, such as `mnist/train-images-idx3-ubyte.gz`.
        url: its address on the web.
        sha256: its SHA-256 checksum, in hexadecimal.
    """

    name: str
    url: str
    sha256: str


def folder() -> Path:
    """Return the data folder: the one named by `NNFX_DATA`, or by default one in the platform's cache folder.

    Example:
        >>> folder().is_absolute()
        True
    """
    given = os.environ.get(VARIABLE)
    return absolute(VARIABLE, given) if given else Path(_pooch().os_cache("nnfx"))


def fetch(file: File) -> Path:
    """Return the path of a file in the data folder, downloading it first if it is missing.

    A download is renamed to its final name only once it is complete and its checksum is correct. An existing file is
    never changed, and needs no network access.

    Args:
        file: the file to look for.

    Returns:
        The path of a file with the correct checksum.

    Raises:
        ValueError: for a file with the wrong checksum, in the folder or as downloaded.
        OSError: for a file that is missing and cannot be downloaded.
        ModuleNotFoundError: if pooch is needed but not installed.
    """
    path = folder() / file.name
    if path.exists():
        with path.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != file.sha256:
            raise ValueError(
                f"{path}: expected a file with the SHA-256 checksum {file.sha256}, got {found}; move or delete it to"
                f" download it again from {file.url}"
            )
        return path
    pooch = _pooch()
    try:
        pooch.retrieve(file.url, known_hash=f"sha256:{file.sha256}", fname=path.name, path=path.parent)
    except ValueError as error:
        raise ValueError(f"{file.url}: expected the known {path.name}, got a different file: {error}") from error
    except OSError as error:  # which includes all errors of requests
        raise OSError(
            f"{path}: could not download the missing file: {error}; download {file.url} by other means"
            f" (SHA-256 {file.sha256}) and save it there, or as {file.name} in the folder that {VARIABLE} names"
        ) from error
    return path


def _pooch() -> ModuleType:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"pooch: required to download data, or to find its folder if {VARIABLE} is not set, but not installed:"
            " pip install 'nnfx[datasets]'"
        ) from error
    return pooch
