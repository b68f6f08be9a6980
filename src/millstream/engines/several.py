"""Several models in one, of which one answers: what ``race`` chooses between on the stream.

Shapes: those of the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from millstream.errors import ModelError

__all__ = ["Several", "answering", "options_of"]


class Several(nn.Module):
    """Models by name that take the same inputs; the one that is ``chosen`` answers.

    >>> model = Several({"linear": nn.Linear(3, 2), "deep": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))})
    >>> model.choose("deep")
    >>> model.name, model(torch.zeros(1, 3)).shape
    ('deep', torch.Size([1, 2]))
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not models:
            raise ModelError(got="no models", wanted="one or more by name", do="name those that are to race")
        self.names = list(models)
        self.models = nn.ModuleList(models.values())
        self.chosen: torch.Tensor
        self.register_buffer("chosen", torch.tensor(0))

    @property
    def name(self) -> str:
        return self.names[int(self.chosen)]

    def choose(self, name: str) -> None:
        self.chosen.fill_(self.names.index(name))

    def forward(self, inputs: Any) -> Any:
        return self.models[int(self.chosen)](inputs)


def options_of(model: nn.Module) -> dict[str, nn.Module]:
    """The models to choose between, by name; a model that is no choice is the only one, without a name."""
    if not isinstance(model, Several):
        return {"": model}
    return dict(zip(model.names, model.models, strict=True))


def answering(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the state of a choice, that of the model that answers, by its own names; of another model, all."""
    if "chosen" not in weights or not any(name.startswith("models.0.") for name in weights):
        return dict(weights)
    prefix = f"models.{int(weights['chosen'])}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
