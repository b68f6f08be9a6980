"""The words of the system and what its parts promise each other. Read this first.

    source ──Chunk──▶ features ──Chunk──▶ engine ──Outcome──▶ metrics
             (named columns)     (tensors)

This file knows tensors and Arrow record batches; it does not know any part that uses them.

Shapes: N records of a chunk, C outputs of a model, M questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.rows import rows_of

__all__ = [
    "Chunk",
    "Engine",
    "Event",
    "Events",
    "GradientNorms",
    "Inputs",
    "LiveSource",
    "Loss",
    "Outcome",
    "Position",
    "Questions",
    "Rejection",
    "Sink",
    "Source",
    "State",
    "Stateful",
    "Stoppable",
    "map_tensors",
]

Inputs: TypeAlias = "Tensor | tuple[Tensor, ...] | dict[str, Tensor] | pa.RecordBatch"
"""What a model is given (a tensor, or a tuple or dict of them, each N long), or named columns before features.

A tensor is dense, or (N, S) sparse CSR."""

Position: TypeAlias = Any
"""Where a source goes on reading: a JSON value that only the source understands; None is its beginning."""

State: TypeAlias = dict[str, Any]
"""What a part must remember: nested dicts and lists of JSON values, tensors and NumPy arrays. Saved whole, by name."""


@runtime_checkable
class Stateful(Protocol):
    """A part whose state belongs to a checkpoint. What is loaded gives the same bits as what was saved."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """One record that was refused: its place in the chunk, why, where it came from (``file:line``), and its text."""

    offset: int
    reason: str
    where: str = ""
    record: str = ""


@dataclasses.dataclass(slots=True)
class Chunk:
    """Consecutive records read at once. How much is read never changes what is computed.

    A record that was refused leaves a hole: ``span`` counts it, ``offsets`` passes over it, so the records after it
    keep their positions.
    """

    inputs: Inputs
    targets: Tensor | None = None  # (N,) int64 classes, (N,) or (N, C) float; None before features or without labels
    weights: Tensor | None = None  # (N,) float record weights; None is 1 for each
    after: Position = None  # where the source goes on after this chunk
    span: int = -1  # positions that this chunk covers: its records and its holes; -1 is N
    offsets: npt.NDArray[np.int64] | None = (
        None  # (N,) place of each record within the span; None when there is no hole
    )
    start: int = 0  # run position of the first place; the trainer sets it
    times: npt.NDArray[np.float64] | None = None  # (N,) seconds since 1970 at which the features were known
    label_times: npt.NDArray[np.float64] | None = None  # (N,) seconds since 1970 at which the label was known
    numbers: npt.NDArray[np.int64] | None = None  # (N,) of the questions that late labels answer, rising as asked
    ids: pa.Array | None = None  # (N,) texts by which labels find records, where the data have them
    judged: Tensor | None = None  # (N,) targets in the units of what was predicted; None: as ``targets``
    rejected: tuple[Rejection, ...] = ()
    locate: Callable[[int], str] | None = None  # a record's place in the span -> "file:line", for messages

    def __post_init__(self) -> None:
        if self.span < 0:
            self.span = len(self)

    def __len__(self) -> int:
        if isinstance(self.inputs, dict):
            return len(next(iter(self.inputs.values())))
        if isinstance(self.inputs, tuple):
            return len(self.inputs[0])
        return len(self.inputs)

    def select(self, rows: npt.NDArray[np.int64] | slice) -> Chunk:
        """The records at ``rows`` (places among the N), each keeping its run position."""
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        offsets = self.offsets
        if offsets is None and not (isinstance(rows, slice) and rows == slice(None)):
            offsets = np.arange(len(self), dtype=np.int64)
        return dataclasses.replace(
            self,
            inputs=_pick(self.inputs, rows, index),
            targets=None if self.targets is None else self.targets[index],
            weights=None if self.weights is None else self.weights[index],
            times=None if self.times is None else self.times[rows],
            label_times=None if self.label_times is None else self.label_times[rows],
            numbers=None if self.numbers is None else self.numbers[rows],
            ids=None if self.ids is None else _picked(self.ids, rows),
            judged=None if self.judged is None else self.judged[index],
            offsets=None if offsets is None else offsets[rows],
        )

    def positions(self) -> npt.NDArray[np.int64]:
        """(N,) run position of each record."""
        offsets = np.arange(len(self), dtype=np.int64) if self.offsets is None else self.offsets
        return offsets + self.start

    def where(self, row: int) -> str:
        """Where record ``row`` of the N came from, for messages: ``file:line``, or else its run position."""
        place = row if self.offsets is None else int(self.offsets[row])
        return (self.locate(place) if self.locate else "") or f"position {self.start + place}"

    def updates(self, update_size: int) -> Iterator[tuple[int, int]]:
        """The (first, last + 1) records of each weight update: ``update_size`` places of the span, less its holes."""
        if self.offsets is None:
            for first in range(0, len(self), update_size):
                yield first, min(first + update_size, len(self))
            return
        edges = np.searchsorted(self.offsets, np.arange(0, self.span + update_size, update_size))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if last > first:
                yield first, last


def map_tensors(inputs: Any, function: Callable[[Any], Any]) -> Any:
    """A function of each tensor of the inputs, in the same form.

    >>> map_tensors({"a": torch.ones(2), "b": torch.zeros(2)}, len)
    {'a': 2, 'b': 2}
    """
    if isinstance(inputs, dict):
        return {name: map_tensors(value, function) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map_tensors(value, function) for value in inputs)
    return function(inputs)


def _pick(inputs: Inputs, rows: npt.NDArray[np.int64] | slice, index: Tensor | slice) -> Inputs:
    if isinstance(inputs, pa.RecordBatch):
        return _picked(inputs, rows)
    picked: Inputs = map_tensors(inputs, lambda value: rows_of(value, index))
    return picked


def _picked(values: Any, rows: npt.NDArray[np.int64] | slice) -> Any:
    """These rows of an Arrow array or batch."""
    if isinstance(rows, slice):
        first, last, _ = rows.indices(len(values))
        return values.slice(first, last - first)
    return values.take(pa.array(rows))


@dataclasses.dataclass(slots=True)
class Questions:
    """Records to be predicted while others are learned, because their labels come later.

    Question m is answered when exactly those updates were applied whose records are all among the first
    ``learned_before[m]`` records of the chunk that is being learned. Where the labels are not known yet, targets are
    zeros in their place and losses mean nothing; what is scored is scored when the lesson comes.
    """

    chunk: Chunk
    learned_before: npt.NDArray[np.int64]  # (M,), never decreasing
    labelled: bool = True
    oldest: int = 0  # lessons of questions before this number will not come any more


@dataclasses.dataclass(frozen=True, slots=True)
class Events:
    """What came in a chunk, in order: questions (features), answers (a label), or both at once, each with an id."""

    ids: list[str]
    asks: npt.NDArray[np.bool_]  # (N,) whether it has features
    labels: npt.NDArray[np.float64]  # (N,) class numbers or numbers; NaN where there is none
    times: npt.NDArray[np.float64] | None  # (N,) seconds since 1970, NaN where there is none
    places: npt.NDArray[np.int64]  # (N,) within the span
    span: int  # of the chunk: these and its holes
    are_classes: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided while learning, for people to see: at which run position, what, and why."""

    position: int
    what: str
    detail: str
    learning_rate: float  # after it


@dataclasses.dataclass(frozen=True, slots=True)
class GradientNorms:
    """What the gradients of some updates of ``size`` records each say of their noise.

    ``variance`` is the sum over all weights of the variance of one record's gradient, as the norm of a mean over a few
    records and that of a mean over all of them tell it; None where it was not measured.
    """

    size: int
    num_updates: int
    mean_square: float  # of the norms of these updates' gradients
    variance: float | None
    num_measured: int  # updates that the variance was measured at


@dataclasses.dataclass(slots=True)
class Outcome:
    """What happened to a chunk, per record, in order: predict, then score, then update.

    ``outputs`` and ``losses`` are of the questions where there were any, else of the chunk itself, and were made
    *before* the update that the record took part in.
    """

    outputs: Tensor  # (N or M, ...) the model's raw outputs
    losses: Tensor  # (N or M,) the loss of each
    num_updates: int = 0
    skipped: tuple[int, ...] = ()  # places in the chunk of records whose loss or gradient was not finite
    events: tuple[Event, ...] = ()
    by_reference: str = ""  # why an engine left the chunk to the reference; empty if it computed the updates itself
    norms: tuple[GradientNorms, ...] = ()  # of updates of several records


class Loss(Protocol):
    """One value per record, never a mean: the engine divides by the update's number of records."""

    name: str
    task: str  # "classes" (C logits), "binary" (1 logit), "number", or "other"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, ...) outputs and (N, ...) targets to (N,) losses."""
        ...


@runtime_checkable
class Source(Protocol):
    """Records with positions.

    ``read`` hands out chunks of exactly ``size`` places from where it starts, the last one shorter, so that cuts are a
    function of position; a live source may hand out fewer, rather than wait: an update then ends with what has come.
    Reading twice from the same position gives the same records.
    """

    name: str
    num_records: int | None  # None: not known before the end, or there is no end
    schema: pa.Schema | None  # of the named columns; None when chunks hold tensors already
    can_seek: bool  # `read` can start at the `after` of any chunk
    can_jump: bool  # `take` can fetch any records by number

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]: ...

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers (0 is the first), in this order. Needs ``can_jump`` and ``num_records``."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON facts that tell this source from another, cheap to get; a resumed run compares them."""
        ...


@runtime_checkable
class LiveSource(Source, Protocol):
    """A source that hands out what has arrived: its cuts depend on time, so a run writes them down in its journal.

    ``can_seek`` says whether what came before can be read again.
    """

    is_live: bool

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        """The chunk that was handed out between these positions, once more, bit for bit. Needs ``can_seek``.

        Raises ``DataError`` where something is missing since.
        """
        ...

    def acknowledge(self, after: Position) -> None:
        """What came before is durable elsewhere: the upstream may forget it. Never called earlier."""
        ...

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A source that may wait for records. ``stop`` ends its reading after what has arrived, from any thread."""

    def stop(self) -> None: ...


@runtime_checkable
class Sink(Protocol):
    """Where outcomes go, each once, whatever is killed: see ``sinks.outcome_rows`` for the columns of a row.

    Rows are numbered as they are written. A run that resumes writes the same rows again from its last commit on, so
    whatever a sink holds beyond ``commit`` is either taken back by ``restore`` or not written a second time.
    """

    def write(self, outcomes: pa.RecordBatch) -> None: ...

    def commit(self) -> State:
        """Makes all rows so far durable; what it gives (JSON) belongs into the checkpoint that is written next."""
        ...

    def restore(self, state: State | None) -> None:
        """Back to what a checkpoint knew, before the first ``write``. None: it knew of no rows."""
        ...

    def close(self) -> None:
        """Gives files and connections back. What was not committed may be lost; a resumed run writes it again."""
        ...


class Engine(Protocol):
    """How a chunk becomes weight changes. Every engine computes the updates that ``reference`` defines.

    Update k takes the records of ``chunk.updates(update_size)[k]``, the mean of weight times loss over them, and one
    step of the optimizer. A record whose loss or gradient is not finite is left out before it touches a weight. All
    updates are applied when ``learn`` returns; weights and optimizer state are changed in place. Where ``learn``
    raises, nothing was learned, unless it is a ``LearningError``, which says how much was. An engine that remembers
    more than weights and optimizer state is ``Stateful``.
    """

    rule: Any  # engines.UpdateRule: model, loss, optimizer and what bounds a gradient

    @property
    def name(self) -> str: ...

    @property
    def learning_rate(self) -> float:
        """That of the first group of parameters, now."""
        ...

    @property
    def optimizer(self) -> str:
        """What people call it."""
        ...

    @property
    def active(self) -> Any:
        """The rule that is stepped now: ``rule``, or of several the one that leads."""
        ...

    def chunk_size(self, update_size: int) -> int:
        """How many records it likes at once: whole updates, a static function of the model."""
        ...

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome: ...

    def predict(self, inputs: Inputs) -> Tensor:
        """(N, ...) raw outputs in eval mode; changes nothing, draws nothing from a shared generator."""
        ...
