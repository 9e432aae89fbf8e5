"""Export to one portable file that maps raw inputs to outputs, verified against the model before it is put in place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks, memo, paths
from nnfx.arrays import WORST_ROUNDING
from nnfx.data.preprocess import Preprocess
from nnfx.saving import onnx
from nnfx.saving.program import Program, in_short, symbolic
from nnfx.saving.saved import raw_dtype
from nnfx.types import Array, Model, Variables

SUFFIXES = (".onnx", ".stablehlo")
TOLERANCE = 1e-5
"""The largest allowed deviation from the model's outputs, relative to the largest output."""
_ROWS = (3, 1)
"""The numbers of rows to verify with: two, since a program with a fixed shape would accept only one of them."""


def export(path: str | os.PathLike[str], model: Model, variables: Variables, preprocess: Preprocess) -> None:
    """Write a model with its preprocessing as one portable file; see `nnfx.Run.export`.

    Args:
        path: a file that does not exist yet; its suffix determines the format.
        model: the model.
        variables: the variables of the model.
        preprocess: the preprocessing of raw inputs.
    """
    file = paths.absolute("path", path)
    if file.suffix not in SUFFIXES:
        raise ValueError(f"path: expected a file name ending in {' or '.join(SUFFIXES)}, got {file.name}")
    if os.path.lexists(file):
        raise FileExistsError(f"{file}: expected a path that does not exist yet, got a file, folder or link")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file.parent}: expected a folder to write to, got no folder")
    if preprocess.takes_sequences:
        raise ValueError(
            "model: expected a single array as input, got a model that takes sequences; use run.save instead"
        )
    _require_resolved(preprocess)
    function = _Whole(model, variables, preprocess)
    raw = jax.ShapeDtypeStruct((1, *preprocess.shape), raw_dtype(preprocess))
    try:
        outputs = jax.eval_shape(function, raw)
    except Exception as error:  # whatever the user's model raises
        raise ValueError(
            f"model: could not be applied to preprocessed features as one array: {in_short(error)}"
        ) from error
    convert = _as_onnx if file.suffix == ".onnx" else _as_stablehlo
    content, called = convert(function, raw, outputs)
    for rows in _ROWS:
        sample = _sample(preprocess, rows)
        wanted = np.asarray(preprocess.raw_outputs(_applied(model, variables, preprocess(sample))))
        _require_close(file, called(sample), wanted)
    with paths.replace(file) as aside:
        aside.write_bytes(content)


class _Whole:
    """A model together with its preprocessing: a function from raw inputs to outputs."""

    def __init__(self, model: Model, variables: Variables, preprocess: Preprocess) -> None:
        self.model, self.variables, self.preprocess = model, variables, preprocess

    def __call__(self, inputs: Any) -> Array:
        """Preprocess raw inputs, apply the model, and convert the outputs to original units."""
        return self.preprocess.raw_outputs(self.model.apply(self.variables, self.preprocess(inputs)))


@memo.compiled()
def _applied(model: Model, variables: Variables, inputs: Any) -> Array:
    return model.apply(variables, inputs)


@memo.compiled()
def _predicted(function: _Whole, inputs: Any) -> Array:
    return function(inputs)


Called = Callable[[np.ndarray], Any]


def _as_stablehlo(function: _Whole, raw: Any, outputs: Any) -> tuple[bytes, Called]:  # noqa: ARG001
    """Return the contents of a StableHLO file, and a function that runs the program."""
    program = Program.of(_predicted.program(function), symbolic([raw], any_time=False)[0])
    content = program.content
    return content, Program.read("export", content)


def _as_onnx(function: _Whole, raw: Any, outputs: Any) -> tuple[bytes, Called]:
    """Return the contents of an ONNX file, and a function that runs the program."""
    for name, leaf in (("inputs", raw), ("outputs", outputs)):
        if leaf.dtype not in (jnp.float32, jnp.int32):
            raise ValueError(f"{name}: expected float32 or int32 for ONNX, got {leaf.dtype}")
    content = onnx.converted(function, raw)
    return content, onnx.called(content)


def _require_close(file: Path, got: Any, wanted: np.ndarray) -> None:
    got = np.asarray(got)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise ValueError(
            f"{file.name}: expected outputs {checks.describe(wanted)}, like the model's, got {checks.describe(got)}"
        )
    got, exact = got.astype(np.float64), wanted.astype(np.float64)
    is_same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    scale = max(1.0, float(np.abs(exact).max(initial=0, where=np.isfinite(exact))))
    with np.errstate(invalid="ignore"):
        difference = float(np.where(is_same, 0, np.abs(got - exact)).max(initial=0)) / scale
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{file.name}: expected the model's outputs within {TOLERANCE:g}, got a difference of {difference:.2g}"
        )


def _sample(preprocess: Preprocess, rows: int) -> np.ndarray:
    """Draw sample raw inputs in the range that the preprocessing expects."""
    random = np.random.default_rng(rows)
    shape = (rows, *preprocess.shape)
    if preprocess.keep_integers:
        return random.integers(0, 2, shape, np.int32)
    mean, scale, median = preprocess.exact
    if median is not None:
        count = median.shape[-1]
        mean, scale = (
            np.broadcast_to(each, (1, count)) if not each.ndim else each[:, :count] for each in (mean, scale)
        )
        mean = np.where(mean == 0, median, mean)
    sample: np.ndarray = mean + scale * random.normal(size=shape)
    if median is not None:
        sample[0, ::2] = np.nan
    return sample.astype(preprocess.mean.dtype)


def _require_resolved(preprocess: Preprocess) -> None:
    """Raise an error if raw inputs lose too much precision in float32, unlike in float64 on the host."""
    mean, scale, _ = preprocess.exact
    lost = np.abs(mean) * 0.5 * float(jnp.finfo(preprocess.mean.dtype).eps) > WORST_ROUNDING * scale
    if lost.any():
        place = np.unravel_index(int(lost.argmax()), lost.shape)
        is_named = mean.ndim == 2 and len(preprocess.features) == preprocess.shape[0]  # categories have several columns
        name = preprocess.features[place[-1]] if is_named else f"the feature at {tuple(map(int, place[1:]))}"
        raise ValueError(
            f"features: expected numbers that {preprocess.mean.dtype} inputs can tell apart, got"
            f" {mean[place]:g} ± {scale[place]:g} for {name}; subtract an offset before nnfx.data.prepare"
        )
