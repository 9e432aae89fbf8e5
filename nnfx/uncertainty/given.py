"""Models, variables and inputs as passed by users, checked before anything is traced."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nnfx import arrays, checks
from nnfx.types import Model


def check_model(model: Any, variables: Any) -> None:
    """Require a model and its variables."""
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as run.model, got {_named(model)}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise TypeError(f"variables: expected {{'params': ...}}, such as run.best.variables, got {_named(variables)}")


def as_inputs(name: str, inputs: Any) -> Any:
    """Return inputs, an array or a tree of them, as arrays on the device; a list of numbers is one array.

    Raises:
        TypeError: if the inputs are not numbers, for example if they are `Data`.
        ValueError: for numbers that the device cannot hold.
    """
    if hasattr(inputs, "train") and hasattr(inputs, "valid"):
        raise TypeError(
            f"{name}: expected prepared inputs (batch, ...), such as data.valid.inputs, got {_named(inputs)}"
        )
    if isinstance(inputs, list):
        inputs = arrays.as_numpy(name, inputs)
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else arrays.to_device(name, arrays.as_numpy(name, leaf)),
        inputs,
    )


def _named(value: Any) -> str:
    """Describe a value by the type of anything that is not an array or a number."""
    return checks.describe(value) if isinstance(value, np.ndarray | jax.Array) else f"a {type(value).__name__}"
