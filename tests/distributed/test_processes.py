"""Several processes on this machine, configured as on clusters, compared with a single process."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnfx
from nnfx import distributed
from tests.distributed import together

ROOT = Path(__file__).parent.parent.parent


def slurm(port, process):
    names = {"JOB_ID": 4242, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": process, "LOCALID": process}
    return {**{f"SLURM_{name}": str(value) for name, value in names.items()}, "JAX_COORDINATOR_PORT": str(port)}


def open_mpi(port, process):
    names = {"WORLD_SIZE": 2, "WORLD_RANK": process, "WORLD_LOCAL_RANK": process}
    return {
        **{f"OMPI_COMM_{name}": str(value) for name, value in names.items()},
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "JAX_COORDINATOR_PORT": str(port),
    }


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder of compiled programs that the processes share."""
    return tmp_path_factory.mktemp("programs")


def start(cache, cluster, *command, devices=2):
    """Start a Python process with some CPU devices, as a cluster does."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {
        **kept,
        **cluster,
        "XLA_FLAGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", *map(str, command)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def alone():
    """Return the weights of the run by one process on one device, and of the steps on the whole batch."""
    run = together.run_of()(jax.random.key(0), nnfx.data.prepare(*together.examples()), learning_rate=together.RATE)
    return {"run": together.numbers(run.state.params), "outputs": together.numbers(run.predict([[0, 1, 2]]))}


def assert_equal(found, wanted):
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def printed(out):
    return json.loads(out.splitlines()[-1])  # the lines before are printed by the communication library


def epochs_logged(folder):
    with (folder / "history.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_two_processes_of_two_devices_compute_what_one_of_four_does(cache, alone, tmp_path):
    port = free_port()
    command = ("nnfx.distributed", "tests.distributed.together", tmp_path)
    (out, _), (nothing, _) = map(finish, [start(cache, slurm(port, i), *command) for i in range(2)])
    assert not nothing
    found = printed(out)
    assert found["devices"] == 4
    data = nnfx.data.prepare(*together.examples())
    four = together.run_of(jax.devices()[:4])(jax.random.key(0), data, learning_rate=together.RATE)
    assert_equal(found["run"], together.numbers(four.state.params))
    assert_equal(found["run"], alone["run"])
    assert_equal(found["outputs"], alone["outputs"])
    assert_equal(found["shares"], together.numbers(together.steps_on_shares().params))
    assert_equal(found["seeds"], together.numbers(together.seeds_spread_over_devices()))
    assert epochs_logged(tmp_path) == list(range(1, together.EPOCHS + 1))
    assert [path.name for path in tmp_path.glob("checkpoints/epoch-*8")] == ["epoch-00000008"]


def kill_one(cache, folder, lost):
    """Kill one of two processes after some epochs; return how the other ended, and after how many seconds."""
    port = free_port()
    both = [start(cache, open_mpi(port, i), "tests.distributed.together", folder, 0.4) for i in range(2)]
    while not (folder / "checkpoints/epoch-00000002").exists() and all(process.poll() is None for process in both):
        time.sleep(0.02)
    both[lost].kill()
    began = time.monotonic()
    both[lost].communicate()
    _, err = both[1 - lost].communicate(timeout=300)
    return both[1 - lost].returncode, err, time.monotonic() - began


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_one_goes_on_with_the_run(cache, alone, tmp_path):
    code, err, seconds = kill_one(cache, tmp_path, lost=1)
    assert code != 0
    assert seconds < 60
    assert re.search(r"stopped sending heartbeats\):\s+1\s", err), err
    assert 2 <= epochs_logged(tmp_path)[-1] < together.EPOCHS
    out, _ = finish(start(cache, {}, "tests.distributed.together", tmp_path))
    assert_equal(printed(out)["run"], alone["run"])
    assert epochs_logged(tmp_path) == list(range(1, together.EPOCHS + 1))


@pytest.mark.slow
def test_the_loss_of_the_first_process_ends_the_other(cache, tmp_path):
    code, err, seconds = kill_one(cache, tmp_path, lost=0)
    assert code != 0
    assert seconds < 60
    assert "leader" in err


@pytest.mark.slow
def test_an_exception_in_one_process_ends_both(cache, tmp_path):
    port = free_port()
    (tmp_path / "checkpoints").write_text("no folder")
    both = [start(cache, slurm(port, i), "tests.distributed.together", tmp_path) for i in range(2)]
    (_, err), _ = (process.communicate(timeout=300) for process in both)
    assert "expected a folder for checkpoints, got a file" in err
    assert all(process.returncode != 0 for process in both)


def test_alone_nothing_is_started(monkeypatch):
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    assert not distributed.start()
    assert not jax.distributed.is_initialized()
    assert distributed.is_first()
    assert distributed.share(10) == slice(0, 10)
    assert distributed.agree({"a": 1}) == {"a": 1}
    distributed.wait()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"coordinator": "localhost"}, "coordinator: expected 'host:port', got 'localhost'"),
        ({"processes": 0}, "processes: expected a positive integer, got 0"),
        ({"processes": 2, "process": 2}, "process: expected a number from 0 to 1 for 2 processes, got 2"),
        ({"heartbeat_seconds": 0}, "heartbeat_seconds: expected a positive integer, got 0"),
        ({"coordinator": "localhost:1"}, "processes, process: expected arguments, or Slurm"),
        ({"processes": 2, "process": 0}, "coordinator: expected arguments, or Slurm"),
    ],
)
def test_a_part_of_what_is_needed_is_refused(monkeypatch, given, error):
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(ValueError, match=re.escape(error)):
        distributed.start(**given)


def test_shares_cover_every_row_once(monkeypatch):
    for count in (1, 2, 3, 7):
        rows = []
        for process in range(count):
            monkeypatch.setattr(distributed.processes._engine, "num_processes", count)
            monkeypatch.setattr(distributed.processes._engine, "process_id", process)
            rows += range(100)[distributed.share(100)]
        assert rows == list(range(100))


def test_rows_that_the_devices_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"rows: expected a multiple of the 8 local devices, got float32\[6,2\]"):
        distributed.from_shares(np.ones((6, 2), np.float32))


def test_what_is_alike_everywhere_stays_as_it_is_alone():
    tree = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    assert distributed.local(tree)["w"] is tree["w"]
    assert distributed.everywhere(tree) is tree


@pytest.mark.slow
def test_a_signal_to_the_first_ends_all_with_a_checkpoint(cache, alone, tmp_path):
    port = free_port()
    both = [start(cache, slurm(port, i), "tests.distributed.together", tmp_path, 0.4) for i in range(2)]
    while not (tmp_path / "checkpoints/epoch-00000002").exists() and both[0].poll() is None:
        time.sleep(0.02)
    both[0].terminate()
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [143, 143], errors
    assert ["SIGTERM: stopped after epoch" in error for error in errors] == [True, False]
    out, _ = finish(start(cache, {}, "tests.distributed.together", tmp_path))
    assert_equal(printed(out)["run"], alone["run"])


@pytest.mark.slow
def test_an_experiment_runs_unchanged(cache, tmp_path):
    port = free_port()
    arguments = ("experiments.titanic", "--out", tmp_path / "two")
    by_hand = ("nnfx.distributed", "--coordinator", f"localhost:{port}", "--processes", 2, "--process")
    (out, _), (nothing, _) = map(finish, [start(cache, {}, *by_hand, i, *arguments) for i in range(2)])
    finish(start(cache, {}, *arguments[:2], tmp_path / "one"))
    assert not nothing
    assert "wrote" in out
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    for summary in (one, two):
        del summary["wall_s"], summary["compile_s"]
    assert one == two
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "two").iterdir()
    )
