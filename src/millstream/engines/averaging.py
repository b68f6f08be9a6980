"""An exponential average of the weights answers, while learning goes on with the weights themselves.

The weights after one record are noisy: each was moved by the last few records. Their average is not (Polyak and
Juditsky 1992). Here it is taken after every 256 lessons, old weights counting less and less.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from millstream.contracts import Chunk, Engine, Inputs, Outcome, Questions, State
from millstream.engines.pieces import Piecewise
from millstream.engines.reference import ReferenceEngine
from millstream.errors import SettingError

__all__ = ["AveragedEngine", "averaged_weights", "model_that_answers"]


def averaged_weights(engine: State | None) -> dict[str, Tensor] | None:
    """Those that an engine of this state answers with, if they are an average."""
    if engine is None or engine.get("wrapper") != AveragedEngine.kind or not engine["own"]["weight"]:
        return None
    weights: dict[str, Tensor] = engine["own"]["model"]
    return weights


def model_that_answers(engine: Engine) -> nn.Module:
    """The model whose weights an engine predicts with: an average, or the one that is learned."""
    is_average = isinstance(engine, AveragedEngine) and engine.is_taken
    model: nn.Module = engine.model if is_average else engine.rule.model  # type: ignore[attr-defined]
    return model


class AveragedEngine(Piecewise):
    """``decay`` is how much of the average an update keeps: 0.999 remembers some thousand updates.

    Of copies that race, the average is of the one that leads, and begins anew when another one does.
    """

    kind = "averaging"
    size = 256

    def __init__(self, inner: Engine, decay: float) -> None:
        if not 0 < decay < 1:
            raise SettingError(got=f"average={decay:g}", wanted="a number between 0 and 1", do="write e.g. 0.999")
        super().__init__(inner)
        self.decay = decay
        self.model = copy.deepcopy(self.rule.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        still = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self._answering = ReferenceEngine(dataclasses.replace(self.rule, model=self.model, optimizer=still))
        self._weight = 0.0  # of all that was averaged; 1 in the end
        self._num_updates = 0  # since the average was taken
        self._of = inner.optimizer

    def predict(self, inputs: Inputs) -> Tensor:
        return self._answering.predict(inputs) if self._weight else self.inner.predict(inputs)

    @property
    def is_taken(self) -> bool:
        """Whether there is an average yet."""
        return bool(self._weight)

    def _see(self, piece: Chunk, questions: Questions | None, outcome: Outcome) -> None:
        self._num_updates += outcome.num_updates

    def _between(self, position: int) -> None:
        kept = self.decay**self._num_updates
        if self._of != self.inner.optimizer:
            self._of, self._weight = self.inner.optimizer, 0.0
        if not self._num_updates:
            return
        self._num_updates = 0
        self._weight = kept * self._weight + 1 - kept
        share = (1 - kept) / self._weight
        with torch.no_grad():
            for mean, now in zip(self.model.parameters(), self.rule.model.parameters(), strict=True):
                if share < 1 and mean.is_floating_point():
                    mean.lerp_(now, share)
                else:
                    mean.copy_(now)
            for mean, now in zip(self.model.buffers(), self.rule.model.buffers(), strict=True):
                mean.copy_(now)

    def _own_state(self) -> State:
        return {
            "model": dict(self.model.state_dict()),
            "weight": self._weight,
            "num_updates": self._num_updates,
            "of": self._of,
            "taken": self._taken,
        }

    def _load_own_state(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self._weight, self._num_updates = state["weight"], state["num_updates"]
        self._of, self._taken = state["of"], state["taken"]
