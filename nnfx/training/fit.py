"""A whole training run as one pure function of a key, data and hyper-parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import optax
from jax.typing import ArrayLike

from nnfx import checks, distributed, memo
from nnfx.data.prepare import Data, check_type
from nnfx.metrics import marks, names
from nnfx.stopping import StoppingRule
from nnfx.training import hyperparameters, in_memory, run_checks
from nnfx.training.epochs import RunState, scan_epochs, start, with_final_as_best
from nnfx.training.parts import Recipe, factories_of
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.training.step import make_step
from nnfx.types import Array, Batch, Hyper, Model, PerExample, Step

Rule = StoppingRule | Callable[..., StoppingRule]
Augment = Callable[..., Batch]


def fit(
    model: Model | Callable[..., Model],
    loss: PerExample,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    *,
    epochs: int,
    batch_size: int | None = None,
    stop: Rule | Sequence[Rule] | None = None,
    metrics: names.ByName | None = None,
    penalty: Callable[..., Array] | None = None,
    augment: Augment | Sequence[Augment] | None = None,
    average: Callable[..., Array] | None = None,
    make_step: Callable[..., Step] = make_step,
    parallel: Callable[[Step], Step] | None = None,
    rematerialize_epochs: bool = False,
) -> "Fit":
    """Make a run function: a pure function `(key, data, **hyper) -> Run`, compiled on its first call.

    The hyper-parameters are the numeric keyword arguments of the functions that you pass: the optimizer's factory, the
    loss (after outputs and targets), the factories of stopping rules, the penalty, the augmentation, the average, and
    the model's factory, if there is one. Hyper-parameters are traced, so changing one needs no recompilation.
    `jax.vmap` over keys or hyper-parameters turns many runs into one program, and `jax.grad` differentiates through a
    run.

    Each epoch visits every row once, in an order drawn from the key. The last batch may be incomplete; it is padded
    with rows of weight zero, not dropped. Only the ratios of the rows' weights within a batch matter, so these weights
    have no effect in batches of one row.

    Args:
        model: a model, or a function of hyper-parameters that returns one.
        loss: the per-example loss, `(outputs, targets, **numbers) -> (batch,)`.
        optimizer: an Optax factory such as `optax.adam`, or an optimizer. Some optimizers (`optax.lookahead`,
            `optax.contrib.schedule_free`, `optax.contrib.sam`) provide other weights for evaluation than the weights
            that they update; the run then evaluates these. `optax.MultiSteps` updates the weights once every `k` steps,
            with the unweighted mean of `k` gradients; if fewer than `k` steps are left at the end of a run, they have
            no effect.
        epochs: the maximum number of epochs.
        batch_size: the number of rows in a minibatch; 1 for stochastic gradient descent, None for the full batch.
        stop: a stopping rule, or a factory for one, such as `nnfx.stopping.patience`; or a list of rules and factories.
        metrics: further quantities to measure: a list of functions or names of `nnfx.metrics`, such as `["accuracy",
            "roc_auc"]`, or a mapping from your own names, such as `{"auc": nnfx.metrics.roc_auc}`. Each row with
            positive weight counts once in a metric, unless the metric is marked by `nnfx.metrics.weighted`. Metrics
            over all rows at once, such as areas under curves, are computed once per epoch, and only on held-out data.
        penalty: a penalty added to the training loss, `(params, **numbers) -> scalar`, such as `nnfx.regularizers.l2`.
        augment: a function that changes each batch before the model sees it, `(key, batch, **numbers) -> batch`, such
            as `nnfx.augment.gaussian_noise`; or several, applied in turn.
        average: a function `(count, **numbers) -> fraction`, such as `nnfx.averaging.exponential`, that returns the
            fraction which the latest weights contribute to an average of the weights. The run is then evaluated with
            the average, and predicts with it.
        make_step: a function that makes the training step. To set options of `nnfx.make_step`, such as micro-batches,
            mixed precision, or skipping non-finite steps, pass `functools.partial(nnfx.make_step, ...)`.
        parallel: a transformation of the step for several devices, such as `nnfx.data_parallel`; the result of the run
            stays the same up to rounding.
        rematerialize_epochs: whether to save memory when the run is differentiated. Only the state at the start of each
            epoch is then stored, and each epoch is trained again: this needs memory only for the steps of one epoch,
            but takes about twice the time.

    Returns:
        The run function. Before anything is trained, it raises an error for unknown, missing or invalid
        hyper-parameters, a key that is not typed, a batch size above the number of rows, data that is not finite,
        targets that do not suit the loss, and a loss or a metric that returns values of the wrong shape.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or out of range.

    Example:
        >>> import jax, nnfx
        >>> data = nnfx.data.titanic("fare", "age")
        >>> train = fit(
        ...     nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd,
        ...     epochs=5000, stop=nnfx.stopping.small_change,
        ... )
        >>> run = train(jax.random.key(0), data, learning_rate=1.0, tolerance=1e-4)
        >>> run.reason, round(float(run.final["train_loss"]), 3)
        ('small_change', 0.624)
    """
    factories = factories_of(
        model=model, loss=loss, optimizer=optimizer, penalty=penalty, augment=augment, average=average, stop=stop
    )
    by_name = names.by_name(metrics)
    run_checks.check_functions(loss, by_name)
    if not callable(make_step):
        raise TypeError(f"make_step: expected a function such as nnfx.make_step, got {checks.describe(make_step)}")
    if parallel is not None and not callable(parallel):
        raise TypeError(f"parallel: expected a function such as nnfx.data_parallel, got {checks.describe(parallel)}")
    checks.positive_integer("epochs", epochs)
    if batch_size is not None:
        checks.positive_integer("batch_size", batch_size)
    counted = {name: marks.counted(metric) for name, metric in by_name.items()}
    return Fit(factories, counted, make_step, parallel, epochs, batch_size, rematerialize_epochs)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit(Recipe):
    """A run function: a training run as a pure function, as returned by `fit`."""

    def __repr__(self) -> str:
        """Return a summary: the length of the run, the names of its parts, and its hyper-parameters.

        >>> from nnfx import losses, models, stopping
        >>> fit(models.perceptron(), losses.huber, optax.sgd, epochs=9, batch_size=4, stop=stopping.small_change)
        Fit: 9 epochs in batches of 4
          loss huber, optimizer sgd, stop small_change
          hyper-parameters: learning_rate; by default: delta, momentum, tolerance
        """
        size = "the full batch" if self.batch_size is None else f"batches of {self.batch_size}"
        parts = ", ".join(
            f"{part} {' and '.join(factory.name for factory in factories)}"
            for part, factories in self.factories.items()
            if factories and part != "model"
        )
        optional = [name for name in self.hyper_names if name not in self.required_names]
        numbers = f"hyper-parameters: {', '.join(self.required_names) or 'none'}"
        by_default = f"; by default: {', '.join(optional)}" if optional else ""
        return f"Fit: {self.epochs} epochs in {size}\n  {parts}\n  {numbers}{by_default}"

    def __call__(self, key: Array, data: Data, **hyper: ArrayLike) -> Run:
        """Train from initialisation until the run ends.

        Args:
            key: a typed key; it determines the initial weights, the order of the rows, and all other random draws.
            data: the data, as returned by `nnfx.data.prepare`.
            **hyper: a number for each hyper-parameter; see `hyper_names`.

        Returns:
            The run: its final and best weights, and the history of every metric.
        """
        numbers = self.check(key, data, hyper)
        train, valid = known(data.train), known(data.valid)
        if self.needs_clock(numbers):
            state, history = in_memory.timed(self, key, train, valid, numbers)
        else:
            state, history = distributed.local(_compiled(self, key, train, valid, numbers))
        return self.run_of(state, history, data, numbers)

    def check(self, key: Array, data: Data, hyper: Mapping[str, ArrayLike]) -> Hyper:
        """Check the arguments of a run, and return its hyper-parameters as arrays."""
        checks.key("key", key)
        check_type(data)
        hyperparameters.check(hyper, self.all_factories)
        numbers = hyperparameters.as_arrays(hyper)
        run_checks.check_run(self, data, numbers)
        return numbers

    def run_of(self, state: RunState, history: Mapping[str, Array], data: Data, hyper: Hyper) -> Run:
        """Build the run that ends in the given state."""
        state = with_final_as_best(state)
        assert state.best is not None
        return Run(state.train, state.best, dict(history), state.epoch, state.stopped_by, hyper, data.preprocess, self)


@memo.compiled()
def _compiled(
    fit: Fit, key: Array, train: Batch, valid: Batch | None, hyper: Hyper
) -> tuple[RunState, dict[str, Array]]:
    """Train as one compiled program."""
    return scan_epochs(fit, hyper, start(key, fit.bind(hyper), train, valid), train, valid, fit.epochs)
