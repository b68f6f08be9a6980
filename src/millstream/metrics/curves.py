"""Rank measures since the start in constant memory: how many records had a score in each of a fixed set of bins.

Scores within a bin count as tied, and nothing else is lost. Measured: with log odds of a standard deviation of 1 or
more both areas are within 0.001 of the exact ones; of 0.3 or more, the one under the ROC curve still is. A model whose
log odds all lie within a few hundredths of each other is seen coarsely.

Shapes: N records, R ranked classes, S bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from millstream.contracts import State
from millstream.metrics import exact
from millstream.metrics.folds import restored

__all__ = ["RankHistogram"]


class RankHistogram:
    """Counts of scores by bin, for each ranked class against the rest.

    >>> histogram = RankHistogram(1, 4)
    >>> histogram.fold(np.array([[0, 3]], dtype=np.int32), np.array([3], dtype=np.int32))
    >>> histogram.mean(exact.roc_auc_of_counts)
    1.0
    """

    def __init__(self, num_ranked: int, num_bins: int) -> None:
        self._every = np.zeros((num_ranked, num_bins), dtype=np.int64)
        self._positives = np.zeros((num_ranked, num_bins), dtype=np.int64)

    def fold(self, places: npt.NDArray[np.int32], positives: npt.NDArray[np.int32]) -> None:
        """Take up (R, N) places in the flat (R · S,) histogram, and of those the positive ones."""
        self._every += self._count(places.reshape(-1))
        np.add.at(self._positives.reshape(-1), positives, 1)

    def _count(self, places: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        # torch counts 32-bit integers as they are, in half the time that NumPy needs to widen and count them.
        counts: npt.NDArray[np.int64] = torch.bincount(torch.from_numpy(places), minlength=self._every.size).numpy()
        return counts.reshape(self._every.shape)

    def mean(self, measure: Callable[[Any, Any], float | None]) -> float | None:
        """The mean over the ranked classes of a measure of (positives, negatives) by bin."""
        negatives = self._every - self._positives
        return exact.mean_over_classes(lambda k: measure(self._positives[k], negatives[k]), len(negatives))

    def state_dict(self) -> State:
        return {"every": self._every.copy(), "positives": self._positives.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._every = restored(state, "every", self._every)
        self._positives = restored(state, "positives", self._positives)
