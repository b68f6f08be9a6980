"""Outcomes as a file of JSON Lines. What a checkpoint knows of it is how long it was."""

from __future__ import annotations

import os
import weakref
import zlib
from pathlib import Path

import pyarrow as pa

from millstream.contracts import State
from millstream.errors import StorageError
from millstream.sinks.refusals import GO_ON, check_state, holds_rows_already, is_open_already
from millstream.sinks.text import as_bytes, json_texts
from millstream.storage import storage_errors, sync, take_lock

__all__ = ["JsonLinesSink"]

_BUFFER_BYTES = 1 << 20
_TAIL_BYTES = 4096  # whose checksum tells this file from another


class JsonLinesSink:
    """One line for each row, in order. Lines that no checkpoint knows are cut off when a run resumes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "outcomes.jsonl"
    >>> sink = JsonLinesSink(path)
    >>> sink.write(pa.RecordBatch.from_pydict({"position": [7], "label": ["a"]}))
    >>> sink.commit()["bytes"], path.read_text()
    (30, '{"position": 7, "label": "a"}\\n')
    """

    kind = "jsonlines"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with storage_errors(self.path, do=GO_ON):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._finalizer = weakref.finalize(self, os.close, self._file)
            sync(self.path.parent)
        if not take_lock(self._file):
            self.close()
            raise is_open_already(str(self.path))
        self._bytes = self._rows = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._begun = False

    def write(self, outcomes: pa.RecordBatch) -> None:
        self._begin()
        text = as_bytes(json_texts(outcomes, "\n"))
        self._pending.append(text)
        self._pending_bytes += len(text)
        self._rows += len(outcomes)
        if self._pending_bytes >= _BUFFER_BYTES:
            self._flush()

    def commit(self) -> State:
        self._begin()
        self._flush()
        with storage_errors(self.path, do=GO_ON):
            os.fsync(self._file)
            return {"kind": self.kind, "bytes": self._bytes, "rows": self._rows, "tail": self._tail(self._bytes)}

    def restore(self, state: State | None) -> None:
        if state is None:
            self._begin()
            return
        check_state(state, self.kind)
        with storage_errors(self.path, do=GO_ON):
            size = os.fstat(self._file).st_size
            if size < state["bytes"] or self._tail(state["bytes"]) != state["tail"]:
                raise StorageError(
                    got=f"{self.path} of {size} bytes, which is not the file that the run wrote {state['bytes']} into",
                    wanted="that file, as long as it was or longer",
                    do="put it back where it was",
                )
            os.ftruncate(self._file, state["bytes"])
            os.fsync(self._file)
        self._bytes, self._rows, self._begun = state["bytes"], state["rows"], True
        self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        self._finalizer()

    def _begin(self) -> None:
        """A new run takes no file that holds anything: it may be somebody's."""
        if not self._begun and os.fstat(self._file).st_size:
            raise holds_rows_already(f"a file that is not empty: {self.path}")
        self._begun = True

    def _flush(self) -> None:
        """Writes at the place where the lines belong, so that it can be tried again after the disk was full."""
        data = memoryview(b"".join(self._pending))
        with storage_errors(self.path, do=GO_ON):
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._bytes + written)
        self._bytes += len(data)
        self._pending, self._pending_bytes = [], 0

    def _tail(self, size: int) -> int:
        count = min(size, _TAIL_BYTES)
        return zlib.crc32(os.pread(self._file, count, size - count))
