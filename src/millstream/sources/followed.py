"""A CSV or JSON Lines file that grows: read to its end, and then as more is written.

Its place is a byte in a file that is known by device, inode and a hash of its beginning. A file that was renamed is
read to its end, and then the one that was begun after it; a file that became shorter or begins otherwise is an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from millstream.errors import DataError, SettingError, StorageError
from millstream.sources.arrivals import Arrival, Places, Start
from millstream.sources.decoding import Decoder, TextDecoder
from millstream.sources.delimited import MISSING
from millstream.sources.text import MAX_RECORD_BYTES, TextFormat
from millstream.sources.textfiles import begin

__all__ = ["FollowedFile"]

_HEAD_BYTES = 1 << 16
_READ_BYTES = 1 << 20
_LOOK_SECONDS = 0.05  # between two looks for more
_TURNED = re.compile(r"[.-][0-9][^/]*(?<!\.gz)(?<!\.zst)(?<!\.bz2)(?<!\.xz)")  # app.log.1, app.log-20260101


class FollowedFile:
    """A file that somebody else appends to. Only whole lines are records; the last one of a renamed file needs no end.

    Making it waits for the first record, or for the header of a CSV.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: BinaryIO | None = None
        self._path = Path(path).expanduser()
        self.name = f"follow:{self._path}"
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise SettingError(got=f"{self.name}", wanted="a file in a folder that exists", do="correct the path")
        self._head: dict[str, Any] = {}  # what the file is known by
        self._byte = 0
        self._left = b""  # read, but not yet whole records
        self._ended = 0.0  # since when the file that was renamed has not grown
        self._format, self._header_bytes = self._await_format()

    def begin(self, start: Start, back: int = 0) -> tuple[str | None, Places]:
        place = self._opened(self._path)
        if start == "latest" and not back:
            with self._path.open("rb") as file:
                text = file.read()
            place["byte"] = max(place["byte"], self._format.last_end(text))
        return None, {"file": place}

    def seek(self, identity: str | None, places: Places) -> None:
        place = _checked(places.get("file"), self.name)
        self._open(self._found(place), place)

    def fetch(self, count: int, seconds: float) -> Arrival | None:
        ends = time.monotonic() + seconds
        while True:
            arrival = self._next()  # a block of text at once, whose bytes are bounded
            if arrival is not None:
                return arrival
            wait = min(_LOOK_SECONDS, ends - time.monotonic())
            if wait <= 0:
                return None
            time.sleep(wait)

    def between(self, partition: str, before: Any, after: Any, count: int) -> Arrival:
        place = _checked(before, self.name)
        after = _checked(after, self.name)
        if (place["device"], place["inode"]) != (after["device"], after["inode"]):
            place = {**after, "byte": -1}  # the chunk began where the file did
        with self._found(after).open("rb") as file:
            if place["byte"] < 0:
                place["byte"] = _header_bytes(file, self._format)
            file.seek(place["byte"])
            text = file.read(after["byte"] - place["byte"])
        return self._arrival(text, place["byte"], after, count, final=True)

    def decoder(self) -> Decoder:
        return TextDecoder(self._format)

    def facts(self) -> Mapping[str, Any]:
        return {"path": str(self._path), "format": self._format.name}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()  # whoever reads a stream until they are stopped need not know that there is a file

    def _await_format(self) -> tuple[TextFormat, int]:
        """What the file is, once it holds a line."""
        while True:
            head = _read_head(self._path, _READ_BYTES) if self._path.exists() else b""
            if b"\n" in head.lstrip():
                form = "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "csv"
                text_format, header = begin(head, form, self.name, delimiter=None, names=None, missing=MISSING)
                return text_format, header.num_bytes
            time.sleep(_LOOK_SECONDS)

    def _next(self) -> Arrival | None:
        """The next whole records that are there."""
        if self._file is None:
            return None
        data = b""
        if len(self._left) < _READ_BYTES or not self._format.last_end(self._left):
            data = self._read(_READ_BYTES)
        text = self._left + data
        is_final = not data and self._is_over()
        end = len(text) if is_final else self._format.last_end(text)
        if not end:
            self._left = text
            if len(text) > MAX_RECORD_BYTES:
                raise DataError(
                    got=f"{self.name}@{self._byte}: a record of more than {MAX_RECORD_BYTES >> 20} MiB",
                    wanted="records that end",
                    do="look for a quote that is never closed",
                )
            if is_final:
                self._turn()
            return None
        arrival = self._arrival(text[:end], self._byte, self._head, end, final=True)
        self._left, self._byte = text[end:], self._byte + end
        return arrival if arrival.messages else None

    def _arrival(self, text: bytes, byte: int, head: dict[str, Any], count: int, *, final: bool) -> Arrival:
        ends = self._format.ends(text, final).tolist()
        starts = [0, *ends[:-1]]
        spans = [(a, b) for a, b in zip(starts, ends, strict=True) if not self._format.is_blank(text[a:b])][:count]
        facts = {name: head[name] for name in ("device", "inode", "head", "head_bytes")}
        return Arrival(
            "file",
            [text[a:b] for a, b in spans],
            lambda k: {**facts, "byte": byte + (spans[k - 1][1] if k else 0)},
            lambda k: f"{self.name}@{byte + spans[k][0]}",
        )

    def _read(self, num_bytes: int) -> bytes:
        assert self._file is not None
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size < self._byte + len(self._left):
                raise _lost(f"{self.name} with {size:,} bytes, of which {self._byte:,} were read", "a file that grows")
            return self._file.read(num_bytes)
        except OSError as error:
            raise StorageError(
                got=f"{self.name} ({error.strerror})", wanted="a readable file", do="check its disk"
            ) from error

    def _is_over(self) -> bool:
        """Whether the file was renamed and nothing was added to it for a while."""
        self._check_head()
        if self._is_of_path():
            self._ended = 0.0
            return False
        self._ended = self._ended or time.monotonic()
        return self._path.exists() and time.monotonic() - self._ended > 4 * _LOOK_SECONDS

    def _is_of_path(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (self._head["device"], self._head["inode"])

    def _check_head(self) -> None:
        """A file that was written anew from its beginning has another one."""
        assert self._file is not None
        head = os.pread(self._file.fileno(), self._head["head_bytes"], 0)
        if hashlib.sha256(head).hexdigest() != self._head["head"]:
            raise _lost(f"{self.name}, whose beginning has changed", "a file that is only added to")

    def _turn(self) -> None:
        """Goes on with the file that was begun after this one."""
        assert self._file is not None
        old = os.fstat(self._file.fileno())
        later = [
            (found.st_mtime_ns, path)
            for path, found in self._siblings()
            if found.st_ino != old.st_ino and (found.st_mtime_ns >= old.st_mtime_ns or path == self._path)
        ]
        path = min(later)[1]
        if _read_head(path, _READ_BYTES).find(b"\n") >= 0:  # the header is there, or the first record
            self._open(path, self._opened(path))

    def _siblings(self) -> list[tuple[Path, os.stat_result]]:
        name = self._path.name
        names = [
            one.name
            for one in self._path.parent.iterdir()
            if one.name == name or (one.name.startswith(name) and _TURNED.fullmatch(one.name[len(name) :]))
        ]
        return [(path, path.stat()) for path in (self._path.with_name(one) for one in names) if path.is_file()]

    def _found(self, place: dict[str, Any]) -> Path:
        """The file of a place, by whatever name it goes now."""
        for path, found in self._siblings():
            if (found.st_dev, found.st_ino) == (place["device"], place["inode"]):
                head = hashlib.sha256(_read_head(path, place["head_bytes"])).hexdigest()
                if head != place["head"]:
                    raise _lost(f"{path}, whose beginning has changed", "the file that was read before")
                if found.st_size < place["byte"]:
                    raise _lost(f"{path} with {found.st_size:,} bytes", f"at least {place['byte']:,}, as before")
                return path
        raise _lost(f"{self.name}, whose file of before is gone", "that file, or the name it was given")

    def _opened(self, path: Path) -> dict[str, Any]:
        """The place at the beginning of a file's records."""
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            head = file.read(_HEAD_BYTES)
            head = head[: head.rfind(b"\n") + 1] or head
            byte = _header_bytes(file, self._format)
        return {
            "device": found.st_dev,
            "inode": found.st_ino,
            "head": hashlib.sha256(head).hexdigest(),
            "head_bytes": len(head),
            "byte": byte,
        }

    def _open(self, path: Path, place: dict[str, Any]) -> None:
        self.close()
        file = path.open("rb")
        file.seek(place["byte"])
        self._file, self._head, self._byte, self._left, self._ended = file, dict(place), place["byte"], b"", 0.0


def _header_bytes(file: BinaryIO, text_format: TextFormat) -> int:
    file.seek(0)
    head = file.read(_READ_BYTES)
    if text_format.name == "jsonl":
        return 3 if head.startswith(b"\xef\xbb\xbf") else 0
    found, header = begin(head, "csv", str(file.name), delimiter=None, names=None, missing=MISSING)
    if getattr(found, "names", None) != getattr(text_format, "names", None):
        raise DataError(
            got=f"{file.name} with the columns {', '.join(header.names)[:200]}",
            wanted="those of the file before it",
            do="read files with different columns as different sources",
        )
    return header.num_bytes


def _read_head(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise StorageError(got=f"{path} ({error.strerror})", wanted="a readable file", do="check it") from error


def _checked(place: Any, name: str) -> dict[str, Any]:
    facts = {"device": int, "inode": int, "head": str, "head_bytes": int, "byte": int}
    if not isinstance(place, dict) or any(not isinstance(place.get(key), kind) for key, kind in facts.items()):
        raise DataError(
            got=f"position {place!r} of {name}", wanted="one of a file", do="resume with what was read before"
        )
    return dict(place)


def _lost(got: str, wanted: str) -> DataError:
    return DataError(got=got, wanted=wanted, do="rename files, never cut them; or begin a new run")
