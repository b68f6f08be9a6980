"""Copies of a model that race: each has its optimizer, its rate and its engine."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from millstream.contracts import Engine, State
from millstream.engines.candidates import Candidate, name_of
from millstream.engines.choice import choose
from millstream.engines.rule import UpdateRule, load_but_rates

__all__ = ["Copy", "copied", "tensors_of"]


@dataclasses.dataclass(slots=True)
class Copy:
    """One model with its optimizer at a rate, and the engine that computes its updates."""

    model: str  # by name, of several; "" for the only one
    family: str
    rate: float
    rule: UpdateRule
    engine: Engine

    @property
    def name(self) -> str:
        return f"{self.model} {name_of(self.family, self.rate)}".lstrip()

    def is_like(self, other: Copy) -> bool:
        """Whether they differ in the rate alone."""
        return (self.model, self.family) == (other.model, other.family)

    def go_to(self, rate: float) -> None:
        """All its groups of parameters at another rate, in proportion."""
        for group in self.rule.optimizer.param_groups:
            group["lr"] *= rate / self.rate
        self.rate = rate

    def take(self, other: Copy) -> None:
        """Weights of another copy; its optimizer's state too, if that is of the same kind. Other models stay apart."""
        if self.model != other.model:
            return
        with torch.no_grad():
            for mine, its in zip(tensors_of(self.rule.model), tensors_of(other.rule.model), strict=True):
                mine.copy_(its)
        if type(self.rule.optimizer) is type(other.rule.optimizer):
            load_but_rates(self.rule.optimizer, other.rule.optimizer.state_dict())

    def begin_anew(self, first: nn.Module, rate: float) -> None:
        """The weights of another model, and nothing remembered."""
        with torch.no_grad():
            for mine, its in zip(tensors_of(self.rule.model), tensors_of(first), strict=True):
                mine.copy_(its)
        self.rule.optimizer.state.clear()
        self.go_to(rate)

    def state_dict(self) -> State:
        return {"model": dict(self.rule.model.state_dict()), "optimizer": self.rule.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.rule.model.load_state_dict(state["model"])
        self.rule.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def copied(rule: UpdateRule, option: tuple[str, nn.Module], candidate: Candidate, engine: str) -> Copy:
    model = copy.deepcopy(option[1])
    optimizer = candidate.make(model.parameters())
    own = dataclasses.replace(rule, model=model, optimizer=optimizer)
    return Copy(option[0], candidate.family, candidate.rate, own, choose(engine, own))


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
