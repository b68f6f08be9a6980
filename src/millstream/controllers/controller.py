"""The controller of one phase: told about each step and each epoch, it says what changes next, and why.

It changes rates, and weights where it goes back to the best ones. What it decides is a function of what it was told
and of its state, so that a run that is resumed decides the same.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from millstream.contracts import Chunk, Event, State
from millstream.controllers import schedules
from millstream.controllers.batches import BatchSize, most_useful, rate_factor
from millstream.controllers.memory import largest_batch
from millstream.controllers.noise import NoiseScale
from millstream.controllers.patience import Patience, score_of
from millstream.controllers.plan import Plan
from millstream.engines import RaceEngine
from millstream.engines.pieces import find
from millstream.engines.rule import load_but_rates
from millstream.errors import SettingError
from millstream.learner import Learner, Scored
from millstream.runs import Run

__all__ = ["Controller"]

_DIVISOR = 5.0  # of the rate, when validation stops improving


class Controller:
    """Batch size, noise scale, falling rate and end of a phase, as its ``plan`` has them.

    ``is_free`` says whether rates are the controller's to change: they are not where a scheduler does so.
    """

    def __init__(self, plan: Plan, learner: Learner, num_records: int | None, *, is_free: bool = True) -> None:
        self.plan, self._learner = plan, learner
        self._is_free = is_free and not plan.has_schedule
        self.noise = NoiseScale()
        self._batch = BatchSize(plan.first_size(num_records), most_useful(num_records))
        self._patience = Patience(can_fall=self._is_free) if plan.epochs == "auto" else None
        self._best: State | None = None
        self._loss_sum, self._num_losses = 0.0, 0  # of the epoch
        self._is_bounded = False  # by memory
        self._events: list[Event] = []
        if plan.has_schedule:
            self._schedule(num_records, is_free)

    @property
    def batch_size(self) -> int:
        """Records of an update, from here on."""
        return self._batch.value

    @property
    def _race(self) -> RaceEngine | None:
        """Rates that race, whatever is around them."""
        race: RaceEngine | None = find(self._learner.engine, RaceEngine)
        return race

    def begin(self, kind: Literal["fit", "learn"]) -> None:
        """A new phase begins; races line up."""
        if self._race is not None:
            self._race.begin(kind)

    def end(self) -> None:
        """Another phase begins: the rates are no longer those of this one's schedule."""
        if self.plan.has_schedule:
            rule = self._learner.rule
            rule.scheduler = None
            schedules.end(rule.optimizer)

    def look_at(self, chunk: Chunk) -> None:
        """Bounds the batch size by the memory that records like these take; once."""
        if self.plan.grows and not self._is_bounded:
            self._is_bounded = True
            self._batch.most = largest_batch(self._learner.engine.active, chunk, self._batch.most)

    def obey(self, run: Run | None, consumed: int, position: int) -> None:
        """Does what people want from here on, or says why it cannot be done."""
        for wish in () if run is None else run.decisions.due(consumed):
            self._set_rate(wish["learning_rate"], position)

    def after_chunk(self, scored: Scored, position: int) -> tuple[int, float | None]:
        """Takes up what a chunk came to; gives the batch size from here on, and the noise scale."""
        self._events += scored.events
        self.noise.see(scored.norms)
        if self._patience is not None:
            self._loss_sum += float(scored.losses.double().sum())
            self._num_losses += len(scored.losses)
        if self.plan.grows and (self._race is None or self._race.is_settled):
            self._grow(position)
        return self.batch_size, self.noise.shown

    def after_epoch(
        self, position: int, report: dict[str, float] | None, *, is_last: bool
    ) -> tuple[bool, dict[str, float] | None]:
        """Whether the phase ends, and the validation of the weights that hold now. May change rates and weights."""
        if self._race is not None:
            self._events += self._race.end_epoch(position)
        if self._patience is None:
            return is_last, report
        score = score_of(report) if report is not None else self._loss_sum / max(1, self._num_losses)
        self._loss_sum, self._num_losses = 0.0, 0
        said = self._patience.after_epoch(score)
        if self._patience.best == score and said != "on":
            self._best = self._remembered(report)
        ends = said == "stop" or is_last
        if said == "fall" or ends:
            report = self._put_back() if self._best is not None else report
            if said == "fall":
                self._scale_rates(1 / _DIVISOR)
                self._tell(position, "rate falls", "validation stopped improving")
            elif said == "stop":
                self._tell(position, "training ends", "validation stopped improving")
        return ends, report

    def note_events(self, run: Run | None) -> None:
        """Writes down what was decided since the last time."""
        events, self._events = tuple(self._events), []
        if run is not None:
            run.note(events)

    def state_dict(self) -> State:
        return {
            "noise": self.noise.state_dict(),
            "batch": self._batch.state_dict(),
            "patience": None if self._patience is None else self._patience.state_dict(),
            "best": self._best,
            "losses": [self._loss_sum, self._num_losses],
            "is_bounded": self._is_bounded,
        }

    def load_state_dict(self, state: State) -> None:
        self.noise.load_state_dict(state["noise"])
        self._batch.load_state_dict(state["batch"])
        if self._patience is not None:
            self._patience.load_state_dict(state["patience"])
        self._best, self._is_bounded = state["best"], state["is_bounded"]
        self._loss_sum, self._num_losses = state["losses"]

    def _set_rate(self, rate: float, position: int) -> None:
        now = self._learner.engine.learning_rate
        if self._race is not None or not self._is_free:
            whose = "a race of rates" if self._race is not None else "a schedule"
            self._tell(position, "change refused", f"to a rate of {rate:g}: rates are those of {whose}")
            return
        for group in self._learner.engine.active.optimizer.param_groups:
            group["lr"] = rate if now == 0 else group["lr"] * (rate / now)
        self._tell(position, "rate set by hand", f"{now:.3g} to {rate:.3g}")

    def _grow(self, position: int) -> None:
        before, engine = self.batch_size, self._learner.engine
        if self._batch.next(self.noise.value, self.noise.num_measured) != before:
            if self._is_free:
                self._scale_rates(rate_factor(engine.active.optimizer, self.batch_size / before))
            self._tell(position, "batch grows", f"{before} to {self.batch_size}, noise scale {self.noise.value:.0f}")

    def _schedule(self, num_records: int | None, is_free: bool) -> None:
        rule = self._learner.rule
        if not is_free or self._race is not None:
            got = "a schedule beside " + ("rates that race" if is_free else "a scheduler")
            raise SettingError(got=got, wanted="one of the two", do="give one optimizer and rate (--lr)")
        if num_records is None:
            raise SettingError(
                got="a schedule for records that nobody has counted",
                wanted="a source that knows how many it has",
                do="import it once with millstream.sources.cached(source)",
            )
        num_updates = self.plan.most_epochs * -(-num_records // self.batch_size)
        rule.scheduler = schedules.make(rule.optimizer, self.plan, num_updates)

    def _remembered(self, report: dict[str, float] | None) -> State:
        rule = self._learner.engine.active
        model = {name: value.detach().clone() for name, value in rule.model.state_dict().items()}
        return {"model": model, "optimizer": copy.deepcopy(rule.optimizer.state_dict()), "report": report}

    def _put_back(self) -> dict[str, float] | None:
        """The best weights, and the state that the optimizer had at them, at the rates of now."""
        assert self._best is not None
        rule: Any = self._learner.engine.active
        rule.model.load_state_dict(self._best["model"])
        load_but_rates(rule.optimizer, self._best["optimizer"])
        report: dict[str, float] | None = self._best["report"]
        return report

    def _scale_rates(self, factor: float) -> None:
        for group in self._learner.engine.active.optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def _tell(self, position: int, what: str, detail: str) -> None:
        self._events.append(Event(position, what, detail, self._learner.engine.learning_rate))
