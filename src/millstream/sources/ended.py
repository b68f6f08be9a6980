"""A pipe that has ended before anything came: what it gave earlier is in the journal of the run that goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.errors import DataError

__all__ = ["EndedSource"]


class EndedSource:
    """Gives nothing. ``facts`` is the fingerprint of the source that was there before.

    >>> list(EndedSource({"kind": "stdin"}).read())
    []
    """

    is_live = True
    can_seek = can_jump = False
    num_records: int | None = None
    schema: pa.Schema | None = None

    def __init__(self, facts: Mapping[str, Any], name: str = "stdin") -> None:
        self.name, self._facts = name, facts

    @property
    def begin(self) -> Position:
        return None

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        return iter(())

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        raise self._nothing()

    def acknowledge(self, after: Position) -> None:
        pass

    def stop(self) -> None:
        pass

    def peek(self, size: int) -> Chunk | None:
        return None

    def declare(self, types: Any) -> None:
        pass

    def take(self, numbers: Any) -> Chunk:
        raise self._nothing()

    def fingerprint(self) -> Mapping[str, Any]:
        return self._facts

    def _nothing(self) -> DataError:
        return DataError(got=f"records of {self.name}, which has ended", wanted="none", do="read the journal")
