"""Weight initialisers, by name or as functions."""

from typing import Any

from jax.custom_batching import sequential_vmap
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from nnfx import checks
from nnfx.types import Array


def _orthogonal(key: Array, shape: Any, dtype: DTypeLike | None = None, out_sharding: Any = None) -> Array:
    """Draw orthogonal weights; under `jax.vmap`, one batch element at a time.

    On CPUs, jaxlib factorises a batch of matrices in tasks on a thread pool, and the thread that waits for these tasks
    belongs to the same pool. If all threads of the pool wait, as with two devices on two cores, the program deadlocks.
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
    "torch_uniform": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


def get(initializer: str | Initializer, name: str = "initializer", axes: int = 2) -> Initializer:
    """Return an initialiser by name; a function `(key, shape, dtype) -> array` is returned unchanged.

    `"normal"` is the standard normal distribution; for another scale pass `jax.nn.initializers.normal(scale)`.
    `"torch_uniform"` is the default of PyTorch's dense and convolutional layers, `U(−1/√n, 1/√n)` for units with n
    inputs.

    Args:
        initializer: a name, or a function like those in `jax.nn.initializers`.
        name: the name of the argument, for error messages.
        axes: the number of axes of the array to initialise; all initialisers but `"zeros"` and `"normal"` need two.

    Raises:
        ValueError: for an unknown name; the error lists the known ones.

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
