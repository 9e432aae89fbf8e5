"""The folder of a run, and the run it belongs to, so that another run never overwrites its results.

Checkpoints describe the run that they belong to. In addition, `run.json` records which run has begun in the folder,
even before the first checkpoint exists.
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnfx import checkpoint, paths
from nnfx.sessions.checkpoints import AnotherRunError
from nnfx.sessions.described_parts import array_words
from nnfx.sessions.identity import Identity, Moments
from nnfx.types import Array, Hyper

NOTES = "run.json"
_KINDS = {"run": "epoch", "run on stored data": "step", "sweep": "epoch"}
"""The kinds of programs, and the unit in which the checkpoints of each are counted."""
_ANOTHER = "use another folder for another run"


class Owner(NamedTuple):
    """The run that a folder belongs to.

    Attributes:
        kind: the kind of its program.
        key: its key.
        hyper: its hyper-parameters.
        identity: everything else that determines it.
    """

    kind: str
    key: Array
    hyper: Hyper
    identity: Identity

    def starting_from(self, start: Moments) -> "Owner":
        """Return the same owner with a description of the arrays that the run starts from."""
        return self._replace(identity=self.identity._replace(start=start))

    @property
    def unit(self) -> str:
        """The unit in which its checkpoints are counted."""
        return _KINDS[self.kind]

    @property
    def notes(self) -> dict[str, Any]:
        """The notes recorded about it."""
        hyper = {name: np.asarray(value).tolist() for name, value in self.hyper.items()}
        key = f"{self.key.dtype} {array_words(self.key)}"
        return {"kind": self.kind, "key": key, "hyper": hyper, **self.identity._asdict()}


def require_usable(out: Path, owner: Owner) -> None:
    """Raise an error if a folder holds anything other than this run, before anything is written.

    Raises:
        NotADirectoryError: for a link or a file in place of a folder.
        ValueError: for checkpoints or logs of another run.
    """
    if not out.is_dir():
        return
    for name in ("checkpoints", "tensorboard"):
        if (out / name).is_symlink():
            raise NotADirectoryError(f"{out / name}: expected a folder, got a link; nothing is written through links")
    noted = _noted(out)
    others = [kind for kind, unit in _KINDS.items() if unit != owner.unit and _is_saved(out, unit)]
    kind = others[0] if others else owner.kind if noted is None else noted["kind"]
    if kind != owner.kind:
        raise ValueError(f"{out}: expected the folder of a {owner.kind}, got that of a {kind}; {_ANOTHER}")
    left = [path for path in (out / "history.csv", out / "evaluation.csv") if path.is_file() and path.stat().st_size]
    left += sorted((out / "tensorboard").glob("events.out.*"))[:1]
    if _is_saved(out, owner.unit) or not left:
        return
    if noted is None:
        raise ValueError(
            f"{left[0]}: expected no logs without the checkpoints of their run, got some; move them away: {_ANOTHER}"
        )
    lines = differences(noted, owner)
    if lines:
        raise ValueError(_another(left[0], lines))
    if noted["saved"]:
        raise ValueError(
            f"{out / 'checkpoints'}: expected the checkpoints that were saved there, got none; put them back, or move"
            f" {left[0].name} and the other logs away to start again"
        )


def note(out: Path, owner: Owner, *, saved: bool) -> None:
    """Record which run has begun in a folder, and whether it has been saved."""
    text = checkpoint.as_json({**owner.starting_from({}).notes, "saved": saved})
    path = out / NOTES
    if path.is_symlink() or not path.is_file() or path.read_text() != text:
        with paths.replace(path) as aside:
            aside.write_text(text)


def note_saved(out: Path, owner: Owner) -> None:
    """Record that a run has been saved; a failure to do so is ignored, since the run has been saved already."""
    with contextlib.suppress(OSError):
        note(out, owner, saved=True)


def require_same(out: Path, saved: Mapping[str, Any], owner: Owner, start: Callable[[], Moments] | None = None) -> None:
    """Raise an error if a checkpoint belongs to another run.

    Args:
        out: the folder.
        saved: the notes of the checkpoint.
        owner: this run.
        start: describes the arrays that this run starts from, if that is not known yet; it is only called if versions
            or devices differ.

    Raises:
        AnotherRunError: if it does; the error lists the differences.
    """
    if start is not None and saved["means"] != owner.identity.means:
        owner = owner.starting_from(start())
    lines = differences(saved, owner)
    if lines:
        raise AnotherRunError(_another(out / "checkpoints", lines))


def differences(noted: Mapping[str, Any], owner: Owner) -> list[str]:
    """Return the ways in which a run differs from the recorded one."""
    mine, identity = owner.notes, Identity(**{name: noted[name] for name in Identity._fields})
    if noted["kind"] != owner.kind:
        return [f"kind: expected a {noted['kind']}, got a {owner.kind}"]
    lines = identity.differences(owner.identity)
    if noted["key"] != mine["key"]:
        lines.append("key: expected the key of the checkpoint, got another")
    names = {**noted["hyper"], **mine["hyper"]}
    lines += [
        f"{name}: expected {_shown(noted, name)}, got {_shown(mine, name)}"
        for name in names
        if not np.array_equal(noted["hyper"].get(name), mine["hyper"].get(name))
    ]
    return lines or identity.other_program(owner.identity)


def _shown(notes: Mapping[str, Any], name: str) -> str:
    return str(np.float32(notes["hyper"][name])) if name in notes["hyper"] else "nothing"


def _another(path: Path, lines: list[str]) -> str:
    listed = "\n  ".join(lines)
    return f"{path}: expected the run that is saved there, got another:\n  {listed}\n{_ANOTHER}"


def _is_saved(out: Path, unit: str) -> bool:
    found = (out / "checkpoints").glob(f"{unit}-*")
    return any(re.fullmatch(r"\w+-\d{8,}", path.name) and path.is_dir() for path in found)


def _noted(out: Path) -> dict[str, Any] | None:
    """Return the contents of a folder's `run.json`; None if there is none."""
    path = out / NOTES
    if not os.path.lexists(path):
        return None
    try:
        noted = checkpoint.from_json(path.read_text())
        Identity(**{name: noted[name] for name in Identity._fields})
        known = {name: noted[name] for name in ("kind", "key", "hyper", "saved")}
        if known["kind"] not in _KINDS:
            raise KeyError(known["kind"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected the description of a session's run, got something else; {_ANOTHER}"
        ) from error
    return dict(noted)
