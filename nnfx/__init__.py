"""Neural networks on JAX, with a whole training run as one pure function.

- `nnfx.models`: dense, convolutional and recurrent networks, and Flax modules, as pure `init` / `apply` pairs.
- `nnfx.activations`, `nnfx.losses`, `nnfx.metrics`, `nnfx.ops`: the building blocks, as functions.
- `nnfx.data`: data sets (the Titanic passengers, images, time series) and preprocessing; `nnfx.augment`: augmentation.
- `nnfx.make_step`: the stateless training step.
- `nnfx.fit`: a training run as a pure function of a key, data and hyper-parameters.
- `nnfx.stopping`, `nnfx.schedules`, `nnfx.regularizers`, `nnfx.averaging`: stopping rules, learning-rate schedules,
  weight penalties and weight averages.
- `nnfx.optimizers.freeze`: an optimizer that leaves some parameters unchanged.
- `nnfx.session`: a long run that shows its progress and, after an interruption, resumes from its last checkpoint; its
  data may be larger than memory.
- `nnfx.load`: a model saved by `run.save`; it predicts without the data or the code it was trained with.
- `nnfx.data_parallel`: the training step with its batch split over devices.
- `nnfx.sweeps`: many runs as one program; `nnfx.uncertainty`: how far predictions can be trusted.
- `nnfx.search`: a search for the best of many runs, also over static choices such as widths.
- `nnfx.insight`: audits and traces of gradients, the landscape and curvature of the loss, and the inputs that a network
  responds to.
- `nnfx.forecasting`: windows, forecasters, intervals, scores and backtests; every forecaster is a model.
- `nnfx.sklearn`: estimators and a search that follow scikit-learn's conventions; importing it imports scikit-learn.
- `nnfx.distributed`: several processes, on one machine or many, that run as one program.
- `nnfx.cpu`: one call that configures JAX for the cores and the memory of this machine; `nnfx.compilation_cache`:
  compiled programs kept on disk.
"""

import importlib
from typing import TYPE_CHECKING, Any

import jaxlib.version

from nnfx import compatibility, data, losses, metrics
from nnfx.training.fit import fit
from nnfx.training.run import Run
from nnfx.training.step import evaluate, init_state, make_step, split_key
from nnfx.types import Batch, Mean, Model, TrainState

if TYPE_CHECKING:  # imported when they are first used: see __getattr__
    from nnfx import (
        activations,
        augment,
        averaging,
        checkpoint,
        compilation_cache,
        cpu,
        distributed,
        forecasting,
        insight,
        models,
        ops,
        optimizers,
        regularizers,
        saving,
        schedules,
        search,
        shards,
        stopping,
        sweeps,
        uncertainty,
    )
    from nnfx.saving import load
    from nnfx.sessions.session import session
    from nnfx.training.data_parallel import data_parallel

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Mean",
    "Model",
    "Run",
    "TrainState",
    "activations",
    "augment",
    "averaging",
    "checkpoint",
    "compilation_cache",
    "cpu",
    "data",
    "data_parallel",
    "distributed",
    "evaluate",
    "fit",
    "forecasting",
    "init_state",
    "insight",
    "load",
    "losses",
    "make_step",
    "metrics",
    "models",
    "ops",
    "optimizers",
    "regularizers",
    "saving",
    "schedules",
    "search",
    "session",
    "shards",
    "split_key",
    "stopping",
    "sweeps",
    "uncertainty",
]


_FUNCTIONS = {
    "data_parallel": "nnfx.training.data_parallel",
    "load": "nnfx.saving",
    "session": "nnfx.sessions.session",
    "stream": "nnfx.sessions.session",  # its former name for data larger than memory
}


def __getattr__(name: str) -> Any:
    """Import modules and functions when they are first used, so that `import nnfx` is quick."""
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module(_FUNCTIONS[name]), "session" if name == "stream" else name)
    elif name in __all__ or name == "sklearn":
        value = importlib.import_module(f"nnfx.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


compatibility.warn_if_affected(jaxlib.version.__version__)
