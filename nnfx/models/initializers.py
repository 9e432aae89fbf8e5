"""Initial weights by name or by function; the functions are JAX's own."""

from typing import Any

from jax.custom_batching import sequential_vmap
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from nnfx import checks
from nnfx.types import Array


def _orthogonal(key: Array, shape: Any, dtype: DTypeLike | None = None, out_sharding: Any = None) -> Array:
    """Draw orthogonal weights, under `jax.vmap` one after the other.

    On CPUs jaxlib factorises a batch of matrices by tasks in the pool whose thread then waits for them: where all of
    its threads wait, as on two devices of two cores, a program never ends.
    """
    draw = initializers.orthogonal()
    return sequential_vmap(lambda key: draw(key, shape, dtype, out_sharding))(key)


_BY_NAME: dict[str, Initializer] = {
    "zeros": initializers.zeros,
    "normal": initializers.normal(1.0),
    "glorot_normal": initializers.glorot_normal(),
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
    "he_uniform": initializers.he_uniform(),
    "lecun_normal": initializers.lecun_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "orthogonal": _orthogonal,
}


def get(initializer: str | Initializer, name: str = "initializer", axes: int = 2) -> Initializer:
    """Return an initialiser from its name; a function `(key, shape, dtype) -> array` passes through.

    `"normal"` is the standard normal distribution; for another scale pass `jax.nn.initializers.normal(scale)`.

    Args:
        initializer: a name, or a function as `jax.nn.initializers` makes them.
        name: what the error calls the argument.
        axes: of the array to draw; those that scale by its sides need two.

    Raises:
        ValueError: for an unknown name; it lists the right ones.

    Example:
        >>> import jax
        >>> get("he_normal")(jax.random.key(0), (3, 2)).shape
        (3, 2)
    """
    known: Any = initializer
    if callable(known):
        return initializer  # type: ignore[return-value]
    checks.choice(name, known, [n for n in _BY_NAME if axes > 1 or n in ("zeros", "normal")])
    return _BY_NAME[known]
