"""The gradient noise scale: how many records an update must average before its gradient is more signal than noise.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1. The squared norm of a mean gradient
over B records has the expectation |G|² + S/B, where G is the true gradient and S the sum of the variances of its
elements. S is measured at a few updates, the norm at all of them, and S/|G|² is a number of records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from millstream.contracts import GradientNorms, State

__all__ = ["NoiseScale"]

_KEPT_BY_UPDATE = 0.995  # of the mean of |G|²
_KEPT_BY_MEASUREMENT = 0.97  # of the mean of S


class NoiseScale:
    """Exponential averages of S and |G|², each estimated without bias, so that their ratio may be taken.

    >>> noise = NoiseScale()
    >>> noise.see([GradientNorms(size=40, num_updates=8, mean_square=1.0 + 3.0 / 40, variance=3.0, num_measured=1)])
    >>> round(noise.value, 9)
    3.0
    """

    def __init__(self) -> None:
        self.num_measured = 0
        self._variance = self._squared_gradient = 0.0
        self._weights = [0.0, 0.0]  # of the two, until they are 1

    def see(self, norms: Iterable[GradientNorms]) -> None:
        """Takes in what was measured."""
        for one in norms:
            if one.variance is not None:
                self.num_measured += one.num_measured
                kept = _KEPT_BY_MEASUREMENT**one.num_measured
                self._variance = kept * self._variance + (1 - kept) * one.variance
                self._weights[0] = kept * self._weights[0] + 1 - kept
            if not self.num_measured:
                continue
            kept = _KEPT_BY_UPDATE**one.num_updates
            squared_gradient = one.mean_square - self._variance / self._weights[0] / one.size
            self._squared_gradient = kept * self._squared_gradient + (1 - kept) * squared_gradient
            self._weights[1] = kept * self._weights[1] + 1 - kept

    @property
    def value(self) -> float | None:
        """The noise scale in records; None before there is one, infinity where noise hides the gradient."""
        if not self.num_measured or self._variance <= 0:
            return None
        variance, squared_gradient = (
            value / weight
            for value, weight in zip((self._variance, self._squared_gradient), self._weights, strict=True)
        )
        return variance / squared_gradient if squared_gradient > 0 else math.inf

    @property
    def shown(self) -> float | None:
        """The value where it is a number, for reports."""
        value = self.value
        return None if value is None or math.isinf(value) else value

    def state_dict(self) -> State:
        means = [self._variance, self._squared_gradient]
        return {"num_measured": self.num_measured, "means": means, "weights": list(self._weights)}

    def load_state_dict(self, state: State) -> None:
        self.num_measured, self._weights = state["num_measured"], list(state["weights"])
        self._variance, self._squared_gradient = state["means"]
