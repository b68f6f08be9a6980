"""Run: pytest tests/test_sources_files.py"""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import DataError, SettingError, StorageError
from millstream.sources import FileSource, Shuffled, as_source, cached, hold_out
from millstream.sources.delimited import MISSING, DelimitedFormat
from source_checks import check_source, places_of

FIT = settings(max_examples=15, deadline=None)
TABLE = pa.table(
    {
        "count": pa.array([None if k % 5 == 4 else k for k in range(60)], pa.int64()),
        "share": [k / 8 for k in range(60)],
        "word": [None if k % 7 == 6 else f"w{k}" for k in range(60)],
    }
)


def write(path: Path, table: pa.Table = TABLE) -> Path:
    """A table in the format and packing that the file's name says."""
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=16)
        return path
    if kind in ("arrow", "stream", "feather"):
        options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "feather" else None)
        opener = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, opener(file, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=16)
        return path
    if kind == "csv":
        buffer = io.BytesIO()
        pyarrow.csv.write_csv(table, buffer)
        data = buffer.getvalue()
    else:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in table.to_pylist())
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.csv.gz", "a.csv.zst", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow", "a.stream", "a.feather"],
)
def test_contract(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    whole = check_source(lambda: FileSource(path, block_bytes=100), sizes=(1, 7))
    assert whole == TABLE.to_pylist()
    source = FileSource(path, columns=["word", "count"])
    assert places_of(source.read()) == TABLE.select(["word", "count"]).to_pylist()
    assert source.can_jump == (name in ("a.arrow", "a.stream"))
    copy = cached(source, tmp_path / "cache")
    assert sorted(map(str, places_of(Shuffled(copy, 1).read()))) == sorted(map(str, places_of(source.read())))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow", "feather"])
def test_contract_of_many(kind: str, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.{kind}", TABLE.slice(20 * number, 20))
    whole = check_source(lambda: as_source(str(tmp_path / f"*.{kind}")), sizes=(7,))
    assert whole == TABLE.to_pylist()
    parts = [hold_out(FileSource(sorted(tmp_path.glob(f"*.{kind}"))), 0.4)[k] for k in (0, 1)]
    for k in (0, 1):
        check_source(lambda k=k: hold_out(as_source(str(tmp_path / f"*.{kind}")), 0.4)[k], sizes=(3,))
    assert sorted(str(row) for part in parts for row in places_of(part.read())) == sorted(map(str, whole))


# Python's writer does not quote a lone carriage return, which then ends a record.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=6)
ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(allow_nan=False),
        st.none()
        | (TEXTS | st.sampled_from(['"', 'a"b', "x\ny", "\r\n", ",", ";\t", " "])).filter(lambda t: t not in MISSING),
    ),
    min_size=1,
    max_size=12,
)
TYPES = {"a": pa.int64(), "b": pa.float64(), "c": pa.string()}


@given(
    ROWS, st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 90), st.booleans()
)
@FIT
def test_csv_as_it_was_written(
    tmp_path_factory: Any, rows: Any, delimiter: str, end: str, quote_all: bool, block: int, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("a", "b", "c"), *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if packed else data)

    def make() -> FileSource:
        return FileSource(path, schema=TYPES, block_bytes=block)

    whole = check_source(make, sizes=(2,))
    assert whole == [dict(zip("abc", row, strict=True)) for row in rows]
    lines = [chunk.locate(0) for chunk in make().read(size=1)]
    starts = itertools_lines(rows, delimiter, end, quoting)
    assert lines == [f"{path}:{line}" for line in starts]


def itertools_lines(rows: Any, delimiter: str, end: str, quoting: Any) -> list[int]:
    """The line on which each record begins, from 1, the header being the first."""
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerow(row)
        data = text.getvalue()
        line += data.count("\n") + data.count("\r") - data.count("\r\n")
    return lines


@given(st.text('",a1\n\r', max_size=40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_cuts_do_not_matter_to_broken_csv(tmp_path_factory: Any, body: str, block: int) -> None:
    """Odd quotes, ragged rows, lone carriage returns: one block or many, the same records and the same rejections."""
    path = tmp_path_factory.getbasetemp() / "broken.csv"
    path.write_bytes(b"n,t\n1,a\n" + body.encode())

    def make(size: int) -> FileSource:
        return FileSource(path, schema={"n": pa.int64(), "t": pa.string()}, on_error="quarantine", block_bytes=size)

    whole = places_of(make(1 << 20).read())
    assert places_of(make(block).read(size=3)) == whole
    chunk = next(make(block).read(size=2))
    assert places_of(make(block + 1).read(chunk.after)) == whole[2:]
    if not any(isinstance(one, tuple) for one in whole):
        options = pa.csv.ConvertOptions(column_types=make(9).schema, strings_can_be_null=True, null_values=MISSING)
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        assert pa.csv.read_csv(path, parse_options=parse, convert_options=options).to_pylist() == whole


@given(st.text('",a1;\n\r', max_size=30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_fast_search_for_ends_equals_the_slow_one(text: str, final: bool) -> None:
    """Counting quotes is only done where it is right; the slow way walks over each record."""
    data = text.encode()
    form = DelimitedFormat(["a"], ",", MISSING)
    fast, slow = form._scan(data, final), form._walk(data, final)
    assert fast[0].tolist() == slow[0].tolist()
    assert form.last_end(data) == (form.ends(data, False).tolist() or [0])[-1]
    if final:
        assert fast[1] == slow[1]


LINES = st.lists(
    st.sampled_from(
        [
            '{"n": 1, "t": "a"}',
            '{"t": "é\\n", "x": [1]}',
            "{}",
            "",
            " ",
            '{"n": "a"}',
            '{"n": 1} {"n": 2}',
            '{"n": 1',
            '"t": "b"}',
            "[1]",
            '{"n": 1.5}',
            '{"n":1,"n":2}',
            "\xff",
        ]
    ),
    max_size=9,
)


@given(LINES, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_json_lines_are_records_one_by_one(tmp_path_factory: Any, lines: list[str], block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    lines = ['{"n": 0, "t": "z"}', *lines]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    source = FileSource(path, schema={"n": pa.int64(), "t": pa.string()}, on_error="quarantine", block_bytes=block)
    whole = check_source(lambda: source, sizes=(2,))
    good = {lines[0], '{"n": 1, "t": "a"}', "{}"}
    expected = [line for line in lines if line.strip()]
    assert len(whole) == len(expected)
    for line, place in zip(expected, whole, strict=True):
        if "é" in line:  # latin-1 is no UTF-8
            assert isinstance(place, tuple)
        elif line in good:
            assert place == {"n": json.loads(line).get("n"), "t": json.loads(line).get("t")}
        else:
            assert isinstance(place, tuple)
            assert place[2] == line.encode("latin-1").decode("utf-8", errors="replace")


BAD = 'a,b\n1,x\n2,y,z\n\n3,z\ntwo,w\n5,"v\nv"\n6,u\n'


def test_quarantine_leaves_holes(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(BAD)

    def make() -> FileSource:
        return FileSource(path, schema={"a": pa.int64()}, on_error="quarantine", block_bytes=9)

    check_source(make)
    (chunk,) = make().read()
    assert chunk.inputs.to_pydict() == {"a": [1, 3, 5, 6], "b": ["x", "z", "v\nv", "u"]}
    assert (chunk.span, chunk.offsets.tolist()) == (6, [0, 2, 4, 5])
    assert [(one.offset, one.where, one.record) for one in chunk.rejected] == [
        (1, f"{path}:3", "2,y,z"),
        (3, f"{path}:6", "two,w"),
    ]
    assert [one.reason for one in chunk.rejected] == [
        "3 fields; wanted 2, as in the header",
        "'two' in column 'a'; wanted a whole number",
    ]
    assert [chunk.locate(k) for k in range(6)] == [f"{path}:{line}" for line in (2, 3, 5, 6, 7, 9)]
    path.write_text("a,b\n1,x\n" + "9" * 5000 + ",y\n")
    (chunk,) = make().read()
    assert len(chunk.rejected[0].record) == 1000


def test_stop_gives_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(BAD)
    for block in (4, 1 << 20):
        chunks = FileSource(path, schema={"a": pa.int64()}, block_bytes=block).read(size=1)
        assert next(chunks).inputs.to_pydict() == {"a": [1], "b": ["x"]}
        with pytest.raises(DataError, match=r"bad\.csv:3: 3 fields; wanted 2"):
            next(chunks)


def test_types_are_fixed_by_the_first_records(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("a,b\n" + "1,2020-01-01T00:00:00\n" * 300_000 + "1.5,2020-01-01T00:00:00\n")
    source = FileSource(path)
    assert source.schema == pa.schema([("a", pa.int64()), ("b", pa.timestamp("us"))])
    with pytest.raises(DataError, match=r"late\.csv:300002: '1\.5' in column 'a'; wanted a whole number"):
        list(source.read(size=65536))
    assert sum(len(chunk) for chunk in FileSource(path, schema={"a": pa.float64()}).read(size=65536)) == 300_001


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", {}, "empty file"),
        ("a,b\n", {}, "without records"),
        ("\n\n", {}, "without records"),
        ("1,2\n3,4\n", {}, "names=["),
        ("a,a\n1,2\n", {}, "column 'a' twice"),
        ("hour,load\n1,2\n", {"columns": ["lode"]}, "try 'load'"),
        ("hour,load\n1,2\n", {"schema": {"lode": pa.int64()}}, "try 'load'"),
        ("hour,load\n1,2\n", {"schema": {"load": "int"}}, "type 'int'"),
        ("hour,load\n1,2\n", {"format": "parkett"}, "try 'parquet'"),
        ("hour,load\n1,2\n", {"format": "parquet"}, "a.csv ("),
        ("hour,load\n1,2\n", {"format": "arrow"}, "a.csv ("),
        ("hour,load\n1,2\n", {"on_error": "skip"}, "'quarantine'"),
        ("hour,load\n1,2\n", {"delimiter": ";;"}, "delimiter"),
        ("hour,load\n1,2\n", {"names": ["a"]}, "1 names for 2 columns"),
        ('[{"a": 1}]', {}, "JSON array"),
        ('{"a": 1}\n', {"delimiter": ","}, "for jsonl"),
        ('{"a": 1}\n', {"columns": ["b"]}, "choose from 'a'"),
        ("a\x00b\n", {}, "neither text"),
        ('a,b\n1,"' + "x" * 100, {}, "never closed"),
    ],
)
def test_mistakes_are_one_line(content: str, options: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises((DataError, SettingError, StorageError)) as caught:
        list(FileSource(path, **options).read())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "prices.csv")
    with pytest.raises(StorageError, match=r"try 'prices\.csv'"):
        FileSource(tmp_path / "price.csv")
    with pytest.raises(StorageError, match="no file like"):
        FileSource(str(tmp_path / "*.parquet"))
    with pytest.raises(DataError, match="folder"):
        FileSource(tmp_path)
    with pytest.raises(SettingError, match="no paths"):
        FileSource([])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "a.csv.zst", "a.parquet", "a.arrow"):
        path = write(tmp_path / name, pa.concat_tables([TABLE] * 50))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises((DataError, StorageError), match=name):
            list(FileSource(path).read())


def test_files_must_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "1.csv")
    write(tmp_path / "2.csv", TABLE.rename_columns(["count", "share", "name"]))
    with pytest.raises(DataError, match=r"2\.csv with the columns count, share, name; wanted those of"):
        list(FileSource(str(tmp_path / "*.csv")).read())
    write(tmp_path / "1.parquet")
    write(tmp_path / "2.parquet", TABLE.set_column(0, "count", TABLE["share"]))
    with pytest.raises(DataError, match=r"2\.parquet with 'count' as double; wanted int64"):
        FileSource(str(tmp_path / "*.parquet"))
    assert FileSource(str(tmp_path / "*.parquet"), columns=["word"]).num_records == 120


def test_a_position_of_other_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        source = FileSource(write(tmp_path / name))
        for position in (
            {"file": 1, "byte": 0, "line": 1, "row": 0},
            {"file": 0, "byte": 9**9, "line": 1, "row": 9**9},
            5,
        ):
            with pytest.raises(DataError, match="resume"):
                next(source.read(position))


def test_names_for_a_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "bare.data"
    path.write_bytes(b"\xef\xbb\xbf1,2\n3,?\n")
    whole = check_source(lambda: FileSource(path, names=["a", "b"], missing=["?"]))
    assert whole == [{"a": 1, "b": 2}, {"a": 3, "b": None}]


def test_other_libraries_types_are_settled(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array(["x", "y"], pa.large_string()),
            "b": pa.array(["x", "y"]).dictionary_encode(),
            "c": pa.array([1, 2], pa.timestamp("ns")),
            "d": pa.array([[1.0], [2.0]], pa.large_list(pa.float32())),
        }
    )
    source = FileSource(write(tmp_path / "a.arrow", table))
    assert source.schema.types == [pa.string(), pa.string(), pa.timestamp("us"), pa.list_(pa.float32())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_process_that_ends_just_after_reading_ends_well(name: str, tmp_path: Path) -> None:
    """Arrow's threads must hold nothing of Python's: needing the interpreter while it ends, they abort the process."""
    path = write(tmp_path / name, pa.concat_tables([TABLE] * 2000))
    code = "import sys\nfrom millstream.sources import FileSource\nfor _ in FileSource(sys.argv[1]).read(): pass"
    codes = [subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode for _ in range(8)]
    assert codes == [0] * 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_memory_stays_flat(kind: str, tmp_path: Path) -> None:
    """After the first third of a file, the peak of memory hardly rises any more."""
    rng = np.random.default_rng(0)
    table = pa.table({f"c{k}": rng.integers(0, 1000, 100_000) for k in range(20)})
    path = tmp_path / f"a.{kind}"
    write(path, table) if kind != "parquet" else pq.write_table(
        pa.concat_tables([table] * 20), path, row_group_size=50_000
    )
    if kind != "parquet":
        data = path.read_bytes()
        head, body = data.split(b"\n", 1) if kind == "csv" else (b"", data)
        with path.open("wb") as file:
            file.write(head + b"\n" if head else b"")
            for _ in range(8):
                file.write(body)
    code = (
        "import pathlib, re, sys\nfrom millstream.sources import FileSource\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024\n"
        "source = FileSource(sys.argv[1])\nmarks = []\n"
        "for k, chunk in enumerate(source.read(size=50_000)):\n    marks.append(peak())\n"
        "print(marks[-1] - marks[len(marks) // 3])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    assert float(done.stdout) < 40
