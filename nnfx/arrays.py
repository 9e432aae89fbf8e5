"""Conversion of user data to NumPy arrays: lists, frames, tensors and masked arrays, without loss of precision.

Every function that takes user data converts it here first. JAX narrows 64-bit numbers on conversion, and integers
above 2³¹ silently wrap around; values are therefore inspected on the host, in their original precision, and
`to_device` rejects those that the device cannot hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import checks

__all__ = [
    "as_array",
    "as_labels",
    "as_numpy",
    "check_range",
    "check_spread",
    "column_names",
    "is_exact",
    "narrowed",
    "promoted",
    "to_device",
]

WORST_ROUNDING = 1e-3
"""The largest error, in standard deviations, that rounding to the dtype of the device may cause."""


def as_numpy(name: str, value: Any, *, masked_as_nan: bool = False) -> Any:
    """Return a value as an array of real numbers or booleans on the host, in its original precision.

    Traced arrays pass through: their values are not known yet.

    Args:
        name: the name of the argument, for error messages.
        value: an array, a list, a pandas or polars frame or Series, a PyTorch tensor, or a NumPy masked array.
        masked_as_nan: whether to return masked and missing values as NaN, in a float array, instead of raising an
            error.

    Raises:
        TypeError: for text, objects, complex numbers and sparse matrices.
        ValueError: for ragged lists, and for masked or missing values unless `masked_as_nan` is true.

    Example:
        >>> as_numpy("inputs", np.ma.masked_values([1.0, 1e20], 1e20), masked_as_nan=True)
        array([ 1., nan])
        >>> as_numpy("targets", np.ma.masked_values([1.0, 1e20], 1e20))
        Traceback (most recent call last):
          ...
        ValueError: targets: expected no masked or missing values, got 1
    """
    if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name}: expected an array of real numbers, got {checks.describe(value)}")
    array, missing = _converted(name, value)
    if missing is not None and missing.any():
        if not masked_as_nan:
            raise ValueError(f"{name}: expected no masked or missing values, got {int(missing.sum())}")
        array = np.where(missing, np.nan, array.astype(np.result_type(array.dtype, np.float16)))
    is_polars = hasattr(value, "null_count")  # NumPy would convert dates in polars frames to numbers
    text = _columns_of_text(value) if is_polars or array.dtype.kind in "OSUMm" else []
    if text:
        raise TypeError(f"{name}: expected numbers in every column, got {text[0][1]} in column {text[0][0]!r}")
    checks.numeric(name, array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # long double, which JAX does not support
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _columns_of_text(value: Any) -> list[tuple[str, Any]]:
    """Return the names and dtypes of a frame's columns that do not contain numbers."""
    names = column_names(value)
    if names is None:
        return []
    kinds = [(name, dtype) for name, dtype in zip(names, value.dtypes, strict=True)]
    return [(name, dtype) for name, dtype in kinds if not (_is_number(dtype) or _is_polars_number(dtype))]


def _is_polars_number(dtype: Any) -> bool:
    return bool(hasattr(dtype, "is_numeric") and (dtype.is_numeric() or str(dtype) == "Boolean"))


def _converted(name: str, value: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Convert a value to an array, and return it with the mask of its missing values, or None if there are none."""
    if isinstance(value, np.ma.MaskedArray):
        return value.data, np.ma.getmaskarray(value)
    if hasattr(value, "tocsr"):
        raise TypeError(
            f"{name}: expected a dense array, got a sparse {type(value).__name__} {list(value.shape)};"
            " convert it with its toarray() method"
        )
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a PyTorch tensor
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if hasattr(value, "isna") and hasattr(value, "to_numpy"):  # pandas, whose nullable columns NumPy reads as objects
        missing = np.asarray(value.isna())
        if missing.any():
            kinds = {getattr(dtype, "kind", "O") for dtype in _dtypes(value)}
            if kinds <= set("iufb"):
                value = value.astype(object).where(~missing, False) if "b" in kinds else value.fillna(0)
            return _numbers(name, value), missing
        return _numbers(name, value), None
    if hasattr(value, "null_count") and hasattr(value, "to_numpy"):  # polars, which has null besides NaN
        columns = value.get_columns() if hasattr(value, "get_columns") else [value]
        if any(column.null_count() for column in columns):
            missing = np.stack([column.is_null().to_numpy() for column in columns], -1)
            known = _numbers(name, value.fill_null(strategy="zero"))
            return known, missing.reshape(known.shape)
        return _numbers(name, value), None
    return _numbers(name, value), None


def _dtypes(frame: Any) -> list[Any]:
    return [frame.dtype] if frame.ndim == 1 else list(frame.dtypes)


def _is_number(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "iufb"


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"{checks.describe(value)}: {error}"
        if "inhomogeneous" in str(error):
            problem = "rows of different lengths; pad them, and pass nnfx.models.Sequences(values, lengths)"
        raise type(error)(f"{name}: expected an array of real numbers, got {problem}") from error
    if array.dtype == object and array.size:  # such as nullable columns, or frames of several dtypes
        kinds = {type(item) for item in array.ravel().tolist()}
        if all(issubclass(kind, bool | np.bool_) for kind in kinds):
            return array.astype(bool)
        if all(issubclass(kind, int | float | bool | np.number | np.bool_) for kind in kinds):
            whole = all(issubclass(kind, int | bool | np.integer | np.bool_) for kind in kinds)
            try:
                return array.astype(np.int64 if whole else np.float64)
            except OverflowError as error:
                raise ValueError(f"{name}: expected integers that fit into 64 bits, got larger ones") from error
    return array


def column_names(value: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a pandas or polars frame; None for anything else.

    >>> column_names(np.zeros((2, 3))) is None
    True
    """
    if getattr(value, "ndim", 2) != 2 or not hasattr(value, "columns") or not hasattr(value, "to_numpy"):
        return None
    return tuple(str(name) for name in value.columns)


def check_range(name: str, array: Any, dtype: Any = None) -> None:
    """Require that an array fits the range of a dtype, by default the one that JAX converts it to.

    Args:
        name: the name of the argument, for error messages.
        array: an array on the host; NaN and infinities are ignored.
        dtype: the dtype that the array will be converted to.

    Raises:
        ValueError: for numbers too large for the dtype, and for arrays whose largest number would underflow in it.

    Example:
        >>> check_range("targets", np.array([1.0, 1e39]))
        Traceback (most recent call last):
          ...
        ValueError: targets: expected numbers that float32 can hold, got 1e+39; divide them by their scale first
    """
    wanted = jax.dtypes.canonicalize_dtype(array.dtype if dtype is None else dtype)
    if not jnp.issubdtype(wanted, np.floating) or array.size == 0 or is_exact(array.dtype, wanted):
        return
    limits = jnp.finfo(wanted)
    size = np.abs(array.astype(np.float64))
    largest = float(np.max(size, initial=0.0, where=np.isfinite(size)))
    if largest > float(limits.max) or 0 < largest < float(limits.tiny):
        raise ValueError(
            f"{name}: expected numbers that {wanted} can hold, got {largest:g}; divide them by their scale first"
        )


def check_spread(name: str, array: Any, axis: int | tuple[int, ...] = 0, dtype: Any = None) -> None:
    """Require that numbers far from zero stay distinct in a dtype, by default the one that JAX converts them to.

    Rounding may change a number by at most a thousandth of the standard deviation along the axis. For example, dates in
    seconds since 1970 are rounded to multiples of 128 in float32, so the minutes of a day are no longer distinct.

    Args:
        name: the name of the argument, for error messages.
        array: finite numbers on the host; JAX arrays of floats have already been rounded, and are not checked.
        axis: the axis of the rows.
        dtype: the dtype that the array will be converted to.

    Raises:
        ValueError: for numbers that rounding would change by more than a thousandth of the standard deviation.

    Example:
        >>> check_spread("targets", 1.7e9 + 60 * np.arange(200))
        Traceback (most recent call last):
          ...
        ValueError: targets: expected numbers that float32 can tell apart, got 1.70001e+09 ± 3464.06; subtract an offset
    """
    if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct) or array.size == 0 or array.dtype == np.bool_:
        return
    wanted = _float_for(array.dtype) if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    if is_exact(array.dtype, wanted):
        return
    exact = array.astype(np.float64)
    largest, mean, spread = np.abs(exact).max(axis), exact.mean(axis), exact.std(axis)
    is_lost = (largest * 0.5 * float(jnp.finfo(wanted).eps) > WORST_ROUNDING * spread) & (spread > 1e-12 * largest)
    if jnp.issubdtype(array.dtype, np.integer):
        is_lost &= largest > 2.0 ** (jnp.finfo(wanted).nmant + 1)  # every whole number up to this one is exact
    if is_lost.any():
        first = np.unravel_index(int(is_lost.argmax()), is_lost.shape)
        raise ValueError(
            f"{name}: expected numbers that {wanted} can tell apart, got {mean[first]:g} ± {spread[first]:g};"
            " subtract an offset"
        )


def _float_for(dtype: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(dtype if jnp.issubdtype(dtype, np.floating) else float)


def is_exact(dtype: Any, wanted: Any) -> bool:
    """Return whether every number of a dtype can be represented exactly in a floating-point dtype.

    >>> is_exact(np.dtype(np.int32), np.dtype(np.float32)), is_exact(np.dtype(np.uint8), np.dtype(np.float32))
    (False, True)
    """
    if jnp.issubdtype(dtype, np.floating):
        return bool(jnp.finfo(dtype).bits <= jnp.finfo(wanted).bits)
    return bool(np.can_cast(dtype, np.float32))  # true for integers of up to 16 bits


def to_device(name: str, array: Any, dtype: Any = None) -> Any:
    """Return an array on the default device, in its own dtype or in `dtype`, changing values only by rounding.

    Args:
        name: the name of the argument, for error messages.
        array: an array on the host, as returned by `as_numpy`; traced arrays and JAX arrays pass through.
        dtype: the dtype to convert to; by default, the one that JAX uses for the array.

    Raises:
        ValueError: for integers that would wrap around and floats that would become infinite in that dtype.

    Example:
        >>> to_device("targets", np.array([1, 2]))
        Array([1, 2], dtype=int32)
        >>> to_device("targets", np.array([2**40]))
        Traceback (most recent call last):
          ...
        ValueError: targets: expected integers that int32 can hold, got 1099511627776
    """
    if isinstance(array, jax.core.Tracer | jax.Array):
        return array if dtype is None else array.astype(dtype)
    return jax.device_put(narrowed(name, array, dtype))  # unlike `jnp.asarray`, this compiles no program for each shape


def narrowed(name: str, array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Return an array on the host in the dtype that JAX uses for it, or for `dtype`; see `to_device`.

    Raises:
        ValueError: for integers that would wrap around and floats that would become infinite in that dtype.
    """
    wanted = jax.dtypes.canonicalize_dtype(array.dtype if dtype is None else dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(wanted)
    if jnp.issubdtype(wanted, np.integer) and array.size and not (converted == array).all():
        kind = "integers" if jnp.issubdtype(array.dtype, np.integer) else "whole numbers"
        raise ValueError(f"{name}: expected {kind} that {wanted} can hold, got {array[converted != array].flat[0]}")
    if jnp.issubdtype(wanted, np.floating):
        lost = np.isinf(converted) & np.isfinite(array)
        if lost.any():
            raise ValueError(f"{name}: expected numbers that {wanted} can hold, got {array[lost].flat[0]:g}")
    return converted


def as_array(name: str, value: Any, *, floats: bool = False) -> Any:
    """Return user data as an array on the device; traced arrays and JAX arrays pass through.

    Args:
        name: the name of the argument, for error messages.
        value: anything that `as_numpy` accepts.
        floats: whether to convert booleans and integers to floats of the default dtype, so that nothing is truncated
            and no unsigned difference wraps around.

    Raises:
        TypeError: for text, objects, complex numbers and sparse matrices.
        ValueError: for ragged lists, masked or missing values, and numbers that the device cannot hold.

    Example:
        >>> as_array("labels", [0, 1])
        Array([0, 1], dtype=int32)
        >>> as_array("targets", np.array([2**40]), floats=True)
        Array([1.0995116e+12], dtype=float32)
    """
    if not isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        value = as_numpy(name, value)
        value = to_device(name, value.astype(np.float64) if floats and value.dtype.kind in "iub" else value)
    checks.numeric(name, value)
    if floats and not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jax.dtypes.canonicalize_dtype(float))
    return value


def as_labels(name: str, value: Any) -> Any:
    """Return labels as an array on the device, as `as_array` does, with integers of at least 32 bits.

    JAX converts the number of classes to the dtype of the labels that it is compared with, so that 256 would become 0
    for bytes.

    Example:
        >>> as_labels("labels", np.array([0, 255], np.uint8))
        Array([  0, 255], dtype=int32)
    """
    labels = as_array(name, value)
    is_narrow = jnp.issubdtype(labels.dtype, np.integer) and jnp.iinfo(labels.dtype).bits < 32
    return labels.astype(jnp.int32) if is_narrow else labels


def promoted(*values: Any) -> list[Any]:
    """Return JAX arrays in one common dtype, according to JAX's promotion rules.

    This lets a model take inputs whose dtype differs from the dtype of its parameters: half-precision inputs are
    converted to the parameters' dtype, and integers become floats.

    Example:
        >>> [value.dtype.name for value in promoted(jnp.ones(2, jnp.float16), jnp.ones(2, jnp.float32))]
        ['float32', 'float32']
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*values)
    return [jnp.asarray(value).astype(dtype) for value in values]
