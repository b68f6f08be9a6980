"""A journal of its own as a source: others append to it, a run follows its end.

Chunks are cut within the journal's groups, at multiples of the size that is asked for, so that they are a function of
the journal alone: whoever reads it again, at whatever time, gets the same ones. A position is a place in the journal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.errors import DataError, SettingError
from millstream.journal import Group, JournalReader, Kind, identity
from millstream.sources.rechunk import check_place, check_size, pieces

__all__ = ["JOURNAL", "JournalSource", "journal_source"]

JOURNAL = "journal://"  # how its address begins
_RECORDS: tuple[Kind, ...] = ("records",)


class JournalSource:
    """The records of the journal in ``folder``. ``follow`` waits for more at its end, until ``stop``.

    >>> import tempfile
    >>> from millstream.journal import Draft, Journal
    >>> folder = tempfile.mkdtemp()
    >>> with Journal(folder) as journal:
    ...     _ = journal.append(Draft(pa.record_batch({"hour": [7, 8], "load": [0.5, 0.25]})))
    >>> [chunk.inputs.to_pydict() for chunk in JournalSource(folder, follow=False).read()]
    [{'hour': [7, 8], 'load': [0.5, 0.25]}]
    """

    can_seek = True
    can_jump = False
    num_records: int | None = None

    def __init__(self, folder: str | Path, *, follow: bool = True, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = name or f"journal://{self.folder}"
        self._journal = JournalReader(self.folder)
        self._follow = follow
        self._stopped = threading.Event()
        first = next(self._journal.read(self._journal.first(), kinds=_RECORDS), None)
        if first is None or first.records is None:
            raise DataError(
                got=f"no records in {self.name}", wanted="at least one", do="append some first, or check the folder"
            )
        self.schema: pa.Schema | None = first.records.schema

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first = self._journal.first() if position is None else check_place(position, None, self.name)
        return self._chunks(first, size)

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        self._stopped.set()

    def take(self, numbers: npt.NDArray[Any]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}", wanted="a source that can jump", do="write it to a file first"
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "journal", "identity": identity(self.folder)}

    def _chunks(self, first: int, size: int) -> Iterator[Chunk]:
        for group in self._journal.read(first, kinds=_RECORDS, follow=self._follow, stop=self._stopped.is_set):
            for place, piece in pieces(_chunk_of(group, self.name), max(first - group.first, 0), size):
                piece.after = group.first + place
                yield piece


def journal_source(url: str, name: str | None = None) -> JournalSource:
    """The journal at ``journal://FOLDER``, followed for ever, or at ``journal://FOLDER?follow=no`` as it is now.

    >>> journal_source("journal://events?follow=maybe")
    Traceback (most recent call last):
    millstream.errors.SettingError: got journal://events?follow=maybe; wanted ?follow=no, or nothing; correct it
    """
    path, _, query = url.removeprefix(JOURNAL).partition("?")
    if query not in ("", "follow=yes", "follow=no"):
        raise SettingError(got=url, wanted="?follow=no, or nothing", do="correct it")
    return JournalSource(path, follow=query != "follow=no", name=name)


def _chunk_of(group: Group, name: str) -> Chunk:
    assert group.records is not None
    return Chunk(
        group.records,
        span=group.span,
        offsets=group.offsets,
        rejected=group.rejected,
        locate=lambda place: f"{name}#{group.first + place}",
    )
