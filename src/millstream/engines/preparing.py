"""The engine of a trainer: one optimizer or several that race, and what is wrapped around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from millstream.contracts import Engine, Loss
from millstream.engines.averaging import AveragedEngine
from millstream.engines.candidates import Racing, entrants, entrants_of
from millstream.engines.choice import choose
from millstream.engines.drift import REPLAY_SHARE, REPLAYED, Drift, DriftEngine, parse_drift
from millstream.engines.race import RaceEngine
from millstream.engines.replay import Replay, ReplayEngine, parse_replay
from millstream.engines.rule import UpdateRule

__all__ = ["Around", "prepare"]


@dataclasses.dataclass(frozen=True, slots=True)
class Around:
    """What is wrapped around an engine, if anything.

    ``replay`` mixes records of the past into online updates (``0.2``, ``0.2:window:5000``), ``drift`` names a detector
    of drift and what an alarm does (``adwin:raise``), ``average`` lets a mean of the weights answer (0.999).
    """

    replay: str | float | Replay | None = None
    drift: str | Drift | None = None
    average: float | None = None


def prepare(
    engine: str,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | Racing | None,
    around: Around | None = None,
    **settings: Any,
) -> Engine:
    """The engine of one optimizer, by its name, or of those that race. ``settings`` are of the ``UpdateRule``."""
    chosen: Engine
    if isinstance(optimizer, torch.optim.Optimizer):
        chosen = choose(engine, UpdateRule(model, loss, optimizer, **settings))
    else:
        racing = entrants(model) if optimizer is None else entrants_of(optimizer)
        one = racing.online[0].make(model.parameters())
        chosen = RaceEngine(UpdateRule(model, loss, one, **settings), racing, engine)
    around = around or Around()
    mixed, watched = parse_replay(around.replay), parse_drift(around.drift)
    turns_on = watched is not None and watched.action == "replay"
    if mixed is not None or turns_on:
        mixed = mixed or Replay(0.0, "window", REPLAYED)
        chosen = ReplayEngine(chosen, mixed, most=REPLAY_SHARE if turns_on else 0.0)
    if watched is not None:
        chosen = DriftEngine(chosen, watched)
    return chosen if around.average is None else AveragedEngine(chosen, around.average)
