"""Commits of a run, written behind the loop's back: a snapshot between two chunks, all else in a thread.

    loop      state -> snapshot into memory that is used again; lines handed over, their lengths in the state
    thread    lines synced -> checkpoint written, hashed, synced, renamed, its folder synced -> told to those who wait

At most one is in flight. A full disk is waited out; after a failed fsync nobody knows what the disk has, so there is no
other try: the run takes no more commits. Whatever the instant at which a process dies, an older whole commit is there.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from millstream import checkpoint
from millstream.contracts import State
from millstream.errors import SettingError, StorageError
from millstream.lines import Lines
from millstream.storage import is_full, storage_errors, sync

__all__ = ["Commits", "Seconds", "checked"]

Seconds: TypeAlias = float | Literal["auto"]

_LEAST = 1.0  # seconds between two commits that are timed by their cost
_COSTS, _TIMES = 100, 10  # how often its processor time, and its whole time, fits between it and the next


def checked(seconds: Seconds) -> Seconds:
    """The time between two commits, or why it is none."""
    if seconds != "auto" and (isinstance(seconds, str) or not 0 <= seconds < math.inf):
        raise SettingError(got=f"commit_seconds={seconds!r}", wanted='a number, 0 or more, or "auto"', do='use "auto"')
    return seconds


class Commits:
    """Commits states of one run to ``folder``, with the lengths of its ``lines``.

    ``seconds`` is the time from one timed commit to the next; 0 is after every chunk, and the loop waits for the disk.
    With ``"auto"`` it is 100 times what the last one took of the processor, at least 10 times what it took in all, at
    least 1 second. Functions in ``after`` are called with the JSON part of a state that is durable, by the thread that
    wrote it: a broker may forget what came before.
    """

    def __init__(self, folder: Path, lines: Mapping[str, Lines], *, keep: int, seconds: Seconds) -> None:
        self.folder, self._lines, self._keep, self._seconds = folder, lines, keep, seconds
        self.after: list[Callable[[State], None]] = []
        self.newest: Path | None = None  # the last one that is durable
        self.pause = self.cost = self.took = 0.0  # seconds of the last one: of the loop, of the processor, in all
        self._block = checkpoint.Block()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None  # of the thread, not told yet
        self._lost: BaseException | None = None  # a failed fsync
        self._said_full = False
        self._began_at = time.monotonic()

    def commit(self, state: State) -> Path:
        """Durable when it returns. Raises ``StorageError`` when the disk does not take it."""
        self._settle()
        self._begin(lambda: state)
        self._join()
        assert self.newest is not None
        return self.newest

    def commit_if_due(self, state: Callable[[], State]) -> Path | None:
        """Begins a commit if it is time for one, and tells what went wrong with the one before; the newest durable."""
        if self._thread is not None and self._thread.is_alive():
            return self.newest
        self._settle()
        if time.monotonic() - self._began_at < self.interval:
            return self.newest
        if self._seconds == 0:
            return self.commit(state())
        try:
            self._begin(state)
        except StorageError as error:
            self._say_full(error)
        return self.newest

    @property
    def interval(self) -> float:
        """Seconds from the beginning of a timed commit to that of the next."""
        if self._seconds != "auto":
            return self._seconds
        return max(_LEAST, _COSTS * self.cost, _TIMES * self.took)

    def close(self) -> None:
        """Waits for what is in flight. What went wrong with it is a warning: what was committed before is whole."""
        try:
            self._join()
        except StorageError as error:
            warnings.warn(f"the last timed commit failed: {error}", stacklevel=2)

    def _begin(self, state: Callable[[], State]) -> None:
        """The part of a commit that the loop waits for."""
        if self._lost is not None:
            raise StorageError(
                got=f"a commit after a sync that failed ({self._lost}) at {self.folder}",
                wanted="a disk that says what it has",
                do="look after the disk, then go on with --resume: what was committed before is whole",
            ) from self._lost
        self._began_at, started = time.monotonic(), time.perf_counter()
        for lines in self._lines.values():
            lines.flush()
        facts = {name: (lines.length, lines.digest()) for name, lines in self._lines.items()}
        now = state()
        run = {**now.get("run", {}), "bytes": {name: length for name, (length, _) in facts.items()}}
        run["sha256"] = {name: digest for name, (_, digest) in facts.items()}
        snapshot = checkpoint.take({**now, "run": run}, self._block)
        self.pause = time.perf_counter() - started
        self._thread = threading.Thread(target=self._write, args=(snapshot, started), name="millstream-commit")
        self._thread.start()

    def _write(self, snapshot: checkpoint.Snapshot, started: float) -> None:
        """The thread."""
        before = time.thread_time()
        try:
            with storage_errors(self.folder, do=checkpoint.GO_ON):
                for lines in self._lines.values():
                    self._sync(lines)
            self.newest = checkpoint.store(self.folder, snapshot, keep=self._keep, sync=self._sync)
            self._said_full = False
            for tell in self.after:
                tell(snapshot.tree)
        except BaseException as error:
            self._failure = error
        self.cost = self.pause + time.thread_time() - before
        self.took = time.perf_counter() - started

    def _sync(self, what: Path | Lines) -> None:
        """Never again once it has failed; but a new file for which there was no room is thrown away and made anew."""
        try:
            what.sync() if isinstance(what, Lines) else sync(what)
        except OSError as error:
            is_new = isinstance(what, Path) and what != self.folder
            if not (is_new and is_full(error)):
                self._lost = error
            raise

    def _settle(self) -> None:
        """Waits for a timed commit and tells what went wrong with it; a full disk is a warning."""
        try:
            self._join()
        except StorageError as error:
            self._say_full(error)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # or it would hold this frame, and with it a run that nobody else has any more

    def _say_full(self, error: StorageError) -> None:
        """Raises what is no full disk. That is said once, until there was room again."""
        if not is_full(error) or self._lost is not None:
            raise error
        if not self._said_full:
            self._said_full = True
            words = "learning goes on, and a commit is tried again later: what was committed before is whole"
            warnings.warn(f"no room for a commit ({error.got}); {words}", stacklevel=4)
