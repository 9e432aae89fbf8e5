"""The lines that the README prints for loggers, run as they are, offline: each gets every epoch."""

import re
from pathlib import Path

import jax
import optax
import pytest

import nnfx

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Return the function that runs the block of a logger in an empty folder, and returns the run."""
    monkeypatch.chdir(tmp_path)
    data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
    train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.adam, epochs=4)

    def run(package):
        (block,) = re.findall(rf"```py\n(import {package}\n.*?)```", README, re.DOTALL)
        assert block.count("\n") <= 6
        names = {"jax": jax, "nnfx": nnfx, "train": train, "data": data}
        exec(compile(block, "README.md", "exec"), names)
        return names["run"]

    return run


@pytest.mark.filterwarnings("ignore")  # its own
def test_weights_and_biases(log, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = log("wandb")
    wandb.teardown()  # ends the process that writes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    places = [content.index(repr(loss).encode()) for loss in run.history["valid_loss"].tolist()]
    assert places == sorted(places)


@pytest.mark.filterwarnings("ignore")  # those of SQLAlchemy
def test_mlflow(log, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    run = log("mlflow")
    (found,) = mlflow.MlflowClient().search_runs(["0"])
    for name, values in run.history.items():
        logged = mlflow.MlflowClient().get_metric_history(found.info.run_id, name)
        assert [(each.step, each.value) for each in logged] == list(enumerate(values.tolist(), start=1))
