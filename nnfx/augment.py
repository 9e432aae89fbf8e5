"""Augmentation: pure functions `(key, batch, **numbers) -> batch` that vary the training data on the device.

When passed to `nnfx.fit`, they run inside the compiled step, with new random draws at each step, and their numeric
arguments are hyper-parameters of the run. Held-out data is never augmented. Each example is varied independently. If
all these hyper-parameters are 0, no example changes; `flip` has no hyper-parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nnfx import checks, shards
from nnfx.bounds import NonNegative
from nnfx.types import Array, Batch, Sequences, at_least_float32

__all__ = ["cutout", "flip", "gaussian_noise", "mixup", "rotation", "shift"]


def gaussian_noise(key: Array, batch: Batch, noise: NonNegative) -> Batch:
    """Add Gaussian noise to the inputs: `x + σ ε` with `ε ~ N(0, 1)`.

    To leading order in σ, this has the effect of a penalty on the gradient of the model with respect to its inputs.

    Args:
        key: a typed key.
        batch: inputs of any shape; integers, such as the lengths of sequences, stay as they are.
        noise: σ, non-negative, in the units of the preprocessed inputs; may be traced.

    Returns:
        The batch with new inputs of the same shape and dtype.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for negative noise.

    Example:
        >>> batch = Batch(jnp.zeros((1000, 2)), jnp.zeros(1000), jnp.ones(1000))
        >>> noisy = gaussian_noise(jax.random.key(0), batch, 0.5)
        >>> round(float(noisy.inputs.std()), 2)
        0.5

    References:
        Bishop, *Training with noise is equivalent to Tikhonov regularization*, Neural Computation 7(1), 1995.
    """
    checks.key("key", key)
    checks.number("noise", noise, minimum=0)

    def disturb(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):  # lengths of sequences, or tokens, are left unchanged
            return x
        drawn = shards.draw(lambda shape: jax.random.normal(key, shape, x.dtype), x.shape)
        return x + jnp.asarray(noise, x.dtype) * drawn

    return batch._replace(inputs=jax.tree.map(disturb, batch.inputs))


def flip(key: Array, batch: Batch) -> Batch:
    """Mirror images left to right, each with probability ½: `x[i, j] ← x[i, W − 1 − j]`.

    Args:
        key: a typed key.
        batch: images `(batch, height, width, channels)`, floats.

    Returns:
        The batch with new inputs of the same shape and dtype.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for inputs that are not images.

    Example:
        >>> images = jnp.tile(jnp.arange(3.0)[:, None], (4, 1, 1, 1))
        >>> flip(jax.random.key(0), Batch(images, jnp.zeros(4), jnp.ones(4))).inputs[:, 0, :, 0].tolist()
        [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]

    References:
        Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep convolutional neural networks*,
        NeurIPS 2012, section 4.1.
    """
    checks.key("key", key)
    x = _images(batch)
    is_mirrored = shards.draw(lambda shape: jax.random.bernoulli(key, 0.5, shape), (x.shape[0], 1, 1, 1))
    return batch._replace(inputs=jnp.where(is_mirrored, x[:, :, ::-1], x))


def shift(key: Array, batch: Batch, pixels: NonNegative, fill: ArrayLike = 0.0) -> Batch:
    """Shift images by whole pixels, `x[i, j] ← x[i − a, j − b]` with `a, b ~ U{−p, …, p}`.

    This is a random crop of the images after padding them by p pixels on each side. If p is not whole, the offsets are
    drawn from `U(−p − ½, p + ½)` and rounded.

    Args:
        key: a typed key.
        batch: images `(batch, height, width, channels)`, floats.
        pixels: p, the largest offset along either axis, non-negative; may be traced.
        fill: the value of pixels from outside the image; may be traced.

    Returns:
        The batch with new inputs of the same shape and dtype.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for inputs that are not images, or a negative number of pixels.

    Example:
        >>> batch = Batch(jnp.ones((1, 3, 3, 1)), jnp.zeros(1), jnp.ones(1))
        >>> shift(jax.random.key(0), batch, pixels=1).inputs[0, :, :, 0]
        Array([[0., 0., 0.],
               [0., 1., 1.],
               [0., 1., 1.]], dtype=float32)

    References:
        He, Zhang, Ren and Sun, *Deep residual learning for image recognition*, CVPR 2016, section 4.2 (p = 4).
    """
    checks.key("key", key)
    checks.number("pixels", pixels, minimum=0)
    checks.number("fill", fill)
    x = _images(batch)
    furthest = jnp.asarray(pixels, jnp.float32)
    uniform = shards.draw(lambda shape: jax.random.uniform(key, shape, jnp.float32, -1, 1), (2, x.shape[0]), axis=1)
    drawn = jnp.round((furthest + 0.5) * uniform)
    # the ends of the range may round outwards, and no offset need exceed the image size
    furthest = jnp.minimum(jnp.ceil(furthest), max(x.shape[1:3]))
    offsets = drawn.clip(-furthest, furthest).astype(jnp.int32)
    for axis, shape in ((1, (-1, x.shape[1], 1, 1)), (2, (-1, 1, x.shape[2], 1))):
        size = x.shape[axis]
        source = (jnp.arange(size, dtype=jnp.int32)[None] - offsets[axis - 1][:, None]).reshape(shape)
        moved = jnp.take_along_axis(x, source.clip(0, size - 1), axis, mode="promise_in_bounds")
        x = jnp.where((source >= 0) & (source < size), moved, jnp.asarray(fill, x.dtype))
    return batch._replace(inputs=x)


def rotation(key: Array, batch: Batch, degrees: NonNegative, fill: ArrayLike = 0.0) -> Batch:
    """Rotate images bilinearly about their centre c: `x(r) ← x(c + R(φ) (r − c))`, `φ ~ U(−degrees, degrees)`.

    Args:
        key: a typed key.
        batch: images `(batch, height, width, channels)`, floats.
        degrees: the largest angle, non-negative; may be traced.
        fill: the value outside the image, interpolated between its outermost pixels and one pixel further out; may be
            traced.

    Returns:
        The batch with new inputs of the same shape and dtype.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for inputs that are not images, or negative degrees.

    Example:
        >>> batch = Batch(jnp.ones((1, 5, 5, 1)), jnp.zeros(1), jnp.ones(1))
        >>> turned = rotation(jax.random.key(0), batch, degrees=45).inputs[0, :, :, 0]
        >>> round(float(turned[2, 2]), 3), bool(turned[0, 0] < 1)
        (1.0, True)

    References:
        Simard, Steinkraus and Platt, *Best practices for convolutional neural networks applied to visual document
        analysis*, ICDAR 2003.
    """
    checks.key("key", key)
    checks.number("degrees", degrees, minimum=0)
    checks.number("fill", fill)
    x = _images(batch)
    rows, height, width, channels = x.shape
    dtype = at_least_float32(x.dtype)
    uniform = shards.draw(lambda shape: jax.random.uniform(key, shape, dtype, -1, 1), (rows, 1, 1))
    angle = jnp.deg2rad(jnp.asarray(degrees, dtype) * uniform)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    middle = (height - 1) / 2, (width - 1) / 2
    down = (jnp.arange(height, dtype=dtype) - middle[0])[None, :, None]
    right = (jnp.arange(width, dtype=dtype) - middle[1])[None, None, :]
    source = cosine * down + sine * right + middle[0], cosine * right - sine * down + middle[1]
    corner = [jnp.floor(each).astype(jnp.int32) for each in source]
    flat = x.reshape(rows, height * width, channels)

    def weigh(step: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return one of the four pixels around each source point, times its weight, and the weight (0 outside)."""
        i, j = corner[0] + step[0], corner[1] + step[1]
        is_inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        share = (1 - jnp.abs(source[0] - i.astype(dtype))) * (1 - jnp.abs(source[1] - j.astype(dtype)))
        share = jnp.where(is_inside, share, 0)[..., None]
        place = i.clip(0, height - 1) * width + j.clip(0, width - 1)
        pixels = jax.vmap(lambda image, at: image.at[at].get(mode="promise_in_bounds"))(flat, place)
        return share * pixels.astype(dtype), share

    total, covered = _summed(weigh, tuple(jnp.array([(0, 0, 1, 1), (0, 1, 0, 1)], jnp.int32)))
    turned = total + (1 - covered) * jnp.asarray(fill, dtype)
    return batch._replace(inputs=turned.astype(x.dtype))


def cutout(key: Array, batch: Batch, size: NonNegative, fill: ArrayLike = 0.0) -> Batch:
    """Blank out a square of side s around a random point c of each image: `x[i, j] ← fill` if `|(i, j) − c|∞ < s/2`.

    The point is drawn uniformly from the image, so part of the square may lie outside the image.

    Args:
        key: a typed key.
        batch: images `(batch, height, width, channels)`, floats.
        size: s in pixels, non-negative; may be traced.
        fill: the value inside the square, by default 0, the mean of standardised images; may be traced.

    Returns:
        The batch with new inputs of the same shape and dtype.

    Raises:
        TypeError: for a key that is not typed.
        ValueError: for inputs that are not images, or a negative size.

    Example:
        >>> batch = Batch(jnp.ones((1, 4, 4, 1)), jnp.zeros(1), jnp.ones(1))
        >>> cutout(jax.random.key(1), batch, size=2).inputs[0, :, :, 0]
        Array([[1., 1., 1., 1.],
               [1., 0., 0., 1.],
               [1., 0., 0., 1.],
               [1., 1., 1., 1.]], dtype=float32)

    References:
        DeVries and Taylor, *Improved regularization of convolutional neural networks with cutout*,
        arXiv:1708.04552, 2017.
    """
    checks.key("key", key)
    checks.number("size", size, minimum=0)
    checks.number("fill", fill)
    x = _images(batch)
    rows, height, width, _ = x.shape
    half = jnp.asarray(size, jnp.float32) / 2
    points = shards.draw(lambda shape: jax.random.uniform(key, shape, jnp.float32), (2, rows, 1), axis=1)

    def is_within(length: int, point: Array) -> Array:
        distance = jnp.arange(length, dtype=jnp.float32)[None] + 0.5 - length * point
        return (distance >= -half) & (distance < half)  # a half-open range, so that every whole s gives s pixels

    is_blank = is_within(height, points[0])[:, :, None, None] & is_within(width, points[1])[:, None, :, None]
    return batch._replace(inputs=jnp.where(is_blank, jnp.asarray(fill, x.dtype), x))


def mixup(key: Array, batch: Batch, alpha: NonNegative, classes: int | None = None) -> Batch:
    """Mix each example (x, y) with a partner (x′, y′): `x ← λ x + (1 − λ) x′` and `y ← λ y + (1 − λ) y′`.

    The fraction λ is drawn from `Beta(α, α)`. Partners are drawn from the batch with probabilities proportional to
    their weights, so padding is never mixed in. Each example keeps its own weight. The larger of λ and 1 − λ is used:
    since both examples come from the same distribution, the distribution of the mixture stays the same, and its noise
    is lower.

    Args:
        key: a typed key.
        batch: inputs of any shape, floats; targets that are floats of any shape, or integer labels.
        alpha: α, non-negative; with 0 nothing is mixed, and with 1 λ is drawn uniformly; may be traced.
        classes: the number of classes, for integer labels: the targets then become rows of probabilities `(batch,
            classes)`, as accepted by `nnfx.losses.categorical_cross_entropy` and by `nnfx.metrics.accuracy`, which
            compares the most probable class. This number determines shapes, so fix it with
            `functools.partial(mixup, classes=10)`.

    Returns:
        The batch with new inputs and targets; both keep their shape and dtype, except that integer labels become
        probabilities in the dtype of the weights, at least float32. If steps or outputs have their own weights, the
        weight of a mixture is zero wherever the weight of either example is zero.

    Raises:
        TypeError: for a key that is not typed, inputs that are not floats, or a number of classes that is not an
            integer.
        ValueError: for a negative alpha, fewer than 2 classes, labels out of range, integer labels without `classes`,
            or float targets with `classes`.

    Example:
        >>> batch = Batch(jnp.eye(3), jnp.arange(3), jnp.ones(3))
        >>> mixed = mixup(jax.random.key(0), batch, alpha=1.0, classes=3)
        >>> bool((mixed.inputs == mixed.targets).all()), mixed.targets.sum(1)
        (True, Array([1., 1., 1.], dtype=float32))

    References:
        Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: beyond empirical risk minimization*, ICLR 2018.
    """
    checks.key("key", key)
    checks.number("alpha", alpha, minimum=0)
    for leaf in jax.tree.leaves(batch.inputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            of_sequences = " in Sequences, whose lengths cannot be mixed" * isinstance(batch.inputs, Sequences)
            raise TypeError(f"inputs: expected floats, got {checks.describe(leaf)}{of_sequences}")
    dtype = at_least_float32(batch.weights.dtype)
    targets = _mixable(batch.targets, classes, dtype)
    partner_key, share_key = jax.random.split(key)
    partners = _partners(partner_key, shards.gathered(_of_rows(batch.weights)).astype(dtype))
    rows = shards.own(jnp.stack([jnp.arange(len(partners), dtype=partners.dtype), partners], axis=1)).T
    shares = shards.own(_larger_shares(share_key, jnp.asarray(alpha, dtype), len(partners)))

    def mix(values: Array) -> Array:
        wide = at_least_float32(values.dtype)
        whole = shards.gathered(jnp.asarray(values))
        parts = jnp.stack([shares, 1 - shares]).astype(wide).reshape(2, -1, *(1,) * (values.ndim - 1))

        def weigh(part: tuple[Array, Array]) -> Array:
            share, row = part
            return share * whole.at[row].get(mode="promise_in_bounds").astype(wide)

        return _summed(weigh, (parts, rows)).astype(values.dtype)

    weights = batch.weights
    if weights.ndim > 1:  # both targets of a mixture must be present
        weights = jnp.where(shards.gathered(weights)[rows[1]] != 0, weights, 0)
    return Batch(jax.tree.map(mix, batch.inputs), mix(targets), weights)


def _summed(term: Callable[[Any], Any], over: Any) -> Any:
    """Sum terms in a loop, since XLA would otherwise fuse the computation of the images into every term, and repeat it.

    Optimisation barriers do not prevent this on CPUs: five augmentations in a row took 50 ms instead of 2 ms.
    """
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(term, jax.tree.map(lambda each: each[0], over)))
    return jax.lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, term(one)), None), zeros, over)[0]


def _images(batch: Batch) -> Array:
    """Return the inputs, after checking that they are images."""
    x = batch.inputs
    if getattr(x, "ndim", None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"inputs: expected floats (batch, height, width, channels), got {checks.describe(x)}")
    return jnp.asarray(x)


def _mixable(targets: Array, classes: int | None, dtype: jnp.dtype) -> Array:
    """Return targets that can be averaged: floats unchanged, integer labels as rows of probabilities."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        if classes is not None:
            raise ValueError(f"classes: expected None for targets that are already floats, got {classes!r}")
        return targets
    if classes is None:
        raise ValueError(
            "classes: expected the number of classes for integer labels, fixed with"
            f" functools.partial(mixup, classes=...), got none for targets {checks.describe(targets)};"
            " for one binary output, convert the targets to floats"
        )
    if isinstance(classes, jax.core.Tracer):
        raise TypeError("classes: expected a whole number fixed with functools.partial, got a traced one")
    checks.positive_integer("classes", classes)
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    checks.class_labels("targets", targets, classes)
    return jax.nn.one_hot(targets.astype(jnp.int32), classes, dtype=dtype)


def _larger_shares(key: Array, alpha: Array, rows: int) -> Array:
    """Draw `max(λ, 1 − λ)` with `λ ~ Beta(α, α)`, each from two uniform numbers.

    By the polar method, `T = √(2α (U^(−1/α) − 1)) cos 2πV` follows Student's t-distribution with 2α degrees of
    freedom, and `λ = ½ + ½ T / √(2α + T²)`. Unlike rejection sampling it needs no loop, which would take seven times as
    long to compile, and it is smooth in α.

    References:
        Devroye, *Random variate generation in one line of code*, Winter Simulation Conference 1996.
    """
    u, v = jax.random.uniform(key, (2, rows), alpha.dtype, minval=jnp.finfo(alpha.dtype).tiny)
    is_off = alpha == 0  # in the limit of α → 0, the result is 1, with slope 0
    power = jnp.log(u) / jnp.where(is_off, 1, alpha)
    squared = -jnp.expm1(power) * jnp.cos(2 * jnp.pi * v) ** 2
    return jnp.where(is_off, 1, (1 + jnp.sqrt(squared / (jnp.exp(power) + squared))) / 2)


def _of_rows(weights: Array) -> Array:
    """Return one weight per row: the mean over its steps or outputs, if they have their own weights."""
    return weights if weights.ndim == 1 else weights.reshape(len(weights), -1).mean(1)


def _partners(key: Array, weights: Array) -> Array:
    """Draw a partner for each row, with probabilities proportional to the weights."""
    rows = weights.shape[0]
    cumulative = jnp.cumsum(weights)
    levels = cumulative[-1] * jax.random.uniform(key, (rows,), weights.dtype)
    drawn = jnp.searchsorted(cumulative, levels, side="right").clip(0, rows - 1)
    # rounding may select a row of weight 0, and if all weights are 0 there is no other: such a row is not mixed
    return jnp.where(weights[drawn] > 0, drawn, jnp.arange(rows, dtype=drawn.dtype))
