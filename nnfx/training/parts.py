"""The parts of a run, each declared once.

To add a part, add it to the arguments of `nnfx.fit`, add a field to `Parts`, and use the field in the step.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import optax

from nnfx import checks
from nnfx.stopping import StoppingRule
from nnfx.training import hyperparameters
from nnfx.training.hyperparameters import Factory, Made
from nnfx.types import Array, Batch, Hyper, Model, Params, PerExample, Step


class Takes(NamedTuple):
    """A part that is a function with hyper-parameters after its other arguments.

    Attributes:
        arguments: the number of arguments before the hyper-parameters.
        expected: a description of valid values, for error messages.
        several: whether several functions may be given.
    """

    arguments: int
    expected: str
    several: bool = False

    def factory(self, name: str, given: Any) -> Factory:
        """Return the factory that binds hyper-parameters to the given function."""
        if not callable(given):
            raise TypeError(f"{name}: expected {self.expected}, got {checks.describe(given)}")
        return hyperparameters.factory(given, self.arguments)

    def bind(self, factories: Sequence[Factory], hyper: Hyper) -> Any:
        """Bind hyper-parameters; several functions become one that applies them in turn."""
        bound = [factory.bind(hyper) for factory in factories]
        if not self.several or not bound:
            return bound[0] if bound else None
        return _in_turn(bound)


class Makes(NamedTuple):
    """A part given as an instance, or as a factory that makes it from hyper-parameters.

    Attributes:
        kind: the type of the part.
        expected: a description of valid values, for error messages.
        several: whether several may be given.
    """

    kind: type
    expected: str
    several: bool = False

    def factory(self, name: str, given: Any) -> Factory:
        """Return the factory that makes the part from hyper-parameters."""
        if isinstance(given := _plain(given), self.kind):
            # a rule is named after the function that made it
            label = given.update.__qualname__.split(".")[0] if isinstance(given, StoppingRule) else self.kind.__name__
            return Factory(label, Made(given))
        hint = how_to_adapt(given) if self.kind is Model else ""
        if hint or not callable(given):
            raise TypeError(f"{name}: expected {self.expected}, got {checks.describe(given)}{hint}")
        return hyperparameters.factory(given)

    def bind(self, factories: Sequence[Factory], hyper: Hyper) -> Any:
        """Make the part from hyper-parameters; return a tuple if several may be given."""
        made = tuple(_plain(factory.bind(hyper)()) for factory in factories)
        for factory, each in zip(factories, made, strict=True):
            if not isinstance(each, self.kind):
                hint = how_to_adapt(each) if self.kind is Model else ""
                raise TypeError(
                    f"{factory.name}: expected it to return a {self.kind.__name__}, got {checks.describe(each)}{hint}"
                )
        return made if self.several else made[0]


_ADAPTERS = {
    "flax.linen": "convert the module with nnfx.models.from_linen",
    "flax.nnx": "convert the module with nnfx.models.from_nnx(lambda rngs: Net(rngs=rngs))",
    "equinox": "convert the module with nnfx.models.from_equinox(lambda key: Net(key=key))",
    "haiku": "convert the function of inputs, before hk.transform, with nnfx.models.from_haiku",
    "torch": "PyTorch does not run on JAX: make the network with nnfx.models, and convert its weights with"
    " nnfx.models.conversion.from_torch",
    "keras": "Keras has its own training loop: make the network with nnfx.models, and convert its weights with"
    " nnfx.models.conversion.from_keras",
}
"""Hints for converting modules of other libraries, by the package that defines the class."""


def how_to_adapt(given: Any) -> str:
    """Return the text of a hint on converting a module or class of another library; "" for anything else.

    >>> import flax.linen as nn
    >>> how_to_adapt(nn.Dense(1)), how_to_adapt(max)
    ('; convert the module with nnfx.models.from_linen', '')
    """
    kind = given if isinstance(given, type) else type(given)
    defined_in = [f"{each.__module__}." for each in kind.__mro__]
    found = [hint for package, hint in _ADAPTERS.items() if any(name.startswith(f"{package}.") for name in defined_in)]
    return f"; {found[0]}" if found else ""


class Parts(NamedTuple):
    """The parts of a run and its step, with all hyper-parameters filled in.

    Attributes:
        model: the model.
        loss: the per-example loss, `(outputs, targets) -> (batch,)`.
        optimizer: an Optax optimizer.
        metrics: further per-example metrics by name, computed from the outputs of the same forward pass.
        penalty: a scalar function of the parameters, added to the loss, such as a multiple of their squares; or None.
        augment: a function applied to each batch first, `(key, batch) -> batch`, see `nnfx.augment`; or None.
        average: a function `count -> fraction` that returns the fraction which the latest variables contribute to their
            average, see `nnfx.averaging`; or None.
        stop: the stopping rules, which a run applies after each epoch.

    Example:
        >>> import nnfx
        >>> parts = Parts(nnfx.models.perceptron(), nnfx.losses.mean_square_error, optax.sgd(0.1))
        >>> parts.penalty is None, parts.stop
        (True, ())
    """

    model: Annotated[Model, Makes(Model, "a Model or a function that returns one")]
    loss: Annotated[PerExample, Takes(2, "a function of outputs and targets")]
    optimizer: Annotated[
        optax.GradientTransformation, Makes(optax.GradientTransformation, "an Optax factory or optimizer")
    ]
    metrics: Mapping[str, PerExample] = types.MappingProxyType({})
    penalty: Annotated[Callable[[Params], Array] | None, Takes(1, "a function of the parameters")] = None
    augment: Annotated[
        Callable[[Array, Batch], Batch] | None, Takes(2, "functions of a key and a batch", several=True)
    ] = None
    average: Annotated[Callable[[Array], Array] | None, Takes(1, "a function such as nnfx.averaging.exponential")] = (
        None
    )
    stop: Annotated[
        tuple[StoppingRule, ...], Makes(StoppingRule, "factories, such as nnfx.stopping.patience", several=True)
    ] = ()

    @property
    def measures(self) -> dict[str, PerExample]:
        """The loss and the metrics by name."""
        return {"loss": self.loss, **self.metrics}


OPTIONAL = tuple(name for name in Parts._field_defaults if name not in ("metrics", "stop"))
"""The names of the optional parts of a step."""
_HOW: dict[str, Takes | Makes] = {
    name: hint.__metadata__[0]
    for name, hint in typing.get_type_hints(Parts, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""The declaration of each part that takes hyper-parameters, by name."""


def factories_of(**given: Any) -> dict[str, tuple[Factory, ...]]:
    """Return the factories of every part by name; parts that are None have no factories.

    Args:
        **given: each part that takes hyper-parameters, as passed to `nnfx.fit`.

    Raises:
        TypeError: for a value that is not valid for its part.
    """
    found = {}
    for name, how in _HOW.items():
        value = given[name]
        is_lacking = value is None and name in Parts._field_defaults
        values = () if is_lacking else _several(name, value, how) if how.several else (value,)
        found[name] = tuple(how.factory(name, each) for each in values)
    return found


def _several(name: str, given: Any, how: Takes | Makes) -> Sequence[Any]:
    """Return one or several parts as a sequence."""
    if callable(given) or (isinstance(how, Makes) and isinstance(given, how.kind)):
        return (given,)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{name}: expected a function or a sequence of functions, got {checks.describe(given)}")
    return given


def _plain(given: Any) -> Any:
    """Return `optax.MultiSteps`, which accumulates gradients, as an ordinary optimizer; anything else unchanged."""
    return given.gradient_transformation() if isinstance(given, optax.MultiSteps) else given


def _in_turn(augments: Sequence[Callable[[Array, Batch], Batch]]) -> Callable[[Array, Batch], Batch]:
    """Return one function that applies all augmentations in turn, with independent randomness."""

    def augment(key: Array, batch: Batch) -> Batch:
        for i, each in enumerate(augments):
            batch = each(jax.random.fold_in(key, i), batch)
        return batch

    return augment


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """The recipe of a run, whose hyper-parameters are not yet bound.

    Attributes:
        factories: the factories of each part that takes hyper-parameters, by the name of the part.
        metrics: further metrics by name.
        make_step: the function that makes the step from the parts.
        parallel: a transformation of the step for several devices, or None.
        epochs: the maximum number of epochs.
        batch_size: rows per minibatch; None for the full batch.
        rematerialize_epochs: whether differentiation through the run trains each epoch again instead of storing it.
    """

    factories: Mapping[str, tuple[Factory, ...]]
    metrics: Mapping[str, PerExample]
    make_step: Callable[..., Step]
    parallel: Callable[[Step], Step] | None
    epochs: int
    batch_size: int | None
    rematerialize_epochs: bool

    def bind(self, hyper: Hyper) -> Parts:
        """Return the parts with the given hyper-parameters bound."""
        bound = {name: how.bind(self.factories[name], hyper) for name, how in _HOW.items()}
        return Parts(**bound, metrics=self.metrics)

    def step(self, parts: Parts) -> Step:
        """Make the step from the given parts, for one device or several."""
        others = {name: part for name in OPTIONAL if (part := getattr(parts, name)) is not None}
        step = self.make_step(parts.model, parts.loss, parts.optimizer, parts.metrics, **others)
        return step if self.parallel is None else self.parallel(step)

    def needs_clock(self, hyper: Hyper) -> bool:
        """Return whether a stopping rule uses the clock."""
        rules = _HOW["stop"].bind(self.factories["stop"], hyper)
        return any(rule.needs_clock for rule in rules)

    @property
    def given(self) -> dict[str, Any]:
        """The value of each part as passed to `nnfx.fit`; a list if several may be given."""
        functions = {
            name: [each.function.value if isinstance(each.function, Made) else each.function for each in factories]
            for name, factories in self.factories.items()
        }
        return {name: each if _HOW[name].several else each[0] if each else None for name, each in functions.items()}

    @property
    def measures(self) -> dict[str, PerExample]:
        """The loss and the metrics by name, without hyper-parameters bound."""
        return {"loss": self.factories["loss"][0].function, **self.metrics}

    @property
    def rule_names(self) -> tuple[str, ...]:
        """The names of the stopping rules."""
        return tuple(factory.name for factory in self.factories["stop"])

    @property
    def all_factories(self) -> tuple[Factory, ...]:
        """The factories of all parts."""
        return tuple(factory for of_part in self.factories.values() for factory in of_part)

    @property
    def hyper_names(self) -> tuple[str, ...]:
        """The names of the hyper-parameters that a run takes."""
        return tuple(sorted({name for factory in self.all_factories for name in factory.names}))

    @property
    def required_names(self) -> tuple[str, ...]:
        """The names of the hyper-parameters without a default."""
        return tuple(sorted({name for factory in self.all_factories for name in factory.required}))

    @functools.cached_property
    def alone(self) -> "Recipe":
        """The recipe of the same run on one device: runs that differ only in `parallel` count as the same run."""
        return self if self.parallel is None else dataclasses.replace(self, parallel=None)
