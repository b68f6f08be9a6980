"""Copies of one update rule, each with an engine of its own, that learn the same records side by side.

After so many updates it says how far each copy is from the first: tensor by tensor, weights, predictions and optimizer
state. The rule itself is left as it is. This file knows engines; it knows neither trainers nor people.

Shapes: N records.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from millstream.contracts import Chunk, Engine, map_tensors
from millstream.engines import UpdateRule
from millstream.errors import DataError, ModelError

__all__ = ["Differences", "Key", "cast", "differences", "quiet_schedules", "twin"]

Key: TypeAlias = tuple[str, str]
"""What a tensor is (``weights``, ``predictions`` or ``optimizer``) and its name."""

Differences: TypeAlias = dict[int, dict[Key, float]]
"""After so many updates: ‖a − b‖ of each tensor, over the largest ‖b‖ that it has had so far."""

_SMALLEST = 1e-30  # below it, numbers of float32 lose their digits


def twin(rule: UpdateRule, number: torch.dtype) -> UpdateRule:
    """A copy of a rule as it stands, all its numbers of this type; nothing is shared with it."""
    try:
        model, loss, optimizer, scheduler = copy.deepcopy((rule.model, rule.loss, rule.optimizer, rule.scheduler))
    except (RuntimeError, TypeError, pickle.PicklingError, AttributeError) as error:
        raise ModelError(
            got=f"a model, loss, optimizer or scheduler that cannot be copied ({str(error).splitlines()[0]})",
            wanted="one that copy.deepcopy takes, as it is learned by several engines",
            do="keep tensors in parameters and buffers, and other things out of it",
        ) from error
    model.to(number)
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                state[name] = value.to(number)
    for name, value in vars(loss).items() if hasattr(loss, "__dict__") else ():
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_floating_point()):
            setattr(loss, name, value.to(number))
    return dataclasses.replace(rule, model=model, loss=loss, optimizer=optimizer, scheduler=scheduler)


def cast(chunk: Chunk, number: torch.dtype) -> Chunk:
    """A chunk of tensors, all its numbers that are not whole of this type."""

    def one(value: Any) -> Any:
        return value.to(number) if isinstance(value, Tensor) and value.is_floating_point() else value

    changed = map_tensors(chunk.inputs, one)
    return dataclasses.replace(chunk, inputs=changed, targets=one(chunk.targets), weights=one(chunk.weights))


@contextmanager
def quiet_schedules() -> Iterator[None]:
    """A copied optimizer does not tell its schedule that it has stepped, and the schedule would warn of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(optimizer|lr_scheduler).step.*", category=UserWarning)
        yield


def differences(
    rule: UpdateRule,
    makers: Mapping[str, Callable[[UpdateRule], Engine]],
    records: Chunk,
    points: list[int],
    update_size: int,
    number: torch.dtype,
) -> tuple[dict[str, Differences], dict[str, Counter[str]]]:
    """How far each engine is from the first of ``makers`` after each number of updates in ``points``.

    Also how many records each of them left to the reference, by reason. Raises ``DataError`` where none was learned.
    """
    records = cast(records, number)
    runs = {name: _Run(make, twin(rule, number)) for name, make in makers.items()}
    first, *others = runs
    found: dict[str, Differences] = {name: {} for name in others}
    largest = {key: _norm(value) for key, value in runs[first].tensors().items()}
    done = 0
    with quiet_schedules():
        for point in points:
            part = slice(done * update_size, point * update_size)
            for run in runs.values():
                run.learn(records, part, update_size)
            wanted = runs[first].tensors()
            for key, value in wanted.items():
                largest[key] = max(largest.get(key, 0.0), _norm(value))
            for name in others:
                found[name][point] = _apart(runs[name].tensors(), wanted, largest)
            done = point
    if not runs[first].num_updates:
        raise DataError(
            got=f"{len(records):,} records, of which none has a loss and a gradient that are finite",
            wanted="records that can be learned, as there is nothing else to compare",
            do="check the data for NaN and infinity, and the labels; with named columns, try nonfinite='impute'",
        )
    return found, {name: runs[name].by_reference for name in others}


class _Run:
    """One copy, its engine, and what it predicted of the last records that it learned."""

    def __init__(self, make: Callable[[UpdateRule], Engine], rule: UpdateRule) -> None:
        self._rule, self._engine = rule, make(rule)
        self._names = {id(p): name for name, p in rule.model.named_parameters()}
        self._outputs = torch.empty(0)
        self._num_skipped = self.num_updates = 0
        self.by_reference: Counter[str] = Counter()  # records, by the reason why

    def learn(self, records: Chunk, part: slice, update_size: int) -> None:
        """Learns a part of the records in chunks of the size that the engine likes, as a trainer does."""
        size = self._engine.chunk_size(update_size)
        outputs = []
        for first in range(part.start, min(part.stop, len(records)), size):
            chunk = records.select(slice(first, min(first + size, part.stop)))
            chunk = dataclasses.replace(chunk, offsets=None, span=-1, start=first)
            outcome = self._engine.learn(chunk, update_size)
            self._num_skipped += len(outcome.skipped)
            self.num_updates += outcome.num_updates
            if outcome.by_reference:
                self.by_reference[outcome.by_reference] += len(chunk)
            kept = torch.ones(len(chunk), dtype=torch.bool)
            kept[list(outcome.skipped)] = False  # what was left out may have any output
            outputs.append(outcome.outputs.detach().cpu()[kept])
        self._outputs = torch.cat(outputs)

    def tensors(self) -> dict[Key, Tensor]:
        """All that the updates change."""
        found: dict[Key, Tensor] = {
            ("predictions", "outputs"): self._outputs,
            ("predictions", "number of records left out"): torch.tensor(float(self._num_skipped)),
        }
        for name, value in self._rule.model.state_dict().items():
            if isinstance(value, Tensor):
                found["weights", name] = value
        optimizer = self._rule.optimizer
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor | int | float):
                    found["optimizer", f"{self._names.get(id(parameter), '?')} {name}"] = torch.as_tensor(value)
        for place, group in enumerate(optimizer.param_groups):
            found["optimizer", f"learning rate of group {place}"] = torch.as_tensor(float(group["lr"]))
        return found


def _apart(ours: dict[Key, Tensor], theirs: dict[Key, Tensor], largest: dict[Key, float]) -> dict[Key, float]:
    """The difference of each tensor; infinite where only one has it, or one is not finite."""
    found = {}
    for key in ours.keys() | theirs.keys():
        a, b = ours.get(key), theirs.get(key)
        if a is None or b is None or a.numel() != b.numel():
            found[key] = math.inf
        elif torch.equal(a.reshape(b.shape), b):
            found[key] = 0.0
        else:
            apart = _norm(a.reshape(b.shape).double() - b.double()) / max(largest[key], _SMALLEST)
            found[key] = apart if math.isfinite(apart) else math.inf
    return found


def _norm(value: Tensor) -> float:
    return float(value.detach().double().norm()) if value.numel() else 0.0
