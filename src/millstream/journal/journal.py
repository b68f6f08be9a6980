"""The journal: what was appended is there, once, in its place, or it was never said to be.

    append: prepare ── wait for one's turn ── place, link, write, sync ── answer
                       (whoever gets the turn commits for all who wait)

This file knows the folder, its lock and its transactions; what is in a row, how duplicates are told and how rows are
read is in the files beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from millstream.errors import DataError, MillstreamError, SettingError, StorageError
from millstream.journal.duplicates import Last, Seen
from millstream.journal.erasing import erase
from millstream.journal.folder import check_borders, new_mark, take_lock
from millstream.journal.groups import KINDS, Appended, Draft, Group, Head, Kind
from millstream.journal.mark import Marker, read_mark, write_mark
from millstream.journal.placing import Plan, Prepared, prepare
from millstream.journal.reading import JournalReader, Walker
from millstream.journal.rows import Row
from millstream.journal.segments import (
    Segment,
    check_version,
    create_segment,
    damaged,
    find_segments,
    journal_errors,
)
from millstream.journal.verifying import Verified, verify
from millstream.storage import sync

__all__ = ["Journal"]

_LOG_PAGES = 2048  # of the write-ahead log before it is moved into the file: 32 MiB
_GO_ON = "make room or allow writing, then open the journal anew"


@dataclasses.dataclass(slots=True)
class _Call:
    drafts: list[Prepared]
    appended: list[Appended] | None = None
    error: Exception | None = None


class Journal:
    """A folder of groups that only grows. Opening takes its lock and checks its end; one process writes at a time.

    ``segment_bytes``: when a new file is begun. ``window``: within how many places an event id is known again.

    >>> import tempfile, pyarrow as pa
    >>> with Journal(tempfile.mkdtemp()) as journal:
    ...     appended = journal.append(Draft(pa.record_batch({"x": [0.5, 0.25]})))
    ...     again = [group.records.to_pydict() for group in journal.read(0)]
    >>> appended[0].positions.tolist(), again
    ([0, 1], [{'x': [0.5, 0.25]}])
    """

    def __init__(self, folder: str | Path, *, segment_bytes: int = 1 << 30, window: int = 1_000_000) -> None:
        check_version()
        if segment_bytes < 1 or window < 0:
            raise SettingError(
                got=f"segment_bytes={segment_bytes}, window={window}",
                wanted="numbers from 1 and from 0",
                do="name others",
            )
        self.folder, self._segment_bytes, self._window = Path(folder), segment_bytes, window
        self._lock = take_lock(self.folder)
        self._waiting: list[_Call] = []
        self._queue, self._turn = threading.Lock(), threading.Lock()
        self._broken: StorageError | None = None
        self._is_closed = False
        try:
            with journal_errors(self.folder):
                self._open()
        except BaseException:
            self._lock.close()
            raise
        self._marker = Marker(self.folder, self._journal, self._fail)

    @property
    def head(self) -> Head:
        """Where it ends; a checkpoint keeps it and ``check`` compares it."""
        return self._head

    @property
    def first(self) -> int:
        """The first position that is there still."""
        return self._reader.first()

    @property
    def num_segments(self) -> int:
        return len(find_segments(self.folder))

    def append(self, *drafts: Draft) -> list[Appended]:
        """Makes the drafts durable, all or none, and says where they went. Any thread; callers at once share a commit.

        Raises ``DataError`` for a draft that cannot be a group, ``StorageError`` when the disk is full (later appends
        may succeed) or fails (none will: what is durable is known only after opening anew). Nothing was appended then.
        """
        call = _Call([prepare(one, self._secret) for one in drafts])
        with self._queue:
            self._waiting.append(call)
        with self._turn:
            if call.appended is None and call.error is None:
                with self._queue:
                    calls, self._waiting = self._waiting, []
                self._commit(calls)
        if call.error is not None:
            raise call.error
        assert call.appended is not None
        return call.appended

    def read(
        self,
        first: int = 0,
        *,
        number: int | None = None,
        kinds: Collection[Kind] = KINDS,
        follow: bool = False,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[Group]:
        """As ``JournalReader.read``."""
        return self._reader.read(first, number=number, kinds=kinds, follow=follow, stop=stop)

    def check(self, head: Head | Mapping[str, Any]) -> None:
        """Refuses to be the journal of ``head`` if it is shorter or another one; names the positions that are lost."""
        self._reader.check(head)

    def forget(self, before: int) -> int:
        """Drops the segments all of whose positions are below ``before``; the first position that is left."""
        with self._turn, journal_errors(self.folder, do=_GO_ON):
            self._refuse_if_broken()
            places = find_segments(self.folder)
            gone = [one for one, after in itertools.pairwise(places) if after.first <= before]
            if gone:
                self._carry(find_segments(self.folder)[len(gone)].first)
            for place in gone:
                for path in (place.path, Path(f"{place.path}-wal"), Path(f"{place.path}-shm")):
                    path.unlink(missing_ok=True)
                sync(self.folder)
            return find_segments(self.folder)[0].first

    def erase(self, positions: Iterable[int]) -> int:
        """Makes holes of these records and refused records, for good; how many were there.

        Their digests stay, so that the chain holds, and say nothing without the salts, which go. A decision names them.
        """
        wanted = sorted(set(positions))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self._head.position:
            raise DataError(
                got=f"positions {wanted[0]} to {wanted[-1]} to erase",
                wanted=f"positions from 0 to {self._head.position - 1}",
                do="name records of this journal",
            )
        with self._turn:
            self._refuse_if_broken()
            gone = erase(self.folder, wanted, self._segment)
        if gone:
            self.append(Draft(kind="decision", facts={"what": "erased", "positions": gone}))
        return len(gone)

    def verify(self) -> Verified:
        """Checks everything; what it found. See ``millstream.journal.verify`` for a journal that is not open."""
        return verify(self.folder)

    def close(self) -> None:
        """Gives the lock back; what was appended is durable already."""
        with self._turn:
            if self._is_closed:
                return
            self._is_closed = True
            self._marker.stop()
            try:
                with journal_errors(self.folder, do=_GO_ON):
                    if self._broken is None:
                        self._settle()
                        write_mark(self.folder, self._journal, self._head)
            finally:
                self._segment.close()
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        mark, places = read_mark(self.folder), find_segments(self.folder)
        if mark is None and places:
            raise damaged("segments without a mark", self.folder)
        if mark is None:
            mark = new_mark(self.folder)
        self._journal, marked = mark
        if not places and marked.number:
            raise damaged(f"no segments: positions 0 to {marked.position - 1} lost", self.folder)
        if not places:
            places = [create_segment(self.folder, marked, {"journal": self._journal, "secret": os.urandom(16).hex()})]
        check_borders(places, self.folder)
        self._segment = Segment(places[-1], writable=True)
        self._secret = bytes.fromhex(self._segment.fact("secret"))
        self._reader = JournalReader(self.folder)
        self._reader.check(marked)
        self._head = self._walk(marked)
        self._seen = Seen(self._window)
        self._recall()
        self._num_bytes = self._segment.num_bytes

    def _walk(self, marked: Head) -> Head:
        """The end, every group from the mark to there checked."""
        walker = Walker(self.folder, max(marked.number, self._reader_number()))
        try:
            while walker.fetch():
                pass
            return walker.head
        finally:
            walker.close()

    def _reader_number(self) -> int:
        return find_segments(self.folder)[0].number

    def _recall(self) -> None:
        """What producers and ids came before, as far as duplicates are told."""
        known = self._segment.fact("producers") or {"number": 0, "producers": {}}
        self._seen.producers = {bytes.fromhex(name): Last(*last) for name, last in known["producers"].items()}
        for first, ids in self._segment.fact("ids") or []:
            self._seen.note(first, bytes.fromhex(ids))
        oldest = max(self._head.position - self._window, self._reader.first())
        places = find_segments(self.folder)
        start = next((one for one in reversed(places) if one.first <= oldest), places[0])
        for place in [one for one in places if one >= start]:
            segment = self._segment if place == self._segment.place else Segment(place)
            try:
                for number, first, ids, producer, following in segment.known_again():
                    self._seen.note(first, ids)
                    if producer and number > known["number"]:
                        self._seen.producers[producer] = Last(following, number)
            finally:
                if segment is not self._segment:
                    segment.close()

    def _commit(self, calls: Sequence[_Call]) -> None:
        """One transaction for all who wait; under the turn."""
        plan = Plan(self._seen, self._head, self._row)
        served = []
        try:
            self._refuse_if_broken()
            for call in calls:
                try:
                    call.appended = plan.add(call.drafts)
                    served.append(call)
                except MillstreamError as error:
                    call.error = error
            if plan.rows:
                self._write(plan)
        except Exception as error:
            for call in calls:
                call.appended, call.error = None, call.error or error

    def _write(self, plan: Plan) -> None:
        if self._num_bytes >= self._segment_bytes and self._head.number >= self._segment.place.number:
            self._roll()
        connection = self._segment.connection
        try:
            with journal_errors(self._segment.path, do=_GO_ON):
                connection.execute("BEGIN IMMEDIATE")
                self._segment.insert(plan.rows, plan.schemas)
                connection.execute("COMMIT")
        except StorageError as error:
            self._undo(error)
            raise
        except BaseException:
            self._undo(None)
            raise
        self._head = plan.head
        plan.staged.take_over()
        for digest, content in plan.schemas.items():
            self._segment.know(digest, content)
        self._num_bytes += sum(row.num_bytes() for row in plan.rows)
        self._marker.set(self._head)
        if self._segment.log_pages >= _LOG_PAGES:
            self._move_log()

    def _undo(self, error: StorageError | None) -> None:
        """Takes a transaction back. Only a full disk leaves a journal that can go on."""
        is_full = error is None or isinstance(error.__cause__, apsw.FullError)
        try:
            if self._segment.connection.in_transaction:
                self._segment.connection.execute("ROLLBACK")
        except apsw.Error:
            is_full = False
        if not is_full:
            assert error is not None
            self._fail(error)

    def _move_log(self) -> None:
        """What was appended is durable; if moving it fails, what comes later is refused."""
        try:
            with journal_errors(self._segment.path, do=_GO_ON):
                self._segment.checkpoint()
        except StorageError as error:
            if not isinstance(error.__cause__, apsw.FullError | apsw.BusyError):
                self._fail(error)

    def _roll(self) -> None:
        with journal_errors(self.folder, do=_GO_ON):
            self._settle()
            facts = {"journal": self._journal, "secret": self._secret.hex(), "producers": self._producers()}
            place = create_segment(self.folder, self._head, facts)
            before, self._segment = self._segment, Segment(place, writable=True)
            before.close()
            self._num_bytes = 0

    def _settle(self) -> None:
        """Leaves a segment with all in its file, and who was seen last."""
        with self._segment.connection:
            self._segment.put_fact("producers", self._producers())
        self._segment.checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _producers(self) -> dict[str, Any]:
        found = {name.hex(): (last.next, last.number) for name, last in self._seen.producers.items()}
        return {"number": self._head.number, "producers": found}

    def _carry(self, first: int) -> None:
        """Writes the ids of positions that go, but are within the window, into the segment that stays."""
        oldest = self._head.position - self._window
        keys, positions = self._seen.ids.keys_from(oldest, first)
        ids = [[place, keys[16 * i : 16 * (i + 1)].hex()] for i, place in enumerate(positions)]
        with self._segment.connection:
            self._segment.put_fact("ids", ids)

    def _row(self, number: int) -> Row | None:
        """A row by its number, for the position that a duplicate had; None if it was dropped."""
        for place in reversed(find_segments(self.folder)):
            if place.number <= number:
                segment = self._segment if place == self._segment.place else Segment(place)
                try:
                    return next(iter(segment.rows(number, num_bytes=1)), None)
                finally:
                    if segment is not self._segment:
                        segment.close()
        return None

    def _refuse_if_broken(self) -> None:
        if self._is_closed:
            raise SettingError(got=f"a closed journal: {self.folder}", wanted="an open one", do="open it anew")
        if self._broken is not None:
            raise StorageError(
                got=self._broken.got, wanted="a disk that takes what it is given", do=_GO_ON
            ) from self._broken

    def _fail(self, error: StorageError) -> None:
        if not isinstance(error.__cause__, apsw.FullError):
            self._broken = self._broken or error
