"""``millstream check``: does the fast engine compute the same updates as the reference, for this model and these data?

Copies of the model, its optimizer and its schedule learn the same records, one with each engine, in float64 and in
float32. Beside the difference of the engines stands the difference that rounding makes by itself: between the
reference and the reference with its sums taken in another order. ``lockstep`` runs the copies, this file plans and
judges.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from millstream import engines, sources
from millstream.contracts import Chunk, Engine
from millstream.engines import ReferenceEngine, Updater, UpdateRule, parameter_of
from millstream.engines.failures import OF_TORCH
from millstream.errors import DataError, MillstreamError, ModelError, SettingError
from millstream.learner import Learner
from millstream.studies.findings import Difference, Findings, Part, advice
from millstream.studies.lockstep import Differences, Key, cast, differences, quiet_schedules, twin
from millstream.studies.reordering import ReorderedReference
from millstream.trainer import Trainer

__all__ = ["check"]

Maker: TypeAlias = Callable[[UpdateRule], Engine]

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5}
"""How far apart engines may be in any case, relative to the size of each tensor; else 10 times what reordering does."""

_TIMES_REORDERED = 10.0
_POINTS = (10, 50, 200, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
_NUM_REORDERED, _MOST_REORDERED = {torch.float64: 1, torch.float32: 2}, 8
_COST_REORDERED = 2.5  # of a reordered run, in runs of the reference
_TIMED_SECONDS = 0.3  # for the speed of each engine


def check(
    trainer: Trainer | Updater | UpdateRule,
    source: Any,
    *,
    num_records: int | None = None,
    update_size: int = 1,
    seconds: float = 30.0,
    engine: str | Maker = "fused",
    name: str = "",
) -> Findings:
    """Runs a trainer's model on the data of ``source`` by the reference and by ``engine``, and tells them apart.

    ``trainer`` (or what ``millstream.compile`` gives) is left as it is: copies of its model, optimizer and schedule
    learn, from where they stand. The first ``num_records`` records are learned (2,000 updates of ``update_size`` if
    none are given), fewer if the data end or it would take longer than about ``seconds``. ``engine`` is a name, or a
    function that makes an engine of a rule. The engines are equal if each tensor of weights and optimizer state, and
    the predictions, differ by no more than ``BOUNDS``, or 10 times what another order of sums does; the norm of a
    difference is relative to the largest norm that the tensor had so far. A schedule that steps after an epoch does
    not step here. Raises ``DataError``, ``ModelError`` and ``SettingError``.

    >>> model = torch.nn.Linear(3, 2)
    >>> trainer = Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1))
    >>> found = check(trainer, (torch.randn(60, 3), torch.randint(2, (60,))))
    >>> found.is_equal, found.num_updates
    (True, 60)
    """
    for setting, value in (("update_size", update_size), ("num_records", num_records)):
        if value is not None and value < 1:
            raise SettingError(got=f"{setting}={value}", wanted="a whole number, 1 or more", do="leave it out")
    rule, features = _parts(trainer)
    records = _records(rule, features, source, num_records or _POINTS[4] * update_size)
    study = _Study(rule, records, update_size, seconds, engine)
    try:
        return study.run(name or type(rule.model).__name__)
    except ValueError as error:
        if rule.scheduler is None or "step" not in str(error):
            raise
        raise SettingError(
            got=f"a schedule that ends before the comparison does: {str(error.__cause__ or error).splitlines()[0]}",
            wanted="one that goes on as long as records are compared and timed",
            do="compare with a longer one, or with fewer records: --records, num_records",
        ) from error


def _parts(trainer: Any) -> tuple[UpdateRule, Any]:
    """The rule and the features of what a person gave."""
    if isinstance(trainer, Trainer):
        return trainer.learner.rule, trainer.learner.features
    if isinstance(trainer, Updater):
        return trainer.rule, None
    if isinstance(trainer, UpdateRule):
        return trainer, None
    raise SettingError(
        got=f"{type(trainer).__name__} to be checked",
        wanted="a millstream.Trainer, or what millstream.compile gives",
        do="write millstream.Trainer(model, loss, optimizer)",
    )


def _records(rule: UpdateRule, features: Any, source: Any, num: int) -> Chunk:
    """The first records of the data as tensors, as a trainer would learn them; its features are left as they are."""
    chunk = next(iter(sources.as_source(source).read(size=num)), None)
    if chunk is None or not len(chunk):
        raise DataError(got="no records to check with", wanted="at least one", do="check the name of the data")
    copied = twin(rule, parameter_of(rule.model).dtype)
    learner = Learner(copied, ReferenceEngine(copied), copy.deepcopy(features))
    chunk = learner.prepare(chunk, learn=True)
    targets = chunk.targets
    if targets is None:
        raise DataError(got="records without labels", wanted="a label for each", do="name the label (--target)")
    chunk = dataclasses.replace(chunk, offsets=None, span=-1, start=0, rejected=(), locate=None)
    if not len(chunk):
        raise DataError(got="records that were all refused", wanted="some to check with", do="correct the data")
    if learner.features is not None and learner.features.scales_targets:
        scaled, _, _ = learner.features.scale_targets(targets.cpu(), learn=True)
        chunk.targets = scaled.to(learner.device)
    fitting = cast(chunk, parameter_of(rule.model).dtype)
    learner.check(fitting)
    return dataclasses.replace(chunk, targets=fitting.targets)


class _Study:
    """One rule, the records, and the engine that is to be judged."""

    def __init__(self, rule: UpdateRule, records: Chunk, update_size: int, seconds: float, engine: str | Maker) -> None:
        self._rule, self._records, self._update_size = rule, records, update_size
        self._ends, self._seconds = time.monotonic() + seconds, seconds
        self._declines = engines.explain(rule)
        self._auto = next(name for name, reason in self._declines.items() if not reason)
        if isinstance(engine, str):
            if engine not in self._declines or engine == "reference":
                others = ", ".join(name for name in self._declines if name != "reference")
                raise SettingError(got=f"engine {engine!r} to be checked", wanted=others, do="leave it out")
            self._engine = engine
            self._make: Maker = functools.partial(engines.choose, engine)
            self._reason = self._declines[engine]
        else:
            name = str(getattr(engine, "name", "own"))
            self._engine, self._make = f"own {name}" if name in self._declines else name, engine
            self._reason = self._declines[self._engine] = self._refusal()

    def run(self, name: str) -> Findings:
        findings = Findings(
            name=name,
            num_records=len(self._records),
            update_size=self._update_size,
            num_parameters=sum(p.numel() for p in self._rule.model.parameters()),
            optimizer=type(self._rule.optimizer).__name__,
            loss=self._rule.loss.name,
            engine=self._engine,
            auto=self._auto,
            declines=self._declines,
        )
        if self._reason:
            findings.advice = advice(self._reason)
            findings.records_per_second = self._speeds({"reference": ReferenceEngine})
        else:
            points = self._points()
            findings.num_updates = points[-1]
            for number in (torch.float64, torch.float32):
                self._compare(number, points, findings)
            makers: dict[str, Maker] = {"reference": ReferenceEngine}
            findings.records_per_second = self._speeds(
                makers | ({self._engine: self._make} if findings.differences else {})
            )
        findings.judge()
        return findings

    def _refusal(self) -> str:
        """Why an engine that is made by a function does not take the rule."""
        try:
            self._make(twin(self._rule, parameter_of(self._rule.model).dtype))
        except ModelError as error:
            return error.got
        return ""

    def _points(self) -> list[int]:
        """After how many updates the copies are compared: as many as the data and the time allow."""
        size = self._update_size
        most = -(-len(self._records) // size)
        rule = twin(self._rule, parameter_of(self._rule.model).dtype)
        engine, few = ReferenceEngine(rule), cast(self._part(0, 10 * size), parameter_of(rule.model).dtype)
        taken = []
        with quiet_schedules():
            for _ in range(4):  # the first calls take longer
                started = time.perf_counter()
                engine.learn(few, size)
                taken.append(time.perf_counter() - started)
        of_one = min(taken) / min(most, 10)
        num_runs = sum(2 + num * _COST_REORDERED for num in _NUM_REORDERED.values())
        most = min(most, max(10, int(0.9 * self._seconds / (num_runs * of_one))))
        return [*(point for point in _POINTS if point < most), most]

    def _compare(self, number: torch.dtype, points: list[int], findings: Findings) -> None:
        """The differences in this type of number, and those of reordered sums; more of these where they may explain."""
        seeds = range(_NUM_REORDERED[number])
        makers: dict[str, Maker] = {"reference": ReferenceEngine, self._engine: self._make}
        makers |= {f"reordered {seed}": _reordered(seed) for seed in seeds}
        try:
            found, left = differences(self._rule, makers, self._records, points, self._update_size, number)
        except OF_TORCH as error:
            if number == parameter_of(self._rule.model).dtype:
                raise
            reason = error.got if isinstance(error, MillstreamError) else str(error).splitlines()[0]
            findings.notes.append(f"not compared in {_name(number)}, which the model does not run in: {reason}")
            return
        num = min(points[-1] * self._update_size, len(self._records))
        findings.leave(left[self._engine], num)
        if left[self._engine].total() == num:  # the reference has been compared with itself
            return
        ours = found.pop(self._engine)
        reordered = _largest(found)
        judged = [_judged(number, point, ours[point], reordered[point]) for point in points]
        for seed in range(len(seeds), _MOST_REORDERED):
            if time.monotonic() > self._ends or not _may_be_chance([*findings.differences, *judged], number):
                break
            more: dict[str, Maker] = {"reference": ReferenceEngine, "reordered": _reordered(seed)}
            again, _ = differences(self._rule, more, self._records, points, self._update_size, number)
            reordered = _largest({"before": reordered, **again})
            judged = [_judged(number, point, ours[point], reordered[point]) for point in points]
        findings.differences += judged

    def _speeds(self, makers: dict[str, Maker]) -> dict[str, float]:
        """Records per second of each engine, in the model's own type of number: medians, turn by turn."""
        number = parameter_of(self._rule.model).dtype
        records = cast(self._records, number)
        made = {name: make(twin(self._rule, number)) for name, make in makers.items()}
        sizes = {name: engine.chunk_size(self._update_size) for name, engine in made.items()}
        rates: dict[str, list[float]] = {name: [] for name in makers}
        spent = dict.fromkeys(makers, 0.0)
        with quiet_schedules():
            while due := [name for name in made if spent[name] < _TIMED_SECONDS or len(rates[name]) < 3]:
                for name in due:
                    part = records.select(slice(0, sizes[name]))
                    part = dataclasses.replace(part, offsets=None, span=-1)
                    started = time.perf_counter()
                    made[name].learn(part, self._update_size)
                    taken = time.perf_counter() - started
                    spent[name] += taken
                    rates[name].append(len(part) / taken)
                    if taken > _TIMED_SECONDS:  # a slow model: fewer records a turn
                        sizes[name] = max(self._update_size, int(len(part) * _TIMED_SECONDS / taken / 3))
        return {name: statistics.median(found[1:]) for name, found in rates.items()}

    def _part(self, first: int, last: int) -> Chunk:
        return dataclasses.replace(self._records.select(slice(first, last)), offsets=None, span=-1)


def _may_be_chance(judged: list[Difference], number: torch.dtype) -> bool:
    """Whether rounding may explain what is beyond its bound, which more reordered runs will show.

    Rounding switches a unit off in one run and not in another. That is rare in float64: what is beyond the bound there,
    where another order of sums is far below it, is an error.
    """
    beyond = [one for one in judged if not one.is_within]
    early = [one for one in beyond if one.numbers == _name(torch.float64)]
    if not beyond or (early and number == torch.float32):
        return False
    return number == torch.float32 or early[0].worst.reordered * _TIMES_REORDERED > BOUNDS[number]


def _reordered(seed: int) -> Maker:
    return lambda rule: ReorderedReference(rule, seed)


def _largest(found: dict[str, Differences]) -> Differences:
    """The largest of several differences, tensor by tensor."""
    together: Differences = {}
    for each in found.values():
        for point, tensors in each.items():
            largest = together.setdefault(point, {})
            for key, value in tensors.items():
                largest[key] = max(value, largest.get(key, 0.0))
    return together


def _judged(number: torch.dtype, point: int, ours: dict[Key, float], reordered: dict[Key, float]) -> Difference:
    """What is farthest from its bound, of each kind."""

    def share(key: Key) -> float:
        return ours[key] / max(BOUNDS[number], _TIMES_REORDERED * reordered.get(key, 0.0))

    parts = {}
    for kind in ("weights", "predictions", "optimizer"):
        keys = [key for key in ours if key[0] == kind]
        worst = max(keys, key=lambda key: (share(key), ours[key], reordered.get(key, 0.0)))
        parts[kind] = Part(worst[1], ours[worst], reordered.get(worst, 0.0), share(worst))
    largest = max(ours.values()), max(reordered.values())
    return Difference(_name(number), point, parts["weights"], parts["predictions"], parts["optimizer"], *largest)


def _name(number: torch.dtype) -> str:
    return str(number).removeprefix("torch.")
