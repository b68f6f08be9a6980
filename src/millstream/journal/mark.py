"""The mark: how far a journal has come, in a file of its own. A journal that is shorter than it has lost something.

SQLite passes in silence over the rest of a log in which one bit has flipped; the mark tells. It is replaced whole, at
most a second after a commit. This file knows one small file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from millstream.errors import StorageError
from millstream.journal.groups import Head
from millstream.journal.segments import damaged, is_full, journal_errors
from millstream.storage import replace

__all__ = ["Marker", "identity", "read_mark", "write_mark"]

_SECONDS = 0.5  # between two marks


def read_mark(folder: Path) -> tuple[str, Head] | None:
    """The journal that the folder holds, and its head when the mark was made; None if there is no mark."""
    path = folder / "mark"
    with journal_errors(path):
        if not path.exists():
            return None
        content, _, digest = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise damaged("a damaged mark", path)
        facts = json.loads(content)
        return str(facts["journal"]), Head.from_json(facts)


def identity(folder: Path) -> str:
    """What tells this journal from all others. Raises ``StorageError`` where there is none."""
    mark = read_mark(folder)
    if mark is None:
        raise StorageError(got=f"no journal in {folder}", wanted="its mark", do="name the folder of a journal")
    return mark[0]


def write_mark(folder: Path, journal: str, head: Head) -> None:
    content = json.dumps({"journal": journal, **head.to_json()})
    replace(folder / "mark", f"{content}\n{hashlib.sha256(content.encode()).hexdigest()}\n")


class Marker:
    """A thread that writes the mark behind the commits; ``failed`` is told what the disk says to it.

    A full disk is no failure: the mark stays where it was, and is written once there is room.
    """

    def __init__(self, folder: Path, journal: str, marked: Head, failed: Callable[[StorageError], None]) -> None:
        self._folder, self._journal, self._failed = folder, journal, failed
        self._head = self._marked = marked
        self._changed, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal mark", daemon=True)
        self._thread.start()

    def set(self, head: Head) -> None:
        self._head = head
        self._changed.set()

    def stop(self) -> None:
        self._stopped.set()
        self._changed.set()
        self._thread.join()

    def write(self) -> None:
        """The mark as it should be by now, unless it is. Raises the operating system's errors."""
        head = self._head
        if head != self._marked:
            write_mark(self._folder, self._journal, head)
            self._marked = head

    def _run(self) -> None:
        while True:
            self._changed.wait()
            if self._stopped.is_set():
                return
            self._changed.clear()
            try:
                with journal_errors(self._folder / "mark", do="allow writing, and open the journal anew"):
                    self.write()
            except StorageError as error:
                if is_full(error):
                    self._changed.set()  # tried again
                else:
                    self._failed(error)
            self._stopped.wait(_SECONDS)
