"""Portable programs: functions of arrays as StableHLO, without the code that defined them.

JAX guarantees that programs written by `jax.export` can be read by versions released in the following six months, and
in the preceding three weeks. Here, programs are written for an older version of StableHLO where possible, so that
every JAX version that this library supports can read them.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import mlir

from nnfx import memo
from nnfx.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that programs are lowered for, where possible."""
STABLEHLO = "1.14.0"
"""The version of StableHLO that the oldest supported JAX version, 0.9.2, can read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A portable program; its compiled code is freed together with it.

    Attributes:
        exported: the exported program, as returned by `jax.export`.
    """

    exported: export.Exported

    @classmethod
    def of(cls, function: Any, *arguments: Any) -> "Program":
        """Lower a jitted function for given shapes, possibly symbolic, and for as many platforms as possible.

        Raises:
            ModuleNotFoundError: if flatbuffers is not installed.
            ValueError: for a function that cannot be exported, such as one that calls cuDNN.
        """
        _require_flatbuffers()
        try:
            jax.eval_shape(function, *arguments)
        except Exception as error:  # whatever the user's model raises
            raise _unexportable(error) from error
        try:
            exported = _lowered(function, PLATFORMS, arguments)
        except Exception as error:
            able = [platform for platform in PLATFORMS if _can_lower(function, platform, arguments)]
            if not able:
                raise _unexportable(error) from error
            exported = _lowered(function, able, arguments)
        return cls(_for_older_releases(exported))

    @classmethod
    def read(cls, source: str, content: bytes) -> "Program":
        """Read a program from bytes; `source` names it in error messages.

        Raises:
            ModuleNotFoundError: if flatbuffers is not installed.
            ValueError: for a program that this JAX version cannot read.
        """
        _require_flatbuffers()
        try:
            exported = export.deserialize(bytearray(content))
            exported.mlir_module()  # fails for a version of StableHLO that is too new
            return cls(exported)
        except Exception as error:
            raise ValueError(
                f"{source}: could not read the program with JAX {jax.__version__}: {in_short(error)}"
            ) from error

    @property
    def content(self) -> bytes:
        """The program as bytes."""
        return bytes(self.exported.serialize())

    @property
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the arrays in the program's last argument."""
        arguments, _ = jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)
        return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments[-1])]

    @property
    def outputs(self) -> Any:
        """The shape and dtype of the program's result."""
        return self.exported.out_avals[0]

    def __call__(self, *arguments: Any) -> Array:
        """Run the program."""
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(arguments[-1]))
        return _called(self, shapes, *arguments)


@memo.compiled(static=2)
def _called(program: Program, shapes: tuple[tuple[int, ...], ...], *arguments: Any) -> Array:
    del shapes  # one memo entry per number of rows, so that old programs are released if there are too many
    return program.exported.call(*arguments)


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "flatbuffers: required by JAX to write and read programs, but not installed: pip install 'nnfx[saving]'"
        )


def _lowered(function: Any, platforms: Sequence[str], arguments: Sequence[Any]) -> export.Exported:
    exported = export.export(function, platforms=platforms)(*arguments)
    exported.serialize()  # some errors are raised only here
    return exported


def _can_lower(function: Any, platform: str, arguments: Sequence[Any]) -> bool:
    try:
        _lowered(function, (platform,), arguments)
    except Exception:  # whatever the lowering raises
        return False
    return True


def _for_older_releases(exported: export.Exported) -> export.Exported:
    """Convert a program to an older version of StableHLO; return it unchanged if it needs newer features."""
    try:
        content = mlir.serialize_portable_artifact(str(exported.mlir_module()), STABLEHLO)
    except Exception:  # the type of the error differs between releases
        return exported
    return dataclasses.replace(exported, mlir_module_serialized=content)


def symbolic(shapes: Sequence[Any], *, any_time: bool) -> list[jax.ShapeDtypeStruct]:
    """Return shapes with any number of rows and, if requested, any number of steps on the second axis of sequences."""
    batch, time = export.symbolic_shape("batch, time")
    found = []
    for leaf in shapes:
        rest = (time, *leaf.shape[2:]) if any_time and is_sequence(leaf) else leaf.shape[1:]
        found.append(jax.ShapeDtypeStruct((batch, *rest), leaf.dtype))
    return found


def is_sequence(leaf: Any) -> bool:
    """Return whether the second axis may be time, as in `(batch, time, features)` and in tokens `(batch, time)`."""
    return len(leaf.shape) == (2 if np.issubdtype(leaf.dtype, np.integer) else 3)


def fits(got: Any, wanted: Any) -> bool:
    """Return whether an array has the expected shape, in which symbolic sizes match any size."""
    return len(got.shape) == len(wanted.shape) and all(
        mine == theirs for mine, theirs in zip(got.shape, wanted.shape, strict=True) if isinstance(theirs, int)
    )


def _unexportable(error: Exception) -> ValueError:
    return ValueError(f"model: could not be exported as a portable program: {in_short(error)}")


def in_short(error: Exception) -> str:
    """Summarise an error by its type and the first lines of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"
