"""Arrow columns to NumPy: numbers, instants and texts, of every Arrow type that can be read as such.

This file knows Arrow types and what is missing; it knows no statistics, fields or policies. Missing is null, and an
empty text where a number or a time is wanted.

Shapes: N records, D columns, U distinct texts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError
from millstream.features.refusals import Refusals

__all__ = ["as_text", "distinct", "find", "is_text", "is_time", "microseconds", "near", "numbers", "plain_text"]

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_PLAIN = frozenset(
    kind.id
    for kind in (
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64()),
    )
)
_FIX = "fix the record, declare the column as another kind, or set on_error='quarantine'"


def near(name: str, names: Iterable[str]) -> str:
    """The names to choose from, those most like ``name`` first, for a message.

    >>> near("colour", ["size", "color"])
    'color, size'
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*close, *names]))[:8]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def find(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column of that name; DataError naming the columns most like it when there is none."""
    index = batch.schema.get_field_index(name)
    if index < 0:
        twice = name in batch.schema.names
        raise DataError(
            got=f"records with {'several columns' if twice else 'no column'} {name!r}",
            wanted="one" if twice else f"it among {near(name, batch.schema.names) or 'the columns'}",
            do="rename the column, or change the schema",
        )
    column = batch.column(index)
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def numbers(column: pa.Array, name: str, refusals: Refusals) -> tuple[npt.NDArray[Any], Mask | None]:
    """(N,) numbers of any numeric dtype, and (N,) False where one is missing (None: nowhere; the number there is 0).

    Times are seconds since 1970. Texts that read as a number are one; others are refused.
    """
    kind = column.type
    if kind.id in _PLAIN:
        if column.null_count == 0:
            return column.to_numpy(zero_copy_only=False), None
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        return column.fill_null(0).to_numpy(zero_copy_only=False), valid
    if pa.types.is_dictionary(kind):
        return numbers(column.dictionary_decode(), name, refusals)
    if pa.types.is_null(kind):
        return np.zeros(len(column)), np.zeros(len(column), bool)
    if pa.types.is_boolean(kind):
        return numbers(column.cast(pa.uint8()), name, refusals)
    if pa.types.is_decimal(kind):
        return numbers(column.cast(pa.float64()), name, refusals)
    if is_time(kind):
        values, valid = microseconds(column, name, refusals)
        return values / 1e6, None if valid.all() else valid
    if is_text(kind):
        parsed = _parse(plain_text(column), pa.float64(), name, "a number", refusals)
        return numbers(parsed, name, refusals)
    raise _wrong_type(column, name, "numbers")


def microseconds(
    column: pa.Array, name: str, refusals: Refusals, *, local: bool = False
) -> tuple[npt.NDArray[np.int64], Mask]:
    """(N,) instants in µs since 1970, and (N,) False where one is missing.

    ``local`` counts as the clocks of the column's own time zone show, else it is UTC. A time without a date counts from
    midnight, numbers are seconds since 1970, texts are ISO 8601 and those with a zone are brought to UTC.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return microseconds(column.dictionary_decode(), name, refusals, local=local)
    if is_text(kind):
        return microseconds(_parse_times(plain_text(column), name, refusals), name, refusals)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.zeros(len(column), np.int64), valid
    if local and pa.types.is_timestamp(kind) and kind.tz is not None:
        column = _on_local_clocks(column, name)
    if is_time(kind):
        return _to_microseconds(column), valid
    if kind.id in _PLAIN or pa.types.is_decimal(kind):
        seconds = numbers(column, name, refusals)[0].astype(np.float64)
        bad = ~(np.abs(seconds) < 9e12)  # the years beyond do not fit 64 bits of microseconds
        if bad.any():
            refusals.add(
                np.flatnonzero(bad),
                lambda row: f"column {name!r} with {seconds[row]:g}",
                wanted="seconds since 1970",
                do=_FIX,
            )
            seconds = np.where(bad, 0.0, seconds)
        return np.rint(seconds * 1e6).astype(np.int64), valid
    raise _wrong_type(column, name, "times")


def distinct(column: pa.Array, name: str) -> tuple[Ints, pa.Array]:
    """(N,) numbers of each record's text among the distinct ones, −1 where it is missing, and those (U,) texts.

    The texts are in the order of their first appearance among the records; all that are listed appear.
    """
    if pa.types.is_null(column.type):
        return np.full(len(column), -1, np.int64), pa.array([], pa.string())
    if not pa.types.is_dictionary(column.type):
        encoded = _encode(column, name)
        return _codes(encoded), as_text(encoded.dictionary, name)
    codes = _codes(column)
    used, first = np.unique(codes, return_index=True)
    used, first = used[used >= 0], first[used >= 0]
    used = used[np.argsort(first)]
    texts = as_text(column.dictionary.take(pa.array(used)), name)
    missing = texts.is_null().to_numpy(zero_copy_only=False)
    renumbered = np.full(len(column.dictionary) + 1, -1, np.int64)  # the last one is that of code −1
    renumbered[used[~missing]] = np.arange(len(used) - int(missing.sum()))
    return renumbered[codes], texts.drop_null() if missing.any() else texts


def as_text(values: pa.Array, name: str) -> pa.Array:
    """Values as the texts that stand for them in a vocabulary: 1, 1.0, '1' and '1.0' are all '1'; true is 'true'.

    Only a text's trailing zeros after a whole number and the capitals of True and False are changed.
    """
    kind = values.type
    if pa.types.is_floating(kind):
        values = pc.add(values.cast(pa.float64()) if kind == pa.float16() else values, 0.0)  # −0 becomes 0
    try:
        texts = plain_text(values if is_text(kind) else values.cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _wrong_type(values, name, "texts, numbers or truths") from error
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return texts
    texts = pc.replace_substring_regex(texts, r"^([+-]?\d+)\.0*$", r"\1")
    texts = pc.replace_substring_regex(texts, r"^T(rue|RUE)$", "true")
    return pc.replace_substring_regex(texts, r"^F(alse|ALSE)$", "false")


def plain_text(column: pa.Array) -> pa.Array:
    """A text column of any type as a string or large_string array; its buffers are then alike."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column
    return column.cast(pa.large_string() if column.nbytes >= 1 << 31 else pa.string())


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) and not pa.types.is_interval(kind)


def _encode(column: pa.Array, name: str) -> pa.DictionaryArray:
    if pa.types.is_string_view(column.type):
        column = plain_text(column)
    try:
        return column.dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _wrong_type(column, name, "texts, numbers or truths") from error


def _codes(column: pa.DictionaryArray) -> Ints:
    codes: Ints = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return codes


def _to_microseconds(column: pa.Array) -> Ints:
    kind = column.type
    whole = pa.int32() if kind.bit_width == 32 else pa.int64()
    numbers: Ints = column.view(whole).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_date32(kind):
        return numbers * 86_400_000_000
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    return numbers // 1000 if unit == "ns" else numbers * {"s": 1_000_000, "ms": 1000, "us": 1}[unit]


def _on_local_clocks(column: pa.Array, name: str) -> pa.Array:
    try:
        return pc.local_timestamp(column)
    except pa.ArrowInvalid as error:
        raise DataError(
            got=f"column {name!r} in time zone {column.type.tz!r}",
            wanted="a zone that this machine knows",
            do="install the tzdata package, or convert the column to UTC",
        ) from error


def _parse_times(texts: pa.Array, name: str, refusals: Refusals) -> pa.Array:
    """Timestamps without a zone; what had one is in UTC."""
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    zoned = pc.match_substring_regex(texts, r"\d[T ]\d.*(Z|[+-]\d\d(:?\d\d)?)\s*$")
    wanted = "an ISO 8601 time"
    if not pc.any(zoned).as_py():
        return _parse(texts, pa.timestamp("us"), name, wanted, refusals)
    nothing = pa.scalar(None, texts.type)
    with_zone = _parse(pc.if_else(zoned, texts, nothing), pa.timestamp("us", "UTC"), name, wanted, refusals)
    without = _parse(pc.if_else(zoned, nothing, texts), pa.timestamp("us"), name, wanted, refusals)
    return pc.coalesce(with_zone.cast(pa.timestamp("us")), without)


def _parse(texts: pa.Array, kind: pa.DataType, name: str, wanted: str, refusals: Refusals) -> pa.Array:
    """Texts as ``kind``, an empty one as null; those that do not parse are refused, and null."""
    texts = pc.utf8_trim_whitespace(texts)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        pass
    encoded = texts.dictionary_encode()
    values, bad = [], []
    for place, text in enumerate(encoded.dictionary):
        try:
            values.append(text.cast(kind).as_py())
        except pa.ArrowInvalid:
            values.append(None)
            bad.append(place)
    rows = np.flatnonzero(np.isin(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), bad))
    refusals.add(rows, lambda row: f"column {name!r} with {_short(texts[row].as_py())}", wanted=wanted, do=_FIX)
    return pa.array(values, kind).take(encoded.indices)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _wrong_type(column: pa.Array, name: str, wanted: str) -> DataError:
    return DataError(
        got=f"column {name!r} of type {column.type}",
        wanted=wanted,
        do=f"declare it as another kind ({name}=ignore leaves it out)",
    )
