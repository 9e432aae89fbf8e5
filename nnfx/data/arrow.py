"""Tables in the formats of Apache Arrow: Parquet, and Arrow's own files and streams, also known as Feather."""

import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nnfx import checks
from nnfx.data.reading import Reader, Source, most_unpacked, reading

__all__ = ["read_arrow", "read_parquet"]

_MOST_ROWS = 1 << 16


def read_parquet(source: Source, *, columns: Sequence[str] | None = None, limit: int | None = None) -> Any:
    """Read a table from a Parquet file.

    Args:
        source: the path or the bytes of the file.
        columns: the names of the columns to read; all by default.
        limit: the maximum size of the table in bytes; by default, 100 times the size of the file, and at least 16 MiB.

    Returns:
        A pandas frame, ready for `nnfx.data.prepare`, with the column names and the index of the file. Missing values
        stay missing: NaN in columns of floats, and `<NA>` in columns of integers and booleans, which keep their
        dtypes. Text columns are returned as text, including dictionary-encoded ones.

    Raises:
        ModuleNotFoundError: if pyarrow or pandas is not installed.
        OSError: for a file that cannot be read.
        TypeError: for a limit that is not an integer, or columns given as a single string.
        ValueError: for a file that is damaged, or not of this format; tables larger than the limit; and
            columns that are missing or share a name. The error names the file.

    Example:
        >>> import pandas, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "passengers.parquet"
        >>> pandas.DataFrame({"port": ["Cobh", None], "age": [22, 38], "fare": [7.25, 71.28]}).to_parquet(path)
        >>> frame = read_parquet(path, columns=["port", "age"])
        >>> frame["age"].tolist(), frame["port"].isna().tolist()
        ([22, 38], [False, True])

    References:
        Apache Software Foundation, *Apache Parquet file format*.
    """
    with _opened(source, columns, limit) as (reader, most):
        from pyarrow import parquet

        file = parquet.ParquetFile(reader.stream)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        sizes = [group.total_byte_size for group in groups]
        _require_room(reader.name, sum(sizes), most)
        names = _chosen(reader.name, file.schema_arrow.names, columns)
        # a string may be stored once for all rows, so even a few decoded rows can take much memory
        rows = max(1, min(_MOST_ROWS, most // max([1, *sizes])))
        batches = file.iter_batches(rows, columns=None if columns is None else names)
        frame = _frame(reader.name, file.schema_arrow, batches, names, most)
        wanted = sum(group.num_rows for group in groups)
        if len(frame) != wanted:  # pyarrow does not raise an error if a column ends early
            raise ValueError(f"{reader.name}: expected {wanted} rows in each column, got {len(frame)}")
        return frame


def read_arrow(source: Source, *, columns: Sequence[str] | None = None, limit: int | None = None) -> Any:
    """Read a table from a file or a stream in Arrow's own format, such as a Feather file.

    Args:
        source: the path or the bytes of the file; Feather files must be of version 2.
        columns: the names of the columns to read; all by default.
        limit: the maximum size of the table in bytes; by default, 100 times the size of the file, and at least 16 MiB.

    Returns:
        A pandas frame, as from `read_parquet`.

    Raises:
        ModuleNotFoundError, OSError, TypeError, ValueError: as for `read_parquet`.

    Example:
        >>> import pandas, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "passengers.arrow"
        >>> pandas.DataFrame({"age": [22.0, None], "name": ["Owen", "Jane"]}).to_feather(path)
        >>> read_arrow(path).to_dict("list")
        {'age': [22.0, nan], 'name': ['Owen', 'Jane']}

    References:
        Apache Software Foundation, *Arrow columnar format*, section on serialization and interprocess communication.
    """
    with _opened(source, columns, limit) as (reader, most):
        from pyarrow import ipc, py_buffer

        content = memoryview(reader.take(reader.size, "a table"))
        content = content[len(_MAGIC) :] if content[: len(_MAGIC)] == _MAGIC else content  # a file contains a stream
        size = 0
        for message in ipc.MessageReader.open_stream(py_buffer(content)):
            size += _unpacked(bytes(message.metadata), message.body or b"")
            _require_room(reader.name, size, most)
        batches = ipc.open_stream(py_buffer(content))
        names = _chosen(reader.name, batches.schema.names, columns)
        return _frame(reader.name, batches.schema, batches, names, most)


_MAGIC = b"ARROW1\0\0"


@contextlib.contextmanager
def _opened(source: Source, columns: Sequence[str] | None, limit: int | None) -> Iterator[tuple[Reader, int]]:
    """Open a file, name it in pyarrow's errors, and yield its reader and the maximum size of its table in bytes."""
    if limit is not None:
        checks.positive_integer("limit", limit)
    if isinstance(columns, str):
        raise TypeError(f"columns: expected a sequence of names, got {columns!r}")
    try:
        import pandas as _  # noqa: F401
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name}: required to read Arrow tables, but not installed: pip install 'nnfx[arrow]'"
        ) from error
    with reading(source) as reader:
        if reader.is_packed:
            raise ValueError(f"{reader.name}: expected an Arrow or Parquet table, got a gzip file")
        try:
            yield reader, limit or most_unpacked(reader.size)
        except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError, struct.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # a system error; pyarrow's have no errno
                raise
            raise ValueError(f"{reader.name}: expected a complete table, got a damaged file: {error}") from error


def _chosen(file: str, names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"{file}: expected a unique name for each column, got {twice!r} twice")
    if columns is not None and not columns:
        raise ValueError("columns: expected at least one name, or None for all columns, got an empty sequence")
    for name in columns or ():
        checks.choice("columns", name, names)
    return list(names if columns is None else columns)


def _require_room(file: str, size: int, most: int) -> None:
    if size > most:
        raise ValueError(
            f"{file}: expected a table of at most {most} bytes, got more; if that is intended, pass limit="
        )


def _frame(file: str, schema: Any, batches: Iterable[Any], names: list[str], most: int) -> Any:
    """Collect batches of rows up to a limit on their size, and return them as a frame."""
    import pandas
    import pyarrow

    kinds = {name: _plain(schema.field(name).type) for name in names}
    wanted = pyarrow.schema(list(kinds.items()), schema.metadata)
    parts, size = [], 0
    for batch in batches:
        columns = [batch.column(name) for name in names]
        for column in columns:
            column.validate(full=True)
            _require_room(file, size + _decoded_size(column), most)
        part = pyarrow.table([column.cast(kinds[name]) for name, column in zip(names, columns, strict=True)], wanted)
        size += part.nbytes
        _require_room(file, size, most)
        parts.append(part)
    table = pyarrow.concat_tables(parts) if parts else wanted.empty_table()
    nullable = {
        getattr(pyarrow, kind.lower())(): getattr(pandas, f"{kind}Dtype")()
        for kind in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    } | {pyarrow.bool_(): pandas.BooleanDtype()}
    try:
        frame = table.to_pandas()
        for name, column in zip(table.column_names, table.columns, strict=True):
            if column.null_count and column.type in nullable and name in frame:
                frame[name] = column.to_pandas(types_mapper=nullable.get).array  # pandas would convert it to floats
    except Exception as error:  # the pandas metadata may be damaged in any way
        raise ValueError(f"{file}: expected a table that pandas can represent, got {error!r}") from error
    return frame


def _plain(kind: Any) -> Any:
    """Return the type of a column's values; for a dictionary-encoded column, the type of the dictionary's entries."""
    return kind.value_type if hasattr(kind, "value_type") and hasattr(kind, "index_type") else kind


def _decoded_size(column: Any) -> int:
    """Return the size in bytes of a dictionary-encoded text column once decoded; 0 for other columns."""
    import pyarrow
    from pyarrow import compute

    types = pyarrow.types
    kind = _plain(column.type)
    if kind == column.type or not (types.is_string(kind) or types.is_large_string(kind)):
        return 0
    return compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0


_RECORDS, _DICTIONARY = 3, 2


def _unpacked(about: bytes, body: Any) -> int:
    """Return the unpacked size in bytes of the buffers of a message; a compressed buffer begins with its unpacked size.

    The metadata of a message is a FlatBuffer: tables whose fields are found through a list of their offsets.
    """

    def number(layout: str, at: int) -> int:
        return int(struct.unpack_from(layout, about, at)[0])

    def field(table: int, which: int) -> int:
        places = table - number("<i", table)
        place = number("<H", places + 4 + 2 * which) if 4 + 2 * which < number("<H", places) else 0
        return table + place if place else 0

    def inner(table: int, which: int) -> int:
        at = field(table, which)
        return at + number("<I", at) if at else 0

    message = number("<I", 0)
    kind = field(message, 1)
    header = inner(message, 2)
    if not kind or number("<B", kind) not in (_RECORDS, _DICTIONARY) or not header:
        return 0
    batch = inner(header, 1) if number("<B", kind) == _DICTIONARY else header
    buffers = inner(batch, 2) if batch else 0
    if not buffers:
        return 0
    size = 0
    for each in range(number("<I", buffers)):
        start, length = struct.unpack_from("<qq", about, buffers + 4 + 16 * each)
        is_packed = field(batch, 3) and length >= 8
        size += max(length, struct.unpack_from("<q", body, start)[0] if is_packed else length)
    return size
