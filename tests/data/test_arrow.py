import io
import re
import sys
import tracemalloc

import numpy as np
import pytest

from nnfx.data.arrow import read_arrow, read_parquet

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

TABLE = pyarrow.table(
    {
        "age": pyarrow.array([22, None, 2**60 + 1]),
        "fare": [7.25, None, 71.28],
        "port": pyarrow.array(["Cobh", None, "größer"]),
        "deck": pyarrow.array(["A", "B", "A"]).dictionary_encode(),
        "survived": pyarrow.array([True, None, False]),
        "rooms": pyarrow.array([1, 2, 3], pyarrow.uint8()),
        "alone": [True, True, False],
        "day": pyarrow.array([1, 2, 3], pyarrow.timestamp("s")),
    }
)


def as_parquet(table, **options):
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def as_stream(table, **options):
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table)
    return file.getvalue()


def as_feather(table, **options):
    file = io.BytesIO()
    feather.write_feather(table, file, **options)
    return file.getvalue()


FORMATS = [(as_parquet, read_parquet), (as_stream, read_arrow), (as_feather, read_arrow)]


@pytest.mark.parametrize(("write", "read"), FORMATS)
def test_columns_keep_their_names_their_types_and_what_is_missing(write, read, tmp_path):
    path = tmp_path / "table"
    path.write_bytes(write(TABLE))
    for source in (path, str(path), path.read_bytes()):
        frame = read(source)
        assert list(frame.columns) == TABLE.column_names
        for name, column in zip(TABLE.column_names, TABLE.columns, strict=True):
            assert listed(frame[name]) == [
                value if name != "day" else pandas.Timestamp(value) for value in column.to_pylist()
            ]
        assert frame["age"].dtype == pandas.Int64Dtype()  # no digit is lost to a float
        assert frame["survived"].dtype == pandas.BooleanDtype()
        assert [frame[name].dtype for name in ("fare", "rooms", "alone")] == [np.float64, np.uint8, bool]
        assert frame["deck"].dtype == frame["port"].dtype != "category"


@pytest.mark.parametrize(("write", "read"), FORMATS)
def test_some_columns_in_the_order_asked_for(write, read):
    frame = read(write(TABLE), columns=["rooms", "age"])
    assert list(frame.columns) == ["rooms", "age"]
    assert frame["rooms"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("write", ["to_parquet", "to_feather"])
def test_frames_come_back_as_pandas_wrote_them(write, tmp_path):
    frame = pandas.DataFrame({"a": [1.5, np.nan], "b": ["x", "y"], "c": pandas.Categorical(["u", "v"])})
    if write == "to_parquet":
        frame.index = pandas.date_range("2020-01-01", periods=2, name="day")
    getattr(frame, write)(tmp_path / "frame")
    found = (read_parquet if write == "to_parquet" else read_arrow)(tmp_path / "frame")
    pandas.testing.assert_frame_equal(found, frame.astype({"c": frame["b"].dtype}), check_freq=False, check_dtype=False)


def test_a_frame_from_a_file_is_prepared(tmp_path):
    from nnfx.data import prepare

    table = TABLE.select(["age", "fare", "rooms"]).set_column(0, "age", pyarrow.array([22, None, 38]))
    data = prepare(read_parquet(as_parquet(table)), [0, 1, 0], missing="median", standardize=False)
    assert data.features == ("age", "fare", "rooms", "age missing", "fare missing")
    np.testing.assert_allclose(data.train.inputs[:, 0], [22, 30, 38])


@pytest.mark.parametrize("compression", [None, "snappy", "zstd", "gzip"])
def test_several_groups_of_rows_and_an_empty_table(compression):
    table = pyarrow.table({"a": np.arange(1000), "b": [str(i % 7) for i in range(1000)]})
    frame = read_parquet(as_parquet(table, row_group_size=130, compression=compression))
    pandas.testing.assert_frame_equal(frame, table.to_pandas())
    options = pyarrow.ipc.IpcWriteOptions(compression=None if compression in ("snappy", "gzip") else compression)
    pandas.testing.assert_frame_equal(read_arrow(as_stream(table, options=options)), table.to_pandas())
    for write, read in FORMATS:
        assert read(write(table[:0])).shape == (0, 2)


@pytest.mark.parametrize("read", [read_parquet, read_arrow])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a complete table, got a damaged file"),
        (b"PAR1", "expected a complete table, got a damaged file"),
        (b"a,b\n1,2\n" * 9, "expected a complete table, got a damaged file"),
        (as_parquet(TABLE)[:-20], "expected a complete table, got a damaged file"),
        (as_feather(TABLE)[:400], "expected a complete table, got a damaged file"),
        (b"\x1f\x8b" + bytes(30), "expected an Arrow or Parquet table, got a gzip file"),
    ],
)
def test_what_is_no_table_is_refused_by_name(read, data, message, tmp_path):
    path = tmp_path / "table"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        read(path)


@pytest.mark.parametrize(("write", "read"), FORMATS[:2])
def test_what_cannot_be_meant_is_refused(write, read, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="columns: expected one of 'age', .* got 'fair'; did you mean 'fare'"):
        read(write(TABLE), columns=["fair"])
    with pytest.raises(TypeError, match="columns: expected a sequence of names, got 'age'"):
        read(write(TABLE), columns="age")
    with pytest.raises(ValueError, match="columns: expected at least one name, or None for all columns, got an empty"):
        read(write(TABLE), columns=[])
    with pytest.raises(ValueError, match="limit: expected a positive integer, got 0"):
        read(write(TABLE), limit=0)
    twice = pyarrow.table([[1], [2]], names=["a", "a"])
    with pytest.raises(ValueError, match="the bytes given: expected a unique name for each column, got 'a' twice"):
        read(write(twice))


def test_without_pyarrow_it_says_what_is_lacking(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pyarrow: required .*, but not installed: pip install 'nnfx\[arrow\]'"
    ):
        read_parquet(b"")


def long_text():
    return pyarrow.array(["x" * 2**17])


BOMBS = {  # 64 MiB each
    "zeros": lambda: pyarrow.array(np.zeros(2**23)),
    "text": lambda: long_text().take(np.zeros(2**9, np.int64)),
    "dictionary": lambda: pyarrow.DictionaryArray.from_arrays(np.zeros(2**9, np.int32), long_text()),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(("write", "read"), FORMATS)
def test_a_small_file_that_unpacks_to_much_takes_no_memory_unless_asked_for(write, read, bomb):
    table = pyarrow.table({"a": BOMBS[bomb]()})
    is_stream = write is as_stream
    packing = {"options": pyarrow.ipc.IpcWriteOptions(compression="zstd")} if is_stream else {"compression": "zstd"}
    data = write(table, **packing)
    assert len(data) < 2**18
    before = pyarrow.default_memory_pool().max_memory()
    start = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected a table of at most 1677.*16 bytes, got more; .* pass limit="):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert pyarrow.default_memory_pool().max_memory() <= max(before, start + 48 * 2**20)
    assert len(read(data, limit=2**28)) == len(table)


def stream_in(data):
    return pyarrow.ipc.open_stream(data[8:] if data[:6] == b"ARROW1" else data)


def listed(column):
    return [None if pandas.isna(value) else value for value in column.tolist()]


@pytest.mark.parametrize("trials", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("write", "read"), FORMATS)
def test_mutated_files_are_refused_or_read(write, read, trials, mutate, tmp_path):
    rng = np.random.default_rng(trials)
    whole = write(TABLE)
    wanted = read(whole)
    accepted, lone, refused = 0, 0, []
    for trial in range(trials):
        data = mutate(rng, whole, range(len(whole)))
        path = tmp_path / "table"
        path.write_bytes(data)
        try:
            found = read(path if trial % 2 else data)
        except ValueError as error:
            refused.append(str(error))
            continue
        accepted += 1
        try:
            table = parquet.read_table(io.BytesIO(data)) if read is read_parquet else stream_in(data).read_all()
        except (pyarrow.ArrowException, OSError):  # refused whole, though each batch can be read
            lone += 1
            continue
        for name in set(table.column_names) & set(TABLE.column_names) - {"day"}:
            if table[name].type != TABLE[name].type:
                continue  # such as a date that Python cannot represent
            assert listed(found[name]) == listed(pandas.Series(table[name].to_pylist(), dtype=object))
    assert lone < 0.03 * trials < accepted < 0.9 * trials
    assert all(re.match("(the bytes given|/.*/table): expected", message) for message in refused)
    pandas.testing.assert_frame_equal(read(whole), wanted)
