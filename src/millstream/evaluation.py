"""What a learner knows, asked without teaching it: metrics over a source, predictions for a source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from millstream.contracts import Loss, Source
from millstream.errors import DataError
from millstream.learner import Learner
from millstream.metrics import Metrics

__all__ = ["evaluate", "metrics_for", "predict"]

_OF_AN_ORDER_IN_TIME = ("window_", "no_change_", "kappa_temporal", "majority_", "mean_")


def evaluate(learner: Learner, source: Source, *, chunk_size: int = 1024) -> dict[str, float]:
    """The metrics of the model as it is, over all records of ``source``."""
    metrics: Metrics | None = None
    for chunk in source.read(size=chunk_size):
        chunk = learner.prepare(chunk, learn=False)
        if not len(chunk):
            continue
        outputs, losses = learner.predict(chunk)
        if losses is None or chunk.targets is None:
            raise DataError(got="records without labels", wanted="labels to compare with", do="use predict instead")
        metrics = metrics or Metrics(**metrics_for(learner.rule.loss, outputs, window=1))
        metrics.update(outputs, chunk.targets, losses)
    report = {} if metrics is None else metrics.report()
    return {name: value for name, value in report.items() if not name.startswith(_OF_AN_ORDER_IN_TIME)}


def predict(learner: Learner, source: Source, *, raw: bool = False, chunk_size: int = 1024) -> Tensor:
    """(N, C) probabilities of classes, (N,) probabilities of a binary label, or (N,) numbers; ``raw``: logits."""
    found = []
    for chunk in source.read(size=chunk_size):
        chunk = learner.prepare(chunk, learn=False)
        if len(chunk):
            found.append(learner.predict(chunk)[0].cpu())
    outputs = torch.cat(found) if found else torch.empty(0)
    task = learner.rule.loss.task
    if raw or task not in ("classes", "binary"):
        return outputs
    return outputs.softmax(-1) if task == "classes" else outputs.sigmoid().reshape(len(outputs))


def metrics_for(loss: Loss, outputs: Tensor, window: int) -> dict[str, Any]:
    """The arguments of the ``Metrics`` that suit a loss and the outputs it is given."""
    made: dict[str, Any] = {"task": loss.task, "num_outputs": outputs.shape[-1] if outputs.ndim > 1 else 1}
    made["window"] = window
    if loss.name.startswith("quantile"):
        made["quantile"] = float(loss.name.partition(":")[2])
    if loss.name == "poisson":
        made["log_rate"] = True
    return made
