"""What a forecast without a model would have said: the label known last, or the majority of the labels known.

"Known" before record i is the label of record i − 1, or, where labels come late, whatever ``known[i]`` says.

Shapes: N records, C classes, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from millstream.contracts import State
from millstream.errors import DataError
from millstream.metrics.folds import restored

__all__ = ["Given", "LatestKnown", "MajorityBaseline"]

Given: TypeAlias = Sequence[tuple[int, npt.NDArray[Any]]]
"""What was said to be known: (number of its first record, values of consecutive records)."""

_BLOCK = 1024


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
        """(..., N) what was known before each of (..., N) ``labels``: what is given, else the label before."""
        known = np.concatenate([self._last[..., None], labels[..., :-1]], axis=-1)
        self._last = labels[..., -1].copy()
        for first, values in given:
            place = known[..., first : first + len(values)]
            if values.ndim != known.ndim and not (known.ndim == 2 and len(known) == 1):
                raise DataError(
                    got=f"known labels of shape {values.shape}", wanted="one for each target", do="give all outputs"
                )
            place[...] = values.T
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
        if self._is_settled(len(known)):
            return self._constant(known)
        blocks = [known[first : first + _BLOCK] for first in range(0, len(known), _BLOCK)]
        return np.concatenate(
            [self._constant(block) if self._is_settled(len(block)) else self._followed(block) for block in blocks]
        )

    def _is_settled(self, num_records: int) -> bool:
        """Whether no other class can draw level with the leader within so many records."""
        leader = int(self._counts.argmax())
        margin = self._counts[leader] - max(
            self._counts[:leader].max(initial=0), self._counts[leader + 1 :].max(initial=0)
        )
        return bool(margin > num_records)

    def _constant(self, known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        leader = self._counts.argmax()
        self._counts += self._count(known)
        return np.full(len(known), leader)

    def _followed(self, known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        majority: npt.NDArray[np.int64]
        leader = int(self._counts.argmax())
        added = self._count(known)
        # Of the classes that do not occur in the block only the best can lead, and that one is the leader now.
        rivals = (self._counts + added >= self._counts[leader]) & (added > 0)
        rivals[leader] = True
        classes = np.flatnonzero(rivals)
        gained = np.add.accumulate(known == classes[:, None], axis=1, dtype=np.int32)
        gained += (self._counts[classes] - self._counts[leader]).astype(np.int32)[:, None]  # at least −_BLOCK
        # Of equal counts the lowest class leads. With its place in the low bits, `maximum` finds it, faster than `argmax`.
        places = np.int32((1 << len(classes).bit_length()) - 1)
        gained *= places + 1
        gained += places - np.arange(len(classes), dtype=np.int32)[:, None]
        majority = classes[places - (np.maximum.reduce(gained, axis=0) & places)]
        if not self._counts[leader]:
            majority[np.add.accumulate(known >= 0) == 0] = -1
        self._counts += added
        return majority

    def _count(self, known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.bincount(known + 1, minlength=len(self._counts) + 1)[1:]

    def state_dict(self) -> State:
        return {"counts": self._counts.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = restored(state, "counts", self._counts)
