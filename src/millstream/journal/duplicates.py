"""What was appended before: by producer and sequence, or by event id within the last records.

A transaction looks at a ``Staged`` view, which is taken over when it is durable and dropped when it is not. Ids are
kept as 16 bytes of BLAKE2b under a secret of the journal. This file knows neither files nor records.

Shapes: K ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from millstream.journal.rows import ID_BYTES

__all__ = ["NO_ID", "IdWindow", "Last", "Seen", "Staged", "hash_ids"]

NO_ID = bytes(ID_BYTES)
_MANY = 8192  # ids that are looked up in a dict before they are sorted into a run

Words = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, slots=True)
class Last:
    """Of a producer: the sequence that comes next, and the number of its last group."""

    next: int
    number: int


def hash_ids(ids: Sequence[str | bytes | None], secret: bytes) -> list[bytes]:
    """16 bytes for each id, ``NO_ID`` for None."""
    blake2b = hashlib.blake2b
    texts = [one.encode() if isinstance(one, str) else one for one in ids]
    return [NO_ID if text is None else blake2b(text, digest_size=ID_BYTES, key=secret).digest() for text in texts]


class IdWindow:
    """The positions of the ids of the last ``size`` places, 24 bytes an id: sorted runs, each at least twice the next.

    >>> window = IdWindow(100)
    >>> window.add({b"a" * 16: 7})
    >>> window.find(b"a" * 16, oldest=0), window.find(b"b" * 16, oldest=0), window.find(b"a" * 16, oldest=8)
    (7, None, None)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._recent: dict[bytes, int] = {}
        self._runs: list[tuple[Words, npt.NDArray[np.int64]]] = []  # (K, 2) words sorted by the first; (K,) positions

    def find(self, key: bytes, *, oldest: int) -> int | None:
        """The position of an id, if that is ``oldest`` or later."""
        position = self._recent.get(key)
        if position is None and self._runs:
            position = self._in_runs(key)
        return position if position is not None and position >= oldest else None

    def add(self, found: Mapping[bytes, int]) -> None:
        self._recent.update(found)
        if len(self._recent) > _MANY:
            positions = np.fromiter(self._recent.values(), np.int64, len(self._recent))
            self._recent, keys = {}, b"".join(self._recent)
            self._runs.append(_sorted(np.frombuffer(keys, "<u8").reshape(-1, 2), positions))
            self._merge(int(positions.max()) - self.size)

    def keys_from(self, first: int, end: int) -> tuple[bytes, list[int]]:
        """The ids at positions from ``first`` to below ``end``, one after another, and these positions."""
        keys, positions = [], []
        for words, places in self._runs:
            wanted = (places >= first) & (places < end)
            keys.append(np.ascontiguousarray(words[wanted]).tobytes())
            positions += places[wanted].tolist()
        recent = {key: place for key, place in self._recent.items() if first <= place < end}
        return b"".join([*keys, *recent]), positions + list(recent.values())

    def _in_runs(self, key: bytes) -> int | None:
        first, second = np.frombuffer(key, "<u8")
        for words, positions in reversed(self._runs):
            low, high = np.searchsorted(words[:, 0], first, "left"), np.searchsorted(words[:, 0], first, "right")
            for row in range(int(high) - 1, int(low) - 1, -1):
                if words[row, 1] == second:
                    return int(positions[row])
        return None

    def _merge(self, oldest: int) -> None:
        while len(self._runs) > 1 and len(self._runs[-2][1]) < 2 * len(self._runs[-1][1]):
            (late, later), (early, earlier) = self._runs.pop(), self._runs.pop()
            words, positions = np.concatenate([early, late]), np.concatenate([earlier, later])
            fresh = positions >= oldest
            self._runs.append(_sorted(words[fresh], positions[fresh]))


class Seen:
    """Producers and ids of what is durable."""

    def __init__(self, num_ids: int) -> None:
        self.producers: dict[bytes, Last] = {}
        self.ids = IdWindow(num_ids)

    def note(self, first: int, ids: bytes) -> None:
        """Takes up the ids of a group from its row."""
        keys = [ids[i : i + ID_BYTES] for i in range(0, len(ids), ID_BYTES)]
        self.ids.add({key: first + place for place, key in enumerate(keys) if key != NO_ID})


@dataclasses.dataclass(slots=True)
class Staged:
    """What a transaction adds to ``before``: a view of both, until it is durable."""

    before: Seen | Staged
    producers: dict[bytes, Last] = dataclasses.field(default_factory=dict)
    ids: dict[bytes, int] = dataclasses.field(default_factory=dict)

    def last_of(self, producer: bytes) -> Last | None:
        found = self.producers.get(producer)
        if found is None:
            before = self.before
            found = before.last_of(producer) if isinstance(before, Staged) else before.producers.get(producer)
        return found

    def find(self, key: bytes, *, oldest: int) -> int | None:
        found = self.ids.get(key)
        return self._find_before(key, oldest) if found is None else found

    def _find_before(self, key: bytes, oldest: int) -> int | None:
        before = self.before
        return before.find(key, oldest=oldest) if isinstance(before, Staged) else before.ids.find(key, oldest=oldest)

    def take_over(self) -> None:
        """It is durable now, or the whole of which it is a part goes on with it."""
        self.before.producers.update(self.producers)
        if isinstance(self.before, Staged):
            self.before.ids.update(self.ids)
        else:
            self.before.ids.add(self.ids)


def _sorted(words: Words, positions: npt.NDArray[np.int64]) -> tuple[Words, npt.NDArray[np.int64]]:
    order = np.argsort(words[:, 0], kind="stable")
    return words[order], positions[order]
