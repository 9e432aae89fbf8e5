"""A whole training run as one pure function of a key, data and hyper-parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import optax
from jax.typing import ArrayLike

from nnfx import checks, distributed, memo
from nnfx.data.prepare import Data
from nnfx.stopping import StoppingRule
from nnfx.training import hyperparameters, in_memory, validate
from nnfx.training.epochs import RunState, scan_epochs, start, with_final_as_best
from nnfx.training.parts import Made, Recipe, factories_of
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
    metrics: Mapping[str, PerExample] | None = None,
    penalty: Callable[..., Array] | None = None,
    augment: Augment | Sequence[Augment] | None = None,
    average: Callable[..., Array] | None = None,
    make_step: Callable[..., Step] = make_step,
    parallel: Callable[[Step], Step] | None = None,
    rematerialize_epochs: bool = False,
) -> "Fit":
    """Make a training run: a pure function `(key, data, **hyper) -> Run`, compiled at its first call.

    Its hyper-parameters are the numbers that its parts take by keyword: those of the optimizer's factory, of
    the loss behind outputs and targets, of the stopping rules' factories, and of the model's where it is a
    factory. They are traced: changing one compiles nothing. `jax.vmap` over keys or numbers gives many
    runs as one program, and `jax.grad` goes through a run.

    Each epoch visits every row once, in an order drawn from the key. The last batch may be incomplete; it is
    weighted and not dropped. Weights of the data act within each batch, so they need batches of several rows.

    Args:
        model: a model, or a function of hyper-parameters that returns one.
        loss: per example, `(outputs, targets, **numbers) -> (batch,)`.
        optimizer: an Optax factory such as `optax.adam`, or an optimizer already made. Those that are evaluated with
            other weights than they step (`optax.contrib.schedule_free`, `optax.lookahead`, `optax.contrib.sam`) are,
            here as well. `optax.MultiSteps` moves the weights once in so many steps, by the plain mean of their
            gradients; those left over at the end of the run move nothing.
        epochs: how many epochs at most.
        batch_size: rows of a minibatch: 1 is stochastic gradient descent, None the full batch.
        stop: a stopping rule's factory, such as `nnfx.stopping.patience`, or a rule already made, or several.
        metrics: further quantities per example by name, such as `{"accuracy": nnfx.metrics.accuracy}`.
        penalty: added to the training loss, `(params, **numbers) -> scalar`, such as `nnfx.regularizers.l2`.
        augment: changes each batch before the model sees it, `(key, batch, **numbers) -> batch`, such as
            `nnfx.augment.gaussian_noise`; or several, one after the other.
        average: what share the latest weights have in their average, `(count, **numbers) -> share`, such as
            `nnfx.averaging.exponential`; the run is then evaluated with the average, and predicts with it.
        make_step: makes the step; its choices are fixed with `functools.partial(nnfx.make_step, ...)`, such as
            micro-batches, mixed precision, or skipping steps that are not finite.
        parallel: turns the step into one for several devices, such as `nnfx.data_parallel`: the same run, split.
        rematerialize_epochs: whether a gradient through the run keeps the state of each epoch's beginning alone,
            and trains the epoch anew: memory for one epoch's steps in place of all, for about twice the time.

    Returns:
        The run's function. Calling it raises, before anything is trained, on a key that is not typed, unknown,
        lacking or senseless hyper-parameters, a batch larger than the data, data that are not finite, targets
        the loss is not meant for, and a loss or a metric that is not per example.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range.

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
    validate.check_functions(loss, metrics)
    if not callable(make_step):
        raise TypeError(f"make_step: expected a function such as nnfx.make_step, got {checks.describe(make_step)}")
    if parallel is not None and not callable(parallel):
        raise TypeError(f"parallel: expected a function such as nnfx.data_parallel, got {checks.describe(parallel)}")
    checks.positive_integer("epochs", epochs)
    if batch_size is not None:
        checks.positive_integer("batch_size", batch_size)
    return Fit(factories, dict(metrics or {}), make_step, parallel, epochs, batch_size, rematerialize_epochs)


@dataclasses.dataclass(frozen=True, eq=False)
class Fit(Recipe):
    """A training run as a pure function, made by `fit`; see there."""

    def __call__(self, key: Array, data: Data, **hyper: ArrayLike) -> Run:
        """Train from initialisation to the stop.

        Args:
            key: a typed key; it decides the weights, the order of the rows, and all noise.
            data: as `nnfx.data.prepare` makes it.
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
        """Raise on arguments that a run cannot be meant for; else return its hyper-parameters as arrays."""
        checks.key("key", key)
        if not isinstance(data, Data):
            raise TypeError(f"data: expected nnfx.data.Data, as nnfx.data.prepare makes it, got {type(data).__name__}")
        self._check_names(hyper)
        hyperparameters.check(hyper, self.all_factories)
        numbers = hyperparameters.as_arrays(hyper)
        validate.check_run(self, data, numbers)
        return numbers

    def _check_names(self, hyper: Mapping[str, ArrayLike]) -> None:
        """Raise on a number beside an optimizer already made, which nothing else takes."""
        if not isinstance(self.factories["optimizer"][0].function, Made):
            return
        for name in hyper:
            if name not in self.hyper_names:
                raise TypeError(
                    f"{name}: expected {'one of ' + ', '.join(self.hyper_names) if self.hyper_names else 'none'}, since"
                    f" the optimizer is already made; for its numbers pass its factory, such as optax.adam, got {name}"
                )

    def run_of(self, state: RunState, history: Mapping[str, Array], data: Data, hyper: Hyper) -> Run:
        """Return the run that ends in this state."""
        state = with_final_as_best(state)
        assert state.best is not None
        return Run(state.train, state.best, dict(history), state.epoch, state.stopped_by, hyper, data.preprocess, self)


@memo.compiled()
def _compiled(
    fit: Fit, key: Array, train: Batch, valid: Batch | None, hyper: Hyper
) -> tuple[RunState, dict[str, Array]]:
    """Run as one program."""
    return scan_epochs(fit, hyper, start(key, fit.bind(hyper), train, valid), train, valid, fit.epochs)
