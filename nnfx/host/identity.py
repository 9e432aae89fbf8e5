"""What tells a run from others beside its key and its numbers: its parts, its start, its data, and its means."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Lowered

from nnfx import checkpoint
from nnfx.host import parts
from nnfx.training.parts import Recipe

DECIDING = ("nnfx", "jax", "jaxlib", "flax", "optax")
"""The packages whose versions decide what is computed."""
_TOLERANCE = 1e-4
"""How far apart, relative to their size, initial values may be that two releases draw with the same key."""
_PERIOD, _AT_ONCE = 4099, 2**20

Moments = Mapping[str, Sequence[float]]
"""Of arrays by path: the mean, the root mean square, and a sum with weights that depend on the place."""


class Identity(NamedTuple):
    """What decides the bits of a run.

    Between the same means it is the program that counts, to the bit. Other means are given the same run in other words,
    so that there its parts and its start are compared.

    Attributes:
        program: the checksum of what XLA is given to compile: start, layers, loss, optimizer, rules, and the numbers
            fixed in them.
        parts: what the run is made of, by path; see `nnfx.host.parts`.
        start: what the arrays are that it starts from; nothing as long as that was not computed.
        data: dtype, shape and checksum of the arrays of the data, by path.
        means: the versions and the kind of device that it is computed with, by name.
    """

    program: str
    parts: Mapping[str, str]
    start: Moments
    data: Mapping[str, str]
    means: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe, lowered: Sequence[Lowered], data: Mapping[str, str]) -> "Identity":
        """Read it off a run, the programs that start and advance it, and the words on what it is trained on."""
        versions = checkpoint.versions()
        program = "".join(each.as_text() for each in lowered)
        return cls(
            program=hashlib.sha256(program.encode()).hexdigest()[:16],
            parts=parts.parts_of(recipe),
            start={},
            data=data,
            means={**{name: versions[name] for name in DECIDING}, "device": jax.local_devices()[0].device_kind},
        )

    def differences(self, other: "Identity") -> list[str]:
        """Say in which of its data, parts and start another run differs from this one."""
        lines = [
            f"data.{name}: expected {self.data.get(name, 'nothing')}, got {other.data.get(name, 'nothing')}"
            for name in {**self.data, **other.data}
            if self.data.get(name) != other.data.get(name)
        ]
        if self.means == other.means:
            # what is written otherwise and comes to the same program is the same
            return lines if self.program == other.program else [*lines, *parts.differences(self.parts, other.parts)]
        changed = [name for name, mine in self.means.items() if other.means.get(name) != mine]
        lines += parts.differences(self.parts, other.parts, [*changed, "python"])
        return lines or self._starts(other)

    def other_program(self, other: "Identity") -> list[str]:
        """Say that another run differs, where no part tells in what; it cannot be told between other means."""
        if self.means != other.means or self.program == other.program:
            return []
        return [
            f"program: expected {self.program}, got {other.program}: another start, other layers, another loss,"
            " optimizer or rule, or another number fixed in one of them"
        ]

    def _starts(self, other: "Identity") -> list[str]:
        """Say where the runs start from other arrays."""
        if not self.start or not other.start:
            return []
        return [
            f"start{name}: expected values of mean {mine[0]:.6g} and size {mine[1]:.6g}, got others, of mean"
            f" {theirs[0]:.6g} and size {theirs[1]:.6g}"
            for name, mine in self.start.items()
            if (theirs := other.start.get(name)) is not None and not _are_near(mine, theirs)
        ]

    def other_means(self, other: "Identity") -> list[str]:
        """Say which means of another run are not those of this one."""
        return [
            f"{name} {mine}, now {other.means.get(name)}"
            for name, mine in self.means.items()
            if other.means.get(name) != mine
        ]


def words(tree: Any) -> dict[str, str]:
    """Describe arrays, such as those of data, by path, so that any others are described otherwise; words stay."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        if isinstance(leaf, str)
        else parts.array_words(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def moments(tree: Any) -> dict[str, list[float]]:
    """Describe arrays of numbers by path, so that any others are described otherwise, unless they are very near.

    >>> moments({"w": np.array([3.0, -4.0])})["['w']"][:2]
    [-0.5, 3.5355339059327378]
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {
        path: _moments(np.asarray(leaf).reshape(-1))
        for path, leaf in leaves.items()
        if leaf.size and not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def _moments(values: np.ndarray) -> list[float]:
    """Return the mean, the root mean square, and a weighted sum over the root of the number of values."""
    weights = np.cos(np.arange(1, _PERIOD + 1))
    sums = np.zeros(3)
    with np.errstate(all="ignore"):
        for begin in range(0, len(values), _AT_ONCE):
            some = values[begin : begin + _AT_ONCE]
            some = np.abs(some) if np.iscomplexobj(some) else some.astype(np.float64)
            places = np.arange(begin, begin + len(some)) % _PERIOD
            sums += [some.sum(), np.vdot(some, some), weights[places] @ some]
        mean, square, mixed = sums / [len(values), len(values), math.sqrt(len(values))]
        return [float(mean), float(np.sqrt(square)), float(mixed)]


def _are_near(expected: Sequence[float], got: Sequence[float]) -> bool:
    scale = expected[1] if math.isfinite(expected[1]) else 1.0
    return np.allclose(expected, got, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)
