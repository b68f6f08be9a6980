"""Streams that nothing was tuned on: generators of River, with drift points between them; for ``streams.py``.

They and their drift points were fixed before anything was measured on them. River draws each epoch (the stretch between
two drift points) with a seed of its own; this file says what an epoch is and mixes two of them where drift is gradual.

Shapes: N records.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from millstream import features
from millstream.contracts import Source
from millstream.schema import Schema
from millstream.sources import TableSource

__all__ = ["HELD_OUT", "RiverStream"]

RECORDS = 50_000
_MIDDLE = 14.4  # about the mean of Friedman's function: numbers above it are one class


@dataclasses.dataclass(frozen=True, slots=True)
class RiverStream:
    """One of River's concepts. ``drift`` records lie between two drift points, each ``width`` wide."""

    concept: str
    drift: int = 12_500
    width: int = 0

    def open(self, seed: int) -> tuple[Schema, Source]:
        """What the columns mean, and the records."""
        table = _table(self, seed)
        return features.infer(table, target="label"), TableSource(table)


HELD_OUT = {
    "sine": RiverStream("sine"),
    "sine-gradual": RiverStream("sine", width=2500),
    "mixed": RiverStream("mixed"),
    "stagger": RiverStream("stagger"),
    "random-tree": RiverStream("random-tree"),
    "random-tree-gradual": RiverStream("random-tree", width=2500),
    "waveform": RiverStream("waveform"),
    "waveform-gradual": RiverStream("waveform", width=2500),
    "friedman": RiverStream("friedman"),
    "friedman-gradual": RiverStream("friedman-gradual", drift=16_000, width=2500),
}


@functools.lru_cache(maxsize=2)
def _table(stream: RiverStream, seed: int) -> pa.Table:
    if stream.concept.startswith("friedman"):
        rows: Iterable[dict[str, Any]] = itertools.islice(_friedman(stream, seed), RECORDS)
    else:
        made: dict[int, Iterator[dict[str, Any]]] = {}
        rows = []
        for epoch in _epochs(stream, seed).tolist():
            if epoch not in made:
                made[epoch] = _CONCEPTS[stream.concept](epoch, seed)
            rows.append(next(made[epoch]))
    return pa.Table.from_pylist(list(rows))


def _epochs(stream: RiverStream, seed: int) -> np.ndarray:
    """(N,) the epoch of each record: at random, more and more often the new one, where drift is gradual."""
    numbers = np.arange(RECORDS)
    if not stream.width:
        return numbers // stream.drift
    point = (numbers + stream.drift // 2) // stream.drift  # the nearest one; the first epoch has none before it
    share = np.clip((numbers - point * stream.drift) / stream.width + 0.5, 0, 1)
    share[point == 0] = 1
    return point - (np.random.default_rng([seed, 1]).random(RECORDS) >= share)


def _rows(drawn: Iterable[tuple[dict[Any, Any], Any]], texts: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Named columns; those whose names begin with one of ``texts`` are categories."""
    for x, y in drawn:
        named = {str(name): str(v) if texts and str(name).startswith(texts) else float(v) for name, v in x.items()}
        yield {**named, "label": str(y)}


def _seed(epoch: int, seed: int) -> int:
    return 1000 * seed + epoch + 1


def _sine(epoch: int, seed: int) -> Iterator[dict[str, Any]]:
    from river.datasets import synth

    return _rows(synth.Sine(epoch % 4, seed=_seed(epoch, seed)))


def _mixed(epoch: int, seed: int) -> Iterator[dict[str, Any]]:
    from river.datasets import synth

    return _rows(synth.Mixed(epoch % 2, seed=_seed(epoch, seed)))


def _stagger(epoch: int, seed: int) -> Iterator[dict[str, Any]]:
    from river.datasets import synth

    return _rows(synth.STAGGER(epoch % 3, seed=_seed(epoch, seed)), ("size", "color", "shape"))


def _random_tree(epoch: int, seed: int) -> Iterator[dict[str, Any]]:
    from river.datasets import synth

    return _rows(synth.RandomTree(_seed(epoch, seed), _seed(epoch, seed)), ("x_cat",))


def _waveform(epoch: int, seed: int) -> Iterator[dict[str, Any]]:
    """Three classes of waves beside 19 columns of noise; the columns change places at each drift point."""
    from river.datasets import synth

    order = np.random.default_rng([seed, epoch, 2]).permutation(40) if epoch else np.arange(40)
    for x, y in synth.Waveform(_seed(epoch, seed), has_noise=True):
        values = list(x.values())
        yield {**{f"x{place}": float(values[source]) for place, source in enumerate(order)}, "label": str(y)}


def _friedman(stream: RiverStream, seed: int) -> Iterator[dict[str, Any]]:
    """River's own drifts: more and more of the space changes abruptly, or all of it and back again, gradually."""
    from river.datasets import synth

    points = [stream.drift * (number + 1) - stream.width // 2 for number in range(2 if stream.width else 3)]
    kind = "gsg" if stream.width else "lea"
    drawn = synth.FriedmanDrift(kind, tuple(points), stream.width, seed=_seed(0, seed))
    return _rows((x, y > _MIDDLE) for x, y in drawn)


_CONCEPTS: dict[str, Callable[[int, int], Iterator[dict[str, Any]]]] = {
    "sine": _sine,
    "mixed": _mixed,
    "stagger": _stagger,
    "random-tree": _random_tree,
    "waveform": _waveform,
}
