"""Train the points of a search: each program as a sweep, or all together if points are dropped during training."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from nnfx import checks, distributed
from nnfx.data.prepare import Data
from nnfx.search.claims import Job, run_here, run_shared
from nnfx.search.descent import Descent, Visited
from nnfx.search.dropping import Dropping
from nnfx.search.plan import Round
from nnfx.search.programs import Program, in_program
from nnfx.search.stopwatch import Stopwatch
from nnfx.search.together import Tables, Together
from nnfx.sessions.keeper import Keeper
from nnfx.sweeps import Progress, Sweep
from nnfx.sweeps.ahead import Ahead
from nnfx.sweeps.given import check, epochs_per_chunk, keeper_of, mesh_of, table_of
from nnfx.sweeps.members import Members, prepare
from nnfx.sweeps.result import collect
from nnfx.sweeps.table import Table
from nnfx.types import Array

T = TypeVar("T")
Trained = tuple[Round, list[Program], list[Sweep]]
"""A round, its programs, and the result of each program."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains the points of a search; the fields are arguments of `nnfx.search.search`.

    Attributes:
        title: the title of the progress bars, or None to show none.
        ahead: compiles programs in the background.
        watch: measures the time, if the budget is in seconds.
    """

    data: Data
    key: Array
    seeds: int
    folds: int | None
    devices: Sequence[jax.Device] | None
    devices_per_member: int
    at_once: int | None
    memory: int | None
    on_chunk: Callable[[Progress], None] | None
    out: Path | None
    save_every_seconds: float | None
    skip_damaged: bool
    title: str | None
    ahead: Ahead
    watch: Stopwatch

    def check(self, programs: Sequence[Program], dropping: Dropping | None) -> list[Table]:
        """Check everything that can be checked before training, and return the members of each program.

        Raises:
            TypeError, ValueError: as `nnfx.sweeps.sweep` does.
        """
        mesh, tables = mesh_of(self.devices, self.devices_per_member), []
        for program in programs:
            check(program.fit, self.data, self.key, self.on_chunk)
            with in_program(program.static):
                tables.append(
                    table_of(
                        program.fit, self.data, self.key, self.seeds, self.folds, program.columns, mesh, self.memory
                    )
                )
        keeper_of(self.out, self.save_every_seconds, self.skip_damaged, False, tensorboard=False)
        if self.at_once is not None:
            checks.positive_integer("at_once", self.at_once)
        if dropping is not None:
            self.check_held_out()
        return tables

    def check_held_out(self) -> None:
        """Check that there is held-out data to rank points by.

        Raises:
            ValueError: if there is none.
        """
        if self.data.valid is None and self.folds is None:
            raise ValueError("data.valid: expected held-out data to rank points by, got none")

    @property
    def groups(self) -> int:
        """The number of members of each point: seeds times folds."""
        return self.seeds * (self.folds or 1)

    @property
    def is_local(self) -> bool:
        """Whether this process can use all devices by itself."""
        mesh = mesh_of(self.devices, self.devices_per_member)
        return all(device.process_index == jax.process_index() for device in mesh.devices.flat)

    def has_time(self, number: int, cost: float) -> bool:
        """Return whether there is time for a round of the given number and cost; the same in all processes."""
        if self.is_local:
            return self.watch.begin(number, cost)
        return distributed.agree(distributed.is_first() and self.watch.begin(number, cost))

    def train(self, each: Round, programs: Sequence[Program]) -> list[Sweep]:
        """Train the points of a round, and return the result of each program."""
        return self.train_all([(each, programs)])[0]

    def train_all(self, planned: Sequence[tuple[Round, Sequence[Program]]]) -> list[list[Sweep]]:
        """Train the points of several independent rounds, and return the sweeps of each round.

        With an `out` folder, and unless the devices belong to several processes, the work is divided among all
        processes that make the same call.
        """
        jobs = [self._jobs(each, programs) for each, programs in planned]
        trained = iter(self._shared([job for some in jobs for job in some]))
        return [[sweep for _ in some for sweep in next(trained)] for some in jobs]

    def _shared(self, jobs: Sequence[Job[T]]) -> list[T]:
        """Run jobs and return their results.

        The work is divided among processes if there is a folder and all devices are local.
        """
        return run_shared(jobs) if self.out is not None and self.is_local else run_here(jobs)

    def _jobs(self, each: Round, programs: Sequence[Program]) -> list[Job[list[Sweep]]]:
        """Return the jobs of a round: one per program, or one for all if points are dropped."""
        if each.dropping is not None:
            return [Job(self._place(each.name), partial(self._together, each, programs, each.dropping))]
        names = [f"{each.name}/{i:02d}-{program.folder}".strip("-/") for i, program in enumerate(programs)]
        return [
            Job(
                self._place(name),
                partial(self._alone, name, each, program, f"{i + 1}/{len(programs)}"),
                partial(self._prepare, program),
            )
            for i, (name, program) in enumerate(zip(names, programs, strict=True))
        ]

    def _place(self, name: str) -> Path:
        """Return the folder of a job; a relative path that is not used if the search has no folder."""
        return (self.out or Path()) / name

    def _prepare(self, program: Program) -> None:
        """Begin to compile the programs of a sweep in the background."""
        mesh = mesh_of(self.devices, self.devices_per_member)
        table = Table.of(program.fit, self.data, self.key, self.seeds, self.folds, program.columns, mesh)
        prepare(program.fit, table, self.at_once, self.ahead, drops=False)

    def _alone(self, place: str, each: Round, program: Program, count: str) -> list[Sweep]:
        """Train one program to the end, as `nnfx.sweeps.sweep` does."""
        fit, (table,) = program.fit, self.check([program], None)
        chunk, everyone = epochs_per_chunk(fit), table.running()
        members = Members(fit, table, chunk, {}, self.at_once, self.memory, self.ahead, drops=False)

        def look(table: Table) -> None:
            self.watch.tick()
            if self.on_chunk is not None and (table.done % chunk == 0 or members.has_ended(table)):
                self.on_chunk(Progress(table.done, fit.epochs, table.running(), everyone, lambda: collect(fit, table)))

        words = [self.title or "", each.name, count, program.words]
        title = self.title is not None and " ".join(filter(None, words))
        keeper = self._keeper(place, title)
        trained = collect(fit, keeper(members, look=look))
        if keeper.out is not None:
            with contextlib.suppress(OSError):  # a finished program is returned even if its folder is read-only
                trained.save(keeper.out / "members.csv")
        return [trained]

    def _keeper(self, place: str, title: bool | str) -> Keeper:
        """Return the keeper of a job with the given folder, which shows a progress bar if it has a title."""
        out = None if self.out is None else self.out / place
        return keeper_of(out, self.save_every_seconds, self.skip_damaged, title, tensorboard=False, kind="search")

    def _together(self, each: Round, programs: Sequence[Program], dropping: Dropping) -> list[Sweep]:
        """Train all programs together, and rank the points of all programs at each rung."""
        tables = self.check(programs, dropping)
        look_every = int(np.gcd.reduce([*dropping.rungs, *(program.fit.epochs for program in programs)]))
        members = [
            Members(program.fit, table, look_every, {}, self.at_once, self.memory, self.ahead, drops=True)
            for program, table in zip(programs, tables, strict=True)
        ]
        together = Together(programs, members, dropping)
        everyone = sum(table.members for table in tables)

        def look(state: Tables) -> None:
            self.watch.tick()
            if self.on_chunk is not None and (state.done % look_every == 0 or together.has_ended(state)):
                self.on_chunk(Progress(state.done, together.total, together.running(state), everyone))

        keeper = self._keeper(each.name, self.title is not None and f"{self.title} {each.name}".strip())
        state = keeper(together, look=look)
        return [collect(program.fit, table) for program, table in zip(programs, state.tables, strict=True)]

    def descend(self, descents: Sequence[Descent]) -> list[Visited]:
        """Descend from all points of each program, and return the points visited."""
        names = [f"descent/{i:02d}-{each.program.folder}".strip("-") for i, each in enumerate(descents)]
        return self._shared(
            [
                Job(self._place(name), partial(self._descend, name, each), partial(each.prepare, self.ahead))
                for name, each in zip(names, descents, strict=True)
            ]
        )

    def _descend(self, place: str, descent: Descent) -> Visited:
        members = descent.members

        def look(visited: Visited) -> None:
            self.watch.tick()
            if self.on_chunk is not None:
                running = 0 if descent.has_ended(visited) else members
                self.on_chunk(Progress(visited.done, descent.total, running, members))

        keeper = self._keeper(place, self.title is not None and f"{self.title} descent {descent.program.words}".strip())
        return keeper(descent, look=look)
