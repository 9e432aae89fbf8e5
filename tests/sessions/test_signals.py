import signal
import threading

import pytest

from nnfx.sessions.signals import ASKING, caught


def handlers():
    return [signal.getsignal(number) for number in ASKING]


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_is_noted_and_the_next_is_left_to_who_had_it(number):
    heard = []
    previous = signal.signal(number, lambda *_: heard.append("mine"))
    try:
        before = handlers()
        with caught() as received:
            assert handlers() != before
            signal.raise_signal(number)
            assert (received, heard) == ([number], [])
            assert handlers() == before
            signal.raise_signal(number)
            assert (received, heard) == ([number], ["mine"])
        assert handlers() == before
    finally:
        signal.signal(number, previous)


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), caught():
        raise ZeroDivisionError
    assert handlers() == before


def test_without_a_signal_nothing_is_noted():
    with caught() as received:
        pass
    assert received == []


def test_outside_the_main_thread_handlers_are_left_alone():
    seen = []

    def run():
        before = handlers()
        with caught() as received:
            seen.append((received, handlers() == before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [([], True)]
