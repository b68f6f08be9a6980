"""Parquet and Arrow files, one after another. A position in them is ``{"file", "row"}``.

Parquet is read a row group at a time, and only the columns that are wanted. Arrow files are memory-mapped: an
uncompressed one costs no memory of its own and gives records by number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from millstream.contracts import Chunk, Position
from millstream.errors import DataError, MillstreamError, StorageError
from millstream.sources.columns import Declared, plain_batch, settled_schema, settled_type
from millstream.sources.rechunk import Piece, take_from

__all__ = ["ArrowFiles", "ParquetFiles"]

_BATCH_ROWS = 1 << 16
_PROBE = pa.proxy_memory_pool(pa.default_memory_pool())  # must outlive whatever was allocated from it


class ParquetFiles:
    """Parquet files with the same columns. They seek by row group; ``cached`` makes them jump."""

    can_jump = False

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None, declared: Declared) -> None:
        self._files = list(files)
        self._groups: list[list[int]] = []  # rows of each row group of each file
        schemas = []
        for path in self._files:
            with _mapped_errors(path), pq.ParquetFile(path) as file:
                schemas.append(file.schema_arrow)
                self._groups.append([file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)])
        self.schema = settled_schema(schemas[0], declared, columns, str(self._files[0]))
        _check_same(self._files, schemas, self.schema)
        for path, groups in zip(self._files, self._groups, strict=True):
            _check_rows(path, sum(groups))
        self.num_records: int | None = sum(sum(groups) for groups in self._groups)

    def pieces(self, position: Position) -> tuple[Iterator[Piece], int]:
        file, row = _parts(position, [sum(groups) for groups in self._groups])
        return self._pieces(file, row), 0

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
        raise AssertionError("Parquet files cannot jump")

    def _pieces(self, file: int, row: int) -> Iterator[Piece]:
        for index in range(file, len(self._files)):
            path = self._files[index]
            with _mapped_errors(path), pq.ParquetFile(path, memory_map=True) as reader:
                start = 0
                for group, num_rows in enumerate(self._groups[index]):
                    if start + num_rows > row:
                        batches = reader.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self.schema.names)
                        yield from _batch_pieces(batches, self.schema, index, start, row, str(path))
                    start += num_rows
            row = 0


class ArrowFiles:
    """Arrow IPC files or streams with the same columns, memory-mapped. Uncompressed, they jump."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None, declared: Declared) -> None:
        self._files = list(files)
        schemas = [_arrow_schema(path) for path in self._files]
        self.schema = settled_schema(schemas[0], declared, columns, str(self._files[0]))
        _check_same(self._files, schemas, self.schema)
        self.can_jump = all(_is_uncompressed(path) for path in self._files)
        # Choosing fields spares unpacking them, but makes Arrow copy what it would otherwise map.
        self._fields = [
            None if self.can_jump else [schema.get_field_index(name) for name in self.schema.names]
            for schema in schemas
        ]
        counted = None if self.can_jump else [0]
        self._rows = [[batch.num_rows for batch in _arrow_batches(path, counted)] for path in self._files]
        for path, rows in zip(self._files, self._rows, strict=True):
            _check_rows(path, sum(rows))
        self.num_records: int | None = sum(sum(rows) for rows in self._rows)
        # Views of the mapped files: they cost address space, not memory.
        self._batches = [Chunk(batch) for batch in self._all_batches()] if self.can_jump else []
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._batches)])

    def pieces(self, position: Position) -> tuple[Iterator[Piece], int]:
        file, row = _parts(position, [sum(rows) for rows in self._rows])
        return self._pieces(file, row), 0

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.RecordBatch:
        return take_from(self._batches, self._starts, numbers).inputs

    def _pieces(self, file: int, row: int) -> Iterator[Piece]:
        for index in range(file, len(self._files)):
            path = self._files[index]
            with _mapped_errors(path):
                yield from _batch_pieces(
                    _arrow_batches(path, self._fields[index]), self.schema, index, 0, row, str(path)
                )
            row = 0

    def _all_batches(self) -> Iterator[pa.RecordBatch]:
        for path, fields in zip(self._files, self._fields, strict=True):
            with _mapped_errors(path):
                for batch in _arrow_batches(path, fields):
                    if batch.num_rows:
                        yield plain_batch(batch, self.schema, str(path))


def _arrow_schema(path: Path) -> pa.Schema:
    with _mapped_errors(path):
        return _open_arrow(path, None, None).schema


def _arrow_batches(path: Path, fields: list[int] | None) -> Iterator[pa.RecordBatch]:
    with _mapped_errors(path):
        reader = _open_arrow(path, fields, None)
        if isinstance(reader, pa.RecordBatchFileReader):
            for place in range(reader.num_record_batches):
                yield reader.get_batch(place)
        else:
            yield from reader


def _is_uncompressed(path: Path) -> bool:
    """Whether a record batch can be had without memory of its own, as a view of the mapped file."""
    before = _PROBE.bytes_allocated()
    with _mapped_errors(path):
        reader = _open_arrow(path, None, _PROBE)
        if isinstance(reader, pa.RecordBatchFileReader):
            batch = reader.get_batch(0) if reader.num_record_batches else None
        else:
            batch = next(iter(reader), None)
        return batch is not None and _PROBE.bytes_allocated() == before


def _open_arrow(path: Path, fields: list[int] | None, pool: Any) -> Any:
    source = pa.memory_map(str(path), "r")
    options = pa.ipc.IpcReadOptions() if fields is None else pa.ipc.IpcReadOptions(included_fields=fields)
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options, memory_pool=pool)


def _batch_pieces(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, file: int, start: int, row: int, where: str
) -> Iterator[Piece]:
    """Pieces of a file's batches, the first of which begins at row ``start``, from ``row`` on."""
    for batch in batches:
        end = start + batch.num_rows
        if end > row:
            first = max(row, start)
            part = plain_batch(batch.slice(first - start), schema, where)
            yield Piece(Chunk(part, span=end - first, locate=_locator(where, first)), _row_position(file, first))
        start = end


def _row_position(file: int, first: int) -> Callable[[int], Position]:
    return lambda place: {"file": file, "row": first + place}


def _locator(where: str, first: int) -> Callable[[int], str]:
    return lambda place: f"{where}:{first + place + 1}"


def _check_same(files: Sequence[Path], schemas: Sequence[pa.Schema], wanted: pa.Schema) -> None:
    for path, schema in zip(files[1:], schemas[1:], strict=True):
        for name in wanted.names:
            old = settled_type(schemas[0].field(name).type)
            new = settled_type(schema.field(name).type) if name in schema.names else None
            if new != old:
                raise DataError(
                    got=f"{path} with {f'{name!r} as {new}' if new else f'no column {name!r}'}",
                    wanted=f"{old}, as in {files[0]}",
                    do="read files with different columns as different sources",
                )


def _check_rows(path: Path, num_rows: int) -> None:
    if not num_rows:
        raise DataError(got=f"{path} without records", wanted="at least one record", do="check how it was made")


@contextlib.contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            got=f"{path} ({reason})", wanted="a whole Parquet or Arrow file", do="check that it was written to its end"
        ) from error
    except MillstreamError:
        raise
    except OSError as error:
        reason = str(error).splitlines()[0][:200]
        raise StorageError(
            got=f"{path} ({reason})", wanted="a readable file", do="check it and its permissions"
        ) from error


def _parts(position: Position, rows: Sequence[int]) -> tuple[int, int]:
    if position is None:
        return 0, 0
    try:
        file, row = int(position["file"]), int(position["row"])
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise _foreign(position) from error
    if not 0 <= file < len(rows) or not 0 <= row <= rows[file]:
        raise _foreign(position)
    return file, row


def _foreign(position: Position) -> DataError:
    return DataError(
        got=f"position {position!r}", wanted="one of these files", do="resume with the files that were read before"
    )
