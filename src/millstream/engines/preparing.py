"""The engine of a trainer: one optimizer or several that race, and what is wrapped around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from millstream.contracts import Engine, Loss
from millstream.engines.averaging import AveragedEngine
from millstream.engines.candidates import Candidate, MakesOptimizer, candidates_of
from millstream.engines.choice import choose
from millstream.engines.drift import REPLAY_SHARE, REPLAYED, Drift, DriftEngine, parse_drift
from millstream.engines.race import RaceEngine
from millstream.engines.replay import Replay, ReplayEngine, parse_replay
from millstream.engines.rule import UpdateRule

__all__ = ["Around", "prepare"]


@dataclasses.dataclass(frozen=True, slots=True)
class Around:
    """What is wrapped around an engine, if anything."""

    replay: str | float | Replay | None = None
    drift: str | Drift | None = None
    average: float | None = None


def prepare(
    engine: str,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | Sequence[Candidate | MakesOptimizer] | None,
    around: Around | None = None,
    **settings: Any,
) -> Engine:
    """The engine of one optimizer, by its name, or of those that race. ``settings`` are of the ``UpdateRule``."""
    racing = candidates_of(optimizer)
    one = optimizer if isinstance(optimizer, torch.optim.Optimizer) else racing[0].make(model.parameters())
    rule = UpdateRule(model, loss, one, **settings)
    chosen: Engine = RaceEngine(rule, racing, engine) if racing else choose(engine, rule)
    around = around or Around()
    mixed, watched = parse_replay(around.replay), parse_drift(around.drift)
    turns_on = watched is not None and watched.action == "replay"
    if mixed is not None or turns_on:
        mixed = mixed or Replay(0.0, "window", REPLAYED)
        chosen = ReplayEngine(chosen, mixed, most=REPLAY_SHARE if turns_on else 0.0)
    if watched is not None:
        chosen = DriftEngine(chosen, watched)
    return chosen if around.average is None else AveragedEngine(chosen, around.average)
