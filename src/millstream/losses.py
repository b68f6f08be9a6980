"""Named losses, each as a loss per record, and the conversion of people's own.

An engine divides by the number of records of an update, never a loss: a mean-reducing ``CrossEntropyLoss(weight=…)`` at
one record cancels its own class weights. Here a class weight multiplies the record's loss, at every update size.

Shapes: N records, C classes or outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millstream.contracts import Chunk, Loss
from millstream.errors import DataError, ModelError, SettingError

__all__ = ["IGNORED", "NAMES", "CallableLoss", "NamedLoss", "fitting_labels", "resolve"]

IGNORED = -100
"""Torch's own mark of a record without a class: its loss is 0."""


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


def resolve(
    loss: str | Loss | Callable[[Any, Tensor], Tensor],
    class_weights: Tensor | Sequence[float] | None = None,
    like: Tensor | None = None,
) -> Loss:
    """A loss from its name (``huber:0.5`` and ``quantile:0.9`` take a number), a torch loss module, or a callable.

    Class weights get the type and device of ``like``, a parameter of the model.

    >>> resolve("quantile:0.9").task
    'number'
    """
    if isinstance(loss, str):
        name, _, number = loss.partition(":")
        try:
            parameter = float(number) if number else None
        except ValueError:
            raise SettingError(got=f"loss {loss!r}", wanted=f"{name}:NUMBER", do="write e.g. huber:1.0") from None
        if class_weights is not None:
            like = torch.empty(0) if like is None else like
            class_weights = torch.as_tensor(class_weights, dtype=like.dtype, device=like.device)
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


def fitting_labels(loss: Loss, chunk: Chunk, shape: tuple[int, ...], number: torch.dtype) -> Tensor:
    """The labels of a chunk as the loss takes them, in the model's type of ``number``; others are refused.

    ``shape`` is that of the outputs for one record. Classes are whole numbers from 0, or ``IGNORED``, or one
    probability for each; binary labels are 0 or 1. A number that is not finite passes: its record will be left out. A
    loss of one's own gets its labels as they are. Raises ``DataError``, with the place of the first record that is
    refused.

    >>> chunk = Chunk(torch.zeros(2, 1), torch.tensor([0, 3], dtype=torch.int32))
    >>> fitting_labels(NamedLoss("cross_entropy"), chunk, (4,), torch.float32)
    tensor([0, 3])
    """
    targets = chunk.targets
    assert targets is not None, "the caller has looked"
    if loss.task == "classes":
        return _fitting_classes(chunk, targets, shape, number)
    if loss.task == "other":
        return targets
    targets = targets.to(number)
    if loss.task == "binary" and not _is_one(targets, lambda label: label in (0, 1)):
        bad = targets.isfinite() & (targets != 0) & (targets != 1)
        _refuse(chunk, targets, bad, "0 or 1", "correct the label, or choose a loss of classes or of numbers")
    return targets


def _fitting_classes(chunk: Chunk, targets: Tensor, shape: tuple[int, ...], number: torch.dtype) -> Tensor:
    shape = shape or (1,)
    is_each = targets.is_floating_point()  # a probability for each class
    if targets.ndim != len(shape) + is_each or (is_each and targets.shape[1] != shape[0]):
        kind = str(targets.dtype).removeprefix("torch.")
        raise DataError(
            got=f"labels of type {kind} and shape {tuple(targets.shape)} for outputs of shape {(len(targets), *shape)}",
            wanted="whole numbers, one for each record, or one probability for each class",
            do="convert them with .long(), or .argmax(1) if they are one-hot, or choose another loss",
        )
    if is_each:
        targets = targets.to(number)
        _refuse(chunk, targets, (targets < 0) | (targets > 1), "probabilities from 0 to 1", "divide each by their sum")
        return targets
    targets = targets.to(torch.int64)
    num = shape[0]
    if not _is_one(targets, lambda label: 0 <= label < num or label == IGNORED):
        bad = ((targets < 0) | (targets >= num)) & (targets != IGNORED)
        wanted = f"0 to {num - 1}, as the model has {num} outputs"
        _refuse(chunk, targets, bad, wanted, "correct the label, or give the model more outputs")
    return targets


def _is_one(targets: Tensor, fits: Callable[[float], bool]) -> bool:
    """Whether there is one label, as there often is, and it fits: quicker than to ask torch."""
    return targets.numel() == 1 and fits(targets.item())


def _refuse(chunk: Chunk, targets: Tensor, bad: Tensor, wanted: str, do: str) -> None:
    """The first label that is marked as bad is refused, if there is one."""
    if bad.any():
        row, label = int(bad.nonzero()[0, 0]), targets[bad][0].item()
        raise DataError(got=f"label {label:g} at {chunk.where(row)}", wanted=wanted, do=do)


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
        losses = losses * loss.class_weights[targets.nan_to_num(0.0, 0.0, 0.0).long()]
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
