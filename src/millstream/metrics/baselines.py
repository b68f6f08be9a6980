"""What a forecast without a model would have said: the label known last, or the majority of the labels known.

"Known" before record i is the label of record i − 1, or, where labels come late, whatever ``known[i]`` says.

Shapes: N records, C classes, U blocks of B records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from millstream.contracts import State
from millstream.metrics.folds import restored

__all__ = ["Given", "LatestKnown", "MajorityBaseline"]

Given: TypeAlias = Sequence[tuple[int, npt.NDArray[Any]]]
"""What was said to be known: (number of its first record, values of consecutive records)."""

_BLOCK = 128


class LatestKnown:
    """The label known last before each record.

    >>> latest = LatestKnown(np.array(-1))
    >>> latest.resolve(np.array([3, 4]), [])
    array([-1,  3])
    >>> latest.resolve(np.array([5, 6]), [(1, np.array([9]))])
    array([4, 9])
    """

    def __init__(self, missing: npt.NDArray[Any]) -> None:
        self._last = missing.copy()

    def resolve(self, labels: npt.NDArray[Any], given: Given) -> npt.NDArray[Any]:
        """(..., N) what was known before each of (..., N) ``labels``: what is given, else the label before.

        One given value for a record of several labels does not say what the others were: nothing is known then.
        """
        known = np.concatenate([self._last[..., None], labels[..., :-1]], axis=-1)
        self._last = labels[..., -1].copy()
        for first, values in given:
            place = known[..., first : first + len(values)]
            place[...] = values.T if values.size == place.size else np.nan
        return known

    def state_dict(self) -> State:
        return {"last": self._last.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._last = restored(state, "last", self._last)


class MajorityBaseline:
    """The class most often known so far; the lowest of them if several are.

    >>> MajorityBaseline(3).predict(np.array([-1, 2, 1, 1]))
    array([-1,  2,  1,  1])
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = np.zeros(num_classes, dtype=np.int64)

    def predict(self, known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(N,) the majority after each of (N,) classes became known, −1 where nothing is; −1 is no class."""
        before, leader = self._counts, int(self._counts.argmax())
        self._counts = before + np.bincount(known + 1, minlength=len(before) + 1)[1:]
        if np.count_nonzero(self._counts >= before[leader]) == 1:  # nobody else ends where the leader began
            majority = np.full(len(known), leader)
        else:
            majority = _follow(before, known)
        if not before[leader]:
            majority[np.add.accumulate(known >= 0) == 0] = -1
        return majority

    def state_dict(self) -> State:
        return {"counts": self._counts.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = restored(state, "counts", self._counts)


def _follow(counts: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(N,) the majority after each record, from (C,) counts before the first; in blocks of which most are settled."""
    num_blocks, num_classes = -(len(known) // -_BLOCK), len(counts)
    blocks = np.full((num_blocks, _BLOCK), -1)
    blocks.reshape(-1)[: len(known)] = known
    each = np.arange(num_blocks)
    cells = blocks + (1 + (num_classes + 1) * each[:, None])
    added = np.bincount(cells.reshape(-1), minlength=num_blocks * (num_classes + 1)).reshape(num_blocks, -1)[:, 1:]
    before = np.add.accumulate(added, axis=0) - added + counts
    leaders = before.argmax(axis=1)
    lead = before[each, leaders][:, None]
    # Of the classes that do not occur in a block only the best can lead, and that one leads already.
    rivals = (before + added >= lead) & (added > 0)
    rivals[each, leaders] = True
    majority = np.repeat(leaders, _BLOCK).reshape(num_blocks, _BLOCK)
    unsettled = np.flatnonzero(rivals.sum(axis=1) > 1)
    if len(unsettled):
        ahead = np.maximum(before - lead, -2 * _BLOCK)[unsettled]
        majority[unsettled] = _contest(ahead, rivals[unsettled], blocks[unsettled])
    return majority.reshape(-1)[: len(known)]


def _contest(
    ahead_UC: npt.NDArray[np.int64], rivals_UC: npt.NDArray[np.bool_], known_UB: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """(U, B) the majority after each record of U blocks, from how far each class is ahead of the leader before them."""
    num_rivals = int(rivals_UC.sum(axis=1).max())
    classes = np.sort(np.argsort(~rivals_UC, axis=1, kind="stable")[:, :num_rivals], axis=1)
    gained = np.add.accumulate(known_UB[:, None] == classes[:, :, None], axis=2, dtype=np.int32)
    gained += np.take_along_axis(ahead_UC, classes, axis=1).astype(np.int32)[:, :, None]
    # Of equal counts the lowest class leads. With its place in the low bits, `maximum` finds it, faster than `argmax`.
    low_bits = (1 << num_rivals.bit_length()) - 1
    gained *= low_bits + 1
    gained += (low_bits - np.arange(num_rivals, dtype=np.int32))[:, None]
    places = low_bits - (np.maximum.reduce(gained, axis=1) & low_bits)
    return np.take_along_axis(classes, places.astype(np.int64), axis=1)
