"""Replicas: answer with what a run has published. They keep nothing, and follow the folder as it changes.

A replica is a process of its own that may come and go; any number of them read the same folder.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from millstream import evaluation, sources
from millstream.assembly.recipes import Recipe, build
from millstream.engines import ReferenceEngine
from millstream.engines.several import options_of
from millstream.errors import CheckpointError
from millstream.learner import Learner
from millstream.publishing import Publication, newest
from millstream.trainer import Trainer

__all__ = ["Replica", "follow"]


class Replica:
    """The newest published model of a run, ready to answer.

    ``refresh`` looks for a newer one, at the cost of reading one small file when there is none. It is checked and put
    together first and takes over at once, so other threads may ask meanwhile. A run of a Python object needs that
    object: ``trainer``, built as it was; it is not changed.
    """

    def __init__(self, folder: str | Path, trainer: Trainer | None = None, *, device: str = "cpu") -> None:
        self.folder = Path(folder)
        self._trainer, self._device = trainer, device
        self.problem = ""  # why the newest one could not be taken; what was there before answers
        found = newest(self.folder)
        assert found is not None
        self._now = found, self._learner(found)

    @property
    def position(self) -> int:
        """The run position of what answers now: how many records it has learned from."""
        return self._now[0].position

    @property
    def metric(self) -> dict[str, Any] | None:
        """How good it was when it was published, as its gate has seen it."""
        found: dict[str, Any] | None = self._now[0].state["metric"]
        return found

    @property
    def learner(self) -> Learner:
        return self._now[1]

    def refresh(self) -> bool:
        """Takes up a newer publication; whether there was one."""
        try:
            found = newest(self.folder, self._now[0].sha256)
            if found is not None:
                self._now = found, self._learner(found)
        except (CheckpointError, OSError) as error:
            self.problem = str(error)
            return False
        self.problem = ""
        return found is not None

    def predict(self, source: Any, *, raw: bool = False) -> Tensor:
        """(N, C) probabilities of classes, (N,) probabilities of a binary label, or (N,) numbers; ``raw``: logits."""
        return evaluation.predict(self.learner, sources.as_source(source), raw=raw)

    def evaluate(self, source: Any) -> dict[str, float]:
        """The metrics of what answers now over all records of ``source``."""
        return evaluation.evaluate(self.learner, sources.as_source(source))

    def _learner(self, found: Publication) -> Learner:
        if self._trainer is not None:
            learner = _copied(self._trainer.learner, found.state["name"])
        elif found.state["spec"]:
            learner = build(_for_answers(Recipe.from_json(found.state["spec"]), found, self._device)).learner
        else:
            raise CheckpointError(
                got=f"the model of a Python object in {self.folder}",
                wanted="that object, built as it was",
                do="give the trainer as well",
            )
        try:
            learner.rule.model.load_state_dict(found.state["model"])
        except RuntimeError as error:
            raise CheckpointError(
                got=f"weights of another model in {self.folder}", wanted="the one that it is built as", do="build it so"
            ) from error
        if learner.features is not None:
            learner.features.load_state_dict(found.state["features"])
        return learner


def follow(folder: str | Path, trainer: Trainer | None = None, *, device: str = "cpu") -> Replica:
    """The newest model that a run has published to ``folder``; ``refresh`` goes on to newer ones."""
    return Replica(folder, trainer, device=device)


def _for_answers(recipe: Recipe, found: Publication, device: str) -> Recipe:
    """The model that answers, and nothing that learns."""
    alone: dict[str, Any] = {
        "race": (),
        "replay": None,
        "drift": None,
        "average": None,
        "engine": "reference",
        "device": device,
    }
    name = found.state["name"] or recipe.model
    return dataclasses.replace(recipe, model=name, optimizer="sgd", learning_rate=0.001, **alone)


def _copied(learner: Learner, name: str) -> Learner:
    """A learner of its own weights, of the model of this name where there are several."""
    model = copy.deepcopy(options_of(learner.rule.model).get(name, learner.rule.model))
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = dataclasses.replace(learner.rule, model=model, optimizer=still, scheduler=None)
    return Learner(rule, ReferenceEngine(rule), copy.deepcopy(learner.features))
