"""The curvature of the loss: products with the Hessian `H = ∂²L / ∂w²`, its eigenvalues, their density and its trace.

The Hessian itself, whose size is the square of the number of parameters, is never formed. All functions take any
model, loss and batch, and work under `jax.jit`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from nnfx import checks, memo
from nnfx.insight import objective
from nnfx.insight.lanczos import tridiagonal
from nnfx.types import Array, Batch, Model, Params, PerExample, Variables

__all__ = ["Eigenpairs", "Spectrum", "Trace", "eigenpairs", "hessian_vector_product", "sharpness", "spectrum", "trace"]


class Eigenpairs(NamedTuple):
    """Eigenvalues of the Hessian at one end of its spectrum, and their eigenvectors.

    Attributes:
        values: the eigenvalues λ, `(count,)`, from that end inwards.
        vectors: unit eigenvectors v, in the tree of the parameters with a leading axis, `(count, ...)`.
        residuals: `‖Hv − λv‖`, `(count,)`: upper bounds on the distance of each λ from an exact eigenvalue.
    """

    values: Array
    vectors: Params
    residuals: Array


class Spectrum(NamedTuple):
    """An estimate of the Hessian's spectrum from random vectors, as weighted points.

    Attributes:
        values: `(draws, steps)`, the points for each random vector.
        weights: `(draws, steps)`, the fraction of the eigenvalues at each point, which sum to 1 for each random vector.
    """

    values: Array
    weights: Array

    def density(self, at: ArrayLike, width: ArrayLike) -> Array:
        """Return the density of eigenvalues, the mean of `φ(t) = Σᵢ wᵢ N(t; λᵢ, σ²)` over draws, whose integral is 1.

        Args:
            at: t, eigenvalues `(points,)`.
            width: σ, above 0, the width over which each point is smoothed; may be traced.

        Returns:
            `(points,)`, per unit of the eigenvalues.

        Raises:
            ValueError: for eigenvalues that are not `(points,)`, or a width that is not positive.
        """
        checks.number("width", width, above=0)
        at = jnp.asarray(at, self.values.dtype)
        if at.ndim != 1:
            raise ValueError(f"at: expected eigenvalues (points,), got {checks.describe(at)}")
        bells = jax.scipy.stats.norm.pdf(at[:, None, None], self.values[None], jnp.asarray(width, at.dtype))
        return (self.weights[None] * bells).sum(-1).mean(-1)


class Trace(NamedTuple):
    """The trace of the Hessian, estimated with random vectors.

    Attributes:
        value: the sum of all eigenvalues.
        error: the standard error of the estimate.
    """

    value: Array
    error: Array


def hessian_vector_product(
    model: Model, loss: PerExample, variables: Variables, batch: Batch, vector: Params, *, train: bool = False
) -> Params:
    """Multiply the Hessian of the empirical loss by a vector: `Hv = ∂/∂t ∇L(w + t v)`, at t = 0.

    Forward mode is applied to the gradient, at about the cost of two gradients. If the model has a custom derivative
    that supports reverse mode only, like the convolutions of this library, `∇ (∇L · v)` is computed instead.

    Args:
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; derivatives are taken with respect to their parameters.
        batch: the examples over which the loss is averaged.
        vector: v, with the tree and shapes of the parameters.
        train: whether to apply the model in training mode, in which batch norm normalises by the batch; no key is
            passed to the model, so one with dropout raises an error.

    Returns:
        Hv, with the tree and shapes of the parameters.

    Raises:
        TypeError, ValueError: as for `nnfx.insight.audit.gradient`, and for a vector whose shapes differ from those of
            the parameters.

    Example:
        The squared error of a linear model has the Hessian `2 Σ x xᵀ / n`:

        >>> from nnfx import losses, models
        >>> batch = Batch(jnp.array([[1.0, 2.0]]), jnp.zeros(1), jnp.ones(1))
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> vector = {"kernel": jnp.array([[1.0], [0.0]]), "bias": jnp.zeros(1)}
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> hessian_vector_product(*arguments, vector)["kernel"].ravel().tolist()
        [2.0, 4.0]

    References:
        Pearlmutter, *Fast exact multiplication by the Hessian*, Neural Computation 1994.
    """
    objective.check(model, loss, variables, batch, train=train)
    if jax.tree.map(np.shape, vector) != jax.tree.map(np.shape, variables["params"]):
        raise ValueError("vector: expected the tree and shapes of variables['params'], got different ones")
    return _multiply(model, loss, train, variables, batch, vector)


@memo.compiled(static=3)
def _multiply(
    model: Model, loss: PerExample, train: bool, variables: Variables, batch: Batch, vector: Params
) -> Params:
    _, restore = ravel_pytree(variables["params"])
    return restore(_product(model, loss, train, variables, batch)(ravel_pytree(vector)[0]))


def _product(
    model: Model, loss: PerExample, train: bool, variables: Variables, batch: Batch
) -> Callable[[Array], Array]:
    """Return the function that multiplies vectors `(parameters,)` by the Hessian."""

    def gradient(variables: Variables, batch: Batch) -> Callable[[Array], Array]:
        of = objective.objective(model, loss, variables, batch, train=train)
        _, restore = ravel_pytree(variables["params"])
        return jax.grad(lambda flat: of(restore(flat)))

    def forward(variables: Variables, batch: Batch, vector: Array) -> Array:
        flat, _ = ravel_pytree(variables["params"])
        return jax.jvp(gradient(variables, batch), (flat,), (vector,))[1]

    def reverse(variables: Variables, batch: Batch, vector: Array) -> Array:
        flat, _ = ravel_pytree(variables["params"])
        slope = gradient(variables, batch)
        return jax.grad(lambda flat: jnp.vdot(slope(flat), vector))(flat)

    flat, _ = ravel_pytree(variables["params"])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), (variables, batch, flat))
    try:  # there is no other way to find out which modes a custom derivative supports
        jax.jit(forward).lower(*shapes)
    except TypeError:
        return partial(reverse, variables, batch)
    return partial(forward, variables, batch)


def eigenpairs(
    key: Array,
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    count: int = 1,
    *,
    end: Literal["largest", "smallest"] = "largest",
    steps: int = 64,
    train: bool = False,
) -> Eigenpairs:
    """Find eigenvalues at one end of the Hessian's spectrum, with their eigenvectors, by the Lanczos method.

    The eigenvalues at the ends of the spectrum, which usually lie far apart, converge after only a few products with
    the Hessian; the residuals show how well. Some eigenvectors of a repeated eigenvalue may be missing.

    Args:
        key: a typed key, from which the starting vector is drawn.
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; the Hessian is taken at their parameters.
        batch: the examples over which the loss is averaged.
        count: the number of eigenvalues to find, at most `steps`.
        end: `"largest"`, for the directions across the valley, or `"smallest"`, for the directions that lead down from
            a saddle.
        steps: the number of products with the Hessian, at most the number of parameters.
        train: whether to apply the model in training mode, as for `hessian_vector_product`.

    Returns:
        The eigenvalues from the chosen end inwards, their eigenvectors, and their residuals.

    Raises:
        TypeError, ValueError: as for `hessian_vector_product`, and for a key that is not typed or a count above the
            steps or the number of parameters.

    Example:
        >>> from nnfx import losses, models
        >>> batch = Batch(jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.zeros(2), jnp.ones(2))
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> [round(float(value), 3) for value in eigenpairs(jax.random.key(0), *arguments, count=2).values]
        [10.123, 1.877]

    References:
        Golub and Van Loan, *Matrix computations*, section 10.1 (Lanczos) and 10.3.1 (full reorthogonalisation).
    """
    checks.key("key", key)
    checks.positive_integer("count", count)
    checks.choice("end", end, ("largest", "smallest"))
    steps = _steps(model, loss, variables, batch, steps, train)
    if count > steps:
        raise ValueError(f"count: expected at most {steps}, the number of steps or of parameters, got {count}")
    return _eigenpairs(model, loss, train, steps, count, end == "largest", variables, batch, key)


@memo.compiled(static=6)
def _eigenpairs(
    model: Model,
    loss: PerExample,
    train: bool,
    steps: int,
    count: int,
    largest: bool,
    variables: Variables,
    batch: Batch,
    key: Array,
) -> Eigenpairs:
    flat, restore = ravel_pytree(variables["params"])
    found = tridiagonal(_product(model, loss, train, variables, batch), _normal(key, flat), steps, key)
    values, inner = jnp.linalg.eigh(found.matrix)
    chosen = jnp.arange(steps)[::-1][:count] if largest else jnp.arange(count)
    vectors = inner[:, chosen].T @ found.basis
    return Eigenpairs(values[chosen], jax.vmap(restore)(vectors), jnp.abs(found.rest * inner[-1, chosen]))


def _normal(key: Array, flat: Array) -> Array:
    return jax.random.normal(key, flat.shape, flat.dtype)


def _steps(model: Model, loss: PerExample, variables: Variables, batch: Batch, steps: Any, train: bool) -> int:
    """Check the arguments common to all functions, and return the number of steps, at most the number of parameters."""
    objective.check(model, loss, variables, batch, train=train)
    checks.positive_integer("steps", steps)
    return min(steps, sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"])))


def sharpness(
    key: Array,
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    steps: int = 64,
    train: bool = False,
) -> Array:
    """Return the largest eigenvalue of the Hessian: gradient descent is stable for learning rates below 2 / λ.

    Args:
        key: a typed key, from which the starting vector is drawn.
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; the Hessian is taken at their parameters.
        batch: the examples over which the loss is averaged.
        steps: the number of products with the Hessian, at most the number of parameters.
        train: whether to apply the model in training mode, as for `hessian_vector_product`.

    Returns:
        λ, a scalar.

    Raises:
        TypeError, ValueError: as for `eigenpairs`.

    Example:
        >>> from nnfx import losses, models
        >>> batch = Batch(jnp.array([[2.0]]), jnp.zeros(1), jnp.ones(1))
        >>> params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> sharpness(jax.random.key(0), *arguments).round(3)
        Array(10., dtype=float32)

    References:
        Cohen et al., *Gradient descent on neural networks typically occurs at the edge of stability*, ICLR 2021.
    """
    return eigenpairs(key, model, loss, variables, batch, steps=steps, train=train).values[0]


def spectrum(
    key: Array,
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    draws: int = 8,
    steps: int = 64,
    train: bool = False,
) -> Spectrum:
    """Estimate the whole spectrum of the Hessian by stochastic Lanczos quadrature.

    A random vector v has components of equal variance along all eigenvectors. The Lanczos method, started from v,
    finds a few points and weights that integrate polynomials of degree up to `2 steps − 1` exactly, with respect to the
    spectrum weighted by v.

    Args:
        key: a typed key, from which the random vectors are drawn.
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; the Hessian is taken at their parameters.
        batch: the examples over which the loss is averaged.
        draws: the number of random vectors.
        steps: the number of products with the Hessian per random vector, at most the number of parameters.
        train: whether to apply the model in training mode, as for `hessian_vector_product`.

    Returns:
        The points and their weights; its `density` smooths them into a curve.

    Raises:
        TypeError, ValueError: as for `eigenpairs`, and for a number of draws that is not a positive integer.

    Example:
        >>> from nnfx import losses, models
        >>> batch = Batch(jnp.array([[2.0]]), jnp.zeros(1), jnp.ones(1))
        >>> params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> found = spectrum(jax.random.key(0), *arguments)
        >>> grid = jnp.linspace(-5, 15, 2001)
        >>> float(jnp.trapezoid(found.density(grid, 0.5), grid).round(4))
        1.0

    References:
        Ghorbani, Krishnan and Xiao, *An investigation into neural net optimization via Hessian eigenvalue density*,
        ICML 2019, algorithm 1.
    """
    checks.key("key", key)
    checks.positive_integer("draws", draws)
    steps = _steps(model, loss, variables, batch, steps, train)
    return _spectrum(model, loss, train, draws, steps, variables, batch, key)


@memo.compiled(static=5)
def _spectrum(
    model: Model,
    loss: PerExample,
    train: bool,
    draws: int,
    steps: int,
    variables: Variables,
    batch: Batch,
    key: Array,
) -> Spectrum:
    flat, _ = ravel_pytree(variables["params"])
    product = _product(model, loss, train, variables, batch)

    def one(key: Array) -> tuple[Array, Array]:
        values, inner = jnp.linalg.eigh(tridiagonal(product, _normal(key, flat), steps, key).matrix)
        return values, jnp.square(inner[0])

    return Spectrum(*jax.lax.map(one, jax.random.split(key, draws)))


def trace(
    key: Array,
    model: Model,
    loss: PerExample,
    variables: Variables,
    batch: Batch,
    *,
    draws: int = 64,
    train: bool = False,
) -> Trace:
    """Estimate the trace of the Hessian by Hutchinson's method: the mean of `vᵀHv` over random signs v.

    Args:
        key: a typed key, from which the signs are drawn.
        model: the model.
        loss: the per-example loss.
        variables: the variables of the model; the Hessian is taken at their parameters.
        batch: the examples over which the loss is averaged.
        draws: the number of random sign vectors, at least 2.
        train: whether to apply the model in training mode, as for `hessian_vector_product`.

    Returns:
        The trace and its standard error.

    Raises:
        TypeError, ValueError: as for `eigenpairs`, and for fewer than 2 draws.

    Example:
        >>> from nnfx import losses, models
        >>> batch = Batch(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.zeros(2), jnp.ones(2))
        >>> params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> found = trace(jax.random.key(0), *arguments)
        >>> bool(abs(found.value - 22) < 4 * found.error)
        True

    References:
        Hutchinson, *A stochastic estimator of the trace of the influence matrix*, 1989.
    """
    checks.key("key", key)
    checks.positive_integer("draws", draws)
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, for a standard error, got {draws}")
    objective.check(model, loss, variables, batch, train=train)
    return _trace(model, loss, train, draws, variables, batch, key)


@memo.compiled(static=4)
def _trace(
    model: Model, loss: PerExample, train: bool, draws: int, variables: Variables, batch: Batch, key: Array
) -> Trace:
    flat, _ = ravel_pytree(variables["params"])
    product = _product(model, loss, train, variables, batch)

    def one(key: Array) -> Array:
        signs = jax.random.rademacher(key, flat.shape, flat.dtype)
        return jnp.vdot(signs, product(signs))

    found = jax.lax.map(one, jax.random.split(key, draws))
    return Trace(found.mean(), found.std(ddof=1) / draws**0.5)
