"""The folder of a run, with a record of the run, so that another run never overwrites its results.

Checkpoints describe the run to which they belong. In addition, `run.json` records which run has begun in the folder,
even before the first checkpoint exists.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnfx import checkpoint, paths
from nnfx.sessions.checkpoints import AnotherRunError, saved_in
from nnfx.sessions.identity import UNITS, Identity, Moments

NOTES, NOTES_OF_SEARCH = "run.json", "search.json"
"""The files that describe the run or the search to which a folder belongs."""
_ANOTHER = "use a different folder for each run"


def require_usable(out: Path, identity: Identity) -> None:
    """Raise an error if a folder belongs to another run, before anything is written.

    Raises:
        NotADirectoryError: for a symbolic link in place of a subfolder.
        ValueError: for checkpoints or logs of another run.
    """
    if not out.is_dir():
        return
    for name in ("checkpoints", "tensorboard"):
        if (out / name).is_symlink():
            raise NotADirectoryError(f"{out / name}: expected a folder, got a link; nothing is written through links")
    noted = _noted(out)
    others = [kind for kind, unit in UNITS.items() if unit != identity.unit and saved_in(out / "checkpoints", unit)]
    kind = others[0] if others else identity.kind if noted is None else noted["kind"]
    if kind != identity.kind:
        raise ValueError(f"{out}: expected the folder of a {identity.kind}, got the folder of a {kind}; {_ANOTHER}")
    left = [path for path in (out / "history.csv", out / "evaluation.csv") if path.is_file() and path.stat().st_size]
    left += sorted((out / "tensorboard").glob("events.out.*"))[:1]
    if saved_in(out / "checkpoints", identity.unit) or not left:
        return
    if noted is None:
        raise ValueError(
            f"{left[0]}: expected no logs without checkpoints of the same run, got some; move them away, or {_ANOTHER}"
        )
    if lines := Identity.noted(noted).differences(identity):
        raise ValueError(_another(left[0], lines))
    if noted["saved"]:
        raise ValueError(
            f"{out / 'checkpoints'}: expected the checkpoints that were saved there, got none; restore them, or move"
            f" {left[0].name} and the other logs away to start again"
        )


def refuse_search(out: Path) -> None:
    """Raise an error if a folder belongs to a search, whose sweeps have their own subfolders.

    Raises:
        ValueError: for the folder of a search.
    """
    if (out / NOTES_OF_SEARCH).is_file():
        raise ValueError(f"{out}: expected the folder of a run or a sweep, got the folder of a search; {_ANOTHER}")


def note(out: Path, identity: Identity, *, saved: bool) -> None:
    """Record which run has begun in a folder, and whether it has been saved."""
    text = checkpoint.as_json({**identity._replace(start={})._asdict(), "saved": saved})
    path = out / NOTES
    if path.is_symlink() or not path.is_file() or path.read_text() != text:
        with paths.replace(path) as aside:
            aside.write_text(text)


def note_saved(out: Path, identity: Identity) -> None:
    """Record that a run has been saved; errors are ignored, since the run itself has been saved."""
    with contextlib.suppress(OSError):
        note(out, identity, saved=True)


def require_same(out: Path, noted: Mapping[str, Any], identity: Identity, start: Callable[[], Moments]) -> None:
    """Raise an error if a checkpoint belongs to another run.

    Args:
        out: the folder.
        noted: the notes of the checkpoint.
        identity: this run.
        start: a function that describes this run's initial arrays, called only if versions or devices differ.

    Raises:
        AnotherRunError: if the checkpoint belongs to another run; the message lists the differences.
    """
    saved = Identity.noted(noted)
    if saved.means != identity.means:
        identity = identity._replace(start=start())
    if lines := saved.differences(identity):
        raise AnotherRunError(_another(out / "checkpoints", lines))


def _another(path: Path, lines: list[str]) -> str:
    listed = "\n  ".join(lines)
    return f"{path}: expected the run that is saved there, got a different one:\n  {listed}\n{_ANOTHER}"


def _noted(out: Path) -> dict[str, Any] | None:
    """Return the contents of a folder's `run.json`; None if there is none."""
    path = out / NOTES
    if not os.path.lexists(path):
        return None
    try:
        noted = checkpoint.from_json(path.read_text())
        if Identity.noted(noted).kind not in UNITS or "saved" not in noted:
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: could not read the description of a run; {_ANOTHER}") from error
    return dict(noted)
