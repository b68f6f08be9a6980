"""A phase is one ``fit`` or ``learn`` of a run: its settings, how far it got, and what it came to.

A run is a row of phases over the same weights. The settings are saved with the place, so that a resumed phase is the
one that was begun.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from millstream.contracts import Chunk, Engine, Position, Source, State
from millstream.delay import Delay, LabelDelay, parse_delay
from millstream.errors import CheckpointError
from millstream.joining import Joining, LabelJoin
from millstream.journal import Journal, JournalReader
from millstream.learner import Learner, Scored
from millstream.metrics import Metrics
from millstream.runs import Run
from millstream.sources import CachedSource, JournaledSource, journal_place

__all__ = ["Phase", "Step", "Summary", "in_journal", "journaled", "parse_lateness"]

_LEAST_APART, _LINES_OF_A_DOUBLING = 512, 16  # records between lines; lines until twice as many records


@dataclasses.dataclass(slots=True)
class Phase:
    """Where a ``fit`` or ``learn`` stands."""

    kind: Literal["fit", "learn"]
    update_size: int
    epochs: int
    shuffle: bool
    chunk_size: int
    delay: Delay | Joining | None
    source: dict[str, Any]  # its fingerprint
    rule: dict[str, Any]  # seed, loss and bounds of the gradient
    plan: dict[str, Any]  # what was asked of its controller, which may change the update size
    total: int | None = None  # records of an epoch, where the source knows
    number: int = 0  # phases of the run before this one
    epoch: int = 0
    position: Position = None  # where the source goes on; None: at its beginning
    left: Position = None  # where it went on after the last chunk, in whichever epoch
    before: Position = None  # where the run has left its journal before this phase
    place: int = 0  # records of this epoch that were read
    records: int = 0
    updates: int = 0
    skipped: int = 0
    rejected: int = 0
    learned: int = 0  # records; fewer than were read where labels are late
    by_reference: int = 0  # records that the engine left to the reference
    reason: str = ""  # the first one why
    noise_scale: float | None = None  # of the gradient, in records
    labels: dict[str, int] | None = None  # where they join by ids: what became of questions and answers
    seconds: float = 0.0  # a clock, so not a part of what resumes bit for bit
    finished: bool = False

    @classmethod
    def asked(
        cls,
        kind: Literal["fit", "learn"],
        plan: Any,
        shuffle: bool,
        delay: Delay | Joining | None,
        source: Source,
        learner: Learner,
        seed: int,
    ) -> Phase:
        """The one that is asked for, at its beginning. ``plan`` is that of its controller."""
        size, rule = plan.first_size(source.num_records), {"seed": seed, **learner.rule.facts()}
        facts = dict(source.fingerprint()), rule, plan.to_json(), source.num_records
        return cls(kind, size, plan.most_epochs, shuffle, learner.engine.chunk_size(size), delay, *facts)

    @property
    def features_learn(self) -> bool:
        """Statistics of features are frozen after the first epoch of a ``fit``."""
        return self.kind == "learn" or self.epoch == 0

    def late_labels(
        self, before: LabelDelay | LabelJoin | None = None, consumed: int = 0
    ) -> LabelDelay | LabelJoin | None:
        """What holds the records whose labels are on their way; None where these come at once.

        ``consumed`` places were read before the phase.
        Questions of the phase ``before`` are still open where this one joins labels as that one did.
        """
        if isinstance(self.delay, Joining):
            if isinstance(before, LabelJoin) and before.is_like(self.delay, self.update_size):
                before.count_anew()
                return before
            joins = LabelJoin(self.delay, self.update_size)
            joins.begun_at = consumed
            return joins
        return None if self.delay is None or self.delay.records == 0 else LabelDelay(self.delay, self.update_size)

    def advance(self, chunk: Chunk, scored: Scored | None) -> None:
        """Counts a chunk that was dealt with."""
        self.records += len(chunk)
        self.place += chunk.span
        self.position = self.left = chunk.after
        if scored is not None:
            self.updates += scored.num_updates
            self.skipped += len(scored.skipped)
            self.learned += scored.num_learned
            self.labels = scored.labels or self.labels
            if scored.by_reference and scored.num_learned:
                self.by_reference += scored.num_learned
                self.reason = self.reason or scored.by_reference

    def reference(self) -> dict[str, Any]:
        """What the journal notes when it begins and when it ends: what is read, and where that stands."""
        stands = {"epoch": self.epoch, "records": self.records, "left": self.left}
        return {"phase": self.number, "kind": self.kind, "source": self.source, **stands}

    def refuse_import(self, run: Run | None, imported: CachedSource | None) -> None:
        """Counts and writes down what was refused when a copy was made, before the first epoch."""
        if imported is None:
            return
        self.rejected = imported.num_rejected
        if run is not None:
            run.reject(imported.rejected, 0)

    def refuse(self, run: Run | None, chunk: Chunk, scored: Scored | None, position: int) -> None:
        """Counts and writes down what was refused on arrival, and what was skipped when it was to be learned."""
        self.rejected += len(chunk.rejected)
        # Where labels come late, a lesson is not of this chunk, and its line is no longer known.
        late = self.late_labels() is not None
        if run is not None:
            run.reject(chunk.rejected, self.place if late else position)
            run.reject(scored.refusals(None if late else chunk) if scored else (), position)

    def engine(self, name: str) -> str:
        """Which engine computed the updates, where ``name`` is the one that was to.

        >>> learned = {"learned": 9, "by_reference": 2, "reason": "a label of -100"}
        >>> phase = Phase("learn", 1, 1, False, 512, None, {}, {}, {}, **learned)
        >>> phase.engine("fused")
        'fused (2 of 9 records by the reference: a label of -100)'
        """
        if not self.by_reference:
            return name
        if self.by_reference == self.learned:
            return "reference"
        return f"{name} ({self.by_reference:,} of {self.learned:,} records by the reference: {self.reason})"

    def measure(
        self, scored: Scored, metrics: Metrics, engine: Engine, num_records: int, span: tuple[int, int], most: int
    ) -> list[dict[str, Any]]:
        """Takes up the outcomes of the next chunk, of ``num_records``; gives the lines that are due in it.

        They are at most ``most`` records apart. ``span`` is the run position of the chunk, and how many positions it
        learns. What a line counts within the chunk is in proportion to it; its rate is that of the chunk's end. With 0
        as ``most`` none is due.
        """
        num_scored, read, first, lines = len(scored.losses), 0, 0, []
        while most and (mark := next_line(self.records + read, most)) <= self.records + num_records:
            read = mark - self.records
            part = read / num_records
            last = round(num_scored * part)  # where labels join by ids, others are scored than are read
            metrics.update(*scored.part(first, last))
            learned = round(scored.num_learned * part)
            counts = {
                "records": mark,
                "updates": self.updates + round(scored.num_updates * part),
                "skipped": self.skipped + sum(place < learned for place in scored.skipped),
            }
            lines.append(self.line(engine, span[0] + round(span[1] * part), metrics.report()) | counts)
            first = last
        metrics.update(*scored.part(first, num_scored))
        return lines

    def line(self, engine: Engine, position: int, metrics: dict[str, float]) -> dict[str, Any]:
        """How it stands, as a line of metrics.jsonl."""
        place = {"phase": self.number, "kind": self.kind, "epoch": self.epoch, "records": self.records}
        facts = {"position": position, "updates": self.updates, "skipped": self.skipped}
        who = {"optimizer": engine.optimizer, "learning_rate": engine.learning_rate, "engine": self.engine(engine.name)}
        sizes = {"update_size": self.update_size, "noise_scale": self.noise_scale}
        return {**place, **facts, **who, **sizes, "metrics": metrics}

    def step(
        self,
        learning_rate: float,
        scored: Scored | None,
        num_records: int,
        *,
        epoch: int,
        validation: dict[str, float] | None = None,
    ) -> Step:
        """What one turn of the loop did."""
        counts = self.place, self.records, self.updates
        return Step(scored, num_records, epoch, *counts, learning_rate, self.update_size, self.noise_scale, validation)

    def to_state(self) -> State:
        return {**dataclasses.asdict(self), "delay": None if self.delay is None else dataclasses.asdict(self.delay)}

    @classmethod
    def from_state(cls, state: State) -> Phase:
        delay = state["delay"]
        kind = Joining if delay is not None and "max_open" in delay else Delay
        return cls(**{**state, "delay": None if delay is None else kind(**delay)})

    def summary(
        self,
        engine: Engine,
        metrics: dict[str, float],
        test: dict[str, float] | None,
        checkpoint: Path | None,
        numerics_changes: int,
    ) -> Summary:
        """What it came to so far."""
        return Summary(
            records=self.records,
            updates=self.updates,
            epochs=self.epoch,
            seconds=self.seconds,
            records_per_second=self.records / self.seconds if self.seconds else 0.0,
            engine=self.engine(engine.name),
            optimizer=engine.optimizer,
            learning_rate=engine.learning_rate,
            update_size=self.update_size,
            noise_scale=self.noise_scale,
            skipped=self.skipped,
            rejected=self.rejected,
            labels=self.labels,
            finished=self.finished,
            metrics=metrics,
            test=test,
            checkpoint=None if checkpoint is None else str(checkpoint),
            numerics_changes=numerics_changes,
        )

    def continue_as(self, asked: Phase) -> None:
        """Checks that what is asked for now is what this phase began as; more epochs are welcome."""
        for name in ("kind", "plan", "shuffle", "delay", "source", "rule"):
            was, now = getattr(self, name), getattr(asked, name)
            if name == "plan":
                name, was, now = "", _fixed(was), _fixed(now)
            if was != now:
                raise CheckpointError(
                    got=_difference(name, was, now),
                    wanted="the settings that it began with",
                    do="repeat the first command with --resume, or begin a new run",
                )
        self.finished = self.finished and asked.epochs <= self.epochs
        self.epochs = max(self.epochs, asked.epochs)


def in_journal(phase: Phase) -> Position:
    """Where a run has left its journal: after the last chunk that came through it, in this phase or before."""
    return phase.before if journal_place(phase.left) is None else phase.left


def journaled(phase: Phase, journal: Journal | JournalReader) -> JournaledSource:
    """What a journal has of the source of a phase, where that itself is not there."""
    return JournaledSource(None, journal, in_journal(phase), facts=phase.source)


def next_line(records: int, most: int) -> int:
    """How many records the next line of metrics.jsonl is written after: often at first, then every ``most`` records.

    It knows the number of records only, so that a run that is resumed writes the same lines.

    >>> [next_line(records, 10_000) for records in (0, 511, 512, 40_000, 1_000_000)]
    [512, 512, 1024, 40960, 1010000]
    """
    apart = min(most, max(_LEAST_APART, (1 << max(0, records.bit_length() - 1)) // _LINES_OF_A_DOUBLING))
    return (records // apart + 1) * apart


def parse_lateness(given: Any) -> Delay | Joining | None:
    """``join`` is labels that come by themselves, under an id; else as ``parse_delay`` has it; None is at once.

    >>> parse_lateness("join").max_open
    100000
    """
    if given is None or isinstance(given, Joining):
        return given
    return Joining() if given == "join" else parse_delay(given)


def _fixed(plan: dict[str, Any]) -> dict[str, Any]:
    """What more epochs may not change: all of it where they end by themselves, or a schedule ends with them."""
    ends = plan["epochs"] == "auto" or plan["schedule"] or plan["warmup"]
    kept = {name: value for name, value in plan.items() if name not in ("batch_size", "epochs")}
    return {"update_size": plan["batch_size"], "epochs": plan["epochs"] if ends else "a number", **kept}


def _difference(name: str, was: Any, now: Any) -> str:
    """What is not as it was. Of the facts about a source, only the innermost one that differs is told."""
    while isinstance(was, dict) and isinstance(now, dict):
        key = next((key for key in {**was, **now} if was.get(key) != now.get(key)), None)
        if key is None:
            break
        name, was, now = f"{name} {key}", was.get(key), now.get(key)
        if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
            was, now = next(pair for pair in zip(was, now, strict=True) if pair[0] != pair[1])
    return f"{name.replace('_', ' ').strip()} {str(now)[:80]} for a run that began with {str(was)[:80]}"


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
    update_size: int
    noise_scale: float | None  # of the gradient, in records
    validation: dict[str, float] | None = None  # after an epoch


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a ``fit`` or ``learn`` came to. Its fields are the keys of ``--json``."""

    records: int
    updates: int
    epochs: int
    seconds: float
    records_per_second: float
    engine: str
    optimizer: str  # by name; of several, the one that leads
    learning_rate: float
    update_size: int  # records that an update averages, at last
    noise_scale: float | None  # how many would be more signal than noise; None where it was not measured
    skipped: int
    rejected: int
    labels: dict[str, int] | None  # where they join by ids: what became of questions and answers
    finished: bool
    metrics: dict[str, float]
    test: dict[str, float] | None
    checkpoint: str | None
    numerics_changes: int = 0  # how often the run was resumed under other versions, threads or processors

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
