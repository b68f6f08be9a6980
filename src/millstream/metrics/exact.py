"""Exact measures as pure functions of arrays, under the conventions of scikit-learn.

A measure that is not defined for what it was given (a rank measure of one class, say) is None, never NaN. This file
knows no state and no tensors.

Shapes: N records, C classes, K outputs, S distinct scores or bins of scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "CALIBRATION_BINS",
    "Margins",
    "accuracy",
    "average_precision",
    "average_precision_of_counts",
    "balanced_accuracy",
    "calibration_bins",
    "calibration_error_of_bins",
    "cohen_kappa",
    "confusion_matrix",
    "entropy",
    "expected_calibration_error",
    "macro_f1",
    "mean_over_classes",
    "normalised_entropy",
    "pinball",
    "r2",
    "r2_of_sums",
    "roc_auc",
    "roc_auc_of_counts",
    "temporal_kappa",
]

Array: TypeAlias = npt.NDArray[Any]
CALIBRATION_BINS = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Margins:
    """What most measures need of a confusion matrix: its diagonal and its two margins, each (C,).

    >>> Margins.of(np.array([[3, 1], [0, 2]]))
    Margins(hits=array([3, 2]), targets=array([4, 2]), predicted=array([3, 3]))
    """

    hits: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]

    @classmethod
    def of(cls, confusion: Array | Margins) -> Margins:
        """From a (C, C) confusion matrix, true class by predicted class."""
        if isinstance(confusion, Margins):
            return confusion
        return cls(np.diagonal(confusion).copy(), confusion.sum(1), confusion.sum(0))

    @classmethod
    def count(cls, targets: Array, predicted: Array, num_classes: int) -> Margins:
        """From (N,) true and predicted classes."""
        hit = targets == predicted
        misses, hits = np.bincount(targets + num_classes * hit, minlength=2 * num_classes).reshape(2, -1)
        return cls(hits, misses + hits, np.bincount(predicted, minlength=num_classes))


def confusion_matrix(targets: Array, predicted: Array, num_classes: int) -> npt.NDArray[np.int64]:
    """How often each true class was predicted as each class: (C, C), true class by predicted class.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
    array([[1, 0],
           [1, 1]])
    """
    cells = np.bincount(targets * num_classes + predicted, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes)


def accuracy(confusion: Array | Margins) -> float | None:
    """The share of records predicted right.

    >>> accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    margins = Margins.of(confusion)
    return _ratio(margins.hits.sum(), margins.targets.sum())


def balanced_accuracy(confusion: Array | Margins) -> float | None:
    """The mean recall over the classes that occur as targets.

    >>> balanced_accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    margins = Margins.of(confusion)
    present = margins.targets > 0
    return float(np.mean(margins.hits[present] / margins.targets[present])) if present.any() else None


def macro_f1(confusion: Array | Margins) -> float | None:
    """The mean F1 over the classes that occur as targets or predictions.

    >>> round(macro_f1(np.array([[1, 1], [0, 2]])), 4)
    0.7333
    """
    margins = Margins.of(confusion)
    either = margins.targets + margins.predicted
    present = either > 0
    return float(np.mean(2.0 * margins.hits[present] / either[present])) if present.any() else None


def cohen_kappa(confusion: Array | Margins) -> float | None:
    """Agreement beyond chance (Cohen 1960): (observed − expected) / (1 − expected); None when chance is always right.

    >>> cohen_kappa(np.array([[2, 0], [1, 1]]))
    0.5
    """
    margins = Margins.of(confusion)
    total = float(margins.targets.sum())
    if not total:
        return None
    chance = float(np.dot(margins.targets / total, margins.predicted / total))
    return _ratio(float(margins.hits.sum()) / total - chance, 1.0 - chance)


def temporal_kappa(model: float, no_change: float) -> float | None:
    """Accuracy beyond the no-change forecast (Žliobaitė et al. 2015); None when no change is always right.

    >>> temporal_kappa(0.75, 0.5)
    0.5
    """
    return _ratio(model - no_change, 1.0 - no_change)


def entropy(counts: Array) -> float | None:
    """The entropy in nats of the frequencies of (C,) counts.

    >>> round(entropy(np.array([5, 5])), 4)
    0.6931
    """
    total = counts.sum()
    if not total:
        return None
    shares = counts[counts > 0] / total
    return float(-np.sum(shares * np.log(shares))) + 0.0


def normalised_entropy(log_loss: float, counts: Array) -> float | None:
    """The log loss over that of always predicting the class frequencies (He et al. 2014); below 1 is better than them.

    >>> round(normalised_entropy(0.34657, np.array([5, 5])), 3)
    0.5
    """
    background = entropy(counts)
    return None if background is None else _ratio(log_loss, background)


def roc_auc(scores: Array, labels: Array) -> float | None:
    """The area under the ROC curve of (N,) scores and (N,) true or false labels; ties count one half.

    >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    return roc_auc_of_counts(*_counts_by_score(scores, labels))


def roc_auc_of_counts(positives: Array, negatives: Array) -> float | None:
    """The area under the ROC curve, from (S,) counts of positives and negatives at each score, lowest score first.

    >>> roc_auc_of_counts(np.array([0, 1]), np.array([1, 0]))
    1.0
    """
    num_positives, num_negatives = float(positives.sum()), float(negatives.sum())
    if not num_positives or not num_negatives:
        return None
    below = np.cumsum(negatives) - negatives / 2.0
    return float(np.dot(positives / num_positives, below / num_negatives))


def average_precision(scores: Array, labels: Array) -> float | None:
    """The area under the precision-recall curve as a step function, of (N,) scores and (N,) true or false labels.

    >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])), 4)
    0.8333
    """
    return average_precision_of_counts(*_counts_by_score(scores, labels))


def average_precision_of_counts(positives: Array, negatives: Array) -> float | None:
    """Average precision, from (S,) counts of positives and negatives at each score, lowest score first.

    >>> average_precision_of_counts(np.array([0, 1]), np.array([1, 0]))
    1.0
    """
    used = positives > 0
    if not used.any():
        return None
    hits = np.cumsum(positives[::-1])[::-1][used]
    chosen = np.cumsum((positives + negatives)[::-1])[::-1][used]
    return float(np.dot(positives[used] / float(positives.sum()), hits / chosen))


def mean_over_classes(measure: Callable[[int], float | None], num_classes: int) -> float | None:
    """The mean of a measure over the classes for which it is defined (one class against the rest, say).

    >>> mean_over_classes(lambda k: None if k == 1 else float(k), 3)
    1.0
    """
    values = [value for value in map(measure, range(num_classes)) if value is not None]
    return float(np.mean(values)) if values else None


def expected_calibration_error(top_probabilities: Array, correct: Array) -> float | None:
    """How far confidence is from accuracy: Σ over bins of (share of records) · \\|accuracy − mean confidence\\|.

    There are 15 bins of equal width of the predicted class's probability (Guo et al. 2017), each with its lower edge.

    >>> round(expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False])), 3)
    0.4
    """
    bins = calibration_bins(top_probabilities)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    hits = np.bincount(bins[correct.astype(bool)], minlength=CALIBRATION_BINS)
    return calibration_error_of_bins(counts, hits, np.bincount(bins, top_probabilities, CALIBRATION_BINS))


def calibration_bins(top_probabilities: Array) -> npt.NDArray[np.int64]:
    """(N,) which of the bins of equal width each probability is in.

    >>> calibration_bins(np.array([0.0, 0.5, 1.0]))
    array([ 0,  7, 14])
    """
    return np.minimum((top_probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def calibration_error_of_bins(counts: Array, hits: Array, confidence: Array) -> float | None:
    """The expected calibration error, from each bin's number of records, of hits, and its sum of confidence.

    >>> calibration_error_of_bins(np.array([4]), np.array([2]), np.array([3.0]))
    0.25
    """
    return _ratio(float(np.abs(hits - confidence).sum()), float(counts.sum()))


def pinball(errors: Array, quantile: float) -> Array:
    """The pinball loss (Koenker and Bassett 1978) of errors (target − prediction), of the same shape.

    >>> pinball(np.array([2.0, -2.0]), 0.75)
    array([1.5, 0.5])
    """
    return np.maximum(quantile * errors, (quantile - 1.0) * errors)


def r2(errors: Array, targets: Array) -> float | None:
    """The share of variance explained, of (K, N) errors and targets: the mean over the outputs whose target varies.

    >>> r2(np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]]))
    0.5
    """
    deviations = targets - targets[:, :1]
    sums = np.square(errors).sum(1), deviations.sum(1), np.square(deviations).sum(1)
    return r2_of_sums(*sums, targets.shape[1])


def r2_of_sums(squared_errors: Array, deviations: Array, squared_deviations: Array, count: int) -> float | None:
    """R², from (K,) sums of squared errors and of (squared) deviations of the target from any one of its values.

    >>> r2_of_sums(np.array([1.0]), np.array([2.0]), np.array([4.0]), 2)
    0.5
    """
    if count < 2:
        return None
    spread = squared_deviations - deviations * (deviations / count)
    varies = spread > 1e-12 * squared_deviations  # less is what rounding leaves of no variance at all
    return float(np.mean(1.0 - squared_errors[varies] / spread[varies])) if varies.any() else None


def _counts_by_score(scores: Array, labels: Array) -> tuple[Array, Array]:
    distinct, place = np.unique(scores, return_inverse=True)
    every = np.bincount(place, minlength=len(distinct))
    positives = np.bincount(place[labels.astype(bool)], minlength=len(distinct))
    return positives, every - positives


def _ratio(over: float, under: float) -> float | None:
    return float(over / under) if under else None
