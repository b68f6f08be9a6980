"""What the gradients of a chunk's updates say of their noise, at little cost.

The norm of each update's gradient is known, since it is looked at before a step. At a few updates that of some of its
records is computed beside it: with two batch sizes, the variance of one record's gradient follows (McCandlish et al.
2018, appendix A.1).

Shapes: B records of one update.
"""

from __future__ import annotations

from millstream.contracts import GradientNorms

__all__ = ["NoiseMeasurement"]

_LEAST = 8  # records of an update
# Of updates of fewer records than the first number: one in how many is looked at, and which share of its records. In
# small ones it is calls that cost, in large ones passes through the model.
_PLANS = ((32, 32, 4), (256, 16, 8), (1 << 62, 8, 16))
_LEAST_FEW = 2  # records, so that statistics over a batch exist


class NoiseMeasurement:
    """Collects norms over the updates of one chunk."""

    def __init__(self, update_size: int) -> None:
        self._size = update_size
        self._every, self._share = next((every, share) for below, every, share in _PLANS if update_size < below)
        self._squares, self._num = 0.0, 0
        self._variances, self._num_measured = 0.0, 0

    def num_few(self, position: int, num: int) -> int:
        """Of the ``num`` records of the update at a run position, how many to look at alone; 0 is not to measure.

        It depends on nothing else, so that a resumed run measures the same updates.
        """
        is_measured = num == self._size >= _LEAST and position // self._size % self._every == 0
        return max(_LEAST_FEW, num // self._share) if is_measured else 0

    def add(self, num: int, of_all: float, num_few: int, of_few: float | None) -> None:
        """Takes in the squared norms of one update."""
        if num != self._size or num < _LEAST:
            return
        self._squares, self._num = self._squares + of_all, self._num + 1
        if of_few is not None:
            self._variances += (of_few - of_all) / (1 / num_few - 1 / num)
            self._num_measured += 1

    def found(self) -> tuple[GradientNorms, ...]:
        if not self._num:
            return ()
        variance = self._variances / self._num_measured if self._num_measured else None
        return (GradientNorms(self._size, self._num, self._squares / self._num, variance, self._num_measured),)
