"""From raw arrays and frames to data ready for training: checked, split, encoded, filled and standardised."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnfx import arrays, checks
from nnfx.data import encode, measure, sequences, splits
from nnfx.data.frames import repeated
from nnfx.data.given import Given, read
from nnfx.data.preprocess import Preprocess
from nnfx.data.targets import class_factors, standardized
from nnfx.types import Array, Batch, at_least_float32

__all__ = ["Data", "Missing", "Preprocess", "Report", "prepare"]

Missing = Literal["error", "drop", "median"]
MissingTargets = Literal["error", "mask"]


class Report(NamedTuple):
    """The numbers of rows dropped, filled and held out.

    Attributes:
        rows: the number of input rows.
        dropped: the number of rows left out because of a missing value.
        filled: the number of missing values filled, by feature.
        train: the number of training rows.
        valid: the number of held-out rows.
    """

    rows: int
    dropped: int
    filled: dict[str, int]
    train: int
    valid: int

    def __str__(self) -> str:
        """Return the report on one line."""
        filled = ", ".join(f"{count} of {name}" for name, count in self.filled.items()) or "none"
        return (
            f"{self.rows} rows: {self.train} to train on, {self.valid} held out,"
            f" {self.dropped} dropped for missing values; values filled: {filled}"
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["train", "valid", "preprocess"],
    meta_fields=["features", "report"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Data ready for training, on the device.

    Attributes:
        train: the training split.
        valid: the held-out split, or None.
        preprocess: the map from raw features to the features of `train` and `valid`.
        features: the names of the features of `train`, including categories (`port=Cherbourg`) and indicators
            (`age missing`).
        report: the numbers of rows dropped, filled and held out.
    """

    train: Batch
    valid: Batch | None
    preprocess: Preprocess
    features: tuple[str, ...] = ()
    report: Report | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label; `()` if the targets were numbers."""
        return self.preprocess.classes

    def __repr__(self) -> str:
        """Describe the data in a few lines.

        >>> print(prepare(np.ones((4, 2)), np.zeros(4), features=("fare", "age"), standardize=False))
        Data: 4 rows to train on, none held out
          inputs: float32[4,2] (fare, age)
          targets: float32[4]
        """
        sizes = [batch.weights.shape[0] if batch is not None else "none" for batch in (self.train, self.valid)]
        inputs, targets = (", ".join(map(checks.describe, jax.tree.leaves(each))) for each in self.train[:2])
        lines = [
            f"Data: {sizes[0]} rows to train on, {sizes[1]} held out",
            f"  inputs: {inputs}{_listed(self.features)}",
            f"  targets: {targets}{_listed(self.classes)}",
        ]
        if self.report is not None and (self.report.dropped or self.report.filled):
            lines.append(f"  {self.report}")
        return "\n".join(lines)


_SHOWN = 8
"""The largest number of feature or class names to show."""


def _listed(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)})" if names else ""


def check_type(data: Any) -> None:
    """Raise an error for data that are not a `Data`, as returned by `prepare`."""
    if not isinstance(data, Data):
        hint = "; pass the inputs, targets and weights of a Batch to it" if isinstance(data, Batch) else ""
        got = type(data).__name__
        raise TypeError(f"data: expected nnfx.data.Data, as returned by nnfx.data.prepare, got {got}{hint}")


def prepare(
    inputs: Any,
    targets: Any,
    *,
    key: Array | None = None,
    valid_fraction: float = 0.0,
    stratify: bool = False,
    split: Any = None,
    groups: Any = None,
    valid: Any = None,
    missing: Missing = "error",
    missing_targets: MissingTargets = "error",
    unseen: encode.Unseen = "error",
    standardize: bool | None = None,
    standardize_targets: bool = False,
    weights: Any = None,
    class_weight: str | Mapping[Any, float] | None = None,
    features: Sequence[str] | None = None,
    keep_integers: bool | None = None,
) -> Data:
    """Prepare data for training: check, split, encode, fill missing values, standardise, and move to the device.

    Categories, medians, means and standard deviations are computed in float64 from the training rows of positive
    weight only, and kept in `data.preprocess`, so that predictions take raw features. A frame's columns of text or
    categories become one 0/1 column per category, named `column=category`, and its columns of booleans become one 0/1
    column each; neither is standardised, as is usual with scikit-learn's `ColumnTransformer`.

    Rows are held out in at most one way: as a fraction drawn at random, by `split`, or by `valid`.

    Args:
        inputs: `(rows, ...)`, numbers or booleans, as an array, a list, a tensor, or a pandas or polars frame or
            Series, which may contain categories as well; integers, booleans and half precision become the default
            float. Masked values of a NumPy array and nulls of a frame count as missing, like NaN. Or
            `nnfx.models.Sequences`: of numbers `(rows, time, features)`, where each feature is standardised over all
            real steps; or of integer tokens `(rows, time)`. Values beyond the lengths are ignored and become zero.
        targets: `(rows, ...)`, numbers or booleans; or `(rows,)`, text or categories, which become integers; the
            class names are kept in `data.classes`.
        key: a typed key that determines which rows are held out.
        valid_fraction: the fraction of rows to hold out, at least 0 and below 1, to the nearest whole number of rows.
        stratify: whether to hold out `valid_fraction` of each class of the targets; requires scikit-learn.
        split: the rows of both splits: a pair of arrays of positions, `(train_rows, valid_rows)`, or a scikit-learn
            splitter, such as `GroupKFold()`, whose first split is used. Rows in neither array are left out.
        groups: `(rows,)`, the group of each row, for splitters that need it.
        valid: the rows to hold out, as `(inputs, targets)` or `(inputs, targets, weights)`.
        missing: what to do about missing inputs: raise an `"error"`; `"drop"` the row; or, for inputs
            `(rows, features)`, fill in the training `"median"` and append an indicator column for each feature with
            missing values in the training split. With `"median"`, missing categories become a separate category,
            `column missing`, if any occur in the training split, and otherwise 0 in all columns.
        missing_targets: what to do about missing targets: raise an `"error"`; or `"mask"` them, which leaves them
            out of the loss, the metrics and the statistics. If rows lack some of their targets, every target gets its
            own weight, and each known target counts once: the loss is `Σ wᵢ mᵢⱼ ℓᵢⱼ / Σ wᵢ mᵢⱼ` over rows i and
            targets j, with `mᵢⱼ` 1 or 0, and ℓ a loss that is a mean over outputs, such as
            `nnfx.losses.mean_square_error`. Integer targets with a mask stay integers.
        unseen: what to do about categories that do not occur in the training rows, here and in predictions: raise an
            `"error"`, or encode them as `"other"`, 0 in all columns, since a separate column would have untrained
            weights.
        standardize: whether to standardise every feature to mean 0 and standard deviation 1; by default, yes unless
            integers are kept.
        standardize_targets: whether to standardise targets that are floats. Losses and `run.apply` then use
            standardised units, and `run.predict` the original ones. Targets at every step of `Sequences` are
            standardised over all real steps, by one mean and one deviation for each output.
        weights: `(rows,)`, non-negative, and not all zero in either split; 1 by default. Or with more of the leading
            axes of the targets, such as `(rows, time)` for a weight of each step. The statistics are not weighted, but
            leave out rows of weight zero.
        class_weight: factors for the weights: a mapping from class (name or integer) to factor, 1 for other classes;
            or `"balanced"`, which gives all classes the same total weight in the training split.
        features: the names of the features; by default, the column names of a frame. When predicting from a frame,
            its columns are selected by these names.
        keep_integers: whether integers, such as tokens for an embedding, stay integers and go to the model as int32;
            all other numbers become floats. None keeps integer `Sequences`, and integers `(rows, n)` that are
            neither standardised (`standardize=False`) nor filled.

    Returns:
        The training split, the held-out split, and the map from raw to preprocessed features.

    Raises:
        ModuleNotFoundError: for `stratify` if scikit-learn is not installed.
        TypeError: for arrays that do not contain real numbers, columns that contain neither numbers nor booleans nor
            text, or a key that is not typed.
        ValueError: for empty data, lengths that differ, pandas objects with the same index in another order, infinite
            or (see `missing`) missing features, unseen categories (see `unseen`), targets that are not finite,
            negative weights, a fraction or a split that leaves either split empty, feature names that are not unique,
            and numbers that the device cannot represent or distinguish; the error says what to do.

    Example:
        >>> data = prepare(np.array([[1.0], [3.0], [5.0]]), ["no", "yes", "yes"])
        >>> data.train.inputs.ravel(), data.train.targets, data.classes
        (Array([-1.2247449,  0.       ,  1.2247449], dtype=float32), Array([0, 1, 1], dtype=int32), ('no', 'yes'))
        >>> data.preprocess(np.array([[3.0]]))
        Array([[0.]], dtype=float32)
        >>> prepare([[17, 4], [4, 2]], [0, 1], keep_integers=True).train.inputs.dtype
        dtype('int32')
    """
    checks.choice("missing", missing, ("error", "drop", "median"))
    checks.choice("missing_targets", missing_targets, ("error", "mask"))
    checks.choice("unseen", unseen, ("error", "other"))
    for name, flag in (("standardize", standardize), ("keep_integers", keep_integers)):
        _check_flag(name, flag, "True, False or None", (bool, np.bool_, type(None)))
    for name, flag in (("stratify", stratify), ("standardize_targets", standardize_targets)):
        _check_flag(name, flag, "True or False", (bool, np.bool_))
    _check_ways(valid_fraction, stratify, split, groups, valid)
    given = read(inputs, targets, weights, valid, features, mask=missing_targets == "mask")
    if given.lengths is not None and missing == "median":
        raise ValueError("missing: expected 'error' or 'drop' for sequences, got 'median'")
    lost, names = given.lost, given.names
    kept: np.ndarray = np.ones(len(lost), bool)
    if missing == "error":
        _check_known(given, lost)
    elif missing == "drop":
        kept = np.asarray(~lost.reshape(len(lost), -1).any(1))
    train, held_out = _parts(given, kept, inputs, key, valid_fraction, stratify, split, groups)
    w = given.weights
    if class_weight is not None:
        w = w.reshape(len(w)) if w.size == len(w) else w
        w = w * class_factors(class_weight, given.targets, given.classes, w, train)
    for part, rows in (("data.train", train), ("data.valid", held_out)):
        if len(rows):
            checks.weights(f"weights of {part}", w[rows])
    measure.check_weights(w)
    measured = train[(w[train] > 0).reshape(len(train), -1).any(1)]

    encoding: encode.Encoding = ()
    counts = dict(zip(names, lost.sum(0).tolist(), strict=True)) if missing == "median" and lost.ndim == 2 else {}
    if isinstance(given.inputs, tuple):
        encoding = encode.encoding_of(given.inputs, measured)
        used = np.isin(np.arange(len(w)), np.concatenate([train, held_out])) & (w > 0).reshape(len(w), -1).any(1)
        x = encode.encoded(given.inputs, encoding, unseen=unseen, fills=missing == "median", used=used)
        names = encode.names(encoding, names)
        for name in repeated(names):
            raise ValueError(f"inputs: expected a unique name for each encoded column, got {name!r} twice")
        lost = np.isnan(x)
    else:
        x = given.inputs
    given_dtype, shape = x.dtype, x.shape[1:]
    if given.lengths is not None:
        shape = (sequences.ANY_TIME, *shape[1:])
        keep_integers = True if x.ndim == 2 else bool(keep_integers)
    is_kept = _keeps_integers(keep_integers, x, standardize, missing)
    standardize = not is_kept if standardize is None else standardize
    floats = jax.dtypes.canonicalize_dtype(x.dtype if jnp.issubdtype(x.dtype, np.floating) else float)
    precise = at_least_float32(floats)  # the precision of models, regardless of the precision of the data
    dtype = jax.dtypes.canonicalize_dtype(int) if is_kept else precise
    x = x.astype(np.float64) if standardize or missing == "median" else x
    checks.finite("inputs", np.where(lost, 0, x) if lost.any() else x)

    median = None
    indicators: tuple[int, ...] = ()
    if missing == "median":
        median, indicators = measure.medians(x, lost, measured, names)
        x = np.concatenate([np.where(lost, median, x), lost[:, indicators]], axis=1)
        names += tuple(f"{names[i]} missing" for i in indicators)
    mean, scale = np.zeros(()), np.ones(())
    table, of_table, trained = x, measured, train
    if given.lengths is not None:  # sequences, whose real steps form the rows of one table
        table, row_of_step = sequences.real_steps(x, given.lengths)
        of_table, trained = (np.flatnonzero(np.isin(row_of_step, part)) for part in (measured, train))
    measure.check_range(table, names, precise)
    if standardize:
        mean, scale = measure.moments(table, of_table)
        flags = np.flatnonzero(encode.flags(encoding)[0])
        mean[:, flags], scale[:, flags] = 0, 1
        measure.check_resolution(mean, scale, names, precise)
        if given.lengths is not None:
            mean, scale = mean[None], scale[None]  # for (rows, time, features)
    y = given.targets
    of_targets: dict[str, Any] = {}
    if standardize_targets:
        known = measure.has_weight(w, y.shape)
        by_step = given.lengths is not None and y.shape[1:2] == x.shape[1:2]
        if known is not None and not known[train].any((0, 1) if by_step else 0).all():
            raise ValueError("targets: expected at least one known training value of every output, got none of one")
        y, *statistics = standardized(y, measured, known, given.lengths if by_step else None)
        exact = at_least_float32(measure.device_dtype(given.targets.dtype, at_least=float))
        target_mean, target_scale = (jnp.asarray(each, exact) for each in statistics)
        of_targets = {"target_mean": target_mean, "target_scale": target_scale, "by_step": by_step}
    preprocess = Preprocess.of(
        median,
        mean,
        scale,
        precise,
        indicators=indicators,
        shape=shape,
        features=given.features,
        keep_integers=is_kept,
        encoding=encoding,
        unseen=unseen,
        classes=given.classes,
        **of_targets,
    )
    if standardize:
        mean, scale, _ = preprocess.exact
        x = (x - mean) / scale
        x = x if given.lengths is None else sequences.without_padding(np, x, given.lengths)
    elif not is_kept and not arrays.is_exact(given_dtype, precise):
        arrays.check_spread("inputs", table[trained], dtype=precise)
    on_host = arrays.narrowed("targets", y, measure.device_dtype(given.targets.dtype, at_least=int))

    def batch(name: str, rows: np.ndarray) -> Batch:
        values = arrays.to_device(f"inputs of {name}", x[rows], dtype)
        return Batch(
            values if given.lengths is None else sequences.on_device(values, given.lengths[rows]),
            jax.device_put(on_host[rows]),
            jax.device_put(w[rows].astype(precise)),
        )

    filled = {name: count for name, count in counts.items() if count}
    return Data(
        train=batch("data.train", train),
        valid=batch("data.valid", held_out) if len(held_out) else None,
        preprocess=preprocess,
        features=names,
        report=Report(len(kept), int((~kept).sum()), filled, len(train), len(held_out)),
    )


def _check_flag(name: str, flag: Any, wanted: str, kinds: tuple[type, ...]) -> None:
    if not isinstance(flag, kinds):  # text such as "no" is truthy
        raise TypeError(f"{name}: expected {wanted}, got {checks.describe(flag)}")


def _check_ways(valid_fraction: Any, stratify: bool, split: Any, groups: Any, valid: Any) -> None:
    """Raise an error for more than one way to hold out rows, and for options that belong to another way."""
    checks.number("valid_fraction", valid_fraction, minimum=0, below=1)
    by_fraction = valid_fraction != 0
    is_chosen = {"split": split is not None, "valid": valid is not None, "valid_fraction": by_fraction}
    ways = [way for way, chosen in is_chosen.items() if chosen]
    if len(ways) > 1:
        raise ValueError(f"{ways[0]}: expected one way to hold out rows, got {' and '.join(ways)}")
    if stratify and not by_fraction:
        raise ValueError("stratify: expected a valid_fraction above 0, got 0")
    if groups is not None and not splits.is_splitter(split):
        raise ValueError("groups: expected a splitter that uses groups, such as split=GroupKFold(), got none")


def _check_known(given: Given, lost: np.ndarray) -> None:
    """Raise an error if any input is missing."""
    if not lost.any():
        return
    count = int(lost.sum())
    row, *place = np.argwhere(lost)[0].tolist()
    name, row = ("inputs", row) if row < given.train else ("inputs of valid", row - given.train)
    hint = "missing='drop' or 'median' handles missing values"
    if isinstance(given.inputs, tuple):
        where = f"column {given.names[place[0]]!r} of row {row}"
        raise ValueError(f"{name}: expected no missing values, got {count}, the first in {where}; {hint}")
    column = f", column {given.features[place[0]]!r}" if given.features and given.inputs.ndim == 2 else ""
    raise ValueError(
        f"{name}: expected finite numbers, got {count} not finite, the first at {(row, *place)}{column}; {hint}"
    )


def _parts(
    given: Given,
    kept: np.ndarray,
    inputs: Any,
    key: Array | None,
    valid_fraction: float,
    stratify: bool,
    split: Any,
    groups: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the training rows and of the held-out rows, without dropped rows."""
    rows = np.flatnonzero(kept)
    if stratify:
        labels, is_known = given.targets, (given.weights > 0).reshape(len(given.weights), -1).any(1)
        if labels.ndim == 1 and np.count_nonzero(~is_known) > 1:  # rows without a label form a separate class
            labels = np.where(is_known, labels, labels.min() - 1)
        return splits.by_class(key, rows, valid_fraction, labels)
    if split is None and given.train == len(kept):
        return splits.at_random(key, rows, valid_fraction)
    if split is None:
        train, valid = rows[rows < given.train], rows[rows >= given.train]
    else:
        shown = inputs if given.lengths is None else given.inputs  # splitters count the rows of an array
        train, valid = (part[kept[part]] for part in splits.given(split, groups, shown, given.targets))
    for name, part in (("to train on", train), ("held out", valid)):
        if not len(part):
            raise ValueError(f"inputs: expected at least one row {name} without a missing value, got none")
    return train, valid


def _keeps_integers(asked: bool | None, x: np.ndarray, standardize: bool | None, missing: Missing) -> bool:
    """Return whether the inputs stay integers."""
    are_integers = bool(jnp.issubdtype(x.dtype, np.integer))
    if asked is None:
        return are_integers and x.ndim == 2 and standardize is False and missing != "median"
    if asked and not are_integers:
        raise ValueError(f"keep_integers: expected integer inputs without missing values, got {checks.describe(x)}")
    if asked and standardize:
        raise ValueError("keep_integers: expected standardize=False for integers that are kept, got standardize=True")
    return asked
