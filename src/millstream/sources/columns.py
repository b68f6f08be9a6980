"""Named columns: their settled types, which of them are wanted, and the record batches that hold them.

Every source of named columns hands out the same few Arrow types, whatever a file or library chose: no dictionaries, no
``large_`` or ``_view`` twins, times in microseconds. This file knows no files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from millstream.errors import DataError, SettingError

__all__ = ["Declared", "declared_types", "near", "plain_batch", "settled_schema", "settled_type", "wanted_columns"]

Declared: TypeAlias = "Mapping[str, pa.DataType] | pa.Schema | None"
"""Column types that somebody states, by name; the others are inferred."""


def settled_type(kind: pa.DataType) -> pa.DataType:
    """The type that columns of type ``kind`` are handed out as.

    >>> settled_type(pa.dictionary(pa.int8(), pa.large_string()))
    DataType(string)
    """
    types = pa.types
    if types.is_dictionary(kind):
        return settled_type(kind.value_type)
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if types.is_decimal(kind):
        return pa.float64()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(settled_type(kind.value_type))
    if types.is_null(kind) or types.is_time(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return pa.string()
    if types.is_large_binary(kind) or str(kind) == "binary_view":
        return pa.binary()
    return kind


def settled_schema(found: pa.Schema, declared: Declared, columns: Sequence[str] | None, where: str) -> pa.Schema:
    """The fields that are handed out: the wanted ones of ``found``, each of its declared or else its settled type."""
    types = declared_types(declared)
    names = wanted_columns(found.names, columns, where)
    unknown = [name for name in types if name not in found.names]
    if unknown:
        raise DataError(
            got=f"a type for column {unknown[0]!r}, which {where} does not have",
            wanted="types of its own columns",
            do=near(unknown[0], found.names),
        )
    return pa.schema([pa.field(name, types.get(name) or settled_type(found.field(name).type)) for name in names])


def wanted_columns(found: Sequence[str], columns: Sequence[str] | None, where: str) -> list[str]:
    """The columns that are read, in the order of ``columns``; all that were found when it is None."""
    twice = sorted({name for name in found if list(found).count(name) > 1})
    if twice:
        raise DataError(
            got=f"column {twice[0]!r} twice in {where}", wanted="each name once", do="rename one of the two"
        )
    if columns is None:
        return list(found)
    if isinstance(columns, str) or not columns:
        raise SettingError(got=f"columns={columns!r}", wanted="a list of column names", do="put them into a list")
    unknown = [name for name in columns if name not in found]
    if unknown:
        raise DataError(
            got=f"column {unknown[0]!r}, which {where} does not have",
            wanted="one of its columns",
            do=near(unknown[0], found),
        )
    return list(columns)


def near(name: str, names: Iterable[str]) -> str:
    """What to try instead of a name that is not among ``names``.

    >>> near("wekday", ["weekday", "hour"])
    "try 'weekday'"
    """
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "try " + " or ".join(repr(one) for one in close)
    shown = ", ".join(repr(one) for one in names[:10])
    return f"choose from {shown}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def declared_types(declared: Declared) -> dict[str, pa.DataType]:
    """Declared types by name, each of them an Arrow type."""
    if declared is None:
        return {}
    pairs = (
        dict(zip(declared.names, declared.types, strict=True)) if isinstance(declared, pa.Schema) else dict(declared)
    )
    for name, kind in pairs.items():
        if not isinstance(kind, pa.DataType):
            raise SettingError(
                got=f"type {kind!r} for column {name!r}", wanted="an Arrow type", do="use for example pa.float64()"
            )
    return pairs


def plain_batch(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The batch with exactly the columns and types of ``schema``; values that do not fit are a DataError."""
    if batch.schema.equals(schema):
        return batch if batch.schema.metadata is None else batch.replace_schema_metadata(None)
    return pa.RecordBatch.from_arrays([_plain(batch, field, where) for field in schema], schema=schema)


def _plain(batch: pa.RecordBatch, field: pa.Field, where: str) -> Any:
    column = batch.column(field.name)
    if column.type.equals(field.type):
        return column
    is_finer = str(column.type).startswith("timestamp[ns") and pa.types.is_timestamp(field.type)
    try:
        return column.cast(field.type, safe=not is_finer)  # what is below a microsecond is dropped
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            got=f"column {field.name!r} of {where} as {column.type} ({reason})",
            wanted=f"values that fit {field.type}",
            do="declare another type in schema=",
        ) from error
