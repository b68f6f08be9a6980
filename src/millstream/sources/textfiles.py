"""Files of text, one after another: opened, unpacked, their headers compared, cut into blocks and parsed.

A position in them is ``{"file", "byte", "line", "row"}``: the block that begins at that byte and line of that file (of
its unpacked text), less its first rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Position
from millstream.errors import DataError, MillstreamError, StorageError
from millstream.sources.columns import Declared, declared_types, settled_schema
from millstream.sources.delimited import DelimitedFormat, Header, read_header
from millstream.sources.jsonlines import JsonLinesFormat
from millstream.sources.rechunk import Piece
from millstream.sources.text import Block, OnError, Parser, TextFormat, blocks

__all__ = ["ByteStream", "TextFiles", "has_no_records", "open_text"]

_WITHOUT = " without records"

SAMPLE_BYTES = 1 << 22  # column types are inferred from so much text; a constant, so that they never depend on blocks
_HEAD_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}


class ByteStream:
    """A file's unpacked bytes, read forward; errors of the disk or the packing name the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._guard(pa.OSFile, str(path), "rb")
        packing = _MAGIC.get(self._guard(self._file.read, 2))
        self._guard(self._file.seek, 0)
        self._stream = pa.CompressedInputStream(self._file, packing) if packing else self._file
        self._is_packed = packing is not None

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def read(self, num_bytes: int) -> bytes:
        """Up to so many bytes; fewer at the end only."""
        return bytes(self._guard(self._stream.read, num_bytes))

    def seek(self, byte: int) -> None:
        """Go forward to a byte: at once in a plain file, by unpacking in a packed one."""
        if not self._is_packed:
            if byte > self._file.size():
                raise self._too_short(byte)
            self._file.seek(byte)
            return
        while byte:
            skipped = len(self.read(min(byte, 1 << 20)))
            if not skipped:
                raise self._too_short(byte)
            byte -= skipped

    def _too_short(self, byte: int) -> DataError:
        return DataError(
            got=f"{self._path}, which ends before byte {byte}",
            wanted="the file that the position belongs to",
            do="resume with the files that were read before",
        )

    def _guard(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            reason = str(error).splitlines()[0][:200]
            raise StorageError(
                got=f"{self._path} ({reason})",
                wanted="a readable, complete file",
                do="check its permissions, or get it again",
            ) from error


def open_text(path: Path) -> ByteStream:
    """A file's bytes, unpacked if it is gzip or zstd."""
    return ByteStream(path)


class TextFiles:
    """CSV or JSON Lines files with the same columns. They seek; how many records there are is not known."""

    num_records: int | None = None
    can_jump = False

    def __init__(
        self,
        files: Sequence[Path],
        format_name: str,
        *,
        columns: Sequence[str] | None,
        declared: Declared,
        on_error: OnError,
        delimiter: str | None,
        names: Sequence[str] | None,
        missing: Sequence[str],
        block_bytes: int,
    ) -> None:
        self._files = list(files)
        self._names = names
        self._block_bytes = block_bytes
        with open_text(self._files[0]) as stream:
            sample = stream.read(SAMPLE_BYTES)
            is_whole = len(sample) < SAMPLE_BYTES
        self._format, self._header = begin(
            sample, format_name, str(self._files[0]), delimiter=delimiter, names=names, missing=missing
        )
        found = infer_schema(self._format, sample[self._header.num_bytes :], is_whole, declared, str(self._files[0]))
        self.schema = settled_schema(found, declared, columns, str(self._files[0]))
        self._parser = Parser(self._format, self.schema, on_error)

    def pieces(self, position: Position) -> tuple[Iterator[Piece], int]:
        file, byte, line, row = _parts(position, len(self._files))
        return self._pieces(file, byte, line), row

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
        raise AssertionError("text files cannot jump")

    def _pieces(self, file: int, byte: int, line: int) -> Iterator[Piece]:
        for index in range(file, len(self._files)):
            path = self._files[index]
            header = self._header if index == 0 else self._other_header(path)
            parser = self._parser_of(header)
            if byte == 0:
                byte, line = header.num_bytes, header.num_lines + 1
            is_start = byte == header.num_bytes
            num_places = 0
            with open_text(path) as stream:
                stream.seek(byte)
                for block in blocks(
                    stream.read, parser.format, str(path), byte=byte, line=line, block_bytes=self._block_bytes
                ):
                    piece, error = self._piece(index, parser, block, str(path))
                    num_places += piece.chunk.span
                    if piece.chunk.span:
                        yield piece
                    if error is not None:
                        raise error
            if is_start and not num_places:
                raise _no_records(str(path))
            byte = line = 0

    def _parser_of(self, header: Header) -> Parser:
        """A CSV may have its columns in an order of its own."""
        if header.names == self._header.names or not isinstance(self._format, DelimitedFormat):
            return self._parser
        own = DelimitedFormat(header.names, self._format.delimiter, self._format.missing)
        return Parser(own, self.schema, self._parser.on_error)

    def _piece(self, file: int, parser: Parser, block: Block, name: str) -> tuple[Piece, MillstreamError | None]:
        chunk, error = parser.parse(block, name)
        whole = chunk.span if error is None else -1

        def position(place: int) -> Position:
            if place == whole:
                return {
                    "file": file,
                    "byte": block.byte + len(block.data),
                    "line": block.line + block.num_lines,
                    "row": 0,
                }
            return {"file": file, "byte": block.byte, "line": block.line, "row": place}

        return Piece(chunk, position), error

    def _other_header(self, path: Path) -> Header:
        num_bytes = _HEAD_BYTES
        while True:
            with open_text(path) as stream:
                head = stream.read(num_bytes)
            if not isinstance(self._format, DelimitedFormat):
                return _no_header(head)
            if len(head) < num_bytes or self._format.last_end(head):
                break
            num_bytes *= 8
        header = read_header(head, str(path), delimiter=self._format.delimiter, names=self._names)
        if sorted(header.names) != sorted(self._header.names):
            new, old = ", ".join(header.names)[:200], ", ".join(self._header.names)[:200]
            raise DataError(
                got=f"{path} with the columns {new}",
                wanted=f"those of {self._files[0]}: {old}",
                do="read files with different columns as different sources",
            )
        return header


def begin(
    head: bytes,
    format_name: str,
    where: str,
    *,
    delimiter: str | None,
    names: Sequence[str] | None,
    missing: Sequence[str],
) -> tuple[TextFormat, Header]:
    """The format of a text that begins like this, and its header (without names for JSON Lines)."""
    if not head.strip(b"\r\n"):
        raise _no_records(where)
    if format_name == "jsonl":
        return JsonLinesFormat(), _no_header(head)
    header = read_header(head, where, delimiter=delimiter, names=names)
    return DelimitedFormat(header.names, header.delimiter, missing), header


def infer_schema(text_format: TextFormat, sample: bytes, is_whole: bool, declared: Declared, where: str) -> pa.Schema:
    """The columns of a sample of a text; it may end within a record unless it is the whole text."""
    end = text_format.last_end(sample)
    records = sample if is_whole or not end else sample[:end]
    if not records.strip(b"\r\n"):
        raise _no_records(where)
    found = text_format.infer(records, declared_types(declared))
    if not len(found):
        raise DataError(
            got=f"{where} without a single record that can be read", wanted="at least one", do="check its format"
        )
    return found


def has_no_records(error: DataError) -> bool:
    """Whether this is what was wrong."""
    return error.got.endswith(_WITHOUT)


def _no_records(where: str) -> DataError:
    return DataError(got=f"{where}{_WITHOUT}", wanted="at least one record", do="check how it was made")


def _no_header(head: bytes) -> Header:
    return Header([], "", len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0, 0)


def _parts(position: Position, num_files: int) -> tuple[int, int, int, int]:
    if position is None:
        return 0, 0, 0, 0
    try:
        file, byte, line, row = (int(position[key]) for key in ("file", "byte", "line", "row"))
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise _foreign(position) from error
    if not 0 <= file < num_files or min(byte, line, row) < 0:
        raise _foreign(position)
    return file, byte, line, row


def _foreign(position: Position) -> DataError:
    return DataError(
        got=f"position {position!r}", wanted="one of these files", do="resume with the files that were read before"
    )
