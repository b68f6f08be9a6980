"""A live source whose arrivals a test decides: how many records come at once, and whether they can be read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from millstream.contracts import Chunk, Position, Rejection
from millstream.errors import DataError
from millstream.sources.rechunk import check_size, cut


class ScriptedSource:
    """Gives out ``table`` in arrivals of these sizes, over and over, and notes what was acknowledged."""

    name = "scripted"
    num_records: int | None = None
    is_live = True
    can_jump = False

    def __init__(
        self, table: pa.Table, arrivals: Sequence[int], *, can_seek: bool, holes: Sequence[int] = (), start: int = 0
    ) -> None:
        self._batch = table.combine_chunks().to_batches()[0]
        self._arrivals, self.can_seek, self._holes = list(arrivals), can_seek, set(holes)
        self.schema: pa.Schema | None = self._batch.schema
        self.acknowledged = self._stands = start
        self._stopped = False

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        if position is not None and not self.can_seek:
            raise DataError(got="a position", wanted="none", do="read on")
        place, turn = self._stands if position is None else position, 0
        while place < len(self._batch) and not self._stopped:
            num = min(self._arrivals[turn % len(self._arrivals)], size, len(self._batch) - place)
            chunk = self.again(place, place + num, num)
            place, turn = place + num, turn + 1
            self._stands, chunk.after = place, place
            yield chunk

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        first = before or 0
        assert after - first == span
        chunk = dataclasses.replace(cut(Chunk(self._batch), first, after), locate=lambda place: f"at {first + place}")
        kept = np.array([place for place in range(span) if first + place not in self._holes], np.int64)
        if len(kept) == span:
            return chunk
        gone = sorted({*range(span)} - {*kept.tolist()})
        rejected = tuple(Rejection(place, "bad", f"at {first + place}") for place in gone)
        return dataclasses.replace(chunk.select(kept), rejected=rejected)

    def acknowledge(self, after: Position) -> None:
        assert after >= self.acknowledged
        self.acknowledged = after

    def stop(self) -> None:
        self._stopped = True

    def peek(self, size: int) -> Chunk | None:
        return cut(Chunk(self._batch), 0, min(size, len(self._batch)))

    def declare(self, types: Any) -> None:
        raise AssertionError("its types are known")

    def take(self, numbers: Any) -> Chunk:
        raise AssertionError("it cannot jump")

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "scripted", "records": len(self._batch)}
