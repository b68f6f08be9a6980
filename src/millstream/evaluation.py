"""What a learner knows, asked without teaching it: metrics over a source, predictions for a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Loss, Source
from millstream.errors import DataError
from millstream.learner import Learner
from millstream.metrics import Metrics

__all__ = ["evaluate", "metrics_for", "predict", "predictions"]

_OF_AN_ORDER_IN_TIME = ("window_", "no_change_", "kappa_temporal", "majority_", "mean_")


def evaluate(learner: Learner, source: Source, *, chunk_size: int = 1024) -> dict[str, float]:
    """The metrics of the model as it is, over all records of ``source``."""
    metrics: Metrics | None = None
    num_refused = 0
    for chunk in source.read(size=chunk_size):
        chunk = learner.prepare(chunk, learn=False)
        num_refused += len(chunk.rejected)
        if not len(chunk):
            continue
        if metrics is None:
            learner.check(chunk)
        outputs, losses = learner.predict(chunk)
        if losses is None or chunk.targets is None:
            raise DataError(got="records without labels", wanted="labels to compare with", do="use predict instead")
        metrics = metrics or Metrics(**metrics_for(learner.rule.loss, outputs, window=1))
        metrics.update(outputs, chunk.targets, losses)
    report = {} if metrics is None else metrics.report()
    kept = {name: value for name, value in report.items() if not name.startswith(_OF_AN_ORDER_IN_TIME)}
    return {**kept, "num_refused": float(num_refused)}


def predict(learner: Learner, source: Source, *, raw: bool = False, chunk_size: int = 1024) -> Tensor:
    """(N, C) probabilities of classes, (N,) probabilities of a binary label, or (N,) numbers; ``raw``: logits."""
    found = [outputs for chunk, outputs in predictions(learner, source, raw=raw, chunk_size=chunk_size) if len(chunk)]
    return torch.cat(found) if found else torch.empty(0)


def predictions(
    learner: Learner, source: Source, *, raw: bool = False, chunk_size: int = 1024
) -> Iterator[tuple[Chunk, Tensor]]:
    """Chunks and their predictions, as they are read. Labels are not needed, and not looked at."""
    start = 0
    for chunk in source.read(size=chunk_size):
        chunk = learner.prepare(_without_labels(chunk, learner), learn=False)
        if not start and len(chunk):
            learner.check(chunk)
        chunk.start, start = start, start + chunk.span
        outputs = learner.predict(chunk)[0].cpu() if len(chunk) else torch.empty(0)
        task = learner.rule.loss.task
        if len(chunk) and not raw and task in ("classes", "binary"):
            outputs = outputs.softmax(-1) if task == "classes" else outputs.sigmoid().reshape(len(outputs))
        yield chunk, outputs


def _without_labels(chunk: Chunk, learner: Learner) -> Chunk:
    """A label that is not known yet may be empty, or hold anything."""
    if learner.features is None or not isinstance(chunk.inputs, pa.RecordBatch):
        return chunk
    schema = learner.features.schema
    left_out = {schema.target and schema.target.name, schema.weight, schema.label_time}
    kept = [name for name in chunk.inputs.schema.names if name not in left_out]
    return dataclasses.replace(chunk, inputs=chunk.inputs.select(kept))


def metrics_for(loss: Loss, outputs: Tensor, window: int) -> dict[str, Any]:
    """The arguments of the ``Metrics`` that suit a loss and the outputs it is given."""
    made: dict[str, Any] = {"task": loss.task, "num_outputs": outputs.shape[-1] if outputs.ndim > 1 else 1}
    made["window"] = window
    if loss.name.startswith("quantile"):
        made["quantile"] = float(loss.name.partition(":")[2])
    if loss.name == "poisson":
        made["log_rate"] = True
    return made
