"""What a journal holds, as people see it: groups of records, references and decisions, each with its number and place.

This file knows Arrow record batches and what a refused record is; it knows no file and no checksum.

Shapes: N records, S places of a group (its records and its holes).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Rejection
from millstream.errors import DataError, StorageError

__all__ = ["DECISIONS", "KINDS", "Appended", "Draft", "Group", "Head", "Kind"]

Kind: TypeAlias = Literal["records", "reference", "decision"]
KINDS: tuple[Kind, ...] = ("records", "reference", "decision")
DECISIONS: tuple[Kind, ...] = ("decision",)
_HEAD_KEYS = {"number": int, "position": int, "chain": str}


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """What one draft became. ``records`` holds what is there still; an erased record is a hole.

    A decision has a span of 0, but for one that says which positions a person has given up as lost.
    """

    number: int
    first: int
    span: int
    kind: Kind
    facts: Mapping[str, Any]
    records: pa.RecordBatch | None = None
    offsets: npt.NDArray[np.int64] | None = None  # (N,) places of the records in the span; None when there is no hole
    rejected: tuple[Rejection, ...] = ()

    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) journal position of each record."""
        num = 0 if self.records is None else len(self.records)
        return self.first + (np.arange(num, dtype=np.int64) if self.offsets is None else self.offsets)


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """What is to be appended: a group without its number and place, and what tells it from one that came before.

    Either ``ids``, one for each place (None for a place that has none), or ``producer`` and ``sequence``: the number
    that this producer gives the first place; the places after it have the numbers after it.

    >>> Draft(pa.record_batch({"x": [1.0, 2.0]})).span
    2
    """

    records: pa.RecordBatch | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: Kind = "records"
    span: int = -1  # -1: as many places as there are records and refused ones
    offsets: npt.NDArray[np.int64] | None = None
    rejected: tuple[Rejection, ...] = ()
    ids: Sequence[str | bytes | None] | None = None
    producer: str | None = None
    sequence: int = 0

    def __post_init__(self) -> None:
        if self.span < 0:
            object.__setattr__(self, "span", self.num_records + len(self.rejected))

    @property
    def num_records(self) -> int:
        return 0 if self.records is None else len(self.records)

    def check(self) -> None:
        """Refuses what cannot be a group."""
        for is_wrong, got, wanted in self._mistakes():
            if is_wrong:
                raise DataError(got=got, wanted=wanted, do="mend the draft; nothing of the call was appended")

    def _mistakes(self) -> list[tuple[bool, str, str]]:
        places = [one.offset for one in self.rejected]
        ids = self.span if self.ids is None else len(self.ids)
        return [
            (self.kind not in KINDS, f"kind {self.kind!r}", f"one of {', '.join(KINDS)}"),
            (self.kind == "decision" and self.span > 0, f"a decision of {self.span} places", "one with a span of 0"),
            (self.kind != "records" and self.records is not None, f"a {self.kind} with records", "one without"),
            (not self._offsets_fit(), "offsets that do not fit the records", "rising places of each within the span"),
            (
                any(not 0 <= place < self.span for place in places) or not _is_rising(places),
                f"refused records at {places[:5]}",
                f"rising places below {self.span}",
            ),
            (self._collides(places), "a record at the place of a refused one", "one of the two at each place"),
            (ids != self.span, f"{ids} ids for {self.span} places", "one id, or None, for each place"),
            (self.ids is not None and self.producer is not None, "ids and a producer", "one of the two"),
            (self.kind == "decision" and self.producer is not None, "a decision with a producer", "one without"),
            (not 0 <= self.sequence < 1 << 62, f"sequence {self.sequence}", "a number from 0"),
        ]

    def _offsets_fit(self) -> bool:
        if self.offsets is None:
            return self.records is None or len(self.records) == self.span
        places = np.asarray(self.offsets)
        if (
            places.ndim != 1
            or places.dtype != np.int64
            or (self.records is not None and len(places) != len(self.records))
        ):
            return False
        return not len(places) or bool(places[0] >= 0 and places[-1] < self.span and (np.diff(places) > 0).all())

    def _collides(self, places: list[int]) -> bool:
        if self.offsets is None:
            return bool(places) and self.num_records > 0
        return bool(np.isin(places, self.offsets).any())


@dataclasses.dataclass(frozen=True, slots=True)
class Appended:
    """Where a draft went: ``first`` and ``span`` of what is new, and the position of each of its records.

    A duplicate has the position that it had the first time, or -1 if that was dropped since.
    """

    first: int
    span: int
    positions: npt.NDArray[np.int64]  # (N,)
    num_duplicates: int = 0  # of the N


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """Where a journal ends: the number of its last group (0: none), the next position, and the chain up to there."""

    number: int
    position: int
    chain: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Any) -> Head:
        """The head that ``to_json`` made these facts of."""
        if not isinstance(facts, Mapping) or any(not isinstance(facts.get(k), kind) for k, kind in _HEAD_KEYS.items()):
            raise StorageError(
                got=f"{json.dumps(facts, default=str)[:80]} as a journal's head",
                wanted="its number, position and chain",
                do="use what Head.to_json gave",
            )
        return cls(**{key: facts[key] for key in _HEAD_KEYS})


def _is_rising(places: list[int]) -> bool:
    return all(left < right for left, right in itertools.pairwise(places))
