"""The time that a search has used, and the rounds that its budget of seconds allows."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnfx import paths
from nnfx.search.claims import LOOK_SECONDS, claimed
from nnfx.search.methods import Seconds

SAVE_SECONDS = 1.0
"""The interval at which the time is saved; after a kill, at most this much time, plus one piece, is not counted."""
now: Callable[[], float] = time.monotonic


class Stopwatch:
    """Measures a search and its rounds, and decides whether there is time for another round.

    With a folder, time and decisions are saved in its file `rounds/rounds.json`. A resumed search continues with the
    time in the file, and all processes that share a search follow the first decision about each round.

    Args:
        budget: the budget; without one, nothing is measured.
        out: the folder of the search, or None.
    """

    def __init__(self, budget: Seconds | None, out: Path | None) -> None:
        self._limit = None if budget is None else float(budget.seconds)
        self._folder = None if out is None else out / "rounds"
        self._began, self._before = now(), 0.0
        self._is_open, self._saved_at = False, self._began
        self._noted: dict[str, Any] = {"seconds": 0.0, "rounds": [], "is_over": False}

    @property
    def seconds(self) -> float:
        """The seconds used so far, including those before an interruption."""
        return self._before + now() - self._began

    def begin(self, number: int, cost: float) -> bool:
        """Decide whether to train a round: the first always, others if there is time, judging by the previous round.

        Args:
            number: the number of the round, from 0.
            cost: the cost of the round, in any unit that all rounds share.
        """
        return self._with_folder(lambda: self._begin(number, cost))

    def end(self, number: int, cost: float) -> None:
        """Record that a round has ended, and its cost."""
        self._with_folder(lambda: self._end(number, cost))

    def tick(self) -> None:
        """Save the time used, if this is due."""
        if self._is_open and not self._noted["is_over"] and now() - self._saved_at >= SAVE_SECONDS:
            self._with_folder(self._save)

    def _begin(self, number: int, cost: float) -> bool:
        assert self._limit is not None
        rounds = self._noted["rounds"]
        if number < len(rounds) or self._noted["is_over"]:
            return number < len(rounds)
        last = rounds[-1] if rounds else {"seconds": 0.0, "cost": 1.0}
        fits: bool = not rounds or self.seconds + last["seconds"] / last["cost"] * cost <= self._limit
        if fits:
            rounds.append({"began": self.seconds})
        self._noted["is_over"] = not fits
        self._save()
        return fits

    def _end(self, number: int, cost: float) -> None:
        noted = self._noted["rounds"][number]
        if "seconds" not in noted:
            noted.update(seconds=self.seconds - noted["began"], cost=cost)
            self._save()

    def _save(self) -> None:
        self._saved_at = now()
        self._noted["seconds"] = max(self._noted["seconds"], self.seconds)  # the longest time of any process
        if self._folder is not None:
            with paths.replace(self._folder / "rounds.json") as aside:
                aside.write_text(json.dumps(self._noted, indent=2) + "\n")

    def _with_folder(self, do: Callable[[], Any]) -> Any:
        """Call a function while the folder is locked, after reading the notes in it."""
        if self._folder is None:
            self._is_open = True
            return do()
        while True:
            with claimed(self._folder) as is_mine:
                if is_mine:
                    self._read(self._folder / "rounds.json")
                    return do()
            time.sleep(LOOK_SECONDS / 10)

    def _read(self, path: Path) -> None:
        if path.is_file():
            try:
                self._noted = json.loads(path.read_text())
                before = float(self._noted["seconds"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: could not read the time that the search has used") from error
            if not self._is_open:
                self._before = before
        self._is_open = True
