"""Sources of what is already in memory: tensors, and tables of named columns. Both seek and jump; nothing is copied.

This file knows tensors and Arrow tables only; ``conversion`` makes them of everything else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Position
from millstream.errors import DataError
from millstream.rows import rows_of
from millstream.sources.columns import Declared, plain_batch, settled_schema
from millstream.sources.rechunk import check_numbers, check_place, check_size, take_rows

__all__ = ["TableSource", "TensorInputs", "TensorSource", "sample_numbers"]

TensorInputs: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor]"

_VIEWS = 256  # views made by one call; amortises the call over small chunks


class TensorSource:
    """Records that are rows of tensors. A chunk is views of them and costs a few microseconds, even at size 1.

    >>> source = TensorSource(torch.arange(5), torch.ones(5))
    >>> [chunk.inputs.tolist() for chunk in source.read(size=2)]
    [[0, 1], [2, 3], [4]]
    >>> source.take(np.array([4, 0])).inputs.tolist()
    [4, 0]
    """

    def __init__(
        self,
        inputs: TensorInputs,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        name: str = "memory",
    ) -> None:
        self.name = name
        self.schema: pa.Schema | None = None
        self.can_seek = True
        self.can_jump = True
        self._inputs = inputs
        self._targets = targets
        self._weights = weights
        self._tensors = _named(inputs, targets, weights)
        self.num_records: int | None = _common_length(self._tensors, name)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first = check_place(position, self.num_records, self.name)
        total = self.num_records or 0
        while first < total:
            last = min(first + size * _VIEWS, total)
            nothing = itertools.repeat(None)
            targets = nothing if self._targets is None else torch.split(self._targets[first:last], size)
            weights = nothing if self._weights is None else torch.split(self._weights[first:last], size)
            for inputs, target, weight in zip(self._split(first, last, size), targets, weights, strict=False):
                span = min(size, last - first)
                first += span
                yield Chunk(inputs, target, weight, first, span)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, in this order, copied."""
        numbers = check_numbers(numbers, self.num_records, self.name)
        index = torch.from_numpy(numbers)
        return Chunk(
            take_rows(self._inputs, numbers),
            None if self._targets is None else self._targets.index_select(0, index),
            None if self._weights is None else self._weights.index_select(0, index),
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """Shapes, types, and a hash of 64 records."""
        rows = torch.from_numpy(sample_numbers(self.num_records or 0))
        digest = hashlib.sha256()
        for tensor in self._tensors.values():
            for part in _dense_parts(rows_of(tensor, rows)):
                digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in self._tensors.items()}
        return {"kind": "tensors", "tensors": shapes, "sample": digest.hexdigest()}

    def _split(self, first: int, last: int, size: int) -> Iterator[Any]:
        inputs = self._inputs
        if isinstance(inputs, Tensor):
            return _cut(inputs, first, last, size)
        if isinstance(inputs, tuple):
            return zip(*(_cut(tensor, first, last, size) for tensor in inputs), strict=True)
        names = tuple(inputs)
        columns = zip(*(_cut(tensor, first, last, size) for tensor in inputs.values()), strict=True)
        return (dict(zip(names, parts, strict=True)) for parts in columns)


class TableSource:
    """Records that are rows of an Arrow table; a chunk's inputs are a record batch.

    >>> source = TableSource(pa.table({"hour": [7, 8, 9]}))
    >>> [chunk.inputs.to_pydict() for chunk in source.read(size=2)]
    [{'hour': [7, 8]}, {'hour': [9]}]
    """

    def __init__(self, table: pa.Table | pa.RecordBatch, *, schema: Declared = None, name: str = "table") -> None:
        self.name = name
        self.can_seek = True
        self.can_jump = True
        if not table.num_rows or not table.num_columns:
            raise DataError(
                got=f"{name} with {table.num_rows} records and {table.num_columns} columns",
                wanted="at least one of each",
                do="check how it was made",
            )
        settled = settled_schema(table.schema, schema, None, name)
        batches = table.combine_chunks().to_batches() if isinstance(table, pa.Table) else [table]
        self._batch = plain_batch(batches[0], settled, name)
        self.schema: pa.Schema | None = settled
        self.num_records: int | None = table.num_rows

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first = check_place(position, self.num_records, self.name)
        total = self.num_records or 0
        while first < total:
            span = min(size, total - first)
            batch = self._batch.slice(first, span)
            first += span
            yield Chunk(batch, None, None, first, span)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, in this order, copied."""
        numbers = check_numbers(numbers, self.num_records, self.name)
        return Chunk(self._batch.take(pa.array(numbers)), span=len(numbers))

    def fingerprint(self) -> Mapping[str, Any]:
        """Columns, their types, the number of records, and a hash of 64 of them."""
        rows = self._batch.take(pa.array(sample_numbers(self.num_records or 0))).to_pylist()
        return {
            "kind": "table",
            "records": self.num_records,
            "columns": {field.name: str(field.type) for field in self._batch.schema},
            "sample": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest(),
        }


def sample_numbers(num_records: int) -> npt.NDArray[np.int64]:
    """Up to 64 record numbers, spread evenly, the first and the last among them."""
    return np.unique(np.linspace(0, num_records - 1, min(64, num_records)).astype(np.int64))


def _cut(tensor: Tensor, first: int, last: int, size: int) -> Iterator[Tensor]:
    if tensor.layout is torch.strided:
        return iter(torch.split(tensor[first:last], size))
    return (rows_of(tensor, slice(start, min(start + size, last))) for start in range(first, last, size))


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """What a tensor is made of in memory."""
    if tensor.layout is torch.strided:
        return (tensor,)
    return tensor.crow_indices(), tensor.col_indices(), tensor.values()


def _named(inputs: TensorInputs, targets: Tensor | None, weights: Tensor | None) -> dict[str, Tensor]:
    if isinstance(inputs, Tensor):
        named = {"inputs": inputs}
    elif isinstance(inputs, tuple):
        named = {f"inputs[{place}]": tensor for place, tensor in enumerate(inputs)}
    else:
        named = {f"inputs[{name!r}]": tensor for name, tensor in inputs.items()}
    if targets is not None:
        named["targets"] = targets
    if weights is not None:
        named["weights"] = weights
    return named


def _common_length(tensors: Mapping[str, Tensor], name: str) -> int:
    lengths = {key: tensor.shape[0] if tensor.ndim else 0 for key, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise DataError(
            got=f"{name} of unequal lengths: {shown}", wanted="one row per record in each", do="cut the longer"
        )
    length = next(iter(lengths.values()), 0)
    if not length:
        raise DataError(got=f"{name} without records", wanted="at least one record", do="check how it was made")
    return length
