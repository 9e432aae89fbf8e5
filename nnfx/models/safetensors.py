"""Variables on disk in the format of safetensors: arrays by name, written and read without executing anything.

The names are those of `nnfx.trees`, such as `params.layer_0.kernel`.
"""

import os
from typing import Any

import jax
import ml_dtypes
import numpy as np

from nnfx import checks, paths, trees
from nnfx.types import Variables

__all__ = ["load_safetensors", "save_safetensors"]

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
"""The dtypes by the names that the format has for them."""


def save_safetensors(path: str | os.PathLike[str], variables: Variables) -> None:
    """Write variables to a file, with every bit as it is; libraries such as Hugging Face's read it.

    A file of that name is replaced once the new one is whole.

    Args:
        path: the file, such as `"weights.safetensors"`.
        variables: a tree of arrays, such as `{"params": {"layer_0": {"kernel": ...}}}`, whose leaf is written as
            `params.layer_0.kernel`.

    Raises:
        ModuleNotFoundError: without the package safetensors.
        TypeError: for leaves that are no arrays, or of a dtype that the format lacks, such as random keys.
        ValueError: for two leaves of the same name, or one whose name is the beginning of another's.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> path = os.path.join(tempfile.mkdtemp(), "weights.safetensors")
        >>> save_safetensors(path, {"params": {"kernel": jnp.ones((1, 2), jnp.bfloat16)}})
        >>> load_safetensors(path)
        {'params': {'kernel': array([[1, 1]], dtype=bfloat16)}}
    """
    save_file = _package().numpy.save_file
    target = paths.absolute("path", path)
    arrays = {name: _on_host(name, leaf) for name, leaf in trees.named(variables).items()}
    if len(arrays) < len(jax.tree.leaves(variables)):
        raise ValueError("variables: expected leaves of different names, got two of the same; is there a dot in a key?")
    _check_names("variables", arrays)
    with paths.replace(target) as written:
        save_file(arrays, written)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the arrays of a file as a dict of dicts: `params.layer_0.kernel` is `["params"]["layer_0"]["kernel"]`.

    A tuple or list that was saved comes back as a dict by position, `"0"`, `"1"` and so on, which `pretrained` and
    `merge` take for the same, since they go by names.

    Args:
        path: a file written by `save_safetensors` or any other library.

    Returns:
        NumPy arrays, in the dtypes that they have in the file.

    Raises:
        ModuleNotFoundError: without the package safetensors.
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not in this format, or damaged; a dtype that JAX lacks; or a name that is the
            beginning of another's.
    """
    package = _package()
    source = paths.absolute("path", path)
    try:
        found = package.deserialize(source.read_bytes())
    except package.SafetensorError as error:
        raise ValueError(f"path: expected a file of safetensors, got {source.name}: {error}") from error
    leaves = {}
    for name, view in found:
        if view["dtype"] not in _DTYPES:
            raise ValueError(f"path: expected a dtype of {', '.join(_DTYPES)}, got {view['dtype']} for {name}")
        leaves[name] = np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
    _check_names("path", leaves)
    return trees.nested(sorted(leaves.items()))


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        wanted = "safetensors: required for its files; not installed: pip install 'nnfx[safetensors]'"
        raise ModuleNotFoundError(wanted) from error
    return safetensors


def _on_host(name: str, leaf: Any) -> np.ndarray:
    """Return an array on the host, in order, as the format stores it."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or leaf.dtype not in _DTYPES.values():
        raise TypeError(f"variables: expected arrays of {', '.join(_DTYPES)}, got {checks.describe(leaf)} for {name}")
    array: np.ndarray = np.asarray(leaf, order="C")
    return array


def _check_names(argument: str, leaves: dict[str, Any]) -> None:
    """Check that no name is the beginning of another, since a node of a tree is not a leaf too."""
    for name in leaves:
        parts = name.split(".")
        for length in range(1, len(parts)):
            if (above := ".".join(parts[:length])) in leaves:
                raise ValueError(f"{argument}: expected names of which none begins another, got {above} and {name}")
