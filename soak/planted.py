"""Part five: bugs that others have had, planted one at a time. The proof must find every one, or it proves nothing.

A bug is a patch that is applied in the process that will be killed, never in this one.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import millstream
from millstream import checkpoint, commits, runs
from millstream.contracts import State
from millstream.journal import folder
from millstream.learner import Learner
from millstream.lines import Lines
from millstream.phase import Phase
from millstream.studies.killing import Job, Note
from soak.corruption import corrupt
from soak.faults import break_disk
from soak.kills import kill
from soak.powercuts import cut_power
from soak.report import Finding
from soak.scenarios import Scenario

__all__ = ["BUGS", "Bug", "hunt", "hunt_all"]

_ADAM = Scenario("tensors", "adam", "fused", 1)
_CSV = Scenario("csv", "adam", "fused", 1)
_TALLY = Scenario("tensors", engine="fused", tally=True)
_LATE = Scenario("tensors", "momentum", "fused", 1, 7)


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """``plant`` changes the program; ``part`` of the proof must find it with this scenario."""

    name: str
    plant: Callable[[Note], None]
    part: str
    scenario: Scenario


def _acknowledged_early(note: Note) -> None:
    original = runs.Run.commit

    def commit(self: runs.Run, state: State) -> Path:
        note.committed()
        time.sleep(0.02)
        return original(self, state)

    runs.Run.commit = commit  # type: ignore[method-assign]


def _syncs_only(kind: str) -> Callable[[Note], None]:
    def plant(note: Note) -> None:
        original = commits.sync

        def sync(path: Path) -> None:
            if path.is_dir() == (kind == "folders"):
                original(path)

        commits.sync = sync  # type: ignore[attr-defined]

    return plant


def _names_of_new_folders_not_synced(note: Note) -> None:
    for module in (checkpoint, runs, folder):
        module.make_folder = lambda path: path.mkdir(parents=True, exist_ok=True)  # type: ignore[attr-defined]


def _lines_not_synced(note: Note) -> None:
    Lines.sync = lambda self: None  # type: ignore[method-assign]


def _place_saved_apart(note: Note) -> None:
    """The source's position is that of the commit before."""
    original, before = Phase.to_state, [None]

    def to_state(self: Phase) -> State:
        state = original(self)
        state["position"], before[0] = before[0], state["position"]
        return state

    Phase.to_state = to_state  # type: ignore[method-assign]


def _optimizer_not_loaded(note: Note) -> None:
    original = Learner.load_state_dict

    def load(self: Learner, state: State) -> None:
        fresh = {**state["optimizer"], "state": self.rule.optimizer.state_dict()}
        original(self, {**state, "optimizer": fresh})

    Learner.load_state_dict = load  # type: ignore[method-assign]


def _run_position_not_loaded(note: Note) -> None:
    """The masks of dropout come from it."""
    _forgets(lambda state: state.update(position=0))


def _pending_labels_not_loaded(note: Note) -> None:
    _forgets(lambda state: state.update(delay=None))


def _forgets(change: Callable[[State], None]) -> None:
    original = millstream.Trainer.load_state_dict

    def load(self: millstream.Trainer, state: State) -> None:
        changed = dict(state)
        change(changed)
        original(self, changed)
        if changed["delay"] is None and self._phase is not None and self._phase.delay is not None:
            self._delay = self._phase.late_labels()

    millstream.Trainer.load_state_dict = load  # type: ignore[method-assign]


def _lines_not_cut_back(note: Note) -> None:
    Lines.cut = lambda self, length, digest=None: True  # type: ignore[method-assign]


def _old_ones_dropped_first(note: Note) -> None:
    original = checkpoint.store

    def store(folder: Path, snapshot: checkpoint.Snapshot, **how: Any) -> Path:
        number = f"{len(checkpoint.kept(folder)) and int(checkpoint.kept(folder)[-1].name) + 1:08d}"
        for path in checkpoint.kept(folder):
            checkpoint._remove(path)
        return original(folder, snapshot, **{"name": number, **how})

    checkpoint.store = store


def _written_in_place(note: Note) -> None:
    """Under its final name from the beginning."""
    original = checkpoint._fill

    def fill(temporary: Path, snapshot: checkpoint.Snapshot) -> None:
        final = temporary.parent / temporary.name.removeprefix(".new-")
        final.mkdir(exist_ok=True)
        original(final, snapshot)
        time.sleep(0.02)
        original(temporary, snapshot)
        checkpoint._remove(final)

    checkpoint._fill = fill


def _failed_sync_tried_again(note: Note) -> None:
    original = Lines.sync

    def sync(self: Lines) -> None:
        try:
            original(self)
        except OSError:
            original(self)

    Lines.sync = sync  # type: ignore[method-assign]


def _damage_not_looked_for(note: Note) -> None:
    checkpoint.verify = lambda path: dict(json.loads((path / "state.json").read_bytes()))


def _weights_not_loaded(note: Note) -> None:
    original = Learner.load_state_dict

    def load(self: Learner, state: State) -> None:
        fresh = {name: torch.clone(value) for name, value in self.rule.model.state_dict().items()}
        original(self, {**state, "model": fresh})

    Learner.load_state_dict = load  # type: ignore[method-assign]


BUGS = (
    Bug("acknowledged before the commit", _acknowledged_early, "cuts", _TALLY),
    Bug("files of a checkpoint not synced", _syncs_only("folders"), "cuts", _ADAM),
    Bug("folders of a checkpoint not synced", _syncs_only("files"), "cuts", _TALLY),
    Bug("names of new folders not synced", _names_of_new_folders_not_synced, "cuts", _TALLY),
    Bug("lines not synced", _lines_not_synced, "cuts", _CSV),
    Bug("old checkpoints dropped before the new one is there", _old_ones_dropped_first, "cuts", _TALLY),
    Bug("written under its final name", _written_in_place, "cuts", _TALLY),
    Bug("a failed sync tried again", _failed_sync_tried_again, "faults", _CSV),
    Bug("the source's position saved apart from the weights", _place_saved_apart, "kills", _TALLY),
    Bug("weights not loaded", _weights_not_loaded, "kills", _TALLY),
    Bug("optimizer not loaded", _optimizer_not_loaded, "kills", _ADAM),
    Bug("run position not loaded", _run_position_not_loaded, "kills", _ADAM),
    Bug("pending labels not loaded", _pending_labels_not_loaded, "kills", _LATE),
    Bug("lines not cut back", _lines_not_cut_back, "kills", _CSV),
    Bug("damage not looked for", _damage_not_looked_for, "corruption", _CSV),
)


def hunt(bug: Bug, seed: int) -> Finding:
    """Runs the part of the proof that must find the bug. Its findings are what a caught bug looks like."""

    def within(job: Job) -> Job:
        def planted(folder: Path, note: Note, draws: random.Random | None) -> None:
            bug.plant(note)
            job(folder, note, draws)

        return planted

    if bug.part == "kills":
        return kill([bug.scenario], 200, seed, within=within)
    if bug.part == "cuts":
        return cut_power([bug.scenario], 100, seed, within=within)
    if bug.part == "faults":
        return break_disk([bug.scenario], 60, seed, faults=["sync"], within=within)
    with mock.patch.object(checkpoint, "verify"):
        bug.plant(Note())
        return corrupt(60, seed, stop_at_first=True)


def hunt_all(seed: int, names: Sequence[str] = ()) -> Finding:
    """One row for these bugs, or all: how many were found, and as bad those that slipped through."""
    began = time.monotonic()
    found = Finding("planted bugs", "")
    skipped = 0
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    for bug in chosen:
        seen = hunt(bug, seed)
        skipped += bool(seen.skipped)
        found.num += bool(seen.bad)
        found.num_runs += seen.num_runs
        if not seen.bad and not seen.skipped:
            found.bad.append(f"{bug.name}: slipped through {seen.num} {bug.part}")
    not_tried = f", {skipped} not tried: no disk can be mounted" if skipped else ""
    found.name = f"{found.num} of {len(chosen)} caught{not_tried}"
    found.seconds = time.monotonic() - began
    return found
