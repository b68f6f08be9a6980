"""A named loss as the kernels know it, and labels as they take them.

Shapes: N records, C outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Loss
from millstream.engines.kernels import losses
from millstream.losses import NamedLoss

__all__ = ["Criterion", "Labels", "refused"]

_LOSSES = {
    "cross_entropy": losses.CROSS_ENTROPY,
    "binary_cross_entropy": losses.BINARY_CROSS_ENTROPY,
    "mse": losses.MSE,
    "huber": losses.HUBER,
    "poisson": losses.POISSON,
    "quantile": losses.QUANTILE,
}

Labels = tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]
"""Classes (N,), numbers (N, C) and weights (N,) of records."""


def refused(loss: Loss) -> str:
    """Why the kernels do not know a loss; empty if they do."""
    return "" if isinstance(loss, NamedLoss) else f"loss {loss.name} is not a named one"


@dataclasses.dataclass(frozen=True, slots=True)
class Criterion:
    """A named loss of outputs of one shape."""

    loss: NamedLoss
    shape: tuple[int, ...]  # of one record's outputs
    number: Any  # NumPy's type of the model's numbers

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def facts(self) -> tuple[int, float, float, npt.NDArray[Any]]:
        """Kind, parameter, smoothing and class weights, as the kernels take them."""
        weights = self.loss.class_weights
        ones = np.ones(max(2, self.size), self.number)
        class_weights = ones if weights is None else weights.detach().cpu().numpy().astype(self.number)
        parameter, smoothing = float(self.loss.parameter or 0.0), float(self.loss.label_smoothing)
        return _LOSSES[self.loss.name.partition(":")[0]], parameter, smoothing, class_weights

    def refused(self) -> str:
        """Why this loss is not one of these outputs; empty if it is."""
        weights = self.loss.class_weights
        if weights is not None and len(weights) != (2 if self.loss.task == "binary" else self.size):
            return f"{len(weights)} class weights for {self.size} outputs"
        if self.loss.task == "classes" and (len(self.shape) != 1 or self.size < 2):
            return f"cross-entropy of outputs of shape {self.shape}"
        return ""

    def labels(self, chunk: Chunk) -> Labels | None:
        """The labels and weights of a chunk; None for what torch should look at."""
        targets = chunk.targets
        if targets is None or targets.requires_grad:
            return None
        num = len(targets)
        if self.loss.task == "classes":
            if targets.ndim != 1 or targets.dtype != torch.int64 or not _are_within(targets, self.size):
                return None
            classes = np.ascontiguousarray(targets.numpy())
            numbers = np.zeros((num, 0), self.number)
        else:
            each = tuple(targets.shape[1:])
            if each != self.shape and (*each, 1) != self.shape:
                return None
            if self.loss.task == "binary" and not _are_within(targets, 2):
                return None
            numbers = np.ascontiguousarray(targets.reshape(num, self.size).numpy(), self.number)
            classes = np.zeros(num, np.int64)
        weights = np.ones(num, self.number) if chunk.weights is None else chunk.weights.numpy().astype(self.number)
        return classes, numbers, weights


def _are_within(targets: Tensor, num_classes: int) -> bool:
    low, high = targets.aminmax()
    return bool(low >= 0) and bool(high < num_classes)
