"""Named losses, each as a loss per record, and the conversion of people's own.

An engine divides by the number of records of an update, never a loss: a mean-reducing ``CrossEntropyLoss(weight=…)`` at
one record cancels its own class weights. Here a class weight multiplies the record's loss, at every update size.

Shapes: N records, C classes or outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millstream.contracts import Loss
from millstream.errors import ModelError, SettingError

__all__ = ["NAMES", "CallableLoss", "NamedLoss", "resolve"]


class NamedLoss:
    """A loss by name, with its parameter and class weights.

    >>> loss = NamedLoss("cross_entropy", class_weights=torch.tensor([1.0, 2.0]))
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    tensor([0.6931, 1.3863])
    """

    def __init__(
        self,
        name: str,
        parameter: float | None = None,
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        kind = _TABLE.get(name)
        if kind is None:
            raise SettingError(
                got=f"loss {name!r}", wanted=f"one of {', '.join(NAMES)}, or a callable", do="pick one of these"
            )
        self.task, self._function, default = kind
        if parameter is not None and default is None:
            raise SettingError(got=f"loss {name!r} with a number", wanted="no number", do=f"write {name!r} alone")
        if (class_weights is not None or label_smoothing) and self.task not in ("classes", "binary"):
            raise SettingError(got=f"class weights with loss {name!r}", wanted="a loss of classes", do="leave them out")
        self.parameter = default if parameter is None else parameter
        self.name = name if default is None else f"{name}:{self.parameter:g}"
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._function(self, outputs, targets)


class CallableLoss:
    """A person's own loss: a callable that gives one value per record, or a torch loss module made to."""

    task = "other"

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        if isinstance(function, nn.Module) and hasattr(function, "reduction"):
            self.task = _TASKS.get(type(function), "other")
            function = copy.copy(function)
            function.reduction = "none"  # type: ignore[assignment]
        self._function = function

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.task in ("number", "binary") and outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
            outputs = outputs.squeeze(-1)
        if self.task == "binary":
            targets = targets.to(outputs.dtype)
        losses: Tensor = self._function(outputs, targets)
        if losses.ndim == 0 or len(losses) != len(targets):
            raise ModelError(
                got=f"a loss of shape {tuple(losses.shape)} for {len(targets)} records from {self.name}",
                wanted="one value per record",
                do="return the losses before they are averaged (reduction='none')",
            )
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def resolve(loss: str | Loss | Callable[[Any, Tensor], Tensor], class_weights: Tensor | None = None) -> Loss:
    """A loss from its name (``huber:0.5`` and ``quantile:0.9`` take a number), a torch loss module, or a callable.

    >>> resolve("quantile:0.9").task
    'number'
    """
    if isinstance(loss, str):
        name, _, number = loss.partition(":")
        try:
            parameter = float(number) if number else None
        except ValueError:
            raise SettingError(got=f"loss {loss!r}", wanted=f"{name}:NUMBER", do="write e.g. huber:1.0") from None
        return NamedLoss(name, parameter, class_weights=class_weights)
    if class_weights is not None:
        raise SettingError(
            got="class weights beside a loss object",
            wanted="one place for them",
            do="give the weights to the loss itself",
        )
    if isinstance(loss, NamedLoss | CallableLoss):
        return loss
    if callable(loss):
        return CallableLoss(loss)
    raise SettingError(
        got=f"a loss of type {type(loss).__name__}", wanted="a name or a callable", do=f"try {NAMES[0]!r}"
    )


def _cross_entropy(loss: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(
        outputs, targets, weight=loss.class_weights, reduction="none", label_smoothing=loss.label_smoothing
    )


def _binary_cross_entropy(loss: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    logits = _one_output(outputs, targets)
    wanted = targets.to(logits.dtype)
    if loss.label_smoothing:
        wanted = wanted * (1 - loss.label_smoothing) + loss.label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    if loss.class_weights is not None:
        losses = losses * loss.class_weights[targets.long()]
    return _per_record(losses)


def _mse(_: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    return _per_record(F.mse_loss(_one_output(outputs, targets), targets, reduction="none"))


def _huber(loss: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    delta = float(loss.parameter or 0)
    return _per_record(F.huber_loss(_one_output(outputs, targets), targets, reduction="none", delta=delta))


def _poisson(_: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative log likelihood of a count, less its constant; outputs are log rates."""
    return _per_record(F.poisson_nll_loss(_one_output(outputs, targets), targets, reduction="none"))


def _quantile(loss: NamedLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The pinball loss (Koenker and Bassett 1978): under-predicting costs q, over-predicting 1 − q."""
    error = targets - _one_output(outputs, targets)
    q = float(loss.parameter or 0)
    return _per_record(torch.maximum(q * error, (q - 1) * error))


def _one_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 1) outputs beside (N,) targets would broadcast to (N, N): squeeze them, refuse any other difference."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        outputs = outputs.squeeze(-1)
    if outputs.shape != targets.shape:
        raise ModelError(
            got=f"outputs of shape {tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}",
            wanted="one output for each target",
            do="change the model's last layer or the loss",
        )
    return outputs


def _per_record(losses: Tensor) -> Tensor:
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


_TABLE: dict[str, tuple[str, Callable[[NamedLoss, Tensor, Tensor], Tensor], float | None]] = {
    "cross_entropy": ("classes", _cross_entropy, None),
    "binary_cross_entropy": ("binary", _binary_cross_entropy, None),
    "mse": ("number", _mse, None),
    "huber": ("number", _huber, 1.0),
    "poisson": ("number", _poisson, None),
    "quantile": ("number", _quantile, 0.5),
}
_TASKS: dict[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "classes",
    nn.BCEWithLogitsLoss: "binary",
    nn.MSELoss: "number",
    nn.L1Loss: "number",
    nn.HuberLoss: "number",
    nn.SmoothL1Loss: "number",
}
NAMES = tuple(_TABLE)
