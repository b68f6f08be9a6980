"""``as_source``: what people have in their hands, as a source.

Optional packages are recognised by what their objects offer and never imported.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from millstream.contracts import Chunk, Source, map_tensors
from millstream.errors import DataError, SettingError
from millstream.rows import by_rows
from millstream.sources.columns import plain_batch, settled_type
from millstream.sources.files import FileSource
from millstream.sources.iterables import BatchesSource, DatasetSource, RecordsSource
from millstream.sources.journal import JOURNAL, journal_source
from millstream.sources.memory import TableSource, TensorInputs, TensorSource
from millstream.sources.stdin import StdinSource
from millstream.sources.urls import is_live_url, live_source

__all__ = ["as_source"]

_NUM_PEEKED = 100  # records that the columns of an iterable are inferred from; a slow generator makes one wait for them
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def as_source(data: Any, targets: Any = None, *, weights: Any = None, name: str | None = None) -> Source:
    """A source of whatever ``data`` is.

    - a source: itself
    - a path or pattern, or a list of them: the files; ``-``: standard input
    - ``journal://FOLDER``: a journal, followed (``?follow=no``: as it is now)
    - ``kafka://, ``redis://``, ``nats://`` or ``follow:PATH``: what arrives there (``live_source``)
    - tensors or arrays ``X``, ``(X, y)`` or ``(X, y, w)``, where X may be a tuple or dict of them: tensors, also
      sparse rows (N, S). float64 of NumPy becomes float32; whole-number targets become int64
    - a pandas, polars or Arrow table, or a dict of lists: named columns, ``targets`` and ``weights`` among them
    - a torch Dataset, DataLoader or IterableDataset (of records: wrap one that gives batches into a DataLoader)
    - any iterable of records: dicts of named values, or ``(x, y)`` pairs. With dicts of tensors, ``targets`` is the key
      of the targets

    >>> next(as_source([[0.0, 1.0], [2.0, 3.0]], [0, 1]).read()).targets
    tensor([0, 1])
    >>> next(as_source([{"hour": 7}, {"hour": 8, "load": 0.5}]).read()).inputs.to_pydict()
    {'hour': [7, 8], 'load': [None, 0.5]}
    """
    if isinstance(data, (str, os.PathLike)) or _is_list_of(data, (str, os.PathLike)):
        _refuse_extra(data, targets, weights)
        if is_live_url(data):
            return live_source(str(data), name=name)
        if isinstance(data, str) and data.startswith(JOURNAL):
            return journal_source(data, name)
        return StdinSource(name=name or "stdin") if data == "-" else FileSource(data, name=name)
    if isinstance(data, Source):
        _refuse_extra(data, targets, weights)
        return data
    if _is_table(data):
        return TableSource(_with_columns(_table(data), targets, weights), name=name or "table")
    if isinstance(data, TensorDataset):
        data = tuple(data.tensors)
    if isinstance(data, tuple) and data and _is_table(data[0]):
        return as_source(data[0], *data[1:2], weights=data[2] if len(data) > 2 else None, name=name)
    arrays = _arrays(data, targets, weights)
    if arrays is not None:
        inputs, targets, weights = arrays
        return TensorSource(
            to_inputs(inputs),
            None if targets is None else to_targets(targets),
            None if weights is None else _to_weights(weights),
            name=name or "memory",
        )
    if weights is not None or not (targets is None or isinstance(targets, str)):
        raise SettingError(
            got=f"targets= or weights= beside {type(data).__name__}",
            wanted="items that hold them: (x, y) or (x, y, w)",
            do="put them into the items",
        )
    return _from_items(data, targets, name or type(data).__name__)


def to_inputs(value: Any) -> TensorInputs:
    """Tensors of arrays, or of a tuple or dict of them; float64 of NumPy becomes float32."""
    if isinstance(value, dict):
        return {str(key): _to_tensor(one, f"inputs[{key!r}]") for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_to_tensor(one, "inputs") for one in value)
    return _to_tensor(value, "inputs")


def to_targets(value: Any) -> Tensor:
    """Whole numbers as int64, (N, 1) of them as (N,); other numbers as they are, float64 of NumPy as float32."""
    tensor = _to_tensor(value, "targets")
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor
    tensor = tensor.to(torch.int64)
    return tensor.squeeze(1) if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor


def _to_weights(value: Any) -> Tensor:
    tensor = _to_tensor(value, "weights")
    if tensor.ndim != 1:
        raise DataError(got=f"weights of shape {tuple(tensor.shape)}", wanted="one per record", do="flatten them")
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _to_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return by_rows(value.detach(), what)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(got=f"{what} of unequal rows", wanted="rows of one length", do="pad or cut them") from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            got=f"{what} of type {array.dtype}", wanted="numbers", do="give a table of named columns for text or times"
        )
    if array.dtype == np.float64 or array.dtype.itemsize > 8:
        array = array.astype(np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # Read-only arrays (memory maps) are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _arrays(data: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any] | None:
    """(X, y, w) when all is in memory and numeric, else None."""
    is_pair = isinstance(data, tuple) and len(data) in (2, 3) and targets is None and weights is None
    if is_pair and (_is_array(data[1]) or isinstance(data[1], list)):
        inputs, targets, *rest = data
        return inputs, targets, rest[0] if rest else None
    if isinstance(data, (tuple, dict)) and data:
        parts = data.values() if isinstance(data, dict) else data
        if all(_is_array(one) for one in parts):
            return data[0] if isinstance(data, tuple) and len(data) == 1 else data, targets, weights
    if _is_array(data) or _is_list_of(data, (int, float, list)):
        return data, targets, weights
    return None


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__array__")


def _is_list_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kinds)


def _is_table(data: Any) -> bool:
    if isinstance(data, (pa.Table, pa.RecordBatch)) or hasattr(data, "__arrow_c_stream__"):
        return True
    return isinstance(data, dict) and bool(data) and any(_is_column(one) for one in data.values())


def _is_column(value: Any) -> bool:
    """Whether a value of a dict makes it a table of named columns rather than tensors by name."""
    return isinstance(value, (list, pa.Array, pa.ChunkedArray)) or (
        isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"
    )


def _table(data: Any) -> pa.Table:
    try:
        table = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else pa.table(data)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            got=f"a {type(data).__name__} that Arrow cannot hold ({reason})",
            wanted="one type of value in each column",
            do="convert that column, e.g. to text",
        ) from error
    kept = [column for column in table.column_names if not _PANDAS_INDEX.fullmatch(column)]
    return table.select(kept).replace_schema_metadata(None)


def _with_columns(table: pa.Table, targets: Any, weights: Any) -> pa.Table:
    for values, default in ((targets, "target"), (weights, "weight")):
        if values is None:
            continue
        column = str(getattr(values, "name", None) or default)
        if isinstance(values, str) or column in table.column_names:
            raise SettingError(
                got=f"{default}s={column!r} beside a table",
                wanted="values of a new column",
                do="name a column of the table as the target in the schema",
            )
        values = values.numpy() if isinstance(values, Tensor) else values
        if len(values) != table.num_rows:
            raise DataError(
                got=f"{len(values)} {default}s for {table.num_rows} records", wanted="one each", do="cut the longer"
            )
        table = table.append_column(column, pa.array(values))
    return table


def _from_items(data: Any, key: str | None, name: str) -> Source:
    if isinstance(data, DataLoader):
        return BatchesSource(data, lambda batch: _tensor_chunk(batch, key, False), name=name)
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if not len(data):
            raise _nothing(name)
        return _from_sequence(data, key, name)
    if not isinstance(data, Iterable):
        raise SettingError(
            got=f"data of type {type(data).__name__}",
            wanted="tensors, arrays, a table, a path, a dataset, or records",
            do="see millstream.sources.as_source",
        )
    records: Iterable[Any] = data
    first = list(itertools.islice(iter(data), _NUM_PEEKED))
    if not first:
        raise _nothing(name)
    if isinstance(data, Iterator):
        records = iter(itertools.chain(first, data))
    collate, schema = _collating(first, key, name)
    is_stable = not isinstance(data, (Iterator, IterableDataset))
    return RecordsSource(records, collate, schema, is_stable=is_stable, name=name)


def _from_sequence(data: Any, key: str | None, name: str) -> Source:
    if isinstance(data, (list, tuple)) and isinstance(data[0], Mapping) and not _holds_tensors(data[0]):
        _refuse_key(key)
        return TableSource(pa.Table.from_batches([_records_batch(data, _infer(data, name), 0, name)]), name=name)
    first = [data[number] for number in range(min(len(data), 100))]
    collate, schema = _collating(first, key, name)
    return DatasetSource(data, collate, schema, name=name)


def _collating(first: Sequence[Any], key: str | None, name: str) -> tuple[Any, pa.Schema | None]:
    item = first[0]
    if isinstance(item, Mapping) and not _holds_tensors(item):
        _refuse_key(key)
        schema = _infer(first, name)

        def to_batch(items: Sequence[Any], number: int) -> Chunk:
            return Chunk(_records_batch(items, schema, number, name))

        return to_batch, schema
    is_double = _is_double(item)

    def to_tensors(items: Sequence[Any], number: int) -> Chunk:
        try:
            batch = default_collate(list(items))
        except (TypeError, RuntimeError, KeyError) as error:
            raise DataError(
                got=f"records of {name} that do not fit together ({str(error).splitlines()[0][:200]})",
                wanted="tensors or numbers of one shape",
                do="make all records alike",
            ) from error
        return _tensor_chunk(batch, key, is_double)

    return to_tensors, None


def _tensor_chunk(batch: Any, key: str | None, keep_double: bool) -> Chunk:
    """A collated batch: X, (X, y) or (X, y, w), where X may be a tuple or dict."""
    inputs, targets, weights = batch, None, None
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        inputs, targets, *rest = batch
        weights = rest[0] if rest else None
    if isinstance(inputs, Mapping) and key is not None:
        if key not in inputs:
            raise SettingError(got=f"targets={key!r}", wanted="a key of the records", do=f"choose from {list(inputs)}")
        targets = inputs[key]
        inputs = {name: value for name, value in inputs.items() if name != key}
    inputs = tuple(inputs) if isinstance(inputs, list) else dict(inputs) if isinstance(inputs, Mapping) else inputs
    chunk = Chunk(
        to_inputs(inputs),
        None if targets is None else to_targets(targets),
        None if weights is None else _to_weights(weights),
    )
    return chunk if keep_double else _single(chunk)


def _single(chunk: Chunk) -> Chunk:
    """Python's and NumPy's numbers are float64 after collating; models want float32."""

    def one(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    chunk.inputs = map_tensors(chunk.inputs, one)
    chunk.targets = None if chunk.targets is None else one(chunk.targets)
    return chunk


def _is_double(item: Any) -> bool:
    """Whether an item's input is a float64 tensor, which is then wanted."""
    first = item[0] if isinstance(item, (tuple, list)) and item else item
    return isinstance(first, Tensor) and first.dtype == torch.float64


def _holds_tensors(record: Mapping[str, Any]) -> bool:
    return all(isinstance(value, (Tensor, np.ndarray)) for value in record.values())


def _infer(records: Sequence[Mapping[str, Any]], name: str) -> pa.Schema:
    names = dict.fromkeys(str(key) for record in records for key in record)
    try:
        kinds = [pa.infer_type([record.get(column) for record in records], from_pandas=True) for column in names]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            got=f"records of {name} whose values differ in type ({str(error).splitlines()[0][:200]})",
            wanted="one type of value under each name",
            do="convert them",
        ) from error
    return pa.schema([pa.field(column, settled_type(kind)) for column, kind in zip(names, kinds, strict=True)])


def _records_batch(records: Sequence[Any], schema: pa.Schema, number: int, name: str) -> pa.RecordBatch:
    columns = []
    for field in schema:
        values = [record.get(field.name) if isinstance(record, Mapping) else None for record in records]
        try:
            columns.append(pa.array(values, type=field.type, from_pandas=True))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            place = next(k for k, value in enumerate(values) if not _fits(value, field.type))
            where = f"record {number + place} of {name}" if number >= 0 else name
            raise DataError(
                got=f"{where} with {str(values[place])[:60]!r} under {field.name!r}",
                wanted=f"{field.type}, as in the records before",
                do="convert it",
            ) from error
    return plain_batch(pa.RecordBatch.from_arrays(columns, schema=schema), schema, name)


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], type=kind, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _refuse_key(key: str | None) -> None:
    if key is not None:
        raise SettingError(
            got=f"targets={key!r} beside named columns",
            wanted="none",
            do="name the target in the schema instead",
        )


def _nothing(name: str) -> DataError:
    return DataError(got=f"{name} without records", wanted="at least one record", do="check how it was made")


def _refuse_extra(data: Any, targets: Any, weights: Any) -> None:
    if targets is not None or weights is not None:
        raise SettingError(
            got=f"targets= or weights= beside {data!r}"[:200],
            wanted="them for arrays and tables only",
            do="name the columns in the schema",
        )
