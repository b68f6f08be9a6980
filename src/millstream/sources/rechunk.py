"""Cutting, joining and gathering chunks, and cutting a stream of pieces into chunks of an exact size.

A piece is what a reader gets at once (a block of a file, a row group) and a way to say where each of its places begins.
This file knows nothing of where pieces come from. Places count holes; rows count records only.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Inputs, Position, Rejection, map_tensors
from millstream.errors import DataError, SettingError
from millstream.rows import join_rows, rows_of

__all__ = [
    "Piece",
    "check_numbers",
    "check_place",
    "check_size",
    "cut",
    "gather",
    "join",
    "pieces",
    "rechunk",
    "take_from",
    "take_rows",
]

Places: TypeAlias = npt.NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class Piece:
    """Records read at once, and the position at which place 0 … ``chunk.span`` of them begins."""

    chunk: Chunk
    position: Callable[[int], Position]


def rechunk(pieces: Iterable[Piece], size: int, skip: int = 0) -> Iterator[Chunk]:
    """Chunks of exactly ``size`` places, the last one shorter, from pieces of any size, less ``skip`` places.

    >>> whole = Chunk(torch.arange(5))
    >>> [chunk.inputs.tolist() for chunk in rechunk([Piece(whole, lambda place: place)], 2)]
    [[0, 1], [2, 3], [4]]
    """
    held: list[Chunk] = []
    wanted = size
    after: Position = None
    for piece in pieces:
        span = piece.chunk.span
        place = min(skip, span)
        skip -= place
        while span - place >= wanted:
            chunk = cut(piece.chunk, place, place + wanted)
            place += wanted
            if held:
                chunk = join([*held, chunk])
                held = []
            wanted = size
            chunk.after = piece.position(place)
            yield chunk
        if place < span:
            held.append(cut(piece.chunk, place, span))
            wanted -= span - place
            after = piece.position(span)
    if skip:
        raise DataError(
            got=f"a position {skip} records after the end of the data",
            wanted="the data that the position belongs to",
            do="resume with what was read before",
        )
    if held:
        chunk = join(held)
        chunk.after = after
        yield chunk


def cut(chunk: Chunk, first: int, last: int) -> Chunk:
    """The places from ``first`` up to ``last`` of a chunk, as views; ``after`` is left to the caller."""
    low, high, offsets = first, last, chunk.offsets
    if offsets is not None:
        low, high = (int(row) for row in np.searchsorted(offsets, (first, last)))
        offsets = offsets[low:high] - first if high - low < last - first else None
    locate, rows = chunk.locate, slice(low, high)
    return Chunk(
        inputs=_slice_rows(chunk.inputs, low, high),
        targets=None if chunk.targets is None else chunk.targets[rows],
        weights=None if chunk.weights is None else chunk.weights[rows],
        span=last - first,
        offsets=offsets,
        times=None if chunk.times is None else chunk.times[rows],
        label_times=None if chunk.label_times is None else chunk.label_times[rows],
        rejected=_moved(chunk.rejected, first, last) if chunk.rejected else (),
        locate=None if locate is None else lambda place: locate(place + first),
    )


def join(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk of all places of ``chunks``, in order."""
    if len(chunks) == 1:
        return chunks[0]
    starts = [0]
    for chunk in chunks:
        starts.append(starts[-1] + chunk.span)
    span = starts.pop()
    offsets = None
    if any(chunk.offsets is not None for chunk in chunks):
        offsets = np.concatenate([_offsets(chunk) + start for chunk, start in zip(chunks, starts, strict=True)])
    return Chunk(
        inputs=_join_inputs([chunk.inputs for chunk in chunks]),
        targets=_join_tensors([chunk.targets for chunk in chunks], chunks, torch.nan),
        weights=_join_tensors([chunk.weights for chunk in chunks], chunks, 1.0),
        span=span,
        offsets=offsets,
        times=_join_times([chunk.times for chunk in chunks], chunks),
        label_times=_join_times([chunk.label_times for chunk in chunks], chunks),
        rejected=tuple(
            dataclasses.replace(one, offset=one.offset + start)
            for chunk, start in zip(chunks, starts, strict=True)
            for one in chunk.rejected
        ),
        locate=_located(chunks, starts) if any(chunk.locate for chunk in chunks) else None,
    )


def pieces(chunk: Chunk, place: int, size: int) -> Iterator[tuple[int, Chunk]]:
    """The places of a chunk from ``place`` on, ``size`` at a time, each with the place behind it.

    >>> [(last, piece.inputs.tolist()) for last, piece in pieces(Chunk(torch.arange(5)), 1, 2)]
    [(3, [1, 2]), (5, [3, 4])]
    """
    while place < chunk.span:
        last = min(place + size, chunk.span)
        yield last, chunk if (place, last) == (0, chunk.span) else cut(chunk, place, last)
        place = last


def gather(chunk: Chunk, places: Places) -> Chunk:
    """The places of a chunk, in any order, as a new chunk: place k of it is ``places[k]``; holes stay holes."""
    rows, offsets = places, None
    rejected: tuple[Rejection, ...] = ()
    if chunk.offsets is not None:
        row_of = np.full(chunk.span, -1, dtype=np.int64)
        row_of[chunk.offsets] = np.arange(len(chunk.offsets))
        rows = row_of[places]
        offsets = np.flatnonzero(rows >= 0)
        rows = rows[offsets]
        new_place = {int(places[k]): int(k) for k in np.setdiff1d(np.arange(len(places)), offsets)}
        rejected = tuple(
            sorted(
                (dataclasses.replace(r, offset=new_place[r.offset]) for r in chunk.rejected if r.offset in new_place),
                key=lambda one: one.offset,
            )
        )
    index, locate = torch.from_numpy(rows), chunk.locate
    return Chunk(
        inputs=take_rows(chunk.inputs, rows),
        targets=None if chunk.targets is None else chunk.targets[index],
        weights=None if chunk.weights is None else chunk.weights[index],
        span=len(places),
        offsets=offsets if offsets is not None and len(offsets) < len(places) else None,
        times=None if chunk.times is None else chunk.times[rows],
        label_times=None if chunk.label_times is None else chunk.label_times[rows],
        rejected=rejected,
        locate=None if locate is None else lambda place: locate(int(places[place])),
    )


def take_from(chunks: Sequence[Chunk], starts: Places, numbers: Places) -> Chunk:
    """The records with these numbers; chunk k (without holes) holds those from ``starts[k]`` up to ``starts[k + 1]``.

    Fetched chunk by chunk, in rising order, then put into the order asked for.
    """
    order = np.argsort(numbers, kind="stable")
    rising = numbers[order]
    edges = np.searchsorted(rising, starts)
    used = np.flatnonzero(np.diff(edges)).tolist()
    parts = [gather(chunks[k], rising[edges[k] : edges[k + 1]] - starts[k]) for k in used]
    if not parts:
        return cut(chunks[0], 0, 0)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return gather(join(parts), back)


def check_numbers(numbers: Places, num_records: int | None, name: str) -> Places:
    """Refuse record numbers that a source does not have."""
    numbers = np.ascontiguousarray(numbers, dtype=np.int64)
    total = num_records or 0
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= total):
        wrong = numbers[(numbers < 0) | (numbers >= total)][0]
        raise DataError(
            got=f"record {wrong} of {name}", wanted=f"numbers from 0 to {total - 1}", do="change the numbers"
        )
    return numbers


def take_rows(inputs: Inputs, rows: Places) -> Inputs:
    """The rows of inputs, in this order, copied."""
    if isinstance(inputs, pa.RecordBatch):
        return inputs.take(pa.array(rows))
    index = torch.from_numpy(rows)
    taken: Inputs = map_tensors(inputs, lambda value: rows_of(value, index))
    return taken


def check_size(size: int) -> None:
    """Refuse a chunk size that is not a whole number above 0."""
    if not isinstance(size, int) or size < 1:
        raise SettingError(got=f"size={size!r}", wanted="a whole number of records, 1 or more", do="change size")


def check_place(position: Position, num_places: int | None, name: str) -> int:
    """The record number that a position holds (None is 0), or a DataError where it can be none of this source."""
    if position is None:
        return 0
    fits = isinstance(position, int) and position >= 0 and (num_places is None or position <= num_places)
    if not fits:
        limit = "a record number" if num_places is None else f"a record number up to {num_places}"
        raise DataError(
            got=f"position {position!r} of {name}", wanted=limit, do="resume with the source that was saved"
        )
    return int(position)


def _slice_rows(inputs: Inputs, low: int, high: int) -> Inputs:
    if isinstance(inputs, pa.RecordBatch):
        return inputs.slice(low, high - low)
    rows: Inputs = map_tensors(inputs, lambda value: rows_of(value, slice(low, high)))
    return rows


def _moved(rejected: tuple[Rejection, ...], first: int, last: int) -> tuple[Rejection, ...]:
    return tuple(dataclasses.replace(one, offset=one.offset - first) for one in rejected if first <= one.offset < last)


def _offsets(chunk: Chunk) -> Places:
    return np.arange(chunk.span, dtype=np.int64) if chunk.offsets is None else chunk.offsets


def _join_inputs(parts: list[Any]) -> Inputs:
    first = parts[0]
    if isinstance(first, pa.RecordBatch):
        batches = pa.Table.from_batches(parts).combine_chunks().to_batches()
        return batches[0] if batches else first
    if isinstance(first, dict):
        return {name: join_rows([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(join_rows(column) for column in zip(*parts, strict=True))
    return join_rows(parts)


def _join_tensors(parts: list[Tensor | None], chunks: Sequence[Chunk], fill: float) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [torch.full((len(chunk),), fill) if part is None else part for part, chunk in zip(parts, chunks, strict=True)]
    )


def _join_times(parts: list[npt.NDArray[np.float64] | None], chunks: Sequence[Chunk]) -> npt.NDArray[np.float64] | None:
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [np.full(len(chunk), np.nan) if part is None else part for part, chunk in zip(parts, chunks, strict=True)]
    )


def _located(chunks: Sequence[Chunk], starts: list[int]) -> Callable[[int], str]:
    places = [chunk.locate for chunk in chunks]

    def locate(place: int) -> str:
        index = bisect.bisect_right(starts, place) - 1
        within = places[index]
        return "" if within is None else within(place - starts[index])

    return locate
