"""A journal read: every row checked and linked to the one before it, decoded on a thread that runs ahead.

Any number of readers, in any thread or process, while one process writes. This file knows segments and rows.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from millstream.errors import DataError, StorageError
from millstream.journal.groups import KINDS, Group, Head, Kind
from millstream.journal.rows import Row
from millstream.journal.segments import Place, Segment, check_version, damaged, find_segments, journal_errors

__all__ = ["LOSS", "JournalReader", "Walker", "is_loss"]

LOSS = "accepted loss"  # of the decision that gives positions up
_WAIT_SECONDS = 0.004  # between two looks for what is new
_AHEAD_BYTES = 64 << 20


class JournalReader:
    """Reads the journal in a folder that another process, or another thread, may write.

    >>> import tempfile, pyarrow as pa
    >>> from millstream.journal import Draft, Journal
    >>> folder = tempfile.mkdtemp()
    >>> with Journal(folder) as journal:
    ...     _ = journal.append(Draft(pa.record_batch({"x": [1.0, 2.0]})), Draft(facts={"rate": 0.1}, kind="decision"))
    >>> [(group.first, group.span, group.kind) for group in JournalReader(folder).read(0)]
    [(0, 2, 'records'), (2, 0, 'decision')]
    """

    def __init__(self, folder: str | Path) -> None:
        check_version()
        self.folder = Path(folder)
        with journal_errors(self.folder, do="name the folder of a journal"):
            if not find_segments(self.folder):
                raise StorageError(
                    got=f"no journal in {folder}", wanted="its segments", do="name the folder of a journal"
                )

    def read(
        self,
        first: int = 0,
        *,
        number: int | None = None,
        kinds: Collection[Kind] = KINDS,
        follow: bool = False,
        stop: Callable[[], bool] | None = None,
        ahead_bytes: int = _AHEAD_BYTES,
    ) -> Iterator[Group]:
        """The group that holds journal position ``first`` and all after it, decisions in their place.

        Decisions at ``first`` itself are among them; ``number`` begins at a group instead: that of a ``Head`` + 1.
        Ends at the end, or with ``follow`` once ``stop`` says so. Raises ``DataError`` at what retention dropped and
        ``StorageError`` at the first group that is damaged; those before it were handed out.
        """
        walker = Walker(self.folder, self._number_at(first) if number is None else number)
        return _Ahead(walker, frozenset(kinds), follow, stop, ahead_bytes).groups()

    def first(self) -> int:
        """The first position that is there still."""
        with journal_errors(self.folder):
            return find_segments(self.folder)[0].first

    def head(self) -> Head:
        """The end, as of now."""
        with journal_errors(self.folder):
            segment = Segment(find_segments(self.folder)[-1])
            try:
                return last_head(segment)
            finally:
                segment.close()

    def check(self, head: Head | Mapping[str, Any]) -> None:
        """Refuses a journal that is shorter than ``head`` says, or is another one."""
        wanted = head if isinstance(head, Head) else Head.from_json(head)
        with journal_errors(self.folder):
            places = find_segments(self.folder)
            place = _place_of(places, wanted.number)
            if place is None:
                raise _forgotten(wanted.position, places[0].first, self.folder)
            segment = Segment(place)
            try:
                _check(segment, wanted, last_head(segment))
            finally:
                segment.close()

    def _number_at(self, position: int) -> int:
        with journal_errors(self.folder):
            places = find_segments(self.folder)
            if position < places[0].first:
                raise _forgotten(position, places[0].first, self.folder)
            # Decisions may stand at the end of one segment, at the position that the next begins with.
            place = next((one for one in reversed(places) if one.first < position), places[0])
            segment = Segment(place)
            try:
                number = segment.number_at(position)
                end = last_head(segment).position
            finally:
                segment.close()
            if place == places[-1] and position > end:
                raise damaged(f"position {position} of a journal that ends at {end}", self.folder)
            return number


class Walker:
    """Goes through the rows from a number on. Every row has the number, place, checksum and link that it must have."""

    def __init__(self, folder: Path, number: int, *, only: bool = False) -> None:
        self.folder, self._is_only = folder, only  # this segment only
        with journal_errors(folder):
            places = find_segments(folder)
            place = _place_of(places, number)
            if place is None or number < place.number:
                raise _forgotten(number, places[0].number, folder, "group")
            self.segment = Segment(place)
            row = self.segment.row_before(number)
            self.head = self.segment.before if row is None else row.head()

    def fetch(self) -> list[Row]:
        """Some rows, or none at the end as of now. Those before a damaged one come first, then the error."""
        with journal_errors(self.segment.path):
            rows = self._rows()
        good: list[Row] = []
        for row in rows:
            try:
                self._check(row)
            except StorageError:
                if good:
                    return good
                raise
            good.append(row)
        return good

    def groups(self, rows: list[Row]) -> Iterator[Group]:
        with journal_errors(self.segment.path):
            schemas = self.segment.schemas(rows)
            for row in rows:
                yield row.group(schemas)

    def close(self) -> None:
        self.segment.close()

    def _rows(self) -> list[Row]:
        rows = self.segment.rows(self.head.number + 1)
        if rows or (place := self._next()) is None:
            return rows
        rows = self.segment.rows(self.head.number + 1)  # once there is a next segment, this one grows no more
        if rows:
            return rows
        following = Segment(place)
        self.segment.close()
        self.segment = following
        if following.before != self.head:
            raise damaged(f"positions {self.head.position} to {following.before.position - 1} lost", self.folder)
        return following.rows(self.head.number + 1)

    def _next(self) -> Place | None:
        if self._is_only:
            return None
        return next((one for one in find_segments(self.folder) if one.number > self.segment.place.number), None)

    def _check(self, row: Row) -> None:
        before, path = self.head, self.segment.path
        try:
            is_gap = row.number != before.number + 1 and not (is_loss(row) and row.number > before.number)
            is_sound = row.checksum() == row.crc and len(row.chain) == 32
            chain = row.link(bytes.fromhex(before.chain)) if is_sound else b""
        except Exception as error:  # a value of a wrong type or size is damage like any other
            raise damaged(f"group {before.number + 1} at position {before.position} unreadable", path) from error
        if is_gap or row.first != before.position:
            raise damaged(f"positions {before.position} to {row.first - 1} lost (group {before.number + 1})", path)
        if not is_sound:
            raise damaged(f"positions {row.first} to {row.first + row.span - 1} damaged (group {row.number})", path)
        if chain != row.chain:
            raise damaged(f"a broken chain at position {row.first} (group {row.number})", path)
        self.head = row.head()


class _Ahead:
    """Groups, decoded by a thread that stays at most so many bytes ahead."""

    def __init__(
        self, walker: Walker, kinds: frozenset[str], follow: bool, stop: Callable[[], bool] | None, num_bytes: int
    ) -> None:
        self._walker, self._kinds, self._follow, self._limit = walker, kinds, follow, num_bytes
        self._stop = stop or (lambda: False)
        self._ready: deque[tuple[Group, int]] = deque()
        self._num_bytes = 0
        self._is_over, self._is_left = False, False
        self._error: BaseException | None = None
        self._change = threading.Condition()

    def groups(self) -> Iterator[Group]:
        thread = threading.Thread(target=self._run, name="journal reading", daemon=True)
        thread.start()
        try:
            while (group := self._take()) is not None:
                yield group
            if self._error is not None:
                raise self._error
        finally:
            with self._change:
                self._is_left = True
                self._change.notify_all()
            thread.join()

    def _take(self) -> Group | None:
        with self._change:
            while not self._ready and not self._is_over:
                self._change.wait()
            if not self._ready:
                return None
            group, num_bytes = self._ready.popleft()
            self._num_bytes -= num_bytes
            self._change.notify_all()
            return group

    def _run(self) -> None:
        try:
            while not self._is_left:
                rows = self._walker.fetch()
                if not rows and (not self._follow or self._stop()):
                    break
                if not rows:
                    with self._change:
                        self._change.wait(_WAIT_SECONDS)
                self._put(rows)
        except BaseException as error:
            self._error = error
        finally:
            self._walker.close()
            with self._change:
                self._is_over = True
                self._change.notify_all()

    def _put(self, rows: list[Row]) -> None:
        for row, group in zip(rows, self._walker.groups(rows), strict=True):
            if group.kind not in self._kinds:
                continue
            size = row.num_bytes()
            with self._change:
                while self._num_bytes and self._num_bytes + size > self._limit and not self._is_left:
                    self._change.wait()
                if self._is_left:
                    return
                self._ready.append((group, size))
                self._num_bytes += size
                self._change.notify_all()


def is_loss(row: Row) -> bool:
    """A person has given up what stood before this row."""
    return row.kind == KINDS.index("decision") and LOSS.encode() in row.facts


def last_head(segment: Segment) -> Head:
    row = segment.row_before(1 << 62)
    return segment.before if row is None else row.head()


def _place_of(places: list[Place], number: int) -> Place | None:
    """The segment with this group, or the one that begins after it; None if it was dropped."""
    if number < places[0].number - 1:
        return None
    return next((one for one in reversed(places) if one.number <= number), places[0])


def _check(segment: Segment, wanted: Head, end: Head) -> None:
    if wanted == segment.before:
        return
    rows = segment.rows(wanted.number, num_bytes=1) if wanted.number >= segment.place.number else []
    if wanted.number > end.number:
        what = (
            f"a journal that ends at position {end.position}, without positions {end.position} to {wanted.position - 1}"
        )
        raise damaged(what, segment.path, wanted=f"one that goes up to position {wanted.position}")
    if rows and is_loss(rows[0]) and rows[0].group({}).facts["after"] < wanted.number:
        return
    if not rows or rows[0].head() != wanted:
        raise damaged(
            f"another journal at position {wanted.position}", segment.path, wanted="the one of the checkpoint"
        )


def _forgotten(place: int, first: int, folder: Path, what: str = "position") -> DataError:
    return DataError(
        got=f"{what} {place} of {folder}, which was dropped by its retention",
        wanted=f"{what} {first} or later",
        do=f"begin at {first}, or keep more next time",
    )
