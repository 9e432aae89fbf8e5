"""The loss around a solution, between solutions, and along a training path: slices through the loss landscape."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from nnfx import checks, mapping, memo
from nnfx.insight import objective
from nnfx.types import Array, Batch, Model, Params, PerExample, Variables

__all__ = ["Cut", "Landscape", "measure", "principal_cut", "random_cut", "through"]


class Cut(NamedTuple):
    """A line or a plane through the space of parameters, `w(a) = w₀ + Σᵢ aᵢ dᵢ`.

    Attributes:
        origin: w₀, the parameters at coordinates zero.
        directions: dᵢ, in the tree of the parameters with a leading axis of size 1 or 2.
        places: the coordinates of the points that define the cut, such as a training path, `(places, 1 or 2)`.
        captured: the fraction of the path's variance that lies along each direction; None if there is no path.
    """

    origin: Params
    directions: Params
    places: Array
    captured: Array | None = None


class Landscape(NamedTuple):
    """The empirical loss on a line or on a grid.

    Attributes:
        x: the coordinates along the first direction, `(x,)`.
        y: the coordinates along the second direction, `(y,)`, or None on a line.
        losses: `(x,)`, or `(x, y)`.
    """

    x: Array
    y: Array | None
    losses: Array


def random_cut(key: Array, params: Params, axes: int = 2) -> Cut:
    """Return a cut in random directions, scaled filter by filter: `dᵢⱼ ← dᵢⱼ ‖wᵢⱼ‖ / ‖dᵢⱼ‖`, `d ~ N(0, 1)`.

    With ReLU and batch norm, a network's function does not depend on the scale of its filters, so the length of a
    direction means nothing by itself; with each filter scaled to the norm of the network's, landscapes are comparable.
    A filter consists of the weights of one feature, on the last axis. Biases and the parameters of batch norm, which
    are arrays of one axis, are not moved.

    Args:
        key: a typed key.
        params: the parameters at the origin of the cut.
        axes: 1 for a line, 2 for a plane.

    Returns:
        The cut, with the parameters at its origin.

    Raises:
        TypeError: for a key that is not typed, or parameters that are not floats.
        ValueError: for an unsupported number of axes, parameters that are not finite, or only arrays of one axis.

    Example:
        >>> cut = random_cut(jax.random.key(0), {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])})
        >>> jnp.linalg.norm(cut.directions["kernel"], axis=1).round(4).tolist()
        [[5.0, 2.0], [5.0, 2.0]]

    References:
        Li et al., *Visualizing the loss landscape of neural nets*, NeurIPS 2018, section 4.
    """
    checks.key("key", key)
    _check_axes(axes)
    objective.check_variables({"params": params})
    if all(leaf.ndim < 2 for leaf in jax.tree.leaves(params)):
        raise ValueError("params: expected an array of filters, (..., features), got only biases")
    return Cut(params, _filter_normalised(key, params, axes), jnp.zeros((1, axes)))


@partial(jax.jit, static_argnums=2)
def _filter_normalised(key: Array, params: Params, axes: int) -> Params:
    """Draw random directions, with each filter scaled to the norm of the network's filter."""
    leaves, tree = jax.tree.flatten(params)

    def draw(key: Array, leaf: Array) -> Array:
        if leaf.ndim < 2:
            return jnp.zeros((axes, *leaf.shape), leaf.dtype)
        direction = jax.random.normal(key, (axes, *leaf.shape), leaf.dtype)
        within = tuple(range(leaf.ndim - 1))
        own = jnp.sqrt(jnp.square(leaf).sum(within, keepdims=True))
        drawn = jnp.sqrt(jnp.square(direction).sum([axis + 1 for axis in within], keepdims=True))
        return direction * (own[None] / drawn)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [draw(*pair) for pair in zip(keys, leaves, strict=True)])


def principal_cut(path: Params, axes: int = 2) -> Cut:
    """Return a cut through the last point of a training path, in the directions in which the path varies most.

    The directions are the first principal components of the points, of length one, with signs such that no coordinate
    of the path's start is positive. The path is projected onto these directions, and `captured` is the fraction of its
    variance along each.

    Args:
        path: the parameters along the path, each array with a leading axis, `(places, ...)`.
        axes: 1 for a line, 2 for a plane.

    Returns:
        The cut, with the last point at its origin, and the coordinates of the path.

    Raises:
        TypeError: for parameters that are not floats.
        ValueError: for fewer than axes + 1 points, points that are all identical, or an unsupported number of axes.

    Example:
        >>> path = {"w": jnp.array([[-3.0, 0.0], [-2.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])}
        >>> cut = principal_cut(path)
        >>> cut.places.shape, round(float(cut.captured.sum()), 4)
        ((4, 2), 1.0)

    References:
        Li et al., *Visualizing the loss landscape of neural nets*, NeurIPS 2018, section 7.
        Lorch, *Visualizing deep network training trajectories with PCA*, ICML workshop 2016.
    """
    _check_axes(axes)
    objective.check_variables({"params": path})
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(path)}
    if len(lengths) != 1 or () in lengths or min(lengths)[0] <= axes:
        raise ValueError(f"path: expected arrays (places, ...) with more than {axes} places, got {sorted(lengths)}")
    last = jax.tree.map(lambda leaf: jnp.asarray(leaf)[-1], path)
    flat = jax.vmap(lambda place: ravel_pytree(place)[0])(jax.tree.map(jnp.asarray, path))
    _, restore = ravel_pytree(last)
    moved = flat - flat[-1:]
    _, spread, components = jnp.linalg.svd(moved - moved.mean(0, keepdims=True), full_matrices=False)
    if checks.is_concrete(spread) and not float(spread[0]) > 0:
        raise ValueError("path: expected at least two different points, got identical ones")
    directions = components[:axes]
    directions = directions * jnp.where(moved[:1] @ directions.T > 0, -1, 1).T
    captured = jnp.square(spread) / jnp.square(spread).sum()
    return Cut(last, jax.vmap(restore)(directions), moved @ directions.T, captured[:axes])


def through(*solutions: Params) -> Cut:
    """Return a cut along the line through two solutions, or in the plane through three.

    On a line, the first solution lies at 0 and the second at 1: the loss between them shows whether two minima lie in
    one valley. In a plane, coordinates have the units of the parameters, the second solution lies on the first axis,
    and the third on the positive side of the second axis; lengths and angles are preserved.

    Args:
        *solutions: the parameters of two or three networks of the same shapes.

    Returns:
        The cut, with the coordinates of the solutions.

    Raises:
        TypeError: for an unsupported number of solutions, or parameters that are not floats.
        ValueError: for solutions of different shapes, two identical solutions, or three on one line.

    Example:
        >>> a, b, c = ({"w": jnp.array(w)} for w in ([0.0, 0.0], [3.0, 4.0], [4.0, -3.0]))
        >>> through(a, b).places.tolist(), through(a, b, c).places.round(4).tolist()
        ([[0.0], [1.0]], [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])

    References:
        Goodfellow, Vinyals and Saxe, *Qualitatively characterizing neural network optimization problems*, ICLR 2015.
        Garipov et al., *Loss surfaces, mode connectivity, and fast ensembling of DNNs*, NeurIPS 2018, section 3.
    """
    if len(solutions) not in (2, 3):
        raise TypeError(f"solutions: expected two or three, got {len(solutions)}")
    shapes = [jax.tree.map(np.shape, each) for each in solutions]
    for i, each in enumerate(solutions):
        objective.check_variables({"params": each})
        if shapes[i] != shapes[0]:
            raise ValueError(f"solutions[{i}]: expected the shapes of the first, {shapes[0]}, got {shapes[i]}")
    first, restore = ravel_pytree(solutions[0])
    others = [ravel_pytree(each)[0] - first for each in solutions[1:]]
    if len(others) == 1:
        _require_apart("solutions: expected two different solutions", others[0], others[0])
        return Cut(solutions[0], jax.vmap(restore)(others[0][None]), jnp.array([[0.0], [1.0]], first.dtype))
    second, third = others
    _require_apart("solutions: expected the second to differ from the first", second, second)
    along = second / jnp.linalg.norm(second)
    rest = third - (third @ along) * along
    _require_apart("solutions: expected three that do not lie on a line", rest, third)
    aside = rest / jnp.linalg.norm(rest)
    directions = jnp.stack([along, aside])
    places = jnp.stack([jnp.zeros_like(first), second, third]) @ directions.T
    return Cut(solutions[0], jax.vmap(restore)(directions), places)


def _require_apart(expected: str, difference: Array, whole: Array) -> None:
    """Raise an error for a difference that is no larger than rounding errors."""
    if checks.is_concrete(difference):
        small = 8 * float(jnp.finfo(whole.dtype).eps) * float(jnp.linalg.norm(whole))
        if float(jnp.linalg.norm(difference)) <= small:
            raise ValueError(f"{expected}, got a distance of {float(jnp.linalg.norm(difference)):g}")


def _check_axes(axes: Any) -> None:
    checks.positive_integer("axes", axes)
    if axes > 2:
        raise ValueError(f"axes: expected 1 or 2, got {axes}")


def measure(
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    cut: Cut,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    key: Array | None = None,
    train: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Landscape:
    """Measure the empirical loss `L(w₀ + x d₁ + y d₂)` on a line or on a grid, as one compiled program.

    The points are divided among the devices, each of which evaluates small networks many at a time, and large networks
    one at a time.

    Args:
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; the parameters are taken from the cut, all others, such as running
            statistics, from this argument.
        batch: the examples over which the loss is averaged.
        cut: the line or the plane.
        x: the coordinates along the first direction of the cut at which to measure the loss, `(x,)`.
        y: the coordinates along the second direction, `(y,)`; None for a line.
        key: a typed key for the model's noise in training mode, the same at every point; None for models without noise.
        train: whether to apply the model in training mode: batch norm then normalises by the batch statistics at each
            point.
        devices: the devices to use; by default, all devices of this process.

    Returns:
        The coordinates and the losses, which may be infinite or NaN far from the origin.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for an `x` or `y` that is empty, is not finite, or does not have exactly one axis; if `y` is given
            for a line, or None for a plane; for a cut whose parameters differ in shape from those in `variables`; and
            in the same cases as `nnfx.insight.audit.gradient`.

    Example:
        The loss of a linear model is a parabola:

        >>> from nnfx import losses, models
        >>> model, batch = models.perceptron(), Batch(jnp.ones((1, 1)), jnp.zeros(1), jnp.ones(1))
        >>> params = {"bias": jnp.zeros(1), "kernel": jnp.zeros((1, 1))}
        >>> cut = through(params, {"bias": jnp.zeros(1), "kernel": jnp.ones((1, 1))})
        >>> found = measure(model, losses.mean_square_error, {"params": params}, batch, cut, jnp.linspace(-2, 2, 5))
        >>> found.losses.tolist()
        [4.0, 1.0, 0.0, 1.0, 4.0]

    References:
        Li et al., *Visualizing the loss landscape of neural nets*, NeurIPS 2018.
    """
    objective.check(model, loss, variables, batch, key=key, train=train)
    if not isinstance(cut, Cut):
        raise TypeError(
            f"cut: expected a Cut, as returned by nnfx.insight.landscape.through, got {checks.describe(cut)}"
        )
    axes = cut.places.shape[-1]
    names = ("x", "y")[: 1 if y is None else 2]
    if axes != len(names):
        raise ValueError(
            f"y: expected {'coordinates in a plane, got None' if axes == 2 else 'None on a line, got coordinates'}"
        )
    coordinates = tuple(_coordinates(name, value) for name, value in zip(names, (x, y), strict=False))
    if jax.tree.map(np.shape, cut.origin) != jax.tree.map(np.shape, variables["params"]):
        raise ValueError(
            "cut: expected a cut through parameters with the shapes of variables['params'], got different shapes"
        )
    chosen = tuple(jax.local_devices() if devices is None else devices)
    shared = mapping.on_devices((dict(variables), batch, key, cut), chosen)
    at_once, unroll = objective.at_once(variables["params"], batch), objective.unroll(variables["params"], batch)
    sizes = [len(along) for along in coordinates]
    losses = _losses(model, loss, train, at_once, unroll, chosen, shared, coordinates)[: math.prod(sizes)]
    return Landscape(coordinates[0], coordinates[1] if axes == 2 else None, losses.reshape(sizes))


@memo.compiled(static=6)
def _losses(
    model: Model,
    loss: PerExample,
    train: bool,
    at_once: int,
    unroll: int,
    devices: tuple[jax.Device, ...],
    shared: tuple[Variables, Batch, Array | None, Cut],
    coordinates: tuple[Array, ...],
) -> Array:
    points = jnp.stack(jnp.meshgrid(*coordinates, indexing="ij"), axis=-1).reshape(-1, len(coordinates))

    def at(shared: tuple[Variables, Batch, Array | None, Cut], point: Array) -> Array:
        variables, batch, key, cut = shared
        of = objective.objective(model, loss, variables, batch, key=key, train=train)
        return of(jax.tree.map(partial(_moved, point), cut.origin, cut.directions))

    return mapping.map_points(at, shared, points, at_once=at_once, devices=devices, unroll=unroll)


def _moved(point: Array, origin: Array, directions: Array) -> Array:
    return origin + jnp.tensordot(point.astype(origin.dtype), directions, 1)


def _coordinates(name: str, value: Any) -> Array:
    """Return coordinates as floats, after checking them."""
    value = jnp.asarray(value)
    checks.numeric(name, value)
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{name}: expected at least one coordinate, ({name},), got {checks.describe(value)}")
    checks.finite(name, value)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)
