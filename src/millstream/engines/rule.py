"""What one weight update is, whoever computes it: model, loss, optimizer, schedule, and what bounds a gradient.

Also what a model's modes mean here: train mode for an update, eval mode for an answer, set where they are used.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from millstream.contracts import Loss
from millstream.errors import ModelError, SettingError

__all__ = ["Modes", "OfOneRule", "UpdateRule", "load_but_rates", "parameter_of", "step_after_epoch"]

_ALL_RECORDS_AT_ONCE = (nn.modules.batchnorm._BatchNorm,)
_RANDOM_IN_TRAINING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


@dataclasses.dataclass(slots=True)
class UpdateRule:
    """θ ← θ − step of (1/B) Σ weight × ∇L, with the gradient bounded as said.

    ``scoring`` says how a record is predicted before its update: ``eval`` costs a second forward pass where the model's
    train mode differs (dropout), ``train`` takes the output that the update itself computes.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None = None  # steps after every update
    clip_norm: float | None = None  # the gradient's largest Euclidean norm
    clip_value: float | None = None  # the largest magnitude of one element
    scoring: Literal["eval", "train"] = "eval"
    seed: int = 0  # with the run position, the key of everything random in an update
    online: bool = True  # records come in the order of time, once; False within a ``fit``

    def facts(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that began, as JSON."""
        weights = getattr(self.loss, "class_weights", None)
        return {
            "loss": self.loss.name,
            "class_weights": None if weights is None else weights.tolist(),
            "label_smoothing": getattr(self.loss, "label_smoothing", 0.0),
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
        }

    def __post_init__(self) -> None:
        owned = {id(p) for p in self.model.parameters()}
        foreign = [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in owned]
        if foreign:
            raise ModelError(
                got=f"an optimizer with {len(foreign)} parameters that the model does not have",
                wanted="the model's own parameters",
                do="make the optimizer after the model: torch.optim.SGD(model.parameters(), …)",
            )
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise ModelError(
                got="optimizer LBFGS", wanted="one that takes one gradient a step", do="use SGD, Adam or another one"
            )
        for name in ("clip_norm", "clip_value"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise SettingError(got=f"{name}={bound}", wanted="a number above 0", do="leave it out for no clipping")


class OfOneRule:
    """What an engine says of the one rule that it steps."""

    rule: UpdateRule

    @property
    def active(self) -> UpdateRule:
        return self.rule

    @property
    def learning_rate(self) -> float:
        return float(self.rule.optimizer.param_groups[0]["lr"])

    @property
    def optimizer(self) -> str:
        return type(self.rule.optimizer).__name__


class Modes:
    """The train and eval modes of a model. A part that was in eval mode while the whole was in train mode stays so.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> _ = model[1].eval()
    >>> modes = Modes(model)
    >>> modes.train(); model[0].training, model[1].training
    (True, False)

    An optimizer may have modes, too: those of schedule-free learning show averaged weights in eval mode.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._model = model
        self._averaging: Any = optimizer if hasattr(optimizer, "train") and hasattr(optimizer, "eval") else None
        self._kept = [part for part in model.modules() if not part.training] if model.training else []
        kept = {id(part) for part in self._kept}
        free = [part for part in model.modules() if id(part) not in kept]
        self.batch_norm = next((type(m).__name__ for m in free if isinstance(m, _ALL_RECORDS_AT_ONCE)), None)
        self.differ = (
            self.batch_norm is not None or self._averaging is not None or any(_is_random(part) for part in free)
        )

    def train(self) -> None:
        self._model.train()
        if self._averaging is not None:
            self._averaging.train()
        for part in self._kept:
            part.eval()

    def eval(self) -> None:
        self._model.eval()
        self.rest()

    def rest(self) -> None:
        """Between two chunks the weights are those that answer: whoever looks, asks or saves finds them."""
        if self._averaging is not None:
            self._averaging.eval()

    def refuse_single_records(self) -> None:
        """A model without a meaning for one record at a time is refused, with the remedy."""
        if self.batch_norm is not None:
            raise ModelError(
                got=f"{self.batch_norm} in train mode with an update of one record",
                wanted="layers that are defined for one record",
                do="use GroupNorm, LayerNorm or a batch size that leaves no single record, or freeze it by .eval()",
            )


def parameter_of(model: nn.Module) -> Tensor:
    """A parameter that shows in which type of number, and where, a model computes."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))


def load_but_rates(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """An optimizer takes a state of its kind, of which it shares nothing, and keeps its own rates."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(state))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def step_after_epoch(scheduler: LRScheduler, loss: float | None) -> None:
    """One step of a schedule by epochs. ``loss`` is for those that wait for a plateau; without one they wait on."""
    # Schedulers warn unless they saw the optimizer step, which a compiled or a resumed epoch does not show them.
    scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
    elif loss is not None:
        scheduler.step(loss)


def _is_random(part: nn.Module) -> bool:
    if isinstance(part, _RANDOM_IN_TRAINING):
        return getattr(part, "p", 1.0) > 0
    return getattr(part, "dropout", 0.0) not in (0.0, None) and isinstance(getattr(part, "dropout", None), float)
