"""Events of a stream whose labels come by themselves: which rows ask, which answer, and under which id.

This file knows Arrow columns and the schema; it knows no statistics, and not which ids are open.

Shapes: N events.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError
from millstream.features.columns import as_text, find, is_text, microseconds, plain_text
from millstream.features.refusals import Refusals
from millstream.schema import Schema

__all__ = ["Rows", "id_texts", "instants", "look"]

_FIX = "fix the record, or set on_error='quarantine'"
_BLANK_IS_MISSING = ("number", "time")  # kinds of which an empty text is no value


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """What each of N events is."""

    ids: pa.Array
    asks: npt.NDArray[np.bool_]
    answers: npt.NDArray[np.bool_]


def look(batch: pa.RecordBatch, schema: Schema, refusals: Refusals) -> Rows:
    """Features ask, a label answers, both do both. An event without an id, or without either, goes to ``refusals``.

    >>> from millstream.schema import Field, Target
    >>> schema = Schema((Field("a", "number"),), Target("y", "number"), id="key")
    >>> batch = pa.RecordBatch.from_pydict({"key": ["k", "k"], "a": [1.0, None], "y": [None, 2.0]})
    >>> look(batch, schema, Refusals()).asks.tolist()
    [True, False]
    """
    if schema.id is None or schema.target is None:
        missing = "id" if schema.id is None else "label"
        raise DataError(
            got=f"labels that join on data without an {missing} column".replace("an label", "a label"),
            wanted="a column of ids, and one of labels",
            do="name them (--id COLUMN, --target COLUMN)",
        )
    for name in (schema.weight, schema.time):
        if name is not None:
            find(batch, name)
    ids = id_texts(batch, schema.id)
    roles = {schema.id, schema.time, schema.label_time, schema.weight}
    fields = [field for field in schema.fields if field.kind != "ignore"]
    asks = np.zeros(len(batch), bool)
    for field in [field for field in fields if field.name not in roles] or fields:
        asks |= _there(find(batch, field.name), field.kind)
    answers = _there(find(batch, schema.target.name), schema.target.kind)
    has_id = pc.fill_null(pc.not_equal(ids, ""), False).to_numpy(zero_copy_only=False)
    refusals.add(np.flatnonzero(~has_id), lambda _: f"no id in column {schema.id!r}", wanted="an id", do=_FIX)
    empty = np.flatnonzero(~asks & ~answers)
    refusals.add(empty, lambda _: "neither features nor a label", wanted="one of the two, or both", do=_FIX)
    return Rows(ids, asks, answers)


def id_texts(batch: pa.RecordBatch, name: str) -> pa.Array:
    """(N,) ids as texts, null where there is none; 7, 7.0 and '7' are the same id."""
    column = find(batch, name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return as_text(column, name)


def instants(
    batch: pa.RecordBatch, schema: Schema, rows: npt.NDArray[np.bool_], refusals: Refusals
) -> npt.NDArray[np.float64] | None:
    """(N,) when each event came, in seconds since 1970, NaN where it does not say; ``rows`` must say it.

    An answer may say it in the column of label times instead.
    """
    if schema.time is None:
        return None
    whole, valid = microseconds(find(batch, schema.time), schema.time, refusals)
    found = np.where(valid, whole / 1e6, np.nan)
    if schema.label_time is not None and schema.label_time in batch.schema.names:
        late, known = microseconds(find(batch, schema.label_time), schema.label_time, refusals)
        found = np.where(valid | rows | ~known, found, late / 1e6)
    missing = np.flatnonzero(rows & ~valid)
    refusals.add(missing, lambda _: f"no time in column {schema.time!r}", wanted="a time", do=_FIX)
    return found


def _there(column: pa.Array, kind: str) -> npt.NDArray[np.bool_]:
    """(N,) whether there is a value; NaN is none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found: npt.NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        found = found & ~pc.fill_null(pc.is_nan(column), False).to_numpy(zero_copy_only=False)
    if kind in _BLANK_IS_MISSING and is_text(column.type):
        blank = pc.equal(pc.utf8_trim_whitespace(plain_text(column)), "")
        found = found & ~pc.fill_null(blank, False).to_numpy(zero_copy_only=False)
    return found
