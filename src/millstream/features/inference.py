"""A schema guessed from the first records of a data set: a start that prints, and can be mended by hand.

This file knows Arrow tables; it knows no source and no tensors. What it cannot use it declares as ``ignore``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError
from millstream.features.blocks import list_shape
from millstream.features.columns import distinct, find, is_text, is_time, microseconds, near, plain_text
from millstream.features.refusals import Refusals
from millstream.schema import Field, Schema, Target

__all__ = ["SAMPLE", "infer"]

SAMPLE = 10_000
"""Records that are looked at."""

_MOST_VALUES = 32  # distinct values of a category that become a vocabulary
_MOST_INTEGER_CLASSES = 100
_WORDS_OF_A_TEXT = 3.0  # on average, at least
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_MOST_DISTINCT = 0.8  # of the labels: with more, hardly any class would be seen twice
_MOST_MISFITS = 0.05  # of a column of numbers: a few texts among them are mistakes, to be reported with their place


def infer(
    sample: pa.Table | pa.RecordBatch,
    *,
    target: str | None = None,
    labelled: bool = True,
    exhaustive: bool = False,
    weight: str | None = None,
    time: str | None = None,
    label_time: str | None = None,
    id: str | None = None,
) -> Schema:
    """The schema that the first records suggest; the target is ``target``, else the last column.

    ``labelled=False`` is for data without a target. ``exhaustive`` says that the sample is the whole data set, so that
    its classes are all there are; otherwise, when some classes were seen only once, there is room for as many more as
    their number suggests (Chao's estimate, 1984). ``weight``, ``label_time`` and ``id`` are no features; ``time`` stays
    one. Raises DataError for an empty sample and for a column that is not there.

    >>> table = pa.table({"age": [31, 44, 27], "city": ["Bern", "Rome", "Bern"], "y": ["no", "yes", "no"]})
    >>> infer(table, exhaustive=True).target
    Target('y', 'class', classes=('no', 'yes'))
    """
    batch = _first_records(sample)
    names = list(dict.fromkeys(batch.schema.names))
    for name in (target, weight, time, label_time, id):
        if name is not None:
            _require(batch, name)
    if labelled and target is None:
        target = next((name for name in reversed(names) if name not in (weight, time, label_time, id)), names[-1])
    left_out = {target if labelled else None, weight, label_time, id}
    fields = tuple(_field(batch, name) for name in names if name not in left_out)
    wanted = _target(target, find(batch, target), exhaustive) if labelled and target else None
    return Schema(fields, wanted, weight, time, label_time, id)


def _first_records(sample: pa.Table | pa.RecordBatch | list[dict[str, Any]]) -> pa.RecordBatch:
    if isinstance(sample, list):
        sample = pa.Table.from_pylist(sample)  # records as dicts of named values
    table = pa.table(sample) if hasattr(sample, "__arrow_c_stream__") else pa.Table.from_batches([sample])
    batches = table.slice(0, SAMPLE).combine_chunks().to_batches()
    if not batches or not batches[0].num_rows or not batches[0].num_columns:
        raise DataError(
            got=f"a sample of {table.num_rows} records and {table.num_columns} columns",
            wanted="some of both",
            do="check the path, or declare a schema",
        )
    return batches[0]


def _require(batch: pa.RecordBatch, name: str) -> None:
    if name not in batch.schema.names:
        raise DataError(
            got=f"no column {name!r}",
            wanted=f"one of the data's columns: {near(name, batch.schema.names)}",
            do="name one of them",
        )


def _field(batch: pa.RecordBatch, name: str) -> Field:
    column = find(batch, name)
    if column.null_count == len(column):
        return Field(name, "ignore")
    # A tensor's type states its shape, which the lists that it is stored as do not.
    shape = list_shape(batch.schema.field(name).type) if pa.types.is_nested(column.type) else ()
    return _guess(name, column, shape)


def _guess(name: str, column: pa.Array, shape: tuple[int, ...] | None) -> Field:
    kind = column.type
    if is_text(kind):
        return _text_field(name, plain_text(column))
    if pa.types.is_boolean(kind):
        return Field(name, "category", values=("false", "true"))
    if pa.types.is_dictionary(kind):
        plain = is_text(kind.value_type) or pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)
        return _category(name, column) if plain else _guess(name, column.dictionary_decode(), ())
    if pa.types.is_duration(kind) or _is_number(kind):
        return Field(name, "number")
    if is_time(kind):
        return _time_field(name, kind)
    shape = _shape(column) and (shape or _shape(column))
    if shape:
        return Field(name, "array", shape=shape, scale=1 / 255 if _innermost(kind) == pa.uint8() else 1.0)
    return Field(name, "ignore")


def _text_field(name: str, texts: pa.Array) -> Field:
    there = texts.drop_null()
    refusals = Refusals()
    _, valid = microseconds(there, name, refusals)
    if not refusals and valid.all():
        dates = pc.all(pc.less_equal(pc.utf8_length(there), len("2020-01-01"))).as_py()
        return _time_field(name, pa.date32() if dates else pa.timestamp("us"))
    if _has_few_misfits(there):
        return Field(name, "number")
    words = pc.mean(pc.count_substring_regex(there, r"[\pL\pM\pN_]+")).as_py()
    if words >= _WORDS_OF_A_TEXT and pc.count_distinct(there).as_py() > len(there) / 2:
        return Field(name, "text")
    return _category(name, texts)


def _has_few_misfits(texts: pa.Array) -> bool:
    """Whether nearly all of these texts, but not all, are numbers. Texts that all are were made texts on purpose."""
    fit = pc.mean(pc.match_substring_regex(texts, _NUMBER).cast(pa.int8())).as_py()
    return bool(1 - _MOST_MISFITS <= (fit or 0) < 1)


def _category(name: str, column: pa.Array) -> Field:
    values = distinct(column, name)[1].to_pylist()
    if len(values) <= _MOST_VALUES:
        return Field(name, "category", values=_ordered(values))
    # Four slots a value: three values of four then share theirs with no other.
    return Field(name, "category", slots=max(4096, 1 << (4 * len(values) - 1).bit_length()))


def _time_field(name: str, kind: pa.DataType) -> Field:
    if pa.types.is_time(kind):
        return Field(name, "time", parts=("hour",))
    if pa.types.is_date(kind):
        return Field(name, "time", parts=("weekday", "yearday"))
    return Field(name, "time")


def _shape(column: pa.Array) -> tuple[int, ...] | None:
    """The shape of the lists of a column, when they hold numbers and are all alike."""
    if not _is_number(_innermost(column.type)) and not pa.types.is_boolean(_innermost(column.type)):
        return None
    stated = list_shape(column.type)
    if stated is not None or not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return stated
    lengths = pc.unique(column.value_lengths().drop_null()).to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        return None
    elements = column.flatten()
    inner = _shape(elements) if pa.types.is_nested(elements.type) else ()
    return None if inner is None else (lengths[0], *inner)


def _innermost(kind: pa.DataType) -> pa.DataType:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(is_list(kind) for is_list in lists):
        kind = kind.value_type
    return kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _target(name: str, column: pa.Array, exhaustive: bool) -> Target:
    there = column.drop_null()
    if not len(there):
        raise DataError(got=f"target {name!r} without any label", wanted="labels", do="name another target")
    kind = there.type
    if pa.types.is_nested(kind) or is_time(kind) or pa.types.is_binary(kind):
        raise DataError(
            got=f"target {name!r} of type {kind}", wanted="classes or numbers", do="name another target column"
        )
    if _is_number(kind) and not _is_low_cardinality(there):
        return Target(name, "number")
    codes, texts = distinct(there, name)
    values = texts.to_pylist()
    too_many = len(values) > max(_MOST_INTEGER_CLASSES, _MOST_DISTINCT * len(there))
    if too_many and is_text(kind) and _has_few_misfits(plain_text(there)):
        return Target(name, "number")
    if too_many:
        raise DataError(
            got=f"target {name!r} with {len(values)} distinct values in {len(there)} records",
            wanted="classes that repeat, or numbers",
            do="name another target column",
        )
    spare = 0 if exhaustive else _unseen(np.bincount(codes))
    if not spare:
        return Target(name, "class", _ordered(values))
    return Target(name, "class", _ordered(values), new="class", capacity=len(values) + spare)


def _is_low_cardinality(numbers: pa.Array) -> bool:
    if not pa.types.is_integer(numbers.type):
        values = numbers.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            return False
    num_values = pc.count_distinct(numbers).as_py()
    return bool(num_values <= _MOST_INTEGER_CLASSES and len(numbers) >= 5 * num_values)


def _unseen(counts: npt.NDArray[np.int64]) -> int:
    """How many classes there are beyond those seen, from how many were seen once and twice."""
    if len(counts) == 1:
        return 1  # data sorted by class: the second is sure to come
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return math.ceil(once * (once - 1) / (2 * (twice + 1)) + once / 2)


def _ordered(values: list[str]) -> tuple[str, ...]:
    """Whole numbers by value, so that classes 0 … 9 keep their numbers; texts by alphabet."""
    try:
        return tuple(sorted(values, key=int))
    except ValueError:
        return tuple(sorted(values))
