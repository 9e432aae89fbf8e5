"""Variables on disk in the safetensors format: named arrays, written and read without executing code.

The leaves of a tree are named as in `nnfx.trees`, such as `params.layer_0.kernel`.
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
"""The dtypes, keyed by their names in the format."""


def save_safetensors(path: str | os.PathLike[str], variables: Variables) -> None:
    """Write variables to a file, bit for bit, in a format that other libraries, such as Hugging Face's, can read.

    An existing file at that path is replaced once the new file is complete.

    Args:
        path: the path of the file, such as `"weights.safetensors"`.
        variables: a tree of arrays, such as `{"params": {"layer_0": {"kernel": ...}}}`, whose leaf is written as
            `params.layer_0.kernel`.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        TypeError: for leaves that are not arrays, or whose dtype the format does not support, such as random keys.
        ValueError: for two leaves with the same name, or a leaf whose name is a prefix of another name.

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
        raise ValueError("variables: expected leaves with unique names, got a repeated one; is there a dot in a key?")
    _check_names("variables", arrays)
    with paths.replace(target) as written:
        save_file(arrays, written)


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the arrays of a file as a dict of dicts: `params.layer_0.kernel` is `["params"]["layer_0"]["kernel"]`.

    A saved tuple or list is loaded as a dict keyed by position, `"0"`, `"1"` and so on; `pretrained` and `merge`
    accept either form, since they match leaves by name.

    Args:
        path: a file written by `save_safetensors` or any other library.

    Returns:
        NumPy arrays, in the dtypes that they have in the file.

    Raises:
        ModuleNotFoundError: if safetensors is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is damaged or not in this format; an unsupported dtype; or a name that is a
            prefix of another's.
    """
    package = _package()
    source = paths.absolute("path", path)
    try:
        found = package.deserialize(source.read_bytes())
    except package.SafetensorError as error:
        raise ValueError(f"path: expected a safetensors file, got {source.name}: {error}") from error
    leaves = {}
    for name, view in found:
        if view["dtype"] not in _DTYPES:
            raise ValueError(f"path: expected one of the dtypes {', '.join(_DTYPES)}, got {view['dtype']} for {name}")
        leaves[name] = np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
    _check_names("path", leaves)
    return trees.nested(sorted(leaves.items()))


def _package() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        wanted = "safetensors: required to read and write its files, but not installed: pip install 'nnfx[safetensors]'"
        raise ModuleNotFoundError(wanted) from error
    return safetensors


def _on_host(name: str, leaf: Any) -> np.ndarray:
    """Return a contiguous array on the host, in the layout of the format."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or leaf.dtype not in _DTYPES.values():
        raise TypeError(f"variables: expected arrays of {', '.join(_DTYPES)}, got {checks.describe(leaf)} for {name}")
    array: np.ndarray = np.asarray(leaf, order="C")
    return array


def _check_names(argument: str, leaves: dict[str, Any]) -> None:
    """Check that no name is a prefix of another, since a node of a tree cannot also be a leaf."""
    for name in leaves:
        parts = name.split(".")
        for length in range(1, len(parts)):
            if (above := ".".join(parts[:length])) in leaves:
                raise ValueError(f"{argument}: expected names that are not prefixes of others, got {above} and {name}")
