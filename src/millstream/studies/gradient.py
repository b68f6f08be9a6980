"""How the variance of the gradient falls with the batch size: the 1/B law that is the reason for averaging, measured.

For independent records, the mean of B gradients has 1/B of the variance of one (Bottou, Curtis and Nocedal 2018,
section 4.1). Here batches of every size are drawn, with replacement, and their gradients are computed and compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from millstream.contracts import Chunk, Source
from millstream.trainer import Trainer

__all__ = ["gradient_variance"]


def gradient_variance(
    trainer: Trainer,
    source: Source,
    *,
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    num_batches: int = 64,
    num_records: int = 8192,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of batch size, variance (the mean of ‖g_B − g‖² over batches), and variance times batch size.

    The trainer's model is used as it is, in train mode without an update; g is the gradient over all ``num_records``.
    """
    rng = np.random.default_rng([seed, 0x6772])
    total = source.num_records or 0
    numbers = np.sort(rng.permutation(total)[:num_records])
    chunk = trainer.learner.prepare(source.take(numbers), learn=False)
    mean = _gradient(trainer, chunk)
    rows = []
    for size in batch_sizes:
        if size > len(chunk):
            break
        distances = []
        for _ in range(num_batches):
            batch = chunk.select(rng.integers(len(chunk), size=size))
            distances.append(float((_gradient(trainer, batch) - mean).square().sum()))
        variance = float(np.mean(distances))
        rows.append({"batch_size": size, "variance": variance, "variance_times_batch": variance * size})
    return rows


def _gradient(trainer: Trainer, chunk: Chunk) -> Tensor:
    """The gradient of the mean loss, as one vector; it leaves no trace in the model."""
    rule = trainer.learner.rule
    assert chunk.targets is not None
    targets = trainer.learner.scaled(chunk.targets)
    parameters = [p for p in rule.model.parameters() if p.requires_grad]
    objective = rule.loss(rule.model(chunk.inputs), targets).mean()
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
    return torch.cat([g.to_dense().flatten() for g in gradients if g is not None])
