"""Text as records: blocks of bytes that end where a record ends, parsed at once, and the bad record among them found.

A format (``delimited``, ``jsonlines``) knows what a record looks like; this file knows blocks, lines and what to do
with a record that does not fit. Where blocks are cut never changes the records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Rejection
from millstream.errors import DataError, MillstreamError, SettingError

__all__ = [
    "Block",
    "OnError",
    "Parser",
    "TextFormat",
    "UnparsableError",
    "arrow_reader",
    "blocks",
    "check_on_error",
    "first_unfit",
]

OnError: TypeAlias = Literal["stop", "quarantine"]

MAX_RECORD_BYTES = 1 << 26
MAX_SHOWN = 1000  # characters of a bad record that are kept


class UnparsableError(Exception):
    """At least one record of some bytes does not fit; never leaves this package."""


class TextFormat(Protocol):
    """What a record looks like in bytes. Bytes given to it begin where a record begins."""

    name: str

    def ends(self, data: bytes, final: bool) -> npt.NDArray[np.int64]:
        """The place after each record and blank line; what comes after the last is unfinished, unless ``final``."""
        ...

    def last_end(self, data: bytes) -> int:
        """The last of ``ends(data, final=False)``, found faster; 0 when there is none."""
        ...

    def is_blank(self, record: bytes) -> bool:
        """Whether these bytes between two ends are no record."""
        ...

    def num_lines(self, data: bytes) -> int:
        """How many line ends there are."""
        ...

    def parse(self, data: bytes, schema: pa.Schema) -> pa.RecordBatch:
        """All records of the bytes, or UnparsableError."""
        ...

    def infer(self, data: bytes, declared: Mapping[str, pa.DataType]) -> pa.Schema:
        """The columns of some whole records, of the types that their values suggest; bad records are passed over."""
        ...

    def explain(self, record: bytes, schema: pa.Schema) -> tuple[str, str]:
        """What one record that cannot be parsed has, and what it should have."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Whole records of a text, and where they begin in it."""

    data: bytes
    byte: int
    line: int  # number of the first line, from 1
    num_lines: int


def blocks(
    read: Callable[[int], bytes], text_format: TextFormat, name: str, *, byte: int, line: int, block_bytes: int
) -> Iterator[Block]:
    """A text as blocks of about ``block_bytes``, each ending where a record ends, from ``byte`` and ``line`` on."""
    left, wanted = b"", block_bytes
    while True:
        data = read(wanted)
        text = left + data
        end = text_format.last_end(text) if data else len(text)
        if end:
            whole = text[:end]
            num_lines = text_format.num_lines(whole)
            yield Block(whole, byte, line, num_lines)
            byte, line, left, wanted = byte + end, line + num_lines, text[end:], block_bytes
        elif data:
            left, wanted = text, len(text)
            if len(text) > MAX_RECORD_BYTES:
                raise DataError(
                    got=f"{name}:{line}: a record of more than {MAX_RECORD_BYTES >> 20} MiB",
                    wanted="records that end",
                    do="look for a quote that is never closed",
                )
        if not data:
            return


@dataclasses.dataclass(frozen=True, slots=True)
class Parser:
    """Blocks to chunks. A block without a bad record is parsed at once; only another one is searched for it.

    With ``stop``, the records before the first bad one come out together with the error that it is.
    """

    format: TextFormat
    schema: pa.Schema
    on_error: OnError

    def parse(self, block: Block, name: str) -> tuple[Chunk, MillstreamError | None]:
        """The records of a block as one chunk, and what stops the reading after them, if anything does."""
        locate = _Lines(self.format, block, name)
        try:
            batch = self.format.parse(block.data, self.schema)
        except UnparsableError:
            return self._search(block, locate)
        return Chunk(batch, None, None, None, batch.num_rows, locate=locate), None

    def _search(self, block: Block, locate: _Lines) -> tuple[Chunk, MillstreamError | None]:
        starts, ends = locate.bounds()
        stop = self.on_error == "stop"
        batches: list[pa.RecordBatch] = []
        holes: list[int] = []
        for first, last, batch in self._halves(block.data, starts, ends):
            if batch is not None:
                batches.append(batch)
                continue
            holes.extend(range(first, last))
            if stop:
                break
        error, span = None, len(starts)
        rejected: tuple[Rejection, ...] = ()
        if stop:
            span = holes[0]
            error = self._error(block.data[starts[span] : ends[span]], locate(span))
        else:
            rejected = tuple(self._rejection(place, block.data[starts[place] : ends[place]], locate) for place in holes)
        offsets = np.delete(np.arange(span, dtype=np.int64), holes) if holes and not stop else None
        return Chunk(
            inputs=_stack(batches, self.schema),
            span=span,
            offsets=offsets,
            rejected=rejected,
            locate=locate,
        ), error

    def _halves(self, data: bytes, starts: Any, ends: Any) -> Iterator[tuple[int, int, pa.RecordBatch | None]]:
        """(first, last + 1, batch) of the good runs, in order, and of each bad record, its batch being None."""
        waiting = [(0, len(starts))]
        while waiting:
            first, last = waiting.pop()
            try:
                batch = self.format.parse(data[starts[first] : ends[last - 1]], self.schema)
            except UnparsableError:
                batch = None
            if batch is not None and batch.num_rows == last - first:
                yield first, last, batch
            elif last - first == 1:
                yield first, last, None
            else:
                middle = (first + last) // 2
                waiting += [(middle, last), (first, middle)]

    def _rejection(self, place: int, record: bytes, locate: _Lines) -> Rejection:
        got, wanted = self.format.explain(record, self.schema)
        return Rejection(place, f"{got}; wanted {wanted}", locate(place), _shown(record))

    def _error(self, record: bytes, where: str) -> DataError:
        got, wanted = self.format.explain(record, self.schema)
        return DataError(
            got=f"{where}: {got}",
            wanted=wanted,
            do="correct it, declare another type in schema=, or leave bad records out with on_error='quarantine'",
        )


class _Lines:
    """Place in a block -> ``name:line``; what is needed for that is worked out at the first call."""

    def __init__(self, text_format: TextFormat, block: Block, name: str) -> None:
        self._format = text_format
        self._block = block
        self._name = name
        self._bounds: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def __call__(self, place: int) -> str:
        start = int(self.bounds()[0][place])
        return f"{self._name}:{self._block.line + self._format.num_lines(self._block.data[:start])}"

    def bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(starts, ends) of the records, blank lines left out."""
        if self._bounds is None:
            data = self._block.data
            ends = self._format.ends(data, True)
            starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]) if len(ends) else ends
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            kept = np.array([not self._format.is_blank(data[first:last]) for first, last in pairs], dtype=bool)
            self._bounds = starts[kept], ends[kept]
        return self._bounds


def arrow_reader(data: bytes) -> pa.BufferReader:
    """The bytes, copied into Arrow's own memory, for Arrow's parsers to read.

    Their threads may let go of what they read a little after they have answered. Were that Python's, they would need
    the interpreter for it, and a process that ends in that moment would abort.
    """
    sink = pa.BufferOutputStream()
    sink.write(data)
    return pa.BufferReader(sink.getvalue())


def first_unfit(schema: pa.Schema, read: Callable[[pa.Schema], object]) -> pa.Field | None:
    """The first column that ``read`` (of some of the columns) cannot parse, found by halving; None when it parses all."""
    if not _is_unfit(schema, read):
        return None
    fields = list(schema)
    while len(fields) > 1:
        half = fields[: len(fields) // 2]
        fields = half if _is_unfit(pa.schema(half), read) else fields[len(half) :]
    return fields[0]


def check_on_error(on_error: str) -> None:
    """Refuse a policy for bad records that does not exist."""
    if on_error not in ("stop", "quarantine"):
        raise SettingError(got=f"on_error={on_error!r}", wanted="'stop' or 'quarantine'", do="choose one of the two")


def _is_unfit(schema: pa.Schema, read: Callable[[pa.Schema], object]) -> bool:
    try:
        read(schema)
    except UnparsableError:
        return True
    return False


def _stack(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    merged = pa.Table.from_batches(batches, schema=schema).combine_chunks().to_batches()
    if merged:
        return merged[0]
    return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)


def _shown(record: bytes) -> str:
    return record[: 4 * MAX_SHOWN].decode("utf-8", errors="replace").rstrip("\r\n")[:MAX_SHOWN]
