"""A phase is one ``fit`` or ``learn`` of a run: its settings, how far it got, and what it came to.

A run is a row of phases over the same weights. The settings are saved with the place, so that a resumed phase is the
one that was begun.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from millstream.contracts import Chunk, Engine, Position, State
from millstream.delay import Delay
from millstream.errors import CheckpointError, SettingError
from millstream.learner import Scored

__all__ = ["Phase", "Step", "Summary"]


@dataclasses.dataclass(slots=True)
class Phase:
    """Where a ``fit`` or ``learn`` stands."""

    kind: Literal["fit", "learn"]
    update_size: int
    epochs: int
    shuffle: bool
    chunk_size: int
    delay: Delay | None
    source: dict[str, Any]  # its fingerprint
    rule: dict[str, Any]  # seed, loss and bounds of the gradient
    number: int = 0  # phases of the run before this one
    epoch: int = 0
    position: Position = None  # where the source goes on
    place: int = 0  # records of this epoch that were read
    records: int = 0
    updates: int = 0
    skipped: int = 0
    rejected: int = 0
    learned: int = 0  # records; fewer than were read where labels are late
    by_reference: int = 0  # records that the engine left to the reference
    reason: str = ""  # the first one why
    seconds: float = 0.0  # a clock, so not a part of what resumes bit for bit
    finished: bool = False

    def __post_init__(self) -> None:
        for name, value in (("an update size", self.update_size), ("a number of epochs", self.epochs)):
            if value < 1:
                raise SettingError(got=f"{name} of {value}", wanted="1 or more", do="leave it out for the default")

    @property
    def features_learn(self) -> bool:
        """Statistics of features are frozen after the first epoch of a ``fit``."""
        return self.kind == "learn" or self.epoch == 0

    def advance(self, chunk: Chunk, scored: Scored | None) -> None:
        """Counts a chunk that was dealt with."""
        self.records += len(chunk)
        self.place += chunk.span
        self.position = chunk.after
        if scored is not None:
            self.updates += scored.num_updates
            self.skipped += len(scored.skipped)
            self.learned += scored.num_learned
            if scored.by_reference and scored.num_learned:
                self.by_reference += scored.num_learned
                self.reason = self.reason or scored.by_reference

    def engine(self, name: str) -> str:
        """Which engine computed the updates, where ``name`` is the one that was to.

        >>> phase = Phase("learn", 1, 1, False, 512, None, {}, {}, learned=9, by_reference=2, reason="a label of -100")
        >>> phase.engine("fused")
        'fused (2 of 9 records by the reference: a label of -100)'
        """
        if not self.by_reference:
            return name
        if self.by_reference == self.learned:
            return "reference"
        return f"{name} ({self.by_reference:,} of {self.learned:,} records by the reference: {self.reason})"

    def line(self, learning_rate: float, metrics: dict[str, float]) -> dict[str, Any]:
        """How it stands, as a line of metrics.jsonl."""
        place = {"phase": self.number, "kind": self.kind, "epoch": self.epoch, "records": self.records}
        facts = {"updates": self.updates, "skipped": self.skipped, "learning_rate": learning_rate}
        return {**place, **facts, "metrics": metrics}

    def to_state(self) -> State:
        return {**dataclasses.asdict(self), "delay": None if self.delay is None else dataclasses.asdict(self.delay)}

    @classmethod
    def from_state(cls, state: State) -> Phase:
        return cls(**{**state, "delay": None if state["delay"] is None else Delay(**state["delay"])})

    def summary(
        self, engine: Engine, metrics: dict[str, float], test: dict[str, float] | None, checkpoint: Path | None
    ) -> Summary:
        """What it came to so far."""
        return Summary(
            records=self.records,
            updates=self.updates,
            seconds=self.seconds,
            records_per_second=self.records / self.seconds if self.seconds else 0.0,
            engine=self.engine(engine.name),
            optimizer=engine.optimizer,
            learning_rate=engine.learning_rate,
            skipped=self.skipped,
            rejected=self.rejected,
            finished=self.finished,
            metrics=metrics,
            test=test,
            checkpoint=None if checkpoint is None else str(checkpoint),
        )

    def continue_as(self, asked: Phase) -> None:
        """Checks that what is asked for now is what this phase began as; more epochs are welcome."""
        for name in ("kind", "update_size", "shuffle", "delay", "source", "rule"):
            was, now = getattr(self, name), getattr(asked, name)
            if was != now:
                raise CheckpointError(
                    got=_difference(name, was, now),
                    wanted="the settings that it began with",
                    do="repeat the first command with --resume, or begin a new run",
                )
        self.finished = self.finished and asked.epochs <= self.epochs
        self.epochs = max(self.epochs, asked.epochs)


def _difference(name: str, was: Any, now: Any) -> str:
    """What is not as it was. Of the facts about a source, only the innermost one that differs is told."""
    while isinstance(was, dict) and isinstance(now, dict):
        key = next((key for key in {**was, **now} if was.get(key) != now.get(key)), None)
        if key is None:
            break
        name, was, now = f"{name} {key}", was.get(key), now.get(key)
        if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
            was, now = next(pair for pair in zip(was, now, strict=True) if pair[0] != pair[1])
    return f"{name.replace('_', ' ')} {str(now)[:80]} for a run that began with {str(was)[:80]}"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What one turn of the loop did: a chunk of ``num_records``, of which ``scored`` tells the outcome."""

    scored: Scored | None = dataclasses.field(repr=False)  # None when every record of the chunk was refused
    num_records: int
    epoch: int
    place: int  # records of this epoch so far
    records: int  # records of this phase so far
    updates: int
    learning_rate: float
    validation: dict[str, float] | None = None  # after an epoch


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a ``fit`` or ``learn`` came to. Its fields are the keys of ``--json``."""

    records: int
    updates: int
    seconds: float
    records_per_second: float
    engine: str
    optimizer: str  # by name; of several, the one that leads
    learning_rate: float
    skipped: int
    rejected: int
    finished: bool
    metrics: dict[str, float]
    test: dict[str, float] | None
    checkpoint: str | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
