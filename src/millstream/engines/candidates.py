"""Optimizers that race: which, at which rates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from millstream.engines.factored import FactoredRMSprop
from millstream.errors import SettingError

__all__ = [
    "Candidate",
    "Entrants",
    "MakesOptimizer",
    "Racing",
    "batch_candidates",
    "candidates",
    "candidates_around",
    "entrants",
    "entrants_of",
    "name_of",
]

MakesOptimizer: TypeAlias = "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"

_FAMILIES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "factored": FactoredRMSprop,
    "sgd": torch.optim.SGD,
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.AdamW,
}


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
    made = functools.partial(_candidate, weight_decay=weight_decay)
    return (*(made("factored", rate) for rate in (3e-3, 1e-3, 1e-2, 3e-4, 1e-4)), made("sgd", 0.03))


def batch_candidates(weight_decay: float = 0.0, *, sparse: bool = False) -> Sequence[Candidate]:
    """Those that race in a ``fit`` where nothing is given. Momentum wins there, but not with ``sparse`` gradients."""
    made = functools.partial(_candidate, weight_decay=weight_decay)
    if sparse:
        plain = (made("sgd", rate) for rate in (0.1, 0.3, 0.03, 1.0))
        return (*plain, *(made("factored", rate) for rate in (1e-3, 3e-3, 1e-2)))
    moving = (made("nesterov", rate) for rate in (0.03, 0.01, 0.1, 0.003))
    return (*moving, *(made("adam", rate) for rate in (3e-3, 1e-3)))


def _candidate(family: str, rate: float, *, weight_decay: float) -> Candidate:
    return Candidate(family, rate, functools.partial(_FAMILIES[family], lr=rate, weight_decay=weight_decay))


@dataclasses.dataclass(frozen=True, slots=True)
class Entrants:
    """The optimizers that race when learning online, and those of a ``fit``."""

    online: Sequence[Candidate]
    batch: Sequence[Candidate]

    def of(self, kind: Literal["fit", "learn"]) -> Sequence[Candidate]:
        return self.batch if kind == "fit" else self.online


Racing: TypeAlias = "Sequence[Candidate | MakesOptimizer] | Entrants"


def entrants(model: nn.Module, weight_decay: float = 0.0) -> Entrants:
    """The defaults for a model."""
    sparse = any(getattr(part, "sparse", False) is True for part in model.modules())
    return Entrants(candidates(weight_decay), batch_candidates(weight_decay, sparse=sparse))


def entrants_of(optimizers: Racing) -> Entrants:
    """What is given, online and in a ``fit``."""
    if isinstance(optimizers, Entrants):
        return optimizers
    if not optimizers:
        raise SettingError(got="no optimizers", wanted="one or more", do="leave them out for the default")
    found = [each if isinstance(each, Candidate) else _named(each) for each in optimizers]
    return Entrants(found, found)


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
