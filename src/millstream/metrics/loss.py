"""The running mean of the training loss alone, for losses whose outputs have no meaning that is known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from millstream.contracts import State
from millstream.metrics.baselines import Given
from millstream.metrics.folds import RunningSums, restored, usable
from millstream.metrics.window import Ring

__all__ = ["LossMeasures"]


class LossMeasures:
    """The mean loss. Outputs and targets are not looked at."""

    headline = ("loss", None)

    def __init__(self, window: int) -> None:
        self._counts = np.zeros(2, dtype=np.int64)  # records, left out
        self._sum = RunningSums(1)
        self._ring = Ring(window, loss=(np.dtype(np.float64), ()))

    def fold(
        self, outputs: Tensor, targets: Tensor, losses: npt.NDArray[np.float64], given: Given, guessed: Given = ()
    ) -> None:
        """Take up N records."""
        kept = losses[usable(losses)]
        self._counts += (len(kept), len(losses) - len(kept))
        self._sum.add(kept[None])
        self._ring.append(len(kept), loss=kept)

    def report(self) -> dict[str, float | None]:
        """The mean loss since the start and over the window."""
        count, left_out = self._counts.tolist()
        report: dict[str, float | None] = {"count": count, "num_nonfinite": left_out}
        if count:
            report["loss"] = float(self._sum.totals()[0]) / count
            report |= {"window_count": len(self._ring), "window_loss": float(np.mean(self._ring["loss"]))}
        return report

    def window_headline(self) -> tuple[float, float | None] | None:
        """The mean loss over the window, without a baseline; None before the first record."""
        return (float(np.mean(self._ring["loss"])), None) if len(self._ring) else None

    def window_values(self, name: str) -> npt.NDArray[np.float64] | None:
        """The losses of the window's records."""
        return self._ring["loss"].copy() if name == "loss" else None

    def state_dict(self) -> State:
        return {"counts": self._counts.copy(), "sum": self._sum.state_dict(), "ring": self._ring.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._counts = restored(state, "counts", self._counts)
        self._sum.load_state_dict(state.get("sum", {}))
        self._ring.load_state_dict(state.get("ring", {}))
