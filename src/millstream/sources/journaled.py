"""A live source whose arrivals are written into a run's journal before they are handed out.

What can be read again is noted by where it stood (a reference); what cannot is copied. After a crash the journal comes
first, then what is new. Chunks are cut within the journal's groups, at multiples of the size that is asked for, so that
they are a function of the journal alone.

A position is ``{"journal", "upstream", "source"}``: the next place in the journal, where the upstream goes on after its
group, and which upstream that is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, LiveSource, Position, Rejection
from millstream.errors import DataError, StorageError
from millstream.journal import DECISIONS, Appended, Draft, Group, Journal, JournalReader, Kind, is_full
from millstream.sources.rechunk import check_size, pieces

__all__ = ["JournaledSource", "journal_place"]

_LOG = logging.getLogger(__name__)
_OF_RECORDS: tuple[Kind, ...] = ("records", "reference")
_SKIPPED = "taken out by a rollback"
_LONGEST_WAIT_SECONDS = 5.0  # between two looks whether a full disk has room again


def journal_place(position: Position) -> int | None:
    """The place in the journal that a position of a ``JournaledSource`` stands for; None for any other source's.

    >>> journal_place({"journal": 7, "upstream": None, "source": ""}), journal_place(7), journal_place({"file": 0})
    (7, None, None)
    """
    return position["journal"] if isinstance(position, dict) and "journal" in position else None


class JournaledSource:
    """``upstream``, written down in ``journal``. ``before`` is where the run has left its journal before.

    Without an upstream it gives what the journal holds, as the source whose ``facts`` (its fingerprint) these are.
    """

    num_records: int | None = None
    can_seek = True
    can_jump = False

    def __init__(
        self,
        upstream: LiveSource | None,
        journal: Journal | JournalReader,
        before: Position = None,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = "journal" if upstream is None else upstream.name
        self.schema = None if upstream is None else upstream.schema
        self.upstream, self._journal, self._reader = upstream, journal, JournalReader(journal.folder)
        self._facts = facts or {} if upstream is None else upstream.fingerprint()
        told = json.dumps(self._facts, sort_keys=True, default=str)
        self._tag = hashlib.sha256(told.encode()).hexdigest()[:16]
        known = {} if journal_place(before) is None else before
        self._start: int = known.get("journal", 0)
        self._reached: Position = known.get("upstream") if known.get("source") == self._tag else None
        self._stopped = False
        # Positions that a person has taken out, when they went back to an earlier checkpoint.
        decided = (group.facts for group in self._reader.read(self._reader.first(), kinds=DECISIONS))
        self._skips = [tuple(facts["skip"]) for facts in decided if facts.get("skip")]

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first, reached = self._start, self._reached
        if reached is None and self.upstream is not None:
            reached = self.upstream.begin
        if position is not None:
            first, reached = position["journal"], position["upstream"]
        return self._chunks(first, reached, size)

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        self._stopped = True
        if self.upstream is not None:
            self.upstream.stop()

    def take(self, numbers: npt.NDArray[Any]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}", wanted="a source that can jump", do="write it to a file first"
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return self._facts

    def _chunks(self, first: int, reached: Position, size: int) -> Iterator[Chunk]:
        for group in self._reader.read(first, kinds=_OF_RECORDS):
            if "source" not in group.facts:
                raise DataError(
                    got=f"positions from {group.first} on in the journal of a run that the run has not written",
                    wanted="a journal that nobody else appends to",
                    do="restore the folder from a copy",
                )
            if group.facts["source"] == self._tag:
                reached = group.facts["after"]
            elif group.kind == "reference":  # of an earlier phase, left unread there; its upstream has it still
                continue
            yield from self._pieces(group, self._again(group), max(first - group.first, 0), size)
        if self.upstream is None:
            return
        # A pipe goes on where it stands, in a new process too: what it gave before is in the journal.
        for chunk in self.upstream.read(reached if self.upstream.can_seek else None, size=size):
            group = self._written(self.upstream, chunk, reached)
            reached = chunk.after
            if group.kind == "records":  # what is only referred to must stay where it is
                self.upstream.acknowledge(reached)
            yield from self._pieces(group, chunk, 0, size)

    def _pieces(self, group: Group, chunk: Chunk, place: int, size: int) -> Iterator[Chunk]:
        """The places of a group from ``place`` on, ``size`` at a time."""
        if group.kind == "records":
            chunk.locate = lambda place: f"{self.name}, record {group.first + place}"
        stands = {"upstream": group.facts["after"], "source": group.facts["source"]}
        for last, piece in pieces(self._without_skips(chunk, group.first), place, size):
            piece.after = {"journal": group.first + last, **stands}
            yield piece

    def _again(self, group: Group) -> Chunk:
        """The chunk that a group was made of."""
        if group.kind == "records":
            assert group.records is not None
            return Chunk(group.records, span=group.span, offsets=group.offsets, rejected=group.rejected)
        if self.upstream is None:
            raise DataError(
                got=f"positions {group.first} to {group.first + group.span - 1}, which the journal only refers to",
                wanted="the source that they came from",
                do="name it",
            )
        return self.upstream.again(group.facts["before"], group.facts["after"], group.span)

    def _without_skips(self, chunk: Chunk, first: int) -> Chunk:
        """The chunk with holes where a person has taken records out."""
        if not self._skips:
            return chunk
        offsets = np.arange(chunk.span) if chunk.offsets is None else chunk.offsets
        kept = np.ones(len(offsets), bool)
        for low, high in self._skips:
            kept &= (offsets + first < low) | (offsets + first >= high)
        if kept.all():
            return chunk
        left = [Rejection(int(place), _SKIPPED, chunk.where(row)) for row, place in enumerate(offsets) if not kept[row]]
        picked = chunk.select(np.flatnonzero(kept))
        return dataclasses.replace(picked, rejected=tuple(sorted((*chunk.rejected, *left), key=lambda one: one.offset)))

    def _written(self, upstream: LiveSource, chunk: Chunk, before: Position) -> Group:
        """The group of a chunk, durable."""
        facts = {"source": self._tag, "before": before, "after": chunk.after}
        if upstream.can_seek:
            draft = Draft(facts=facts, kind="reference", span=chunk.span)
        else:
            assert isinstance(chunk.inputs, pa.RecordBatch)
            draft = Draft(chunk.inputs, facts, span=chunk.span, offsets=chunk.offsets, rejected=chunk.rejected)
        assert isinstance(self._journal, Journal)
        journal = self._journal
        appended = patiently(lambda: journal.append(draft)[0], lambda: self._stopped)
        return Group(-1, appended.first, chunk.span, draft.kind, facts)


def patiently(append: Callable[[], Appended], is_stopped: Callable[[], bool]) -> Appended:
    """Appends, and waits while the disk is full: nothing that came is dropped, and nothing more is asked for."""
    wait, told = 0.05, False
    while True:
        try:
            return append()
        except StorageError as error:
            if not is_full(error) or is_stopped():
                raise
            if not told:
                _LOG.warning("the disk is full: waiting for room to go on (%s)", error)
            told = True
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
