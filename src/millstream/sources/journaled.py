"""A live source whose arrivals are written into a run's journal before they are handed out.

What can be read again is noted by where it stood (a reference); what cannot is copied. After a crash the journal comes
first, then what is new. Chunks are cut within the journal's groups, at multiples of the size that is asked for, so that
they are a function of the journal alone.

A position is ``{"journal", "upstream", "source"}``: the next place in the journal, where the upstream goes on after its
group, and which upstream that is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, LiveSource, Position
from millstream.errors import DataError, StorageError
from millstream.journal import Appended, Draft, Group, Journal
from millstream.sources.rechunk import check_size, cut

__all__ = ["JournaledSource"]

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT_SECONDS = 5.0  # between two looks whether a full disk has room again


class JournaledSource:
    """``upstream``, written down in ``journal``. ``before`` is where the phase before this one left its source."""

    num_records: int | None = None
    can_seek = True
    can_jump = False

    def __init__(self, upstream: LiveSource, journal: Journal, before: Position = None) -> None:
        self.name, self.schema = upstream.name, upstream.schema
        self.upstream, self._journal = upstream, journal
        facts = json.dumps(upstream.fingerprint(), sort_keys=True, default=str)
        self._tag = hashlib.sha256(facts.encode()).hexdigest()[:16]
        known = before if isinstance(before, dict) and "journal" in before else {}
        self._start: int = known.get("journal", 0)
        self._reached: Position = known.get("upstream") if known.get("source") == self._tag else None
        self._stopped = False

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first, reached = self._start, self._reached
        if position is not None:
            first, reached = position["journal"], position["upstream"]
        return self._chunks(first, reached, size)

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        self._stopped = True
        self.upstream.stop()

    def peek(self, size: int) -> Chunk | None:
        return self.upstream.peek(size)

    def take(self, numbers: npt.NDArray[Any]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}", wanted="a source that can jump", do="write it to a file first"
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return self.upstream.fingerprint()

    def _chunks(self, first: int, reached: Position, size: int) -> Iterator[Chunk]:
        for group in self._journal.read(first, kinds=("records", "reference")):
            if group.facts["source"] == self._tag:
                reached = group.facts["after"]
            elif group.kind == "reference":  # of an earlier phase, left unread there; its upstream has it still
                continue
            yield from self._pieces(group, self._again(group), max(first - group.first, 0), size)
        # A pipe goes on where it stands, in a new process too: what it gave before is in the journal.
        for chunk in self.upstream.read(reached if self.upstream.can_seek else None, size=size):
            group = self._written(chunk, reached)
            reached = chunk.after
            self.upstream.acknowledge(reached)
            yield from self._pieces(group, chunk, 0, size)

    def _pieces(self, group: Group, chunk: Chunk, place: int, size: int) -> Iterator[Chunk]:
        """The places of a group from ``place`` on, ``size`` at a time."""
        if group.kind == "records":
            chunk.locate = lambda place: f"{self.name}, record {group.first + place}"
        while place < group.span:
            last = min(place + size, group.span)
            piece = chunk if (place, last) == (0, group.span) else cut(chunk, place, last)
            place = last
            stands = {"upstream": group.facts["after"], "source": group.facts["source"]}
            piece.after = {"journal": group.first + place, **stands}
            yield piece

    def _again(self, group: Group) -> Chunk:
        """The chunk that a group was made of."""
        if group.kind == "reference":
            return self.upstream.again(group.facts["before"], group.facts["after"], group.span)
        assert group.records is not None
        return Chunk(group.records, span=group.span, offsets=group.offsets, rejected=group.rejected)

    def _written(self, chunk: Chunk, before: Position) -> Group:
        """The group of a chunk, durable."""
        facts = {"source": self._tag, "before": before, "after": chunk.after}
        if self.upstream.can_seek:
            draft = Draft("reference", chunk.span, facts)
        else:
            assert isinstance(chunk.inputs, pa.RecordBatch)
            held = {"records": chunk.inputs, "offsets": chunk.offsets, "rejected": chunk.rejected}
            draft = Draft("records", chunk.span, facts, **held)
        appended = patiently(lambda: self._journal.append(draft)[0], lambda: self._stopped)
        return Group(-1, appended.first, chunk.span, draft.kind, facts)


def patiently(append: Callable[[], Appended], is_stopped: Callable[[], bool]) -> Appended:
    """Appends, and waits while the disk is full: nothing that came is dropped, and nothing more is asked for."""
    wait, told = 0.05, False
    while True:
        try:
            return append()
        except StorageError as error:
            if not getattr(error, "is_full", False) or is_stopped():
                raise
            if not told:
                _LOG.warning("the disk is full: waiting for room to go on (%s)", error)
            told = True
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
