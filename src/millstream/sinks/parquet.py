"""Outcomes as a folder of Parquet files, one for each commit that has rows. Their names tell which rows they hold."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from millstream.contracts import State
from millstream.errors import DataError, StorageError
from millstream.sinks.refusals import GO_ON, check_state, holds_rows_already, is_open_already
from millstream.storage import storage_errors, sync, take_lock

__all__ = ["ParquetSink"]

_NAME = re.compile(r"rows-(\d{12,})-(\d{12,})\.parquet")
_DRAFT = ".draft"  # readers of a data set pass over names that begin with a point
_GROUP_ROWS = 1 << 16


class ParquetSink:
    """The files of a folder are one data set; each appears whole, when it is committed.

    Rows are written in groups as they come, so memory does not grow with the time between commits. Files may be taken
    away from the beginning on, but not from the middle.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "outcomes"
    >>> sink = ParquetSink(folder)
    >>> sink.write(pa.RecordBatch.from_pydict({"position": [7, 8], "label": ["a", "b"]}))
    >>> sink.commit()["rows"], pyarrow.parquet.read_table(folder).num_rows
    (2, 2)
    """

    kind = "parquet"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with storage_errors(self.folder, do=GO_ON):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("a")
        self._finalizer = weakref.finalize(self, lock.close)
        if not take_lock(lock):
            self.close()
            raise is_open_already(str(self.folder))
        self._rows = self._committed = self._num_pending = 0
        self._pending: list[pa.RecordBatch] = []
        self._schema: pa.Schema | None = None
        self._draft: BinaryIO | None = None
        self._writer: Any = None
        self._begun = self._is_broken = False

    def write(self, outcomes: pa.RecordBatch) -> None:
        self._begin()
        if self._schema is not None and outcomes.schema != self._schema:
            raise DataError(
                got=f"outcomes of columns {_shown(outcomes.schema)}",
                wanted=f"{_shown(self._schema)}, as before",
                do="begin a new folder for them",
            )
        self._schema = outcomes.schema
        self._pending.append(outcomes)
        self._num_pending += len(outcomes)
        self._rows += len(outcomes)
        if self._num_pending >= _GROUP_ROWS:
            self._flush()

    def commit(self) -> State:
        self._begin()
        if self._rows > self._committed:
            self._flush()
            assert self._draft is not None
            with self._writing():
                self._writer.close()
                self._draft.flush()
                os.fsync(self._draft.fileno())
                self._draft.close()
                name = f"rows-{self._committed:012d}-{self._rows - 1:012d}.parquet"
                (self.folder / _DRAFT).rename(self.folder / name)
                sync(self.folder)
            self._draft, self._committed = None, self._rows
        return {"kind": self.kind, "rows": self._rows}

    def restore(self, state: State | None) -> None:
        if state is None:
            self._begin()
            return
        check_state(state, self.kind)
        rows, self._begun = state["rows"], True
        with storage_errors(self.folder, do=GO_ON):
            known = [(first, last, path) for first, last, path in self._files() if first < rows]
            ends = [last + 1 for _, last, _ in known]
            if rows and (ends[-1:] != [rows] or ends[:-1] != [first for first, _, _ in known][1:]):
                raise StorageError(
                    got=f"{self.folder}, where files are missing of the {rows:,} rows that the run wrote",
                    wanted="all files from the first that is there to the last",
                    do="put them back",
                )
            for first, _, path in self._files():
                if first >= rows:
                    path.unlink()
            (self.folder / _DRAFT).unlink(missing_ok=True)
            sync(self.folder)
            self._schema = pyarrow.parquet.read_schema(known[-1][2]) if known else None
        self._rows = self._committed = rows
        self._pending, self._num_pending, self._draft = [], 0, None
        self._is_broken = False

    def close(self) -> None:
        """Leaves a draft behind, which the next one of a resumed run replaces."""
        self._finalizer()

    def _begin(self) -> None:
        if not self._begun and self._files():
            raise holds_rows_already(f"a folder that holds outcomes: {self.folder}")
        self._begun = True

    def _flush(self) -> None:
        """One more group of rows in the draft."""
        if not self._num_pending:
            return
        with self._writing():
            if self._draft is None:
                self._draft = (self.folder / _DRAFT).open("wb")
                self._writer = pyarrow.parquet.ParquetWriter(self._draft, self._schema)
            self._writer.write_table(pa.Table.from_batches(self._pending))
        self._pending, self._num_pending = [], 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What was half written cannot be gone on with: only a new draft can, from the last commit on."""
        if self._is_broken:
            raise StorageError(got=f"a write to {self.folder} that failed", wanted="to write there", do=GO_ON)
        self._is_broken = True
        with storage_errors(self.folder, do=GO_ON):
            yield
        self._is_broken = False

    def _files(self) -> list[tuple[int, int, Path]]:
        """(first row, last row, path) of each file, in order."""
        found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted((int(match[1]), int(match[2]), path) for match, path in found)


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
