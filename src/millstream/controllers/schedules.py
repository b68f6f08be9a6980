"""Schedules of the rate by name, of torch's own parts: a rise to the full rate, then constant, linear or a cosine."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from millstream.controllers.plan import Plan

__all__ = ["end", "make"]

_FIRST = 1e-3  # of the rate, where a rise begins


def make(optimizer: torch.optim.Optimizer, plan: Plan, num_updates: int) -> LRScheduler:
    """The scheduler of a plan, for so many updates, of which the share ``plan.warmup`` is the rise.

    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> scheduler, rates = make(sgd, Plan(1, 1, "linear", 0.25), 8), []
    >>> for _ in range(8):
    ...     rates.append(round(sgd.param_groups[0]["lr"], 3))
    ...     sgd.step()
    ...     scheduler.step()
    >>> rates
    [0.001, 0.501, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]
    """
    rise = round(plan.warmup * num_updates)
    rest = max(1, num_updates - rise)
    parts: list[LRScheduler] = []
    if rise:
        parts.append(LinearLR(optimizer, _FIRST, 1.0, rise))
    if plan.schedule == "cosine":
        parts.append(CosineAnnealingLR(optimizer, rest))
    elif plan.schedule == "linear":
        parts.append(LinearLR(optimizer, 1.0, 0.0, rest))
    else:
        parts.append(ConstantLR(optimizer, 1.0, 1))
    return SequentialLR(optimizer, parts, [rise]) if rise else parts[0]


def end(optimizer: torch.optim.Optimizer) -> None:
    """The rates that the optimizer had before its schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])
