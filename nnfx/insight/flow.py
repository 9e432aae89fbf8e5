"""Gradient flow: the magnitude of the gradient in each layer over a run, and the noise in it."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nnfx import checks, memo
from nnfx.insight import objective
from nnfx.insight.layers import WHOLE, watch
from nnfx.training import rows
from nnfx.training import step as steps
from nnfx.types import Array, Batch, Mean, Metrics, Model, Params, PerExample, Step, TrainState, Variables

__all__ = ["Flow", "NoiseScale", "curves", "make_step", "noise_scale", "per_example_gradients"]

_QUANTITIES = ("gradient", "update", "weight", "activation")


class Flow(NamedTuple):
    """Statistics of each layer, as means over the steps of each epoch, `(epochs,)`, by layer name.

    Attributes:
        gradient: the norm of the gradient, `‖∂L/∂W‖`, over all arrays of the layer together.
        update: the norm of the change made by the step, `‖ΔW‖`.
        weight: the norm of the parameters before the step, `‖W‖`.
        activation: the root mean square of the layer's outputs.
    """

    gradient: dict[str, Any]
    update: dict[str, Any]
    weight: dict[str, Any]
    activation: dict[str, Any]


def make_step(
    model: Model,
    loss: PerExample,
    optimizer: optax.GradientTransformation,
    metrics: Mapping[str, PerExample] | None = None,
    **options: Any,
) -> Step:
    """Make a training step as `nnfx.make_step` does that also measures the statistics of each layer in `Flow`.

    Passed to `nnfx.fit` as `make_step`, it adds four curves per layer to the run's history, which `curves` groups. The
    gradient is the one that the optimizer receives, including that of a penalty. The activations are measured
    in training mode, on the batch before augmentation, and only for Linen modules.

    Args:
        model: the model.
        loss: the per-example loss.
        optimizer: the Optax optimizer.
        metrics: the metrics, as for `nnfx.make_step`.
        **options: further options of `nnfx.make_step`.

    Returns:
        The step, whose metrics include those of each layer, such as `"gradient hidden_0"`.

    Example:
        >>> import nnfx
        >>> data = nnfx.data.titanic("fare", "age")
        >>> model = nnfx.models.mlp((4,), activation="sigmoid")
        >>> train = nnfx.fit(model, nnfx.losses.binary_cross_entropy, optax.sgd, epochs=3, make_step=make_step)
        >>> run = train(jax.random.key(0), data, learning_rate=0.1)
        >>> found = curves(run.history)
        >>> list(found.gradient), found.gradient["hidden_0"].shape
        (['hidden_0', 'output'], (3,))

    References:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010.
    """
    plain = steps.make_step(model, loss, _recording(optimizer), metrics, **options)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        after, measured = plain(state._replace(opt_state=_Recorded(state.opt_state, zeros)), batch)
        recorded: _Recorded = after.opt_state
        changes = jax.tree.map(jnp.subtract, after.params, state.params)
        found = {
            "gradient": _lengths(recorded.gradient),
            "update": _lengths(changes),
            "weight": _lengths(state.params),
            "activation": _activations(model, state, batch),
        }
        was_taken = (after.fault.skipped == state.fault.skipped).astype(jnp.float32)
        for quantity, by_layer in found.items():
            for layer, value in by_layer.items():
                value = jnp.where(was_taken > 0, value.astype(jnp.float32), 0)
                measured = measured | {f"{quantity} {layer}": Mean(value, was_taken)}
        return after._replace(opt_state=recorded.inner), measured

    return step


class _Recorded(NamedTuple):
    """The state of an optimizer, and the last gradient that the optimizer received."""

    inner: Any
    gradient: Params


def _recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state also records the last gradient."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> _Recorded:
        return _Recorded(inner.init(params), jax.tree.map(jnp.zeros_like, params))

    def update(
        gradient: Params, state: _Recorded, params: Params | None = None, **extra: Any
    ) -> tuple[Params, _Recorded]:
        updates, inner_state = inner.update(gradient, state.inner, params, **extra)
        return updates, _Recorded(inner_state, gradient)

    return optax.GradientTransformationExtraArgs(init, update)


def _lengths(params: Params) -> dict[str, Array]:
    """Return the norm over all arrays of each layer, by layer name."""
    squares: dict[str, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer = objective.name_of(path).rpartition("/")[0] or WHOLE
        squares[layer] = squares.get(layer, jnp.zeros(())) + jnp.square(leaf.astype(jnp.float32)).sum()
    return {layer: jnp.sqrt(square) for layer, square in squares.items()}


def _activations(model: Model, state: TrainState, batch: Batch) -> dict[str, Array]:
    """Return the root mean square of each layer's outputs in training mode; empty if no layer is visible."""
    key = jax.random.fold_in(state.key, state.step)
    batch = rows.filled(batch)
    weights = rows.model_weights(jax.eval_shape(model.apply, state.variables, batch.inputs), batch)
    _, seen = watch(model, state.variables, batch.inputs, key=key, weights=weights, train=True)
    return {layer: jnp.sqrt(jnp.square(output.astype(jnp.float32)).mean()) for layer, output in seen.items()}


def curves(history: Mapping[str, Any]) -> Flow:
    """Group the history of a run by quantity, then by layer in natural order.

    Args:
        history: the `run.history` of a run whose step is made by `nnfx.insight.flow.make_step`.

    Raises:
        ValueError: for the history of a run with another step.

    Example:
        >>> curves({"train_gradient hidden_10": [0.1], "train_gradient hidden_9": [0.2], "train_loss": [1]}).gradient
        {'hidden_9': [0.2], 'hidden_10': [0.1]}
    """
    found: dict[str, dict[str, Any]] = {quantity: {} for quantity in _QUANTITIES}
    for name in sorted(history, key=_in_natural_order):
        quantity, _, layer = name.removeprefix("train_").partition(" ")
        if layer and quantity in found:
            found[quantity][layer] = history[name]
    if not found["gradient"]:
        raise ValueError(
            "history: expected one of a run with make_step=nnfx.insight.flow.make_step, got one without gradients:"
            f" {', '.join(history)}"
        )
    return Flow(**found)


def _in_natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers within names by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def per_example_gradients(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> Params:
    """Return the gradient of each example's own loss, `∂ℓᵢ / ∂w`.

    If each step or number of an example has a weight, its loss is their weighted mean, `Σₜ wₜ ℓₜ / Σₜ wₜ`.

    Args:
        model: the model, applied in evaluation mode.
        loss: the per-example loss.
        variables: the variables of the model; the gradients are taken at their parameters.
        batch: the examples; the weights of whole examples are not used, except that examples of weight zero are left
            out.

    Returns:
        The gradients, in the tree of the parameters with a leading axis, `(batch, ...)`; zero for examples of weight
        zero.

    Raises:
        TypeError, ValueError: as for `nnfx.insight.audit.gradient`.

    Example:
        >>> from nnfx import losses, models
        >>> params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
        >>> batch = Batch(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 3.0]), jnp.ones(2))
        >>> arguments = models.perceptron(), losses.mean_square_error, {"params": params}, batch
        >>> per_example_gradients(*arguments)["kernel"].ravel().tolist()
        [-2.0, -12.0]
    """
    objective.check(model, loss, variables, batch)
    return _per_example(model, loss, variables, batch)


@memo.compiled(static=2)
def _per_example(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> Params:
    return jax.vmap(_gradient_of_one(model, loss, variables))(_examples(batch))


def _examples(batch: Batch) -> tuple[Batch, Array]:
    """Return the rows, with copies of another row for rows of weight zero, and whether each has a weight, `(rows,)`."""
    given = batch.weights
    has_weight = (given != 0).reshape(len(given), -1).any(1)
    # copies of the weights too, so that no value of weight zero within a row reaches the loss
    is_own = has_weight.reshape(-1, *[1] * (given.ndim - 1))
    weights = jnp.where(is_own, given, given[has_weight.argmax()][None])
    return Batch(*rows.filled(batch))._replace(weights=weights), has_weight


def _gradient_of_one(model: Model, loss: PerExample, variables: Variables) -> Callable[[tuple[Batch, Array]], Params]:
    """Return the gradient as a function of one example, and of whether it has a weight."""

    def gradient(example: tuple[Batch, Array]) -> Params:
        one, has_weight = example
        one = jax.tree.map(lambda leaf: leaf[None], one)
        found = jax.grad(objective.objective(model, loss, variables, one))(variables["params"])
        return jax.tree.map(lambda leaf: jnp.where(has_weight, leaf, 0), found)

    return gradient


class NoiseScale(NamedTuple):
    """The gradient noise scale, and its numerator and denominator.

    Attributes:
        scale: `tr Σ / |G|²`, in examples; NaN if the estimate of `|G|²` is not positive.
        gradient: `|G|²`, the squared norm of the true gradient; an unbiased estimate, which may be negative.
        noise: `tr Σ`, the variance of an example's gradient, summed over the parameters.
    """

    scale: Array
    gradient: Array
    noise: Array


def noise_scale(model: Model, loss: PerExample, variables: Variables, batch: Batch) -> NoiseScale:
    """Estimate the gradient noise scale `B = tr Σ / |G|²`: the batch size at which noise and gradient are equal.

    Batches much smaller than B waste no examples, and batches much larger than B save hardly any steps. From the
    gradients gᵢ of n examples, `tr Σ ≈ Σ |gᵢ − ḡ|² / (n − 1)` and `|G|² ≈ |ḡ|² − tr Σ / n`, both unbiased: the paper's
    estimates from batches of sizes 1 and n.

    Args:
        model: the model, applied in evaluation mode.
        loss: the per-example loss.
        variables: the variables of the model; the gradients are taken at their parameters.
        batch: two or more examples of equal weight, or of equal sums of weights if each step or number has one;
            examples of weight zero are left out.

    Returns:
        The noise scale, the squared norm of the gradient, and the noise.

    Raises:
        TypeError, ValueError: as for `nnfx.insight.audit.gradient`, and for fewer than two examples or unequal weights.

    Example:
        The squared error of a constant has the gradients 2 (w − yᵢ), so `tr Σ = 4 var y` and `G = 2 (w − mean y)`:

        >>> from nnfx import losses
        >>> constant = Model(None, lambda v, x, **_: jnp.broadcast_to(v["params"]["w"], (len(x), 1)))
        >>> batch = Batch(jnp.zeros((4, 1)), jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.ones(4))
        >>> found = noise_scale(constant, losses.mean_square_error, {"params": {"w": jnp.zeros(1)}}, batch)
        >>> [round(float(number), 3) for number in found]
        [0.596, 31.333, 18.667]

    References:
        McCandlish, Kaplan, Amodei et al., *An empirical model of large-batch training*, 2018, equation 2.9 and
        appendix A.1.
    """
    outputs = objective.check(model, loss, variables, batch)
    if checks.is_concrete(batch):
        with jax.ensure_compile_time_eval():
            weights = np.asarray(rows.measured_weights(outputs, batch)).reshape(len(batch.weights), -1)
        sums = weights.sum(1, dtype=np.float64)
        used = sums[sums > 0]
        if len(used) < 2 or not np.allclose(used, used[0]):
            what = "weights" if weights.shape[1] == 1 else "sums of the weights of each example"
            raise ValueError(
                f"batch.weights: expected two or more equal {what}, and zeros elsewhere,"
                f" got {len(used)} from {used.min():g} to {used.max():g}"
            )
    one = jax.tree.map(lambda rows: rows[:1], batch)
    return _noise_scale(model, loss, objective.at_once(variables["params"], one), variables, batch)


@memo.compiled(static=3)
def _noise_scale(model: Model, loss: PerExample, chunk: int, variables: Variables, batch: Batch) -> NoiseScale:
    gradient = _gradient_of_one(model, loss, variables)

    def square(example: tuple[Batch, Array]) -> Array:
        return optax.tree.norm(gradient(example), squared=True)

    examples = _examples(batch)
    squares = jax.lax.map(square, examples, batch_size=chunk)
    is_used = examples[1]
    count = is_used.sum().astype(squares.dtype)
    mean = jax.grad(objective.objective(model, loss, variables, batch))(variables["params"])
    of_mean = optax.tree.norm(mean, squared=True)
    noise = (jnp.where(is_used, squares, 0).sum() - count * of_mean) / (count - 1)
    true = of_mean - noise / count
    return NoiseScale(jnp.where(true > 0, noise / jnp.where(true > 0, true, 1), jnp.nan), true, noise)
