"""Jobs shared by several processes, each of which locks a job's folder while running it, and skips locked jobs.

A lock is released when its process ends for any reason, so another process can take over at once, from the newest
checkpoint. Processes may be started and lost at any time, and need not know of each other. With collective operations,
all processes would have to start together, and the loss of one would end the others.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from nnfx import distributed
from nnfx.sessions.checkpoints import lock

T = TypeVar("T")
LOOK_SECONDS = 0.5
"""The time to wait, in seconds, before checking again whether another process has released a job."""


class Job(NamedTuple, Generic[T]):
    """A job and its folder.

    Attributes:
        place: the folder in which the job is saved.
        run: resumes the job from its folder and returns its result; for a finished job, only loads its result.
        prepare: begins to compile, in the background, what the job needs if it starts from the beginning; called
            shortly before the job is run, while the previous job runs, or both.
    """

    place: Path
    run: Callable[[], T]
    prepare: Callable[[], None] = lambda: None


def run_here(jobs: Sequence[Job[T]]) -> list[T]:
    """Run all jobs in this process, whatever their folders contain, and return their results."""
    results = []
    for i, job in enumerate(jobs):
        for each in jobs[i : i + 2]:
            each.prepare()
        results.append(job.run())
    return results


def run_shared(jobs: Sequence[Job[T]]) -> list[T]:
    """Run all jobs that no other process is running or has finished, and return the results of all jobs.

    Args:
        jobs: the same jobs in every process. Each process runs the first unlocked job; jobs locked by other processes
            are loaded once they are released, or continued if they have not finished.
    """
    results: dict[int, T] = {}
    while len(results) < len(jobs):
        before = len(results)
        for i, job in enumerate(jobs):
            if i not in results:
                new = [each for each in jobs[i : i + 2] if not each.place.exists()]  # no process has begun them
                with claimed(job.place) as is_mine:
                    if is_mine:
                        for each in new:
                            each.prepare()
                        with distributed.alone():
                            results[i] = job.run()
        if len(results) == before:
            time.sleep(LOOK_SECONDS)
    return [results[i] for i in range(len(jobs))]


@contextlib.contextmanager
def claimed(place: Path) -> Iterator[bool]:
    """Try to lock a folder, created if missing, and yield whether this succeeded; a read-only folder needs no lock."""
    with contextlib.ExitStack() as closing:
        try:
            place.mkdir(parents=True, exist_ok=True)
            closing.callback(os.close, lock(place))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        yield True
