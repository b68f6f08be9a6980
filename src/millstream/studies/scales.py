"""What an axis measures, the round values along it, and where a value falls on it.

It knows numbers and pixels; it does not know what is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

__all__ = ["Axis", "Scale", "compact", "extent", "is_drawable", "ticks"]


def compact(value: float) -> str:
    """A number as a tick shows it.

    >>> [compact(value) for value in (0, 0.05, 2.5, 938, 20_000, 1_500_000, 1e-7)]
    ['0', '0.05', '2.5', '938', '20k', '1.5M', '1e-07']
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """What an axis measures: its label, how its ticks read, and what it shows.

    ``bounds`` are exact and cut what lies outside; with ``names`` x is the place of a name, 0 being the first.
    """

    label: str
    text: Callable[[float], str] = compact
    log: bool = False
    bounds: tuple[float, float] | None = None
    names: Sequence[str] = ()


def is_drawable(value: float | None, log: bool = False) -> TypeGuard[float]:
    """Whether a scale can place it; the limits keep ratios and squares of what is drawn finite."""
    return value is not None and abs(value) < 1e100 and (value > 1e-100 or not log)


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels, in proportion or by their logarithms."""

    low: float
    high: float
    first: float  # pixel of low
    last: float  # pixel of high
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.first + (at - low) / (high - low) * (self.last - self.first)

    def shows(self, value: float | None) -> TypeGuard[float]:
        return is_drawable(value, self.log)


def ticks(low: float, high: float, *, log: bool = False, target: int = 6) -> list[float]:
    """Round values within [low, high]: steps of 1, 2 or 5; on a logarithmic axis 1-2-5 or whole decades.

    >>> ticks(0, 60_000)
    [0.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0, 60000.0]
    >>> ticks(1, 100, log=True)
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]
    """
    if log and high / low > 4:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
        found = [value for value in fine if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= target + 2:
            return found
        whole = [10.0**power for power in decades if low * (1 - 1e-9) <= 10.0**power <= high * (1 + 1e-9)]
        return whole[:: max(1, math.ceil(len(whole) / (target + 1)))]
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)) * power
    decimals = 1 - math.floor(math.log10(step))
    return [round(k * step, decimals) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def extent(values: Iterable[float | None], axis: Axis, *, padding: float) -> tuple[float, float] | None:
    """The ends of an axis that shows all values; None when there is nothing to show."""
    if axis.names:
        return -0.25, len(axis.names) - 0.75
    shown = [v for v in values if is_drawable(v, axis.log)]
    if not shown:
        return None
    low, high = axis.bounds or (min(shown), max(shown))
    if axis.bounds and low < high:
        return low, high
    if axis.log:
        return (low / 2, high * 2) if low == high else (low, high * (high / low) ** padding)
    if low == high:
        half = abs(low) / 10 or 1.0
        return low - half, high + half
    return low - padding * (high - low), high + padding * (high - low)
