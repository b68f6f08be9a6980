"""Running measures of numbers: errors in the target's own units.

Shapes: N records, K outputs. Arrays are (K, N): what is per output runs along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from millstream.contracts import State
from millstream.errors import ModelError
from millstream.metrics import exact
from millstream.metrics.baselines import Given, LatestKnown
from millstream.metrics.folds import RunningSums, as_array, restored, running_sums, usable
from millstream.metrics.window import Ring

__all__ = ["NumberMeasures"]

_FLOAT = np.dtype(np.float64)


class NumberMeasures:
    """Everything that is measured of numbers. See ``Metrics`` for the words."""

    headline = ("mae", "no_change_mae")

    def __init__(self, num_outputs: int, window: int, quantile: float, log_rate: bool) -> None:
        self._quantile, self._log_rate = quantile, log_rate
        self._known = LatestKnown(np.full(num_outputs, np.nan))
        self._known_sum = np.zeros(num_outputs)
        self._counts = np.zeros(4, dtype=np.int64)  # records, of them with a known label; labels known; left out
        self._loss = RunningSums(1)
        self._sums = RunningSums(len(_SUMS) * num_outputs)
        self._origin = np.full(num_outputs, np.nan)  # the first target, from which deviations are measured
        each = (_FLOAT, (num_outputs,))
        self._ring = Ring(window, target=each, error=each, no_change_error=each, mean_error=each, loss=(_FLOAT, ()))

    def fold(
        self, outputs: Tensor, targets: Tensor, losses: npt.NDArray[np.float64], given: Given, guessed: Given = ()
    ) -> None:
        """Take up N records."""
        predicted, wanted = self._columns(outputs), self._columns(targets)
        if self._log_rate:
            with np.errstate(over="ignore"):
                predicted = np.exp(predicted)
        no_change = self._known.resolve(wanted, given)
        no_change[:, ~usable(no_change.T)] = np.nan
        mean = self._running_mean(no_change)
        for first, values in guessed:
            mean[:, first : first + len(values)] = values
        kept = usable(predicted.T) & usable(wanted.T) & usable(losses)
        if not kept.all():
            self._counts[3] += len(kept) - np.count_nonzero(kept)
            predicted, wanted, no_change, mean = (values[:, kept] for values in (predicted, wanted, no_change, mean))
            losses = losses[kept]
        if len(losses):
            self._add(wanted, wanted - predicted, wanted - no_change, wanted - mean, losses)

    def _running_mean(self, known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(K, N) the mean of what was known up to each record, NaN before anything was."""
        is_known = ~np.isnan(known[0])
        sums = running_sums(self._known_sum, np.where(is_known, known, 0.0))[:, 1:]
        counts = self._counts[2] + np.add.accumulate(is_known, dtype=np.int64)
        self._known_sum, self._counts[2] = sums[:, -1].copy(), counts[-1]
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def _add(
        self,
        wanted: npt.NDArray[np.float64],
        error: npt.NDArray[np.float64],
        no_change_error: npt.NDArray[np.float64],
        mean_error: npt.NDArray[np.float64],
        losses: npt.NDArray[np.float64],
    ) -> None:
        if np.isnan(self._origin[0]):
            self._origin = wanted[:, 0].copy()
        is_known = ~np.isnan(no_change_error[0])
        self._counts[:2] += (len(losses), int(is_known.sum()))
        self._loss.add(losses[None])
        change = np.where(is_known, no_change_error, 0.0)
        deviation = wanted - self._origin[:, None]
        terms = {
            "absolute_error": np.abs(error),
            "squared_error": np.square(error),
            "pinball": exact.pinball(error, self._quantile),
            "deviation": deviation,
            "squared_deviation": np.square(deviation),
            "no_change_absolute_error": np.abs(change),
            "no_change_squared_error": np.square(change),
            "mean_absolute_error": np.abs(np.where(np.isnan(mean_error), 0.0, mean_error)),
        }
        self._sums.add(np.concatenate([terms[name] for name in _SUMS]))
        self._ring.append(
            len(losses),
            target=wanted,
            error=error,
            no_change_error=no_change_error,
            mean_error=mean_error,
            loss=losses,
        )

    def report(self) -> dict[str, float | None]:
        """The measures since the start and, as ``window_…``, over the window."""
        count, num_known, _, left_out = self._counts.tolist()
        report: dict[str, float | None] = {"count": count, "num_nonfinite": left_out}
        if not count:
            return report
        sums = dict(zip(_SUMS, self._sums.totals().reshape(len(_SUMS), -1), strict=True))
        mean = {name: float(np.mean(values)) / count for name, values in sums.items()}
        report |= {
            "mae": mean["absolute_error"],
            "rmse": mean["squared_error"] ** 0.5,
            "r2": exact.r2_of_sums(sums["squared_error"], sums["deviation"], sums["squared_deviation"], count),
            "pinball": mean["pinball"],
            "loss": float(self._loss.totals()[0]) / count,
        }
        if num_known:
            report |= {
                "no_change_mae": mean["no_change_absolute_error"] * count / num_known,
                "no_change_rmse": (mean["no_change_squared_error"] * count / num_known) ** 0.5,
                "mean_mae": mean["mean_absolute_error"] * count / num_known,
            }
        return report | {f"window_{name}": value for name, value in self._window().items()}

    def _window(self) -> dict[str, float | None]:
        ring = self._ring
        error, change, loss = ring["error"], ring["no_change_error"], ring["loss"]
        summary: dict[str, float | None] = {
            "count": len(ring),
            "mae": float(np.mean(np.abs(error))),
            "rmse": float(np.mean(np.square(error))) ** 0.5,
            "r2": exact.r2(error, ring["target"]),
            "pinball": float(np.mean(exact.pinball(error, self._quantile))),
            "loss": float(np.mean(loss)),
        }
        is_known = ~np.isnan(change[0])
        if is_known.any():
            change = change[:, is_known]
            summary |= {
                "no_change_mae": float(np.mean(np.abs(change))),
                "no_change_rmse": float(np.mean(np.square(change))) ** 0.5,
                "mean_mae": float(np.mean(np.abs(ring["mean_error"][:, is_known]))),
            }
        return summary

    def window_headline(self) -> tuple[float, float | None] | None:
        """Mean absolute error over the window and that of no change, if any label was known; None before a record."""
        if not len(self._ring):
            return None
        change = self._ring["no_change_error"]
        change = change[:, ~np.isnan(change[0])]
        baseline = float(np.mean(np.abs(change))) if change.size else None
        return float(np.mean(np.abs(self._ring["error"]))), baseline

    def window_values(self, name: str) -> npt.NDArray[np.float64] | None:
        """Of each record of the window its loss, or its absolute error, or that of a baseline."""
        columns = {"mae": "error", "no_change_mae": "no_change_error", "mean_mae": "mean_error"}
        if name == "loss":
            return self._ring["loss"].copy()
        if name not in columns:
            return None
        values: npt.NDArray[np.float64] = np.mean(np.abs(self._ring[columns[name]]), axis=0)
        return values

    def _columns(self, tensor: Tensor) -> npt.NDArray[np.float64]:
        """(N,) or (N, K) numbers as contiguous (K, N)."""
        num_outputs, num_records = len(self._known_sum), tensor.shape[0]
        if tensor.numel() != num_outputs * num_records:
            raise ModelError(
                got=f"numbers of shape {tuple(tensor.shape)}",
                wanted=f"{num_outputs} for each record",
                do="change the model's last layer or the loss",
            )
        rows = as_array(tensor).reshape(num_records, num_outputs)
        return np.ascontiguousarray(rows.T, dtype=np.float64)

    def state_dict(self) -> State:
        arrays = {name: getattr(self, f"_{name}").copy() for name in _ARRAYS}
        return arrays | {name: getattr(self, f"_{name}").state_dict() for name in _PARTS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _ARRAYS:
            setattr(self, f"_{name}", restored(state, name, getattr(self, f"_{name}")))
        for name in _PARTS:
            getattr(self, f"_{name}").load_state_dict(state.get(name, {}))


_ARRAYS = ("known_sum", "counts", "origin")
_PARTS = ("loss", "sums", "known", "ring")
_SUMS = (
    "absolute_error",
    "squared_error",
    "pinball",
    "deviation",
    "squared_deviation",
    "no_change_absolute_error",
    "no_change_squared_error",
    "mean_absolute_error",
)
