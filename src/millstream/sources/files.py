"""Sources that are files: CSV, JSON Lines, Parquet and Arrow, one or many, plain or compressed, larger than memory.

    FileSource ── TextFiles     CSV and JSON Lines (textfiles, text, delimited, jsonlines)
              └── ParquetFiles, ArrowFiles (columnar)

This file finds files, tells what they are and picks who reads them.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.errors import DataError, SettingError, StorageError
from millstream.sources.columnar import ArrowFiles, ParquetFiles
from millstream.sources.columns import Declared, near
from millstream.sources.delimited import MISSING
from millstream.sources.rechunk import Piece, check_numbers, check_size, rechunk
from millstream.sources.text import OnError, check_on_error
from millstream.sources.textfiles import TextFiles, open_text

__all__ = ["FileSource", "Format", "PathLike", "find_files"]

Format: TypeAlias = Literal["csv", "jsonl", "parquet", "arrow"]
PathLike: TypeAlias = "str | os.PathLike[str]"

_FORMATS = ("csv", "jsonl", "parquet", "arrow")


class Reader(Protocol):
    """Files of one format."""

    schema: pa.Schema
    num_records: int | None
    can_jump: bool

    def pieces(self, position: Position) -> tuple[Iterator[Piece], int]:
        """The pieces from a position on, and how many places of them come before it."""
        ...

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch: ...


class FileSource:
    """Named columns from one or more files of one format, in the order given (a pattern: by name).

    - ``format``: csv, jsonl, parquet or arrow; told from the content by default. gzip and zstd are told from it, too.
    - ``columns``: the ones to read; the others cost little or nothing.
    - ``schema``: types by column; the others are inferred from the first records, then fixed for all files.
    - ``on_error``: a record of a text that does not fit stops with its file and line, or is put into ``rejected``.
    - ``delimiter``, ``names`` (for a CSV without a header), ``missing`` (texts that mean a missing value): CSV only.

    Reading takes a few blocks of memory, whatever the length. Only an uncompressed Arrow file can jump; ``cached``
    gives that to the others.

    >>> import tempfile, pathlib
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "a.csv")
    >>> _ = path.write_text("hour,load\\n7,0.5\\n8,\\n")
    >>> next(FileSource(path).read()).inputs.to_pydict()
    {'hour': [7, 8], 'load': [0.5, None]}
    >>> folder.cleanup()
    """

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        *,
        format: Format | None = None,
        columns: Sequence[str] | None = None,
        schema: Declared = None,
        on_error: OnError = "stop",
        delimiter: str | None = None,
        names: Sequence[str] | None = None,
        missing: Sequence[str] = MISSING,
        block_bytes: int = 1 << 22,
        name: str | None = None,
    ) -> None:
        check_on_error(on_error)
        self._files = find_files(paths)
        self._format = format or detect_format(self._files[0])
        if self._format not in _FORMATS:
            raise SettingError(got=f"format={format!r}", wanted="a known format", do=near(str(format), _FORMATS))
        if self._format != "csv" and (delimiter is not None or names is not None):
            raise SettingError(
                got=f"delimiter= or names= for {self._format}", wanted="them for CSV only", do="leave them out"
            )
        self._reader: Reader
        if self._format == "parquet":
            self._reader = ParquetFiles(self._files, columns, schema)
        elif self._format == "arrow":
            self._reader = ArrowFiles(self._files, columns, schema)
        else:
            self._reader = TextFiles(
                self._files,
                self._format,
                columns=columns,
                declared=schema,
                on_error=on_error,
                delimiter=delimiter,
                names=names,
                missing=missing,
                block_bytes=block_bytes,
            )
        self._facts = {"format": self._format, "on_error": on_error, "delimiter": delimiter, "missing": list(missing)}
        others = f" and {len(self._files) - 1} more" if len(self._files) > 1 else ""
        self.name = name or f"{self._files[0]}{others}"
        self.schema: pa.Schema | None = self._reader.schema
        self.num_records: int | None = self._reader.num_records
        self.can_seek = True
        self.can_jump = self._reader.can_jump

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        pieces, skip = self._reader.pieces(position)
        return rechunk(pieces, size, skip)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, in this order."""
        if not self.can_jump:
            raise SettingError(
                got=f"records by number from {self.name}",
                wanted="a source that can jump",
                do="wrap it: millstream.sources.cached(source)",
            )
        return Chunk(self._reader.take(check_numbers(numbers, self.num_records, self.name)), span=len(numbers))

    def fingerprint(self) -> Mapping[str, Any]:
        """Paths, sizes, a hash of the first 64 KiB of each file, and how the columns are read."""
        schema = self._reader.schema
        return {
            "kind": "files",
            "files": [_file_facts(path) for path in self._files],
            "columns": {field.name: str(field.type) for field in schema},
            **self._facts,
        }

    @property
    def modified(self) -> list[int]:
        """When each file was last changed, in nanoseconds; a cached copy is older or newer by that."""
        return [path.stat().st_mtime_ns for path in self._files]


def find_files(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """The files that paths and patterns name, each checked to be a file that is not empty."""
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found = [path for one in given for path in _matches(str(one))]
    if not found:
        raise SettingError(got="no paths", wanted="at least one file", do="name a file, or a pattern like 'data/*.csv'")
    for path in found:
        _check_file(path)
    return found


def detect_format(path: Path) -> Format:
    """What a file holds, from its first bytes."""
    with open_text(path) as stream:
        head = stream.read(4096)
    raw = _read_raw(path, 8)
    if raw[:4] == b"PAR1":
        return "parquet"
    if raw[:6] == b"ARROW1" or raw[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if b"\x00" in head:
        raise DataError(
            got=f"{path}, which is neither text nor Parquet nor Arrow",
            wanted="CSV, JSON Lines, Parquet or Arrow; plain, gzip or zstd",
            do="convert it",
        )
    if first == b"[":
        raise DataError(got=f"{path} with a JSON array", wanted="one JSON object a line", do="convert it: jq -c '.[]'")
    return "jsonl" if first == b"{" else "csv"


def _matches(path: str) -> list[Path]:
    whole = Path(path).expanduser()
    if whole.exists() or not glob.has_magic(path):
        return [whole]
    root = Path(whole.anchor)
    found = sorted(root.glob(str(whole.relative_to(root))))
    if not found:
        raise StorageError(got=f"no file like {path}", wanted="at least one", do="correct the pattern")
    return found


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(got=f"folder {path}", wanted="files", do=f"use a pattern: '{path}/*.csv'")
    if not path.exists():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        do = near(path.name, siblings) if siblings else f"check the folder {path.parent}"
        raise StorageError(got=f"no file {path}", wanted="a file that exists", do=do)
    if not path.is_file():
        raise DataError(got=f"{path}, which is no regular file", wanted="a file", do="pipe it into '-'")
    if not path.stat().st_size:
        raise DataError(got=f"empty file {path}", wanted="at least one record", do="check how it was made")


def _read_raw(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise StorageError(
            got=f"{path} ({error.strerror})", wanted="a readable file", do="check its permissions"
        ) from error


def _file_facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256(_read_raw(path, 1 << 16)).hexdigest()
    return {"path": str(path), "size": path.stat().st_size, "sha256": digest}
