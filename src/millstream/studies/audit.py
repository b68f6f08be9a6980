"""Is a run what its journal makes of it? Learns again between two checkpoints and compares every bit of the state.

    older checkpoint ──journal, or the data──▶ learned again ──▶ the same as the newer checkpoint?

The run's folder is only read, so it may be at work meanwhile.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millstream import assembly, checkpoint
from millstream.contracts import LiveSource, Source, State
from millstream.errors import CheckpointError, SettingError, StorageError
from millstream.journal import JournalReader, verify
from millstream.phase import Phase, journaled
from millstream.sources import JournaledSource, as_source, journal_place
from millstream.studies.states import CLOCKS, differences, digests
from millstream.trainer import Trainer

__all__ = ["Audit", "Stretch", "audit"]

# A clock, where it ran, and what stands elsewhere.
_LEFT_OUT = (*CLOCKS, "run", "numerics", "books.outcomes", "books.publisher")


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """What was learned again, from one checkpoint to another, and the first thing that is not the same."""

    older: str
    newer: str
    records: int
    difference: str  # empty: every bit is the same; else the path of a part of the state


@dataclasses.dataclass(frozen=True, slots=True)
class Audit:
    """What an audit has found. Its fields are the keys of ``--json``."""

    groups: int  # of the journal, each checked
    records: int  # in it
    stretches: tuple[Stretch, ...]
    left_out: tuple[str, ...]  # pairs of checkpoints that were not compared, and why

    @property
    def is_exact(self) -> bool:
        return not any(stretch.difference for stretch in self.stretches)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "is_exact": self.is_exact}


def audit(
    run: str | Path,
    source: Any = None,
    *,
    make: Callable[[], Trainer] | None = None,
    show: Callable[[int, int], None] | None = None,
) -> Audit:
    """Checks the journal of ``run``, then learns again from each whole checkpoint to the next.

    ``source`` is what the run read, for the parts of it that its journal only refers to. ``make`` builds the trainer of
    a run of Python objects as it was built then. ``show`` is told of records done, of how many.

    Raises ``StorageError`` where the journal is damaged.
    """
    folder = Path(run)
    journal = JournalReader(folder / "journal")
    found = verify(journal.folder)
    if not found.is_sound:
        raise StorageError(
            got=f"a damaged journal: {found.problems[0]}",
            wanted="every sum and link as it was written",
            do="restore the folder from a copy, or see `millstream journal accept-loss`",
        )
    states, left_out = _states(folder)
    stretches = []
    for (older, before), (newer, after) in itertools.pairwise(states):
        reason = _no_stretch(before, after, source)
        if reason:
            left_out.append(f"{older} to {newer}: {reason}")
            continue
        trainer = _trainer(before, folder, make)
        difference = _again(trainer, before, after, _source_of(before, journal, source), show)
        stretches.append(Stretch(older, newer, after["consumed"] - before["consumed"], difference))
    return Audit(found.num_groups, found.num_records, tuple(stretches), tuple(left_out))


def _states(folder: Path) -> tuple[list[tuple[str, State]], list[str]]:
    states, left_out = [], []
    for path in checkpoint.kept(folder / "checkpoints"):
        try:
            states.append((path.name, checkpoint.read(path)))
        except CheckpointError as error:
            left_out.append(f"{path.name}: {error.got}")
    if not states:
        raise CheckpointError(
            got=f"no whole checkpoint in {folder}", wanted="the folder of a run", do="name the folder given with --run"
        )
    return states, left_out


def _no_stretch(before: State, after: State, source: Any) -> str:
    """Why nothing can be learned again between two checkpoints."""
    phase = before["phase"]
    if phase is None or phase["number"] != after["phase"]["number"]:
        return "they are of different phases"
    if after["consumed"] == before["consumed"]:
        return "nothing was read between them"
    if phase["kind"] == "fit" and phase["plan"]["epochs"] == "auto":
        return "the records of its validation are not known here"
    if source is None and journal_place(after["phase"]["left"]) is None:
        return "the journal does not hold these records: name the data too"
    return ""


def _source_of(state: State, journal: JournalReader, source: Any) -> Source:
    phase = state["phase"]
    if source is not None:
        opened = as_source(source)
        return JournaledSource(opened, journal, phase["before"]) if isinstance(opened, LiveSource) else opened
    return journaled(Phase.from_state(phase), journal)


def _trainer(state: State, folder: Path, make: Callable[[], Trainer] | None) -> Trainer:
    if make is None:
        return assembly.from_state(state, folder)
    trainer = make()
    if trainer.run is not None:
        raise SettingError(
            got="a trainer with a run folder", wanted="one that writes nowhere", do="build it without run=…"
        )
    trainer.load_state_dict(state)
    return trainer


def _again(
    trainer: Trainer, before: State, after: State, source: Source, show: Callable[[int, int], None] | None
) -> str:
    """Learns up to the newer checkpoint; gives the path of what differs then."""
    phase, end = before["phase"], (after["consumed"], after["num_epochs"])
    plan = phase["plan"]
    settings = {"kind": phase["kind"], "update_size": plan["batch_size"], "epochs": plan["epochs"]}
    settings |= {"schedule": plan["schedule"], "warmup": plan["warmup"], "shuffle": phase["shuffle"]}
    delay = Phase.from_state(phase).delay
    total = end[0] - before["consumed"]
    for _ in trainer.steps(source, label_delay=delay, resume=True, **settings):
        if show is not None:
            show(trainer.consumed - before["consumed"], total)
        if trainer.consumed >= end[0] and trainer.state_dict()["num_epochs"] >= end[1]:
            break
    found = differences(digests(trainer.state_dict(), _LEFT_OUT), digests(after, _LEFT_OUT))
    return found[0] if found else ""
