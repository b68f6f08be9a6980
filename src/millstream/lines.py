"""A file that lines are appended to. What a full disk did not take waits in memory, and no line is written twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from millstream.errors import StorageError
from millstream.storage import GO_ON, is_full, storage_errors

__all__ = ["Lines"]

_AT_ONCE, _MOST = 8192, 64 << 20  # bytes that wait: for the next write, and for room on the disk
_PART = 1 << 20  # bytes that are hashed at once


class Lines:
    """Appends to ``path``; without ``keep`` it begins empty. ``length`` is what the system has of it, in bytes."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path, self._pending = path, bytearray()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | (0 if keep else os.O_TRUNC), 0o644)
        self.length, self._hash = os.fstat(self._file).st_size, hashlib.sha256()

    def write(self, line: str) -> None:
        """One line. A full disk is an error only when too much waits for it."""
        self._pending += line.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate, as JSON escapes it
        if len(self._pending) >= _AT_ONCE:
            try:
                self.flush()
            except StorageError as error:
                if not is_full(error) or len(self._pending) > _MOST:
                    raise

    def flush(self) -> None:
        """Hands over all that waits; what was taken before an error is not handed over again."""
        with storage_errors(self.path, do=GO_ON):
            while self._pending:
                taken = os.write(self._file, self._pending)
                self.length += taken
                self._hash.update(self._pending[:taken])
                del self._pending[:taken]

    def sync(self) -> None:
        """Waits until what was handed over is on the disk. Raises the operating system's errors."""
        os.fsync(self._file)

    def digest(self) -> str:
        """SHA-256 of the first ``length`` bytes, as far as they were written or cut here."""
        return self._hash.hexdigest()

    def cut(self, length: int, digest: str | None = None) -> bool:
        """Drops what stands behind ``length``; False if less is there, or what is there has not this ``digest``."""
        before = self.length
        with storage_errors(self.path, do=GO_ON):
            os.ftruncate(self._file, min(length, before))
            self.length, self._hash = min(length, before), hashlib.sha256()
            for place in range(0, self.length, _PART):
                self._hash.update(os.pread(self._file, _PART, place))
        return length <= before and digest in (None, self.digest())

    def close(self) -> None:
        """Hands over what it can. The rest is of no commit, so a run that goes on writes it again."""
        if self._file >= 0:
            try:
                self.flush()
            except StorageError:
                pass
            finally:
                os.close(self._file)
                self._file = -1
