"""Optimizers by name: torch's own, this package's, and those of optional packages, which are looked up here alone."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from millstream import engines
from millstream.errors import SettingError, missing_package

__all__ = ["OPTIMIZERS", "made"]

_OF_BATCHES = 4.0  # times the middle of the rates that race in a fit, whose updates average many records


def _optional(module: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer of a package that need not be there."""

    def make(*arguments: Any, **settings: Any) -> torch.optim.Optimizer:
        try:
            found = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise missing_package(module, name, "optimizers") from error
        optimizer: torch.optim.Optimizer = found(*arguments, **settings)
        return optimizer

    return make


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any], float]] = {
    "sgd": (torch.optim.SGD, {}, 0.03),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, 0.003),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, 0.003),
    "adagrad": (torch.optim.Adagrad, {}, 0.03),
    "rmsprop": (torch.optim.RMSprop, {}, 0.001),
    "factored": (engines.FactoredRMSprop, {}, 0.001),
    "adam": (torch.optim.Adam, {}, 0.001),
    "adamw": (torch.optim.AdamW, {}, 0.001),
    "schedulefree": (_optional("schedulefree", "AdamWScheduleFree"), {}, 0.001),
    "prodigy": (_optional("prodigyopt", "Prodigy"), {"safeguard_warmup": True}, 1.0),
}
"""Class, options, and the rate in the middle of those that race online where none is given."""

_FINDS_ITS_RATE = ("prodigy",)  # at the rate in the table


def made(
    name: str, rate: float | None, weight_decay: float, model: nn.Module
) -> torch.optim.Optimizer | engines.Racing:
    """The optimizer of this name for a model, or those that race where no rate is given."""
    if name not in ("auto", *OPTIMIZERS):
        raise SettingError(
            got=f"optimizer {name!r}", wanted=f"one of auto, {', '.join(OPTIMIZERS)}", do="pick one of these"
        )
    if rate is not None and not 0 < rate < float("inf"):
        raise SettingError(got=f"learning rate {rate}", wanted="a number above 0", do="leave it out")
    if not 0 <= weight_decay < float("inf"):
        raise SettingError(got=f"weight decay {weight_decay}", wanted="0 or more", do="leave it out")
    if rate is None and name == "auto":
        return engines.entrants(model, weight_decay)
    kind, settings, middle = OPTIMIZERS["sgd" if name == "auto" else name]
    make = functools.partial(kind, weight_decay=weight_decay, **settings)
    if name in _FINDS_ITS_RATE or rate is not None:
        found = middle if rate is None else rate
        if isinstance(model, engines.Several):  # of which each is trained by an optimizer of its own
            return [engines.Candidate(name, found, functools.partial(make, lr=found))]
        return make(model.parameters(), lr=found)

    def around(centre: float) -> list[engines.Candidate]:
        return engines.candidates_around(name, lambda parameters, rate: make(parameters, lr=rate), centre)

    return engines.Entrants(around(middle), around(_OF_BATCHES * middle))
