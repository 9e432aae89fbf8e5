"""A whole training run as one pure function of a key, data and hyper-parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from nnfx import checks, distributed
from nnfx.data.prepare import Data
from nnfx.training import hyper as hypers
from nnfx.training import loop, validate
from nnfx.training.chunk import Parts, RunState, chunk, judged, start
from nnfx.training.hyper import Part
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.training.step import make_step
from nnfx.training.stopping import StoppingRule
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
        >>> import nnfx
        >>> data = nnfx.data.titanic("fare", "age")
        >>> train = fit(
        ...     nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd,
        ...     epochs=5000, stop=nnfx.stopping.small_change,
        ... )
        >>> run = train(jax.random.key(0), data, learning_rate=1.0, tolerance=1e-4)
        >>> run.reason, round(float(run.final["train_loss"]), 3)
        ('small_change', 0.624)
    """
    if not isinstance(model, Model) and (not callable(model) or hasattr(model, "apply")):
        raise TypeError(
            f"model: expected a Model or a function that returns one, got {checks.describe(model)}; of a Flax"
            " module nnfx.models.from_linen or from_nnx makes one"
        )
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation) and not callable(optimizer):
        raise TypeError(f"optimizer: expected an Optax factory or optimizer, got {checks.describe(optimizer)}")
    validate.check_functions(loss, metrics)
    if penalty is not None and not callable(penalty):
        raise TypeError(f"penalty: expected a function of the parameters, got {checks.describe(penalty)}")
    augments = _several("augment", augment)
    for each in augments:
        if not callable(each):
            raise TypeError(f"augment: expected functions of a key and a batch, got {checks.describe(each)}")
    if average is not None and not callable(average):
        raise TypeError(f"average: expected a function such as nnfx.averaging.exponential, got {average!r}")
    if not callable(make_step):
        raise TypeError(f"make_step: expected a function such as nnfx.make_step, got {checks.describe(make_step)}")
    if parallel is not None and not callable(parallel):
        raise TypeError(f"parallel: expected a function such as nnfx.data_parallel, got {checks.describe(parallel)}")
    checks.positive_integer("epochs", epochs)
    if batch_size is not None:
        checks.positive_integer("batch_size", batch_size)
    rules = (stop,) if isinstance(stop, StoppingRule) else _several("stop", stop)
    for rule in rules:
        if not callable(rule) and not isinstance(rule, StoppingRule):
            raise TypeError(f"stop: expected factories, such as nnfx.stopping.patience, got {checks.describe(rule)}")
    return Fit(
        model=_factory(model, Model),
        loss=hypers.part(loss, leading=2),
        optimizer=_factory(optimizer, optax.GradientTransformation),
        rules=tuple(_factory(rule, StoppingRule) for rule in rules),
        penalty=None if penalty is None else hypers.part(penalty, leading=1),
        augments=tuple(hypers.part(each, leading=2) for each in augments),
        average=None if average is None else hypers.part(average, leading=1),
        metrics=tuple((metrics or {}).items()),
        make_step=make_step,
        parallel=parallel,
        epochs=epochs,
        batch_size=batch_size,
        rematerialize_epochs=rematerialize_epochs,
    )


def _several(name: str, given: Any) -> tuple[Any, ...]:
    """Take none, one or several as several."""
    if given is None or callable(given):
        return () if given is None else (given,)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{name}: expected a function or a sequence of them, got {checks.describe(given)}")
    return tuple(given)


def _factory(given: Any, made: type) -> Part:
    """Take a factory, or what such a factory makes, as a part that makes it."""
    if not isinstance(given, made):
        return hypers.part(given)
    # a rule is called after the function that made it
    name = given.update.__qualname__.split(".")[0] if isinstance(given, StoppingRule) else made.__name__
    return Part(name, lambda: given, (), ())


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """A training run as a pure function, made by `fit`; see there.

    Attributes:
        model: returns the model.
        loss: the loss per example.
        optimizer: returns the optimizer.
        rules: return the stopping rules.
        penalty: the penalty on the parameters, or None.
        augments: change each batch before the model sees it.
        average: the share of the latest weights in their average, or None.
        metrics: names and functions of further metrics.
        make_step: makes the step.
        parallel: turns the step into one for several devices, or None.
        epochs: how many epochs at most.
        batch_size: rows of a minibatch; None for the full batch.
        rematerialize_epochs: whether a gradient through the run trains each epoch anew.
    """

    model: Part
    loss: Part
    optimizer: Part
    rules: tuple[Part, ...]
    penalty: Part | None
    augments: tuple[Part, ...]
    average: Part | None
    metrics: tuple[tuple[str, PerExample], ...]
    make_step: Callable[..., Step]
    parallel: Callable[[Step], Step] | None
    epochs: int
    batch_size: int | None
    rematerialize_epochs: bool

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
        state, history = self._train(key, known(data.train), known(data.valid), numbers)
        return self.run_of(state, history, data, numbers)

    def check(self, key: Array, data: Data, hyper: Mapping[str, ArrayLike]) -> Hyper:
        """Raise on arguments that a run cannot be meant for; else return its hyper-parameters as arrays."""
        checks.key("key", key)
        if not isinstance(data, Data):
            raise TypeError(f"data: expected nnfx.data.Data, as nnfx.data.prepare makes it, got {type(data).__name__}")
        self._check_names(hyper)
        hypers.check(hyper, self.parts_with_numbers)
        numbers = hypers.as_arrays(hyper)
        validate.check_run(self, data, numbers)
        return numbers

    def _check_names(self, hyper: Mapping[str, ArrayLike]) -> None:
        """Raise on a number beside an optimizer already made, which nothing else takes."""
        if self.optimizer.name != optax.GradientTransformation.__name__:
            return
        for name in hyper:
            if name not in self.hyper_names:
                raise TypeError(
                    f"{name}: expected {'one of ' + ', '.join(self.hyper_names) if self.hyper_names else 'none'}, since"
                    f" the optimizer is already made; for its numbers pass its factory, such as optax.adam, got {name}"
                )

    def run_of(self, state: RunState, history: dict[str, Array], data: Data, hyper: Hyper) -> Run:
        """Return the run that ends in this state."""
        state = judged(state)
        assert state.best is not None
        return Run(state.train, state.best, history, state.epoch, state.stopped_by, hyper, data.preprocess, self)

    @property
    def hyper_names(self) -> tuple[str, ...]:
        """The names of the hyper-parameters that a run takes."""
        return tuple(sorted({name for part in self.parts_with_numbers for name in part.names}))

    def parts(self, hyper: Hyper) -> Parts:
        """Return what the run is made of, with these hyper-parameters filled in."""
        return Parts(
            model=_made(self.model, hyper, Model),
            loss=self.loss.bind(hyper),
            optimizer=_made(self.optimizer, hyper, optax.GradientTransformation),
            rules=tuple(_made(rule, hyper, StoppingRule) for rule in self.rules),
            metrics=dict(self.metrics),
            penalty=None if self.penalty is None else self.penalty.bind(hyper),
            augment=_in_turn([part.bind(hyper) for part in self.augments]),
            average=None if self.average is None else self.average.bind(hyper),
            make_step=self.make_step,
            parallel=self.parallel,
            batch_size=self.batch_size,
            rematerialize_epochs=self.rematerialize_epochs,
        )

    @functools.cached_property
    def checked(self) -> validate.Checked:
        """What has been checked before, so that calling again costs nothing."""
        return validate.Checked()

    @functools.cached_property
    def alone(self) -> "Fit":
        """The same run on one device: over how many a batch is split is not what tells runs apart."""
        return self if self.parallel is None else dataclasses.replace(self, parallel=None)

    @property
    def parts_with_numbers(self) -> tuple[Part, ...]:
        """The parts that take hyper-parameters."""
        optional = (part for part in (self.penalty, self.average) if part is not None)
        return (self.model, self.loss, self.optimizer, *self.rules, *self.augments, *optional)

    def _train(self, key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> tuple[RunState, dict[str, Array]]:
        """Run as one program, or chunk by chunk where a rule looks at the clock."""
        if self.checked.needs_clock:
            return loop.timed(self, key, train, valid, hyper)
        return distributed.local(self._compiled(key, train, valid, hyper))

    @functools.cached_property
    def _compiled(self) -> Callable[..., tuple[RunState, dict[str, Array]]]:
        def run(key: Array, train: Batch, valid: Batch | None, hyper: Hyper) -> tuple[RunState, dict[str, Array]]:
            parts = self.parts(hyper)
            return chunk(start(key, parts, train, valid), parts, train, valid, self.epochs)

        return jax.jit(run)


def _in_turn(augments: Sequence[Augment]) -> Augment | None:
    """Return one function that augments with all of them, each with randomness of its own."""
    if not augments:
        return None

    def augment(key: Array, batch: Batch) -> Batch:
        for i, each in enumerate(augments):
            batch = each(jax.random.fold_in(key, i), batch)
        return batch

    return augment


def _made(part: Part, hyper: Hyper, wanted: type) -> Any:
    made = part.build(hyper)
    if isinstance(made, optax.MultiSteps):
        made = made.gradient_transformation()
    if not isinstance(made, wanted):
        raise TypeError(f"{part.name}: expected it to return a {wanted.__name__}, got {checks.describe(made)}")
    return made
