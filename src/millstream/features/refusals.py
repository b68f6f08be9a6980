"""Why records of a chunk cannot be used: gathered while it is looked through, then raised or made into holes.

This file knows rows of a chunk; it knows nothing of what is wrong with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from millstream.contracts import Chunk, Rejection
from millstream.errors import DataError

__all__ = ["Refusals"]

_SHOWN = 500  # characters of a record kept with its rejection


@dataclasses.dataclass(frozen=True, slots=True)
class _Reason:
    got: str
    wanted: str
    do: str
    stops: bool  # under on_error="stop"


class Refusals:
    """The rows of one chunk that cannot be used, each with the first reason found.

    >>> refusals = Refusals()
    >>> refusals.add(np.array([3]), lambda row: "column 'age' with 'abc'", wanted="a number", do="fix the record")
    >>> bool(refusals)
    True
    """

    def __init__(self) -> None:
        self._reasons: dict[int, _Reason] = {}

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def add(
        self, rows: npt.NDArray[Any], got: Callable[[int], str], *, wanted: str, do: str, stops: bool = True
    ) -> None:
        """Refuse ``rows``; ``got`` says of each what was found."""
        for row in rows.tolist():
            if row not in self._reasons:
                self._reasons[row] = _Reason(got(row), wanted, do, stops)

    def merge(self, other: Refusals, rows: npt.NDArray[Any]) -> None:
        """Takes up what was found in a part of the chunk, whose records are these ``rows`` of it."""
        for row, reason in other._reasons.items():
            self._reasons.setdefault(int(rows[row]), reason)

    def raise_first(self, chunk: Chunk) -> None:
        """Raise a DataError of the first row whose reason stops the run; do nothing when there is none."""
        for row in sorted(row for row, reason in self._reasons.items() if reason.stops):
            reason = self._reasons[row]
            raise DataError(got=f"{reason.got} in {_where(chunk, row)}", wanted=reason.wanted, do=reason.do)

    def apply(self, chunk: Chunk) -> Chunk:
        """The chunk without these rows: each is a hole, and a Rejection that tells of it."""
        if not self._reasons:
            return chunk
        rejections = [
            Rejection(
                offset=_offset(chunk, row),
                reason=f"{reason.got}; wanted {reason.wanted}",
                where=chunk.locate(_offset(chunk, row)) if chunk.locate else "",
                record=_text(chunk, row),
            )
            for row, reason in sorted(self._reasons.items())
        ]
        keep = np.ones(len(chunk), bool)
        keep[list(self._reasons)] = False
        kept = chunk.select(np.flatnonzero(keep))
        rejected = sorted((*chunk.rejected, *rejections), key=lambda rejection: rejection.offset)
        return dataclasses.replace(kept, rejected=tuple(rejected))


def _offset(chunk: Chunk, row: int) -> int:
    return row if chunk.offsets is None else int(chunk.offsets[row])


def _where(chunk: Chunk, row: int) -> str:
    offset = _offset(chunk, row)
    return chunk.locate(offset) if chunk.locate else f"record {chunk.start + offset}"


def _text(chunk: Chunk, row: int) -> str:
    values = chunk.inputs.slice(row, 1).to_pylist()[0]  # type: ignore[union-attr]
    text = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
