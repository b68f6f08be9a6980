"""How much of a comparison fits a budget: seeds, records and epochs, from speeds measured on the data itself."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from millstream import sources
from millstream.assembly import Data, Recipe, build
from millstream.studies.arms import Arm

__all__ = ["Plan", "Settings", "make_plan"]

_RACE_ONLINE = 4.0  # times as long as one rate takes, where several race, as measured
_RACE_EPOCHS = 3.0  # as many epochs more in a fit: the race is over after one


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose."""

    models: tuple[str, ...] = ("mlp:256",)
    batch_size: int = 64
    epochs: int = 5  # of batch training; online passes once
    learning_rate: float | None = None  # the given rate; 0.01 on a finite set, each arm's own best through time
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    num_seeds: int = 3
    seconds: float | None = None  # a budget for all of it
    num_records: int = 0  # 0 is all
    delays: tuple[str, ...] = ("0",)
    retrain_every: int = 0  # 0 is a tenth of the data
    num_processes: int = 0  # 0 is one a core
    target: float | None = None  # the score whose time is taken; by default what every arm reaches


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What will be run."""

    num_records: int
    grid_records: int  # records that each rate of the grid is tried on
    first_scored: int  # through time: where scoring begins
    retrain_every: int
    epochs: int
    seeds: tuple[int, ...]
    num_processes: int
    seconds_per_record: dict[int, float]  # by update size
    notes: tuple[str, ...] = ()

    def cost(self, arm: Arm) -> float:
        """About how many seconds an arm takes."""
        records, epochs = arm.num_records or self.num_records, float(arm.epochs)
        if arm.sets_rate:
            epochs = _RACE_ONLINE if arm.kind == "online" else epochs + _RACE_EPOCHS
        if arm.kind == "retrain":
            blocks = max(1, records // max(1, arm.retrain_every))
            records = records * blocks // 2
        return records * epochs * self.seconds_per_record[1 if arm.update_size == 1 else 2]

    def describe(self) -> str:
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return f"{self.num_records:,} records, {self.epochs} batch epochs, {seeds}"


def make_plan(data: Data, recipe: Recipe, settings: Settings, num_processes: int, seconds: float | None) -> Plan:
    """As many seeds as fit; if one does not fit, fewer records. Says in its notes what it left out."""
    total = data.train.num_records or 0
    wanted = min(settings.num_records or total, total)
    speeds = {1: _seconds_per_record(data, recipe, 1), 2: _seconds_per_record(data, recipe, settings.batch_size)}
    num_seeds, records, notes = settings.num_seeds, wanted, []
    if seconds is not None:
        available = seconds * num_processes * 0.85  # starting processes, test records and drawing take the rest
        while num_seeds > 1 and _cost(data, settings, records, num_seeds, speeds) > available:
            num_seeds -= 1
        while records > 1000 and _cost(data, settings, records, num_seeds, speeds) > available:
            records = int(records * 0.9)
        if num_seeds < settings.num_seeds:
            notes.append(f"{num_seeds} of {settings.num_seeds} seeds fit the budget of {seconds:.0f} s for this model.")
        if records < wanted:
            notes.append(
                f"The first {records:,} of {wanted:,} records fit the budget of {seconds:.0f} s for this model."
            )
    every = settings.retrain_every or max(200, records // 10)
    return Plan(
        num_records=records,
        grid_records=_grid_records(records, data.ordered),
        first_scored=min(max(every, _grid_records(records, data.ordered)), records // 2),
        retrain_every=every,
        epochs=settings.epochs,
        seeds=tuple(range(recipe.seed, recipe.seed + num_seeds)),
        num_processes=num_processes,
        seconds_per_record=speeds,
        notes=tuple(notes),
    )


def _grid_records(records: int, ordered: bool) -> int:
    """A grid is tried on a part of the records: through time on the first fifth, else on a twentieth."""
    return min(records, max(1000, records // 5 if ordered else records // 20), 5000)


def _cost(data: Data, settings: Settings, records: int, num_seeds: int, speeds: dict[int, float]) -> float:
    """About how many seconds of one core a comparison takes."""
    grid = _grid_records(records, data.ordered) * len(settings.rates)
    if not data.ordered:
        passes = (2 + _RACE_ONLINE) * speeds[1] + (3 * settings.epochs + _RACE_EPOCHS) * speeds[2]
        return grid * sum(speeds.values()) + num_seeds * records * passes
    blocks = 10 if not settings.retrain_every else max(1, records // settings.retrain_every)
    batches = 1 + settings.epochs * (blocks / 2 + 0.1)
    each = num_seeds * records * ((1 + _RACE_ONLINE) * speeds[1] + batches * speeds[2])
    tried = grid * (speeds[1] + (1 + settings.epochs) * speeds[2]) if settings.learning_rate is None else 0.0
    return len(settings.delays) * (each + tried)


def _seconds_per_record(data: Data, recipe: Recipe, update_size: int) -> float:
    """Measured on a few hundred records, after a warm-up."""
    trainer: Any = build(recipe)
    num = min(data.train.num_records or 0, 300 if update_size == 1 else 40 * update_size)
    for first, last in ((0, max(1, num // 5)), (0, num)):
        started = time.perf_counter()
        part = sources.Subset(data.train, np.arange(first, last))
        trainer.learn(part, update_size=update_size)
        spent = time.perf_counter() - started
    return spent / max(1, num)
