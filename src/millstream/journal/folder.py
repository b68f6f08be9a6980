"""A journal's folder: who may write in it, and what it holds at first and at its borders."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from millstream import storage
from millstream.errors import SettingError
from millstream.journal.groups import Head
from millstream.journal.mark import write_mark
from millstream.journal.reading import last_head
from millstream.journal.segments import Place, Segment, damaged
from millstream.storage import make_folder, storage_errors

__all__ = ["check_borders", "first_head", "new_mark", "take_lock"]


def take_lock(folder: Path) -> TextIO:
    """The lock of the one who writes: a file to be closed."""
    with storage_errors(folder, do="allow writing, or name another folder"):
        make_folder(folder)
        lock = (folder / "lock").open("a")
    if not storage.take_lock(lock):
        lock.close()
        raise SettingError(
            got=f"a journal that is open already, here or in another process: {folder}",
            wanted="one who writes",
            do="close it there, or read it with JournalReader",
        )
    return lock


def first_head(journal: str) -> Head:
    """The head of an empty journal, which is another for each."""
    return Head(0, 0, hashlib.sha256(f"millstream journal {journal}".encode()).hexdigest())


def new_mark(folder: Path) -> tuple[str, Head]:
    """Begins a journal: the mark comes first, so that segments without one have lost it."""
    journal = uuid.uuid4().hex
    write_mark(folder, journal, first_head(journal))
    return journal, first_head(journal)


def check_borders(places: Sequence[Place], folder: Path) -> None:
    """Each segment begins where the one before it ends."""
    for place, after in itertools.pairwise(places):
        segment, following = Segment(place), Segment(after)
        try:
            end, before = last_head(segment), following.before
        finally:
            segment.close()
            following.close()
        if end != before:
            raise damaged(f"positions {end.position} to {before.position - 1} lost between two segments", folder)
