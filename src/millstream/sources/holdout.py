"""Holding records out: a source in two parts that share nothing and are everything together.

Which part a record belongs to depends on its number, or on one column's value, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position, Source
from millstream.errors import DataError, SettingError
from millstream.sources.columns import near
from millstream.sources.draws import hash_column, key_of, uniform
from millstream.sources.order import Subset, modified
from millstream.sources.rechunk import Piece, check_size, cut, gather, rechunk

__all__ = ["Filtered", "hold_out"]

_FILTERED_RECORDS = 1 << 12

Mask = npt.NDArray[np.bool_]


def hold_out(
    source: Source,
    fraction: float,
    *,
    by: Literal["hash", "time"] = "hash",
    seed: int = 0,
    column: str | None = None,
) -> tuple[Source, Source]:
    """(train, held out): about ``fraction`` of the records by hash, or exactly the last of them by time.

    By hash of the record's number, or of the value in ``column``, so that records of one user, say, stay together. By
    time the source must know how many records it has, and be in the order of time. Parts of a source that jumps jump
    too, unless a column decides.

    >>> from millstream.sources.memory import TensorSource
    >>> import torch
    >>> train, held = hold_out(TensorSource(torch.arange(10)), 0.2, by="time")
    >>> next(held.read()).inputs.tolist()
    [8, 9]
    """
    if not 0 < fraction < 1:
        raise SettingError(got=f"fraction={fraction!r}", wanted="between 0 and 1", do="use for example 0.1")
    if by not in ("hash", "time") or (by == "time" and column is not None):
        raise SettingError(
            got=f"by={by!r}, column={column!r}", wanted="by='hash', a column or not, or by='time'", do="choose one"
        )
    facts = {"fraction": fraction, "by": by, "seed": seed, "column": column}
    if column is not None:
        _check_column(source, column)
        return _filtered(source, _by_column(column, key_of(seed), fraction), None, facts)
    total = source.num_records
    if by == "hash":
        is_held = _by_hash(key_of(seed), fraction)
    elif total is not None:
        is_held = _by_place(total - max(1, round(total * fraction)))
    else:
        raise SettingError(
            got=f"by='time' for {source.name}, whose number of records is not known",
            wanted="a source that knows it",
            do="import it once with millstream.sources.cached(source), or use by='hash'",
        )
    if total is None:
        return _filtered(source, lambda chunk, first: is_held(np.arange(first, first + chunk.span)), None, facts)
    mask = is_held(np.arange(total))
    if mask.all() or not mask.any():
        raise DataError(
            got=f"{int(mask.sum())} of the {total} records of {source.name} held out",
            wanted="some, and not all",
            do="change fraction or seed, or use more records",
        )
    if source.can_jump:
        train = Subset(source, np.flatnonzero(~mask), name=f"{source.name} (train)")
        return train, Subset(source, np.flatnonzero(mask), name=f"{source.name} (held out)")
    return _filtered(source, lambda chunk, first: mask[first : first + chunk.span], int(mask.sum()), facts)


class Filtered:
    """The records of a source that ``keep`` chooses, read in order; the source need not jump.

    ``keep`` is given a chunk and the number of its first place, and answers for each place of its span.
    """

    def __init__(
        self,
        source: Source,
        keep: Callable[[Chunk, int], Mask],
        *,
        num_records: int | None,
        facts: Mapping[str, Any],
        name: str,
    ) -> None:
        self.name = name
        self.schema: pa.Schema | None = source.schema
        self.num_records = num_records
        self.can_seek = source.can_seek
        self.can_jump = False
        self._source = source
        self._keep = keep
        self._facts = dict(facts)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        inner, number, skip = None, 0, 0
        if position is not None:
            if not isinstance(position, dict) or not {"position", "number", "skip"} <= position.keys():
                raise DataError(
                    got=f"position {position!r}"[:200],
                    wanted=f"one of {self.name}",
                    do="resume with the source that was saved",
                )
            inner, number, skip = position["position"], position["number"], position["skip"]
        return rechunk(self._pieces(inner, number, size), size, skip)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}",
            wanted="a source that can jump",
            do="wrap it: millstream.sources.cached(source)",
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "filtered", **self._facts, "of": self._source.fingerprint()}

    @property
    def modified(self) -> list[Any]:
        return modified(self._source)

    def _pieces(self, inner: Position, number: int, size: int) -> Iterator[Piece]:
        before = inner
        # What cannot be read again may be live: there, waiting for more than was asked for would be wrong.
        window = max(size, _FILTERED_RECORDS) if self._source.can_seek else size
        for chunk in self._source.read(inner, size=window):
            places = np.flatnonzero(self._keep(chunk, number))
            if len(places):
                yield Piece(_pick(chunk, places), _position(before, number, len(places), chunk))
            before, number = chunk.after, number + chunk.span


def _filtered(
    source: Source, is_held: Callable[[Chunk, int], Mask], num_held: int | None, facts: Mapping[str, Any]
) -> tuple[Source, Source]:
    total = source.num_records
    num_train = None if total is None or num_held is None else total - num_held
    train = Filtered(
        source,
        lambda chunk, first: ~is_held(chunk, first),
        num_records=num_train,
        facts={**facts, "part": "train"},
        name=f"{source.name} (train)",
    )
    held = Filtered(
        source, is_held, num_records=num_held, facts={**facts, "part": "held out"}, name=f"{source.name} (held out)"
    )
    return train, held


def _by_hash(key: int, fraction: float) -> Callable[[npt.NDArray[np.int64]], Mask]:
    return lambda numbers: uniform(key, numbers) < fraction


def _by_place(first_held: int) -> Callable[[npt.NDArray[np.int64]], Mask]:
    return lambda numbers: numbers >= first_held


def _by_column(column: str, key: int, fraction: float) -> Callable[[Chunk, int], Mask]:
    def is_held(chunk: Chunk, first: int) -> Mask:
        values = chunk.inputs.column(column) if isinstance(chunk.inputs, pa.RecordBatch) else pa.array([])
        chosen = uniform(key, hash_column(values)) < fraction
        if chunk.offsets is None:
            return chosen
        mask = np.zeros(chunk.span, dtype=bool)  # a hole has no value; it stays with what is trained on
        mask[chunk.offsets] = chosen
        return mask

    return is_held


def _check_column(source: Source, column: str) -> None:
    if source.schema is None:
        raise SettingError(
            got=f"column={column!r} for {source.name}, which has no named columns", wanted="none", do="leave it out"
        )
    if column not in source.schema.names:
        raise DataError(
            got=f"column {column!r}, which {source.name} does not have",
            wanted="one of its columns",
            do=near(column, source.schema.names),
        )


def _pick(chunk: Chunk, places: npt.NDArray[np.int64]) -> Chunk:
    first, last = int(places[0]), int(places[-1]) + 1
    return cut(chunk, first, last) if last - first == len(places) else gather(chunk, places)


def _position(before: Position, number: int, num_kept: int, chunk: Chunk) -> Callable[[int], Position]:
    after, span = chunk.after, chunk.span

    def position(place: int) -> Position:
        if place == num_kept:
            return {"position": after, "number": number + span, "skip": 0}
        return {"position": before, "number": number, "skip": place}

    return position
