"""Sources made of other sources: shuffled, repeated, mixed, a part of them.

All of them are functions of a place and a seed, never of what was read before, so that each resumes anywhere and cuts
never matter. This file knows no files and no tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position, Source
from millstream.errors import DataError, SettingError
from millstream.sources.draws import key_of, permute, uniform
from millstream.sources.rechunk import Piece, check_numbers, check_place, check_size, cut, gather, join, rechunk

__all__ = ["Mixed", "Repeated", "Shuffled", "Subset", "modified"]

_WINDOW_BYTES = 1 << 23  # records fetched by one `take`, so that small chunks share its cost
_WINDOW_RECORDS = 1 << 13
_MIXED_RECORDS = 1 << 10


class Shuffled:
    """One epoch of a source that can jump, in an order that seed and epoch decide. A position is a place in that order.

    >>> from millstream.sources.memory import TensorSource
    >>> import torch
    >>> epoch = Shuffled(TensorSource(torch.arange(100)), seed=1, epoch=0)
    >>> sorted(int(x) for chunk in epoch.read(size=7) for x in chunk.inputs) == list(range(100))
    True
    """

    def __init__(self, source: Source, seed: int = 0, epoch: int = 0) -> None:
        total = _check_jump(source, "shuffle")
        self.name = source.name
        self.schema: pa.Schema | None = source.schema
        self.num_records: int | None = total
        self.can_seek = True
        self.can_jump = True
        self._source = source
        self._order = (seed, epoch)
        self._key = key_of(seed, epoch)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        total = self.num_records or 0
        first = check_place(position, total, self.name)
        return _windows(self._source, lambda places: permute(self._key, places, total), first, total, size)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records at these places of the order."""
        numbers = check_numbers(numbers, self.num_records, self.name)
        return self._source.take(permute(self._key, numbers, self.num_records or 0))

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "shuffled", "order": list(self._order), "of": self._source.fingerprint()}

    @property
    def modified(self) -> list[Any]:
        return modified(self._source)


class Subset:
    """The records of a source with these numbers, in this order.

    >>> from millstream.sources.memory import TensorSource
    >>> import torch
    >>> next(Subset(TensorSource(torch.arange(10)), np.array([7, 3])).read()).inputs.tolist()
    [7, 3]
    """

    def __init__(self, source: Source, numbers: npt.ArrayLike, *, name: str | None = None) -> None:
        total = _check_jump(source, "take a part of")
        self._numbers = check_numbers(np.asarray(numbers, dtype=np.int64), total, source.name)
        if not len(self._numbers):
            raise DataError(got=f"no records of {source.name}", wanted="at least one", do="choose more")
        self.name = name or f"{source.name} (part)"
        self.schema: pa.Schema | None = source.schema
        self.num_records: int | None = len(self._numbers)
        self.can_seek = True
        self.can_jump = True
        self._source = source

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        total = len(self._numbers)
        first = check_place(position, total, self.name)
        return _windows(self._source, lambda places: self._numbers[places], first, total, size)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records at these places of the part."""
        return self._source.take(self._numbers[check_numbers(numbers, self.num_records, self.name)])

    def fingerprint(self) -> Mapping[str, Any]:
        digest = hashlib.sha256(self._numbers.astype("<i8").tobytes()).hexdigest()
        return {"kind": "subset", "records": len(self._numbers), "numbers": digest, "of": self._source.fingerprint()}

    @property
    def whole(self) -> Source:
        """What this is a part of."""
        return self._source

    @property
    def modified(self) -> list[Any]:
        return modified(self._source)


class Repeated:
    """A source over and over, as one stream: ``times`` times, or without end. Chunks run across the seams.

    >>> from millstream.sources.memory import TensorSource
    >>> import torch
    >>> [chunk.inputs.tolist() for chunk in Repeated(TensorSource(torch.arange(3)), 2).read(size=4)]
    [[0, 1, 2, 0], [1, 2]]
    """

    def __init__(self, source: Source, times: int | None = None) -> None:
        if times is not None and (not isinstance(times, int) or times < 1):
            raise SettingError(got=f"times={times!r}", wanted="a number of rounds, or None", do="use 1 or more")
        total = source.num_records
        self.name = source.name
        self.schema: pa.Schema | None = source.schema
        self.num_records: int | None = None if total is None or times is None else total * times
        self.can_seek = source.can_seek
        self.can_jump = source.can_jump and self.num_records is not None
        self._source = source
        self._times = times

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        turn, inner, skip = (0, None, 0) if position is None else _parts(position, ("round", "position", "skip"))
        return rechunk(self._pieces(turn, inner, size), size, skip)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, counted on from round to round."""
        numbers = check_numbers(numbers, self.num_records, self.name)
        return self._source.take(numbers % (self._source.num_records or 1))

    def fingerprint(self) -> Mapping[str, Any]:
        return {"kind": "repeated", "times": self._times, "of": self._source.fingerprint()}

    @property
    def modified(self) -> list[Any]:
        return modified(self._source)

    def _pieces(self, turn: int, inner: Position, size: int) -> Iterator[Piece]:
        while self._times is None or turn < self._times:
            before, is_empty = inner, inner is None
            for chunk in self._source.read(inner, size=size):
                is_empty = False
                yield Piece(chunk, self._position(turn, before, chunk))
                before = chunk.after
            if is_empty:
                raise DataError(
                    got=f"{self.name}, which gave no records in round {turn + 1}",
                    wanted="a source that can be read again",
                    do="use a file, an array or a list",
                )
            turn, inner = turn + 1, None

    def _position(self, turn: int, before: Position, chunk: Chunk) -> Callable[[int], Position]:
        span, after = chunk.span, chunk.after

        def position(place: int) -> Position:
            inner, skip = (after, 0) if place == span else (before, place)
            return {"round": turn, "position": inner, "skip": skip}

        return position


class Mixed:
    """Several sources as one stream: each place is drawn to be of one of them, by weight and seed.

    It ends where a source that is drawn has no more; ``Repeated`` keeps one going.

    >>> from millstream.sources.memory import TensorSource
    >>> import torch
    >>> ones, twos = TensorSource(torch.ones(100)), TensorSource(2 * torch.ones(100))
    >>> next(Mixed([(ones, 3.0), (twos, 1.0)], seed=5).read(size=8)).inputs.tolist()
    [2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, parts: Sequence[tuple[Source, float]], seed: int = 0, *, name: str | None = None) -> None:
        weights = [float(weight) for _, weight in parts]
        if not parts or not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise SettingError(got=f"weights {weights}", wanted="sources with weights above 0", do="change the weights")
        self._sources = [source for source, _ in parts]
        first = self._sources[0]
        for source in self._sources[1:]:
            if source.schema != first.schema:
                raise DataError(
                    got=f"{source.name} with other columns than {first.name}", wanted="the same", do="choose columns="
                )
        self.name = name or " + ".join(source.name for source in self._sources)
        self.schema: pa.Schema | None = first.schema
        self.num_records: int | None = None
        self.can_seek = all(source.can_seek for source in self._sources)
        self.can_jump = False
        self._facts = {"kind": "mixed", "weights": weights, "seed": seed}
        self._key = key_of(seed)
        self._edges = np.cumsum(weights) / math.fsum(weights)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        number, inner, skip = 0, [None] * len(self._sources), 0
        if position is not None:
            number, inner, skip = _parts(position, ("number", "sources", "skip"))
        if not isinstance(inner, list) or len(inner) != len(self._sources):
            raise _foreign(position)
        return rechunk(self._pieces(number, inner, size), size, skip)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}", wanted="a source that can jump", do="use cached(source)"
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return {**self._facts, "of": [source.fingerprint() for source in self._sources]}

    @property
    def modified(self) -> list[Any]:
        return [one for source in self._sources for one in modified(source)]

    def _pieces(self, number: int, inner: list[Position], size: int) -> Iterator[Piece]:
        window = max(size, _MIXED_RECORDS) if self.can_seek else size
        taps = [_Tap(source, position, window) for source, position in zip(self._sources, inner, strict=True)]
        while True:
            before = [tap.position() for tap in taps]
            drawn = self._draw(number, window)
            counts = np.bincount(drawn, minlength=len(taps))
            parts = [tap.give(int(count)) for tap, count in zip(taps, counts, strict=True)]
            given = np.array([part.span if part else 0 for part in parts])
            rank = _ranks(drawn, counts)
            missing = np.flatnonzero(rank >= given[drawn])
            end = int(missing[0]) if len(missing) else window
            if end:
                places = (np.cumsum(given) - given)[drawn] + rank
                chunk = gather(self._join([part for part in parts if part]), places[:end])
                yield Piece(chunk, _mixed_position(number, before, window, [tap.position() for tap in taps]))
            if end < window:
                return
            number += window

    def _draw(self, number: int, window: int) -> npt.NDArray[np.int64]:
        draws = uniform(self._key, np.arange(number, number + window))
        return np.minimum(np.searchsorted(self._edges, draws, side="right"), len(self._edges) - 1)

    def _join(self, parts: list[Chunk]) -> Chunk:
        try:
            return join(parts)
        except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                got=f"{self.name} with records of different shapes", wanted="the same", do="mix sources of one kind"
            ) from error


class _Tap:
    """A source that gives any number of places, and says where it stands: a position, and places after it."""

    def __init__(self, source: Source, position: Position, size: int) -> None:
        inner, skip = (None, 0) if position is None else _parts(position, ("position", "skip"))
        self._chunks = source.read(inner, size=size)
        self._before: Position = inner
        self._chunk: Chunk | None = None
        self._place = 0
        self.give(skip)

    def give(self, num_places: int) -> Chunk | None:
        """The next places, fewer at the end; None for none."""
        parts: list[Chunk] = []
        while num_places:
            if self._chunk is None or self._place == self._chunk.span:
                if self._chunk is not None:
                    self._before = self._chunk.after
                self._chunk, self._place = next(self._chunks, None), 0
                if self._chunk is None:
                    break
            last = min(self._place + num_places, self._chunk.span)
            parts.append(cut(self._chunk, self._place, last))
            num_places -= last - self._place
            self._place = last
        return join(parts) if parts else None

    def position(self) -> Position:
        if self._chunk is not None and self._place == self._chunk.span:
            return {"position": self._chunk.after, "skip": 0}
        return {"position": self._before, "skip": self._place}


def modified(source: Source) -> list[Any]:
    """What else than its fingerprint tells a source's content from an older one: times of change of its files."""
    return list(getattr(source, "modified", []))


def _windows(
    source: Source,
    numbers: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
    first: int,
    total: int,
    size: int,
) -> Iterator[Chunk]:
    """Chunks of the records that ``numbers`` gives for the places from ``first`` on; many chunks share a ``take``."""
    if first >= total:
        return
    one = _num_bytes(source.take(numbers(np.array([first]))))
    window = max(1, min(_WINDOW_RECORDS, _WINDOW_BYTES // max(one, 1)) // size) * size
    while first < total:
        places = np.arange(first, min(first + window, total))
        taken = source.take(numbers(places))
        for start in range(0, len(places), size):
            chunk = cut(taken, start, min(start + size, len(places)))
            chunk.after = first + start + chunk.span
            yield chunk
        first += len(places)


def _num_bytes(chunk: Chunk) -> int:
    inputs = chunk.inputs
    if isinstance(inputs, dict):
        return sum(value.nbytes for value in inputs.values())
    if isinstance(inputs, tuple):
        return sum(value.nbytes for value in inputs)
    return int(inputs.nbytes)


def _ranks(drawn: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each draw, how many draws of the same source come before it."""
    ranks = np.empty_like(drawn)
    starts = np.cumsum(counts) - counts
    ranks[np.argsort(drawn, kind="stable")] = np.arange(len(drawn)) - np.repeat(starts, counts)
    return ranks


def _mixed_position(
    number: int, before: list[Position], window: int, after: list[Position]
) -> Callable[[int], Position]:
    def position(place: int) -> Position:
        if place == window:
            return {"number": number + window, "sources": after, "skip": 0}
        return {"number": number, "sources": before, "skip": place}

    return position


def _check_jump(source: Source, what: str) -> int:
    if not source.can_jump or source.num_records is None:
        raise SettingError(
            got=f"{source.name}, which can only be read in order, to {what}",
            wanted="a source that can jump",
            do="import it once: millstream.sources.cached(source)",
        )
    return source.num_records


def _parts(position: Position, keys: tuple[str, str, str] | tuple[str, str]) -> list[Any]:
    if not isinstance(position, dict) or any(key not in position for key in keys):
        raise _foreign(position)
    return [position[key] for key in keys]


def _foreign(position: Position) -> DataError:
    return DataError(
        got=f"position {position!r}"[:200], wanted="one of this source", do="resume with the source that was saved"
    )
