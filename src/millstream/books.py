"""What is kept of each chunk after it was learned: metrics, skips in a row, outcomes handed on, weights published.

All of it is told of a chunk at once, and its state is saved as one.
"""

from __future__ import annotations

from typing import Any

from millstream import evaluation
from millstream.contracts import State
from millstream.guard import SkipGuard
from millstream.learner import Learner, Scored
from millstream.metrics import Metrics
from millstream.phase import Phase

__all__ = ["Books"]


class Books:
    """Those of one trainer. ``metrics`` are of the phase: None before its first record was scored."""

    def __init__(self, learner: Learner, *, window: int, max_skips: int) -> None:
        self.metrics: Metrics | None = None
        self._learner, self._window = learner, window
        self._guard = SkipGuard(max_skips)

    def begin(self) -> None:
        """A new phase begins."""
        self.metrics = None

    def take(
        self, scored: Scored | None, phase: Phase, num_records: int, span: tuple[int, int], most: int
    ) -> list[dict[str, Any]]:
        """Takes up what a chunk of ``num_records`` came to; None where every record of it was refused.

        Gives the lines of metrics that are due in it: see ``Phase.measure``.
        """
        if scored is None:
            return []
        self._guard.watch(scored)
        if self.metrics is None and len(scored.losses):
            settings = evaluation.metrics_for(self._learner.rule.loss, scored.outputs, self._window)
            self.metrics = Metrics(**settings)
        if self.metrics is None:
            return []
        return phase.measure(scored, self.metrics, self._learner.engine, num_records, span, most)

    def check(self) -> None:
        """Raises ``DivergenceError`` once too many records in a row could not be learned."""
        self._guard.check(self._learner.engine.learning_rate)

    def report(self) -> dict[str, float]:
        return {} if self.metrics is None else self.metrics.report()

    def state_dict(self) -> State:
        return {
            "guard": self._guard.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self._guard.load_state_dict(state["guard"])
        self.metrics = None
        if state["metrics"] is not None:
            self.metrics = Metrics(**state["metrics"]["settings"])
            self.metrics.load_state_dict(state["metrics"])
