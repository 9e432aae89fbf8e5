"""A search shared by several processes on this machine, compared with a single process."""

import numpy as np
import pytest

from tests.distributed import searching
from tests.distributed.test_processes import cache, finish, free_port, printed, slurm, start  # noqa: F401
from tests.sessions.sessions import bits


@pytest.fixture(scope="module")
def alone():
    return searching.found()


def test_a_lost_process_is_replaced_by_another_that_shares_the_search(cache, alone, tmp_path):  # noqa: F811
    """One process holds the first program; this one trains the second, then the first once that process is killed."""
    other = start(cache, {}, "tests.distributed.searching", tmp_path, 0, devices=1)
    try:
        assert other.stdout.readline() == "holds\n", other.stderr.read()
        trained = []

        def look(progress):
            trained.append(progress)
            if len(trained) == 2:  # of the second program, whose two epochs are a piece each
                assert not list((tmp_path / "00-width=1" / "checkpoints").glob("epoch-????????2"))
                other.kill()

        found = searching.found(tmp_path, on_chunk=look)
    finally:
        other.kill()
        other.communicate()
    assert len(trained) > 2, "the first program is trained last"
    for mine, theirs in zip(found.sweeps, alone.sweeps, strict=True):
        assert bits((mine.variables, mine.histories)) == bits((theirs.variables, theirs.histories))


@pytest.mark.slow
def test_two_processes_under_nnfx_distributed_train_each_program_once(cache, alone, tmp_path):  # noqa: F811
    port = free_port()
    both = [start(cache, slurm(port, i), "tests.distributed.searching", tmp_path, devices=1) for i in range(2)]
    found = [printed(finish(process)[0]) for process in both]
    for each in found:
        np.testing.assert_array_equal(each["losses"], searching.losses(alone))
    assert sum(each["trained"] for each in found) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("0")) == [
        "members.csv",
        "search.json",
    ]
