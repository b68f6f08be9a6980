"""Trials that advance side by side: over one pass of a stream, or as one ``fit`` each.

A population is told how far to go, and gives the score of each trial that still runs, lower being better. It knows
trainers; it does not know who asks, or what is done with the scores.

Shapes: P trials, N records, M questions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from millstream.assembly import Recipe, build
from millstream.contracts import Chunk, Engine, Inputs, Outcome, Questions, Source
from millstream.engines import UpdateRule
from millstream.engines.scores import wrong
from millstream.errors import DivergenceError
from millstream.phase import Step
from millstream.trainer import Trainer

__all__ = ["RUNGS", "BatchPopulation", "Objective", "Population", "SharedEngine", "StreamPopulation", "Trial"]

Objective = Literal["error", "loss"]
RUNGS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # shares of the work after which trials are stopped
_MOST_LOSS = 1e6  # of one record: it must not decide alone


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What one trial is to be made of."""

    recipe: Recipe
    update_size: int


class Population(Protocol):
    """Trials that still run, and how well they do."""

    alive: list[int]  # their places among the P; whoever asks may take some out

    def advance(self, share: float, show: Callable[[float], None]) -> dict[int, float]:
        """Goes on until this share of the work is done, and gives the score of each trial that runs.

        ``show`` is told the share that is done.
        """
        ...


class SharedEngine:
    """An engine that lets several others learn the same chunks, and keeps the score of each.

    It answers with what the first of those that run has answered. Features, late labels and the reading of records are
    the trainer's matter, and are done once for all.
    """

    name = "shared"

    def __init__(self, rule: UpdateRule, members: Sequence[Engine], objective: Objective) -> None:
        self.rule, self._members, self._objective = rule, members, objective
        self.alive = list(range(len(members)))
        self.totals = np.zeros(len(members))
        self.num_scored = 0

    @property
    def learning_rate(self) -> float:
        return self._members[self.alive[0]].learning_rate

    @property
    def active(self) -> UpdateRule:
        return self._members[self.alive[0]].active  # type: ignore[no-any-return]

    @property
    def optimizer(self) -> str:
        return self._members[self.alive[0]].optimizer

    def chunk_size(self, update_size: int) -> int:
        return min(member.chunk_size(update_size) for member in self._members)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        answered = chunk if questions is None else questions.chunk
        assert answered.targets is not None
        first: Outcome | None = None
        for place in self.alive:
            member = self._members[place]
            member.rule.scoring = self.rule.scoring
            outcome = member.learn(chunk, update_size, questions)
            self.totals[place] += _total(outcome, answered.targets, self.rule.loss.task, self._objective)
            first = first or outcome
        assert first is not None
        self.num_scored += len(answered)
        # Records that one trial must skip are no matter of all of them: they count as errors of that trial.
        return dataclasses.replace(first, events=(), skipped=())

    def predict(self, inputs: Inputs) -> Tensor:
        return self._members[self.alive[0]].predict(inputs)


class StreamPopulation:
    """Trials of ``learn``: all of them learn each chunk before the next one is read."""

    def __init__(
        self, trials: Sequence[Trial], source: Source, objective: Objective, label_delay: str | None = None
    ) -> None:
        # It reads, prepares and scores; its own weights are never asked nor changed.
        lead = build(dataclasses.replace(trials[0].recipe, model="linear", optimizer="sgd", learning_rate=1.0))
        members = [build(trial.recipe).learner.engine for trial in trials]
        self._engine = SharedEngine(lead.learner.rule, members, objective)
        lead.learner.engine = self._engine
        self._total = source.num_records or 1
        self._steps = lead.steps(source, update_size=trials[0].update_size, label_delay=label_delay)

    @property
    def alive(self) -> list[int]:
        return self._engine.alive

    @alive.setter
    def alive(self, places: list[int]) -> None:
        self._engine.alive = places

    def advance(self, share: float, show: Callable[[float], None]) -> dict[int, float]:
        goal = math.inf if share >= 1 else share * self._total  # records that are refused are not counted
        for step in self._steps:
            show(min(step.records / self._total, share))
            if step.records >= goal:
                break
        scored = max(1, self._engine.num_scored)
        return {place: float(self._engine.totals[place]) / scored for place in self.alive}


class BatchPopulation:
    """Trials of ``fit``: each advances by itself, and is scored on records that none of them learns."""

    def __init__(
        self, trials: Sequence[Trial], source: Source, validation: Source, objective: Objective, epochs: int
    ) -> None:
        self._objective, self._validation, self._epochs = objective, validation, epochs
        self._total = (source.num_records or 1) * epochs
        self._make = [functools.partial(self._started, trial, source) for trial in trials]
        self._running: dict[int, tuple[Trainer, Iterator[Step]]] = {}
        self.alive = list(range(len(trials)))

    def advance(self, share: float, show: Callable[[float], None]) -> dict[int, float]:
        scores = {}
        goal = math.inf if share >= 1 else share * self._total
        for number, place in enumerate(self.alive):
            if place not in self._running:
                self._running[place] = self._make[place]()
            trainer, steps = self._running[place]
            try:
                for step in steps:
                    done = min(step.records / self._total, share)
                    show((number * share + done) / len(self.alive))
                    if step.records >= goal:
                        break
                scores[place] = self._score(trainer.evaluate(self._validation))
            except DivergenceError:
                scores[place] = math.inf
        self._running = {place: self._running[place] for place in self.alive}
        return scores

    def _started(self, trial: Trial, source: Source) -> tuple[Trainer, Iterator[Step]]:
        trainer = build(trial.recipe)
        how: dict[str, Any] = {"update_size": trial.update_size, "epochs": self._epochs, "shuffle": True}
        return trainer, trainer.steps(source, kind="fit", **how)

    def _score(self, metrics: dict[str, float]) -> float:
        value = 1 - metrics["accuracy"] if self._objective == "error" else metrics["loss"]
        return value if math.isfinite(value) else math.inf


def _total(outcome: Outcome, targets: Tensor, task: str, objective: Objective) -> float:
    """The sum of the errors, or of the losses, of the M or N records that were answered."""
    losses = outcome.losses.double()
    if objective == "loss":
        return float(losses.nan_to_num(nan=_MOST_LOSS).clamp(max=_MOST_LOSS).sum())
    is_wrong = wrong(outcome.outputs, targets, task) > 0
    return float((is_wrong | ~np.isfinite(losses.cpu().numpy())).sum())
