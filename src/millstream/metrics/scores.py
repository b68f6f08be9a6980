"""What logits say about each record: the class, the probabilities of that class and of the true one, and rank scores.

Every function is elementwise along the records, so a record gives the same bits in any company: NumPy's loops treat the
ends of arrays like their middles (torch's do not always), and sums over classes are taken in order.

Shapes: N records, C classes, R ranked classes (1 for two classes, the second; else C).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from millstream.metrics.folds import column_sums

__all__ = ["BINS_PER_CLASS", "NUM_BINS", "Scores", "score_binary", "score_classes"]

NUM_BINS = 8192  # of the log odds of two classes
_EVEN = 0.1  # log odds below this are binned evenly, above it by their logarithm
_BINS_PER_NAT = NUM_BINS / 2 / np.arcsinh(40 / _EVEN)  # the outermost bins begin at log odds of ±40
BINS_PER_CLASS = 2048  # of one class against the rest
_BEND = 3.0  # halfway from the middle to the outermost bin is e³ times as rare


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """What was predicted for N records."""

    predicted: npt.NDArray[np.int64]  # (N,)
    true_log_probability: npt.NDArray[np.float64]  # (N,) natural logarithm, of the true class
    top_probability: npt.NDArray[np.float64]  # (N,) of the predicted class
    ranks: npt.NDArray[Any]  # (R, N) scores that order the records, by ranked class
    places: npt.NDArray[np.int32]  # (R, N) bin of each, counted on from class to class; (0, N) if not asked for


def score_binary(log_odds: npt.NDArray[np.float64], targets: npt.NDArray[np.int64]) -> Scores:
    """Scores of (N,) log odds of class 1 against class 0; even odds are class 0.

    >>> score_binary(np.array([0.0]), np.array([1])).top_probability
    array([0.5])
    """
    small = np.exp(-np.abs(log_odds))
    against = log_odds * (1 - 2 * targets)  # log odds of the wrong class
    bins = np.arcsinh(log_odds * (1 / _EVEN))
    bins *= _BINS_PER_NAT
    bins += NUM_BINS / 2
    return Scores(
        predicted=(log_odds > 0).astype(np.int64),
        true_log_probability=-(np.maximum(against, 0.0) + np.log1p(small)),
        top_probability=1.0 / (1.0 + small),
        ranks=log_odds[None],
        places=np.clip(bins, 0, NUM_BINS - 1).astype(np.int32)[None],
    )


def score_classes(logits_NC: npt.NDArray[Any], targets: npt.NDArray[np.int64], *, binned: bool) -> Scores:
    """Scores of (N, C) logits of float32 or float64; of equal logits the first is predicted.

    >>> score_classes(np.zeros((1, 4)), np.array([3]), binned=False).top_probability
    array([0.25])
    """
    num_records, num_classes = logits_NC.shape
    rows = np.arange(0, num_records * num_classes, num_classes)
    logits_CN = logits_NC.T.copy(order="C")  # whatever is per record then runs along contiguous memory
    top = np.maximum.reduce(logits_CN, axis=0)
    predicted = _first_true(logits_CN == top)
    with np.errstate(over="ignore"):  # a difference beyond the largest number is a probability of 0
        logits_CN -= top
    total = column_sums(np.exp(logits_CN).astype(np.float64))
    log_total = np.log(total)
    true = logits_NC.take(rows + targets).astype(np.float64) - top - log_total
    logits_CN -= log_total.astype(logits_CN.dtype)
    return Scores(
        predicted=predicted,
        true_log_probability=true,
        top_probability=1.0 / total,
        ranks=logits_CN,
        places=_class_places(logits_CN, predicted, total) if binned else np.empty((0, num_records), dtype=np.int32),
    )


def _first_true(mask_CN: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(N,) place of the first True of each column. ``argmax`` along short rows branches, five times as slow."""
    num_classes = len(mask_CN)
    from_end = np.arange(num_classes, 0, -1, dtype=np.min_scalar_type(num_classes))
    last: npt.NDArray[Any] = np.maximum.reduce(mask_CN.view(np.uint8) * from_end[:, None], axis=0)
    places: npt.NDArray[np.int64] = num_classes - last.astype(np.int64)
    return places


def _class_places(
    log_probability_CN: npt.NDArray[Any], predicted: npt.NDArray[np.int64], total: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    """Place b / (b − log 2p) of the lower half of bins up to one half, likewise for 1 − p in the upper half above it.

    A bin is narrow where most scores are, and no score is out of range. Only the predicted class can be above one half.
    """
    kind = log_probability_CN.dtype.type
    bend, half = kind(_BEND - np.log(2.0)), kind(_BEND * BINS_PER_CLASS / 2)
    first = np.arange(0, len(log_probability_CN) * BINS_PER_CLASS, BINS_PER_CLASS).astype(kind)
    places = bend - log_probability_CN
    np.divide(half, places, out=places)
    places += first[:, None]
    rest = np.log(total) - np.log(np.maximum(total - 1.0, 1e-300))  # −log(1 − p) of the predicted class
    above = np.minimum(kind(BINS_PER_CLASS) - half / (bend + rest.astype(kind)), kind(BINS_PER_CLASS - 1))
    above += first.take(predicted)
    top = predicted * len(total) + np.arange(len(total))
    below = places.take(top)
    above -= below
    above *= total < 2.0  # `where` would branch
    places.reshape(-1)[top] = below + above
    whole: npt.NDArray[np.int32] = places.astype(np.int32)
    return whole
