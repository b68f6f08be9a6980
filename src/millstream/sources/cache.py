"""A source that cannot jump, imported once into an uncompressed, memory-mapped Arrow file that can.

Records that a source refuses are not imported; the copy remembers them in ``rejected``. This file knows nothing of
where the records come from, but asks the source again when somebody wants to know the place of a record.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Position, Rejection, Source
from millstream.errors import DataError, SettingError
from millstream.sources.order import modified
from millstream.sources.rechunk import Piece, check_numbers, check_place, check_size, rechunk, take_from
from millstream.storage import cache_folder, replace, storage_errors, sync

__all__ = ["CachedSource", "cached"]

_VERSION = 2
_BATCH_RECORDS = 1 << 16
_BATCH_BYTES = 1 << 26
_TENSOR_RECORDS = 1 << 12
_MAX_REJECTED = 1000  # remembered one by one; all are counted
_STALE_SECONDS = 86_400
_MAX_LOCATED = 100  # records whose exact place is looked up, which takes a moment each


class CachedSource:
    """The imported copy of a source. A position is a record's number.

    ``rejected`` holds the first records that the import refused, ``num_rejected`` counts all of them.
    """

    def __init__(self, path: Path, source: Source, facts: Mapping[str, Any]) -> None:
        self.name = source.name
        self.can_seek = True
        self.can_jump = True
        self._origin = source
        self._facts = dict(facts)
        reader = _open(path)
        layout = json.loads(reader.schema.metadata[b"millstream"])
        batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
        if layout["tensors"] is None:
            plain = reader.schema.remove_metadata()
            self.schema: pa.Schema | None = plain
            self._chunks = [Chunk(batch.replace_schema_metadata(None)) for batch in batches]
        else:
            self.schema = None
            self._chunks = [_unpacked(batch, layout) for batch in batches]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        for chunk, start in zip(self._chunks, self._starts.tolist(), strict=False):
            chunk.locate = _shifted(self._locate, start)
        self.num_records: int | None = int(self._starts[-1])
        self._num_located = 0
        notes = json.loads(_notes(path).read_text())
        self._marks: list[tuple[int, Position]] = [(number, position) for number, position in notes["marks"]]
        self.num_rejected: int = notes["num_rejected"]
        self.rejected = tuple(Rejection(**one) for one in notes["rejected"])

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        first = check_place(position, self.num_records, self.name)
        place = max(0, int(np.searchsorted(self._starts, first, side="right")) - 1)
        return rechunk(self._pieces(place), size, first - int(self._starts[place]))

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, in this order, copied."""
        numbers = check_numbers(numbers, self.num_records, self.name)
        return take_from(self._chunks, self._starts, numbers)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "cached", "records": self.num_records, "of": self._facts}

    def _locate(self, number: int) -> str:
        """Where a record came from: the source is read again from the last mark before it, if it can be."""
        plain = f"record {number + 1} of {self.name}"
        if not self._origin.can_seek or self._num_located >= _MAX_LOCATED:
            return plain
        self._num_located += 1
        mark = bisect.bisect_right([first for first, _ in self._marks], number) - 1
        first, position = self._marks[mark]
        for chunk in self._origin.read(position, size=_BATCH_RECORDS):
            if number - first < len(chunk):
                row = number - first
                place = row if chunk.offsets is None else int(chunk.offsets[row])
                return chunk.locate(place) if chunk.locate else plain
            first += len(chunk)
        return plain

    def _pieces(self, place: int) -> Iterator[Piece]:
        for chunk, start in zip(self._chunks[place:], self._starts[place:].tolist(), strict=False):
            yield Piece(chunk, _counter(start))


def cached(
    source: Source,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Source:
    """The source itself if it can jump, else a copy in ``folder`` that can; made once, then found by its fingerprint.

    ``progress`` is told how many records were imported so far. The folder is ``MILLSTREAM_CACHE``, or ``millstream`` in
    the user's cache folder, unless one is given. A copy that was not finished is never used.

    >>> import tempfile
    >>> from millstream.sources.conversion import as_source
    >>> folder = tempfile.TemporaryDirectory()
    >>> copy = cached(as_source(iter([{"hour": 7}, {"hour": 8}])), folder.name)
    >>> copy.take(np.array([1, 0])).inputs.to_pydict()
    {'hour': [8, 7]}
    >>> folder.cleanup()
    """
    if source.can_jump:
        return source
    facts = dict(source.fingerprint())
    key = json.dumps([_VERSION, facts, modified(source)], sort_keys=True, default=str)
    home = cache_folder() if folder is None else Path(folder)
    path = home / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    found = _find(path, source, facts)
    if found is not None:
        return found
    with storage_errors(home, do="free some space, or choose another folder (MILLSTREAM_CACHE)"):
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        _import(source, path, progress)
    copy = CachedSource(path, source, facts)
    if not source.can_seek:  # nobody could find it again: it stays as long as it is mapped
        path.unlink()
        _notes(path).unlink()
    return copy


def _find(path: Path, source: Source, facts: Mapping[str, Any]) -> CachedSource | None:
    """The finished copy, if there is a whole one."""
    if not path.exists():
        return None
    try:
        return CachedSource(path, source, facts)
    except (OSError, ValueError, KeyError, TypeError):  # torn, of another kind, or its notes are gone: made anew
        return None


def _import(source: Source, path: Path, progress: Callable[[int], None] | None) -> None:
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    rejected: list[Rejection] = []
    try:
        num_records, num_rejected, marks = _write(source, part, rejected, progress)
        if not num_records:
            raise DataError(got=f"{source.name} without records", wanted="at least one", do="check how it was made")
        notes = {
            "num_rejected": num_rejected,
            "rejected": [dataclasses.asdict(one) for one in rejected],
            "marks": marks,
        }
        replace(_notes(path), json.dumps(notes))
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _write(
    source: Source, part: Path, rejected: list[Rejection], progress: Callable[[int], None] | None
) -> tuple[int, int, list[tuple[int, Position]]]:
    """Gives how many records there are, how many were refused, and the (number, position) at which chunks begin."""
    num_records, num_rejected, place = 0, 0, 0
    marks: list[tuple[int, Position]] = [(0, None)]
    with part.open("wb") as file, contextlib.ExitStack() as stack:
        writer, held = None, _Held()
        for chunk in source.read(size=_TENSOR_RECORDS if source.schema is None else _BATCH_RECORDS):
            num_rejected += len(chunk.rejected)
            room = max(0, _MAX_REJECTED - len(rejected))
            rejected += [dataclasses.replace(one, offset=one.offset + place) for one in chunk.rejected[:room]]
            place += chunk.span
            batch = _packed(chunk, source.name)
            num_records += batch.num_rows
            marks.append((num_records, chunk.after))
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(file, batch.schema))
            for whole in held.add(batch):
                writer.write_batch(whole)
            if progress is not None:
                progress(num_records)
        if writer is not None:
            for whole in held.rest():
                writer.write_batch(whole)
        stack.close()
        file.flush()
        os.fsync(file.fileno())
    return num_records, num_rejected, marks[:-1]


class _Held:
    """Small batches, held until they make one that is worth a place in the file."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        if self._batches and not batch.schema.equals(self._batches[0].schema, check_metadata=True):
            raise DataError(
                got="records whose shape or type differs from those before", wanted="the same", do="make them alike"
            )
        self._batches.append(batch)
        num_records = sum(one.num_rows for one in self._batches)
        num_bytes = sum(one.nbytes for one in self._batches)
        return self.rest(keep=True) if num_records >= _BATCH_RECORDS or num_bytes >= _BATCH_BYTES else []

    def rest(self, keep: bool = False) -> list[pa.RecordBatch]:
        if not self._batches:
            return []
        merged = pa.Table.from_batches(self._batches).combine_chunks().to_batches()
        self._batches = [self._batches[0].slice(0, 0)] if keep else []
        return [batch for batch in merged if batch.num_rows]


def _open(path: Path) -> Any:
    # Copy-on-write: who changes a tensor in place changes his own copy, where a read-only map would end the process.
    mapped = np.memmap(path, dtype=np.uint8, mode="c")
    return pa.ipc.open_file(pa.py_buffer(mapped))


def _packed(chunk: Chunk, name: str) -> pa.RecordBatch:
    """A chunk as a record batch that says in its schema how to make the tensors again."""
    if isinstance(chunk.inputs, pa.RecordBatch):
        if chunk.targets is not None or chunk.weights is not None:
            raise SettingError(
                got=f"{name} with tensors beside named columns", wanted="one of the two", do="put them into columns"
            )
        layout: dict[str, Any] = {"tensors": None}
        return chunk.inputs.replace_schema_metadata({b"millstream": json.dumps(layout).encode()})
    tensors: dict[str, Tensor] = {}
    if isinstance(chunk.inputs, Tensor):
        kind, tensors["0"] = "tensor", chunk.inputs
    elif isinstance(chunk.inputs, tuple):
        kind = "tuple"
        tensors.update({str(place): value for place, value in enumerate(chunk.inputs)})
    else:
        kind = "dict"
        tensors.update(chunk.inputs)
    columns = {f"inputs.{key}": value for key, value in tensors.items()}
    for part in ("targets", "weights", "times", "label_times"):
        value = getattr(chunk, part)
        if value is not None:
            columns[part] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    facts = {key: [str(value.dtype).removeprefix("torch."), list(value.shape[1:])] for key, value in columns.items()}
    layout = {"kind": kind, "tensors": facts}
    schema_facts = {b"millstream": json.dumps(layout).encode()}
    arrays = [_to_column(value, key, name) for key, value in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns)).replace_schema_metadata(schema_facts)


def _to_column(tensor: Tensor, key: str, name: str) -> pa.Array:
    width = tensor[0].numel() if len(tensor) else 0
    if not width or tensor.dtype.is_complex:
        raise DataError(
            got=f"{key} of {name} as {tensor.dtype} of shape {tuple(tensor.shape)}",
            wanted="real numbers, at least one a record",
            do="convert it",
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if tensor.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    elif tensor.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    values = pa.array(flat.numpy())
    return values if tensor.ndim == 1 else pa.FixedSizeListArray.from_arrays(values, width)


def _unpacked(batch: pa.RecordBatch, layout: Mapping[str, Any]) -> Chunk:
    tensors = {key: _to_tensor(batch.column(key), dtype, shape) for key, (dtype, shape) in layout["tensors"].items()}
    inputs = {key.removeprefix("inputs."): tensors[key] for key in tensors if key.startswith("inputs.")}
    if layout["kind"] == "tensor":
        chunk = Chunk(inputs["0"])
    elif layout["kind"] == "tuple":
        chunk = Chunk(tuple(inputs.values()))
    else:
        chunk = Chunk(inputs)
    chunk.targets, chunk.weights = tensors.get("targets"), tensors.get("weights")
    if "times" in tensors:
        chunk.times = tensors["times"].numpy()
    if "label_times" in tensors:
        chunk.label_times = tensors["label_times"].numpy()
    return chunk


def _to_tensor(column: pa.Array, dtype: str, shape: list[int]) -> Tensor:
    values = column if not shape and not pa.types.is_fixed_size_list(column.type) else column.flatten()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(values.to_numpy(zero_copy_only=True))
    wanted = getattr(torch, dtype)
    return (flat if flat.dtype == wanted else flat.view(wanted)).reshape(len(column), *shape)


def _counter(start: int) -> Callable[[int], Position]:
    return lambda place: start + place


def _shifted(locate: Callable[[int], str], start: int) -> Callable[[int], str]:
    return lambda place: locate(start + place)


def _notes(path: Path) -> Path:
    return path.with_suffix(".json")


def _remove_stale(folder: Path) -> None:
    """Remove what imports that were killed a day or more ago left behind."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
