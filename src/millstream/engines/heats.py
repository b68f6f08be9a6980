"""Which copy leads a ``fit`` and which stop: heats of fixed length, after each of which the better half goes on.

A fit has seen every record after its first epoch, so that scores mean little from then on, and its rate falls later by
itself: what is looked for is the copy that learns fastest at the beginning. So a race of a fit is short and ends for
good (successive halving, Jamieson and Talwalkar 2016). It knows numbers only, as ``standings`` does.

Shapes: K copies, N scored records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from millstream.engines.standings import Board

__all__ = ["Heats"]

HEATS = (1024, 1024, 4096)  # records of each
_LEFT = (4, 2, 1)  # copies that run on after it


class Heats(Board):
    """Mean scores of K copies in the heat that is run; lower is better.

    Takes scores as ``Standings`` does: ``see`` for each piece, ``close`` at the end of a segment.

    >>> heats = Heats(2)
    >>> heats.see(np.array([[1.0, 1.0], [0.5, 0.5]])).tolist(), heats.leader
    ([0, 0, 1], 1)
    >>> heats.finish(), heats.running.tolist()
    ([0], [False, True])
    """

    def __init__(self, num_copies: int) -> None:
        super().__init__(num_copies)
        self._sums = np.zeros(num_copies)
        self._num = 0  # records of the heat so far
        self._heat = 0

    def see(self, scores_KN: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        num = scores_KN.shape[1]
        before, self._num = self.leader, self._num + num
        self._sums += np.where(self.running, np.nan_to_num(scores_KN).sum(axis=1), 0.0)
        self.leader = int(np.where(self.running, self._sums, np.inf).argmin())
        leaders = np.full(num + 1, before, np.intp)
        leaders[-1] = self.leader
        return leaders

    def close(self) -> list[int]:
        """Ends a segment. Gives the copies that stop, if a heat has ended with it."""
        if self._heat >= len(HEATS) or self._num < HEATS[self._heat]:
            return []
        self._heat += 1
        return self._keep(_LEFT[self._heat - 1])

    def finish(self) -> list[int]:
        """Ends the race, whatever is left to run. Gives the copies that stop."""
        self._heat = len(HEATS)
        return self._keep(1)

    @property
    def is_over(self) -> bool:
        return int(self.running.sum()) == 1

    def mean_of_leader(self) -> float:
        """The leader's mean score in this heat; 0 before there is one."""
        return float(self._sums[self.leader] / self._num) if self._num else 0.0

    def _keep(self, most: int) -> list[int]:
        order = np.argsort(np.where(self.running, self._sums, np.inf), kind="stable")
        stopped = [number for number in order[most:].tolist() if self.running[number]]
        self.running[stopped] = False
        self._sums[:], self._num = 0.0, 0
        return sorted(stopped)
