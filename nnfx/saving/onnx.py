"""ONNX export with jax2onnx, verified with onnxruntime; both are imported only when used."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from nnfx.saving.program import in_short

_INSIDE = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "jit": "jaxpr",
    "pjit": "jaxpr",
}
"""The primitives that only call an inner program, and the parameter that contains it."""
_INSTALL = "pip install 'nnfx[onnx]', then pip install --no-deps jax2onnx"


def converted(function: Callable[[Any], Any], raw: jax.ShapeDtypeStruct) -> bytes:
    """Convert a function of one array, for any number of rows, to the contents of an ONNX file.

    Args:
        function: a function from an array to an array.
        raw: the shape and dtype of the input; the first axis is the rows.

    Raises:
        ImportError: if jax2onnx or onnxruntime is missing, or does not work with this JAX version.
        ValueError: for an operation that jax2onnx does not support.
    """
    to_onnx, _ = _packages()

    def plain(inputs: Any) -> Any:
        shape = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
        return _run(jax.make_jaxpr(function)(shape), inputs)[0]

    rows = jax.ShapeDtypeStruct(("batch", *raw.shape[1:]), raw.dtype)
    try:
        with _quiet():
            model = to_onnx(plain, [rows], input_names=["inputs"], output_names=["outputs"])
            return bytes(model.SerializeToString())
    except Exception as error:  # of any type, raised by another package or by the user's model
        raise ValueError(f"model: could not be converted by jax2onnx: {in_short(error)}") from error


def called(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function stored in an ONNX file, which is run by onnxruntime on the CPU."""
    _, runtime = _packages()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {"inputs": inputs})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence jax2onnx, and allow the legacy PRNG keys that it uses internally; its results are verified."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), jax.legacy_prng_key("allow"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _packages() -> tuple[Any, Any]:
    """Import jax2onnx and onnxruntime."""
    try:
        with _quiet():
            import jax2onnx
            import onnxruntime
    except Exception as error:  # with an unsupported JAX version, jax2onnx may raise any error
        versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "jax2onnx", "onnxruntime"))
        raise ImportError(
            f"export: expected jax2onnx and onnxruntime for ONNX, got {versions}: {in_short(error)}; {_INSTALL}"
        ) from error
    return jax2onnx.to_onnx, onnxruntime


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _needed(program: Any) -> list[Any]:
    """Return the equations that the outputs depend on: a module may split keys without using them."""
    variables = {each for each in program.outvars if not isinstance(each, core.Literal)}
    found = []
    for equation in reversed(program.eqns):
        if not variables.isdisjoint(equation.outvars):
            found.append(equation)
            variables.update(each for each in equation.invars if not isinstance(each, core.Literal))
    return found[::-1]


def _run(program: Any, *inputs: Any) -> list[Any]:
    """Evaluate a traced program with the default branch for all platforms, and with wrapped programs inlined.

    Branches of `jax.lax.platform_dependent`, for example for CPUs, are meant for XLA; ONNX has neither platforms nor
    custom gradients.
    """
    consts = program.consts if isinstance(program, core.ClosedJaxpr) else ()
    program = getattr(program, "jaxpr", program)
    known = dict(zip([*program.constvars, *program.invars], [*consts, *inputs], strict=True))

    def read(variables: Sequence[Any]) -> list[Any]:
        return [each.val if isinstance(each, core.Literal) else known[each] for each in variables]

    for equation in _needed(program):
        values, name = read(equation.invars), equation.primitive.name
        if name == "platform_index":
            found = [_Platform(len(equation.params["platforms"]) - 1)]
        elif name == "cond" and isinstance(values[0], _Platform):
            found = _run(equation.params["branches"][values[0]], *values[1:])
        elif name in _INSIDE:
            found = _run(equation.params[_INSIDE[name]], *values)
        elif name == "pad":
            found = [_padded(values[0], values[1], equation.params["padding_config"])]
        else:
            given = {key: _resolved(value) for key, value in equation.params.items()}
            result = equation.primitive.bind(*values, **given)
            found = list(result) if equation.primitive.multiple_results else [result]
        known.update(zip(equation.outvars, found, strict=True))
    return read(program.outvars)


def _padded(inputs: Any, filling: Any, edges: Sequence[tuple[int, int, int]]) -> Any:
    """Pad by concatenation, and slice where padding is negative: jax2onnx 0.17 pads only a fixed number of rows."""
    if any(gap for _, _, gap in edges):
        return lax.pad(inputs, filling, edges)
    for axis, (low, high, _) in enumerate(edges):
        if low < 0 or high < 0:
            inputs = lax.slice_in_dim(inputs, max(-low, 0), inputs.shape[axis] + min(high, 0), axis=axis)
        shapes = [(*inputs.shape[:axis], max(size, 0), *inputs.shape[axis + 1 :]) for size in (low, high)]
        before, after = (lax.broadcast_in_dim(filling, shape, ()) for shape in shapes)
        inputs = lax.concatenate([part for part in (before, inputs, after) if part.shape[axis] != 0], axis)
    return inputs


class _Platform(int):
    """The index of the chosen branch: the last, which is the default if there is one."""


def _resolved(parameter: Any) -> Any:
    """Apply `_run` to the programs in a parameter, such as the body of a loop; return other parameters unchanged."""
    if isinstance(parameter, core.ClosedJaxpr):
        shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in parameter.in_avals]
        return jax.make_jaxpr(partial(_run, parameter))(*shapes)
    if isinstance(parameter, tuple) and parameter and all(isinstance(each, core.ClosedJaxpr) for each in parameter):
        return tuple(map(_resolved, parameter))
    return parameter
