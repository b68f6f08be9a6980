"""The arms of a comparison: one strategy, one rate or none, one seed, run over the data and measured on the way.

An arm runs in a process of its own and gives back plain JSON. It knows trainers; it does not know the other arms.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream import evaluation, sources
from millstream.assembly import Data, Recipe, build, open_data
from millstream.contracts import Loss, Source
from millstream.controllers import Count
from millstream.delay import parse_delay
from millstream.errors import DivergenceError, SettingError
from millstream.metrics import Metrics
from millstream.phase import Step
from millstream.trainer import Trainer

__all__ = ["Arm", "known_before", "open_once", "run"]

_MOST_POINTS = 400  # of a course

Kind = Literal["batch", "online", "micro_batch", "retrain", "frozen"]


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """What one process is to do. ``data`` are the arguments of ``open_data``."""

    name: str
    kind: Kind
    data: tuple[tuple[str, Any], ...]
    recipe: Recipe
    update_size: Count
    epochs: int = 1
    num_records: int = 0  # the first so many in (shuffled) order; 0 is all
    forward: bool = False  # through time, scored before learning; else shuffled, scored on test records
    first_scored: int = 0  # forward: records before this one are for learning only
    delay: str = "0"
    retrain_every: int = 0
    num_points: int = 16  # of the curve
    validate: int = 0  # score on this many training records that the arm does not learn, in place of the test records

    @property
    def sets_rate(self) -> bool:
        """Whether no rate is given, so that several race."""
        return self.recipe.learning_rate is None


@functools.lru_cache(maxsize=2)
def open_once(data: tuple[tuple[str, Any], ...]) -> Data:
    """The data of an arm; opened once a process. Records can be fetched by number, and are not parsed every time."""
    opened = open_data(**dict(data))
    train = opened.train if opened.train.can_jump and opened.train.num_records else sources.cached(opened.train)
    return dataclasses.replace(opened, train=train, test=None if opened.test is None else sources.cached(opened.test))


def run(arm: Arm) -> dict[str, Any]:
    """Runs an arm on one thread and gives its results as JSON."""
    torch.set_num_threads(1)
    data = open_once(arm.data)
    result = _forward(arm, data) if arm.forward else _shuffled(arm, data)
    facts = {"name": arm.name, "kind": arm.kind, "seed": arm.recipe.seed, "learning_rate": arm.recipe.learning_rate}
    result = {**facts, "sets_rate": arm.sets_rate, "update_size": arm.update_size, "delay": arm.delay, **result}
    result["records_per_second"] = result["records"] / result["seconds"] if result["seconds"] else 0.0
    return result


def _shuffled(arm: Arm, data: Data) -> dict[str, Any]:
    """Batch or online over a finite set in a shuffled order, scored on records that are not learned."""
    train, test = _parts(arm, data)
    trainer = build(arm.recipe)
    total = arm.epochs * (train.num_records or 1)
    due = np.unique(np.geomspace(max(1, total // 200), total, arm.num_points).astype(int)).tolist()
    curve: list[dict[str, Any]] = []
    online, course = arm.kind == "online", _Course()
    steps = trainer.steps(
        train, kind="learn" if online else "fit", update_size=arm.update_size, epochs=arm.epochs, shuffle=True
    )
    diverged = False
    try:
        for step in steps:
            course.see(step, trainer)
            if due and step.records >= due[0]:
                due = [point for point in due if point > step.records]
                curve.append(_point(trainer, test, online))
    except DivergenceError:
        diverged = True
    if not curve or curve[-1]["records"] != trainer.summary().records:
        curve.append(_point(trainer, test, online))
    found = {**_counts(trainer), "diverged": diverged, "curve": curve, **_last(curve[-1])}
    return {**found, **course.result(trainer)} if arm.sets_rate else found


def _parts(arm: Arm, data: Data) -> tuple[Source, Source]:
    """The records to learn and those to score on, drawn by the seed: every arm of a seed has the same ones."""
    num = data.train.num_records or 0
    if not arm.validate:
        if data.test is None:
            raise SettingError(
                got=f"{data.name} without test records", wanted="some to compare on", do="add --test 0.2 or --test FILE"
            )
        train = data.train
        if 0 < arm.num_records < num:
            numbers = np.random.default_rng([arm.recipe.seed, 0x7261]).permutation(num)[: arm.num_records]
            train = sources.Subset(data.train, np.sort(numbers))
        return train, data.test
    numbers = np.random.default_rng([arm.recipe.seed, 0x7264]).permutation(num)
    held, rest = numbers[: min(arm.validate, num // 2)], numbers[min(arm.validate, num // 2) :]
    learned = rest[: arm.num_records] if arm.num_records else rest
    return sources.Subset(data.train, np.sort(learned)), sources.Subset(data.train, np.sort(held))


def _point(trainer: Any, test: Source, online: bool) -> dict[str, Any]:
    summary = trainer.summary()
    found = evaluation.evaluate(trainer.learner, test)
    point = {"records": summary.records, "updates": summary.updates, "seconds": summary.seconds}
    for name in ("accuracy", "mae"):
        if name in found:
            point[f"test_{name}"] = found[name]
    point["test_loss"] = found.get("log_loss", found.get("loss"))
    if online:
        for name in ("accuracy", "mae"):
            if name in summary.metrics:
                point[f"prequential_{name}"] = summary.metrics[name]
                point[f"window_{name}"] = summary.metrics[f"window_{name}"]
    return point


def _forward(arm: Arm, data: Data) -> dict[str, Any]:
    """One pass through time. Every arm is scored on the same records, each predicted before its label is known."""
    source, num = data.train, arm.num_records or data.train.num_records or 0
    if num < (data.train.num_records or 0):
        source = sources.Subset(source, np.arange(num))
    recorder = _Recorder(arm, num)
    if arm.kind in ("online", "micro_batch"):
        trainer, course = build(arm.recipe), _Course()
        diverged = False
        try:
            for step in trainer.steps(source, update_size=arm.update_size, label_delay=arm.delay):
                course.see(step, trainer)
                if step.scored is not None:
                    scored = step.scored
                    summary = trainer.summary()
                    loss = trainer.learner.rule.loss
                    recorder.add(
                        scored.outputs,
                        scored.targets,
                        scored.losses,
                        scored.known,
                        summary.updates,
                        summary.seconds,
                        loss,
                    )
        except DivergenceError:
            diverged = True
        found = {**_counts(trainer), "diverged": diverged, **recorder.result()}
        return {**found, **course.result(trainer)} if arm.sets_rate else found
    return _retrained(arm, source, num, recorder)


def _retrained(arm: Arm, source: Source, num: int, recorder: _Recorder) -> dict[str, Any]:
    """Trained in batches on what is known, frozen until the next training (or for good)."""
    started, updates, trained, engine = time.perf_counter(), 0, 0, ""
    every = arm.retrain_every if arm.kind == "retrain" else num
    for first in range(arm.first_scored, num, every):
        trainer = build(arm.recipe)
        known = known_before(source, first, arm.delay, trainer)
        if known:
            summary = trainer.fit(
                sources.Subset(source, np.arange(known)), batch_size=arm.update_size, epochs=arm.epochs
            )
            updates, trained, engine = updates + summary.updates, trained + summary.records, summary.engine
        block = sources.Subset(source, np.arange(first, min(first + every, num)))
        for chunk in block.read(size=1024):
            chunk = trainer.learner.prepare(chunk, learn=False)
            outputs, losses = trainer.learner.predict(chunk)
            assert chunk.targets is not None and losses is not None
            seconds = time.perf_counter() - started
            recorder.add(outputs, chunk.targets, losses, None, updates, seconds, trainer.learner.rule.loss)
    facts = {"records": trained, "updates": updates, "seconds": time.perf_counter() - started, "engine": engine}
    return {**facts, "diverged": False, **recorder.result()}


class _Course:
    """Rate, size of an update and decisions of a trainer that sets them itself, over its records."""

    def __init__(self) -> None:
        self._points: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    def see(self, step: Step, trainer: Trainer) -> None:
        before = self._points[-1] if self._points else None
        if step.scored is not None:
            self._events += [dataclasses.asdict(event) for event in step.scored.events]
        if before is not None and before["update_size"] != step.update_size:
            what = {"what": "batch grows", "detail": f"{before['update_size']} to {step.update_size}"}
            self._events.append({"position": step.records, **what, "learning_rate": step.learning_rate})
        point = {"records": step.records, "epoch": step.epoch, "optimizer": trainer.learner.engine.optimizer}
        sizes = {"update_size": step.update_size, "noise_scale": step.noise_scale}
        self._points.append({**point, "learning_rate": step.learning_rate, **sizes})
        if len(self._points) > _MOST_POINTS:
            self._points = self._points[1::2]

    def result(self, trainer: Trainer) -> dict[str, Any]:
        summary = trainer.summary()
        last = {"learning_rate": summary.learning_rate, "update_size": summary.update_size}
        return {**last, "optimizer": summary.optimizer, "course": self._points, "events": self._events}


class _Recorder:
    """Scores what is predicted from ``first_scored`` on, and keeps a curve of it."""

    def __init__(self, arm: Arm, num: int) -> None:
        self._skip = arm.first_scored
        self._seen = 0 if arm.kind in ("online", "micro_batch") else arm.first_scored
        self._due = np.linspace(arm.first_scored, num, 1 + 3 * arm.num_points)[1:].astype(int).tolist()
        self._metrics: Metrics | None = None
        self._window = max(200, (num - arm.first_scored) // 40)
        self._curve: list[dict[str, Any]] = []

    def add(
        self,
        outputs: Tensor,
        targets: Tensor,
        losses: Tensor,
        known: npt.NDArray[np.float64] | None,
        updates: int,
        seconds: float,
        loss: Loss,
    ) -> None:
        cut = max(0, self._skip - self._seen)
        self._seen += len(targets)
        if cut >= len(targets):
            return
        if self._metrics is None:
            self._metrics = Metrics(**evaluation.metrics_for(loss, outputs, self._window))
        rest = None if known is None else known[cut:]
        self._metrics.update(outputs[cut:], targets[cut:], losses[cut:], rest)
        if self._due and self._seen >= self._due[0]:
            self._due = [point for point in self._due if point > self._seen]
            report = self._metrics.report()
            point: dict[str, Any] = {"records": self._seen, "updates": updates, "seconds": seconds}
            for name in ("accuracy", "mae"):
                if name in report:
                    point[f"prequential_{name}"], point[f"window_{name}"] = report[name], report[f"window_{name}"]
            point["prequential_loss"] = report.get("log_loss", report.get("loss"))
            self._curve.append(point)

    def result(self) -> dict[str, Any]:
        report = {} if self._metrics is None else self._metrics.report()
        found: dict[str, Any] = {f"prequential_{name}": report[name] for name in ("accuracy", "mae") if name in report}
        found["prequential_loss"] = report.get("log_loss", report.get("loss"))
        names = {"no_change": "no_change_", "majority": "majority_", "mean": "mean_"}
        found["baselines"] = {
            name: report[prefix + score]
            for name, prefix in names.items()
            for score in ("accuracy", "mae")
            if prefix + score in report
        }
        return {**found, "curve": self._curve}


def known_before(source: Source, first: int, delay: str, trainer: Any) -> int:
    """How many of the first records have a label that is known before record ``first`` is predicted."""
    parsed = parse_delay(delay)
    if parsed.records is not None:
        return max(0, first - parsed.records)
    horizon = trainer.learner.prepare(source.take(np.array([first])), learn=False).times[0]
    known = 0
    for chunk in sources.Subset(source, np.arange(first)).read(size=65_536):
        chunk = trainer.learner.prepare(chunk, learn=False)
        arrives = chunk.times + parsed.seconds if parsed.seconds is not None else chunk.label_times
        late = np.flatnonzero(~(arrives < horizon))
        if len(late):  # the first record whose label is still on its way ends the training set
            return known + int(late[0])
        known += len(chunk)
    return known


def _counts(trainer: Any) -> dict[str, Any]:
    summary = trainer.summary()
    return {
        "records": summary.records,
        "updates": summary.updates,
        "seconds": summary.seconds,
        "engine": summary.engine,
        "skipped": summary.skipped,
    }


def _last(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name.startswith(("test_", "prequential_"))}
