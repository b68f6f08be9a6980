"""JSON Lines: one JSON object a line; keys are columns. A key that a record lacks is a missing value.

Keys that the first records did not have are passed over, unless a type is declared for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as arrow_json

from millstream.sources.text import UnparsableError, arrow_reader, first_unfit, type_in_words

__all__ = ["JsonLinesFormat"]

_NUM_INFERRED = 1000
_BLANK = b" \t\r\n"


class JsonLinesFormat:
    """Records of JSON Lines."""

    name = "jsonl"

    def ends(self, data: bytes, final: bool) -> npt.NDArray[np.int64]:
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10) + 1
        if final and len(data) and (not len(ends) or ends[-1] < len(data)):
            ends = np.append(ends, len(data))
        return ends.astype(np.int64)

    def last_end(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def is_blank(self, record: bytes) -> bool:
        return not record.strip(_BLANK)

    def num_lines(self, data: bytes) -> int:
        return data.count(b"\n")

    def line_ends(self, data: bytes) -> npt.NDArray[np.int64]:
        return np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)

    def parse(self, data: bytes, schema: pa.Schema) -> pa.RecordBatch:
        num_objects = self._num_objects(data)
        table = _read(data, schema) if num_objects >= 0 else None
        if table is None or table.num_rows != num_objects:
            raise UnparsableError
        if not table.num_rows:
            return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)
        return table.combine_chunks().to_batches()[0]

    def infer(self, data: bytes, declared: Mapping[str, pa.DataType]) -> pa.Schema:
        """The keys of some whole records, of their declared types or the types that their values suggest."""
        try:
            found = _read(data, None).schema
        except UnparsableError:
            found = _infer_by_line(data)
        new = [pa.field(name, kind) for name, kind in declared.items() if name not in found.names]
        return pa.schema([*found, *new])

    def explain(self, record: bytes, schema: pa.Schema) -> tuple[str, str]:
        try:
            value = json.loads(record.rstrip(_BLANK).decode("utf-8"))  # of bytes it would guess the encoding
        except json.JSONDecodeError as error:
            return f"no JSON ({error.msg}, character {error.pos + 1})", "one JSON object a line"
        except UnicodeDecodeError:
            return "bytes that are not UTF-8", "UTF-8"
        except (ValueError, RecursionError):
            return "JSON that cannot be read", "one JSON object a line"
        if not isinstance(value, dict):
            return f"a JSON {type(value).__name__}", "one JSON object a line"
        field = first_unfit(schema, lambda part: _read(record, part))
        if field is not None and value.get(field.name) is not None:
            return f"{str(value.get(field.name))[:60]!r} in column {field.name!r}", type_in_words(field.type)
        return "a JSON object that cannot be read", "one JSON object a line, each key once"

    def _num_objects(self, data: bytes) -> int:
        """How many lines are not blank; -1 unless each of them begins with ``{`` and ends with ``}``.

        Then no object goes on in the next line, and as many objects as lines means one in each.
        """
        array = np.frombuffer(data, dtype=np.uint8)
        ends = self.ends(data, True)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]) if len(ends) else ends
        lasts = ends - 1
        for character in b"\n\r":
            lasts = lasts - ((array[lasts] == character) & (lasts > starts))
        good = (array[starts] == ord("{")) & (array[lasts] == ord("}"))
        pairs = zip(starts[~good].tolist(), ends[~good].tolist(), strict=True)
        odd = [line for line in (data[first:last].strip(_BLANK) for first, last in pairs) if line]
        if any(line[:1] != b"{" or line[-1:] != b"}" for line in odd):
            return -1
        return int(good.sum()) + len(odd)


def _read(data: bytes, schema: pa.Schema | None) -> Any:
    try:
        if not data.isascii():
            data.decode("utf-8")  # Arrow does not look, and an invalid text would fail much later
        return arrow_json.read_json(
            arrow_reader(data),
            read_options=arrow_json.ReadOptions(use_threads=True, block_size=max(len(data), 16)),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise UnparsableError from error


def _infer_by_line(data: bytes) -> pa.Schema:
    values: dict[str, list[Any]] = {}
    for line in data.split(b"\n")[:_NUM_INFERRED]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            for name, value in record.items():
                values.setdefault(name, []).append(value)
    return pa.schema([pa.field(name, _type_of(column)) for name, column in values.items()])


def _type_of(column: list[Any]) -> pa.DataType:
    try:
        return pa.infer_type(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        first = next(value for value in column if value is not None)
        return pa.infer_type([first])
