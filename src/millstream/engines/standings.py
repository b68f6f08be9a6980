"""How copies of a model that learn side by side compare: who leads, and who need not run on.

A copy is judged by what it predicted before it learned, with old records counting less and less. It knows numbers
only; ``race`` knows the copies.

Shapes: K copies, N scored records, M questions, S records of a segment.
"""

from __future__ import annotations

import abc

import numpy as np
import numpy.typing as npt

from millstream.contracts import State

__all__ = ["Board", "Standings"]

KEPT = 0.9995  # of what counts, from one record to the next: the last 2,000 records weigh most
_KEPT_AT_REOPENING = 0.2  # of what was known when the copies run again
_ENOUGH = 1000  # records that count, before a copy may be stopped
_SURE = 6.0  # standard errors; scores of neighbours in time are alike, so that these are too small
_AHEAD = 10.0  # mean scores of the leader, for another copy to take the lead; so none does in the first records
_FIRST_PAUSE = 5000  # records until the copies that were stopped run again; doubled each time
_SETTLED = 4096  # records after which a leader that was not overtaken is left alone, the others stopped one by one
_ONE_BY_ONE = 1024  # records between two of these
_LOST, _LOST_SURE = 2.0, 8.0  # times its mean score, and standard errors, in one segment: something has happened
_WATCHED, _KEPT_USUAL = 4, 0.95  # segments before one can be worse than usual; kept of what is usual, by a segment
_SLACK, _ALARM = 0.5, 3.0  # standard errors above the usual that count as nothing; a sum of the others that is a change


class Board(abc.ABC):
    """Which of K copies leads, and which run. By itself it never ends, and nobody who was stopped runs again."""

    def __init__(self, num_copies: int) -> None:
        self.running = np.ones(num_copies, bool)
        self.leader = 0

    @property
    def is_over(self) -> bool:
        """Whether no other copy will lead."""
        return False

    @abc.abstractmethod
    def see(self, scores_KN: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Takes in scores; gives the (N + 1,) copy that leads before each of them, and after the last."""

    @abc.abstractmethod
    def close(self) -> list[int]:
        """Ends a segment. Gives the copies that are stopped."""

    @abc.abstractmethod
    def mean_of_leader(self) -> float:
        """The leader's mean score; 0 before there is one."""

    def finish(self) -> list[int]:
        """The records that were not seen before have ended. Gives the copies that are stopped."""
        return []

    def is_lost(self) -> bool:
        """Whether the segment that is about to be closed was far worse for the leader than those before it."""
        return False

    def has_changed(self) -> bool:
        """Whether the leader's scores have risen above what is usual, as of the segment that was closed last."""
        return False

    def is_time_to_reopen(self) -> bool:
        """Whether those that were stopped should have another chance."""
        return False

    def restart(self, number: int) -> None:
        """Lets a copy run that begins anew: it may be as good as the leader, and nothing else is known of it."""
        self.running[number] = True

    def reopen(self, *, changed: bool = False) -> list[int]:
        """Lets those that were stopped run on from where the leader is, and gives them."""
        return []

    def state_dict(self) -> State:
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        for name in vars(self):
            value = state[name.lstrip("_")]
            setattr(self, name, np.array(value) if isinstance(value, np.ndarray) else value)


class Standings(Board):
    """Discounted sums of the scores of K copies, lower is better, and of their products for paired differences.

    Scores are taken in by segments: ``see`` for those whose labels have come, ``close`` at the end of a segment.
    The last ``num_spare`` of the copies run only when they are told to begin anew.
    """

    def __init__(self, num_copies: int, num_spare: int = 0) -> None:
        super().__init__(num_copies)
        self._is_spare = np.arange(num_copies) >= num_copies - num_spare
        self.running[self._is_spare] = False
        self._sums = np.zeros(num_copies)
        self._products = np.zeros((num_copies, num_copies))
        self._weight = self._squared_weight = 0.0
        self._segment = np.zeros((num_copies, 0))  # scores of the segment so far
        self._num_seen = 0
        self._opened_at, self._pause = 0, _FIRST_PAUSE
        self._led_before, self._led_since, self._dropped_at = 0, 0, 0
        self._usual, self._num_watched = 0.0, 0
        self._spread = 1.0  # of the squares of segments above the usual, in standard errors
        self._worse, self._has_changed = 0.0, False

    def see(self, scores_KN: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        num = scores_KN.shape[1]
        self._segment = np.concatenate([self._segment, scores_KN], axis=1)
        self._num_seen += num
        size = self._segment.shape[1]
        powers = KEPT ** np.arange(size + 1)
        # Sums before each record from the start of the segment on, so that cuts within it change no bit.
        sums = np.cumsum(np.where(self.running[:, None], self._segment, 0.0) / powers[1:], axis=1)
        before = powers * np.concatenate([self._sums[:, None], self._sums[:, None] + sums], axis=1)[:, : size + 1]
        before[~self.running] = np.inf
        weights = self._weight * powers + (1 - powers) / (1 - KEPT)
        leaders = self._follow(before[:, size - num :], weights[size - num :])
        self.leader = int(leaders[-1])
        return leaders

    def close(self) -> list[int]:
        """Ends a segment. Gives the copies that are stopped: they would not have led, as sure as can be told.

        Where one has led for long, those that are no better are stopped too, the worst first.
        """
        scores_KS = np.where(self.running[:, None], self._segment, 0.0)
        size = scores_KS.shape[1]
        if not size:
            return []
        self._watch(scores_KS[self.leader])
        powers_S = KEPT ** np.arange(size - 1, -1, -1.0)
        kept = KEPT**size
        self._sums = kept * self._sums + scores_KS @ powers_S
        self._products = kept * self._products + (scores_KS * powers_S) @ scores_KS.T
        self._weight = kept * self._weight + powers_S.sum()
        self._squared_weight = kept**2 * self._squared_weight + (powers_S**2).sum()
        self._segment = np.zeros((len(self.running), 0))
        stopped = [number for number in np.flatnonzero(self.running).tolist() if self._is_beaten(number)]
        self.running[stopped] = False
        if not self.running[self.leader]:  # beaten by less than what makes another copy lead: scores are near 0
            self.leader = int(np.where(self.running, self._sums, np.inf).argmin())
        return stopped + self._settled()

    def is_lost(self) -> bool:
        scores = self._segment[self.leader]
        if self._weight < _ENOUGH / 2 or not len(scores):
            return False
        mean = self._sums[self.leader] / self._weight
        variance = max(self._products[self.leader, self.leader] / self._weight - mean**2, 1e-12)
        now = scores.mean()
        return bool(now > _LOST * mean and now - mean > _LOST_SURE * np.sqrt(variance / len(scores)))

    def has_changed(self) -> bool:
        return self._has_changed

    def is_time_to_reopen(self) -> bool:
        """Whether those that were stopped should have another chance: more and more seldom while nothing happens."""
        return not (self.running | self._is_spare).all() and self._num_seen - self._opened_at >= self._pause + _ENOUGH

    def reopen(self, *, changed: bool = False) -> list[int]:
        """Lets all copies run on from where the leader is. Gives those that were stopped.

        ``changed`` is for a world that is known to have changed: what was learned about the copies counts less still.
        """
        reopened = np.flatnonzero(~self.running & ~self._is_spare).tolist()
        self._pause = _FIRST_PAUSE if changed else 2 * self._pause
        if changed:
            self._worse, self._num_watched, self._has_changed = 0.0, 0, False
        self._opened_at = self._num_seen
        self._equal_leader(reopened)
        self._sums *= _KEPT_AT_REOPENING
        self._products *= _KEPT_AT_REOPENING
        self._weight *= _KEPT_AT_REOPENING
        self._squared_weight *= _KEPT_AT_REOPENING**2
        self.running[~self._is_spare] = True
        return reopened

    def restart(self, number: int) -> None:
        self._equal_leader([number])
        super().restart(number)

    def mean_of_leader(self) -> float:
        """The leader's discounted mean score; 0 before there is one."""
        return float(self._sums[self.leader] / self._weight) if self._weight else 0.0

    def _watch(self, scores_S: npt.NDArray[np.float64]) -> None:
        """Compares a segment of the leader with what is usual, by a CUSUM test (Page, Biometrika 41, 1954).

        Where neighbours in time are alike, means of segments vary more than their records say, and count less.
        """
        now, error = float(scores_S.mean()), 0.0
        if self._num_watched >= _WATCHED and now > self._usual and self._weight:
            mean = self._sums[self.leader] / self._weight
            variance = max(self._products[self.leader, self.leader] / self._weight - mean**2, 1e-12)
            error = float((now - self._usual) / np.sqrt(variance / len(scores_S)))
            self._spread += (1 - _KEPT_USUAL) * (min(error**2, 9 * self._spread) - self._spread)
        self._worse = max(0.0, self._worse + error / max(self._spread, 1.0) ** 0.5 - _SLACK)
        self._usual += (now - self._usual) * max(1 / (self._num_watched + 1), 1 - _KEPT_USUAL)
        self._num_watched += 1
        self._has_changed = self._worse > _ALARM

    def _equal_leader(self, numbers: list[int]) -> None:
        self._sums[numbers] = self._sums[self.leader]
        for number in numbers:
            self._products[number] = self._products[self.leader]
            self._products[:, number] = self._products[:, self.leader]

    def _settled(self) -> list[int]:
        """The worst of those that run beside a leader of long standing."""
        if self.leader != self._led_before:
            self._led_before, self._led_since = self.leader, self._num_seen
        others = [number for number in np.flatnonzero(self.running).tolist() if number != self.leader]
        is_settled = self._num_seen - max(self._led_since, self._opened_at) >= _SETTLED
        if not others or not is_settled or self._num_seen - self._dropped_at < _ONE_BY_ONE:
            return []
        self._dropped_at = self._num_seen
        worst = max(others, key=lambda number: float(self._sums[number]))
        self.running[worst] = False
        return [worst]

    def _follow(self, sums_KN: npt.NDArray[np.float64], weights_N: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Who leads at each of these sums: whoever led before them, until another one is ahead by enough."""
        best_N = sums_KN.min(axis=0)
        leaders = np.empty(len(best_N), np.intp)
        leader, first = self.leader, 0
        while True:
            sums_N = sums_KN[leader, first:]
            is_behind = sums_N - best_N[first:] > _AHEAD * sums_N / np.maximum(weights_N[first:], 1e-9)
            last = first + int(is_behind.argmax()) if is_behind.any() else len(best_N)
            leaders[first:last] = leader
            if last == len(best_N):
                return leaders
            leader, first = int(sums_KN[:, last].argmin()), last

    def _is_beaten(self, number: int) -> bool:
        """Whether a copy is worse than the leader by more than chance can explain, in paired differences."""
        leader = int(np.where(self.running, self._sums, np.inf).argmin())
        num = self._weight**2 / self._squared_weight
        if number == leader or num < _ENOUGH or self._num_seen - self._opened_at < _ENOUGH:
            return False
        mean = (self._sums[number] - self._sums[leader]) / self._weight
        pairs = self._products[number, number] + self._products[leader, leader] - 2 * self._products[number, leader]
        variance = max(pairs / self._weight - mean**2, 1e-12)
        return bool(mean > _SURE * np.sqrt(variance / num))
