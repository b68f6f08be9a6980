"""A named loss as the kernels know it, and labels as they take them.

Shapes: N records, C outputs.
"""

from __future__ import annotations

import dataclasses

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

Labels = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Classes (N,) int64 or numbers (N, C), and weights (N,), None for 1 each, of records; contiguous."""


def refused(loss: Loss) -> str:
    """Why the kernels do not know a loss; empty if they do."""
    return "" if isinstance(loss, NamedLoss) else f"loss {loss.name} is not a named one"


@dataclasses.dataclass(frozen=True, slots=True)
class Criterion:
    """A named loss of outputs of one shape."""

    loss: NamedLoss
    shape: tuple[int, ...]  # of one record's outputs
    size: int  # how many they are
    dtype: torch.dtype  # of the model's numbers

    @property
    def kind(self) -> int:
        """The kernels' number of the loss."""
        return _LOSSES[self.loss.name.partition(":")[0]]

    @property
    def class_weights(self) -> Tensor:
        """One for each class, all 1 if there are none."""
        weights = self.loss.class_weights
        ones = torch.ones(max(2, self.size), dtype=self.dtype)
        return ones if weights is None else weights.detach().to(self.dtype, copy=True).contiguous()

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
        targets, weights = chunk.targets, chunk.weights
        if targets is None or targets.requires_grad:
            return None
        if weights is not None:
            weights = weights.to(self.dtype).contiguous()
        if self.loss.task == "classes":
            if targets.ndim != 1 or targets.dtype != torch.int64 or not _are_within(targets, self.size):
                return None
            return targets.contiguous(), None, weights
        each = tuple(targets.shape[1:])
        if each != self.shape and (*each, 1) != self.shape:
            return None
        if self.loss.task == "binary" and not _are_within(targets, 2):
            return None
        return None, targets.reshape(len(targets), self.size).to(self.dtype).contiguous(), weights


def _are_within(targets: Tensor, num_classes: int) -> bool:
    if len(targets) == 1 and targets.ndim == 1:  # often, and quicker so
        return 0 <= targets.item() < num_classes
    numbers = targets.detach().numpy()  # torch would ask all its threads
    return bool(numbers.min(initial=0) >= 0) and bool(numbers.max(initial=0) < num_classes)
