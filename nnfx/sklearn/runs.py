"""Functions for the runs of estimators: weighted standardisation, resuming, joint training and pickling."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nnfx import distributed, memo
from nnfx.data.prepare import Data, prepare
from nnfx.data.preprocess import Preprocess
from nnfx.data.splits import at_random
from nnfx.mapping import POINTS, side_by_side
from nnfx.sweeps.block_size import best_at_once
from nnfx.training.epochs import RunState, scan_epochs, start, with_final_as_best
from nnfx.training.fit import Fit
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.types import Array, Batch, Hyper, TrainState


class Scale(NamedTuple):
    """The mean and the standard deviation of each column, in float64.

    Attributes:
        mean: `(1, columns)`.
        deviation: `(1, columns)`; 1 for a constant column.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, weights: np.ndarray) -> "Scale":
        """Compute the weighted mean and standard deviation of columns `(rows, ...)`; a weight of 2 counts as two rows.

        Weights are `(rows,)`, or have the shape of `columns`.

        >>> scale = Scale.of(np.array([[1.0], [4.0], [9.0]]), np.array([2.0, 1.0, 0.0]))
        >>> scale.mean.item(), round(scale.deviation.item(), 3)
        (2.0, 1.414)
        """
        counted = weights > 0
        if weights.ndim == 1:
            columns, weights = columns[counted].astype(np.float64), weights[counted]
        elif not counted.any(0).all():
            raise ValueError("y: expected known values of each output in the training rows, got an output with none")
        mean = np.average(columns, axis=0, weights=weights)[None]
        deviation = np.sqrt(np.average((columns - mean) ** 2, axis=0, weights=weights))[None]
        deviation[deviation <= 1e-12 * np.abs(mean)] = 1
        return cls(mean, deviation)

    @classmethod
    def none(cls, columns: int) -> "Scale":
        """Return the identity scale, with mean 0 and deviation 1."""
        return cls(np.zeros((1, columns)), np.ones((1, columns)))

    def apply(self, columns: np.ndarray) -> np.ndarray:
        """Standardise columns."""
        return (columns - self.mean) / self.deviation

    def undo(self, columns: np.ndarray) -> np.ndarray:
        """Convert standardised columns back to their original units, in the same dtype."""
        return (columns * self.deviation + self.mean).astype(columns.dtype)


def training_rows(key: Array, count: int, valid_fraction: float) -> np.ndarray:
    """Return the indices of the rows in the training split of `prepared`."""
    return at_random(key, np.arange(count), valid_fraction)[0]


def prepared(
    key: Array,
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None,
    scale: Scale | None,
    valid_fraction: float,
    features: Sequence[str],
) -> Data:
    """Prepare data as `nnfx.data.prepare` does, but standardised by a given scale."""
    data = prepare(
        inputs if scale is None else scale.apply(inputs),
        targets,
        key=key,
        valid_fraction=valid_fraction,
        standardize=False,
        missing_targets="mask",
        weights=weights,
        features=features or None,
        keep_integers=False,
    )
    if scale is None:
        return data
    dtype, shape = data.train.inputs.dtype, inputs.shape[1:]
    kept = {"indicators": (), "shape": shape, "features": tuple(features), "keep_integers": False}
    return dataclasses.replace(data, preprocess=Preprocess.of(None, scale.mean, scale.deviation, dtype, **kept))


def resume(fit: Fit, run: Run, done: int, key: Array, data: Data, hyper: Mapping[str, float]) -> Run:
    """Continue from the last weights and optimizer state of a run, for the number of epochs of `fit`.

    Args:
        fit: the run function to continue with.
        run: the run to continue from.
        done: the number of epochs trained so far, including those before `run`.
        key: the key of all runs.
        data: the training data.
        hyper: the hyper-parameters.

    Raises:
        TypeError, ValueError: as calling `fit` does.
    """
    numbers = fit.check(key, data, hyper)
    train, valid = known(data.train), known(data.valid)
    state, history = distributed.local(_resumed(fit, key, run.state, np.int32(done), train, valid, numbers))
    best = None if state.best is None else state.best._replace(epoch=state.best.epoch - done)
    return fit.run_of(state._replace(epoch=state.epoch - done, best=best), history, data, numbers)


@memo.compiled()
def _resumed(
    fit: Fit, key: Array, state: TrainState, done: Array, train: Batch, valid: Batch | None, hyper: Hyper
) -> tuple[RunState, dict[str, Array]]:
    resumed = start(key, fit.bind(hyper), train, valid)._replace(train=state, epoch=done)
    return scan_epochs(fit, hyper, resumed, train, valid, fit.epochs, first_epoch=done)


class Folds(NamedTuple):
    """Stacked folds with equal shapes.

    Attributes:
        train: the training data of the folds, `(folds, rows, ...)`.
        valid: the held-out data for stopping rules and best weights, stacked likewise, or None.
        tests: the inputs to predict for, `(folds, rows, features)`.
    """

    train: Batch
    valid: Batch | None
    tests: Array

    @classmethod
    def of(cls, data: Sequence[Data], tests: Sequence[Any]) -> "Folds":
        """Stack folds whose arrays have the same shapes; inputs to predict for are padded with their last row."""
        most = max(len(each) for each in tests)
        padded = [np.asarray(each)[np.minimum(np.arange(most), len(each) - 1)] for each in tests]
        first, *_ = [(known(each.train), known(each.valid)) for each in data]
        same = all((type(known(each.train)), type(known(each.valid))) == tuple(map(type, first)) for each in data)
        parts = [(known(each.train), known(each.valid)) if same else (each.train, each.valid) for each in data]
        train, valid = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *parts)
        return cls(train, valid, jnp.asarray(np.stack(padded)))


def shapes(data: Data) -> Any:
    """Return the shapes and dtypes of a fold's arrays; folds in which these are equal can be stacked."""
    return tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((data.train, data.valid)))


def outputs_together(fit: Fit, key: Array, folds: Sequence[Folds], points: Hyper) -> list[np.ndarray]:
    """Train one run for each fold and point in one program, and predict for the test rows.

    The points are spread over the devices of this process, each of which trains its points side by side.

    Args:
        fit: the run function.
        key: the key of every run.
        folds: the stacks of folds, one for each shape.
        points: the hyper-parameters of each point, `(points,)` by name.

    Returns:
        The outputs of each stack of folds, `(folds, points, rows, outputs)`.
    """
    columns = {name: np.asarray(values) for name, values in points.items()}
    devices = tuple(jax.local_devices())
    count = len(next(iter(columns.values())))
    shared = {name: np.pad(values, (0, -count % len(devices)), mode="edge") for name, values in columns.items()}
    first = jax.tree.map(lambda leaf: leaf[0], folds[0].train)
    is_cpu = jax.default_backend() == "cpu"
    at_once = best_at_once(fit, first, {name: each[0] for name, each in columns.items()}) if is_cpu else None
    found = _outputs_together(fit, devices, at_once, key, list(folds), shared)
    return [np.asarray(each)[:, :count] for each in found]


@memo.compiled(static=3)
def _outputs_together(
    fit: Fit, devices: tuple[jax.Device, ...], at_once: int | None, key: Array, folds: list[Folds], points: Hyper
) -> list[Array]:
    def share(key: Array, folds: list[Folds], points: Hyper) -> list[Array]:
        def of_fold(fold: Folds) -> Array:
            return side_by_side(lambda hyper: _outputs(fit, key, fold, hyper), points, at_once)

        points_each = len(jax.tree.leaves(points)[0])
        folds_at_once = None if at_once is None else max(1, at_once // points_each)
        return [side_by_side(of_fold, each, folds_at_once) for each in folds]

    if len(devices) == 1:
        return share(key, folds, points)
    specs: Any = {"in_specs": (P(), P(), P(POINTS)), "out_specs": P(None, POINTS)}
    return jax.shard_map(share, mesh=Mesh(devices, POINTS), check_vma=False, **specs)(key, folds, points)


def _outputs(fit: Fit, key: Array, fold: Folds, hyper: Hyper) -> Array:
    """Train one run, and return its outputs for the test inputs."""
    parts = fit.bind(hyper)
    begun = start(key, parts, fold.train, fold.valid)
    state, _ = scan_epochs(fit, hyper, begun, fold.train, fold.valid, fit.epochs)
    best = with_final_as_best(state).best
    assert best is not None
    return parts.model.apply(best.variables, fold.tests)


class _Key(NamedTuple):
    """A typed key on the host."""

    data: np.ndarray
    impl: str


def saved(run: Run) -> dict[str, Any]:
    """Return the picklable fields of a run: all except `fit`, with every array on the host."""

    def on_host(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _Key(np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
        return np.asarray(leaf)

    fields = {each.name: getattr(run, each.name) for each in dataclasses.fields(run) if each.name != "fit"}
    return {name: jax.tree.map(on_host, value) for name, value in fields.items()}


def restored(fields: Mapping[str, Any], fit: Fit) -> Run:
    """Restore a run from the fields returned by `saved`."""

    def on_device(leaf: Any) -> Any:
        if isinstance(leaf, _Key):
            return jax.random.wrap_key_data(jnp.asarray(leaf.data), impl=leaf.impl)
        return jnp.asarray(leaf)

    def is_key(node: Any) -> bool:
        return isinstance(node, _Key)

    return Run(**{name: jax.tree.map(on_device, value, is_leaf=is_key) for name, value in fields.items()}, fit=fit)
