"""Optimizers that race: which, at which rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from millstream.engines.factored import FactoredRMSprop
from millstream.errors import SettingError

__all__ = ["Candidate", "MakesOptimizer", "candidates", "candidates_around", "candidates_of", "name_of"]

MakesOptimizer: TypeAlias = "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An optimizer at a rate. Those of one ``family`` differ in the rate alone."""

    family: str
    rate: float
    make: MakesOptimizer

    @property
    def name(self) -> str:
        return name_of(self.family, self.rate)


def name_of(family: str, rate: float) -> str:
    """What people see of an optimizer at a rate."""
    return f"{family} {rate:.2g}"


def candidates(weight_decay: float = 0.0) -> Sequence[Candidate]:
    """Those that race where nothing is given. The first leads until there is something to go by.

    Steps in proportion to the gradients' own spread need one rate within a factor of 100 on whatever data; plain SGD
    is better on some.
    """

    def factored(rate: float) -> Candidate:
        return Candidate(
            "factored", rate, lambda parameters: FactoredRMSprop(parameters, lr=rate, weight_decay=weight_decay)
        )

    def plain(rate: float) -> Candidate:
        return Candidate(
            "sgd", rate, lambda parameters: torch.optim.SGD(parameters, lr=rate, weight_decay=weight_decay)
        )

    return (*(factored(rate) for rate in (3e-3, 1e-3, 1e-2, 3e-4, 1e-4)), plain(0.03))


def candidates_of(
    optimizer: torch.optim.Optimizer | Sequence[Candidate | MakesOptimizer] | None,
) -> Sequence[Candidate]:
    """What is to race: nothing if there is one optimizer, the default without any, else what is given."""
    if optimizer is None:
        return candidates()
    if isinstance(optimizer, torch.optim.Optimizer):
        return ()
    if not optimizer:
        raise SettingError(got="no optimizers", wanted="one or more", do="leave them out for the default")
    return [each if isinstance(each, Candidate) else _named(each) for each in optimizer]


def _named(make: MakesOptimizer) -> Candidate:
    optimizer = make([nn.Parameter(torch.zeros(1))])
    return Candidate(type(optimizer).__name__, float(optimizer.param_groups[0]["lr"]), make)


def candidates_around(
    family: str, make: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer], rate: float
) -> list[Candidate]:
    """An optimizer at five rates, a factor of 3 apart, ``rate`` in the middle and first.

    >>> [c.name for c in candidates_around("sgd", lambda p, rate: torch.optim.SGD(p, lr=rate), 0.1)]
    ['sgd 0.1', 'sgd 0.033', 'sgd 0.3', 'sgd 0.011', 'sgd 0.9']
    """

    def one(factor: float) -> Candidate:
        return Candidate(family, rate * factor, lambda parameters: make(parameters, rate * factor))

    return [one(factor) for factor in (1, 1 / 3, 3, 1 / 9, 9)]
