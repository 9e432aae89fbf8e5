"""The folder of a search, with a record of the search, so that another search never overwrites its results."""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnfx import paths
from nnfx.search.plan import Round
from nnfx.search.space import Choice, Point, Space, When
from nnfx.sessions.described_parts import array_words
from nnfx.sessions.folder import NOTES, NOTES_OF_SEARCH
from nnfx.types import Array

_ANOTHER = "use a different folder for each search"


def require_same(out: Path, facts: Mapping[str, str]) -> None:
    """Record which search a new folder belongs to, or check that an existing folder belongs to this search.

    Args:
        out: the folder, created if missing.
        facts: everything that determines the search, by name.

    Raises:
        ValueError: for the folder of another search, or of a run or a sweep.
    """
    path = out / NOTES_OF_SEARCH
    if path.is_file():
        try:
            noted = json.loads(path.read_text())
            lines = [
                f"{name}: expected {noted.get(name, 'nothing')}, got {facts.get(name, 'nothing')}"
                for name in {**noted, **facts}
                if noted.get(name) != facts.get(name)
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: could not read the description of a search; {_ANOTHER}") from error
        if lines:
            listed = "\n  ".join(lines)
            raise ValueError(f"{out}: expected the search saved there, got a different one:\n  {listed}\n{_ANOTHER}")
    elif (out / NOTES).is_file():
        raise ValueError(f"{out}: expected the folder of a search, got the folder of a run or a sweep; {_ANOTHER}")
    else:
        with contextlib.suppress(OSError):  # if the folder is unusable, training raises the error
            out.mkdir(parents=True, exist_ok=True)
            with paths.replace(path) as aside:
                aside.write_text(json.dumps(facts, indent=2) + "\n")


def facts_of(key: Array, seeds: int, folds: int | None) -> dict[str, str]:
    """Return the facts that every search depends on."""
    return {"key": array_words(key), "seeds": str(seeds), "folds": str(folds or "none")}


def facts_of_rounds(rounds: Sequence[Round]) -> dict[str, str]:
    """Return the facts that determine a search whose points are known before it begins."""
    facts = {}
    for each in rounds:
        name = f" of {each.name}" if each.name else ""
        facts[f"points{name}"] = f"{len(each.points)} in all, {checksum(each.points)}"
        facts[f"points kept{name}"] = "all" if each.dropping is None else each.dropping.words
    return facts


def words_of(space: Space) -> str:
    """Return a space as text that is the same in every process.

    >>> words_of({"activation": Choice(max, "tanh"), "l2": When("activation", max, Choice(0.1))})
    'activation: Choice(max, tanh); l2: When(activation, max, Choice(0.1))'
    """
    return "; ".join(f"{name}: {_range(given)}" for name, given in space.items())


def _range(given: Any) -> str:
    if isinstance(given, When):
        return f"When({given.name}, {_exact(given.member)}, {_range(given.range)})"
    if isinstance(given, Choice):
        return f"Choice({', '.join(map(_exact, given.members))})"
    return str(given)


def checksum(points: Sequence[Point]) -> str:
    """Return a checksum of points, with all digits of their values."""
    text = "\n".join(", ".join(f"{name}={_exact(value)}" for name, value in sorted(point.items())) for point in points)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _exact(value: Any) -> str:
    """Return a value as text, numbers with all digits and functions by name, without memory addresses."""
    return getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
