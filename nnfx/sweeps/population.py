"""Population-based training as one program: members train side by side, and the worst are replaced by the best."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nnfx import checks, memo
from nnfx.data.prepare import Data
from nnfx.mapping import side_by_side
from nnfx.sweeps.block_size import best_at_once
from nnfx.sweeps.points import LogUniform, Uniform, check_range
from nnfx.training import hyperparameters
from nnfx.training.epochs import RunState, scan_epochs, start
from nnfx.training.fit import Fit
from nnfx.training.rows import known
from nnfx.training.run import Run
from nnfx.training.step import split_key
from nnfx.types import Array, Batch, Hyper

__all__ = ["Population", "population"]

Range = Uniform | LogUniform


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["runs", "hyper", "parents", "losses"],
    meta_fields=["epochs_per_round"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """The members of a population, and their ancestry.

    Attributes:
        runs: the members as one `Run`, every array with a leading axis `(size, ...)`. The history of a member follows
            its weights: before a replacement, it is the history of the ancestors.
        hyper: the hyper-parameters with which each member was trained, `(rounds, size)` by name.
        parents: the member with whose weights each member started a round, int32 `(rounds, size)`: the member itself
            if it was not replaced.
        losses: the held-out loss of each member at the end of each round, `(rounds, size)`.
        epochs_per_round: the number of epochs in a round.
    """

    runs: Run
    hyper: dict[str, Array]
    parents: Array
    losses: Array
    epochs_per_round: int

    def run(self, member: int) -> Run:
        """Return one member as a run, with its last and best weights, which may come from another member."""
        checks.position("member", member, self.parents.shape[1])
        picked: Run = jax.tree.map(lambda leaf: leaf[member], self.runs)
        return picked

    @property
    def best(self) -> Run:
        """The member whose best weights have the lowest held-out loss.

        Raises:
            ValueError: if no member has a finite loss.
        """
        losses = np.asarray(self.runs.best.loss, np.float64)
        if not np.isfinite(losses).any():
            raise ValueError(f"best: expected a member with a finite loss, got none: all {len(losses)} diverged")
        return self.run(int(np.where(np.isfinite(losses), losses, np.inf).argmin()))

    def lineage(self, member: int) -> np.ndarray:
        """Return a member's ancestor in each round, `(rounds,)`, ending with the member itself.

        Example:
            >>> parents = jnp.array([[0, 1, 2], [0, 0, 2], [0, 1, 1]])
            >>> Population(None, {}, parents, jnp.zeros((3, 3)), 1).lineage(2).tolist()
            [0, 1, 2]
        """
        checks.position("member", member, self.parents.shape[1])
        parents = np.asarray(self.parents)
        places = [member]
        for of_round in parents[:0:-1]:
            places.append(int(of_round[places[-1]]))
        return np.array(places[::-1])

    def schedule(self, member: int) -> dict[str, np.ndarray]:
        """Return the hyper-parameters with which the weights of a member were trained, `(rounds,)` by name."""
        rounds, places = np.arange(len(self.parents)), self.lineage(member)
        return {name: np.asarray(values)[rounds, places] for name, values in self.hyper.items()}


def population(
    fit: Fit,
    *,
    size: int,
    epochs_per_round: int,
    replaced: float = 0.2,
    factors: Sequence[float] = (0.8, 1.25),
    resampled: float = 0.25,
    **values: ArrayLike | Uniform | LogUniform,
) -> Callable[[Array, Data], Population]:
    """Make population-based training a pure function `(key, data) -> Population`, compiled on its first call.

    All members train for a round of epochs, each with its own initial weights and hyper-parameters. Then the
    members with the highest held-out losses are replaced: each copies the whole training state of a member drawn from
    an equal number of members with the lowest losses (exploit), and changes the hyper-parameters, by a random factor
    or by a new draw (explore). The result is a schedule of hyper-parameters, found within a single training run; see
    `Population.schedule`.

    Everything is one program, replacements included, so `jax.vmap` over keys trains several populations. The members
    share the order of their rows, but draw independent noise.

    Args:
        fit: the run function, made by `nnfx.fit`, without stopping rules.
        size: the number of members, at least 2.
        epochs_per_round: the number of epochs between replacements, a divisor of the epochs of the run.
        replaced: the fraction of the members replaced after each round, above 0 and at most 1/2; at least one member
            is replaced.
        factors: two factors; a hyper-parameter is multiplied by either with equal probability, and clipped to its
            range.
        resampled: the probability that a hyper-parameter is drawn from its range again instead.
        **values: a `Uniform` or `LogUniform` range, or one number that stays fixed, for each hyper-parameter.

    Returns:
        The function, whose data must have a held-out split.

    Raises:
        TypeError, ValueError: for arguments out of range, no ranges, unknown or missing hyper-parameters, and
            runs with stopping rules; when the function is called, as calling `fit` does, and for data without a
            held-out split.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age", key=jax.random.key(1), valid_fraction=0.25)
        >>> train = nnfx.fit(nnfx.models.perceptron(), nnfx.losses.binary_cross_entropy, optax.sgd, epochs=20)
        >>> evolve = population(train, size=10, epochs_per_round=5, learning_rate=LogUniform(1e-4, 1.0))
        >>> result = evolve(jax.random.key(0), data)
        >>> result.parents.shape, result.schedule(3)["learning_rate"].shape
        ((4, 10), (4,))

    References:
        Jaderberg et al., *Population based training of neural networks*, arXiv:1711.09846, 2017.
    """
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected the result of nnfx.fit, got {checks.describe(fit)}")
    if fit.rule_names:
        raise ValueError(f"fit: expected a run without stopping rules, got {', '.join(fit.rule_names)}")
    checks.positive_integer("size", size)
    if size < 2:
        raise ValueError("size: expected at least 2 members, got 1")
    checks.positive_integer("epochs_per_round", epochs_per_round)
    if fit.epochs % epochs_per_round:
        raise ValueError(
            f"epochs_per_round: expected a divisor of the {fit.epochs} epochs of the run, got {epochs_per_round}"
        )
    checks.number("replaced", replaced, above=0, maximum=0.5)
    checks.number("resampled", resampled, minimum=0, maximum=1)
    if not isinstance(factors, tuple | list) or len(factors) != 2:
        raise TypeError(f"factors: expected two numbers, such as (0.8, 1.25), got {checks.describe(factors)}")
    for i, factor in enumerate(factors):
        checks.number(f"factors[{i}]", factor, above=0)
    ranges = {name: value for name, value in values.items() if isinstance(value, Range)}
    for name, bounds in ranges.items():
        check_range(name, bounds)
    for end in range(2):
        hyperparameters.check({name: _end(value, end) for name, value in values.items()}, fit.all_factories)
    if not ranges:
        raise ValueError("values: expected at least one range, such as LogUniform(1e-4, 1), got none")
    plan = _Plan(
        size,
        epochs_per_round,
        max(1, int(size * replaced)),
        (factors[0], factors[1]),
        resampled,
        tuple(sorted(ranges.items())),
    )
    fixed = hyperparameters.as_arrays({name: value for name, value in values.items() if not isinstance(value, Range)})

    def evolve(key: Array, data: Data) -> Population:
        fit.check(key, data, {name: _end(value, 0) for name, value in values.items()})
        if data.valid is None:
            raise ValueError("data.valid: expected held-out data to rank members by, got none")
        states, columns, hyper, parents = _evolved(fit, plan, key, known(data.train), known(data.valid), fixed)
        assert states.best is not None
        losses = columns["valid_loss"].reshape(size, -1, epochs_per_round)[:, :, -1].T
        last = {name: values[-1] for name, values in hyper.items()} | {
            name: jnp.broadcast_to(value, (size,)) for name, value in fixed.items()
        }
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *jnp.shape(leaf))), data.preprocess)
        columns = _of_ancestors(columns, parents, epochs_per_round)
        runs = Run(states.train, states.best, columns, states.epoch, states.stopped_by, last, copies, fit)
        return Population(runs, hyper, parents, losses, epochs_per_round)

    return evolve


def _of_ancestors(columns: dict[str, Array], parents: Array, epochs_per_round: int) -> dict[str, Array]:
    """Return the history of each member's weights, `(size, epochs)`, from the history of each position."""
    rounds, size = parents.shape
    places = [jnp.arange(size)]
    for of_round in parents[:0:-1]:
        places.append(of_round[places[-1]])
    at = jnp.stack(places[::-1], axis=1), jnp.arange(rounds)[None]
    return {
        name: values.reshape(size, rounds, epochs_per_round)[at].reshape(size, -1) for name, values in columns.items()
    }


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static arguments of `population`; here, `replaced` is a number of members."""

    size: int
    epochs_per_round: int
    replaced: int
    factors: tuple[float, float]
    resampled: float
    ranges: tuple[tuple[str, Range], ...]


def _end(value: Any, end: int) -> Any:
    return value[end] if isinstance(value, Range) else value


@memo.compiled(static=2)
def _evolved(
    fit: Fit, plan: _Plan, key: Array, train: Batch, valid: Batch, fixed: Hyper
) -> tuple[RunState, dict[str, Array], dict[str, Array], Array]:
    """Return the final states, the history `(size, epochs)`, and the hyper-parameters and parents of each round."""
    of_members, of_exchanges = jax.random.split(key)
    order_key = split_key(of_members).order
    members = jnp.arange(plan.size, dtype=jnp.int32)
    keys = jax.vmap(lambda member: jax.random.fold_in(of_members, member))(members)
    hyper = draw_members(of_exchanges, plan.ranges, plan.size)
    states = jax.vmap(lambda key, own: _own(start(key, fit.bind({**fixed, **own}), train, valid)))(keys, hyper)

    first = {**fixed, **jax.tree.map(lambda column: column[0], hyper)}
    at_once = best_at_once(fit, train, first) if jax.default_backend() == "cpu" else None

    def one_round(carry: tuple[RunState, dict[str, Array], Array], number: Array) -> tuple[Any, Any]:
        states, hyper, parents = carry
        first_epoch = number * plan.epochs_per_round

        def member(key: Array, state: RunState, own: Hyper) -> tuple[RunState, dict[str, Array]]:
            state = state._replace(train=state.train._replace(key=split_key(key).step), order_key=order_key)
            ended, history = scan_epochs(
                fit, {**fixed, **own}, state, train, valid, plan.epochs_per_round, first_epoch=first_epoch
            )
            return _own(ended), history

        trained, history = side_by_side(lambda of: member(*of), (keys, states, hyper), at_once)
        losses = history["valid_loss"][:, -1]
        exchange_key = jax.random.fold_in(of_exchanges, number + 1)
        sources = chosen_parents(exchange_key, losses, plan.replaced)
        changed = explored(exchange_key, hyper, sources, plan.ranges, plan.factors, plan.resampled)
        taken = jax.tree.map(lambda leaf: leaf[sources], trained)
        # no member is replaced after the last round
        is_last = number == fit.epochs // plan.epochs_per_round - 1
        states = jax.tree.map(lambda new, old: jnp.where(is_last, old, new), taken, trained)
        return (states, changed, sources), (history, hyper, parents)

    rounds = jnp.arange(fit.epochs // plan.epochs_per_round, dtype=jnp.int32)
    (states, _, _), (histories, by_round, parents) = jax.lax.scan(one_round, (states, hyper, members), rounds)
    columns = {name: values.swapaxes(0, 1).reshape(plan.size, -1) for name, values in histories.items()}
    step_keys = jax.vmap(lambda key: split_key(key).step)(keys)
    states = states._replace(train=states.train._replace(key=step_keys))
    return states, columns, by_round, parents


def _own(state: RunState) -> RunState:
    """Remove the keys, which stay with a position when its state is replaced."""
    return state._replace(train=state.train._replace(key=None), order_key=None)  # type: ignore[arg-type]


def draw_members(key: Array, ranges: tuple[tuple[str, Range], ...], size: int) -> dict[str, Array]:
    """Draw the initial hyper-parameters of every member, `(size,)` by name."""
    return {
        name: _drawn(jax.random.fold_in(jax.random.fold_in(key, 0), i), bounds, (size,))
        for i, (name, bounds) in enumerate(ranges)
    }


def _drawn(key: Array, bounds: Range, shape: tuple[int, ...]) -> Array:
    low, high = np.log(bounds) if isinstance(bounds, LogUniform) else bounds
    drawn = jax.random.uniform(key, shape, minval=low, maxval=high)
    return jnp.exp(drawn) if isinstance(bounds, LogUniform) else drawn


def chosen_parents(key: Array, losses: Array, replaced: int) -> Array:
    """Return the parent of each member: for the worst members, a random one of the best; for the others, themselves.

    Losses that are not finite rank last, and equal losses by position.

    Args:
        key: a typed key.
        losses: the held-out losses, `(size,)`.
        replaced: the number of worst members to replace, and of best members to draw their parents from.

    Example:
        >>> chosen_parents(jax.random.key(0), jnp.array([0.3, jnp.nan, 0.1, 0.2]), replaced=1).tolist()
        [0, 2, 2, 3]
    """
    ranking = jnp.argsort(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    drawn = ranking[jax.random.randint(jax.random.fold_in(key, 0), (replaced,), 0, replaced)]
    return jnp.arange(len(losses), dtype=jnp.int32).at[ranking[-replaced:]].set(drawn.astype(jnp.int32))


def explored(
    key: Array,
    hyper: Mapping[str, Array],
    parents: Array,
    ranges: tuple[tuple[str, Range], ...],
    factors: tuple[float, float],
    resampled: float,
) -> dict[str, Array]:
    """Return the hyper-parameters of the next round; replaced members get changed copies of their parents'.

    Args:
        key: a typed key.
        hyper: the hyper-parameters of each member, `(size,)` by name.
        parents: the parent of each member, `(size,)`.
        ranges: the range of each hyper-parameter, to which values are clipped.
        factors: two factors, one of which multiplies a hyper-parameter.
        resampled: the probability that a hyper-parameter is drawn again instead.
    """
    is_new = parents != jnp.arange(len(parents))
    changed = {}
    for i, (name, bounds) in enumerate(ranges):
        of_factor, of_choice, of_draw = jax.random.split(jax.random.fold_in(key, i + 1), 3)
        values = hyper[name][parents]
        factor = jnp.where(jax.random.bernoulli(of_factor, 0.5, values.shape), *factors)
        is_drawn = jax.random.bernoulli(of_choice, resampled, values.shape)
        moved = jnp.clip(values * factor, bounds.low, bounds.high)
        new = jnp.where(is_drawn, _drawn(of_draw, bounds, values.shape), moved)
        changed[name] = jnp.where(is_new, new, hyper[name])
    return changed
