"""Jobs shared through the locks of their folders."""

import os
import threading
import time

import pytest

from nnfx.search import claims
from nnfx.search.claims import Job, run_shared
from nnfx.sessions.checkpoints import lock


def jobs_in(folder, done, names=("a", "b")):
    return [Job(folder / name, lambda name=name: done.append(name) or name.upper()) for name in names]


def test_jobs_run_in_order_and_their_results_keep_it(tmp_path):
    done = []
    assert run_shared(jobs_in(tmp_path, done)) == ["A", "B"]
    assert done == ["a", "b"]
    assert run_shared(jobs_in(tmp_path, done)) == ["A", "B"], "the locks were released"


def test_a_job_that_another_holds_is_run_last_once_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.01)
    (tmp_path / "a").mkdir()
    held, done, results = lock(tmp_path / "a"), [], []
    thread = threading.Thread(target=lambda: results.extend(run_shared(jobs_in(tmp_path, done))))
    thread.start()
    try:
        while done != ["b"]:
            assert thread.is_alive()
            time.sleep(0.01)
        time.sleep(0.05)
        assert done == ["b"], "it is held"
    finally:
        os.close(held)
        thread.join()
    assert done == ["b", "a"]
    assert results == ["A", "B"]


def test_two_that_share_jobs_never_run_one_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.01)
    inside, most = dict.fromkeys("abc", 0), []

    def run(name):
        inside[name] += 1
        time.sleep(0.03)
        most.append(inside[name])
        inside[name] -= 1

    jobs = [Job(tmp_path / name, lambda name=name: run(name)) for name in inside]
    both = [threading.Thread(target=run_shared, args=(jobs,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert most == [1] * 6, "each runs every job, and would find it complete the second time"


def test_a_lock_is_released_if_a_job_fails(tmp_path):
    def fail():
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        run_shared([Job(tmp_path / "a", fail)])
    os.close(lock(tmp_path / "a"))


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(claims, "lock", refuse)
    assert run_shared(jobs_in(tmp_path, [])) == ["A", "B"]
    monkeypatch.setattr(claims, "lock", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run_shared(jobs_in(tmp_path, []))


def test_a_job_is_prepared_while_the_one_before_it_runs_unless_it_has_begun(tmp_path):
    told = []

    def job(name):
        return Job(tmp_path / name, lambda: told.append(f"run {name}"), lambda: told.append(f"prepare {name}"))

    (tmp_path / "b").mkdir()
    jobs = [job(name) for name in "abcd"]
    run_shared(jobs)
    assert told == ["prepare a", "run a", "prepare c", "run b", "prepare c", "prepare d", "run c", "prepare d", "run d"]
    told.clear()
    run_shared(jobs)
    assert told == [f"run {name}" for name in "abcd"], "they are finished, and have no programs"
