"""Running measures of classes, from logits: two (one logit, or two) or more.

Shapes: N records, C classes, R ranked classes (1 for two classes, C for up to 20, else none).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from millstream.contracts import State
from millstream.errors import DataError, ModelError
from millstream.losses import IGNORED
from millstream.metrics import exact
from millstream.metrics.baselines import Given, LatestKnown, MajorityBaseline
from millstream.metrics.curves import RankHistogram
from millstream.metrics.folds import RunningSums, as_array, restored, usable
from millstream.metrics.scores import BINS_PER_CLASS, NUM_BINS, Scores, score_binary, score_classes
from millstream.metrics.window import Ring

__all__ = ["ClassMeasures"]

_MAX_RANKED = 20
_FLOAT, _CLASS, _HIT = np.dtype(np.float64), np.dtype(np.int64), np.dtype(np.uint8)


class ClassMeasures:
    """Everything that is measured of classes. See ``Metrics`` for the words."""

    headline = ("accuracy", "no_change_accuracy")

    def __init__(self, num_classes: int, window: int) -> None:
        self._num_classes = num_classes
        num_ranked = 1 if num_classes == 2 else num_classes if num_classes <= _MAX_RANKED else 0
        self._known = LatestKnown(np.array(-1))
        self._majority = MajorityBaseline(num_classes)
        self._ranks = RankHistogram(num_ranked, NUM_BINS if num_ranked == 1 else BINS_PER_CLASS)
        self._margins = np.zeros((3, num_classes), dtype=np.int64)  # hits, targets, predicted
        self._counts = np.zeros(4, dtype=np.int64)  # records, no-change hits, majority hits, left out
        self._sums = RunningSums(2)  # training loss, log probability of the true class
        self._calibration = np.zeros((2, exact.CALIBRATION_BINS), dtype=np.int64)  # misses, hits
        self._confidence = np.zeros(exact.CALIBRATION_BINS)
        self._ring = Ring(
            window,
            target=(_CLASS, ()),
            predicted=(_CLASS, ()),
            true_log_probability=(_FLOAT, ()),
            top_probability=(_FLOAT, ()),
            ranks=(_FLOAT, (num_ranked,)),
            loss=(_FLOAT, ()),
            no_change_hit=(_HIT, ()),
            majority_hit=(_HIT, ()),
        )

    def fold(
        self, outputs: Tensor, targets: Tensor, losses: npt.NDArray[np.float64], given: Given, guessed: Given = ()
    ) -> None:
        """Take up N records."""
        logits, labels = self._logits(outputs), self._labels(targets)
        known = self._known.resolve(labels, [(first, self._as_classes(values)) for first, values in given])
        majority_class = self._majority.predict(known)
        for first, values in guessed:
            majority_class[first : first + len(values)] = self._as_classes(values)
        no_change, majority = known == labels, majority_class == labels
        kept = usable(logits) & usable(losses) & (labels >= 0)
        if not kept.all():
            self._counts[3] += len(kept) - np.count_nonzero(kept)
            logits, labels, losses = logits[kept], labels[kept], losses[kept]
            no_change, majority = no_change[kept], majority[kept]
        if len(labels):
            scores = self._score(logits, labels)
            self._add(scores, labels, losses, no_change, majority)

    def _score(self, logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Scores:
        if self._num_classes > 2:
            return score_classes(logits, labels, binned=self._num_classes <= _MAX_RANKED)
        if logits.ndim == 2:
            logits = logits[:, 1].astype(np.float64) - logits[:, 0]
        return score_binary(logits.astype(np.float64), labels)

    def _add(
        self,
        scores: Scores,
        labels: npt.NDArray[np.int64],
        losses: npt.NDArray[np.float64],
        no_change: npt.NDArray[np.bool_],
        majority: npt.NDArray[np.bool_],
    ) -> None:
        margins = exact.Margins.count(labels, scores.predicted, self._num_classes)
        self._margins += (margins.hits, margins.targets, margins.predicted)
        self._counts[:3] += (len(labels), int(no_change.sum()), int(majority.sum()))
        self._sums.add(np.stack([losses, scores.true_log_probability]))
        self._add_calibration(scores.top_probability, scores.predicted == labels)
        if len(scores.places) == 1:
            self._ranks.fold(scores.places, scores.places[0].take(np.flatnonzero(labels == 1)))
        elif len(scores.places):
            self._ranks.fold(scores.places, scores.places.take(labels * len(labels) + np.arange(len(labels))))
        self._ring.append(
            len(labels),
            target=labels,
            predicted=scores.predicted,
            true_log_probability=scores.true_log_probability,
            top_probability=scores.top_probability,
            ranks=scores.ranks[: self._ring["ranks"].shape[0]],
            loss=losses,
            no_change_hit=no_change,
            majority_hit=majority,
        )

    def _add_calibration(self, top_probability: npt.NDArray[np.float64], hit: npt.NDArray[np.bool_]) -> None:
        bins, size = exact.calibration_bins(top_probability), exact.CALIBRATION_BINS
        self._calibration += np.bincount(bins + size * hit, minlength=2 * size).reshape(2, size)
        # `bincount` adds one record after another; the sums so far go first, so that the cut does not matter.
        confidence = np.concatenate([self._confidence, top_probability])
        self._confidence = np.bincount(np.concatenate([np.arange(size), bins]), confidence).astype(
            np.float64, copy=False
        )

    def report(self) -> dict[str, float | None]:
        """The measures since the start and, as ``window_…``, over the window."""
        count, no_change, majority, left_out = self._counts.tolist()
        report: dict[str, float | None] = {"count": count, "num_nonfinite": left_out}
        if not count:
            return report
        window = self._window()
        exactly = count == len(self._ring)  # the window is all there is: no need to estimate
        misses, hits = self._calibration
        loss, log_probability = self._sums.totals().tolist()
        report |= _summary(
            exact.Margins(*self._margins),
            log_loss=-log_probability / count,
            no_change=no_change / count,
            majority=majority / count,
            calibration=exact.calibration_error_of_bins(misses + hits, hits, self._confidence),
            roc_auc=window["roc_auc"] if exactly else self._ranks.mean(exact.roc_auc_of_counts),
            pr_auc=window["pr_auc"] if exactly else self._ranks.mean(exact.average_precision_of_counts),
            loss=loss / count,
        )
        return report | {f"window_{name}": value for name, value in window.items()}

    def _window(self) -> dict[str, float | None]:
        ring = self._ring
        targets, predicted, ranks = ring["target"], ring["predicted"], ring["ranks"]
        true = [targets == (1 if len(ranks) == 1 else k) for k in range(len(ranks))]
        summary = _summary(
            exact.Margins.count(targets, predicted, self._num_classes),
            log_loss=-float(np.mean(ring["true_log_probability"])),
            no_change=float(np.mean(ring["no_change_hit"])),
            majority=float(np.mean(ring["majority_hit"])),
            calibration=exact.expected_calibration_error(ring["top_probability"], predicted == targets),
            roc_auc=exact.mean_over_classes(lambda k: exact.roc_auc(ranks[k], true[k]), len(ranks)),
            pr_auc=exact.mean_over_classes(lambda k: exact.average_precision(ranks[k], true[k]), len(ranks)),
            loss=float(np.mean(ring["loss"])),
        )
        return {"count": len(ring), **summary}

    def window_headline(self) -> tuple[float, float | None] | None:
        """Accuracy over the window and that of no change; None before the first record."""
        ring, size = self._ring, len(self._ring)
        if not size:
            return None
        hits = int(np.count_nonzero(ring["target"] == ring["predicted"]))
        return hits / size, int(np.count_nonzero(ring["no_change_hit"])) / size

    def window_values(self, name: str) -> npt.NDArray[np.float64] | None:
        """Of each record of the window its loss, or whether it, or a baseline, was right."""
        ring = self._ring
        values: dict[str, Callable[[], npt.NDArray[Any]]] = {
            "accuracy": lambda: ring["target"] == ring["predicted"],
            "no_change_accuracy": lambda: ring["no_change_hit"],
            "majority_accuracy": lambda: ring["majority_hit"],
            "log_loss": lambda: -ring["true_log_probability"],
            "loss": lambda: ring["loss"],
        }
        return values[name]().astype(np.float64) if name in values else None

    def _logits(self, outputs: Tensor) -> npt.NDArray[Any]:
        logits = as_array(outputs)
        if self._num_classes == 2 and logits.ndim == 2 and logits.shape[1] == 1:
            return logits[:, 0]
        if logits.ndim == 1 and self._num_classes == 2:
            return logits
        if logits.ndim != 2 or logits.shape[1] != self._num_classes:
            raise ModelError(
                got=f"outputs of shape {tuple(outputs.shape)}",
                wanted=f"one logit for each of {self._num_classes} classes",
                do="change the model's last layer or the loss",
            )
        return logits

    def _labels(self, targets: Tensor) -> npt.NDArray[np.int64]:
        found = as_array(targets)
        if found.ndim == 2 and found.shape[1] == self._num_classes > 1:  # probabilities: the likeliest
            return np.where(np.isfinite(found).all(1), found.argmax(1), -1)
        return self._as_classes(found.reshape(len(targets)))

    def _as_classes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes as int64; −1 for none, be it −1, torch's −100 or NaN."""
        classes = values
        if values.dtype.kind == "f":
            classes = np.where(np.isfinite(values), values, -1).astype(np.int64)
            odd = np.flatnonzero(np.isfinite(values) & (classes != values))
        else:
            odd = np.flatnonzero([])
        classes = classes.astype(np.int64, copy=False)
        classes = np.where(classes == IGNORED, -1, classes) if (classes == IGNORED).any() else classes
        if classes.size and (classes.min() < -1 or classes.max() >= self._num_classes):
            odd = np.flatnonzero((classes < -1) | (classes >= self._num_classes))
        if len(odd):
            raise DataError(
                got=f"the class {values[odd[0]]}",
                wanted=f"a whole number from 0 to {self._num_classes - 1}",
                do="map the labels to classes, or give the model more outputs",
            )
        return classes

    def state_dict(self) -> State:
        return {
            **{name: getattr(self, f"_{name}").copy() for name in _ARRAYS},
            **{name: getattr(self, f"_{name}").state_dict() for name in _PARTS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _ARRAYS:
            setattr(self, f"_{name}", restored(state, name, getattr(self, f"_{name}")))
        for name in _PARTS:
            getattr(self, f"_{name}").load_state_dict(state.get(name, {}))


_ARRAYS = ("margins", "counts", "calibration", "confidence")
_PARTS = ("sums", "known", "majority", "ranks", "ring")


def _summary(
    margins: exact.Margins, *, log_loss: float, no_change: float, majority: float, **others: float | None
) -> dict[str, float | None]:
    accuracy = exact.accuracy(margins) or 0.0
    return {
        "accuracy": accuracy,
        "balanced_accuracy": exact.balanced_accuracy(margins),
        "macro_f1": exact.macro_f1(margins),
        "kappa": exact.cohen_kappa(margins),
        "kappa_temporal": exact.temporal_kappa(accuracy, no_change),
        "no_change_accuracy": no_change,
        "majority_accuracy": majority,
        "log_loss": log_loss,
        "normalised_entropy": exact.normalised_entropy(log_loss, margins.targets),
        **others,
    }
