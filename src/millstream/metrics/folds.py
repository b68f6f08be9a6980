"""Sums that do not depend on how a stream is cut, and the reading back of saved arrays.

A running sum adds one record after another to the sum so far; NumPy's own ``sum`` adds in pairs, so its rounding
depends on where a chunk begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from millstream.contracts import State
from millstream.errors import CheckpointError

__all__ = ["RunningSums", "as_array", "column_sums", "restored", "running_sums", "usable"]

_LANES = 64
_LIMIT = 1e150  # the square of a larger number is not finite


def running_sums(carry: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, N + 1) the sums after 0, 1, … N records of (K, N) ``values``, added one by one to the (K,) ``carry``.

    >>> running_sums(np.array([1.0]), np.array([[2.0, 3.0]]))
    array([[1., 3., 6.]])
    """
    sums = np.empty((len(values), values.shape[1] + 1))
    sums[:, 0] = carry
    sums[:, 1:] = values
    return np.add.accumulate(sums, axis=1, out=sums)


class RunningSums:
    """K sums since the start. Record n is added to partial sum n modulo 64, wherever the stream is cut.

    >>> sums = RunningSums(2)
    >>> sums.add(np.array([[2.0, 3.0], [1.0, 1.0]]))
    >>> sums.totals()
    array([5., 2.])
    """

    def __init__(self, num_sums: int) -> None:
        self._count = 0
        self._partial = np.zeros((num_sums, _LANES))

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Add (K, N) values."""
        num_sums, num_records = values.shape
        first = self._count % _LANES
        rows = np.zeros((num_sums, 1 - (first + num_records) // -_LANES, _LANES))
        rows[:, 0] = self._partial
        rows.reshape(num_sums, -1)[:, _LANES + first : _LANES + first + num_records] = values
        # Along an axis that is not the contiguous one NumPy adds in order, and the lanes make that fast.
        np.add.reduce(rows, axis=1, out=self._partial)
        self._count += num_records

    def totals(self) -> npt.NDArray[np.float64]:
        """(K,) the sums."""
        totals: npt.NDArray[np.float64] = self._partial.sum(axis=1)
        return totals

    def state_dict(self) -> State:
        return {"count": self._count, "partial": self._partial.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._partial = restored(state, "partial", self._partial)
        self._count = int(state["count"])


def column_sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) the sums over the first axis of contiguous (C, N), added in order, for any N.

    >>> column_sums(np.ones((3, 2)))
    array([3., 3.])
    """
    if values.shape[1] == 1:  # one column is contiguous along C, and NumPy would add it in pairs
        return column_sums(np.repeat(values, 2, axis=1))[:1]
    total: npt.NDArray[np.float64] = np.add.reduce(values, axis=0)
    return total


def usable(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N,) whether each row is finite, and small enough to be squared.

    >>> usable(np.array([[1.0, np.nan], [1.0, 2.0]]))
    array([False,  True])
    """
    fine: npt.NDArray[np.bool_] = np.abs(values) <= min(_LIMIT, float(np.finfo(values.dtype).max))
    if fine.ndim > 1:
        fine = np.ones(len(fine), dtype=np.bool_) if fine.all() else np.logical_and.reduce(fine, axis=1)
    return fine


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as an array of its own precision, float32 at least; on the CPU.

    >>> import torch
    >>> as_array(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype('float32')
    """
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()
    return np.asarray(tensor.detach().cpu().numpy())


def restored(state: Mapping[str, Any], name: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of a saved array; CheckpointError if there is none of the shape and dtype of ``like``.

    >>> restored({"counts": np.array([1, 2])}, "counts", np.zeros(2, dtype=np.int64))
    array([1, 2])
    """
    value = state.get(name)
    array = None if value is None else np.array(value)
    if array is None or array.shape != like.shape or array.dtype != like.dtype:
        got = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise CheckpointError(
            got=f"{got} as {name!r} of the saved metrics",
            wanted=f"{like.dtype} of shape {like.shape}",
            do="resume with the settings that the checkpoint was made with",
        )
    return array
