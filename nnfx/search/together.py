"""Several programs advanced together, so that the points of all programs are ranked together at each rung."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.stages import Lowered

from nnfx.search.dropping import Dropping
from nnfx.search.programs import Program
from nnfx.sessions.described_parts import parts_of
from nnfx.stopping import Clock
from nnfx.sweeps.members import Members
from nnfx.sweeps.table import Table
from nnfx.training import driver
from nnfx.training.driver import History


@dataclasses.dataclass
class Tables:
    """The members of each program, and the number of epochs completed."""

    tables: list[Table]
    done: int = 0


class Together(driver.Program[Tables]):
    """The members of several programs, driven as one program by a host loop; see `nnfx.sweeps.members.Members`.

    Args:
        programs: the programs of the search.
        members: the members of each program, which do not drop points by themselves.
        dropping: the rule for dropping points, applied to all programs together.
    """

    kind = "sweep"
    units_per_epoch = 1

    def __init__(self, programs: Sequence[Program], members: Sequence[Members], dropping: Dropping) -> None:
        self._members, self._dropping = members, dropping
        longest = max(members, key=lambda each: each.total)
        self.recipe, self.key, self.hyper = longest.recipe, longest.key, {}
        self.longest, self.pause_every = longest.longest, longest.pause_every
        described = {
            str(i): {
                "static": program.words,
                "points": str({name: column.tolist() for name, column in program.columns.items()}),
                "parts": parts_of(program.fit),
            }
            for i, program in enumerate(programs)
        }
        self.data = {**members[0].data, "points kept of all": dropping.words, "programs": described}

    def start(self) -> Tables:
        """Return the initial state of all members."""
        tables = []
        for i, members in enumerate(self._members):
            for each in self._members[i : i + 2]:  # one program is compiled ahead
                each.prepare()
            tables.append(self._on_host(members.start()))
        return Tables(tables)

    def advance(self, state: Tables, until: int, clock: Clock) -> Tables:
        """Train all programs until epoch `until`, and drop points if this epoch is a rung."""
        each = list(zip(self._members, state.tables, strict=True))
        for i, (members, table) in enumerate(each):
            for some, of_some in each[i : i + 2]:  # one program is compiled ahead
                some.prepare(of_some)
            if not members.has_ended(table):
                self._on_host(members.advance(table, min(until, members.total), clock))
        state.done = until
        if until in self._dropping.rungs:
            self._drop(state)
        return state

    def done(self, state: Tables) -> int:
        """Return the number of completed epochs."""
        return state.done

    def has_ended(self, state: Tables) -> bool:
        """Return whether no member is running."""
        return state.done >= self.total or all(map(Members.has_ended, self._members, state.tables))

    def history(self, state: Tables, since: int) -> History:
        """Return the number of running members in each epoch after `since`, and the lowest value of each metric."""
        if state.done <= since:
            return {}
        told = [members.history(table, since) for members, table in zip(self._members, state.tables, strict=True)]
        longest = state.done - since
        running = [_padded(each["running"], longest, 0) for each in told if each]
        joined: History = {"running": np.sum(running, axis=0)}
        names = {name for each in told for name in each if name.endswith("_lowest")}
        for name in sorted(names):
            joined[name] = np.fmin.reduce([_padded(each[name], longest, np.nan) for each in told if name in each])
        return joined

    def saved(self, state: Tables) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the contents of a checkpoint."""
        each = [members.saved(table) for members, table in zip(self._members, state.tables, strict=True)]
        noted = [{**notes, "epoch": table.done} for (_, notes), table in zip(each, state.tables, strict=True)]
        return {str(i): arrays for i, (arrays, _) in enumerate(each)}, {"programs": noted}

    def expected(self, noted: Mapping[str, Any]) -> dict[str, Any]:
        """Return a template for the arrays of a checkpoint."""
        notes = zip(self._members, noted["programs"], strict=True)
        return {str(i): members.expected(each) for i, (members, each) in enumerate(notes)}

    def restored(self, arrays: dict[str, Any], noted: Mapping[str, Any]) -> Tables:
        """Rebuild the state from a checkpoint."""
        notes = enumerate(zip(self._members, noted["programs"], strict=True))
        return Tables([members.restored(arrays[str(i)], each) for i, (members, each) in notes], noted["epoch"])

    @property
    def lowered(self) -> list[Lowered]:
        """The programs of one member per program on one device, lowered but not compiled."""
        return [each for members in self._members for each in members.lowered]

    def running(self, state: Tables) -> int:
        """Return the number of members still running."""
        return sum(table.running() for table in state.tables)

    def _drop(self, state: Tables) -> None:
        """Apply the rule for dropping points to the losses of all programs."""
        tables = state.tables
        losses = np.concatenate([_losses(table, state.done) for table in tables], axis=1)
        kept, begin = self._dropping.kept(losses), 0
        for table in tables:
            table.drop_all_but(kept[(kept >= begin) & (kept < begin + table.width)] - begin)
            begin += table.width

    def _on_host(self, table: Table) -> Table:
        """Move a program's state to the host if there are several programs, so that devices hold only one state."""
        if len(self._members) > 1:
            table.state = jax.tree.map(np.asarray, table.state)
        return table


def _losses(table: Table, epochs: int) -> np.ndarray:
    """Return the held-out losses of a table, `(groups, points, epochs)`, NaN for epochs that were not run."""
    losses = table.history["valid_loss"].reshape(-1, table.width, table.epochs)[..., :epochs]
    return np.pad(losses, ((0, 0), (0, 0), (0, epochs - losses.shape[-1])), constant_values=np.nan)


def _padded(values: np.ndarray, length: int, fill: float) -> np.ndarray:
    """Pad the history of a program that has ended to a given length.

    >>> _padded(np.array([3, 2]), 4, 0)
    array([3, 2, 0, 0])
    """
    return np.concatenate([values, np.full(length - len(values), fill, np.asarray(values).dtype)])
