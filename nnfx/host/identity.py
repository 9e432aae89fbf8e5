"""What tells a run from others beside its key and its numbers: its program, its data, and what it is computed with."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Lowered

from nnfx import checkpoint

DECIDING = ("nnfx", "jax", "jaxlib", "flax", "optax")
"""The packages whose versions decide what is computed."""


class Identity(NamedTuple):
    """What decides the bits of a run.

    Attributes:
        program: the checksum of what XLA is given to compile: layers, loss, optimizer, rules, and the numbers fixed in
            them.
        data: dtype, shape and checksum of the arrays of the data, by path.
        means: the versions and the kind of device that it is computed with, by name.
    """

    program: str
    data: Mapping[str, str]
    means: Mapping[str, str]

    @classmethod
    def of(cls, lowered: Lowered | Sequence[Lowered], data: Mapping[str, str]) -> "Identity":
        """Read it off the programs that advance a run, and the words on what it is trained on."""
        versions = checkpoint.versions()
        program = "".join(each.as_text() for each in ([lowered] if isinstance(lowered, Lowered) else lowered))
        return cls(
            program=hashlib.sha256(program.encode()).hexdigest()[:16],
            data=data,
            means={**{name: versions[name] for name in DECIDING}, "device": jax.local_devices()[0].device_kind},
        )

    def differences(self, other: "Identity") -> list[str]:
        """Say in what another run differs from this one.

        What is computed with other means is given to XLA in other words, so that programs are compared between the
        same means alone.
        """
        lines = [
            f"data.{name}: expected {self.data.get(name, 'nothing')}, got {other.data.get(name, 'nothing')}"
            for name in {**self.data, **other.data}
            if self.data.get(name) != other.data.get(name)
        ]
        if not lines and self.program != other.program and self.means == other.means:
            lines.append(
                f"program: expected {self.program}, got {other.program}: other layers, another loss, optimizer or rule,"
                " or another number fixed in one of them"
            )
        return lines

    def other_means(self, other: "Identity") -> list[str]:
        """Say which means of another run are not those of this one."""
        return [
            f"{name} {mine}, now {other.means.get(name)}"
            for name, mine in self.means.items()
            if other.means.get(name) != mine
        ]


def words(tree: Any) -> dict[str, str]:
    """Describe arrays, such as those of data, by path, so that any others are described otherwise."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): _words(leaf) for path, leaf in leaves}


def _words(leaf: Any) -> str:
    array = np.asarray(leaf)
    # looked at as bytes, since not every dtype has a buffer
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return f"{array.dtype}[{','.join(map(str, array.shape))}] {hashlib.sha256(flat).hexdigest()[:16]}"
