"""Files that grow, what is in messages, and addresses. Run: pytest tests/test_live_files.py"""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from millstream.assembly.opening import open_data
from millstream.errors import DataError, MillstreamError, SettingError
from millstream.sources import as_source, live_source
from millstream.sources.decoding import FieldsDecoder, RowsDecoder, TextDecoder
from source_checks import check_live_source, closing, places_of, read_some


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"n": n, "x": n / 4}) + "\n" for n in range(first, last))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def numbers(chunks: Any) -> list[int]:
    return [place["n"] for place in places_of(chunks)]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_keeps_the_promises_of_a_live_source(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"log.{form}"
    if form == "jsonl":
        path.write_text(lines(0, 40) + "\n\n" + lines(40, 50) + '{"n": 5')
    else:
        path.write_text("n,word\n" + "".join(f'{n},"a\nb"\n' for n in range(50)) + '50,"un')
    whole = check_live_source(lambda: as_source(f"follow:{path}"), 50)
    assert [place["n"] for place in whole] == list(range(50))


def test_a_partial_line_waits_and_so_does_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(0, 2) + '{"n": 2, ')
    source = live_source(f"follow:{path}")
    chunks = source.read(size=100)
    assert numbers([next(chunks)]) == [0, 1]
    threading.Timer(0.2, append, (path, '"x": 0.5}\n' + lines(3, 5))).start()
    assert numbers(read_some(source, 3, source._position(source._stands))) == [2, 3, 4]
    source.close()


def test_renamed_files_are_read_to_their_end_and_then_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(0, 10))
    source = live_source(f"follow:{path}")
    first = read_some(source, 10)
    path.rename(tmp_path / "log.jsonl.1")
    append(tmp_path / "log.jsonl.1", lines(10, 14) + '{"n": 14}')  # who writes may not have noticed yet
    path.write_text(lines(15, 18))
    (tmp_path / "log.jsonl.gz").write_bytes(b"no part of it")
    chunks = read_some(source, 8, first[-1].after, size=3)
    assert numbers(chunks) == list(range(10, 18))
    path.rename(tmp_path / "log.jsonl.2")
    time.sleep(0.02)
    path.write_text(lines(18, 20))
    assert numbers(read_some(source, 2, chunks[-1].after)) == [18, 19]
    before = first[-1].after
    for chunk in chunks:  # by whatever names they go now
        assert source.again(before, chunk.after, chunk.span).inputs.equals(chunk.inputs)
        before = chunk.after
    source.close()
    (tmp_path / "log.jsonl.1").unlink()
    with pytest.raises(DataError, match="gone"):
        closing(live_source(f"follow:{path}"), lambda other: other.read(first[-1].after))


def test_a_file_that_was_cut_or_written_anew_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(0, 20))
    source = live_source(f"follow:{path}")
    chunks = source.read(size=10)
    place = next(chunks).after
    next(chunks)
    with path.open("r+") as file:
        file.truncate(0)
        file.write(lines(100, 101))
    with pytest.raises(DataError, match=r"of which .* were read"):
        next(chunks)
    source.close()
    with pytest.raises(DataError, match="beginning has changed"):
        closing(live_source(f"follow:{path}"), lambda other: other.read(place))
    path.write_text(lines(0, 20).replace("0.25", "0.75"))
    with pytest.raises(DataError, match="beginning has changed"):
        closing(live_source(f"follow:{path}"), lambda other: other.read(place))


def test_latest_begins_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(0, 5))
    source = live_source(f"follow:{path}?start=latest")
    append(path, lines(5, 8))
    assert numbers(read_some(source, 3)) == [5, 6, 7]
    source.close()


JSON = {
    b'{"a": NaN}': "NaN, which JSON has not",
    b'{"a": -Infinity}': "-Infinity, which JSON has not",
    b'{"b": [NaN]}': "NaN, which JSON has not",
    b'{"f": 1e39}': "too large a number in column 'f'",
    b'{"l": [1, 1e39]}': "too large a number in column 'l'",
    b'{"a": 1e400}': "'inf' in column 'a'",
    b'{"i": 99999999999999999999}': "'99999999999999999999' in column 'i'",
    b'{"a": 1, "a": 2}': "in column 'a'",
    b'{"s": "\xff"}': "bytes that are not UTF-8",
    b"5": "a JSON int",
    b"null": "a JSON NoneType",
    b"[1]": "a JSON list",
    b'"x"': "a JSON str",
    b"": "an empty message",
    b" \n": "an empty message",
    b'{"a": 1} {"a": 2}': "no JSON",
    b'{"a": 1}\n{"a": 2}': "no JSON",
    b'{"s": "a\nb"}': "no JSON",
    b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}": "JSON that cannot be read",
    b"\xff\xfe{\x00}\x00": "bytes that are not UTF-8",
}
GOOD = {
    b'\xef\xbb\xbf{"a": 1}': {"a": 1.0},
    b'{"a":\r\n 2}': {"a": 2.0},
    b'{"a": 99999999999999999999}': {"a": 1e20},
    b'{"s": "NaN"}': {"s": "NaN"},
    b'{"s": "Infinity\\n"}': {"s": "Infinity\n"},
    b'{"other":' + b"[" * 1000 + b"]" * 1000 + b"}": {},
    b"{}": {},
    b'{"f": 3e38}': {"f": float(np.float32(3e38))},
}
SCHEMA = pa.schema(
    [("a", pa.float64()), ("f", pa.float32()), ("i", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.float32()))]
)


def test_each_strange_message_is_refused_or_defined_alone_and_among_others() -> None:
    decoder = TextDecoder()
    messages = [one for pair in zip(JSON, [*GOOD, *GOOD, *GOOD], strict=False) for one in pair]
    batch, kept, reasons = decoder.decode(messages, SCHEMA)
    expected = [GOOD[one] for one in messages if one in GOOD]
    assert [{k: v for k, v in row.items() if v is not None} for row in batch.to_pylist()] == expected
    assert [messages[k] for k in kept] == [one for one in messages if one in GOOD]
    assert {messages[k] for k in reasons} == set(JSON)
    for message, reason in JSON.items():
        batch, kept, alone = decoder.decode([message], SCHEMA)
        assert batch.num_rows == len(kept) == 0 and reason in alone[0], (message[:40], alone)


def test_fields_keep_texts_that_a_csv_would_break() -> None:
    decoder = FieldsDecoder()
    messages = [{b"a": b"1", b"t": b'x,"y"\n'}, {b"t": b"\xff"}, {b"a": b"oops", b"t": b"z"}, {}]
    schema = pa.schema([("a", pa.int64()), ("t", pa.string())])
    batch, kept, reasons = decoder.decode(messages, schema)
    assert kept.tolist() == [0, 3] and sorted(reasons) == [1, 2]
    assert batch.to_pylist()[0] == {"a": 1, "t": 'x,"y"\n'}


def test_a_function_of_ones_own_decides_what_a_message_is() -> None:
    def decode(data: bytes) -> Any:
        return {"n": data[0], "x": float(data[1:])}

    decoder = RowsDecoder("mine", decode)
    batch, kept, reasons = decoder.decode([b"\x011.5", b"", b"\x02x", b"\x032"], decoder.infer([b"\x011"], {}, ""))
    assert batch.to_pylist() == [{"n": 1, "x": 1.5}, {"n": 3, "x": 2.0}] and kept.tolist() == [0, 3]
    assert reasons[1].startswith("IndexError in mine")


def test_avro_by_the_schema_of_a_registry() -> None:
    fastavro = pytest.importorskip("fastavro", reason="pip install 'millstream[avro]'")
    from millstream.sources.registry import AvroDecoder

    kinds = [{"name": "n", "type": "long"}, {"name": "word", "type": ["null", "string"]}]
    schema = {"type": "record", "name": "Click", "fields": kinds}
    asked: list[str] = []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization", ""))
            found = self.path == "/schemas/ids/7"
            body = json.dumps({"schema": json.dumps(schema)} if found else {}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def message(row: dict[str, Any], number: int = 7) -> bytes:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, row)
        return b"\0" + number.to_bytes(4) + stream.getvalue()

    decoder = AvroDecoder(f"http://me:pass@127.0.0.1:{server.server_port}")
    rows = [{"n": 1, "word": "a"}, {"n": 2, "word": None}]
    messages = [*map(message, rows), message(rows[0], 8), b"{}", message(rows[0])[:-1], message(rows[0]) + b"x"]
    batch, kept, reasons = decoder.decode(messages, decoder.infer(messages[:2], {}, ""))
    server.shutdown()
    server.server_close()
    assert batch.to_pylist() == rows and kept.tolist() == [0, 1] and sorted(reasons) == [2, 3, 4, 5]
    assert "schema 8" in reasons[2] and all(one.startswith("Basic ") for one in asked) and len(asked) == 2


def test_a_message_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(0, 1) + json.dumps({"n": 1, "x": 0, "pad": "y" * 5000}) + "\n" + lines(2, 3))
    source = live_source(f"follow:{path}?max_message_bytes=1000", on_error="quarantine")
    places = places_of(read_some(source, 3))
    assert places[1][0].startswith("a message of 5,0") and len(places[1][2]) == 1000
    source.close()


@pytest.mark.parametrize(
    "url",
    [
        "kafka://host",
        "redis:///s",
        "redis://h:99999999/s",
        "redis://h/s?db=x",
        "nats://h/s?field=a",
        "follow:/no/such/folder/x",
        "kafka://h/t?decoder=no_such_module:f",
        "kafka://h/t?decoder=avro",
        "kafka://h/t?registry=http://x",
        "kafka://h/t?partitions=a",
        "kafka://h/t?settings=/no/file",
        "kafka://h/t?start=middle&give_up_seconds=0",
    ],
)
def test_addresses_that_cannot_be_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(MillstreamError) as caught:
        live_source(url)
    assert str(caught.value).startswith("got ") and "\n" not in str(caught.value)


def test_a_followed_file_is_data_for_learning_but_has_nothing_to_hold_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a,label\n" + "".join(f"{n},{'uv'[n % 2]}\n" for n in range(100)))
    data = open_data(f"follow:{path}", target="label")
    assert data.schema.target is not None and data.train.schema.field("a").type == pa.float64()
    with pytest.raises(SettingError, match="has no end"):
        open_data(f"follow:{path}", target="label", test=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["confluent_kafka", "redis", "nats"])
def test_without_its_package_an_address_says_what_to_install(package: str) -> None:
    scheme = {"confluent_kafka": "kafka"}.get(package, package)
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from millstream.errors import MissingPackageError\nfrom millstream.sources import live_source\n"
        f"try: live_source('{scheme}://localhost/x')\nexcept MissingPackageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert f"pip install 'millstream[{scheme}]'" in done.stdout


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 2
