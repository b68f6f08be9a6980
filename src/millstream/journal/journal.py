"""The journal: what was appended is there, once, in its place, or it was never said to be.

    append: prepare ── wait for one's turn ── place, link, write, sync ── answer
                       (whoever gets the turn commits for all who wait)

This file knows the folder, its lock and its transactions; what is in a row, how duplicates are told and how rows are
read is in the files beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from millstream.errors import DataError, MillstreamError, SettingError, StorageError
from millstream.journal.duplicates import Seen
from millstream.journal.erasing import erase, find_records
from millstream.journal.folder import check_borders, new_mark, take_lock
from millstream.journal.groups import KINDS, Appended, Draft, Group, Head, Kind
from millstream.journal.mark import Marker, read_mark
from millstream.journal.placing import Plan, Prepared, prepare
from millstream.journal.reading import JournalReader, Walker, last_head
from millstream.journal.recalling import carry_ids, recall, snapshot
from millstream.journal.rows import Row
from millstream.journal.segments import (
    Segment,
    check_version,
    create_segment,
    damaged,
    drop_segment,
    find_segments,
    is_full,
    journal_errors,
)
from millstream.journal.verifying import Verified, verify

__all__ = ["Journal"]

_LOG = logging.getLogger(__name__)
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
        self.folder, self._segment_bytes, self._window = Path(folder).absolute(), segment_bytes, window
        self._lock = take_lock(self.folder)
        self._waiting: list[_Call] = []
        self._queue, self._turn = threading.Lock(), threading.Lock()
        self._broken: StorageError | None = None
        self._is_closed = False
        try:
            with journal_errors(self.folder):
                marked = self._open()
                self._finish_what_was_begun()
        except BaseException:
            self._lock.close()
            raise
        self._marker = Marker(self.folder, self._journal, marked, self._fail)
        if marked != self._head:
            self._marker.set(self._head)

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
        with self._turn:
            self._refuse_if_broken()
            with self._writing(self.folder):
                places = find_segments(self.folder)
                gone = [one for one, after in itertools.pairwise(places) if after.first <= before]
                if gone:
                    carry_ids(self._seen, self._segment, self._head, places[len(gone)].first)
            # One after another: the oldest is gone for good before the next goes. What stays is whole at any time.
            with journal_errors(self.folder, do="forget again: what is left is whole"):
                for place in gone:
                    drop_segment(place)
            return places[len(gone)].first

    def erase(self, positions: Iterable[int]) -> int:
        """Makes holes of these records and refused records, for good; how many were there.

        Their digests stay, so that the chain holds, and say nothing without the salts, which go. A decision names them;
        from then on they will go, if need be when the journal is opened the next time.
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
            with journal_errors(self.folder):
                gone = find_records(self.folder, wanted, self._segment)
                begun = self._segment.fact("erasing") or []
            if gone:
                plan = Plan(self._seen, self._head, self._row)
                note = Draft(kind="decision", facts={"what": "erased", "positions": gone})
                plan.add([prepare(note, self._secret)])
                self._write(plan, {"erasing": sorted({*begun, *gone})})
            self._erase_what_was_noted()
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
                if self._broken is None:
                    with self._writing(self.folder):
                        self._settle()
                        self._marker.write()
            except StorageError as error:
                if not is_full(error):  # what is left to be done is done when it is opened again
                    raise
            finally:
                self._segment.close()
                self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Head:
        """What there is, checked; the head in the mark."""
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
        self._settled = recall(self._seen, self.folder, self._segment, self._head)
        self._num_bytes = self._segment.num_bytes
        return marked

    def _finish_what_was_begun(self) -> None:
        try:
            self._erase_what_was_noted()
        except StorageError as error:
            if self._broken is not None:
                raise
            _LOG.warning("records that were to be erased are still there: %s", error)

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
        except BaseException as error:
            told = error if isinstance(error, Exception) else _interrupted(self.folder)
            for call in calls:
                call.appended, call.error = None, call.error or told
            if told is not error:
                raise

    def _write(self, plan: Plan, facts: Mapping[str, Any] | None = None) -> None:
        if self._num_bytes >= self._segment_bytes and self._head.number >= self._segment.place.number:
            self._roll()
        with self._writing(self._segment.path):
            self._segment.connection.execute("BEGIN IMMEDIATE")
            self._segment.insert(plan.rows, plan.schemas)
            for name, value in (facts or {}).items():
                self._segment.put_fact(name, value)
            self._segment.connection.execute("COMMIT")
        self._head = plan.head
        plan.staged.take_over()
        for digest, content in plan.schemas.items():
            self._segment.know(digest, content)
        self._num_bytes += sum(row.num_bytes() for row in plan.rows)
        self._marker.set(self._head)
        if self._segment.log_pages >= _LOG_PAGES:
            # What was appended is durable; if this fails, what comes later is refused.
            with suppress(StorageError), self._writing(self._segment.path):
                self._segment.checkpoint()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """What is written within is there whole, or taken back for want of room; else nothing is appended any more.

        After a failed sync nobody knows what is on the disk. Only opening anew tells.
        """
        try:
            with journal_errors(path, do=_GO_ON), self._segment.quota_errors():
                yield
        except BaseException as error:
            try:
                with journal_errors(path, do=_GO_ON):
                    self._take_back()
            except StorageError as worse:
                self._fail(worse)
            if isinstance(error, StorageError) and isinstance(error.__cause__, OSError | apsw.Error):
                self._fail(error)
            raise

    def _take_back(self) -> None:
        if self._segment.connection.in_transaction:
            self._segment.connection.execute("ROLLBACK")
        if last_head(self._segment) != self._head:  # interrupted just when it was durable
            self._broken = self._broken or _interrupted(self.folder)

    def _roll(self) -> None:
        with self._writing(self.folder):
            self._settle()
            carried = {name: self._segment.fact(name) or [] for name in ("ids", "erasing")}
            facts = {"journal": self._journal, "secret": self._secret.hex(), "producers": self._settled, **carried}
            fresh = Segment(create_segment(self.folder, self._head, facts), writable=True)
        before, self._segment = self._segment, fresh
        before.close()
        self._num_bytes = 0

    def _settle(self) -> None:
        """Leaves a segment with all in its file, and who was seen last."""
        producers = snapshot(self._seen, self._head)
        if producers["producers"] and producers != self._settled:
            with self._segment.connection:
                self._segment.put_fact("producers", producers)
        self._settled = producers
        if self._segment.log_pages:
            self._segment.checkpoint()

    def _erase_what_was_noted(self) -> None:
        with self._writing(self.folder):
            positions = self._segment.fact("erasing")
            if positions:
                erase(self.folder, positions, self._segment, self._head.position - self._window)
                with self._segment.connection:
                    self._segment.put_fact("erasing", [])

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
        if not is_full(error) and not isinstance(error.__cause__, apsw.BusyError):
            self._broken = self._broken or error


def _interrupted(folder: Path) -> StorageError:
    return StorageError(got=f"an append that was interrupted in {folder}", wanted="one that ends", do=_GO_ON)
