"""The gate between learning and publishing: whether a model is as good as it was when it was last published.

A decision is a function of the gate, of its state, and of a reading of the metrics at a run position; there is no
clock in it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from millstream.contracts import State
from millstream.errors import SettingError
from millstream.metrics import Metrics

__all__ = ["Gate", "GateState", "Reading"]

_BASELINES = {"accuracy": ("majority_accuracy", "no_change_accuracy"), "mae": ("mean_mae", "no_change_mae")}
_RISING = ("accuracy",)  # all others are better when they are lower


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """A measure over a window of ``count`` records, how far its mean is off by chance, and how far above a baseline.

    Both errors are standard errors of means of records that do not depend on each other.
    """

    metric: str
    mean: float
    error: float
    count: int
    gain: float = 0.0  # how much better than the baseline
    gain_error: float = 0.0
    baseline: str = ""  # "": there is none


@dataclasses.dataclass(frozen=True, slots=True)
class GateState:
    """What a gate remembers. ``reference`` is the reading at the last publication, in the phase of this number."""

    reference: Reading | None = None
    phase: int = 0
    closed_at: int | None = None  # run position at which publishing stopped

    def to_json(self) -> State:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, state: State) -> GateState:
        reference = state["reference"]
        return cls(**{**state, "reference": None if reference is None else Reading(**reference)})


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """Lets a model through while its metric over the window is not worse than when one was last published.

    ``metric`` is accuracy, log_loss, mae or loss; ``auto`` takes accuracy for classes, mae for numbers, else loss.
    ``tolerance`` is in standard errors, of the difference of the two windows. ``baseline`` must not be better either:
    ``auto`` is majority_accuracy or mean_mae; there are no_change_accuracy, no_change_mae and ``none``. Before
    ``minimum`` records are in the window nothing is published. Once publishing has stopped, what a drop may be grows
    with the run position, and after ``patience`` records any is taken for a world that became harder; a baseline that
    is better never is.

    >>> gate, state = Gate(), GateState()
    >>> state, _ = gate.decide(state, Reading("accuracy", 0.9, 0.01, 1000), position=1000)
    >>> state, reason = gate.decide(state, Reading("accuracy", 0.8, 0.01, 1000), position=2000)
    >>> reason
    'accuracy 0.8 after 0.9 when last published, beyond 2 standard errors (0.0283)'
    >>> gate.decide(state, Reading("accuracy", 0.8, 0.01, 1000), position=22_000)[1]
    ''
    """

    metric: str = "auto"
    tolerance: float = 2.0
    baseline: str = "auto"
    patience: int = 20_000
    minimum: int = 100

    def __post_init__(self) -> None:
        names = ("auto", "accuracy", "log_loss", "mae", "loss")
        if self.metric not in names:
            raise SettingError(got=f"gate metric {self.metric!r}", wanted=f"one of {', '.join(names)}", do="pick one")
        baselines = ("auto", "none", *(name for some in _BASELINES.values() for name in some))
        if self.baseline not in baselines:
            raise SettingError(
                got=f"gate baseline {self.baseline!r}", wanted=f"one of {', '.join(baselines)}", do="pick one"
            )
        for name in ("tolerance", "patience", "minimum"):
            if not 0 <= getattr(self, name) < math.inf or (name == "patience" and not self.patience):
                raise SettingError(got=f"gate {name} {getattr(self, name)}", wanted="more than 0", do="leave it out")

    def read(self, metrics: Metrics) -> Reading | None:
        """What the metrics say now; None before the first record."""
        metric = metrics.headline[0] if self.metric == "auto" else self.metric
        values = metrics.window_values(metric)
        known = _BASELINES.get(metric, ())
        baseline = next(iter(known), "none") if self.baseline == "auto" else self.baseline
        if values is None or baseline not in ("none", *known):
            raise SettingError(
                got=f"a gate on {metric} above {baseline} for a task that is measured by {metrics.headline[0]}",
                wanted="a metric and a baseline of this task",
                do="leave them out",
            )
        if not len(values):
            return None
        reading = Reading(metric, float(np.mean(values)), _error(values, metric), len(values))
        found = None if baseline == "none" else metrics.window_values(baseline)
        if found is None:
            return reading
        gains = (values - found if metric in _RISING else found - values)[~np.isnan(found)]
        if len(gains) < 2:
            return reading
        above = {"gain": float(np.mean(gains)), "gain_error": float(np.std(gains)) / len(gains) ** 0.5}
        return dataclasses.replace(reading, baseline=baseline, **above)

    def decide(
        self, state: GateState, reading: Reading | None, *, position: int, phase: int = 0
    ) -> tuple[GateState, str | None]:
        """The state after it, and why nothing is to be published; ``""`` lets through, None waits for more records.

        Metrics begin anew with a phase, so the reading of another one is not compared with.
        """
        if reading is None or reading.count < self.minimum:
            return state, None
        reason = self._fault(state, reading, position, phase)
        if not reason:
            return GateState(reading, phase), ""
        closed_at = position if state.closed_at is None else state.closed_at
        return dataclasses.replace(state, closed_at=closed_at), reason

    def _fault(self, state: GateState, reading: Reading, position: int, phase: int) -> str:
        if not math.isfinite(reading.mean):
            return f"{reading.metric} is not finite"
        if reading.gain < -self.tolerance * reading.gain_error:
            return f"{reading.metric} {reading.mean:.4g}, worse than {reading.baseline} by {-reading.gain:.3g}"
        was = state.reference
        if was is None or state.phase != phase or was.metric != reading.metric:
            return ""
        drop = was.mean - reading.mean if reading.metric in _RISING else reading.mean - was.mean
        closed_for = 0 if state.closed_at is None else position - state.closed_at
        allowed = self.tolerance * math.hypot(was.error, reading.error)
        if drop * max(0.0, 1 - closed_for / self.patience) <= allowed:
            return ""
        return (
            f"{reading.metric} {reading.mean:.4g} after {was.mean:.4g} when last published, "
            f"beyond {self.tolerance:g} standard errors ({allowed:.3g})"
        )


def _error(values: np.typing.NDArray[np.float64], metric: str) -> float:
    """The standard error of the mean. A share keeps one when all are right, as if one more were right and one wrong."""
    count = len(values)
    if metric in _RISING:
        share = (float(np.sum(values)) + 1) / (count + 2)
        return math.sqrt(share * (1 - share) / count)
    return float(np.std(values)) / math.sqrt(count)
