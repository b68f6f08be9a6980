"""What is kept of each chunk after it was learned: metrics, skips in a row, outcomes handed on, weights published.

All of it is told of a chunk at once, and its state is saved as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millstream import evaluation, sinks
from millstream.contracts import Chunk, Sink, State
from millstream.errors import CheckpointError
from millstream.guard import SkipGuard
from millstream.learner import Learner, Scored
from millstream.metrics import Metrics
from millstream.phase import Phase
from millstream.publishing import Publisher
from millstream.runs import Run

__all__ = ["Books"]


class Books:
    """Those of one trainer. ``metrics`` are of the phase: None before its first record was scored.

    ``outcomes`` is a sink, or the name of one, that each outcome of ``learn`` goes to; ``publish`` publishes weights.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        window: int,
        max_skips: int,
        report_records: int,
        outcomes: Sink | str | Path | None = None,
        publish: Publisher | str | Path | None = None,
    ) -> None:
        self.metrics: Metrics | None = None
        self._learner, self._window = learner, window
        self._guard, self._report_records = SkipGuard(max_skips), report_records
        self._sink = sinks.open_sink(str(outcomes)) if isinstance(outcomes, str | Path) else outcomes
        self._publisher = Publisher(publish) if isinstance(publish, str | Path) else publish
        self._sunk: State | None = None  # what the sink said when it was last asked to commit

    def begin(self) -> None:
        """A new phase begins."""
        self.metrics = None

    def take(
        self,
        scored: Scored | None,
        phase: Phase,
        chunk: Chunk,
        consumed: int,
        span: tuple[int, int],
        run: Run | None,
    ) -> None:
        """Takes up what a chunk came to; None where every record of it was refused.

        ``consumed`` places were read before it; ``span`` are its position and how many positions it learns. Lines of
        metrics that are due go to ``run``.
        """
        if scored is None:
            return
        self._guard.watch(scored)
        if self._sink is not None and phase.kind == "learn":
            self._hand_on(self._sink, scored, chunk, chunk.positions() - chunk.start + consumed)
        if self.metrics is None and len(scored.losses):
            settings = evaluation.metrics_for(self._learner.rule.loss, scored.outputs, self._window)
            self.metrics = Metrics(**settings)
        if self.metrics is None:
            return
        most = 0 if run is None else self._report_records
        lines = phase.measure(scored, self.metrics, self._learner.engine, len(chunk), span, most)
        if run is not None:
            run.report(*lines)

    def publish(self, position: int, phase: Phase, spec: Mapping[str, Any] | None, run: Run | None) -> None:
        """Publishes the weights that answer, if it is time and they are good; tells when that stops or goes on."""
        if self._publisher is None or phase.kind == "fit":
            return
        events = self._publisher.after_chunk(self._learner, self.metrics, position, phase=phase.number, spec=spec)
        if run is not None:
            run.note(events)

    def check(self) -> None:
        """Raises ``DivergenceError`` once too many records in a row could not be learned."""
        self._guard.check(self._learner.engine.learning_rate)

    def report(self) -> dict[str, float]:
        return {} if self.metrics is None else self.metrics.report()

    def sync(self) -> None:
        """Makes durable what was handed on, before a checkpoint speaks of it."""
        if self._sink is not None:
            self._sunk = self._sink.commit()

    def synced(self, state: Callable[[], State]) -> Callable[[], State]:
        """``state``, once ``sync`` was called."""

        def take() -> State:
            self.sync()
            return state()

        return take

    def close(self) -> None:
        """Gives back what it holds."""
        if self._sink is not None:
            self._sink.close()

    def state_dict(self) -> State:
        return {
            "guard": self._guard.state_dict(),
            "metrics": None if self.metrics is None else self.metrics.state_dict(),
            "outcomes": self._sunk,
            "publisher": None if self._publisher is None else self._publisher.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self._guard.load_state_dict(state["guard"])
        self.metrics = None
        if state["metrics"] is not None:
            self.metrics = Metrics(**state["metrics"]["settings"])
            self.metrics.load_state_dict(state["metrics"])
        if self._sink is None and state["outcomes"] is not None:
            raise CheckpointError(
                got="a run whose outcomes went somewhere",
                wanted="the same sink",
                do="name it as before (--outcomes): outcomes would be missing there",
            )
        if self._sink is not None:
            self._sink.restore(state["outcomes"])
        self._sunk = state["outcomes"]
        if self._publisher is not None and state["publisher"] is not None:
            self._publisher.load_state_dict(state["publisher"])

    def _hand_on(self, sink: Sink, scored: Scored, chunk: Chunk, places: npt.NDArray[np.int64]) -> None:
        """What was predicted; where labels come by themselves, these are rows of their own."""
        loss, features = self._learner.rule.loss, self._learner.features
        names = () if features is None else features.classes
        known: dict[str, Any] = {"targets": scored.targets, "losses": scored.losses}
        how: dict[str, Any] = {"names": names, "log_rate": loss.name == "poisson", "ids": chunk.ids}
        if scored.places is None:
            sink.write(sinks.outcome_rows(places, scored.outputs, loss.task, **known, **how))
            return
        if scored.predicted is not None and len(places):
            sink.write(sinks.outcome_rows(places, scored.predicted, loss.task, **how))
        if len(scored.places):
            later: dict[str, Any] = {"losses": scored.losses, "names": names, "ids": scored.ids}
            sink.write(sinks.label_rows(scored.places, scored.targets, loss.task, **later))
