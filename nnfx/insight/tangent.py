"""The linearisation of a network in its parameters, and its neural tangent kernel."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nnfx import checks, memo
from nnfx.insight import objective
from nnfx.types import Array, Model, Variables

__all__ = ["kernel", "linearize"]


def linearize(model: Model, variables: Variables) -> Model:
    """Return the linearisation of a model in its parameters, `f(x; w₀) + ∂f/∂w (x; w₀) · (w − w₀)`.

    The `init` of the result returns w₀ for any key. Wide networks train like their linearisation: the difference
    between the two, after the same steps from the same start, decreases as 1 / width.

    Args:
        model: the model.
        variables: the model's variables; w₀ are their parameters. Other variables, such as batch statistics, are
            treated as in `model`.

    Returns:
        A model from the same inputs to the same outputs, with the same tree of variables.

    Raises:
        TypeError: if `model` is not a Model, or if the parameters are not floats.
        ValueError: for variables without parameters, or values that are not finite.

    Example:
        `w² x` becomes `w₀² x + 2 w₀ x (w − w₀)`:

        >>> square = Model(lambda key, x: {"params": jnp.ones(())}, lambda v, x, **_: v["params"] ** 2 * x)
        >>> linear = linearize(square, {"params": jnp.array(3.0)})
        >>> linear.apply({"params": jnp.array(4.0)}, jnp.array([1.0, 2.0])).tolist()
        [15.0, 30.0]

    References:
        Lee et al., *Wide neural networks of any depth evolve as linear models under gradient descent*, NeurIPS 2019.
    """
    objective.check_model(model)
    objective.check_variables(variables)
    around = variables["params"]

    def init(key: Array, inputs: Any) -> Variables:
        del key, inputs
        return jax.tree.map(jnp.asarray, dict(variables))

    def apply(
        variables: Variables,
        inputs: Any,
        *,
        key: Array | None = None,
        weights: Array | None = None,
        train: bool = False,
    ) -> Any:
        state = {name: value for name, value in variables.items() if name != "params"}

        def of(params: Any) -> tuple[Array, Any]:
            applied = {"params": params, **state}
            if not train:
                return model.apply(applied, inputs), {}
            return model.apply(applied, inputs, key=key, weights=weights, train=True)

        outputs, pull, after = jax.vjp(of, around, has_aux=True)
        # The VJP is linear, so its own VJP is the JVP, even through operations without forward-mode derivatives.
        _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(outputs))
        (change,) = push(jax.tree.map(jnp.subtract, variables["params"], around))
        return (outputs + change, after) if train else outputs + change

    return Model(init, apply)


def kernel(model: Model, variables: Variables, inputs: Any, others: Any = None) -> Array:
    """Return the neural tangent kernel, `Θᵢⱼ(x, x′) = ∂fᵢ(x)/∂w · ∂fⱼ(x′)/∂w`.

    Under gradient flow on the squared error, it determines how the outputs change; in infinitely wide networks it stays
    constant. The derivatives for all `inputs`, `(rows, outputs, parameters)`, are held in memory at once.

    Args:
        model: the model, applied in evaluation mode.
        variables: the model's variables; derivatives are taken at their parameters w.
        inputs: x, `(rows, ...)`.
        others: x′, `(others, ...)`; by default, the same as `inputs`.

    Returns:
        `(rows, others, outputs, outputs)`, in the squared units of the outputs divided by those of the parameters.

    Raises:
        TypeError, ValueError: as for `linearize`, and for inputs that are not finite.

    Example:
        The kernel of a perceptron is `x · x′ + 1`, where the 1 comes from the bias:

        >>> from nnfx.models import perceptron
        >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
        >>> kernel(perceptron(), perceptron().init(jax.random.key(0), x), x)[:, :, 0, 0].tolist()
        [[6.0, 3.0], [3.0, 2.0]]

    References:
        Jacot, Gabriel and Hongler, *Neural tangent kernel: convergence and generalization in neural networks*,
        NeurIPS 2018.
    """
    objective.check_model(model)
    objective.check_variables(variables)
    for name, rows in {"inputs": inputs, "others": others}.items():
        for leaf in jax.tree.leaves(rows):
            checks.finite(name, leaf)
    return _kernel(model, variables, inputs, inputs if others is None else others)


@memo.compiled()
def _kernel(model: Model, variables: Variables, inputs: Any, others: Any) -> Array:
    flat, restore = ravel_pytree(variables["params"])

    def derivatives(example: Any) -> Array:
        def of(flat: Array) -> Array:
            batch = jax.tree.map(lambda leaf: leaf[None], example)
            return model.apply({**variables, "params": restore(flat)}, batch).reshape(-1)

        return jax.jacrev(of)(flat)

    held = jax.lax.map(derivatives, inputs)
    against = jax.lax.map(lambda other: jnp.einsum("rip,jp->rij", held, derivatives(other)), others)
    return against.swapaxes(0, 1)
