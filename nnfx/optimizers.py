"""Adapt Optax optimizers to the training step, freeze parameters, and select the weights to evaluate a model with.

Most optimizers update the weights that a model is evaluated with. Some update other weights. A schedule-free optimizer
updates the point at which the gradient is taken. Lookahead updates its fast weights. In some of its steps, the
sharpness-aware optimizer SAM moves the weights uphill.
"""

import contextlib
import fnmatch
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from nnfx import checks, trees

__all__ = ["as_optimizer", "evaluation_params", "freeze", "has_evaluation_params"]

Optimizer = TypeVar("Optimizer", bound=Callable[..., Any] | optax.GradientTransformation)


class Slow(NamedTuple):
    """The state of `optax.lookahead`, together with its slow weights.

    Attributes:
        params: the slow weights.
        inner: the optimizer's state.
    """

    params: Any
    inner: Any


def as_optimizer(name: str, given: Any) -> optax.GradientTransformationExtraArgs:
    """Convert any Optax optimizer to one that updates a single parameter tree, as in a training step.

    `optax.MultiSteps` and `optax.lookahead` are converted too.

    Args:
        name: the argument's name, for error messages.
        given: an instance of an Optax optimizer.

    Raises:
        TypeError: if `given` is not an instance of an Optax optimizer, but for example a factory.

    Example:
        >>> optimizer = as_optimizer("optimizer", optax.lookahead(optax.sgd(1.0), sync_period=2, slow_step_size=0.5))
        >>> params = jnp.zeros(1)
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(-jnp.ones(1), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params, evaluation_params(state, params)
        (Array([1.], dtype=float32), Array([1.], dtype=float32))
    """
    if isinstance(given, optax.MultiSteps):
        given = given.gradient_transformation()
    if not isinstance(given, optax.GradientTransformation):
        hint = "; call the factory, such as optax.adam(0.001)" if callable(given) else ""
        raise TypeError(f"{name}: expected an instance of an Optax optimizer, got {checks.describe(given)}{hint}")
    inner = optax.with_extra_args_support(given)

    def init(params: Any) -> Any:
        with _without_warning():
            state = inner.init(params)
        found = _nodes(state, (Slow, optax.LookaheadState))
        is_bare = any(isinstance(node, optax.LookaheadState) for node in found)
        return Slow(jax.tree.map(jnp.copy, params), state) if is_bare else state

    def inner_update(updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        try:
            return inner.update(updates, state, params, **extra)
        except TypeError as error:  # optax.contrib.sam, even within a chain, accepts no arguments but its own
            if "got an unexpected keyword argument" not in str(error):
                raise
            return inner.update(updates, state, params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if not isinstance(state, Slow):
            return inner_update(updates, state, params, extra)
        both, after = inner_update(updates, state.inner, optax.LookaheadParams(params, state.params), extra)
        if not isinstance(both, optax.LookaheadParams):
            raise ValueError(f"{name}: expected optax.lookahead outermost or in optax.chain, got it nested elsewhere")
        return both.fast, Slow(optax.apply_updates(state.params, both.slow), after)

    return optax.GradientTransformationExtraArgs(init, update)


def freeze(optimizer: Optimizer, *patterns: str | Callable[[str], bool]) -> Optimizer:
    """Return an optimizer that leaves some parameters unchanged, bit for bit: no updates, no decay, no state for them.

    The optimizer sees only the other parameters, which are trained as if the frozen ones did not exist: a clipped
    global norm, for example, leaves out the frozen parameters. Batch statistics are not parameters, and are still
    updated.

    Args:
        optimizer: an Optax factory, such as `optax.adam`, whose numeric arguments stay hyper-parameters; or an
            optimizer.
        *patterns: the parameters to freeze. Each pattern is a glob (`*`, `?`, `[...]`) for names such as
            `hidden_0.kernel`, or a function of a name that returns a boolean. A glob that matches a name up to a dot
            also matches everything below it: `"hidden_*"` matches `hidden_0.kernel`.

    Returns:
        A factory if `optimizer` is a factory, otherwise an optimizer.

    Raises:
        TypeError: for an `optimizer` of another type, or no patterns.
        ValueError: for a pattern that matches no parameter, when the optimizer is initialised.

    Example:
        >>> optimizer = freeze(optax.sgd, "hidden_*")(learning_rate=0.5)
        >>> params = {"hidden_0": {"kernel": jnp.ones(1)}, "output": {"kernel": jnp.ones(1)}}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> after = optax.apply_updates(params, updates)
        >>> after["hidden_0"]["kernel"], after["output"]["kernel"]
        (Array([1.], dtype=float32), Array([0.5], dtype=float32))
    """
    if not patterns or not all(isinstance(pattern, str) or callable(pattern) for pattern in patterns):
        got = ", ".join(map(checks.describe, patterns)) or "none"
        raise TypeError(f"patterns: expected at least one glob, such as 'hidden_*', or function of a name, got {got}")
    given: Any = optimizer
    if isinstance(given, optax.MultiSteps | optax.GradientTransformation):
        frozen: Any = _frozen(as_optimizer("optimizer", given), patterns)
        return frozen
    if not callable(given):
        raise TypeError(f"optimizer: expected an Optax factory or optimizer, got {checks.describe(given)}")
    if isinstance(given, functools.partial):
        fixed: Any = functools.partial(freeze(given.func, *patterns), *given.args, **given.keywords)
        return fixed

    @functools.wraps(given)
    def factory(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        return _frozen(as_optimizer("optimizer", given(*args, **kwargs)), patterns)

    made: Any = factory
    return made


def _frozen(
    optimizer: optax.GradientTransformation, patterns: tuple[str | Callable[[str], bool], ...]
) -> optax.GradientTransformationExtraArgs:
    def labels(params: Any) -> Any:
        unused = set(range(len(patterns)))

        def label(path: Any, _: Any) -> str:
            name = trees.name_of(path)
            found = {i for i, pattern in enumerate(patterns) if matches(pattern, name)}
            unused.difference_update(found)
            return "frozen" if found else "trained"

        labelled = jax.tree_util.tree_map_with_path(label, params)
        if unused:
            raise ValueError(
                f"patterns: expected each to match one of {', '.join(trees.named(params))}, got no match for"
                f" {', '.join(repr(patterns[i]) for i in sorted(unused))}"
            )
        return labelled

    inner = optax.partition({"trained": optimizer, "frozen": optax.stateless(_no_change)}, labels)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is not None:
            extra = _of_trained(extra, labels(params), params)
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _of_trained(extra: dict[str, Any], labels: Any, params: Any) -> dict[str, Any]:
    """Return the arguments of a line search as functions and gradients of the trained parameters alone."""
    found = dict(extra)
    if "grad" in extra:
        found["grad"] = jax.tree.map(
            lambda label, leaf: leaf if label == "trained" else optax.MaskedNode(), labels, extra["grad"]
        )
    if "value_fn" in extra:

        def value_fn(trained: Any) -> Any:
            mine = jax.tree.leaves(trained, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
            leaves, tree = jax.tree.flatten(params)
            merged = [old if isinstance(new, optax.MaskedNode) else new for new, old in zip(mine, leaves, strict=True)]
            return extra["value_fn"](jax.tree.unflatten(tree, merged))

        found["value_fn"] = value_fn
    return found


def _no_change(updates: Any, params: Any) -> Any:
    """Return −0, the only number that changes nothing when added: 0 + −0 is 0, and −0 + −0 is −0."""
    del params
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), updates)


def matches(pattern: str | Callable[[str], bool], name: str) -> bool:
    """Return whether a pattern, as passed to `freeze`, matches the name of a parameter."""
    if not isinstance(pattern, str):
        return bool(pattern(name))
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Silence lookahead's warning that it assumes it was given only fast parameters; the assumption holds here."""
    logger = logging.getLogger("absl")

    def is_other(record: logging.LogRecord) -> bool:
        return "has no attribute `fast`" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def evaluation_params(opt_state: Any, params: Any) -> Any:
    """Return the weights to evaluate a model with, given its optimizer's state.

    These optimizers, which update other weights, are also found inside a chain or a partition:

    - `optax.contrib.schedule_free`: `x = (y − (1 − β₁) z) / β₁`, where y are the weights that it updates, and z and β₁
      are stored in its state.
    - `optax.lookahead`: the slow weights.
    - `optax.contrib.sam` with `opaque_mode=False`: the weights before the steps uphill.

    Args:
        opt_state: the optimizer's state.
        params: the weights that the optimizer updates; returned unchanged for optimizers not listed above.

    Example:
        >>> optimizer = optax.contrib.schedule_free_sgd(1.0, b1=0.5)
        >>> params = jnp.ones(1)
        >>> bool((evaluation_params(optimizer.init(params), params) == params).all())
        True

    References:
        Defazio et al., *The road less scheduled*, NeurIPS 2024; Zhang et al., *Lookahead optimizer: k steps forward, 1
        step back*, NeurIPS 2019; Foret et al., *Sharpness-aware minimization*, ICLR 2021.
    """
    for node in _nodes(opt_state, _OWN):
        if isinstance(node, Slow):
            params = _where_held(_slow, 0, params, node.params)
        elif isinstance(node, optax.contrib.ScheduleFreeState):
            params = _where_held(_average, node.b1, params, node.z)
        elif node.cache is not None:
            params = _where_held(_before_uphill, node.steps_since_sync, params, node.cache)
    return params


def has_evaluation_params(opt_state: Any) -> bool:
    """Return whether a model is evaluated with weights other than those that its optimizer updates.

    >>> has_evaluation_params(optax.adam(0.1).init(jnp.ones(1)))
    False
    """
    return bool(_nodes(opt_state, _OWN))


_OWN = Slow, optax.contrib.ScheduleFreeState, optax.contrib.SAMState


def _average(b1: Any, y: Any, z: Any) -> Any:
    return ((y - (1.0 - b1) * z) / b1).astype(y.dtype)


def _slow(number: Any, params: Any, slow: Any) -> Any:
    del number, params
    return slow


def _before_uphill(steps: Any, params: Any, cache: Any) -> Any:
    return jnp.where(steps == 0, params, cache)


def _where_held(function: Any, number: Any, params: Any, held: Any) -> Any:
    """Map over the parameters that an optimizer holds; masked parameters are left unchanged.

    The states of several runs may be stacked; then `number` has one entry for each run.
    """
    number = jnp.asarray(number)

    def of(param: Any, mine: Any) -> Any:
        if isinstance(mine, optax.MaskedNode):
            return param
        return function(number.reshape(number.shape + (1,) * (param.ndim - number.ndim)), param, mine)

    leaves, tree = jax.tree.flatten(params)
    mine = jax.tree.leaves(held, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return jax.tree.unflatten(tree, map(of, leaves, mine)) if len(mine) == len(leaves) else params


def _nodes(opt_state: Any, kinds: Any) -> list[Any]:
    """Return the states of the given types within an optimizer's state, except those nested within another."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]
