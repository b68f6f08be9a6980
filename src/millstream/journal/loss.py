"""What an operator does about a damaged journal that has no copy: says, in the journal itself, what is given up.

Positions are never given out twice: what is lost becomes holes, in a decision that spans them. Records that are
readable stay. This file knows folders, segments and rows.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from millstream.errors import MillstreamError, StorageError
from millstream.journal.digests import DIGEST_BYTES
from millstream.journal.folder import take_lock
from millstream.journal.groups import Draft, Head
from millstream.journal.mark import read_mark, write_mark
from millstream.journal.reading import LOSS, Walker, last_head
from millstream.journal.rows import Row, row_of
from millstream.journal.segments import Segment, create_segment, find_segments, is_damage, journal_errors

__all__ = ["accept_loss"]


def accept_loss(folder: str | Path, head: Head | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Gives up what a damaged journal has lost, up to its mark and to ``head`` if a checkpoint knows more.

    Damaged records become holes where their group can still be linked; else all from the first damaged group of
    the last segment on is given up. Returns the facts of the decision that says so, or none. Damage in
    an earlier segment that leaves no link is a ``StorageError``: only a copy helps.
    """
    path = Path(folder)
    wanted = head if head is None or isinstance(head, Head) else Head.from_json(head)
    lock = take_lock(path)
    try:
        with journal_errors(path):
            return _accept(path, wanted)
    finally:
        lock.close()


def _accept(folder: Path, wanted: Head | None) -> dict[str, Any]:
    places = find_segments(folder)
    if not places:
        raise StorageError(got=f"no journal in {folder}", wanted="its segments", do="name the folder of a journal")
    has_mark, ends = False, [] if wanted is None else [wanted]
    with suppress(StorageError):
        mark = read_mark(folder)
        has_mark, ends = mark is not None, ends if mark is None else [*ends, mark[1]]
    walker, emptied = Walker(folder, places[0].number), list[list[int]]()
    try:
        is_cut = _walk(walker, emptied)
        end, journal = walker.head, walker.segment.journal
        if is_cut and walker.segment.place != places[-1]:
            raise StorageError(
                got=f"damage at position {end.position} in {walker.segment.path}, before the last segment",
                wanted="damage that leaves the chain, or in the last segment",
                do="restore that file from a copy",
            )
        if is_cut:
            with suppress(MillstreamError), journal_errors(walker.segment.path):
                ends.append(last_head(walker.segment))
    finally:
        walker.close()
    last = max([end, *ends], key=lambda one: (one.number, one.position))
    if last == end and not emptied and has_mark and not is_cut:
        return {}
    if is_cut:
        _cut(folder, end)
    facts = {"what": LOSS, "after": end.number, "first": end.position, "end": last.position, "emptied": emptied}
    row = row_of(Draft(kind="decision", facts=facts))
    row.number, row.first = max(end.number + 1, last.number), end.position
    row.span = max(last.position - end.position, 0)
    row.seal(bytes.fromhex(end.chain))
    segment = Segment(find_segments(folder)[-1], writable=True)
    try:
        with segment.connection:
            segment.insert([row], {})
        segment.checkpoint()
    finally:
        segment.close()
    write_mark(folder, journal, row.head())
    return facts


def _walk(walker: Walker, emptied: list[list[int]]) -> bool:
    """To the end or the first group that cannot be mended; whether there is one."""
    while True:
        try:
            if not walker.fetch():
                return False
        except MillstreamError as error:
            if not is_damage(error):  # it could not be looked at, which says nothing of what it holds
                raise
            positions = _empty(walker)
            if positions is None:
                return True
            emptied.append(positions)


def _empty(walker: Walker) -> list[int] | None:
    """Makes holes of a group whose link holds and whose records do not; None if its link does not hold either."""
    row = _linked(walker)
    if row is None:
        return None
    segment = Segment(walker.segment.place, writable=True)
    try:
        with segment.connection:
            segment.replace(_emptied(row))
        segment.checkpoint()
    finally:
        segment.close()
    return [row.first, row.first + row.span]


def _linked(walker: Walker) -> Row | None:
    """The row where the walker stands, if its numbers, digests and link are as they must be and the rest is not."""
    before = walker.head
    try:
        with journal_errors(walker.segment.path):
            rows = walker.segment.rows(before.number + 1, num_bytes=1)
            if not rows or (rows[0].number, rows[0].first) != (before.number + 1, before.position):
                return None
            is_linked = rows[0].link(bytes.fromhex(before.chain)) == rows[0].chain
            return rows[0] if is_linked and rows[0].checksum() != rows[0].crc else None
    except (MillstreamError, struct.error, AttributeError) as error:  # values of wrong types and sizes are damage
        if not is_damage(error):
            raise
        return None


def _emptied(row: Row) -> Row:
    every = np.arange(len(row.digests) // DIGEST_BYTES, dtype=np.int64).tobytes()
    empty = dataclasses.replace(row, payload=b"", rejected=b"", salts=b"", ids=b"", before=0, erased=every)
    empty.crc = empty.checksum()
    return empty


def _cut(folder: Path, end: Head) -> None:
    """The last segment anew, with its groups up to ``end``; the damaged file is kept under another name."""
    place = find_segments(folder)[-1]
    old = Segment(place)
    try:
        facts = {name: old.fact(name) for name in ("journal", "secret", "ids", "erasing")}
        before, rows, number = old.before, list[Row](), place.number
        while number <= end.number:
            rows += old.rows(number, num_bytes=1)[:1]
            number = rows[-1].number + 1
        old.schemas(rows)
        contents = old.schema_contents
        facts["producers"] = _producers(old, rows, end)
    finally:
        old.close()
    for ending in ("", "-wal", "-shm"):
        path = Path(f"{place.path}{ending}")
        if path.exists():
            path.rename(f"{place.path}-damaged{ending}")
    create_segment(folder, before, {name: fact for name, fact in facts.items() if fact is not None})
    fresh = Segment(place, writable=True)
    try:
        with fresh.connection:
            fresh.insert(rows, contents)
        fresh.checkpoint()
    finally:
        fresh.close()


def _producers(old: Segment, rows: list[Row], end: Head) -> dict[str, Any] | None:
    """Who was seen last, as the old segment knew it. None: that is lost, and the groups must tell.

    What a producer sent into the part that is given up is never asked for again, but its places are not known any more.
    """
    try:
        known = old.fact("producers")
    except StorageError:
        return None
    if known is None:
        return None
    kept = {row.producer.hex(): row.number for row in rows if row.producer}
    found = {}
    for name, (following, number) in known["producers"].items():
        found[name] = [following, number if number <= end.number else kept.get(name, 0)]
    return {"number": min(known["number"], end.number), "producers": found}
