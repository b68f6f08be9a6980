"""Records that go for good: their rows are written anew without them, and nothing of them is left in a file.

This file knows segments and rows. The chain covers digests, and these stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw
import numpy as np

from millstream.journal.rows import Row, without
from millstream.journal.segments import Place, Segment, damaged, find_segments, journal_errors

__all__ = ["erase"]


def erase(folder: Path, positions: Sequence[int], current: Segment) -> list[int]:
    """Erases the records at rising positions, those that are there; ``current`` is the segment that is open to write.

    Each segment is one transaction. When it fails between two, erasing again does what is left.
    """
    gone: list[int] = []
    with journal_errors(folder, do="erase again: what went is gone, what is left is as it was"):
        places = find_segments(folder)
        ends: list[float] = [*(one.first for one in places[1:]), float("inf")]
        for place, end in zip(places, ends, strict=True):
            wanted = [one for one in positions if place.first <= one < end]
            if wanted:
                gone += _erase_in(place, wanted, current)
    return gone


def _erase_in(place: Place, positions: list[int], current: Segment) -> list[int]:
    segment = current if place == current.place else Segment(place, writable=True)
    try:
        gone: list[int] = []
        with segment.connection:
            while positions:
                row = _row_at(segment, positions[0])
                here = [one for one in positions if one < row.first + row.span]
                positions = positions[len(here) :]
                gone += _erase_of(segment, row, here)
        # What was there is in the log, too, until that is empty.
        segment.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return gone
    finally:
        if segment is not current:
            segment.close()


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


def _erase_of(segment: Segment, row: Row, positions: list[int]) -> list[int]:
    places = row.entries()
    entries = np.flatnonzero(np.isin(places, positions))
    entries = np.setdiff1d(entries, np.frombuffer(row.erased, np.int64))
    if len(entries):
        segment.replace(without(row, entries, segment.schemas([row])))
    return [int(one) for one in places[entries]]
