"""Time series for classification, in the `.ts` format of the UCR and UEA archives."""

from typing import NamedTuple, TextIO

import numpy as np

from nnfx import checks
from nnfx.data.gaps import continued
from nnfx.data.reading import Source, reading_text
from nnfx.data.series_files import Missing
from nnfx.data.tables import marked, tags, values_of
from nnfx.types import Sequences

__all__ = ["LabelledSeries", "read_ts"]


class LabelledSeries(NamedTuple):
    """Labelled time series, on the host.

    Attributes:
        inputs: float64 `(rows, time, channels)`, in time order; for series of unequal length, `Sequences` of
            such values, padded with zeros.
        targets: int32 `(rows,)`, the positions of the labels in `classes`; float64 if the file has numbers as targets;
            None for series without labels.
        classes: the names of the classes, in the order in which the file declares them; empty if there are none.
    """

    inputs: np.ndarray | Sequences
    targets: np.ndarray | None
    classes: tuple[str, ...]


def read_ts(source: Source, *, encoding: str = "utf-8", missing: Missing = "error") -> LabelledSeries:
    r"""Read a file of the UCR and UEA archives: one labelled example per line, of one or more channels.

    The lines of the header begin with `@`. After `@data`, each line contains the channels of an example, separated by
    colons, and then its label: a class declared by `@classLabel true`, or a number if `@targetLabel true` is declared.

    Args:
        source: the path or the bytes of the file, plain or compressed with gzip.
        encoding: the encoding of the text.
        missing: what to do about missing values, written as `?` or `NaN`: raise an `"error"`; use NaN
            (`"nan"`); or repeat the previous value (`"previous"`).

    Returns:
        The examples in the order of the file.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file that is empty, damaged, too large once unpacked, or not text; a header that cannot be
            read, or that declares times for each value; examples whose number of channels differs from the first
            example's, whose channels differ in length, or that differ in length although the header declares equal
            lengths; labels that were not declared; values that are not finite numbers within the range of float32; and
            series whose lengths differ so much that padding all to the length of the longest would result in more than
            2²⁰ values, and more than 100 times as many as in the file. The error names the file and the line.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "motions.ts"
        >>> header = "@problemName Motions\n@univariate false\n@equalLength false\n@classLabel true walk rest\n@data\n"
        >>> _ = path.write_text(header + "1,2,3:4,5,6:rest\n7,8:9,10:walk\n")
        >>> found = read_ts(path)
        >>> found.inputs.values.shape, found.inputs.lengths.tolist(), found.targets.tolist(), found.classes
        ((2, 3, 2), [3, 2], [1, 0], ('walk', 'rest'))

    References:
        Bagnall et al., *The UEA multivariate time series classification archive, 2018*, arXiv:1811.00075.
        Middlehurst et al., *aeon: a Python toolkit for learning from time series*, JMLR 2024, which also reads this
        format.
    """
    checks.choice("missing", missing, ("error", "nan", "previous"))
    with reading_text(source, encoding) as (file, text):
        header, rows, labels = _read(file, text, missing)
    if not rows:
        raise ValueError(f"{file}: expected at least one example, got none")
    targets: np.ndarray | None = None if header.dtype is None else np.array(labels, header.dtype)
    return LabelledSeries(_inputs(file, rows), targets, header.classes)


class _Header(NamedTuple):
    """The declarations in the header of a file.

    Attributes:
        classes: the names of the classes.
        dtype: the dtype of the targets; None if there are none.
        is_equal: whether all examples should have the same length.
    """

    classes: tuple[str, ...]
    dtype: type | None
    is_equal: bool


def _header(file: str, found: list[tuple[int, list[str]]]) -> _Header:
    classes: list[str] = []
    given: dict[str, bool] = {}
    for line, (tag, *words) in found:
        place = f"{file}: line {line}"
        if tag in ("@classlabel", "@targetlabel", "@equallength", "@timestamps"):
            if not words or words[0].lower() not in ("true", "false"):
                raise ValueError(f"{place}: expected {tag} true or {tag} false, got {' '.join(words)!r}")
            given[tag] = words[0].lower() == "true"
        if tag == "@classlabel" and given[tag]:
            classes = words[1:]
            if not classes or len(set(classes)) < len(classes):
                raise ValueError(f"{place}: expected @classLabel true followed by distinct class labels, got {words}")
        if tag == "@timestamps" and given[tag]:
            raise ValueError(f"{place}: expected values without times, got @timeStamps true")
    if given.get("@classlabel") and given.get("@targetlabel"):
        raise ValueError(f"{file}: expected @classLabel true or @targetLabel true, got both")
    if "@classlabel" not in given and "@targetlabel" not in given:
        raise ValueError(f"{file}: expected @classLabel or @targetLabel in the header, got neither")
    dtype = np.int32 if classes else float if given.get("@targetlabel") else None
    return _Header(tuple(classes), dtype, given.get("@equallength", False))


def _read(file: str, text: TextIO, missing: Missing) -> tuple[_Header, list[np.ndarray], list[float]]:
    """Return the header, the values `(time, channels)` of each example, and its label if it has one."""
    lines = marked(text)
    header = _header(file, tags(file, lines))
    position = {name: number for number, name in enumerate(header.classes)}
    rows: list[np.ndarray] = []
    labels: list[float] = []
    for line, content in lines:
        place = f"{file}: line {line}"
        channels = content.split(":")
        if header.dtype is not None:
            labels.append(_label(place, channels.pop().strip(), position))
        columns = [
            values_of(f"{place}, channel {number}", channel.split(","), missing=missing != "error")
            for number, channel in enumerate(channels, start=1)
        ]
        if len({len(column) for column in columns}) != 1 or (rows and len(columns) != rows[0].shape[1]):
            wanted = f"{rows[0].shape[1]} channels" if rows else "channels"
            lengths = ", ".join(str(len(column)) for column in columns[:8]) or "none"
            raise ValueError(f"{place}: expected {wanted} of the same length, got {len(columns)} of lengths {lengths}")
        values = np.stack(columns, axis=-1)
        if header.is_equal and rows and len(values) != len(rows[0]):
            raise ValueError(f"{place}: expected {len(rows[0])} values in each channel, got {len(values)}")
        rows.append(continued(place, values) if missing == "previous" else values)
    return header, rows, labels


def _label(place: str, field: str, position: dict[str, int]) -> float:
    """Return the position of a class, or a number if there are no classes."""
    if position:
        if field not in position:
            known = ", ".join(list(position)[:8]) + (", …" if len(position) > 8 else "")
            raise ValueError(f"{place}: expected one of the labels {known}, got {field!r}")
        return position[field]
    number = float(values_of(f"{place}, target", [field], missing=True)[0])
    if np.isnan(number):
        raise ValueError(f"{place}: expected a number as the target, got {field!r}")
    return number


_PADDING = 100
_SMALL = 1 << 20


def _inputs(file: str, rows: list[np.ndarray]) -> np.ndarray | Sequences:
    """Return examples as one array, padded with zeros if they differ in length."""
    lengths = np.array([len(row) for row in rows], np.int32)
    longest = int(lengths.max())
    padded, given = len(rows) * longest * rows[0].shape[1], sum(row.size for row in rows)
    if padded > max(_SMALL, _PADDING * given):
        raise ValueError(
            f"{file}: expected at most {_PADDING} times as many values when all series are padded to the length of the"
            f" longest, got {padded} for {given} values; remove or shorten the longest series"
        )
    values = np.zeros((len(rows), longest, rows[0].shape[1]))
    for row, place in zip(rows, values, strict=True):
        place[: len(row)] = row
    return values if lengths.min() == longest else Sequences(values, lengths)
