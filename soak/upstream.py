"""A live upstream whose arrivals depend on chance: what comes at once is another number of events in each process.

One kind can be read again, like a log of a broker. The other gives everything once, like a pipe: whoever sends into it
is told what the journal has, and sends what comes after that. The journal of a run must make both the same run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.errors import DataError
from millstream.sources.rechunk import check_size, cut

__all__ = ["Upstream"]


class Upstream:
    """Hands out the rows of ``table``, a few at a time, from ``start`` on."""

    name = "upstream"
    num_records: int | None = None
    is_live = True
    can_jump = False

    def __init__(self, table: pa.Table, *, can_seek: bool, start: int = 0) -> None:
        self._batch = table.combine_chunks().to_batches()[0]
        self.can_seek, self._stands, self._is_stopped = can_seek, start, False
        self.schema: pa.Schema | None = self._batch.schema
        self._draws = random.SystemRandom()  # never the same arrivals twice

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        place = self._stands if position is None else position
        while place < len(self._batch) and not self._is_stopped:
            num = min(self._draws.randint(1, 40), size, len(self._batch) - place)
            yield self.again(place, place + num, num)
            place += num

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        chunk = cut(Chunk(self._batch), before or 0, after)
        chunk.after = after
        return chunk

    @property
    def begin(self) -> Position:
        return 0 if self.can_seek else None

    def acknowledge(self, after: Position) -> None:
        """What is before it is forgotten: an event that is asked for again later is an error of the one who asks."""
        self._stands = max(self._stands, after)

    def stop(self) -> None:
        self._is_stopped = True

    def peek(self, size: int) -> Chunk | None:
        return cut(Chunk(self._batch), self._stands, min(self._stands + size, len(self._batch)))

    def declare(self, types: Any) -> None:
        self.schema = self._batch.schema

    def take(self, numbers: Any) -> Chunk:
        raise DataError(got="records by number", wanted="a source that can jump", do="read it in order")

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "upstream", "records": len(self._batch), "can_seek": self.can_seek}
