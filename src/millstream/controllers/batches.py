"""The batch size of a ``fit`` as the noise of its gradient has it: small at first, doubled as the noise grows."""

from __future__ import annotations

import math

import torch

from millstream.contracts import State

__all__ = ["BatchSize", "rate_factor"]

_NOISE_PER_RECORD = 4.0  # a batch of a quarter of the noise scale needs a fifth more records than the smallest one
_ENOUGH = 8  # measurements at a size, before it is left
_LEAST_UPDATES = 100  # of an epoch


class BatchSize:
    """Doubles while it is small against the noise scale; ``most`` bounds it. It never falls.

    >>> size = BatchSize(32, most=100)
    >>> [size.next(noise, num) for noise, num in ((1000.0, 2), (1000.0, 9), (1000.0, 99))]
    [32, 64, 64]
    """

    def __init__(self, first: int, most: int) -> None:
        self.value, self.most = first, most
        self._measured_at_change = 0

    def next(self, noise: float | None, num_measured: int) -> int:
        """The size from here on, told the noise scale and how often it was measured."""
        grows = noise is not None and noise > _NOISE_PER_RECORD * self.value and 2 * self.value <= self.most
        if grows and num_measured - self._measured_at_change >= _ENOUGH:
            self.value, self._measured_at_change = 2 * self.value, num_measured
        return self.value

    def proposed(self, noise: float | None) -> int | None:
        """The power of two that this noise asks for, whatever bounds there are."""
        if noise is None or not math.isfinite(noise):
            return None
        return int(2 ** max(0, math.ceil(math.log2(max(1.0, noise / _NOISE_PER_RECORD)))))

    def state_dict(self) -> State:
        return {"value": self.value, "most": self.most, "measured_at_change": self._measured_at_change}

    def load_state_dict(self, state: State) -> None:
        self.value, self.most = state["value"], state["most"]
        self._measured_at_change = state["measured_at_change"]


def most_useful(num_records: int | None) -> int:
    """More records than these in an update leave too few updates to an epoch."""
    return 4096 if num_records is None else max(1, num_records // _LEAST_UPDATES)


def rate_factor(optimizer: torch.optim.Optimizer, growth: float) -> float:
    """How the rate follows a batch that grows: in proportion for SGD, as the square root where steps are normalised."""
    return growth if isinstance(optimizer, torch.optim.SGD) else math.sqrt(growth)
