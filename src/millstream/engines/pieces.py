"""Engines that wrap another one and cut its chunks at fixed numbers of lessons, so that what they do between two pieces
happens at the same records wherever a source was cut or a run resumed.

Shapes: N records, M questions, K scores of a record.
"""

from __future__ import annotations

import abc
import bisect
import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Engine, Event, Inputs, Outcome, Questions, State, Stateful
from millstream.errors import CheckpointError, LearningError, MillstreamError

__all__ = ["Pending", "Piecewise", "Unscored", "Wrapper", "find", "learned_before", "part_of", "pieces", "raise_so_far"]


def pieces(chunk: Chunk, update_size: int, size: int, taken: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) records of whole updates, ``size`` of them a piece; the first piece has ``taken`` already.

    >>> list(pieces(Chunk(torch.zeros(10, 1)), 1, 4, 3))
    [(0, 1), (1, 5), (5, 9), (9, 10)]
    """
    edges = [] if update_size == 1 else [last for _, last in chunk.updates(update_size)]
    first = 0
    while first < len(chunk):
        last = min(first + size - taken, len(chunk))
        if edges:
            last = edges[bisect.bisect_left(edges, last)]
        yield first, last
        taken += last - first
        taken, first = 0 if taken >= size else taken, last


def part_of(questions: Questions, first: int, last: int, learned: int) -> Questions:
    """Questions ``first`` to ``last``, for a piece that begins after so many lessons."""
    before = np.maximum(questions.learned_before[first:last] - learned, 0)
    return dataclasses.replace(questions, chunk=questions.chunk.select(slice(first, last)), learned_before=before)


def raise_so_far(error: MillstreamError, num_places: int) -> NoReturn:
    """Raises the error of a piece that comes after ``num_places`` places of its chunk, which were learned."""
    learned = max(num_places, getattr(error, "num_learned", 0))  # a piece knows its places in the chunk
    if not learned:
        raise error
    raise learned_before(error, learned) from error


def learned_before(error: MillstreamError, num: int) -> LearningError:
    """The same error, which comes after ``num`` places that were learned."""
    do = f"{error.do.rpartition('; ')[0] or error.do}; the first {num} records were learned"
    return LearningError(got=error.got, wanted=error.wanted, do=do, num_learned=num)


class Wrapper(abc.ABC):
    """An engine around another one, which computes the updates. ``kind`` names it in checkpoints and errors."""

    kind = ""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.rule = inner.rule

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def active(self) -> Any:
        return self.inner.active

    @property
    def optimizer(self) -> str:
        return self.inner.optimizer

    @property
    def learning_rate(self) -> float:
        return self.inner.learning_rate

    def chunk_size(self, update_size: int) -> int:
        return self.inner.chunk_size(update_size)

    def predict(self, inputs: Inputs) -> Tensor:
        return self.inner.predict(inputs)

    def state_dict(self) -> State:
        inner = self.inner.state_dict() if isinstance(self.inner, Stateful) else None
        return {"wrapper": self.kind, "own": self._own_state(), "inner": inner}

    def load_state_dict(self, state: State) -> None:
        inner = state.get("inner")
        if state.get("wrapper") != self.kind or (inner is not None) != isinstance(self.inner, Stateful):
            raise CheckpointError(
                got=f"a checkpoint without {self.kind}" if state.get("wrapper") != self.kind else "another race",
                wanted=f"the state of {self.kind} and of what is within",
                do="build the trainer with the replay, drift, average and optimizers that it was made with",
            )
        if isinstance(self.inner, Stateful):
            self.inner.load_state_dict(state["inner"])
        self._load_own_state(state["own"])

    @abc.abstractmethod
    def _own_state(self) -> State: ...

    @abc.abstractmethod
    def _load_own_state(self, state: State) -> None: ...


class Piecewise(Wrapper):
    """Hands over pieces of ``size`` lessons, more where updates are larger, and calls ``_between`` after each."""

    size = 512  # as the segments of a race, so that its chunks are not cut once more

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._taken = 0  # lessons of the piece so far
        self._events: list[Event] = []

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        if not len(chunk):
            outcome = self.inner.learn(chunk, update_size, questions)
            self._see(chunk, questions, outcome)
            return outcome
        found: list[Outcome] = []
        asked = 0
        for first, last in pieces(chunk, update_size, self.size, self._taken):
            piece, part = chunk.select(slice(first, last)), None
            if questions is not None:
                due = int(np.searchsorted(questions.learned_before, last, side="right"))
                due = len(questions.chunk) if last == len(chunk) else due
                part, asked = part_of(questions, asked, due, first), due
            try:
                outcome = self._learn(piece, update_size, part)
            except MillstreamError as error:
                before = int(piece.positions()[0]) - chunk.start if first else 0
                raise_so_far(error, before)
            outcome.skipped = tuple(first + place for place in outcome.skipped)
            self._see(piece, part, outcome)
            self._taken += last - first
            if self._taken >= self.size:
                self._taken = 0
                self._between(int(piece.positions()[-1]) + 1)
            found.append(outcome)
        return self._joined(found)

    def _learn(self, piece: Chunk, update_size: int, questions: Questions | None) -> Outcome:
        return self.inner.learn(piece, update_size, questions)

    def _see(self, piece: Chunk, questions: Questions | None, outcome: Outcome) -> None:
        """What came of a piece, or of a part of one."""

    def _between(self, position: int) -> None:
        """A piece has ended; ``position`` is the run position of what comes next."""

    def _joined(self, found: list[Outcome]) -> Outcome:
        own, self._events = tuple(self._events), []
        events = sorted((event for o in found for event in o.events), key=lambda event: event.position)
        return Outcome(
            torch.cat([o.outputs for o in found if len(o.outputs)] or [found[0].outputs]),
            torch.cat([o.losses for o in found]),
            sum(o.num_updates for o in found),
            tuple(place for o in found for place in o.skipped),
            tuple(sorted((*events, *own), key=lambda event: event.position)),
            next((o.by_reference for o in found if o.by_reference), ""),
            tuple(norms for o in found for norms in o.norms),
        )


class Pending:
    """Scores of questions, until their lessons come.

    >>> pending = Pending(1)
    >>> pending.keep(np.arange(3), np.array([[0.1, 0.2, 0.3]]))
    >>> pending.take(np.array([1])).tolist(), pending.take(np.array([0, 2])).tolist()
    ([[0.2]], [[0.1, 0.3]])
    """

    def __init__(self, num_scores: int) -> None:
        self._scores: npt.NDArray[np.float64] = np.zeros((num_scores, 0))
        self._numbers = np.zeros(0, np.int64)

    def keep(self, numbers_M: npt.NDArray[np.int64], scores_KM: npt.NDArray[np.float64]) -> None:
        if len(self._numbers) and len(numbers_M) and numbers_M[0] <= self._numbers[-1]:  # another phase has begun
            self._scores, self._numbers = self._scores[:, :0], self._numbers[:0]
        if not len(self._numbers):
            self._scores = np.zeros((len(scores_KM), 0))
        self._scores = np.concatenate([self._scores, scores_KM], axis=1)
        self._numbers = np.concatenate([self._numbers, numbers_M])

    def forget(self, oldest: int) -> None:
        """Nobody asks for what came before this number any more."""
        first = int(np.searchsorted(self._numbers, oldest))
        self._scores, self._numbers = self._scores[:, first:], self._numbers[first:]

    def take(self, numbers_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """(K, N) what was kept for these lessons."""
        places = np.searchsorted(self._numbers, numbers_N)
        found = self._scores[:, places]
        kept = np.ones(len(self._numbers), bool)
        kept[places] = False
        self._scores, self._numbers = self._scores[:, kept], self._numbers[kept]
        return found

    def state_dict(self) -> State:
        return {"scores": self._scores, "numbers": self._numbers}

    def load_state_dict(self, state: State) -> None:
        self._scores, self._numbers = np.array(state["scores"]), np.array(state["numbers"])


class Unscored:
    """Outputs of several models as rows that ``Pending`` keeps, until labels come that they can be scored by.

    >>> unscored = Unscored()
    >>> kept = unscored.kept({0: Outcome(torch.ones(3, 2), torch.zeros(3))}, np.array([[False] * 3, [True] * 3]))
    >>> kept.shape, unscored.outputs(kept, 2, torch.device("cpu"))[0].tolist()
    ((6, 3), [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()  # of one output
        self._dtype = torch.float32

    def kept(self, outcomes: dict[int, Outcome], is_idle_KM: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K + K × size, M): NaN where a model did not run, else 0; then its outputs."""
        first = next(iter(outcomes.values())).outputs
        self._shape, self._dtype = tuple(first.shape[1:]), first.dtype
        num, num_models = len(first), len(is_idle_KM)
        outputs = np.zeros((num_models, max(1, first[:1].numel()), num))
        for number, outcome in outcomes.items():
            outputs[number] = outcome.outputs.detach().double().cpu().numpy().reshape(num, -1).T
        return np.concatenate([np.where(is_idle_KM, np.nan, 0.0), outputs.reshape(-1, num)])

    def outputs(self, rows: npt.NDArray[np.float64], num_models: int, device: torch.device) -> list[Tensor]:
        """The (N, ...) outputs of each model; those of one that did not run mean nothing."""
        each = rows[num_models:].reshape(num_models, -1, rows.shape[1])
        return [torch.from_numpy(one.T.copy()).to(device, self._dtype).reshape(-1, *self._shape) for one in each]

    def state_dict(self) -> State:
        return {"shape": list(self._shape), "dtype": str(self._dtype).removeprefix("torch.")}

    def load_state_dict(self, state: State) -> None:
        self._shape = tuple(state.get("shape", ()))
        self._dtype = getattr(torch, state.get("dtype", "float32"))


def find(engine: Any, kind: type[Any]) -> Any:
    """The engine of this kind within wrappers, or None."""
    while not isinstance(engine, kind):
        if not isinstance(engine, Wrapper):
            return None
        engine = engine.inner
    return engine
