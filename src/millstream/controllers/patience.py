"""When a ``fit`` has learned what it can: validation stops improving, the rate falls, and at last training ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from millstream.contracts import State

__all__ = ["Patience", "score_of"]

_WAIT = 2  # epochs without progress, before the rate falls
_WAIT_AFTER_A_FALL = 1
_FALLS = 2
_PROGRESS, _LEAST_PROGRESS = 0.01, 0.001  # of the best score and of the first one, so that an epoch counts
_GOOD_ENOUGH = 1e-3  # a score of classes that is as good as any better one, as losses fall for ever where all is right
_SHARE_OF_LOSS = 0.1  # of the score of a class; the rest is whether it was right


class Patience:
    """Told the score of each epoch, lower is better; says what follows.

    >>> patience = Patience()
    >>> [patience.after_epoch(score) for score in (1.0, 0.5, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5)]
    ['better', 'better', 'on', 'fall', 'fall', 'stop', 'stop', 'stop']
    """

    def __init__(self, *, can_fall: bool = True) -> None:
        self._can_fall = can_fall
        self.best = math.inf
        self._first = self._marked = math.inf  # the score that the next progress is counted from
        self._waited = self._falls = 0

    def after_epoch(self, score: float) -> Literal["better", "on", "fall", "stop"]:
        better = score < self.best
        self.best = min(self.best, score)
        least = max(_PROGRESS * self._marked, _LEAST_PROGRESS * self._first) if math.isfinite(self._marked) else 0.0
        if score < self._marked - least:
            self._first = score if math.isinf(self._first) else self._first
            self._marked, self._waited = score, 0
        else:
            self._waited += 1
        if self._waited < (_WAIT_AFTER_A_FALL if self._falls else _WAIT):
            return "better" if better else "on"
        self._waited = 0
        self._falls += 1
        return "stop" if self._falls > _FALLS or not self._can_fall else "fall"

    def state_dict(self) -> State:
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: State) -> None:
        for name in vars(self):
            setattr(self, name, state[name.lstrip("_")])


def score_of(report: Mapping[str, float]) -> float:
    """How bad a report is: mistakes, and a little of the loss, where there are classes; else the loss."""
    loss = report.get("loss", math.inf)
    loss = loss if math.isfinite(loss) else math.inf
    if "accuracy" not in report:
        return loss
    return max(_GOOD_ENOUGH, 1 - report["accuracy"] + _SHARE_OF_LOSS * loss)
