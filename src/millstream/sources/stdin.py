"""Named columns from standard input, or any pipe or binary stream: live, in order, once.

What has arrived is handed out at once, however little it is. Nothing here knows where the other end of the pipe is.
"""

from __future__ import annotations

import os
import select
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.errors import DataError, MillstreamError, SettingError, StorageError
from millstream.sources.columns import Declared, settled_schema
from millstream.sources.delimited import MISSING
from millstream.sources.rechunk import check_size, cut
from millstream.sources.text import MAX_RECORD_BYTES, Block, OnError, Parser, check_on_error
from millstream.sources.textfiles import begin, infer_schema

__all__ = ["StdinSource"]

_READ_BYTES = 1 << 20
_STOP_SECONDS = 0.1  # between two looks whether to stop


class StdinSource:
    """CSV or JSON Lines from a pipe. Making it waits for the first record, which the columns' types come from.

    A pipe tells little before it must be used: declare ``schema`` when a column that begins with whole numbers may hold
    others later. What comes within ``patience_seconds`` of the first record is looked at, too, if it is not too much.

    Reading goes on where the last reading stood; a position is the number of records before it, ``stands_at``, and no
    other than that can be read from. Whoever goes on with a stream in a new process says there what was read before.

    >>> import io
    >>> source = StdinSource(io.BytesIO(b"hour,load\\n7,0.5\\n8,0.25\\n"))
    >>> next(source.read()).inputs.to_pydict()
    {'hour': [7, 8], 'load': [0.5, 0.25]}
    """

    def __init__(
        self,
        stream: BinaryIO | int | None = None,
        *,
        format: Literal["csv", "jsonl"] | None = None,
        columns: Sequence[str] | None = None,
        schema: Declared = None,
        on_error: OnError = "stop",
        delimiter: str | None = None,
        names: Sequence[str] | None = None,
        missing: Sequence[str] = MISSING,
        patience_seconds: float = 0.0,
        name: str = "stdin",
    ) -> None:
        check_on_error(on_error)
        if format not in (None, "csv", "jsonl"):
            raise SettingError(
                got=f"format={format!r} for a pipe", wanted="'csv' or 'jsonl'", do="choose one of the two"
            )
        self.name = name
        self.num_records: int | None = None
        self.is_live = True
        self.can_seek = False
        self.can_jump = False
        self._pipe = _Pipe(sys.stdin.buffer if stream is None else stream)
        self._text = b""
        self._ended = False
        self._line = 1
        self.stands_at = 0
        self.modified = [uuid.uuid4().hex]  # the same columns do not mean the same records
        self._block: Block | None = None  # the text of what is held
        self._held: Chunk | None = None
        self._place = 0
        self._error: MillstreamError | None = None
        header_lines = 0 if names is not None else 1
        self._await_lines(1)
        found = format or ("jsonl" if self._text.lstrip()[:1] == b"{" else "csv")
        self._await_lines(1 if found == "jsonl" else 1 + header_lines)
        self._format, header = begin(self._text, found, name, delimiter=delimiter, names=names, missing=missing)
        while not self._ended and not self._format.last_end(self._text[header.num_bytes :]):
            self._pull()
        self._await_more(patience_seconds)
        self._text, self._line = self._text[header.num_bytes :], header.num_lines + 1
        types = infer_schema(self._format, self._text, self._ended, schema, name)
        self.schema: pa.Schema | None = settled_schema(types, schema, columns, name)
        self._parser = Parser(self._format, self.schema, on_error)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        if position is not None and position != self.stands_at:
            raise DataError(
                got=f"position {position!r} of {self.name}, which stands at {self.stands_at}",
                wanted="a source that can seek",
                do="resume without a position, or read a file instead",
            )
        return self._chunks(size)

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        raise DataError(
            got=f"records of {self.name} once more",
            wanted="a source that can seek",
            do="keep what came in the journal of the run",
        )

    def acknowledge(self, after: Position) -> None:
        """Nothing to do: who writes into a pipe is not told."""

    @property
    def begin(self) -> Position:
        return None

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        self._pipe.is_stopped = True

    def declare(self, types: Declared) -> None:
        """Reads columns as these types; to be called before anything is handed out, but it may have been peeked at."""
        self.schema = settled_schema(self.schema, types, None, self.name)
        self._parser = Parser(self._format, self.schema, self._parser.on_error)
        if self._block is not None:
            self._held, self._error = self._parser.parse(self._block, self.name)

    def peek(self, size: int) -> Chunk | None:
        """The first records of those that have arrived, which ``read`` will hand out nevertheless; None at the end."""
        check_size(size)
        held = self._next()
        return None if held is None else cut(held, self._place, min(self._place + size, held.span))

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}",
            wanted="a source that can jump",
            do="write it to a file first",
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """The columns; what comes through a pipe cannot be known before."""
        schema = self.schema or pa.schema([])
        return {"kind": "stdin", "format": self._format.name, "columns": {one.name: str(one.type) for one in schema}}

    def _chunks(self, size: int) -> Iterator[Chunk]:
        while (held := self._next()) is not None:
            last = min(self._place + size, held.span)
            chunk = cut(held, self._place, last)
            self._place = last
            self.stands_at += chunk.span
            chunk.after = self.stands_at
            yield chunk

    def _next(self) -> Chunk | None:
        """The chunk that is being handed out, with places left; None at the end."""
        while self._held is None or self._place == self._held.span:
            if self._error is not None:
                raise self._error
            self._block = self._next_block()
            if self._block is None:
                return None
            self._held, self._error = self._parser.parse(self._block, self.name)
            self._place = 0
        return self._held

    def _next_block(self) -> Block | None:
        """The whole records that have arrived; waits for the first of them."""
        while True:
            end = len(self._text) if self._ended else self._format.last_end(self._text)
            if end:
                data, self._text = self._text[:end], self._text[end:]
                block = Block(data, 0, self._line, self._format.num_lines(data))
                self._line += block.num_lines
                return block
            if self._ended:
                return None
            self._pull()

    def _await_lines(self, num_lines: int) -> None:
        while not self._ended and self._text.lstrip().count(b"\n") < num_lines:
            self._pull()

    def _await_more(self, seconds: float) -> None:
        """Takes in what comes soon: types are inferred better from many records than from one."""
        ends = time.monotonic() + seconds
        while seconds and not self._ended and len(self._text) < _READ_BYTES:
            if not self._pipe.comes_within(ends - time.monotonic()):
                return
            self._pull()

    def _pull(self) -> None:
        data = self._pipe.read()
        self._ended = not data
        self._text += data
        if len(self._text) > MAX_RECORD_BYTES:
            raise DataError(
                got=f"{self.name}:{self._line}: a record of more than {MAX_RECORD_BYTES >> 20} MiB",
                wanted="records that end",
                do="look for a quote that is never closed",
            )


class _Pipe:
    """Waits for bytes and gives those that have arrived; none at the end, or once it was stopped."""

    def __init__(self, stream: BinaryIO | int) -> None:
        self.is_stopped = False
        self._number = stream if isinstance(stream, int) else _file_number(stream)
        self._some: Callable[[int], bytes] = getattr(stream, "read1", getattr(stream, "read", _nothing))

    def read(self) -> bytes:
        if self._number is None:
            return bytes(self._some(_READ_BYTES))
        try:
            while not self.comes_within(_STOP_SECONDS):
                if self.is_stopped:
                    return b""
            parts = [os.read(self._number, _READ_BYTES)]
            # A pipe gives 64 KiB at a time; more that is there already makes larger, cheaper chunks.
            while parts[-1] and sum(map(len, parts)) < _READ_BYTES and self.comes_within(0):
                parts.append(os.read(self._number, _READ_BYTES))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(got=f"standard input ({reason})", wanted="a pipe", do="pipe records in") from error
        return b"".join(parts)

    def comes_within(self, seconds: float) -> bool:
        """Whether bytes, or the end, are there or come so soon."""
        return self._number is None or bool(select.select([self._number], [], [], max(0.0, seconds))[0])


def _nothing(_: int) -> bytes:
    raise SettingError(got="no stream", wanted="a pipe or a binary stream", do="pass one")


def _file_number(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None
