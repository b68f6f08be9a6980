"""Copies of a model that learn side by side, each with an optimizer and an engine of its own."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from millstream.contracts import Engine, State
from millstream.engines.candidates import Candidate
from millstream.engines.choice import choose
from millstream.engines.rule import UpdateRule

__all__ = ["Copy", "copied", "tensors_of"]


@dataclasses.dataclass(slots=True)
class Copy:
    name: str
    rule: UpdateRule
    engine: Engine

    def take(self, other: Copy) -> None:
        """Weights of another copy; its optimizer's state too, if that is of the same kind."""
        with torch.no_grad():
            for mine, its in zip(tensors_of(self.rule.model), tensors_of(other.rule.model), strict=True):
                mine.copy_(its)
        if type(self.rule.optimizer) is type(other.rule.optimizer):
            rates = [group["lr"] for group in self.rule.optimizer.param_groups]
            self.rule.optimizer.load_state_dict(copy.deepcopy(other.rule.optimizer.state_dict()))
            for group, rate in zip(self.rule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> State:
        return {"model": dict(self.rule.model.state_dict()), "optimizer": self.rule.optimizer.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.rule.model.load_state_dict(state["model"])
        self.rule.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def copied(rule: UpdateRule, candidate: Candidate, engine: str) -> Copy:
    model = copy.deepcopy(rule.model)
    optimizer = candidate.make(model.parameters())
    own = dataclasses.replace(rule, model=model, optimizer=optimizer)
    return Copy(candidate.name, own, choose(engine, own))


def tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
