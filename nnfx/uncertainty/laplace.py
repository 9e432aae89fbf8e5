"""The Laplace approximation for the last layer of a trained network: a normal distribution of its parameters θ.

The mean is the trained parameters, and the covariance is `(G + α I)⁻¹`, where G is the generalised Gauss–Newton matrix
of the negative log-likelihood, `G = Σᵢ wᵢ Jᵢᵀ Hᵢ Jᵢ`, with `Jᵢ = ∂f(xᵢ)/∂θ` and Hᵢ the Hessian with respect to the
outputs, and α is the precision of a normal prior around zero. The outputs are linear in the parameters of the last
layer, so they are normally distributed too; for least squares, this is Bayesian linear regression on the features that
the network has learned.

>>> import nnfx
>>> model, batch = nnfx.models.perceptron(), Batch(jnp.array([[1.0], [3.0]]), jnp.zeros(2), jnp.ones(2))
>>> variables = {"params": {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}}
>>> posterior = fit(model, variables, batch, prior_precision=2.0, noise=1.0, layer="kernel")
>>> outputs = predict(model, variables, posterior, jnp.array([[6.0]]))
>>> round(outputs.covariance.item(), 4)  # 6² / (1² + 3² + 2)
3.0
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from nnfx import arrays, checks, memo, optimizers, trees
from nnfx.types import Array, Batch, Model, Variables, at_least_float32
from nnfx.uncertainty.given import as_inputs, check_model
from nnfx.uncertainty.predictions import check_labels, class_logits

__all__ = ["Outputs", "Posterior", "fit", "members", "predict"]


class Posterior(NamedTuple):
    """The posterior of the p parameters of a layer, a normal distribution around their trained values.

    Attributes:
        curvature: the eigenvalues of G, `(p,)`.
        directions: the eigenvectors of G, `(p, ...)` for each of the layer's arrays, keyed by name.
        prior_precision: α, a scalar; `posterior._replace(prior_precision=...)` changes the prior.
        log_likelihood: the logarithm of the likelihood of the data at the trained parameters, in nats.
        square_norm: `‖θ‖²`, the squared norm of the trained parameters.
    """

    curvature: Array
    directions: dict[str, Array]
    prior_precision: Array
    log_likelihood: Array
    square_norm: Array

    @property
    def log_evidence(self) -> Array:
        """The logarithm of the marginal likelihood, `log p(D | θ) − α ‖θ‖² / 2 − Σⱼ log(1 + λⱼ/α) / 2`, in nats.

        Use it to compare priors and models whose parameters are at the mode of the posterior. The parameters of a
        network trained without a penalty are not, and the α with the largest evidence is then far too small.
        """
        occam = jnp.log1p(self.curvature / self.prior_precision).sum()
        return self.log_likelihood - (self.prior_precision * self.square_norm + occam) / 2


class Outputs(NamedTuple):
    """Normal distributions of a network's outputs, one for each example.

    Attributes:
        mean: the outputs of the trained network, `(batch, outputs)`.
        covariance: the covariance due to uncertain parameters only, `(batch, outputs, outputs)`; for the covariance of
            targets, add noise² to the diagonal.
    """

    mean: Array
    covariance: Array


def fit(
    model: Model,
    variables: Variables,
    data: Batch,
    *,
    prior_precision: ArrayLike,
    noise: ArrayLike | None = None,
    layer: str = "output",
) -> Posterior:
    """Return the posterior of a layer's parameters, given the data that the model was trained on.

    G is decomposed into its eigenvectors, in time `O(n k p² + p³)` for n examples, k outputs and p parameters of the
    layer, by one program that is compiled once per model.

    Args:
        model: a model with outputs `(batch, outputs)`, such as `run.model`.
        variables: the trained variables, such as `run.best.variables`.
        data: preprocessed data, such as `data.train`: for classes, whole numbers `(batch,)`, and a single output is
            the logit of class 1; for regression, targets of the shape of the outputs, or `(batch,)`. Rows count by
            their weight, and so do single targets for regression; those of weight zero may have any values.
        prior_precision: α, above 0; larger values give less uncertainty. A network trained with the mean loss of n rows
            and `nnfx.regularizers.l2` has `α = n λ₂` for cross-entropy, and `α = n k λ₂ / (2 σ²)` for the mean square
            error of k outputs; for other networks, choose the α with the lowest negative log-likelihood on held-out
            data. May be traced.
        noise: σ, the standard deviation of targets around the outputs, for regression; None for classes. May be traced.
        layer: a pattern of the names of the parameters, as for `nnfx.optimizers.freeze`. For layers other than
            the last, outputs are linearised in the parameters.

    Raises:
        TypeError: if `model` is not a Model, `variables` is not a mapping of variables, or `data` is not a Batch.
        ValueError: for a layer that matches no parameter, numbers that are not positive, labels out of range, targets
            that are not finite, weights that are negative or all zero, or shapes that do not match.

    Example:
        >>> import nnfx, optax
        >>> data = nnfx.data.titanic("fare", "age")
        >>> train = nnfx.fit(nnfx.models.mlp((8,)), nnfx.losses.binary_cross_entropy, optax.adam, epochs=50)
        >>> run = train(jax.random.key(0), data, learning_rate=0.1)
        >>> posterior = fit(run.model, run.best.variables, data.train, prior_precision=1.0)
        >>> predict(run.model, run.best.variables, posterior, data.train.inputs[:3]).covariance.shape
        (3, 1, 1)

    References:
        MacKay, *The evidence framework applied to classification networks*, Neural Computation 1992.
        Daxberger et al., *Laplace Redux – effortless Bayesian deep learning*, NeurIPS 2021.
    """
    check_model(model, variables)
    if not isinstance(data, Batch):
        raise TypeError(f"data: expected a Batch, such as data.train, got a {type(data).__name__}")
    params = trees.named(variables["params"])
    names = tuple(name for name in params if optimizers.matches(layer, name))
    if not names:
        raise ValueError(f"layer: expected a pattern that matches one of {', '.join(params)}, got {layer!r}")
    checks.number("prior_precision", prior_precision, above=0)
    if noise is not None:
        checks.number("noise", noise, above=0)
    data = data._replace(
        inputs=as_inputs("data.inputs", data.inputs), weights=arrays.as_array("data.weights", data.weights)
    )
    outputs = jax.eval_shape(model.apply, variables, data.inputs)
    targets = arrays.as_labels("data.targets", data.targets)
    if data.weights.shape not in (targets.shape[:1], () if noise is None else targets.shape):
        raise ValueError(
            f"data.weights: expected one weight for each row, {list(targets.shape[:1])},"
            f"{'' if noise is None else ' or for each target,'} got {checks.describe(data.weights)}"
        )
    checks.weights("data.weights", data.weights)
    has_weight = data.weights.reshape(*data.weights.shape, *[1] * (targets.ndim - data.weights.ndim)) != 0
    targets = _checked_targets(jnp.where(has_weight, targets, 0), outputs, noise is None)
    return _fit(model, names, variables, data._replace(targets=targets), noise, prior_precision)


def _checked_targets(targets: Any, outputs: Any, are_classes: bool) -> Any:
    """Return the targets after checking them; labels that are floats, such as 0.0 and 1.0, become integers."""
    if outputs.ndim != 2:
        raise ValueError(f"model: expected outputs (batch, outputs), got {checks.describe(outputs)}")
    rows, width = outputs.shape
    if are_classes:
        if jnp.issubdtype(targets.dtype, np.floating) and targets.shape == (rows,) and checks.is_concrete(targets):
            checks.class_labels("data.targets", targets, max(width, 2))
            targets = targets.astype(jnp.int32)
        check_labels(targets, (rows,), max(width, 2))
        return targets
    if targets.shape != (rows, width) and (targets.shape, width) != ((rows,), 1):
        raise ValueError(f"targets: expected real numbers [{rows},{width}], got {checks.describe(targets)}")
    checks.finite("targets", targets)
    return targets


def predict(model: Model, variables: Variables, posterior: Posterior, inputs: Any) -> Outputs:
    """Return the distribution of the outputs for each example, `N(f(x), J (G + α I)⁻¹ Jᵀ)`.

    Args:
        model: the model that the posterior was fitted for.
        variables: the variables that were passed to `fit`.
        posterior: the result of `fit`.
        inputs: preprocessed inputs `(batch, ...)`.

    Raises:
        TypeError: if `model` is not a Model, `variables` is not a mapping of variables, `posterior` was not returned by
            `fit`, or the inputs are not numbers.

    Example:
        See the top of this module.
    """
    mean, slopes = _along_directions(model, variables, posterior, _checked(model, variables, posterior, inputs))
    variances = 1 / (posterior.curvature + posterior.prior_precision)
    return Outputs(mean, jnp.einsum("nkp,nlp,p->nkl", slopes, slopes, variances))


def members(key: Array, model: Model, variables: Variables, posterior: Posterior, inputs: Any, draws: int) -> Array:
    """Draw parameters from the posterior, and return the outputs for each draw.

    Args:
        key: a typed key.
        model: the model that the posterior was fitted for.
        variables: the variables that were passed to `fit`.
        posterior: the result of `fit`.
        inputs: preprocessed inputs `(batch, ...)`.
        draws: the number of parameter vectors to draw.

    Returns:
        Outputs `(draws, batch, outputs)`, like those of an ensemble; for classes, these are logits: average the
        probabilities, not the logits, by `spread(probabilities(outputs)).mean`.

    Raises:
        TypeError: for a key that is not typed, or a number of draws that is not an integer.
        ValueError: for fewer than one draw.

    Example:
        >>> import nnfx
        >>> model, batch = nnfx.models.perceptron(), Batch(jnp.ones((5, 2)), jnp.array([0, 1, 1, 1, 0]), jnp.ones(5))
        >>> variables = model.init(jax.random.key(0), batch.inputs)
        >>> posterior = fit(model, variables, batch, prior_precision=1.0, layer="*")
        >>> members(jax.random.key(1), model, variables, posterior, batch.inputs, draws=10).shape
        (10, 5, 1)
    """
    checks.key("key", key)
    checks.positive_integer("draws", draws)
    mean, slopes = _along_directions(model, variables, posterior, _checked(model, variables, posterior, inputs))
    normal = jax.random.normal(key, (draws, slopes.shape[-1]), slopes.dtype)
    steps = normal * jax.lax.rsqrt(posterior.curvature + posterior.prior_precision)[None]
    return mean[None] + jnp.einsum("nkp,sp->snk", slopes, steps)


def _checked(model: Any, variables: Any, posterior: Any, inputs: Any) -> Any:
    """Check the arguments of a prediction, and return its inputs as arrays."""
    check_model(model, variables)
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior: expected that of nnfx.uncertainty.laplace.fit, got a {type(posterior).__name__}")
    return as_inputs("inputs", inputs)


@memo.compiled(static=2)
def _fit(
    model: Model, names: tuple[str, ...], variables: Variables, data: Batch, noise: Any, prior_precision: Any
) -> Posterior:
    flat, restore = ravel_pytree(_layer(variables, names))
    dtype = at_least_float32(flat.dtype)

    def negative_log_likelihood(outputs: Array, target: Array, weights: Array) -> Array:
        if noise is None:
            return -jax.nn.log_softmax(class_logits(outputs[None])[0])[target] * weights
        z = jnp.where(weights != 0, (outputs - target.reshape(outputs.shape)) / noise, 0)
        return ((jnp.square(z) / 2 + jnp.log(noise * np.sqrt(2 * np.pi))) * weights).sum()

    def add(sums: tuple[Array, Array], row: Batch) -> tuple[tuple[Array, Array], None]:
        outputs, jacobian = _linearized(model, variables, names, row.inputs)
        weights = row.weights.astype(dtype)
        hessian = jax.hessian(negative_log_likelihood)(outputs, row.targets, weights).astype(dtype)
        loss = negative_log_likelihood(outputs, row.targets, weights)
        found = loss.astype(dtype), jacobian.T @ hessian @ jacobian
        return jax.tree.map(lambda a, b: a + jnp.where((weights != 0).any(), b, 0), sums, found), None

    nothing = jnp.zeros((), dtype), jnp.zeros((flat.size, flat.size), dtype)
    (loss, curvature), _ = jax.lax.scan(add, nothing, data)
    values, vectors = jnp.linalg.eigh(curvature)
    values = jnp.maximum(values, 0)  # negative eigenvalues of G are rounding errors
    square_norm = jnp.square(flat.astype(dtype)).sum()
    return Posterior(values, jax.vmap(restore)(vectors.T), jnp.asarray(prior_precision, dtype), -loss, square_norm)


@memo.compiled()
def _along_directions(model: Model, variables: Variables, posterior: Posterior, inputs: Any) -> tuple[Array, Array]:
    """Return the outputs, and their derivatives along the eigenvectors of G, `(batch, outputs, p)`."""
    names = tuple(posterior.directions)
    mean, jacobian = jax.vmap(lambda row: _linearized(model, variables, names, row))(inputs)
    directions = jax.vmap(lambda direction: ravel_pytree(direction)[0])(posterior.directions)
    return mean, jacobian @ directions.T


def _linearized(model: Model, variables: Variables, names: tuple[str, ...], row: Any) -> tuple[Array, Array]:
    """Return the outputs for one example, `(outputs,)`, and their derivatives by the parameters, `(outputs, p)`."""
    flat, restore = ravel_pytree(_layer(variables, names))
    others = trees.named(variables["params"])

    def apply(flat: Array) -> tuple[Array, Array]:
        params = trees.nested({**others, **restore(flat)}.items())
        outputs = model.apply({**variables, "params": params}, jax.tree.map(lambda leaf: leaf[None], row))[0]
        return outputs, outputs

    jacobian, outputs = jax.jacrev(apply, has_aux=True)(flat)
    return outputs, jacobian.astype(at_least_float32(jacobian.dtype))


def _layer(variables: Variables, names: tuple[str, ...]) -> dict[str, Array]:
    params = trees.named(variables["params"])
    return {name: params[name] for name in names}
