"""Looking after any program; see also `test_session.py`, `test_resuming.py` and `tests/sweeps/test_members.py`."""

import signal

import jax
import pytest

from nnfx.sessions import signals
from nnfx.sessions.keeper import Keeper
from nnfx.training.in_memory import InMemory
from tests.sessions.sessions import TWO_EPOCHS, bits


def test_without_a_folder_a_program_runs_to_the_same_end(data, key, capsys):
    numbers = TWO_EPOCHS.check(key, data, {"learning_rate": 0.1})
    program = InMemory(TWO_EPOCHS, key, data.train, data.valid, numbers)
    for title in (None, "two epochs"):
        seen = []
        keeper = Keeper(None, title=title)
        ended = keeper(program, look=lambda standing, seen=seen: seen.append(int(standing.run.epoch)))
        assert seen[-1] == 2
        assert bits(ended.run.train.params) == bits(
            TWO_EPOCHS(key, data, learning_rate=jax.numpy.float32(0.1)).state.params
        )
        assert ("two epochs: 100%" in capsys.readouterr().err) == (title is not None)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_leaving_says_how_to_go_on(capsys, number, error):
    with pytest.raises(error):
        signals.leave(number, "stopped after epoch 3 of 9")
    assert capsys.readouterr().err == f"{number.name}: stopped after epoch 3 of 9; the same call resumes from there\n"
