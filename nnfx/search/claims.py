"""Jobs that several processes share: each locks the folder of a job while it works on it, and skips locked ones.

A lock is released when its process ends in whatever way, so another process takes over at once, from the newest
checkpoint. Processes may be started and lost at any time, and need not know of each other; with collective operations,
all of them would have to start together, and the loss of one would end the others.
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
"""How long to wait before looking again whether another process has released a job."""


class Job(NamedTuple, Generic[T]):
    """A job, and the folder that it is saved in.

    Attributes:
        place: the folder.
        run: runs the job from where the folder says it stopped, and returns its result; if it has ended, that is all.
    """

    place: Path
    run: Callable[[], T]


def run_shared(jobs: Sequence[Job[T]]) -> list[T]:
    """Return the results of all jobs, and run those that no other process is running or has run.

    Args:
        jobs: the same in every process. This process runs the first that is not locked; those of other processes follow
            once these have released them, and are then loaded, or continued if they have not ended.
    """
    results: dict[int, T] = {}
    while len(results) < len(jobs):
        before = len(results)
        for i, job in enumerate(jobs):
            if i not in results:
                with _claimed(job.place) as is_mine:
                    if is_mine:
                        with distributed.alone():
                            results[i] = job.run()
        if len(results) == before:
            time.sleep(LOOK_SECONDS)
    return [results[i] for i in range(len(jobs))]


@contextlib.contextmanager
def _claimed(place: Path) -> Iterator[bool]:
    """Lock a folder, created if missing, and yield whether no other process has; a read-only one needs no lock."""
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
