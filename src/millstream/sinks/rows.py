"""Rows of outcomes, from what the loop has: positions, raw outputs, targets, losses.

    position    int64     run position of the record, the key of its rows
    kind        string    "prediction"; "label" where the label came later than its prediction
    id          string    the record's own, or null
    prediction  string    name of the class (its number where it has none); a number is float64, several are a list
    score       float64   probability of the predicted class; null for numbers
    label       as prediction; null while it is not known
    loss        float64   null without a label

Shapes: N records, C classes, K numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from millstream.errors import DataError

__all__ = ["label_rows", "outcome_rows"]

_Ids: TypeAlias = "Sequence[str | None] | pa.Array | None"


def outcome_rows(
    positions: npt.NDArray[np.int64],
    outputs: Tensor,
    task: str,
    *,
    ids: _Ids = None,
    targets: Tensor | None = None,
    losses: Tensor | None = None,
    names: Sequence[str] = (),
    log_rate: bool = False,
) -> pa.RecordBatch:
    """What was predicted of N records before their update, with labels and losses where they are known already.

    ``outputs``: (N, C) logits of ``classes``, (N,) or (N, 1) logits of ``binary``, (N,) or (N, K) numbers. ``targets``
    and ``losses`` as ``Metrics.update`` takes them. ``names`` are of the classes; ``log_rate`` says that outputs are
    logarithms. A prediction whose outputs are not finite is null, as is the label −100.

    >>> import torch
    >>> rows = outcome_rows(np.arange(2), torch.tensor([[0.0, 0.0], [0.0, 9.0]]), "classes", names=("no", "yes"))
    >>> rows["prediction"].to_pylist(), rows["score"].to_pylist()[0]
    (['no', 'yes'], 0.5)
    """
    values = _array(outputs)
    if task in ("classes", "binary"):
        places, scores = _scored(values, task)
        num_classes = 2 if task == "binary" else values.shape[1]
        prediction = _named(places, np.isfinite(scores), names, num_classes)
        score = pa.array(scores, pa.float64(), mask=~np.isfinite(scores))
    else:
        prediction = _numbers(np.exp(values) if log_rate else values, task)
        score = pa.nulls(len(values), pa.float64())
    label = pa.nulls(len(values), prediction.type) if targets is None else _labels(targets, task, names)
    return _batch(positions, "prediction", ids, prediction, score, label, losses)


def label_rows(
    positions: npt.NDArray[np.int64],
    targets: Tensor,
    task: str,
    *,
    ids: _Ids = None,
    losses: Tensor | None = None,
    names: Sequence[str] = (),
) -> pa.RecordBatch:
    """Labels that came later than their predictions, whose positions they have.

    >>> import torch
    >>> label_rows(np.array([7]), torch.tensor([1]), "classes", names=("no", "yes")).to_pylist()[0]["label"]
    'yes'
    """
    label = _labels(targets, task, names)
    return _batch(
        positions,
        "label",
        ids,
        pa.nulls(len(label), label.type),
        pa.nulls(len(label), pa.float64()),
        label,
        losses,
    )


def _batch(
    positions: npt.NDArray[np.int64],
    kind: str,
    ids: _Ids,
    prediction: pa.Array,
    score: pa.Array,
    label: pa.Array,
    losses: Tensor | None,
) -> pa.RecordBatch:
    size = len(prediction)
    columns = {
        "position": pa.array(positions, pa.int64()),
        "kind": pa.repeat(kind, size),
        "id": pa.nulls(size, pa.string()) if ids is None else pa.array(ids, pa.string()),
        "prediction": prediction,
        "score": score,
        "label": label,
        "loss": pa.nulls(size, pa.float64()) if losses is None else pa.array(_array(losses).reshape(-1), pa.float64()),
    }
    for name, column in columns.items():
        if len(column) != size:
            raise DataError(got=f"{len(column)} values of {name}", wanted=f"{size}", do="give one for each record")
    return pa.RecordBatch.from_pydict(columns)


def _scored(logits: npt.NDArray[Any], task: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(N,) predicted classes and their probabilities; of equal logits the first is predicted."""
    with np.errstate(invalid="ignore", over="ignore"):
        if task == "binary":
            log_odds = logits.reshape(len(logits)).astype(np.float64)
            return (log_odds > 0).astype(np.int64), 1.0 / (1.0 + np.exp(-np.abs(log_odds)))
        places = logits.argmax(1)
        tops = np.take_along_axis(logits, places[:, None], 1)
        return places, 1.0 / np.exp(logits - tops).sum(1, dtype=np.float64)


def _labels(targets: Tensor, task: str, names: Sequence[str]) -> pa.Array:
    values = _array(targets)
    if task not in ("classes", "binary"):
        return _numbers(values, task)
    if task == "classes" and values.ndim == 2 and values.shape[1] > 1:  # probabilities: the likeliest
        return _named(values.argmax(1), np.isfinite(values).all(1), names, values.shape[1])
    values = values.reshape(len(values))
    known = np.isfinite(values) & (values >= 0)
    places = np.where(known, values > 0.5 if task == "binary" else values, 0).astype(np.int64)
    return _named(places, known, names, int(places.max(initial=1)) + 1)


def _named(
    places: npt.NDArray[np.int64], known: npt.NDArray[np.bool_], names: Sequence[str], num_classes: int
) -> pa.Array:
    table = pa.array([*names[:num_classes], *(str(place) for place in range(len(names), num_classes))], pa.string())
    return table.take(pa.array(places, mask=~known))


def _numbers(values: npt.NDArray[Any], task: str) -> pa.Array:
    """float64, or lists of them; always lists where nobody knows what they mean."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    if task == "number" and rows.shape[1] == 1:
        return pa.array(rows[:, 0])
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * np.int32(rows.shape[1]))
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    array: npt.NDArray[Any] = (
        tensor.float() if tensor.element_size() < 4 and tensor.is_floating_point() else tensor
    ).numpy()
    return array
