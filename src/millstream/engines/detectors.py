"""Drift detectors of River, by name, in a form whose state can be saved: as the numbers that they were fed.

River's detectors hold their state in C or in objects that can only be pickled. A ``Detector`` keeps the last
2,048 to 8,192 numbers since its last alarm and is made anew from the last 2,048 whenever there are 8,192, so that one
that was saved and loaded goes on exactly as one that was not.

Settings are for means of eight errors; docs/drift.md says how they were found.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from millstream.contracts import State
from millstream.errors import MissingPackageError, SettingError

__all__ = ["NAMES", "Detector"]

_KEPT, _MOST = 2048, 8192  # numbers that a detector is made anew from, and that it is fed before it is
_NEW = 16  # the last numbers, where a detector does not say which ones are of the new level
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adwin": ("ADWIN", {"delta": 0.002, "clock": 4, "grace_period": 16, "min_window_length": 5}),
    "page-hinkley": ("PageHinkley", {"min_instances": 30, "delta": 0.05, "threshold": 12.0, "alpha": 0.9999}),
}
NAMES = tuple(_SETTINGS)


class Detector:
    """A detector of one kind, fed with numbers between -1 and 1. It begins anew at an alarm.

    A level that falls is no alarm, but a new beginning all the same.
    """

    def __init__(self, name: str) -> None:
        if name not in _SETTINGS:
            raise SettingError(got=f"drift detector {name!r}", wanted=f"one of {', '.join(NAMES)}", do="pick one")
        try:
            drift = importlib.import_module("river.drift")
        except ImportError as error:
            raise MissingPackageError(
                got=f"drift detector {name!r} without River",
                wanted="the package river",
                do="pip install 'millstream[drift]'",
            ) from error
        self.name = name
        kind, self._settings = _SETTINGS[name]
        self._kind = getattr(drift, kind)
        self._restart([])

    def update(self, values: list[float]) -> float:
        """Takes in numbers; gives by how much the level rose where that is no chance: the largest of such rises."""
        largest, detector = 0.0, self._detector
        for value in values:
            self._fed.append(value)
            detector.update(value)
            if detector.drift_detected:
                largest = max(largest, self._rise())
                self._restart([])
                detector = self._detector
            elif len(self._fed) >= _MOST:
                self._restart(self._fed[-_KEPT:])
                detector = self._detector
        return largest

    def _rise(self) -> float:
        """By how much the level of the last numbers is above that of those before them."""
        new = min(int(getattr(self._detector, "width", 0)) or _NEW, len(self._fed) - 1)
        before, after = self._fed[:-new], self._fed[-new:]
        return sum(after) / len(after) - sum(before) / len(before)

    def state_dict(self) -> State:
        return {"name": self.name, "fed": np.array(self._fed)}

    def load_state_dict(self, state: State) -> None:
        self._restart(state["fed"].tolist())

    def _restart(self, fed: list[float]) -> None:
        self._fed = fed
        self._detector: Any = self._kind(**self._settings)
        for value in fed:
            self._detector.update(value)
