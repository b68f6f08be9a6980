"""Records that go for good: their rows are written anew without them, and nothing of them is left in a file.

This file knows segments and rows. The chain covers digests, and these stay. The hash of an event id stays while the
event could be told as a duplicate, so that it does not come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw
import numpy as np
import numpy.typing as npt

from millstream.journal.rows import Row, without
from millstream.journal.segments import Place, Segment, damaged, find_segments

__all__ = ["erase", "find_records"]


def find_records(folder: Path, positions: Sequence[int], current: Segment) -> list[int]:
    """Which of rising positions hold a record, or a refused one; ``current`` is the segment that is open to write."""
    found: list[int] = []
    for place, wanted in _by_segment(folder, positions):
        with _opened(place, current, writable=False) as segment:
            for row, here in _rows_at(segment, wanted):
                found += [int(one) for one in row.entries()[_entries(row, here)]]
    return sorted(found)


def erase(folder: Path, positions: Sequence[int], current: Segment, oldest: int) -> None:
    """Erases the records at rising positions, those that are there; ids at positions below ``oldest`` go, too.

    Each segment is one transaction. When it fails between two, erasing again does what is left.
    """
    for place, wanted in _by_segment(folder, positions):
        with _opened(place, current, writable=True) as segment:
            with segment.connection:
                for row, here in _rows_at(segment, wanted):
                    entries = _entries(row, here)
                    if len(entries):
                        segment.replace(without(row, entries, segment.schemas([row]), oldest))
            # What was there is in the log, too, until that is empty.
            segment.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _by_segment(folder: Path, positions: Sequence[int]) -> Iterator[tuple[Place, list[int]]]:
    places = find_segments(folder)
    ends: list[float] = [*(one.first for one in places[1:]), float("inf")]
    for place, end in zip(places, ends, strict=True):
        wanted = [one for one in positions if place.first <= one < end]
        if wanted:
            yield place, wanted


@contextmanager
def _opened(place: Place, current: Segment, *, writable: bool) -> Iterator[Segment]:
    segment = current if place == current.place else Segment(place, writable=writable)
    try:
        yield segment
    finally:
        if segment is not current:
            segment.close()


def _rows_at(segment: Segment, positions: list[int]) -> Iterator[tuple[Row, list[int]]]:
    while positions:
        row = _row_at(segment, positions[0])
        here = [one for one in positions if one < row.first + row.span]
        positions = positions[len(here) :]
        yield row, here


def _row_at(segment: Segment, position: int) -> Row:
    number = segment.number_at(position)
    rows = segment.rows(number, num_bytes=1)
    while rows and rows[0].first + rows[0].span <= position:  # decisions stand before the group at their position
        rows = segment.rows(rows[0].number + 1, num_bytes=1)
    if not rows:
        raise damaged(f"position {position} missing", segment.path)
    if rows[0].checksum() != rows[0].crc:
        raise damaged(f"group {rows[0].number} damaged", segment.path)
    return rows[0]


def _entries(row: Row, positions: list[int]) -> npt.NDArray[np.int64]:
    """Which of a row's entries these positions are, without those that have gone."""
    found = np.flatnonzero(np.isin(row.entries(), positions))
    return np.setdiff1d(found, np.frombuffer(row.erased, np.int64))
