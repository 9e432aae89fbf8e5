"""Signals that ask a process to end, kept until a good moment to do so."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send before they kill."""


@contextlib.contextmanager
def caught() -> Iterator[list[signal.Signals]]:
    """Note the first signal that asks to end, and leave the next to whoever had them before.

    Outside the main thread, where Python hears no signals, nothing is noted.

    Yields:
        A list that a signal is added to when it comes.

    Example:
        >>> with caught() as signals:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     print(signals)
        [<Signals.SIGTERM: 15>]
    """
    received: list[signal.Signals] = []
    # one whose handler is not Python's could not be put back
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
