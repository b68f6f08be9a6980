"""Rows of outcomes as JSON texts, a column at a time: a text for each row, as a JSON Lines file and a message hold it.

JSON has no numbers that are not finite: they are null in a text.

Shapes: N rows.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["as_bytes", "json_texts"]

_ESCAPED = r'[\x00-\x1f"\\]'


def json_texts(outcomes: pa.RecordBatch, end: str = "") -> pa.Array:
    """(N,) texts, each with ``end`` after it.

    >>> json_texts(pa.RecordBatch.from_pydict({"position": [7], "label": ["a"], "loss": [0.5]})).to_pylist()
    ['{"position": 7, "label": "a", "loss": 0.5}']
    """
    parts: list[Any] = []
    for place, (name, column) in enumerate(zip(outcomes.schema.names, outcomes.columns, strict=True)):
        parts += [("{" if place == 0 else ", ") + json.dumps(name) + ": ", _column(column)]
    return pc.binary_join_element_wise(*parts, "}" + end, "")


def as_bytes(texts: pa.Array) -> bytes:
    """The bytes of all texts, one after another."""
    if not len(texts):
        return b""
    _, offsets, data = texts.buffers()
    ends = pa.Array.from_buffers(pa.int32(), len(texts) + 1, [None, offsets], offset=texts.offset)
    return bytes(memoryview(data)[ends[0].as_py() : ends[-1].as_py()]) if data is not None else b""


def _column(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        texts = _floats(column)
    elif pa.types.is_string(column.type):
        texts = _quoted(column)
    elif pa.types.is_integer(column.type):
        texts = column.cast(pa.string())
    else:
        texts = pa.array([_plain(value) for value in column.to_pylist()], pa.string())
    return pc.fill_null(texts, "null")


def _floats(column: pa.Array) -> pa.Array:
    """The shortest texts that give the same numbers, with a point or an exponent each."""
    texts = pc.if_else(pc.is_finite(column), column, None).cast(pa.string())
    is_whole = pc.match_substring_regex(texts, r"^-?\d+$")
    return pc.if_else(is_whole, pc.binary_join_element_wise(texts, ".0", ""), texts)


def _quoted(column: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring_regex(column, _ESCAPED)).as_py():
        return pc.binary_join_element_wise('"', column, '"', "")
    distinct = column.dictionary_encode()
    texts = pa.array([json.dumps(text, ensure_ascii=False) for text in distinct.dictionary.to_pylist()], pa.string())
    return texts.take(distinct.indices)


def _plain(values: list[float] | None) -> str | None:
    if values is None:
        return None
    return json.dumps([value if value is not None and abs(value) < float("inf") else None for value in values])
