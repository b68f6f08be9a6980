"""Where drafts go: their numbers, places and links, and which of their records are there already.

A plan is made of the calls that one transaction serves. A call that is refused leaves nothing in it. This file knows
rows and what was seen before; it writes nothing.

Shapes: S places of a draft, N records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.errors import DataError
from millstream.journal.duplicates import NO_ID, Last, Seen, Staged, hash_ids
from millstream.journal.groups import Appended, Draft, Head
from millstream.journal.rows import Row, row_of, schema_bytes

__all__ = ["Plan", "Prepared", "prepare"]

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

_DROPPED = -2


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A draft, its row without a place, and the hashes of its ids."""

    draft: Draft
    row: Row
    keys: list[bytes]


def prepare(draft: Draft, secret: bytes) -> Prepared:
    """All of an append that needs no lock."""
    keys = [] if draft.ids is None else hash_ids(draft.ids, secret)
    return Prepared(draft, row_of(draft, b"".join(keys)), keys)


class Plan:
    """Rows in their order, and the head after them."""

    def __init__(self, seen: Seen, head: Head, fetch: Callable[[int], Row | None]) -> None:
        self.head, self.rows = head, list[Row]()
        self.schemas: dict[bytes, bytes] = {}
        self.staged = Staged(seen)
        self._num_ids, self._fetch = seen.ids.size, fetch

    def add(self, drafts: Sequence[Prepared]) -> list[Appended]:
        """Places for all the drafts of one call, or an error and no change."""
        head, num_rows, staged = self.head, len(self.rows), Staged(self.staged)
        try:
            appended = [self._place(one, staged) for one in drafts]
        except BaseException:
            self.head = head
            del self.rows[num_rows:]
            raise
        staged.take_over()
        return appended

    def _place(self, one: Prepared, staged: Staged) -> Appended:
        draft, first = one.draft, self.head.position
        old = self._positions_before(one, staged)
        fresh = None if old is None else old == -1
        if old is None or fresh is None or fresh.all():
            positions = first + _offsets(draft)
            self._seal(one, staged)
            return Appended(first, draft.span, positions)
        places = _offsets(draft)
        moved = first + np.cumsum(fresh) - 1
        if fresh.any():
            self._seal(_without(one, fresh), staged)
        found = np.where(fresh, moved, np.where(old == _DROPPED, -1, old))[places]
        return Appended(first, int(fresh.sum()), found, int((~fresh[places]).sum()))

    def _seal(self, one: Prepared, staged: Staged) -> None:
        row, head = one.row, self.head
        row.number, row.first = head.number + 1, head.position
        if row.producer:
            last = staged.last_of(row.producer)
            row.before = 0 if last is None else last.number
            staged.producers[row.producer] = Last(row.sequence + row.span, row.number)
        if one.keys:
            staged.ids.update({key: row.first + place for place, key in enumerate(one.keys) if key != NO_ID})
        row.seal(bytes.fromhex(head.chain))
        if one.draft.records is not None and row.schema not in self.schemas:
            self.schemas[row.schema] = schema_bytes(one.draft.records.schema)
        self.rows.append(row)
        self.head = row.head()

    def _positions_before(self, one: Prepared, staged: Staged) -> Places | None:
        """(S,) where each place was appended before: -1 is nowhere, -2 in what was dropped since. None: all are new."""
        if one.keys:
            return self._of_ids(one.keys, staged)
        if not one.row.producer or (last := staged.last_of(one.row.producer)) is None:
            return None
        draft = one.draft
        if draft.sequence == last.next:
            return None
        if draft.sequence > last.next:
            raise DataError(
                got=f"sequence {draft.sequence} of producer {draft.producer!r} after {last.next - 1}",
                wanted=f"sequence {last.next}",
                do="send what is missing first; nothing of the call was appended",
            )
        old = np.full(draft.span, -1, np.int64)
        num = min(last.next - draft.sequence, draft.span)
        old[:num] = _DROPPED
        number = last.number
        while number and num:
            row = self._row(number)
            if row is None:
                break
            low, high = max(row.sequence - draft.sequence, 0), min(row.sequence + row.span - draft.sequence, num)
            if low < high:
                old[low:high] = row.first - row.sequence + draft.sequence + np.arange(low, high)
            num, number = min(num, low), row.before
        return old

    def _of_ids(self, keys: list[bytes], staged: Staged) -> Places:
        oldest = self.head.position - self._num_ids
        old, here, num_old = np.full(len(keys), -1, np.int64), dict[bytes, int](), 0
        for place, key in enumerate(keys):
            if key == NO_ID:
                continue
            found = here.get(key)
            if found is None:
                found = staged.find(key, oldest=oldest)
            if found is None:
                here[key] = self.head.position + place - num_old
            else:
                old[place] = found
                num_old += 1
        return old

    def _row(self, number: int) -> Row | None:
        if self.rows and number >= self.rows[0].number:
            return self.rows[number - self.rows[0].number]
        return self._fetch(number)


def _offsets(draft: Draft) -> Places:
    if draft.offsets is None:
        return np.arange(draft.num_records, dtype=np.int64)
    return draft.offsets[: draft.num_records]


def _without(one: Prepared, fresh: Flags) -> Prepared:
    """The places of a draft that are new, moved together."""
    draft, moved = one.draft, np.cumsum(fresh) - 1
    records, offsets = draft.records, _offsets(draft)
    kept = fresh[offsets]
    if records is not None:
        records = records.take(pa.array(np.flatnonzero(kept)))
    rejected = tuple(
        dataclasses.replace(each, offset=int(moved[each.offset])) for each in draft.rejected if fresh[each.offset]
    )
    num_old = 0 if draft.producer is None else int(np.argmax(fresh))
    keys = [key for key, is_new in zip(one.keys, fresh, strict=True) if is_new] if one.keys else []
    smaller = dataclasses.replace(
        draft,
        records=records,
        span=int(fresh.sum()),
        offsets=None if draft.offsets is None and not rejected else moved[offsets[kept]].astype(np.int64),
        rejected=rejected,
        ids=None,
        sequence=draft.sequence + num_old,
    )
    return Prepared(smaller, row_of(smaller, b"".join(keys)), keys)
