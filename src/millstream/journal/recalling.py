"""What producers and ids came before, read from segments when a journal is opened, and kept in them as facts.

This file knows segments and what is seen; it writes facts only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millstream.journal.duplicates import Last, Seen
from millstream.journal.groups import Head
from millstream.journal.segments import Segment, find_segments

__all__ = ["carry_ids", "recall", "snapshot"]


def recall(seen: Seen, folder: Path, current: Segment, head: Head) -> dict[str, Any]:
    """Takes up who and what came before, as far as duplicates are told; the snapshot of producers in ``current``."""
    places = find_segments(folder)
    oldest = max(head.position - seen.ids.size, places[0].first)
    start = next((one for one in reversed(places) if one.first <= oldest), places[0])
    known = current.fact("producers")
    if known is None:  # a first segment, or one that was begun anew: the groups tell
        known, start = {"number": 0, "producers": {}}, places[0]
    seen.producers = {bytes.fromhex(name): Last(*last) for name, last in known["producers"].items()}
    for first, ids in current.fact("ids") or []:
        seen.note(first, bytes.fromhex(ids))
    for place in [one for one in places if one >= start]:
        segment = current if place == current.place else Segment(place)
        try:
            for number, first, ids, producer, following in segment.known_again():
                seen.note(first, ids)
                if producer and number > known["number"]:
                    seen.producers[producer] = Last(following, number)
        finally:
            if segment is not current:
                segment.close()
    return dict(known)


def snapshot(seen: Seen, head: Head) -> dict[str, Any]:
    """Who was seen last, as JSON."""
    found = {name.hex(): [last.next, last.number] for name, last in seen.producers.items()}
    return {"number": head.number, "producers": found}


def carry_ids(seen: Seen, current: Segment, head: Head, end: int) -> None:
    """Writes the ids of positions below ``end``, which go, but are within the window, into the segment that stays."""
    keys, positions = seen.ids.keys_from(head.position - seen.ids.size, end)
    ids = [[place, keys[16 * i : 16 * (i + 1)].hex()] for i, place in enumerate(positions)]
    with current.connection:
        current.put_fact("ids", ids)
