"""Sources that make their records with Python code: datasets, data loaders, generators.

They run that code for every record, so they are as fast as it is. What can be read again can seek (by passing over the
records before); a one-shot iterator goes on where it stands.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from millstream.contracts import Chunk, Inputs, Position
from millstream.errors import DataError
from millstream.sources.memory import sample_numbers
from millstream.sources.rechunk import Piece, check_numbers, check_place, check_size, rechunk

__all__ = ["BatchesSource", "DatasetSource", "RecordsSource"]

Collate = Callable[[Sequence[Any], int], Chunk]
"""Items and the number of the first of them -> a chunk."""


class DatasetSource:
    """A map-style dataset: ``len`` and items by number. It seeks and jumps."""

    def __init__(self, dataset: Any, collate: Collate, schema: pa.Schema | None, *, name: str) -> None:
        self.name = name
        self.schema = schema
        self.can_seek = True
        self.can_jump = True
        self.num_records: int | None = len(dataset)
        self._dataset = dataset
        self._collate = collate

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        total = self.num_records or 0
        for first in range(check_place(position, total, self.name), total, size):
            last = min(first + size, total)
            chunk = self._collate(self._items(range(first, last)), first)
            chunk.after = last
            yield chunk

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The items with these numbers, in this order."""
        return self._collate(self._items(check_numbers(numbers, self.num_records, self.name).tolist()), -1)

    def fingerprint(self) -> Mapping[str, Any]:
        """The number of items, and a hash of 8 of them."""
        total = self.num_records or 0
        numbers = sample_numbers(total)[:: max(1, min(64, total) // 8)]
        return {
            "kind": "dataset",
            "records": total,
            "schema": None if self.schema is None else str(self.schema),
            "sample": _content_hash(self.take(numbers).inputs),
        }

    def _items(self, numbers: Sequence[int] | range) -> Sequence[Any]:
        several = getattr(self._dataset, "__getitems__", None)
        if several is not None:
            return list(several(list(numbers)))
        return [self._dataset[number] for number in numbers]


class RecordsSource:
    """Any iterable of records, each collated as it comes. A position is the number of records before it."""

    def __init__(
        self, records: Iterable[Any], collate: Collate, schema: pa.Schema | None, *, is_stable: bool, name: str
    ) -> None:
        self.name = name
        self.schema = schema
        self.can_seek = is_stable
        self.can_jump = False
        self.num_records: int | None = None
        self.modified = [] if is_stable else [uuid.uuid4().hex]  # the same facts do not mean the same records
        self._stream = _Restartable(records)
        self._collate = collate

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        number, items = self._stream.open(position, self.name)
        while taken := list(itertools.islice(items, size)):
            chunk = self._collate(taken, number)
            number += len(taken)
            self._stream.done = number
            chunk.after = number
            yield chunk

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise _cannot_jump(self.name)

    def fingerprint(self) -> Mapping[str, Any]:
        """The columns; the records themselves cannot be known before they come."""
        return {"kind": "records", "name": self.name, "schema": None if self.schema is None else str(self.schema)}


class BatchesSource:
    """An iterable of collated batches, such as a DataLoader, cut anew into chunks of exact size."""

    def __init__(self, batches: Iterable[Any], convert: Callable[[Any], Chunk], *, name: str) -> None:
        self.name = name
        self.schema: pa.Schema | None = None
        self.can_seek = False
        self.can_jump = False
        self.num_records: int | None = None
        self.modified = [uuid.uuid4().hex]  # a loader may shuffle: the same facts do not mean the same records
        self._batches = batches
        self._convert = convert

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        skip = check_place(position, None, self.name)
        return rechunk(self._pieces(), size, skip)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise _cannot_jump(self.name)

    def fingerprint(self) -> Mapping[str, Any]:
        """Its name; the records themselves cannot be known before they come."""
        return {"kind": "batches", "name": self.name}

    def _pieces(self) -> Iterator[Piece]:
        number = 0
        for batch in self._batches:
            chunk = self._convert(batch)
            yield Piece(chunk, _counter(number))
            number += chunk.span


class _Restartable:
    """An iterable that is opened at a record number: anew if it can be, else only where it stands."""

    def __init__(self, records: Iterable[Any]) -> None:
        self._records = records
        self._one_shot = iter(records) if isinstance(records, Iterator) else None
        self.done = 0

    def open(self, position: Position, name: str) -> tuple[int, Iterator[Any]]:
        if self._one_shot is not None:
            if position is not None and position != self.done:
                raise DataError(
                    got=f"position {position!r} of {name}, which is a one-shot iterator at record {self.done}",
                    wanted="records that can be read again",
                    do="give a list, a dataset or a file instead",
                )
            return self.done, self._one_shot
        number = check_place(position, None, name)
        items = iter(self._records)
        passed = sum(1 for _ in itertools.islice(items, number))
        if passed < number:
            raise DataError(
                got=f"{name} with {passed} records", wanted=f"at least {number}", do="resume with the records of before"
            )
        return number, items


def _counter(number: int) -> Callable[[int], Position]:
    return lambda place: number + place


def _cannot_jump(name: str) -> DataError:
    return DataError(
        got=f"records by number from {name}",
        wanted="a source that can jump",
        do="wrap it: millstream.sources.cached(source)",
    )


def _content_hash(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    if isinstance(inputs, pa.RecordBatch):
        digest.update(repr(inputs.to_pylist()).encode())
        return digest.hexdigest()
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    for value in values:
        if isinstance(value, Tensor):
            digest.update(repr(value.double().tolist()).encode())
    return digest.hexdigest()
