"""Text as records: blocks of bytes that end where a record ends, parsed at once, and the bad record among them found.

A format (``delimited``, ``jsonlines``) knows what a record looks like; this file knows blocks, lines and what to do
with a record that does not fit. Where blocks are cut never changes the records.
"""

from __future__ import annotations

import dataclasses
import functools
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
    "type_in_words",
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

    def line_ends(self, data: bytes) -> npt.NDArray[np.int64]:
        """Where the characters are that end a line."""
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
        kept, batch, failed = self._sift(block.data, starts, ends)
        places = sorted(failed)
        records = {place: block.data[starts[place] : ends[place]] for place in places}
        if self.on_error == "stop":
            first = places[0]
            before = int(np.searchsorted(kept, first))
            error = self._error(records[first], failed[first], locate(first))
            return Chunk(batch.slice(0, before), span=first, locate=locate), error
        rejected = tuple(self._rejection(place, records[place], failed[place], locate) for place in places)
        return Chunk(batch, span=len(starts), offsets=kept, rejected=rejected, locate=locate), None

    def _sift(self, data: bytes, starts: Any, ends: Any) -> tuple[Any, pa.RecordBatch, dict[int, pa.Schema]]:
        """The places of the good records, those records, and for each bad place the column that it failed in.

        One column after another: the first that cannot be parsed is searched alone, which is much cheaper than
        searching all of them. So a record that is bad in two columns is found by the first, whatever is around it.
        """
        kept = np.arange(len(starts), dtype=np.int64)
        failed: dict[int, pa.Schema] = {}
        while len(kept):
            text = b"".join(data[first:last] for first, last in _runs(kept, starts, ends))
            cuts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ends[kept] - starts[kept])])
            try:
                return kept, self._whole(text, len(kept), self.schema), failed
            except UnparsableError:
                field = first_unfit(self.schema, functools.partial(self.format.parse, text))
            part = self.schema if field is None else pa.schema([field])
            bad = self._bad(text, cuts, part) or self._bad(text, cuts, self.schema)
            failed.update({int(kept[place]): part for place in bad})
            kept = np.delete(kept, bad)
        return kept, _empty(self.schema), failed

    def _bad(self, text: bytes, cuts: Any, schema: pa.Schema) -> list[int]:
        """The records that cannot be parsed, found by halving."""
        bad: list[int] = []
        waiting = [(0, len(cuts) - 1)]
        while waiting:
            first, last = waiting.pop()
            try:
                self._whole(text[cuts[first] : cuts[last]], last - first, schema)
            except UnparsableError:
                middle = (first + last) // 2
                if last - first == 1:
                    bad.append(first)
                else:
                    waiting += [(middle, last), (first, middle)]
        return bad

    def _whole(self, text: bytes, num_records: int, schema: pa.Schema) -> pa.RecordBatch:
        batch = self.format.parse(text, schema)
        if batch.num_rows != num_records:
            raise UnparsableError
        return batch

    def _rejection(self, place: int, record: bytes, part: pa.Schema, locate: _Lines) -> Rejection:
        got, wanted = self.format.explain(record, part)
        return Rejection(place, f"{got}; wanted {wanted}", locate(place), _shown(record))

    def _error(self, record: bytes, part: pa.Schema, where: str) -> DataError:
        got, wanted = self.format.explain(record, part)
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
        self._line_ends: npt.NDArray[np.int64] | None = None

    def __call__(self, place: int) -> str:
        if self._line_ends is None:
            self._line_ends = self._format.line_ends(self._block.data)
        start = self.bounds()[0][place]
        return f"{self._name}:{self._block.line + int(np.searchsorted(self._line_ends, start))}"

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
    """The first column that ``read`` (of some columns) cannot parse, found by halving; None when it parses all."""
    if not _is_unfit(schema, read):
        return None
    fields = list(schema)
    while len(fields) > 1:
        half = fields[: len(fields) // 2]
        fields = half if _is_unfit(pa.schema(half), read) else fields[len(half) :]
    return fields[0]


def type_in_words(kind: pa.DataType) -> str:
    """What a value of a column should have been, for a message.

    >>> type_in_words(pa.float64())
    'a number'
    """
    types = pa.types
    for is_kind, words in (
        (types.is_integer, "a whole number"),
        (types.is_floating, "a number"),
        (types.is_boolean, "true or false"),
        (types.is_temporal, "a time"),
        (types.is_string, "a text"),
        (types.is_list, "a list"),
        (types.is_struct, "an object"),
    ):
        if is_kind(kind):
            return words
    return str(kind)


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


def _runs(kept: Any, starts: Any, ends: Any) -> Iterator[tuple[int, int]]:
    """(first, last + 1) byte of each run of records that follow each other without a gap."""
    gaps = np.flatnonzero(ends[kept[:-1]] != starts[kept[1:]])
    firsts = starts[kept[np.concatenate([[0], gaps + 1])]]
    lasts = ends[kept[np.concatenate([gaps, [len(kept) - 1]])]]
    return zip(firsts.tolist(), lasts.tolist(), strict=True)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], type=field.type) for field in schema], schema=schema)


def _shown(record: bytes) -> str:
    return record[: 4 * MAX_SHOWN].decode("utf-8", errors="replace").rstrip("\r\n")[:MAX_SHOWN]
