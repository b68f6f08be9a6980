"""Replay against forgetting: records of the past are learned again between new ones.

A reservoir keeps an even sample of all lessons so far (Vitter 1985, algorithm R), a window the latest ones. Which
record goes where, and which one comes back after which lesson, follows from the seed and the lesson's number alone, so
that cuts and resumes change nothing. What is handed back is of new records only.

Shapes: N lessons of a chunk, T rows with those that are replayed, C kept records, P replayed rows.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Engine, Inputs, Outcome, Questions, State, map_tensors
from millstream.engines.pieces import Wrapper, learned_before
from millstream.engines.randomness import keys
from millstream.errors import LearningError, SettingError
from millstream.rows import join_rows, rows_of

__all__ = ["Replay", "ReplayEngine", "parse_replay"]

_MOST_BYTES = 64 << 20  # of the dense inputs that are kept
_OF_PLACES, _OF_PICKS = 0x5EED_0001, 0x5EED_0002  # keys of two families of draws
Numbers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """``share`` replayed records for each new one, from an even sample of the past or from its last records."""

    share: float
    kind: str = "reservoir"
    records: int = 10_000  # kept; fewer where their dense inputs would take more than 64 MiB

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 16 or self.kind not in ("reservoir", "window") or self.records < 1:
            raise SettingError(
                got=f"replay of {self.share:g} from a {self.kind} of {self.records} records",
                wanted="a share from 0 to 16, from a reservoir or window of 1 record or more",
                do="write e.g. 0.2 or 0.2:window:5000",
            )


def parse_replay(text: str | float | Replay | None) -> Replay | None:
    """``0.2`` is one replayed record for five new ones, ``0.2:window:5000`` from the last 5,000; 0 is none.

    >>> parse_replay("0.2:window:5000")
    Replay(share=0.2, kind='window', records=5000)
    """
    if isinstance(text, Replay) or text is None:
        return text
    match = re.fullmatch(r"([\d.e-]+)(?::(reservoir|window))?(?::(\d+))?", str(text).strip())
    try:
        share = float(match[1]) if match else math.nan
    except ValueError:
        share = math.nan
    if match is None or math.isnan(share):
        raise SettingError(
            got=f"replay {str(text)!r}", wanted="a share, and from what", do="write e.g. 0.2 or 0.2:window:5000"
        )
    return Replay(share, match[2] or "reservoir", int(match[3] or 10_000)) if share else None


class ReplayEngine(Wrapper):
    """Hands chunks over with replayed rows between their own; keeps records while fitting, replays while online.

    ``most`` is the largest share that ``share`` will be set to.
    """

    kind = "replay"

    def __init__(self, inner: Engine, replay: Replay, most: float = 0.0) -> None:
        super().__init__(inner)
        self.share = self.usual = replay.share
        self._places_a_lesson = 1 + math.ceil(max(replay.share, most))
        self._reservoir = _Reservoir(replay, self.rule.seed)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        if not len(chunk):
            return self.inner.learn(chunk, update_size, questions)
        share = self.share if self.rule.online else 0.0
        own_T, rows_T = self._reservoir.weave(len(chunk), share)
        woven = self._woven(chunk, own_T, rows_T, update_size)
        first_N = np.flatnonzero(own_T)  # where each lesson stands among the rows
        if questions is not None:
            starts = np.append(first_N, len(own_T))
            questions = dataclasses.replace(questions, learned_before=starts[questions.learned_before])
        size = update_size if update_size == 1 else update_size * self._places_a_lesson
        try:
            outcome = self.inner.learn(woven, size, questions)
        except LearningError as error:
            raise learned_before(error, -(-error.num_learned // self._places_a_lesson)) from error
        self._reservoir.take(chunk)
        return self._own(outcome, own_T, first_N, update_size, answered=questions is not None)

    def _woven(self, chunk: Chunk, own_T: npt.NDArray[np.bool_], rows_T: Numbers, update_size: int) -> Chunk:
        """The chunk with replayed rows after the lessons they follow, each at a place of its own."""
        places, lesson_T = self._places_a_lesson, np.cumsum(own_T) - 1
        offsets = np.arange(len(chunk)) if chunk.offsets is None else chunk.offsets
        turn_T = np.arange(len(own_T)) - np.flatnonzero(own_T)[lesson_T]
        numbers = np.zeros(len(chunk), np.int64) if chunk.numbers is None else chunk.numbers
        replayed = bool((~own_T).any())
        woven = self._reservoir.rows(chunk, rows_T) if replayed else chunk
        return dataclasses.replace(
            woven,
            span=chunk.span * places,
            start=chunk.start * places,
            offsets=offsets[lesson_T] * places + turn_T,
            numbers=np.where(own_T, numbers[lesson_T], -1),
            judged=None if chunk.judged is None else chunk.judged[torch.from_numpy(lesson_T)],
            times=None,
            label_times=None,
            locate=lambda place: chunk.where(int(np.searchsorted(offsets, place // places))),
        )

    def _own(
        self, outcome: Outcome, own_T: npt.NDArray[np.bool_], first_N: Numbers, update_size: int, *, answered: bool
    ) -> Outcome:
        """What the outcome says of the chunk's own records."""
        lesson_T = np.cumsum(own_T) - 1
        skipped = tuple(int(lesson_T[row]) for row in outcome.skipped if own_T[row])
        num_updates = len(first_N) - len(skipped) if update_size == 1 else outcome.num_updates
        outputs, losses = outcome.outputs, outcome.losses
        if not answered and len(first_N) < len(own_T):
            index = torch.from_numpy(first_N).to(outputs.device)
            outputs, losses = outputs[index], losses[index]
        events = (dataclasses.replace(e, position=e.position // self._places_a_lesson) for e in outcome.events)
        return Outcome(outputs, losses, num_updates, skipped, tuple(events), outcome.by_reference)

    def _own_state(self) -> State:
        return {"share": self.share, **self._reservoir.state_dict()}

    def _load_own_state(self, state: State) -> None:
        self.share = state["share"]
        self._reservoir.load_state_dict(state)


class _Reservoir:
    """Records that were learned: an even sample of them, or the last ones."""

    def __init__(self, replay: Replay, seed: int) -> None:
        self._kind, self._most, self._seed = replay.kind, replay.records, seed
        self._num_seen = 0
        self._kept: list[Any] | None = None  # inputs, targets and weights of the first so many slots

    def weave(self, num: int, share: float) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """(T,) whether a row is a lesson of the next ``num``, and which row it is.

        Row ``n`` is the chunk's own, row ``num + c`` is what slot ``c`` holds before the chunk.
        """
        number_N = np.arange(self._num_seen, self._num_seen + num)
        counts = np.floor((number_N + 1) * share).astype(np.int64) - np.floor(number_N * share).astype(np.int64)
        counts[np.minimum(number_N, self._most) == 0] = 0  # there is nothing yet
        own_T = np.zeros(num + int(counts.sum()), bool)
        own_T[np.arange(num) + np.cumsum(counts) - counts] = True
        rows_T = np.cumsum(own_T) - 1
        if counts.any():
            after_P = rows_T[~own_T]
            turn_P = np.arange(len(own_T))[~own_T] - np.flatnonzero(own_T)[after_P]
            words = keys(self._seed ^ _OF_PICKS, number_N[after_P] * 16 + turn_P).astype(np.uint64)
            held = np.minimum(number_N[after_P], self._most).astype(np.uint64)
            rows_T[~own_T] = self._source((words * held >> np.uint64(32)).astype(np.int64), after_P, number_N)
        return own_T, rows_T

    def rows(self, chunk: Chunk, rows_T: Numbers) -> Chunk:
        """These rows, as ``weave`` names them."""
        num = len(chunk)
        slots, places = np.unique(rows_T[rows_T >= num] - num, return_inverse=True)
        order = rows_T.copy()
        order[rows_T >= num] = num + places
        index, needed = torch.from_numpy(order), torch.from_numpy(slots)

        def woven(new: Tensor, kept: Tensor | None) -> Tensor:
            return rows_of(new if kept is None else join_rows([new, rows_of(kept, needed)]), index)

        inputs, targets, weights = self._parts(chunk)
        kept = [None] * 3 if self._kept is None else self._kept
        assert targets is not None
        return Chunk(
            _zipped(inputs, kept[0], woven),
            woven(targets, kept[1]),
            None if weights is None else woven(weights, kept[2]),
        )

    def take(self, chunk: Chunk) -> None:
        """Keeps some of the lessons."""
        if self._kept is None:
            self._most = min(self._most, max(1, _MOST_BYTES // max(1, _bytes_of_a_row(chunk.inputs))))
        slots, lessons = self._last_ones(self._slots(np.arange(self._num_seen, self._num_seen + len(chunk))))
        parts = self._parts(chunk)
        held = min(self._num_seen, self._most)
        self._num_seen += len(chunk)
        if not len(slots):
            return
        most, now = self._most, min(self._num_seen, self._most)
        where, which = torch.from_numpy(slots), torch.from_numpy(lessons)

        def stored(new: Tensor, kept: Tensor | None) -> Tensor:
            if new.layout is torch.sparse_csr:
                index = torch.arange(now)
                index[where] = held + torch.arange(len(where))
                picked = rows_of(new, which)
                return rows_of(picked if kept is None else join_rows([kept, picked]), index)
            if kept is None:
                kept = new.new_empty(most, *new.shape[1:])
            kept[where] = new.detach()[which]
            return kept

        before = [None] * 3 if self._kept is None else self._kept
        self._kept = [_zipped(part, old, stored) for part, old in zip(parts, before, strict=True)]

    def state_dict(self) -> State:
        held, kept = min(self._num_seen, self._most), None
        if self._kept is not None:
            kept = [_mapped(part, lambda value: rows_of(value, slice(0, held))) for part in self._kept]
        return {"num_seen": self._num_seen, "most": self._most, "kind": self._kind, "kept": kept}

    def load_state_dict(self, state: State) -> None:
        self._num_seen, self._most, self._kind = state["num_seen"], state["most"], state["kind"]
        most = self._most

        def grown(value: Tensor) -> Tensor:
            if value.layout is torch.sparse_csr:
                return value
            room = value.new_empty(most, *value.shape[1:])
            room[: len(value)] = value
            return room

        self._kept = None if state["kept"] is None else [_mapped(part, grown) for part in state["kept"]]

    def _slots(self, number_N: Numbers) -> Numbers:
        """(N,) where each lesson goes; slots from ``_most`` on are none."""
        if self._kind == "window":
            return number_N % self._most
        words = keys(self._seed ^ _OF_PLACES, number_N).astype(np.uint64)
        drawn = (words * (number_N + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
        return np.where(number_N < self._most, number_N, drawn)

    def _last_ones(self, slot_N: Numbers) -> tuple[Numbers, Numbers]:
        """Slots that are written, and which lesson remains in each."""
        kept = np.flatnonzero(slot_N < self._most)
        slots, last = np.unique(slot_N[kept][::-1], return_index=True)
        return slots, kept[::-1][last]

    def _source(self, slot_P: Numbers, after_P: Numbers, number_N: Numbers) -> Numbers:
        """(P,) the row that is in a slot just before lesson ``after_P`` goes into its own."""
        num = len(number_N)
        slot_N = self._slots(number_N)
        keys_N = slot_N * (num + 1) + np.arange(num)
        order = np.argsort(keys_N)
        found = np.searchsorted(keys_N[order], slot_P * (num + 1) + after_P) - 1
        lesson = order[np.maximum(found, 0)]
        within = (found >= 0) & (slot_N[lesson] == slot_P)
        return np.where(within, lesson, num + slot_P)

    def _parts(self, chunk: Chunk) -> tuple[Inputs, Tensor | None, Tensor | None]:
        """Inputs, targets, and weights if this chunk or one before it had any."""
        weights = chunk.weights
        had = self._kept is not None and self._kept[2] is not None
        assert chunk.targets is not None
        if weights is None and had:
            weights = torch.ones(len(chunk), dtype=self._kept[2].dtype)  # type: ignore[index]
        elif weights is not None and self._kept is not None and not had:
            self._kept[2] = weights.new_ones(self._most)
        return chunk.inputs, chunk.targets, weights


def _zipped(new: Any, kept: Any, function: Callable[[Tensor, Tensor | None], Tensor]) -> Any:
    """A function of each tensor of ``new`` and the one in its place in ``kept``, in the same form."""
    if isinstance(new, dict):
        return {name: _zipped(value, None if kept is None else kept[name], function) for name, value in new.items()}
    if isinstance(new, tuple):
        before = [None] * len(new) if kept is None else kept
        return tuple(_zipped(value, old, function) for value, old in zip(new, before, strict=True))
    return None if new is None else function(new, kept)


def _mapped(part: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return None if part is None else map_tensors(part, function)


def _bytes_of_a_row(inputs: Inputs) -> int:
    sizes: list[int] = []
    map_tensors(inputs, lambda part: sizes.append(_row_bytes(part)))
    return sum(sizes)


def _row_bytes(part: Tensor) -> int:
    if part.layout is torch.sparse_csr:
        return 0  # as many as it has numbers: these are bounded by how many records are kept
    return part[0].numel() * part.element_size()
