"""Programs compiled by threads in the background, while others are compiled or run."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jax.stages import Compiled

MOST_THREADS = 4
"""Each group has two programs: with one group ahead, at most four are compiled at a time."""


class Ahead:
    """Threads that compile programs before they are needed; XLA compiles without Python's lock.

    Programs are traced by the caller, since JAX's settings may differ between threads. On exit, the context drops the
    programs that no thread has begun to compile, and waits for the others, so that no thread outlives it.

    Example:
        >>> import jax
        >>> lowered = jax.jit(lambda x: x + 1).lower(1.0)
        >>> with Ahead() as ahead:
        ...     compiled = ahead.compile(lowered.compile)
        >>> compiled.result()(2.0).item()
        3.0
    """

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None

    def compile(self, function: Callable[[], Compiled]) -> "Future[Compiled]":
        """Call a function that compiles a program in one of the threads."""
        if self._threads is None:
            # XLA uses several threads itself, and the caller needs a core: with two threads on two cores, both wait
            count = min(MOST_THREADS, max(1, (os.cpu_count() or 1) // 2))
            self._threads = ThreadPoolExecutor(count, thread_name_prefix="nnfx-compile")
        return self._threads.submit(function)
