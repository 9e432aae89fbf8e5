"""Trees of arrays whose leaves have names, such as `params.layer_0.kernel`."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

__all__ = ["at", "name_of", "named", "nested", "shapes"]


def name_of(path: Iterable[Any]) -> str:
    """Return the name of a leaf from its path in a tree, as given by JAX.

    >>> name_of((jax.tree_util.DictKey("layer_0"), jax.tree_util.GetAttrKey("kernel")))
    'layer_0.kernel'
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def named(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return the leaves of a tree by name; `is_leaf` is passed to `jax.tree.leaves`.

    >>> named({"params": {"kernel": 1, "bias": 2}})
    {'params.bias': 2, 'params.kernel': 1}
    """
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)}


def nested(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict of dicts from named leaves. This is the inverse of `named` for trees of dicts.

    >>> nested([("params.kernel", 1), ("params.bias", 2)])
    {'params': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves:
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def at(tree: Any, name: str) -> Any:
    """Look up a dotted name in a dict of dicts.

    >>> at({"params": {"kernel": 1}}, "params.kernel")
    1
    """
    for part in name.split("."):
        tree = tree[part]
    return tree


def shapes(tree: Any) -> Any:
    """Replace every array of a tree by its shape and dtype.

    >>> shapes({"w": jax.numpy.ones((2, 3))})
    {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
