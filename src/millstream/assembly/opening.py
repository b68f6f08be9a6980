"""What a person named as data: opened, its columns understood, records to test on held out.

The schema is guessed from the first records and corrected by hand, and the columns of a text are then read as it says.
This file knows sources and schemas; it knows no model.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from millstream import datasets, features, sources
from millstream.contracts import Source
from millstream.errors import DataError, SettingError
from millstream.schema import Field, Schema, Target

__all__ = ["Data", "check_name", "is_known", "open_data", "require_columns"]

_SAMPLE_RECORDS = 10_000
_PATIENCE_SECONDS = 1.0  # for the records of a pipe that a schema is guessed from, after the first
_TYPES_OF_KINDS = {"number": pa.float64(), "category": pa.string(), "text": pa.string(), "class": pa.string()}


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """What a person named as data: records to learn, records to test on, and what their columns mean."""

    name: str
    train: Source
    test: Source | None
    schema: Schema
    ordered: bool  # in the order of time: nothing is shuffled before it is compared


def open_data(
    name: str,
    *,
    target: str | None = None,
    columns: Sequence[str] = (),
    time: str | None = None,
    label_time: str | None = None,
    id: str | None = None,
    schema: Schema | None = None,
    test: float | str | None = None,
    ordered: bool | None = None,
    fetch: bool = False,
    on_error: Literal["stop", "quarantine"] = "stop",
    seed: int = 0,
) -> Data:
    """The data that a name stands for: a public data set, files, a glob, or ``-`` for standard input.

    ``columns`` are corrections of the guessed schema (``zip=category``); with ``schema``, that of a run, nothing is
    guessed, and what is asked for must be what it says. ``test`` is a fraction of the records to hold out, or the name
    of a file; without it only a data set with a test split of its own has one. ``ordered`` says if the order of the
    data is that of time; a public data set knows.
    """
    roles = (target, tuple(columns), time, label_time, id)
    if is_known(name):
        known = datasets.load(name, fetch=fetch)
        data = Data(known.name, known.train, known.test, known.schema, known.ordered)
        wanted = schema or _corrected(known.schema, roles, name)
    elif name == "-":
        pipe = sources.StdinSource(on_error=on_error, patience_seconds=_PATIENCE_SECONDS)
        wanted = schema or _guessed(pipe, pipe.peek(_SAMPLE_RECORDS), roles, name)
        pipe.declare(_types(pipe, wanted))
        data = Data(name, pipe, None, wanted, ordered=False)
    else:
        check_name(name)
        source, wanted = _opened_files(name, schema, roles, on_error)
        data = Data(name, source, None, wanted, ordered=False)
    if schema is not None:
        _refuse_other_roles(schema, roles)
    require_columns(wanted, data.train, name)
    data = dataclasses.replace(data, schema=wanted, ordered=data.ordered if ordered is None else ordered)
    return _with_test(data, test, on_error, seed)


def open_questions(name: str, schema: Schema | None, *, fetch: bool = False) -> Source:
    """What is to be predicted: the test records of a public data set, files, or ``-``; labels are not needed.

    The columns of a text are read as the run's ``schema`` says, so that a code keeps its zeros.
    """
    if is_known(name):
        known = datasets.load(name, fetch=fetch)
        return known.test or known.train
    if name == "-":
        pipe = sources.StdinSource(patience_seconds=_PATIENCE_SECONDS)
        if schema is not None:
            pipe.peek(_SAMPLE_RECORDS)
            pipe.declare(_types(pipe, schema))
        return pipe
    check_name(name)
    return (
        sources.FileSource(name)
        if schema is None
        else _opened_files(name, schema, (None, (), None, None, None), "stop")[0]
    )


def is_known(name: str) -> bool:
    """Whether a name is that of a public data set or a generator, and no file's."""
    return name.partition(":")[0] in datasets.names() and not Path(name).exists()


def check_name(name: str) -> None:
    """A name that is no file's may be meant to be that of a data set."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1 or glob.has_magic(name):
        return
    first = name.partition(":")[0]
    close = difflib.get_close_matches(first, [*datasets.names(), *(one.name for one in Path().iterdir())], 2, 0.5)
    raise SettingError(
        got=f"data {name!r}",
        wanted="a file, a glob, - or a public data set",
        do=f"try {' or '.join(close)}" if close else "see `millstream data list`",
    )


def require_columns(schema: Schema, source: Source, name: str) -> None:
    """Refuses a source that lacks a column of the schema: better to know before the training than after."""
    used = [field.name for field in schema.fields if field.kind != "ignore"]
    roles = schema.target and schema.target.name, schema.time, schema.label_time
    used += [column for column in roles if column]
    names = source.schema.names if source.schema is not None else used
    for column in used:
        if column not in names:
            close = difflib.get_close_matches(column, names, 1)
            raise DataError(
                got=f"no column {column!r} in {name}",
                wanted="one of its columns",
                do=f"try {close[0]}" if close else f"it has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}",
            )


_Roles = tuple[str | None, tuple[str, ...], str | None, str | None, str | None]
# target, corrections, time, label time, id


def _corrected(schema: Schema, roles: _Roles, name: str) -> Schema:
    """The schema of a known data set with what a person wants otherwise."""
    target, columns, time, label_time, id = roles
    label = schema.target and schema.target.name
    if target is not None and target != label:
        raise SettingError(got=f"target {target!r} for {name}", wanted=f"its label, {label!r}", do="leave --target out")
    for text in columns:
        schema = features.parse_override(text, schema)
    return _with_roles(schema, time, label_time, id)


def _with_roles(schema: Schema, time: str | None, label_time: str | None, id: str | None) -> Schema:
    """The schema with these columns of times and ids, where they are named; an id is no feature."""
    roles: dict[str, Any] = {
        "time": time or schema.time,
        "label_time": label_time or schema.label_time,
        "id": id or schema.id,
    }
    fields = tuple(field for field in schema.fields if id is None or field.name != id)
    return dataclasses.replace(schema, fields=fields, **roles)


def _guessed(source: Source, first: Any, roles: _Roles, name: str) -> Schema:
    """What the first records suggest, and what a person wants otherwise."""
    if first is None or not len(first):
        raise DataError(got=f"no records in {name}", wanted="at least one", do="check that this is the right file")
    target, columns, time, label_time, id = roles
    stated = {text.partition("=")[0] for text in columns}
    sample = _texts_as_numbers(first.inputs, stated) if _format(source) == "csv" else first.inputs
    schema = features.infer(sample, target=target, time=time, label_time=label_time, id=id)
    for text in columns:
        schema = features.parse_override(text, schema)
    return schema


def _opened_files(
    name: str, schema: Schema | None, roles: _Roles, on_error: Literal["stop", "quarantine"]
) -> tuple[Source, Schema]:
    """The files of a name, read as the schema says: that of a run, or the one that is guessed."""
    looked_at = sources.FileSource(name, on_error="quarantine")  # what is bad is told when it is read in earnest
    if schema is None:
        first = next(looked_at.read(size=_SAMPLE_RECORDS), None)
        if first is None or not len(first):
            collections.deque(sources.FileSource(name).read(size=_SAMPLE_RECORDS), maxlen=0)
        schema = _guessed(looked_at, first, roles, name)
    types = _types(looked_at, schema)
    return sources.FileSource(name, on_error=on_error, schema=types or None), schema


def _types(source: Source, schema: Schema) -> dict[str, pa.DataType]:
    """The types that the columns of a text are read as, where they are not what the first records suggest.

    Whole numbers may be followed by others, and a code may begin with a zero or hold a letter later.
    """
    form, types = _format(source), {}
    columns: list[Field | Target] = [*schema.fields, *([schema.target] if schema.target is not None else [])]
    found = {} if source.schema is None else dict(zip(source.schema.names, source.schema.types, strict=True))
    if schema.id is not None and schema.id in found and form == "csv":
        types[schema.id] = pa.string()
    for column in columns:
        wanted = _TYPES_OF_KINDS.get(column.kind)
        kind = found.get(column.name)
        if wanted is None or kind is None or kind == wanted:
            continue
        changes = form == "csv"
        if column.kind == "number":  # truths and times are numbers, too, but not by their text
            is_whole = pa.types.is_integer(kind) and form in ("csv", "jsonl")
            changes = is_whole or (form == "csv" and pa.types.is_string(kind))
        if changes:
            types[column.name] = wanted
    return types


def _format(source: Source) -> str:
    return str(source.fingerprint().get("format", ""))


def _texts_as_numbers(batch: pa.RecordBatch, stated: set[str]) -> pa.RecordBatch:
    """The first records of a CSV, whose numbers were taken for texts because a text comes later."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_string(field.type) and field.name not in stated:
            with contextlib.suppress(pa.ArrowInvalid):
                numbers = batch.column(place).cast(pa.float64())
                if numbers.null_count < len(numbers):
                    batch = batch.set_column(place, field.name, numbers)
    return batch


def _refuse_other_roles(schema: Schema, roles: _Roles) -> None:
    """What the columns of a run are is settled; to say it again is fine."""
    target, columns, time, label_time, id = roles
    asked = schema
    for text in columns:
        asked = features.parse_override(text, asked)
    label = schema.target and schema.target.name
    asked = _with_roles(asked, time, label_time, id)
    if asked != schema or target not in (None, label):
        raise SettingError(
            got="columns that are not read as they were when the run began",
            wanted="the same --target, --column, --time, --label-time and --id",
            do="leave these options out",
        )


def _with_test(data: Data, test: float | str | None, on_error: Literal["stop", "quarantine"], seed: int) -> Data:
    """The data with records to test on: those of a file, or held out."""
    if isinstance(test, str):
        check_name(test)
        source = sources.FileSource(test, on_error=on_error)
        require_columns(data.schema, source, test)
        return dataclasses.replace(data, test=source)
    if not test or data.test is not None:
        return data
    if isinstance(data.train, sources.StdinSource):  # it is read once, in one part and in the other
        data = dataclasses.replace(data, train=sources.cached(data.train))
    train, held_out = sources.hold_out(data.train, test, by="time" if data.ordered else "hash", seed=seed)
    return dataclasses.replace(data, train=train, test=held_out)
