"""Labels that come later by themselves, under the id of a record that was predicted before: answers join questions.

``LabelJoin`` stands where ``LabelDelay`` does. It keeps what a question was predicted on and what the prediction was,
until the answer comes or time is up; that is state. It knows ids and tensors; it knows no columns and no engine.

Shapes: N events of a chunk, M questions, A labels that came, L lessons.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Events, Questions, State
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.shelf import Shelf

__all__ = ["Joined", "Joining", "LabelJoin"]


@dataclasses.dataclass(frozen=True, slots=True)
class Joining:
    """How long a question waits for its label, and what becomes of it then.

    ``timeout_records`` counts the places of the stream, ``timeout_seconds`` is by the stream's own time column; without
    either a question waits for ever. Then ``default`` (a label, as a text) is learned, or the question is dropped. More
    than ``max_open`` questions never wait: the oldest one's time is up. So many ids as ``remembered`` are known after
    they were answered, or their time was up; an answer to one of before is to an unknown id.

    >>> Joining(timeout_records=1000, default="0")
    Joining(timeout_records=1000, timeout_seconds=None, default='0', max_open=100000, remembered=100000)
    """

    timeout_records: int | None = None
    timeout_seconds: float | None = None
    default: str | None = None
    max_open: int = 100_000
    remembered: int = 100_000

    def __post_init__(self) -> None:
        timeouts = [each for each in (self.timeout_records, self.timeout_seconds) if each is not None]
        if len(timeouts) > 1 or any(not 0 <= each < math.inf for each in timeouts):
            raise SettingError(
                got=f"timeouts of {' and '.join(map(str, timeouts))}",
                wanted="one that is not negative: of records, or of seconds",
                do="give --label-timeout 1000 or --label-timeout 2h",
            )
        if self.max_open < 1 or self.remembered < 0:
            raise SettingError(
                got=f"max_open={self.max_open}, remembered={self.remembered}",
                wanted="1 open question or more, and 0 remembered ids or more",
                do="leave them out",
            )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items() if value is not None)


@dataclasses.dataclass(slots=True)
class _Plan:
    """What the events of one chunk do: slots of what is asked, answered and dropped, and in which order."""

    asked: list[int] = dataclasses.field(default_factory=list)
    num_before: list[int] = dataclasses.field(default_factory=list)  # labels of this chunk before each question
    known: list[float] = dataclasses.field(default_factory=list)
    guesses: list[float] = dataclasses.field(default_factory=list)
    arrived: list[int] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)  # their ids
    labels: list[float] = dataclasses.field(default_factory=list)
    dropped: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Joined:
    """What a chunk brings: lessons and questions, and the slots of the shelf where their rows are."""

    lessons: Chunk  # whole updates; empty when none is complete
    questions: Questions
    asked: Tensor  # (M,) slots
    arrived: Tensor  # (A,) of the questions whose labels came, in this order
    labels: Tensor  # (A,) these labels
    names: list[str]  # (A,) their ids
    learned: Tensor  # (L,) of the lessons
    done: list[int]  # slots that nobody needs after this chunk


class LabelJoin:
    """Joins answers to the questions that wait for them. Lessons come in the order in which labels come.

    Of each chunk first ``admit`` is asked, which may refuse events; then ``arrive`` gives lessons and questions; when
    these are predicted, ``finish`` lets go of what is done. ``shelf`` has the rows of all questions meanwhile.
    """

    def __init__(self, joining: Joining, update_size: int) -> None:
        self.joining, self.update_size = joining, update_size
        self.shelf = Shelf()
        self.default: float | None = None  # the number of the default label, once somebody has looked it up
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._open: collections.OrderedDict[str, tuple[int, float]] = collections.OrderedDict()  # id -> slot, asked at
        self._closed: collections.OrderedDict[str, bool] = collections.OrderedDict()  # id -> whether it was answered
        self.begun_at = 0  # the place, among all that the run has read, of the first event
        self._ready: list[int] = []  # slots of lessons that do not fill an update yet
        self._ready_labels: list[float] = []
        self._num_seen = self._num_asked = 0
        self._clock = -math.inf
        self._last_label = math.nan
        self._are_classes = True
        self._num_of_class: dict[int, int] = {}
        self._leader = math.nan  # the class that most labels so far were of
        self._sum, self._num_labels = 0.0, 0
        self._plan = _Plan()

    @property
    def counts(self) -> dict[str, int]:
        """How many questions were asked and what became of them, and how many answers did not fit; ``open`` is now."""
        return {**self._counts, "open": len(self._open)}

    def is_like(self, joining: Joining, update_size: int) -> bool:
        """Whether another phase may go on with the questions that are open."""
        return (self.joining, self.update_size) == (joining, update_size)

    def count_anew(self) -> None:
        """Another phase begins, with the questions that are open."""
        self._counts = dict.fromkeys(_COUNTED, 0)

    # ---------------------------------------------------------------- what events do

    def admit(self, events: Events) -> dict[int, tuple[str, str]]:
        """Takes up the events of a chunk, in order. Of those that are refused: what was got, and what was wanted."""
        by_time = self.joining.timeout_seconds is not None
        if by_time and events.times is None:
            raise DataError(
                got=f"a label timeout of {self.joining.timeout_seconds:g} s on data without a time column",
                wanted="a time column in the schema",
                do="name it (--time COLUMN) or give the timeout in records",
            )
        self._plan, self._are_classes = _Plan(), events.are_classes
        num = len(events.ids)
        times = [math.nan] * num if events.times is None else events.times.tolist()
        rows = zip(events.ids, events.asks.tolist(), events.labels.tolist(), times, events.places.tolist(), strict=True)
        refused = {}
        for row, (name, asks, label, time, place) in enumerate(rows):
            self._clock = time if time > self._clock else self._clock
            now = self._clock if by_time else self._num_seen + place
            self._expire(now)
            reason = self._ask(name, label, now) if asks else self._answer(name, label)
            if reason is not None:
                refused[row] = reason
        self._num_seen += events.span
        return refused

    def _expire(self, now: float) -> None:
        joining = self.joining
        timeout = joining.timeout_records if joining.timeout_seconds is None else joining.timeout_seconds
        while timeout is not None and self._open and now - next(iter(self._open.values()))[1] > timeout:
            self._time_out()

    def _time_out(self) -> None:
        """The oldest question waits no longer."""
        name, (slot, _) = self._open.popitem(last=False)
        self._close(name, answered=False)
        if self.default is None:
            self._counts["dropped"] += 1
            self._plan.dropped.append(slot)
        else:
            self._counts["defaulted"] += 1
            self._take(name, slot, self.default)

    def _ask(self, name: str, label: float, now: float) -> tuple[str, str] | None:
        if name in self._open:
            self._counts["repeated"] += 1
            return f"a second question with id {name!r}", "an answer to the first one before, or another id"
        is_answered = not math.isnan(label)
        if not is_answered and len(self._open) >= self.joining.max_open:
            self._time_out()
        self._counts["questions"] += 1
        plan, slot = self._plan, self.shelf.reserve()
        plan.asked.append(slot)
        plan.num_before.append(len(plan.arrived))
        plan.known.append(self._last_label)
        plan.guesses.append(self._leader if self._are_classes or not self._num_labels else self._sum / self._num_labels)
        self._closed.pop(name, None)
        if is_answered:
            self._counts["answered"] += 1
            self._take(name, slot, label)
            self._close(name, answered=True)
        else:
            self._open[name] = slot, now
        return None

    def _answer(self, name: str, label: float) -> tuple[str, str] | None:
        asked = self._open.pop(name, None)
        if asked is not None:
            self._counts["answered"] += 1
            self._take(name, asked[0], label)
            self._close(name, answered=True)
            return None
        answered = self._closed.get(name)
        if answered:
            self._counts["duplicates"] += 1
            return None
        self._counts["unknown" if answered is None else "late"] += 1
        if answered is None:
            return f"an answer to id {name!r}, which nobody has asked", "the id of a question that came before"
        return f"an answer to id {name!r} after its time was up", "one within the timeout"

    def _take(self, name: str, slot: int, label: float) -> None:
        """A label has come; what is known from now on."""
        self._plan.names.append(name)
        self._plan.arrived.append(slot)
        self._plan.labels.append(label)
        self._last_label = label
        self._num_labels += 1
        if not self._are_classes:
            self._sum += label
            return
        kind = int(label)
        num = self._num_of_class[kind] = self._num_of_class.get(kind, 0) + 1
        most = 0 if math.isnan(self._leader) else self._num_of_class[int(self._leader)]
        if num > most or (num == most and kind < self._leader):
            self._leader = label

    def _close(self, name: str, *, answered: bool) -> None:
        self._closed.pop(name, None)
        self._closed[name] = answered
        if len(self._closed) > self.joining.remembered:
            self._closed.popitem(last=False)

    # ---------------------------------------------------------------- what a chunk brings

    def arrive(self, questions: Chunk) -> Joined | None:
        """The lessons and questions of a chunk that was admitted; None as long as nobody has asked anything."""
        plan, num = self._plan, len(questions)
        assert num == len(plan.asked), "events are admitted before they are learned"
        asked = _slots(plan.asked)
        questions.numbers = np.arange(self._num_asked, self._num_asked + num)
        self._num_asked += num
        if num:
            self._keep(asked, questions)
        if not self.shelf.columns:
            return None
        pool, labels = self._ready + plan.arrived, self._ready_labels + plan.labels
        num_ready, whole = len(self._ready), len(pool) - len(pool) % self.update_size
        self._ready, self._ready_labels = pool[whole:], labels[whole:]
        learned = _slots(pool[:whole])
        weights = self.shelf.rows("weights", learned) if "weights" in self.shelf.columns else None
        numbers = self.shelf.rows("number", learned).numpy()
        targets = self._targets(labels[:whole], questions)
        lessons = Chunk(self.shelf.inputs(learned), targets, weights, numbers=numbers)
        before = np.minimum(np.array(plan.num_before, np.int64) + num_ready, whole)
        questions.targets = self._targets([0.0] * num, questions)
        asking = Questions(questions, before, labelled=False, oldest=self._oldest(pool))
        arrived = _slots(plan.arrived), self._targets(plan.labels, questions)
        return Joined(lessons, asking, asked, *arrived, plan.names, learned, pool[:whole] + plan.dropped)

    def finish(self, joined: Joined) -> None:
        """What a chunk has brought was learned and scored."""
        self.shelf.give_back(joined.done)
        self._plan = _Plan()

    def _keep(self, slots: Tensor, questions: Chunk) -> None:
        plan, shelf = self._plan, self.shelf
        shelf.put_inputs(slots, questions.inputs)
        if questions.weights is not None:
            shelf.put("weights", slots, questions.weights)
        shelf.put("number", slots, torch.from_numpy(questions.numbers))
        offsets = np.arange(len(slots)) if questions.offsets is None else questions.offsets
        shelf.put("place", slots, torch.from_numpy(offsets + (self.begun_at + self._num_seen - questions.span)))
        shelf.put("known", slots, torch.tensor(plan.known, dtype=torch.float64))
        shelf.put("guess", slots, torch.tensor(plan.guesses, dtype=torch.float64))

    def _targets(self, labels: list[float], like: Chunk) -> Tensor:
        inputs: Any = like.inputs
        device = (inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))).device
        kind = torch.int64 if self._are_classes else torch.float32
        return torch.tensor(labels, dtype=torch.float64).to(kind).to(device)

    def _oldest(self, pool: list[int]) -> int:
        """The least number of a question that may still be a lesson, of this chunk or later."""
        waiting = [slot for slot, _ in itertools.islice(self._open.values(), 1)] + pool
        numbers = self.shelf.rows("number", _slots(waiting))
        return int(numbers.min()) if waiting else self._num_asked

    # ---------------------------------------------------------------- state

    def state_dict(self) -> State:
        waiting = [slot for slot, _ in self._open.values()]
        return {
            "version": 1,
            "joining": dataclasses.asdict(self.joining),
            "update_size": self.update_size,
            "default": self.default,
            "begun_at": self.begun_at,
            "counts": dict(self._counts),
            "open": _packed(list(self._open)),
            "asked_at": np.array([asked_at for _, asked_at in self._open.values()], np.float64),
            "closed": _packed(list(self._closed)),
            "answered": np.array(list(self._closed.values()), bool),
            "rows": self.shelf.state_dict(_slots(waiting + self._ready)),
            "ready_labels": np.array(self._ready_labels, np.float64),
            "num_of_class": {str(kind): num for kind, num in self._num_of_class.items()},
            **{name: getattr(self, f"_{name}") for name in _PLAIN},
        }

    def load_state_dict(self, state: State) -> None:
        if state.get("joining") != dataclasses.asdict(self.joining) or state["update_size"] != self.update_size:
            began = Joining(**state["joining"]) if "joining" in state else "another label delay"
            raise CheckpointError(
                got=f"a run with {began} and update size {state['update_size']}",
                wanted=f"{self.joining} and {self.update_size}, as asked now",
                do="resume with the settings that the run began with",
            )
        names, asked_at = _unpacked(state["open"]), state["asked_at"].tolist()
        self._open = collections.OrderedDict(zip(names, enumerate(asked_at), strict=True))
        self._closed = collections.OrderedDict(zip(_unpacked(state["closed"]), state["answered"].tolist(), strict=True))
        self._ready_labels = state["ready_labels"].tolist()
        self._ready = list(range(len(names), len(names) + len(self._ready_labels)))
        self.shelf.load_state_dict(state["rows"])
        self.default, self._counts = state["default"], dict(state["counts"])
        self.begun_at = state["begun_at"]
        self._num_of_class = {int(kind): num for kind, num in state["num_of_class"].items()}
        for name in _PLAIN:
            setattr(self, f"_{name}", state[name])
        self._plan = _Plan()


_COUNTED = ("questions", "answered", "defaulted", "dropped", "late", "duplicates", "unknown", "repeated")
_PLAIN = ("num_seen", "num_asked", "clock", "last_label", "are_classes", "leader", "sum", "num_labels")


def _slots(slots: list[int]) -> Tensor:
    return torch.tensor(slots, dtype=torch.int64)


def _packed(texts: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Texts as arrays: a hundred thousand ids are no JSON."""
    each = [text.encode() for text in texts]
    lengths = np.array([len(text) for text in each], np.int64)
    return {"bytes": np.frombuffer(b"".join(each), np.uint8).copy(), "lengths": lengths}


def _unpacked(packed: dict[str, npt.NDArray[Any]]) -> list[str]:
    whole, lengths = packed["bytes"].tobytes(), packed["lengths"].tolist()
    ends = np.cumsum(packed["lengths"], dtype=np.int64).tolist()
    return [whole[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]
