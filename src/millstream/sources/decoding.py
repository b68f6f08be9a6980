"""What is in a message: JSON, lines of a text, fields, or whatever a function makes of its bytes.

    TextDecoder      JSON objects, and records of a followed CSV; parsed together, as blocks of a text are
    FieldsDecoder    named texts, as a Redis entry has them
    RowsDecoder      a function from bytes to a dict, one call a message
    AvroDecoder      (registry) Avro by the schema that the message names

A message that is no record is told with the reason, ``got; wanted``. This file knows no servers.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError, SettingError
from millstream.sources.delimited import MISSING, DelimitedFormat
from millstream.sources.jsonlines import JsonLinesFormat
from millstream.sources.text import MAX_SHOWN, Block, Parser, TextFormat, type_in_words

__all__ = ["Decoded", "Decoder", "FieldsDecoder", "RowsDecoder", "TextDecoder", "function_named"]

Decoded: TypeAlias = "tuple[pa.RecordBatch, npt.NDArray[np.int64], dict[int, str]]"
"""The records, which messages they are, and the reason of each other message."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LITERALS = (b"NaN", b"Infinity")  # Arrow reads them, though JSON has no such numbers


class Decoder(Protocol):
    """Messages to records."""

    name: str

    def infer(self, messages: Sequence[Any], declared: Mapping[str, pa.DataType], where: str) -> pa.Schema:
        """The columns of some messages; bad ones are passed over."""
        ...

    def decode(self, messages: Sequence[Any], schema: pa.Schema) -> Decoded:
        """Every message: as a record with these columns, or with the reason why it is none."""
        ...

    def shown(self, message: Any) -> str:
        """A message for people, cut if it is long."""
        ...


class TextDecoder:
    """Messages that are records of a text format; JSON objects by default.

    >>> schema = pa.schema([("a", pa.float64())])
    >>> batch, kept, reasons = TextDecoder().decode([b'{"a": 1}', b'{"a": NaN}', b'{"a":\\n2}'], schema)
    >>> batch.to_pydict(), kept.tolist(), reasons
    ({'a': [1.0, 2.0]}, [0, 2], {1: 'NaN, which JSON has not; wanted a number or null'})
    """

    def __init__(self, text_format: TextFormat | None = None) -> None:
        self._format: TextFormat = text_format or JsonLinesFormat()
        self._is_json = self._format.name == "jsonl"
        self.name = "json" if self._is_json else self._format.name

    def infer(self, messages: Sequence[Any], declared: Mapping[str, pa.DataType], where: str) -> pa.Schema:
        lines = self._lines(messages, {})[1]
        found = self._format.infer(b"".join(lines), declared) if lines else pa.schema([])
        missing = [pa.field(name, kind) for name, kind in declared.items() if name not in found.names]
        return pa.schema([*found, *missing]) if self._is_json else found

    def decode(self, messages: Sequence[Any], schema: pa.Schema) -> Decoded:
        reasons: dict[int, str] = {}
        places, lines = self._lines(messages, reasons)
        block = Block(b"".join(lines), 0, 1, len(lines))
        chunk, _ = Parser(self._format, schema, "quarantine").parse(block, "")
        kept = places if chunk.offsets is None else places[chunk.offsets]
        reasons.update({int(places[one.offset]): one.reason for one in chunk.rejected})
        return _without_infinities(chunk.inputs, kept, reasons) if self._is_json else (chunk.inputs, kept, reasons)

    def shown(self, message: Any) -> str:
        return _shown(message)

    def _lines(self, messages: Sequence[bytes], reasons: dict[int, str]) -> tuple[npt.NDArray[np.int64], list[bytes]]:
        """The messages that can be a line, and these lines; why the others cannot."""
        if not self._is_json:
            ended = [one if one[-1:] in (b"\n", b"\r") else one + b"\n" for one in messages]
            return np.arange(len(messages), dtype=np.int64), ended
        whole = b"\n".join(messages)
        # One look at all of them is much cheaper than one at each, and what it looks for is rare.
        if not (
            any(word in whole for word in (*_LITERALS, b"\r", _BYTE_ORDER_MARK))
            or whole.count(b"\n") != len(messages) - 1
            or b"\n\n" in whole
            or whole[:1] == b"\n"
            or whole[-1:] == b"\n"
            or not all(messages)
        ):
            return np.arange(len(messages), dtype=np.int64), [one + b"\n" for one in messages]
        places, lines = [], []
        for k, message in enumerate(messages):
            line, reason = _as_line(message)
            if reason:
                reasons[k] = reason
            else:
                places.append(k)
                lines.append(line + b"\n")
        return np.array(places, dtype=np.int64), lines


class FieldsDecoder:
    """Messages that are named texts: dicts of bytes. Types come from the texts, as those of a CSV do.

    >>> decoder = FieldsDecoder()
    >>> messages = [{b"hour": b"7", b"load": b"0.5"}, {b"hour": b"8"}]
    >>> decoder.decode(messages, decoder.infer(messages, {}, ""))[0].to_pydict()
    {'hour': [7, 8], 'load': [0.5, None]}
    """

    name = "fields"

    def infer(self, messages: Sequence[Any], declared: Mapping[str, pa.DataType], where: str) -> pa.Schema:
        names = dict.fromkeys(_text(key) for message in messages for key in message)
        names.update(dict.fromkeys(declared))
        if not names:
            return pa.schema([])
        return DelimitedFormat(list(names), ",", MISSING).infer(_rows(messages, list(names)), declared)

    def decode(self, messages: Sequence[Any], schema: pa.Schema) -> Decoded:
        decoder = TextDecoder(DelimitedFormat(schema.names, ",", MISSING))
        return decoder.decode([_rows([message], schema.names) for message in messages], schema)

    def shown(self, message: Any) -> str:
        return str({_text(key): _text(value) for key, value in message.items()})[:MAX_SHOWN]


class RowsDecoder:
    """Messages that a function makes dicts of. What it raises is the reason why a message is no record.

    >>> decoder = RowsDecoder("mine", lambda data: {"length": len(data)})
    >>> decoder.decode([b"ab", b"abc"], pa.schema([("length", pa.int64())]))[0].to_pydict()
    {'length': [2, 3]}
    """

    def __init__(self, name: str, function: Callable[[bytes], Mapping[str, Any]]) -> None:
        self.name = name
        self._function = function

    def infer(self, messages: Sequence[Any], declared: Mapping[str, pa.DataType], where: str) -> pa.Schema:
        rows = [row for row in map(self._row, messages) if isinstance(row, Mapping)]
        if messages and not rows:
            raise DataError(got=f"{where}: {self._row(messages[0])}", wanted="a dict", do=f"correct {self.name}")
        names = {name: None for row in rows for name in row} | dict.fromkeys(declared)
        return pa.schema([pa.field(name, declared.get(name) or _type_of(rows, name, where)) for name in names])

    def decode(self, messages: Sequence[Any], schema: pa.Schema) -> Decoded:
        rows = [self._row(message) for message in messages]
        reasons = {k: row for k, row in enumerate(rows) if isinstance(row, str)}
        kept = [k for k in range(len(rows)) if k not in reasons]
        batch = _batch([rows[k] for k in kept], schema)
        if batch is None:
            for k in kept:
                reason = _unfit(rows[k], schema)
                if reason:
                    reasons[k] = reason
            kept = [k for k in kept if k not in reasons]
            batch = _batch([rows[k] for k in kept], schema)
        assert batch is not None
        return batch, np.array(kept, dtype=np.int64), reasons

    def shown(self, message: Any) -> str:
        return _shown(message)

    def _row(self, message: bytes) -> Any:
        """The dict of a message, or why it has none."""
        try:
            row = self._function(message)
        except Exception as error:  # it is somebody's own, and a message that it cannot read is no record
            return f"{type(error).__name__} in {self.name} ({str(error)[:100]}); wanted a message that it can read"
        if not isinstance(row, Mapping):
            return f"{type(row).__name__} from {self.name}; wanted a dict of named values"
        return row


def function_named(name: str) -> Callable[[bytes], Mapping[str, Any]]:
    """The function that ``module:function`` names.

    >>> function_named("json:loads")(b'{"a": 1}')
    {'a': 1}
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(
            got=f"decoder {name!r} ({error})", wanted="json, avro or module:function", do="correct the name"
        ) from error
    if not callable(found):
        raise SettingError(got=f"decoder {name!r}, which is no function", wanted="one", do="correct the name")
    function: Callable[[bytes], Mapping[str, Any]] = found
    return function


def _as_line(message: bytes) -> tuple[bytes, str]:
    """A JSON message on one line, or why it cannot be one."""
    line = message.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip(b" \t\r\n"):
        return line, "an empty message; wanted one JSON object"
    strange = next((word for word in _LITERALS if word in line), None)
    if strange is None and b"\n" not in line and b"\r" not in line:
        return line, ""
    try:
        # An end of line within a text is an error that would be gone once it is a blank.
        json.loads(line, parse_constant=_refuse_constant)
    except _ConstantError as error:
        return line, f"{error}, which JSON has not; wanted a number or null"
    except UnicodeDecodeError:
        return line, "bytes that are not UTF-8; wanted UTF-8"
    except json.JSONDecodeError as error:
        return line, f"no JSON ({error.msg}, character {error.pos + 1}); wanted one JSON object"
    except (ValueError, RecursionError):
        return line, "JSON that cannot be read; wanted one JSON object"
    return line.replace(b"\n", b" ").replace(b"\r", b" "), ""


class _ConstantError(Exception):
    """NaN or an infinity."""


def _refuse_constant(word: str) -> None:
    raise _ConstantError(word)


def _without_infinities(batch: pa.RecordBatch, kept: npt.NDArray[np.int64], reasons: dict[int, str]) -> Decoded:
    """Less the records with a number that was too large for its column: Arrow makes infinities of them."""
    is_good = np.ones(len(kept), dtype=bool)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        values = column.flatten() if pa.types.is_list(field.type) else column
        if not pa.types.is_floating(values.type) or not pc.any(pc.is_inf(values)).as_py():
            continue
        found = np.flatnonzero(pc.fill_null(pc.is_inf(values), False).to_numpy(zero_copy_only=False))
        rows = pc.list_parent_indices(column).to_numpy()[found] if values is not column else found
        reasons.update(
            {int(kept[row]): f"too large a number in column {field.name!r}; wanted a {values.type}" for row in rows}
        )
        is_good[rows] = False
    return (batch, kept, reasons) if is_good.all() else (batch.filter(pa.array(is_good)), kept[is_good], reasons)


def _rows(messages: Sequence[Mapping[bytes, bytes]], names: Sequence[str]) -> bytes:
    """Messages as lines of a CSV with these columns."""
    keys = [name.encode() for name in names]
    text = io.StringIO(newline="")
    # Bytes that are no UTF-8 stay what they are and are refused where the line is parsed.
    values = [[message.get(key, b"").decode("utf-8", "surrogateescape") for key in keys] for message in messages]
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(values)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch | None:
    """Dicts as columns; None where some value does not fit."""
    columns = []
    for field in schema:
        column = _column([row.get(field.name) for row in rows], field.type)
        if column is None:
            return None
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    try:
        column = pa.array(values, type=kind)
        if pa.types.is_floating(kind) and any(isinstance(value, bool) for value in values):
            return None
        return column
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _unfit(row: Mapping[str, Any], schema: pa.Schema) -> str:
    for field in schema:
        if _column([row.get(field.name)], field.type) is None:
            return f"{str(row.get(field.name))[:60]!r} in column {field.name!r}; wanted {type_in_words(field.type)}"
    return ""


def _type_of(rows: Sequence[Mapping[str, Any]], name: str, where: str) -> pa.DataType:
    values = [row.get(name) for row in rows]
    try:
        return pa.infer_type(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            got=f"{where}: values of more than one type in column {name!r} ({str(error)[:100]})",
            wanted="one type",
            do="declare it, or let the decoder leave it out",
        ) from error


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _shown(message: Any) -> str:
    return "" if message is None else _text(message[: 4 * MAX_SHOWN]).rstrip("\r\n")[:MAX_SHOWN]
