"""Everything about a journal checked: databases, checksums, links, and the digest of each record.

This file reads; it changes nothing. It works while another process writes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from millstream.errors import MillstreamError
from millstream.journal.groups import Head
from millstream.journal.mark import read_mark
from millstream.journal.reading import JournalReader, Walker
from millstream.journal.segments import find_segments, journal_errors

__all__ = ["Verified", "verify"]


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong with it: a line for each segment that is not as it was written."""

    num_groups: int
    num_records: int
    num_erased: int
    first: int
    head: Head | None
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        return not self.problems


def verify(folder: str | Path) -> Verified:
    """Reads the whole journal. A damaged segment ends at its first damage, and the next one is looked at.

    >>> import tempfile, pyarrow as pa
    >>> from millstream.journal import Draft, Journal
    >>> folder = tempfile.mkdtemp()
    >>> with Journal(folder) as journal:
    ...     _ = journal.append(Draft(pa.record_batch({"x": [1, 2, 3]})))
    >>> verify(folder).is_sound, verify(folder).num_records
    (True, 3)
    """
    path = Path(folder)
    num_groups = num_records = num_erased = 0
    problems: list[str] = []
    head: Head | None = None
    try:
        first = JournalReader(path).first()
        mark = read_mark(path)
        with journal_errors(path):
            places = find_segments(path)
    except MillstreamError as error:
        return Verified(0, 0, 0, 0, None, (str(error),))
    for place in places:
        try:
            walker = Walker(path, place.number, only=True)
            try:
                with journal_errors(place.path):
                    problems += [f"{line} in {place.path}" for line in walker.segment.integrity]
                if head is not None and walker.head != head:
                    problems.append(f"a segment that does not go on where the one before ends: {place.path}")
                while rows := walker.fetch():
                    with journal_errors(place.path):
                        schemas = walker.segment.schemas(rows)
                        for row in rows:
                            if not row.digests_hold(schemas):
                                problems.append(f"records other than their digests: group {row.number} in {place.path}")
                            num_groups += 1
                            num_records += row.num_records
                            num_erased += len(np.frombuffer(row.erased, np.int64))
                head = walker.head
            finally:
                walker.close()
        except MillstreamError as error:
            problems.append(str(error))
            head = None
    problems += _against_mark(path, mark[1] if mark else None)
    return Verified(num_groups, num_records, num_erased, first, head, tuple(problems))


def _against_mark(folder: Path, marked: Head | None) -> list[str]:
    if marked is None:
        return [f"no mark in {folder}"]
    try:
        JournalReader(folder).check(marked)
    except MillstreamError as error:
        return [str(error)]
    return []
