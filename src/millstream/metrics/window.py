"""The last records: a ring of named columns that the exact measures of a window are computed from.

It knows no measure. Record number n is always at place n modulo the size, so what is computed from the ring has the
same bits however the records arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from millstream.contracts import State
from millstream.errors import SettingError
from millstream.metrics.folds import restored

__all__ = ["Ring"]


class Ring:
    """Columns of the last ``size`` records; the records are along the last axis.

    >>> ring = Ring(2, hit=(np.dtype(np.uint8), ()))
    >>> ring.append(3, hit=np.array([0, 1, 1]))
    >>> ring["hit"]
    array([1, 1], dtype=uint8)
    """

    def __init__(self, size: int, **columns: tuple[np.dtype[Any], tuple[int, ...]]) -> None:
        if size < 1:
            raise SettingError(got=f"a window of {size} records", wanted="1 or more", do="try window=1000")
        self.size = size
        self._seen = 0
        self._columns = {name: np.zeros((*shape, size), dtype) for name, (dtype, shape) in columns.items()}

    def __len__(self) -> int:
        return min(self._seen, self.size)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The column's records, in no particular order but the same as every other column's."""
        return self._columns[name][..., : len(self)]

    def append(self, num_records: int, **columns: npt.NDArray[Any]) -> None:
        """Take up N records; every column is given."""
        kept = min(num_records, self.size)
        first = (self._seen + num_records - kept) % self.size
        before_end = min(kept, self.size - first)
        for name, column in self._columns.items():
            latest = columns[name][..., num_records - kept :]
            column[..., first : first + before_end] = latest[..., :before_end]
            column[..., : kept - before_end] = latest[..., before_end:]
        self._seen += num_records

    def state_dict(self) -> State:
        return {"seen": self._seen, "columns": {name: column.copy() for name, column in self._columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state.get("columns", {})
        self._columns = {name: restored(saved, name, column) for name, column in self._columns.items()}
        self._seen = int(state["seen"])
