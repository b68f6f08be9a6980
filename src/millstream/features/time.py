"""Instants to places on circles: the hour of the day, the day of the week and so on, each a sine and a cosine.

The end of a day is next to its beginning, which a plain number cannot say. This file knows µs since 1970 in local time.

Shapes: N records, P parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from millstream.errors import SettingError

__all__ = ["PARTS", "circles"]

Floats = npt.NDArray[np.float64]
Micros = npt.NDArray[np.int64]

_DAY = 86_400_000_000


def circles(instants_N: Micros, valid_N: npt.NDArray[np.bool_], parts: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """(N, 2 P): the sine and cosine of each part; 0, 0 where the instant is missing.

    >>> circles(np.array([6 * 3_600_000_000]), np.array([True]), ("hour",)).round(3).tolist()
    [[1.0, 0.0]]
    """
    result = np.empty((len(instants_N), 2 * len(parts)), np.float32)
    for place, part in enumerate(parts):
        if part not in _TURNS:
            raise SettingError(
                got=f"part {part!r} of a time", wanted=f"one of {', '.join(PARTS)}", do="pick from these"
            )
        angle = 2 * np.pi * _TURNS[part](instants_N)
        result[:, 2 * place] = np.sin(angle)
        result[:, 2 * place + 1] = np.cos(angle)
    result[~valid_N] = 0.0
    return result


def _hour(instants: Micros) -> Floats:
    return (instants % _DAY) / _DAY


def _minute(instants: Micros) -> Floats:
    return (instants % 3_600_000_000) / 3_600_000_000


def _weekday(instants: Micros) -> Floats:
    return ((instants // _DAY + 3) % 7) / 7  # 1970-01-01 was a Thursday; Monday is 0


def _days_since(instants: Micros, unit: str) -> Floats:
    days = (instants // _DAY).astype("datetime64[D]")
    passed: Floats = (days - days.astype(f"datetime64[{unit}]").astype("datetime64[D]")).astype(np.float64)
    return passed


def _monthday(instants: Micros) -> Floats:
    return _days_since(instants, "M") / 31


def _yearday(instants: Micros) -> Floats:
    return _days_since(instants, "Y") / 366


def _month(instants: Micros) -> Floats:
    days = (instants // _DAY).astype("datetime64[D]")
    return (days.astype("datetime64[M]").astype(np.int64) % 12) / 12


_TURNS: dict[str, Callable[[Micros], Floats]] = {
    "hour": _hour,
    "minute": _minute,
    "weekday": _weekday,
    "monthday": _monthday,
    "yearday": _yearday,
    "month": _month,
}
PARTS = tuple(_TURNS)
