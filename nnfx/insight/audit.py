"""Gradient checking: compare each parameter's derivative with finite differences of the loss."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nnfx import checks, mapping, memo
from nnfx.insight import objective
from nnfx.tables import table
from nnfx.types import Array, Batch, Model, PerExample, Variables

__all__ = ["Audit", "Leaf", "gradient"]

STEP = 1e-5
"""h, the step by which a parameter is shifted, relative to its magnitude if that is above 1."""
NEAR = 0.1
"""The smaller of the two steps, as a fraction of the larger."""
BESIDE = 0.01
"""The standard deviation of the shift to nearby points, away from kinks at the original point."""

Verdict = Literal["right", "wrong", "flat", "undecided"]
"""Whether the gradient and the finite differences agree; `"flat"` if both are zero up to rounding errors of the loss,
`"undecided"` if the loss has a kink at every audited parameter."""


class Leaf(NamedTuple):
    """The result for one array of parameters.

    Attributes:
        shape: the shape of the array.
        audited: the number of audited elements.
        kinks: the number of audited elements at which the loss has a kink, where finite differences say nothing.
        scale: the largest derivative among audited elements, by the gradient or by finite differences.
        error: the largest deviation of the gradient from finite differences, kinks excluded, as a fraction of the
            scale.
        worst: the position of the element with the largest deviation.
        gradient: the derivative of that element, by the gradient.
        difference: the derivative of that element, by finite differences of the loss.
        verdict: whether the gradient and finite differences agree.
    """

    shape: tuple[int, ...]
    audited: int
    kinks: int
    scale: float
    error: float
    worst: tuple[int, ...]
    gradient: float
    difference: float
    verdict: Verdict


class Audit(NamedTuple):
    """The result of auditing a gradient; it prints as a table.

    Attributes:
        leaves: the result for each array of parameters, by name, such as `"hidden_0/kernel"`.
        loss: the empirical loss at the audited parameters.
    """

    leaves: dict[str, Leaf]
    loss: float

    @property
    def passed(self) -> bool:
        """Whether every gradient is right or flat."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """The names of the arrays whose gradient is wrong or undecided."""
        return tuple(name for name, leaf in self.leaves.items() if leaf.verdict in ("wrong", "undecided"))

    def __str__(self) -> str:
        """Return the audit as a table, followed by details of wrong gradients."""
        rows = [
            [name, f"{leaf.audited} of {math.prod(leaf.shape)}", leaf.kinks, leaf.scale, leaf.error, leaf.verdict]
            for name, leaf in self.leaves.items()
        ]
        lines = [table(["parameters", "audited", "kinks", "largest", "error", "verdict"], rows)]
        lines += [
            f"{name}{list(leaf.worst)}: gradient {leaf.gradient:.6g}, finite differences {leaf.difference:.6g}"
            for name, leaf in self.leaves.items()
            if leaf.verdict == "wrong"
        ]
        return "\n".join(lines)


def gradient(
    key: Array,
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    share: float = 1.0,
    train: bool = False,
    tolerance: float = 1e-6,
) -> Audit:
    """Audit a gradient: `∂L/∂wᵢ` against `(L(w + h eᵢ) − L(w − h eᵢ)) / 2h`, in float64, for every parameter.

    All losses are computed in one compiled program. ReLU, maxima and absolute values have kinks, across which finite
    differences say nothing about the slope. A kink is detected by comparing two step sizes and the two sides of each
    step, independently of the gradient. The audit is then repeated at two nearby points, with all parameters shifted in
    a random direction and in the opposite direction, so that both sides of the kink are tested. An element is wrong if
    it disagrees at any of these points by more than a kink there can explain.

    Args:
        key: a typed key, which selects the parameters to audit and the nearby points, and seeds the model's noise.
        model: the model; it must compute in the dtype of its arguments.
        loss: the per-example loss.
        variables: the variables of the model; the gradient is audited at their parameters.
        batch: the examples over which the loss is averaged.
        share: the fraction of each array of parameters to audit, above 0, selected at random; at least one element.
        train: whether to apply the model in training mode.
        tolerance: the largest error that passes, as a fraction of the largest derivative in an array of parameters; an
            allowance for the rounding of the loss is added.

    Returns:
        The error and the verdict for each array of parameters.

    Raises:
        TypeError: for a key that is not typed, or arguments of the wrong type.
        ValueError: for a share outside (0, 1], parameters or data that are not finite or do not match each other, a
            loss that is not finite, and a model that does not compute in float64.

    Example:
        >>> from nnfx import losses, models
        >>> model = models.mlp((2,), activation="tanh")
        >>> batch = Batch(jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([0, 1]), jnp.ones(2))
        >>> variables = model.init(jax.random.key(0), batch.inputs)
        >>> found = gradient(jax.random.key(1), model, losses.binary_cross_entropy, variables, batch)
        >>> found.passed, found.leaves["hidden_0/kernel"].error < 1e-6
        (True, True)

    References:
        Griewank and Walther, *Evaluating derivatives*, SIAM 2008, section 1.1 (finite differences and their errors).
    """
    checks.key("key", key)
    checks.number("share", share, above=0, maximum=1)
    checks.number("tolerance", tolerance, above=0)
    objective.check(model, loss, variables, batch, key=key, train=train)
    if not checks.is_concrete((variables, batch, key)):
        raise TypeError("variables: expected concrete arrays, got traced ones; an audit cannot be compiled or mapped")
    choose_key, beside_key, noise_key = jax.random.split(key, 3)
    sizes = {
        objective.name_of(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    chosen = _choose(choose_key, list(sizes.values()), share)
    with jax.enable_x64(True):
        variables, batch = jax.tree.map(_as_float64, (dict(variables), batch))
        program = partial(_differences, model, loss, train, objective.at_once(variables["params"], batch))
        evidence = [_Evidence.of(program(variables, batch, noise_key, np.concatenate(chosen)), chosen, tolerance)]
        if evidence[0].is_kink.any():
            for params in _beside(beside_key, variables["params"]):
                found = program({**variables, "params": params}, batch, noise_key, np.concatenate(chosen))
                evidence.append(_Evidence.of(found, chosen, tolerance))
    starts = np.cumsum([0, *(len(numbers) for numbers in chosen)])
    offsets = np.cumsum([0, *(math.prod(shape) for shape in sizes.values())])
    leaves = {
        name: _leaf(shape, numbers - offset, [each.part(slice(start, start + len(numbers))) for each in evidence])
        for (name, shape), numbers, start, offset in zip(sizes.items(), chosen, starts[:-1], offsets[:-1], strict=True)
    }
    return Audit(leaves, evidence[0].loss)


def _choose(key: Array, shapes: list[tuple[int, ...]], share: float) -> list[np.ndarray]:
    """Select a fraction of each leaf at random, and return positions in the vector of all parameters."""
    chosen, offset = [], 0
    for i, shape in enumerate(shapes):
        size = math.prod(shape)
        order = np.arange(size)
        if share < 1:
            order = np.sort(jax.random.permutation(jax.random.fold_in(key, i), size)[: math.ceil(share * size)])
        chosen.append(offset + order)
        offset += size
    return chosen


def _as_float64(leaf: Any) -> Array:
    return jnp.asarray(leaf, jnp.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)


def _beside(key: Array, params: Any) -> list[Any]:
    """Return the parameters shifted in a random direction, and in the opposite direction."""
    flat, restore = ravel_pytree(params)
    move = BESIDE * jax.random.normal(key, flat.shape, flat.dtype)
    return [restore(flat + move), restore(flat - move)]


class _Found(NamedTuple):
    """The loss, its rounding error, and each element's step, derivative, and losses at the shifted points."""

    loss: Array
    rounding: Array
    step: Array
    gradient: Array
    losses: Array


@memo.compiled(static=4)
def _differences(
    model: Model,
    loss: PerExample,
    train: bool,
    at_once: int,
    variables: Variables,
    batch: Batch,
    key: Array,
    chosen: Array,
) -> _Found:
    """Compute the gradient, and the loss with each chosen element shifted by ± a large and a small step."""
    of_params = objective.objective(model, loss, variables, batch, key=key, train=train)
    flat, restore = ravel_pytree(variables["params"])

    def of(flat: Array) -> Array:
        return of_params(restore(flat))

    value, slope = jax.value_and_grad(of)(flat)
    if value.dtype != jnp.float64:
        raise ValueError(f"model: expected outputs in float64, like its inputs and parameters, got {value.dtype}")
    steps = STEP * jnp.maximum(1, jnp.abs(flat[chosen]))
    moves = jnp.stack([steps, -steps, NEAR * steps, -NEAR * steps], axis=1).reshape(-1)

    def moved(flat: Array, point: tuple[Array, Array, Array]) -> Array:
        number, move, factor = point
        return of((flat * factor).at[number].add(move))

    # Factors that change only the last bits should not matter; how much the loss varies with them is its rounding
    # error.
    bits = 1 + jnp.finfo(flat.dtype).eps * jnp.arange(-4, 4)
    points = (
        jnp.concatenate([jnp.repeat(chosen, 4), jnp.zeros_like(chosen, shape=bits.shape)]),
        jnp.concatenate([moves, jnp.zeros_like(bits)]),
        jnp.concatenate([jnp.ones_like(moves), bits]),
    )
    losses = mapping.map_points(moved, flat, points, at_once=at_once, devices=jax.local_devices()[:1])
    around, rounded = losses[: len(moves)].reshape(-1, 4), losses[len(moves) : len(moves) + len(bits)]
    return _Found(value, jnp.ptp(rounded), steps, slope[chosen], around)


class _Evidence(NamedTuple):
    """The evidence for each element, on the host.

    Attributes:
        loss: the loss before any element is shifted.
        gradient: the derivative to audit.
        difference: the central difference that is closest to the gradient.
        scale: the largest derivative within the same leaf.
        noise: the error that rounding of the loss may cause in a central difference.
        is_right: whether the gradient and the central difference agree.
        is_kink: whether they disagree because of a kink.
    """

    loss: float
    gradient: np.ndarray
    difference: np.ndarray
    scale: np.ndarray
    noise: np.ndarray
    is_right: np.ndarray
    is_kink: np.ndarray

    @classmethod
    def of(cls, found: _Found, chosen: list[np.ndarray], tolerance: float) -> "_Evidence":
        """Compare the gradient with finite differences."""
        loss, rounding, step, gradient, losses = (np.asarray(each) for each in found)
        if not (np.isfinite(loss) and np.isfinite(gradient).all() and np.isfinite(losses).all()):
            raise ValueError("loss: expected finite values and gradients at and around the parameters, got others")
        up, down, near_up, near_down = losses.T
        far, near = (up - down) / (2 * step), (near_up - near_down) / (2 * NEAR * step)
        # Curvature makes the slopes of the two sides differ in proportion to the step, a kink regardless of the step.
        bend = (up - 2 * loss + down) / step
        near_bend = (near_up - 2 * loss + near_down) / (NEAR * step)
        kink = np.maximum(np.abs(far - near), np.abs(near_bend - NEAR * bend))
        off, near_off = np.abs(far - gradient), np.abs(near - gradient)

        lengths = [len(numbers) for numbers in chosen]
        largest = [
            np.abs(part).max() for part in np.split(np.maximum(abs(gradient), abs(far)), np.cumsum(lengths)[:-1])
        ]
        scale = np.repeat(largest, lengths)
        noise = 4 * (rounding + 2 * np.finfo(np.float64).eps * abs(loss)) / (NEAR * step)
        is_right = np.minimum(off, near_off) <= tolerance * scale + noise
        # If the slope jumps by J at a kink within the far step h, at a distance th, then `off` is J(1 − t)/2. If th
        # lies within the near step, one of the two terms of `kink` is at least 0.28 J, so that a factor of 1/2 is safe;
        # if th lies beyond it, the near difference is right.
        is_kink = ~is_right & (kink >= off / 2)
        return cls(float(loss), gradient, np.where(off <= near_off, far, near), scale, noise, is_right, is_kink)

    def part(self, places: slice) -> "_Evidence":
        """Return the evidence for some elements."""
        return _Evidence(self.loss, *(values[places] for values in self[1:]))


def _leaf(shape: tuple[int, ...], numbers: np.ndarray, evidence: list[_Evidence]) -> Leaf:
    """Return the result for one leaf, given the evidence at the original point and any nearby points."""
    first = evidence[0]
    is_wrong = np.stack([~each.is_right & ~each.is_kink for each in evidence])
    errors = np.stack(
        [abs(each.gradient - each.difference) / np.where(each.scale > 0, each.scale, 1) for each in evidence]
    )
    errors = np.where([each.is_kink for each in evidence], -1, errors)
    place, worst = np.unravel_index(
        np.where(is_wrong.any(), np.where(is_wrong, errors, -1), errors).argmax(), errors.shape
    )
    verdict: Verdict = "right"
    if is_wrong.any():
        verdict = "wrong"
    elif np.all([each.is_kink for each in evidence], axis=0).all():
        verdict = "undecided"
    elif all((each.scale <= each.noise).all() for each in evidence):
        verdict = "flat"
    return Leaf(
        shape,
        len(numbers),
        int(first.is_kink.sum()),
        float(first.scale[0]),
        max(0.0, float(errors[place, worst])),
        tuple(int(i) for i in np.unravel_index(numbers[worst], shape)),
        float(evidence[place].gradient[worst]),
        float(evidence[place].difference[worst]),
        verdict,
    )
