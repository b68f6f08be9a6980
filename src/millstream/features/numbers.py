"""Online standardisation: every number is scaled with what was known before its record, then taken into what is known.

This file knows blocks of finite numbers and which of them are there; it knows no columns, Arrow or policies.

Shapes: D columns, N records. Blocks are (D, N), because Arrow is columnar and running sums want contiguous memory.

The recurrences are Welford's (1962), with d = x − mean before and n = records before:

    mean = S / n        S ← S + x        M2 ← M2 + d² · n / (n + 1)        std = sqrt(M2 / n)

d² · n / (n + 1) is Welford's (x − mean before) · (x − mean after), written so that it is never negative. Every x is
taken relative to the first value of its column, so that a constant column has a variance of exactly zero, and large
numbers that differ little (times, prices) keep their digits. All sums are sequential folds, so cuts never matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import State
from millstream.errors import CheckpointError

__all__ = ["LIMIT", "Standardizer"]

LIMIT = 1e140
"""Numbers must be smaller than this in magnitude, so that their squares can be summed."""

_TILE = 65536  # numbers worked on at once: a few blocks of them fit the second-level cache
_VERSION = 1

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Standardizer:
    """Running mean and standard deviation of D columns; the state is four numbers a column.

    >>> Standardizer(1).transform(np.array([[1.0, 3.0, 5.0]]), None, learn=True).tolist()
    [[0.0], [0.0], [3.0]]
    """

    def __init__(self, num_columns: int, *, clip: float = 10.0) -> None:
        self.clip = clip
        self.counts = np.zeros(num_columns, np.int64)  # values taken in, of each column
        self.origins = np.zeros(num_columns)  # the first value of each column
        self.sums = np.zeros(num_columns)  # of x − origin
        self.squares = np.zeros(num_columns)  # M2: of squared differences from the mean
        self._scratch: dict[str, Floats] = {}

    def transform(self, values_DN: Floats, valid_DN: Mask | None, *, learn: bool) -> Tensor:
        """(D, N) finite numbers to (N, D) float32, clipped to ± ``clip``; a missing one is 0 and is not counted.

        ``valid_DN`` is False where a number is missing; None means that none is. Where nothing is known yet, or all
        values so far were equal, the result is 0.
        """
        num_columns, num_records = values_DN.shape
        result = torch.empty((num_records, num_columns), dtype=torch.float32)
        if not num_columns or not num_records:
            return result
        step = max(64, _TILE // num_columns)
        for first in range(0, num_records, step):
            part = slice(first, min(first + step, num_records))
            valid = None if valid_DN is None or valid_DN[:, part].all() else valid_DN[:, part]
            scaled = self._scale(values_DN[:, part], valid, learn)
            narrow = torch.from_numpy(scaled).to(torch.float32).clamp_(-self.clip, self.clip)
            result[part].copy_(narrow.t())
        return result

    def follow(self, values_N: Floats, *, learn: bool) -> tuple[Floats, Floats, Floats]:
        """One column: (N,) scaled values and the (N + 1,) shift and scale that were known after 0, 1, … N of them.

        ``scaled[k]`` is ``(values[k] − shift[k]) / scale[k]``, clipped; 0 where no spread is known, as one raw value
        could throw a model. The shift is 0 where nothing is known; the scale is 1 there and where no spread is known.
        """
        relative, origins = self._relative(values_N[None, :], None, learn)
        if learn:
            counts, sums, squares, distance = self._fold(relative, None)
        else:
            shape = (1, len(values_N) + 1)
            counts = np.full(shape, float(self.counts[0]))
            sums, squares = np.full(shape, self.sums[0]), np.full(shape, self.squares[0])
            distance = relative - sums[:, :-1] / np.maximum(counts[:, :-1], 1.0)
        known = np.maximum(counts, 1.0)
        scale = np.sqrt(squares / known)
        no_spread = scale == 0.0
        scale[no_spread] = 1.0
        shift = np.where(counts > 0, origins[:, None] + sums / known, 0.0)
        if learn:
            self._take(origins, counts, sums, squares)
        scaled = np.where(no_spread[:, :-1], 0.0, distance / scale[:, :-1])
        return scaled.clip(-self.clip, self.clip)[0], shift[0], scale[0]

    def state_dict(self) -> State:
        names = ("counts", "origins", "sums", "squares")
        return {"version": _VERSION, "clip": self.clip, **{name: getattr(self, name).copy() for name in names}}

    def load_state_dict(self, state: State) -> None:
        _refuse_other("version", state.get("version"), _VERSION)
        _refuse_other("clip", state.get("clip"), self.clip)
        _refuse_other("number of columns", len(state["counts"]), len(self.counts))
        self.counts = np.array(state["counts"], np.int64)
        self.origins = np.array(state["origins"], np.float64)
        self.sums = np.array(state["sums"], np.float64)
        self.squares = np.array(state["squares"], np.float64)

    def _scale(self, values: Floats, valid: Mask | None, learn: bool) -> Floats:
        relative, origins = self._relative(values, valid, learn)
        if learn:
            counts, sums, squares, distance = self._fold(relative, valid)
            std = np.divide(squares[:, :-1], np.maximum(counts[:, :-1], 1.0), out=self._block("std", values.shape[1]))
            np.sqrt(std, out=std)
            self._take(origins, counts, sums, squares)
        else:
            known = np.maximum(self.counts, 1)[:, None]
            std = np.sqrt(self.squares[:, None] / known)
            distance = np.subtract(relative, self.sums[:, None] / known, out=relative)
            if valid is not None:
                np.putmask(distance, ~valid, 0.0)
        if std.min() == 0.0:
            np.putmask(std, std == 0.0, np.inf)
        with np.errstate(over="ignore", under="ignore"):
            return np.divide(distance, std, out=distance)

    def _block(self, name: str, width: int) -> Floats:
        """Memory of (D, width) that is used again: fresh pages cost as much as the arithmetic done in them.

        Only while learning, which is done by one thread; predictions may run beside each other.
        """
        size = len(self.counts) * width
        if name not in self._scratch or self._scratch[name].size < size:
            self._scratch[name] = np.empty(size)
        return self._scratch[name][:size].reshape(len(self.counts), width)

    def _relative(self, values: Floats, valid: Mask | None, learn: bool) -> tuple[Floats, Floats]:
        """The values relative to their column's first one, missing ones 0; and those first ones, new ones included."""
        origins = self.origins
        fresh = np.flatnonzero(self.counts == 0)
        if fresh.size and values.shape[1]:
            at = 0 if valid is None else valid[fresh].argmax(axis=1)
            origins = origins.copy()
            origins[fresh] = values[fresh, at]
        relative = np.subtract(
            values, origins[:, None], out=self._block("relative", values.shape[1]) if learn else None
        )
        if valid is not None:
            np.putmask(relative, ~valid, 0.0)
        return relative, origins

    def _fold(self, relative: Floats, valid: Mask | None) -> tuple[Floats, Floats, Floats, Floats]:
        """Counts, sums and M2 after 0, 1, … N records, each (D or 1, N + 1), and (D, N) distances from the mean before.

        ``relative`` is overwritten with the distances.
        """
        num_records = relative.shape[1]
        counts = self._running_counts(valid, num_records)
        sums, squares = self._block("sums", num_records + 1), self._block("squares", num_records + 1)
        sums[:, 0], squares[:, 0] = self.sums, self.squares
        sums[:, 1:] = relative
        _accumulate(sums)
        before = counts[:, :-1]
        distance = squares[:, 1:]  # borrowed: it is overwritten with the squares below
        np.divide(sums[:, :-1], np.maximum(before, 1.0), out=distance)
        np.subtract(relative, distance, out=relative)
        if valid is not None:
            np.putmask(relative, ~valid, 0.0)
        np.multiply(relative, relative, out=distance)
        np.multiply(distance, before / (before + 1.0), out=distance)
        _accumulate(squares)
        return counts, sums, squares, relative

    def _running_counts(self, valid: Mask | None, num_records: int) -> Floats:
        """(1, N + 1) when it is the same for all columns, which is much the cheapest, else (D, N + 1)."""
        if valid is None:
            same = self.counts[:1] if (self.counts == self.counts[0]).all() else self.counts
            return same[:, None] + np.arange(num_records + 1, dtype=np.float64)
        counts = np.empty((len(self.counts), num_records + 1))
        counts[:, 0] = self.counts
        counts[:, 1:] = valid
        _accumulate(counts)
        return counts

    def _take(self, origins: Floats, counts: Floats, sums: Floats, squares: Floats) -> None:
        last = np.broadcast_to(counts[:, -1], self.counts.shape)
        self.counts, self.sums, self.squares = last.astype(np.int64), sums[:, -1].copy(), squares[:, -1].copy()
        self.origins = np.where(self.counts > 0, origins, 0.0)


def _accumulate(block: Floats) -> None:
    """Running sums along each row, in place, one addition after another.

    torch keeps the running sum in a register, which is six times as fast as np.cumsum; the bits are the same.
    """
    torch.from_numpy(block).cumsum_(1)


def _refuse_other(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise CheckpointError(
            got=f"feature statistics with {what} {got!r}",
            wanted=f"{what} {wanted!r}",
            do="build the features as the checkpoint's were, or start a new run",
        )
