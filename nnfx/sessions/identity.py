"""The identity of a run: its key, hyper-parameters, parts, initial values, data and environment."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nnfx import checkpoint
from nnfx.sessions.described_parts import array_words, differences, parts_of
from nnfx.training.driver import Program

DECIDING = ("nnfx", "jax", "jaxlib", "flax", "optax")
"""The packages whose versions affect results."""
_TOLERANCE = 1e-4
"""The largest relative difference allowed between initial values drawn from the same key by two JAX versions."""
_PERIOD, _AT_ONCE = 4099, 2**20

Moments = Mapping[str, Sequence[float]]
"""For arrays by path: the mean, the root mean square, and a sum with weights that depend on the position."""
UNITS = {"run": "epoch", "run on stored data": "step", "sweep": "epoch"}
"""The unit of checkpoint numbers, by kind of program."""


class Identity(NamedTuple):
    """Everything that determines a run bit for bit, as recorded in its folder and its checkpoints.

    In the same environment (`means`), programs are compared, and must be identical. In another environment, the same
    run gives a different program, so parts and initial values are compared instead.

    Attributes:
        kind: the kind of program, a key of `UNITS`.
        key: a description of the run's key.
        hyper: the run's hyper-parameters.
        program: the checksum of the program that XLA compiles: initial values, layers, loss, optimizer, rules, and
            all constants in them.
        parts: the parts of the run, by path; see `nnfx.sessions.described_parts`.
        start: a description of the initial arrays; empty until they have been computed.
        data: the dtype, shape and checksum of each array of the data, by path.
        means: the environment: package versions and the kind of device, by name.
    """

    kind: str
    key: str
    hyper: Mapping[str, Any]
    program: str
    parts: Mapping[str, str]
    start: Moments
    data: Mapping[str, str]
    means: Mapping[str, str]

    @classmethod
    def of(cls, program: Program[Any]) -> "Identity":
        """Return the identity of a program, before its initial arrays have been computed."""
        versions = checkpoint.versions()
        text = "".join(each.as_text() for each in program.lowered)
        return cls(
            kind=program.kind,
            key=f"{program.key.dtype} {array_words(program.key)}",
            hyper={name: np.asarray(value).tolist() for name, value in program.hyper.items()},
            program=hashlib.sha256(text.encode()).hexdigest()[:16],
            parts=parts_of(program.recipe),
            start={},
            data=words(program.data),
            means={**{name: versions[name] for name in DECIDING}, "device": jax.local_devices()[0].device_kind},
        )

    @classmethod
    def noted(cls, notes: Mapping[str, Any]) -> "Identity":
        """Return the identity recorded in notes, which may contain further entries."""
        return cls(**{name: notes[name] for name in cls._fields})

    @property
    def unit(self) -> str:
        """The unit of the checkpoints' numbers."""
        return UNITS[self.kind]

    def differences(self, other: "Identity") -> list[str]:
        """Return the differences between this run and another, as one line of text for each."""
        if self.kind != other.kind:
            return [f"kind: expected a {self.kind}, got a {other.kind}"]
        lines = [
            f"{f'data.{name}'.removeprefix('data.sweep.')}: expected {self.data.get(name, 'nothing')}, got"
            f" {other.data.get(name, 'nothing')}"
            for name in {**self.data, **other.data}
            if self.data.get(name) != other.data.get(name)
        ]
        is_other_program = self.means == other.means and self.program != other.program
        if is_other_program:
            lines += differences(self.parts, other.parts)
        elif self.means != other.means:
            changed = [name for name, mine in self.means.items() if other.means.get(name) != mine]
            lines += differences(self.parts, other.parts, [*changed, "python"])
            lines = lines or self._starts(other)
        if self.key != other.key:
            lines.append("key: expected the key of the checkpoint, got a different one")
        lines += [
            f"{name}: expected {self._number(name)}, got {other._number(name)}"
            for name in {**self.hyper, **other.hyper}
            if self.hyper.get(name) != other.hyper.get(name)
        ]
        if is_other_program and not lines:
            lines.append(
                f"program: expected {self.program}, got {other.program}: different initial values, layers, loss,"
                " optimizer or rules, or a different constant in one of them"
            )
        return lines

    def _number(self, name: str) -> str:
        return str(np.float32(self.hyper[name])) if name in self.hyper else "nothing"

    def _starts(self, other: "Identity") -> list[str]:
        """Return the differences between the runs' initial arrays."""
        if not self.start or not other.start:
            return []
        return [
            f"start{name}: expected values with mean {mine[0]:.6g} and root mean square {mine[1]:.6g}, got mean"
            f" {theirs[0]:.6g} and root mean square {theirs[1]:.6g}"
            for name, mine in self.start.items()
            if (theirs := other.start.get(name)) is not None and not _are_near(mine, theirs)
        ]

    def other_means(self, other: "Identity") -> list[str]:
        """Return the differences in versions and devices between this run's environment and another's."""
        return [
            f"{name} {mine}, now {other.means.get(name)}"
            for name, mine in self.means.items()
            if other.means.get(name) != mine
        ]


def words(tree: Any) -> dict[str, str]:
    """Describe the arrays of a tree by path, with dtype, shape and checksum; strings are left unchanged."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        if isinstance(leaf, str)
        else array_words(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def moments(tree: Any) -> dict[str, list[float]]:
    """Describe numeric arrays by path; different arrays get different descriptions unless they are very close.

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
    """Return the mean, the root mean square, and a weighted sum divided by the root of the number of values."""
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
