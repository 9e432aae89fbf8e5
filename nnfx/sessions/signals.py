"""Termination signals, deferred until the process can end safely."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from nnfx import distributed

ASKING = (signal.SIGINT, signal.SIGTERM)
"""The termination signals: Ctrl-C, and the signal that schedulers send before they kill a process."""


@contextlib.contextmanager
def caught() -> Iterator[list[signal.Signals]]:
    """Record the first termination signal, and leave later signals to the previous handlers.

    Outside the main thread, where Python receives no signals, nothing is recorded.

    Yields:
        A list to which the signal is appended on arrival.

    Example:
        >>> with caught() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(signals)
        [<Signals.SIGTERM: 15>]
    """
    received: list[signal.Signals] = []
    # a handler that was not installed from Python could not be restored
    asking = [number for number in ASKING if signal.getsignal(number) is not None]
    if threading.current_thread() is not threading.main_thread() or not asking:
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        put_back()

    previous = {number: signal.signal(number, note) for number in asking}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield received
    finally:
        put_back()


def leave(asked: int, where: str) -> NoReturn:
    """Print how to continue, and exit as requested by the signal."""
    if distributed.is_first():
        print(f"{signal.Signals(asked).name}: {where}; the same call resumes from there", file=sys.stderr, flush=True)
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + asked)
