"""Segments: the files of a journal, each an SQLite database that holds the groups from one number on.

    journal/lock                      held by the one process that writes
           /mark                      how far the journal has come, at most a second old
           /0000000000000001-00000000000000000000.segment     first group number, first position

A segment is made under another name and is there whole or not at all. This file knows SQLite through apsw; it does not
know what a row means.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa

from millstream.errors import MillstreamError, MissingPackageError, StorageError
from millstream.journal.groups import Head
from millstream.journal.rows import Row
from millstream.storage import is_full as says_full
from millstream.storage import storage_errors, sync

__all__ = [
    "RESTORE",
    "Place",
    "Segment",
    "check_version",
    "create_segment",
    "damaged",
    "drop_segment",
    "find_segments",
    "is_damage",
    "is_full",
    "journal_errors",
]

RESTORE = "restore the folder from a copy, or give up what is lost: millstream.journal.accept_loss(folder)"
_NAME = re.compile(r"(\d{16})-(\d{20})\.segment")
_OLDEST = (3, 51, 3)  # before it, a commit could be lost when a write-ahead log was begun anew
_PAGE_BYTES = 16384
_LOG_BYTES = 64 << 20  # what a write-ahead log is cut back to
_FETCH_BYTES = 4 << 20
_COLUMNS = [field.name for field in dataclasses.fields(Row)]
_TYPES = ["INTEGER"] * 5 + ["BLOB"] * 3 + ["INTEGER"] * 3 + ["BLOB"] * 8
_TABLES = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE schemas (digest BLOB PRIMARY KEY, content BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
  number INTEGER PRIMARY KEY, {", ".join(f"{n} {t} NOT NULL" for n, t in zip(_COLUMNS[1:], _TYPES[1:], strict=True))}
) STRICT;
"""
_DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError, apsw.IOError)
_INSERT = f"INSERT INTO groups VALUES ({', '.join('?' * len(_COLUMNS))})"


def check_version() -> None:
    """Refuses an SQLite that may lose a commit."""
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if found < _OLDEST:
        raise MissingPackageError(
            got=f"SQLite {apsw.sqlite_lib_version()}", wanted="3.51.3 or newer", do="pip install -U 'apsw>=3.51.3'"
        )


def damaged(what: str, path: Path, *, wanted: str = "a whole journal") -> StorageError:
    return StorageError(got=f"{what} in {path}", wanted=wanted, do=RESTORE)


@contextmanager
def journal_errors(path: Path, do: str = RESTORE) -> Iterator[None]:
    """Turns what SQLite, Arrow and the operating system raise at a journal's file into ``StorageError``."""
    try:
        with storage_errors(path, do=do, wanted="a journal that can be read and written"):
            yield
    except StorageError as error:
        if not is_full(error):
            raise
        raise _full(path) from error.__cause__
    except MillstreamError:
        raise
    except apsw.FullError as error:
        raise _full(path) from error
    except (
        apsw.Error,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        pa.ArrowException,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StorageError(got=f"{reason!r} at {path}", wanted="a whole journal", do=do) from error


def is_full(error: BaseException) -> bool:
    """Whether there was no room: what was asked for was not done, and nothing else changed; it may be asked again."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    if isinstance(cause, apsw.IOError):
        # The index of the log, which is made anew whenever it is missing, could not grow.
        return getattr(cause, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
    return isinstance(cause, apsw.FullError) or says_full(error)


def is_damage(error: BaseException) -> bool:
    """Whether it says that a file is not as it was written, rather than that it could not be got at."""
    cause = error.__cause__ if isinstance(error, MillstreamError) else error
    return not isinstance(cause, OSError | apsw.Error | MemoryError) or isinstance(cause, _DAMAGE)


def _full(path: Path) -> StorageError:
    return StorageError(got=f"a full disk at {path}", wanted="room for the journal", do="make room; nothing was lost")


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Place:
    """A segment by its name: its first group number, its first position, and its path."""

    number: int
    first: int
    path: Path


def find_segments(folder: Path) -> list[Place]:
    """The segments of a folder in order. Raises the operating system's errors."""
    found = []
    for path in folder.iterdir():
        if path.suffix == ".segment":
            match = _NAME.fullmatch(path.name)
            if match is None:
                raise damaged(f"a segment of another name ({path.name})", folder)
            found.append(Place(int(match[1]), int(match[2]), path))
    return sorted(found)


def create_segment(folder: Path, before: Head, facts: Mapping[str, Any]) -> Place:
    """A new segment that goes on after ``before``; durable when this returns. One that is there already stays."""
    place = Place(before.number + 1, before.position, folder / f"{before.number + 1:016}-{before.position:020}.segment")
    if place.path.exists():  # it could not be opened when it was made; readers may have it
        return place
    draft = folder / f".{place.path.name}-new"
    try:
        _remove(draft)
        _fill(draft, {**facts, "before": before.to_json()})
        sync(draft)
        draft.rename(place.path)
    except BaseException:
        with suppress(OSError):
            _remove(draft)
        raise
    sync(folder)
    return place


def drop_segment(place: Place) -> None:
    """Deletes it, durably."""
    _remove(place.path)
    sync(place.path.parent)


def _fill(path: Path, facts: Mapping[str, Any]) -> None:
    """Nobody knows the file yet: it is synced once, when all is in it."""
    connection = _connect(path, writable=True, is_new=True)
    try:
        with connection:
            connection.execute(_TABLES)
            for name, value in facts.items():
                _put_fact(connection, name, value)
        # Closing does this too, but says nothing where there is no room, and the tables would stay behind in the log.
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        connection.close()


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


class Segment:
    """An open segment. One thread at a time."""

    def __init__(self, place: Place, *, writable: bool = False) -> None:
        self.place, self.path = place, place.path
        with journal_errors(self.path):
            self.connection = _connect(self.path, writable=writable)
            log = Path(f"{self.path}-wal")
            self.log_pages = int(writable and log.exists() and log.stat().st_size > 0)
            self._schemas: dict[bytes, pa.Schema] = {}
            try:
                self.before = Head.from_json(self.fact("before"))
                self.journal = str(self.fact("journal"))
            except BaseException:
                self.close()
                raise
        if (self.before.number + 1, self.before.position) != (place.number, place.first):
            self.close()
            raise damaged(
                f"a segment that begins at {self.before.position}", self.path, wanted=f"position {place.first}"
            )
        self.connection.set_wal_hook(self._count_pages)

    @contextmanager
    def quota_errors(self) -> Iterator[None]:
        """A quota that is used up is told as a full disk is; SQLite knows it as a failed write."""
        try:
            yield
        except apsw.IOError as error:
            is_write = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE
            if is_write and self.connection.system_errno == errno.EDQUOT:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)) from error
            raise

    def insert(self, rows: Iterable[Row], schemas: Mapping[bytes, bytes]) -> None:
        """Writes rows and the schemas that they need; within the caller's transaction."""
        for row in rows:
            if row.schema and row.schema not in self._schemas:
                self.connection.execute(
                    "INSERT OR IGNORE INTO schemas VALUES (?, ?)", (row.schema, schemas[row.schema])
                )
            self.connection.execute(_INSERT, [getattr(row, name) for name in _COLUMNS])

    def know(self, digest: bytes, content: bytes) -> None:
        """Takes note that a schema was written durably."""
        if digest not in self._schemas:
            self._schemas[digest] = pa.ipc.read_schema(pa.py_buffer(content))

    def replace(self, row: Row) -> None:
        columns = ", ".join(f"{name} = ?" for name in _COLUMNS[1:])
        values = [getattr(row, name) for name in _COLUMNS[1:]]
        self.connection.execute(f"UPDATE groups SET {columns} WHERE number = ?", [*values, row.number])

    def rows(self, number: int, *, num_bytes: int = _FETCH_BYTES) -> list[Row]:
        """Some rows from this number on; empty at the end. No longer than that a reader holds the log back."""
        found, size = [], 0
        cursor = self.connection.execute("SELECT * FROM groups WHERE number >= ? ORDER BY number", (number,))
        try:
            for values in cursor:
                found.append(Row(*values))
                size += found[-1].num_bytes()
                if size >= num_bytes:
                    break
        finally:
            cursor.close()
        return found

    def row_before(self, number: int) -> Row | None:
        """The last row below this number."""
        found = self.connection.execute("SELECT * FROM groups WHERE number < ? ORDER BY number DESC LIMIT 1", (number,))
        values = found.fetchone()
        return None if values is None else Row(*values)

    def number_at(self, position: int) -> int:
        """The number of the first group that holds ``position`` or begins there."""
        low, high = self.place.number, self._last_number() + 1
        while low < high:  # numbers and positions rise together
            middle = (low + high) // 2
            found = self.connection.execute(
                "SELECT number, first, span FROM groups WHERE number >= ? ORDER BY number LIMIT 1", (middle,)
            ).fetchone()
            if found is None or found[1] + found[2] > position or (found[2] == 0 and found[1] >= position):
                high = middle
            else:
                low = found[0] + 1
        return low

    def known_again(self) -> Iterator[tuple[int, int, bytes, bytes, int]]:
        """Number, first position, ids, producer and the sequence after it, of groups that have ids or a producer."""
        return iter(
            self.connection.execute(
                "SELECT number, first, ids, producer, sequence + span FROM groups"
                " WHERE length(ids) OR length(producer) ORDER BY number"
            )
        )

    def _last_number(self) -> int:
        """The number of the last group; one less than the first when there is none."""
        found = self.connection.execute("SELECT max(number) FROM groups").fetchone()
        return self.place.number - 1 if found is None or found[0] is None else int(found[0])

    def schemas(self, rows: Iterable[Row]) -> Mapping[bytes, pa.Schema]:
        """The schemas of rows, checked against their digests."""
        for digest in {row.schema for row in rows if row.schema} - self._schemas.keys():
            found = self.connection.execute("SELECT content FROM schemas WHERE digest = ?", (digest,)).fetchone()
            if found is None or hashlib.sha256(found[0]).digest() != digest:
                raise damaged("a schema that is gone or changed", self.path)
            self.know(digest, found[0])
        return self._schemas

    @property
    def schema_contents(self) -> dict[bytes, bytes]:
        return dict(self.connection.execute("SELECT digest, content FROM schemas"))

    @property
    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its own structure."""
        lines = [str(line) for (line,) in self.connection.execute("PRAGMA integrity_check(5)")]
        return [] if lines == ["ok"] else lines

    def fact(self, name: str) -> Any:
        """What is written about the segment, by name; None if nothing is."""
        found = self.connection.execute("SELECT value, digest FROM facts WHERE name = ?", (name,)).fetchone()
        if found is None:
            return None
        if hashlib.sha256(found[0]).digest() != found[1]:
            raise damaged(f"damaged {name!r}", self.path)
        return json.loads(found[0])

    def put_fact(self, name: str, value: Any) -> None:
        _put_fact(self.connection, name, value)

    def checkpoint(self, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
        """Moves the log into the file. An error in it is one of the disk, and never retried."""
        self.connection.wal_checkpoint(mode=mode)
        self.log_pages = 0

    @property
    def num_bytes(self) -> int:
        return int(self.connection.pragma("page_count")) * int(self.connection.pragma("page_size"))

    def close(self) -> None:
        with suppress(apsw.Error):
            self.connection.close(True)

    def _count_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.log_pages = pages
        return apsw.SQLITE_OK


def _put_fact(connection: apsw.Connection, name: str, value: Any) -> None:
    content = json.dumps(value).encode()
    digest = hashlib.sha256(content).digest()
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, content, digest))


def _connect(path: Path, *, writable: bool, is_new: bool = False) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE if writable else apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(str(path), flags=flags | (apsw.SQLITE_OPEN_CREATE if is_new else 0))
    try:
        connection.set_busy_timeout(10_000)
        if is_new:
            connection.pragma("synchronous", "off")
            connection.pragma("page_size", _PAGE_BYTES)
            connection.pragma("journal_mode", "wal")
        elif connection.pragma("journal_mode") != "wal":
            raise damaged("a database of another kind", path)
        for name, value in {"trusted_schema": 0, "cell_size_check": 1, "cache_size": -8192}.items():
            connection.pragma(name, value)
        if writable:
            # The log is moved into the file by us: SQLite's own checkpoints do not say that they failed.
            settings = {"synchronous": "off" if is_new else "full", "wal_autocheckpoint": 0, "secure_delete": 1}
            for name, setting in {**settings, "journal_size_limit": _LOG_BYTES}.items():
                connection.pragma(name, setting)
    except BaseException:
        connection.close(True)
        raise
    return connection
