"""Models that start from given weights, leaf by leaf, with a report of which weights were used."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, trees
from nnfx.types import Apply, Array, Model, Variables

__all__ = ["Merged", "Report", "merge", "pretrained"]


class Report(NamedTuple):
    """The outcome of merging given variables into the variables of a model, by leaf name; it prints as a list.

    Attributes:
        taken: the leaves whose given values were used.
        other: the leaves given with the wrong shape or dtype, each with the expected and the given shape and dtype.
        missing: the leaves that were not given, which keep their initial values.
        unknown: the given leaves that the model does not have.
    """

    taken: tuple[str, ...]
    other: dict[str, tuple[str, str]]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        """Return a line for each leaf.

        >>> print(Report(("params.kernel",), {"params.bias": ("float32[2]", "float32[3]")}, (), ("step",)))
        1 of 2 leaves taken
          params.kernel: taken
          params.bias: initial, expected float32[2], got float32[3]
          step: unknown to the model
        """
        lines = [f"{len(self.taken)} of {len(self.taken) + len(self.other) + len(self.missing)} leaves taken"]
        lines += [f"  {name}: taken" for name in self.taken]
        lines += [f"  {name}: initial, expected {want}, got {got}" for name, (want, got) in self.other.items()]
        lines += [f"  {name}: initial, not given" for name in self.missing]
        lines += [f"  {name}: unknown to the model" for name in self.unknown]
        return "\n".join(lines)


class Merged(NamedTuple):
    """The result of `merge`: variables, and a report of where their leaves come from."""

    variables: Variables
    report: Report


def merge(initial: Variables, given: Variables) -> Merged:
    """Replace the variables of a model by given values, where name, shape and dtype agree.

    Args:
        initial: the model's own variables, or only their shapes, from `jax.eval_shape(model.init, key, inputs)`, to
            see the report.
        given: a tree of arrays, such as the variables of another model, `{"params": ..., ...}`; leaves may be missing,
            and there may be additional leaves.

    Returns:
        The variables, in the structure of `initial`, and the report.

    Raises:
        TypeError: for given leaves that are not arrays.

    Example:
        >>> from nnfx.models import mlp
        >>> old, new = (mlp((4,), outputs).init(jax.random.key(outputs), jnp.ones((1, 2))) for outputs in (1, 3))
        >>> variables, report = merge(new, old)
        >>> print(report)
        2 of 4 leaves taken
          params.hidden_0.bias: taken
          params.hidden_0.kernel: taken
          params.output.bias: initial, expected float32[3], got float32[1]
          params.output.kernel: initial, expected float32[4,3], got float32[4,1]
    """
    theirs = trees.named(given)
    for name, leaf in theirs.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise TypeError(f"given: expected arrays by name, got {checks.describe(leaf)} for {name}")
    mine = trees.named(initial)
    both = [name for name in mine if name in theirs]
    words = {name: (_words(mine[name]), _words(theirs[name])) for name in both}
    taken = {name for name, (expected, got) in words.items() if expected == got}
    leaves = [jnp.array(theirs[name]) if name in taken else leaf for name, leaf in mine.items()]
    report = Report(
        tuple(name for name in both if name in taken),
        {name: each for name, each in words.items() if name not in taken},
        tuple(name for name in mine if name not in theirs),
        tuple(name for name in theirs if name not in mine),
    )
    return Merged(jax.tree.unflatten(jax.tree.structure(initial), leaves), report)


def pretrained(model: Model, variables: Variables) -> Model:
    """Return a model that starts from given weights, leaf by leaf, where name, shape and dtype agree.

    All other leaves start as in the model itself; `print(merge(model.init(key, inputs), variables).report)` lists
    them. To keep the given leaves unchanged in training, see `nnfx.optimizers.freeze`.

    Args:
        model: the model.
        variables: a tree of arrays, such as `run.best.variables` of another run, or the result of `load_safetensors` or
            `nnfx.models.conversion.from_torch`: `{"params": ..., ...}`.

    Returns:
        The model with a new `init`.

    Raises:
        TypeError: if `model` is not a `Model`, or a leaf of `variables` is not an array.
        ValueError: for variables without `"params"`; and, from `init`, if they match no leaf of the model.

    Example:
        >>> from nnfx.models import mlp
        >>> old = mlp((4,), outputs=1).init(jax.random.key(0), jnp.ones((1, 2)))
        >>> new = pretrained(mlp((4,), outputs=3), old).init(jax.random.key(1), jnp.ones((1, 2)))
        >>> bool((new["params"]["hidden_0"]["kernel"] == old["params"]["hidden_0"]["kernel"]).all())
        True
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, such as nnfx.models.mlp((16,)), got {checks.describe(model)}")
    if not hasattr(variables, "keys") or "params" not in variables:
        got = sorted(variables) if hasattr(variables, "keys") else checks.describe(variables)
        raise ValueError(f"variables: expected {{'params': ...}} and possibly other collections, got {got}")
    merge({}, variables)  # raises an error for leaves that are not arrays

    def init(key: Array, inputs: Any) -> Variables:
        merged = merge(model.init(key, inputs), variables)
        if not merged.report.taken:
            raise ValueError(f"variables: expected at least one leaf of the model, got none:\n{merged.report}")
        return merged.variables

    # a new function, so that the compiled programs of this model are freed with it, not with the original model
    return model._replace(init=init, apply=cast(Apply, functools.partial(model.apply)))


def _words(leaf: Any) -> str:
    return checks.describe(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
