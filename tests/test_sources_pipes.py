"""Run: pytest tests/test_sources_pipes.py"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import DataError, MillstreamError
from millstream.sources import StdinSource
from source_checks import places_of
from test_sources_files import BAD, ROWS, TYPES


def test_pipe_hands_out_what_has_arrived() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"hour,load\n1,0.5\n2,0.")
    source = StdinSource(reading)
    chunks = source.read(size=100)
    chunk = next(chunks)
    assert chunk.inputs.to_pydict() == {"hour": [1], "load": [0.5]}
    assert chunk.locate(0) == "stdin:2"
    os.write(writing, b"25\n3,")
    assert next(chunks).inputs.to_pydict() == {"hour": [2], "load": [0.25]}
    chunks.close()
    os.write(writing, b"1\n4,1\n5,1\n")
    chunks = source.read(2, size=2)  # goes on where it stands
    assert [next(chunks).inputs.column("hour").to_pylist() for _ in range(2)] == [[3, 4], [5]]
    os.write(writing, b"6,last")
    os.close(writing)
    with pytest.raises(DataError, match=r"stdin:7: 'last' in column 'load'; wanted a number"):
        next(chunks)
    with pytest.raises(DataError, match="stands at 5"):
        source.read(0)
    os.close(reading)


@given(ROWS, st.integers(1, 40), st.integers(1, 5), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pipe_gives_the_same_however_it_arrives(rows: Any, piece: int, size: int, as_json: bool) -> None:
    text = io.StringIO(newline="")
    if as_json:
        rows = [row for row in rows if row[1] is None or math.isfinite(row[1])] or [(1, 1.0, "x")]
        text.write("".join(json.dumps(dict(zip("abc", row, strict=True))) + "\n" for row in rows))
    else:
        csv.writer(text).writerows([("a", "b", "c"), *rows])
    data = text.getvalue().encode()

    class Trickle(io.RawIOBase):
        place = 0

        def read1(self, _: int) -> bytes:
            self.place += piece
            return data[self.place - piece : self.place]

    source = StdinSource(Trickle(), schema=TYPES)
    chunks = list(source.read(size=size))
    assert places_of(chunks) == [dict(zip("abc", row, strict=True)) for row in rows]
    assert max(chunk.span for chunk in chunks) <= size


def test_pipe_quarantine_and_mistakes() -> None:
    chunks = list(StdinSource(io.BytesIO(BAD.encode()), schema={"a": pa.int64()}, on_error="quarantine").read(size=2))
    assert [chunk.span for chunk in chunks] == [2, 2, 2]
    assert [one.where for chunk in chunks for one in chunk.rejected] == ["stdin:3", "stdin:6"]
    for data, words in ((b"", "without records"), (b"a,b\n", "without records"), (b"a\n1\n", None)):
        if words is None:
            assert places_of(StdinSource(io.BytesIO(data)).read()) == [{"a": 1}]
            continue
        with pytest.raises(MillstreamError, match=words):
            StdinSource(io.BytesIO(data))


def test_standard_input_of_a_process() -> None:
    code = "from millstream.sources import as_source\nprint(sum(len(chunk) for chunk in as_source('-').read()))"
    lines = b"a,b\n" + b"1,2\n" * 100_000
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "100000"


def test_writer_that_waits_does_not_hold_back_what_came() -> None:
    reading, writing = os.pipe()
    seen: list[float] = []

    def write_slowly() -> None:
        for number in range(3):
            os.write(writing, b"a\n" * (number == 0) + f"{number}\n".encode())
            time.sleep(0.1)
        os.close(writing)

    thread = threading.Thread(target=write_slowly)
    thread.start()
    start = time.monotonic()
    for _ in StdinSource(reading).read():
        seen.append(time.monotonic() - start)
    thread.join()
    os.close(reading)
    assert len(seen) == 3
    assert seen[0] < 0.09
