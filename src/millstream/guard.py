"""Stops a run when nothing it is given can be learned: too many records in a row that are not finite."""

from __future__ import annotations

import numpy as np

from millstream.contracts import State
from millstream.errors import DivergenceError, SettingError
from millstream.learner import Scored

__all__ = ["SkipGuard"]


class SkipGuard:
    """Counts records that were skipped in a row, across chunks."""

    def __init__(self, max_skips: int) -> None:
        if max_skips < 1:
            raise SettingError(got=f"max_skips={max_skips}", wanted="1 or more", do="leave it at 100")
        self._max_skips = max_skips
        self._in_a_row = 0

    def watch(self, scored: Scored | None) -> None:
        if scored is None or not scored.num_learned:
            return
        trailing = _trailing(scored.skipped, scored.num_learned)
        self._in_a_row = trailing + (self._in_a_row if trailing == scored.num_learned else 0)

    def check(self, learning_rate: float) -> None:
        """Raises ``DivergenceError`` once the limit is reached. No skipped record has touched a weight."""
        if self._in_a_row >= self._max_skips:
            raise DivergenceError(
                got=f"{self._in_a_row} records in a row whose loss or gradient is not finite",
                wanted=f"fewer than {self._max_skips}",
                do=f"lower the learning rate (now {learning_rate:g}) or bound the gradient (--clip-norm 1)",
            )

    def state_dict(self) -> State:
        return {"version": 1, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: State) -> None:
        self._in_a_row = state["in_a_row"]


def _trailing(skipped: tuple[int, ...], num_learned: int) -> int:
    """How many of the last records were skipped without a gap."""
    if not skipped or skipped[-1] != num_learned - 1:
        return 0
    breaks = np.flatnonzero(np.diff(skipped) != 1)
    return len(skipped) if not len(breaks) else len(skipped) - 1 - int(breaks[-1])
