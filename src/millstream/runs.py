"""A run's folder: its lock, checkpoints, metrics and dead letters, which always agree with one another.

    runs/elec2/lock                 held while a process trains
              /checkpoints/…        see checkpoint.py
              /journal/…            what it has consumed, and what people decided: see journal/
              /inbox/…              wishes of people: see decisions.py
              /metrics.jsonl        one line per report
              /dead_letters.jsonl   one line per refused record, with its reason
              /events.jsonl         one line per decision: which rate leads, drift

Lines that were written after the last commit are cut off when the run resumes: they will be written again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from millstream import checkpoint
from millstream.commits import Commits, Seconds, checked
from millstream.contracts import Event, LiveSource, Position, Rejection, Source, State
from millstream.decisions import Decisions
from millstream.errors import CheckpointError, SettingError
from millstream.journal import Draft, Head, Journal
from millstream.lines import Lines
from millstream.numerics import numerics
from millstream.sources import JournaledSource, journal_place
from millstream.storage import make_folder, storage_errors, sync, take_lock

__all__ = ["Run"]


class Run:
    """An open run folder. ``resume=False`` begins a new run and refuses a folder that holds one.

    ``commit_seconds`` and ``after`` (what is called once a commit is durable) see ``commits.Commits``. ``exact``
    refuses to go on where other versions, threads or processors may give other last bits.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        resume: bool = False,
        keep: int = 3,
        commit_seconds: Seconds = "auto",
        exact: bool = False,
    ) -> None:
        seconds = checked(commit_seconds)
        self.folder, self._exact = Path(folder), exact
        self.numerics_changes = 0  # how often the run went on under other numerics
        self.checkpoints = self.folder / "checkpoints"
        if resume and not checkpoint.exists(self.checkpoints):
            raise CheckpointError(
                got=f"no run in {self.folder}",
                wanted="the folder of a run to resume",
                do="name it, or leave out --resume",
            )
        with storage_errors(self.folder, do="make room, allow writing, or name another folder with --run"):
            make_folder(self.folder)
            self._lock = (self.folder / "lock").open("a")
        self._take_lock()
        if not resume and checkpoint.exists(self.checkpoints):
            self._lock.close()
            raise SettingError(
                got=f"a folder that holds a run already: {self.folder}",
                wanted="an empty or new folder",
                do="add --resume to go on with it, or name another folder with --run",
            )
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            names = ("metrics", "dead_letters", "events")
            self._lines = {name: Lines(self.folder / f"{name}.jsonl", keep=resume) for name in names}
            sync(self.folder)  # the names of these files: a synced file without a name is lost with the power
        self._commits = Commits(self.checkpoints, self._lines, keep=keep, seconds=seconds)
        self.after = self._commits.after
        try:
            self.journal = Journal(self.folder / "journal")
        except BaseException:
            self._lock.close()
            raise
        self.decisions = Decisions(self.folder, self.journal)
        self.after.append(functools.partial(_forget, self.journal, self.checkpoints))  # not self: see below
        # A run that is dropped gives its lock back, whether or not anybody closed it.
        self.close = weakref.finalize(self, _close, self._commits, [*self._lines.values(), self.journal], self._lock)

    def commit(self, state: State) -> Path:
        """Makes the lines and the state durable, lines first: a state never speaks of lines that are not there."""
        return self._commits.commit(self._of_run(state))

    def commit_if_due(self, state: Callable[[], State]) -> Path | None:
        """Begins to, if it is time, and does not wait for the disk; the newest commit that is durable."""
        return self._commits.commit_if_due(lambda: self._of_run(state()))

    def restore(self) -> tuple[State, list[str]]:
        """The newest whole state, the lines cut back to it, and warnings: damaged checkpoints, other numerics."""
        state, _, problems = checkpoint.newest(self.checkpoints)
        if not isinstance(state.get("run"), dict) or not isinstance(state.get("numerics"), dict):
            raise CheckpointError(
                got=f"state that is not of a run in {self.checkpoints}",
                wanted="what a trainer has committed",
                do="name the folder that was given with --run",
            )
        problems += self._other_numerics(state["numerics"])
        for name, lines in self._lines.items():
            if not lines.cut(state["run"]["bytes"][name], state["run"].get("sha256", {}).get(name)):
                problems.append(f"{lines.path.name} is not as it was committed: damaged, or lines are missing")
        if "journal" in state["run"]:  # not of a run that was begun before there were journals
            head = Head.from_json(state["run"]["journal"])
            self.journal.check(head)
            self.decisions = Decisions(self.folder, self.journal, head.number)
        self.numerics_changes += state["run"].get("numerics_changes", 0)
        return state, problems

    def _of_run(self, state: State) -> State:
        facts = {"numerics_changes": self.numerics_changes, "journal": self.journal.head.to_json()}
        return {**state, "run": facts, "numerics": numerics()}

    def _other_numerics(self, before: Mapping[str, Any]) -> list[str]:
        """What is not as it was, counted; with ``exact`` it is refused, as is what is not known of before."""
        here = numerics()
        names = {**before, **here} if self._exact else before
        changes = [
            f"{name} was {before.get(name, 'not recorded')}, is {here.get(name)}"
            for name in names
            if here.get(name) != before.get(name) or (name not in before and here[name] is not None)
        ]
        if changes and self._exact:
            raise CheckpointError(
                got=f"other numerics than those that the run began with: {'; '.join(changes)}",
                wanted="the same ones, for the same bits",
                do="restore them, or leave out --exact",
            )
        self.numerics_changes += bool(changes)
        return [f"{change}: results may differ in the last bits" for change in changes]

    def recorded(self, source: Source, before: Position, reference: Mapping[str, Any] | None) -> Source:
        """A live source through the journal of the run; others can be read again as they are, and are referred to.

        ``before`` is where the run has left its journal before; ``reference`` is noted where a phase begins.
        """
        if reference is not None:
            self.refer(**reference)
        return JournaledSource(source, self.journal, before) if isinstance(source, LiveSource) else source

    def refer(self, **facts: Any) -> None:
        """Notes in the journal what is read from here on, or was read up to here."""
        self.journal.append(Draft(None, facts, "decision"))

    def roll_back(self, number: str, skip: tuple[int, int] | None) -> None:
        """Goes back to an earlier checkpoint. Journal positions within ``skip`` are left out from then on."""
        kept = [path.name for path in checkpoint.kept(self.checkpoints)]
        if number not in kept:
            raise CheckpointError(
                got=f"no checkpoint {number} in {self.folder}",
                wanted=f"one of {', '.join(kept)}",
                do="name one of them",
            )
        stands = _journaled(checkpoint.verify(self.checkpoints / number))
        if skip is not None and (stands is None or skip[0] < stands):
            raise SettingError(
                got=f"positions from {skip[0]} on, which checkpoint {number} has learned",
                wanted="positions of the journal that come after it" if stands is None else f"{stands} or later",
                do="go back to an older checkpoint, or leave out --skip",
            )
        self.refer(rollback=number, skip=skip)
        checkpoint.drop_after(self.checkpoints, number)

    def report(self, *lines: Mapping[str, Any]) -> None:
        for line in lines:
            self._lines["metrics"].write(json.dumps(line))

    def note(self, events: Sequence[Event]) -> None:
        """Writes down what was decided while learning."""
        for event in events:
            self._lines["events"].write(json.dumps(dataclasses.asdict(event)))

    def reject(self, rejected: Sequence[Rejection], start: int) -> None:
        """Writes refused records down; ``start`` is the position of their chunk."""
        for item in rejected:
            line = {
                "position": start + item.offset,
                "reason": item.reason,
                "where": item.where,
                "record": item.record,
            }
            self._lines["dead_letters"].write(json.dumps(line, ensure_ascii=False))

    def _take_lock(self) -> None:
        if not take_lock(self._lock):
            self._lock.close()
            raise SettingError(
                got=f"a run that is open already, here or in another process: {self.folder}",
                wanted="a run of one's own",
                do="wait for it, close it (trainer.close()), or name another folder with --run",
            )


def _forget(journal: Journal, checkpoints: Path, _: State) -> None:
    """Drops old segments of the journal that no checkpoint needs. The oldest that is kept must still be whole."""
    if journal.num_segments < 2:
        return
    needed = _journaled(checkpoint.verify(checkpoint.kept(checkpoints)[0]))
    if needed is not None:
        journal.forget(needed)


def _journaled(state: State) -> int | None:
    """Up to where a checkpoint has learned what is in the journal; None where it has read nothing of it."""
    phase = state["phase"] or {}
    places = (journal_place(phase.get(name)) for name in ("left", "before"))
    return next((place for place in places if place is not None), None)


def _close(commits: Commits, lines: Iterable[Lines | Journal], lock: TextIO) -> None:
    try:
        commits.close()
    finally:
        for each in lines:
            each.close()
        lock.close()
