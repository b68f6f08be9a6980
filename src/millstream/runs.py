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
import fcntl
import json
import os
import platform
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy
import pyarrow
import torch

from millstream import checkpoint
from millstream.contracts import Event, LiveSource, Position, Rejection, Source, State
from millstream.decisions import Decisions
from millstream.errors import CheckpointError, SettingError
from millstream.journal import Draft, Head, Journal
from millstream.sources import JournaledSource
from millstream.storage import storage_errors

__all__ = ["Run", "numerics"]


class Run:
    """An open run folder. ``resume=False`` begins a new run and refuses a folder that holds one."""

    def __init__(self, folder: str | Path, *, resume: bool = False, keep: int = 3) -> None:
        self.folder, self._keep = Path(folder), keep
        self.checkpoints = self.folder / "checkpoints"
        if resume and not checkpoint.exists(self.checkpoints):
            raise CheckpointError(
                got=f"no run in {self.folder}",
                wanted="the folder of a run to resume",
                do="name it, or leave out --resume",
            )
        with storage_errors(self.folder, do="make room, allow writing, or name another folder with --run"):
            self.folder.mkdir(parents=True, exist_ok=True)
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
            self._metrics = self._open("metrics.jsonl", keep=resume)
            self._dead_letters = self._open("dead_letters.jsonl", keep=resume)
            self._events = self._open("events.jsonl", keep=resume)
        self._lines = {"metrics": self._metrics, "dead_letters": self._dead_letters, "events": self._events}
        self.journal = Journal(self.folder / "journal")
        self.decisions = Decisions(self.folder, self.journal, self.journal.head.number)
        # A run that is dropped gives its lock back, whether or not anybody closed it.
        self.close = weakref.finalize(self, _close, (*self._lines.values(), self.journal, self._lock))

    def commit(self, state: State) -> Path:
        """Makes the lines and the state durable, lines first: a state never speaks of lines that are not there."""
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            sizes = {}
            for name, file in self._lines.items():
                file.flush()
                os.fsync(file.fileno())
                sizes[name] = file.tell()
        run = {"bytes": sizes, "journal": self.journal.head.to_json()}
        return checkpoint.write(self.checkpoints, {**state, "run": run, "numerics": numerics()}, keep=self._keep)

    def restore(self) -> tuple[State, list[str]]:
        """The newest whole state, the lines cut back to it, and warnings: damaged checkpoints, other numerics."""
        state, _, problems = checkpoint.newest(self.checkpoints)
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            for name, file in self._lines.items():
                file.truncate(min(state["run"]["bytes"][name], file.seek(0, os.SEEK_END)))
                file.seek(0, os.SEEK_END)
        head = Head.from_json(state["run"]["journal"])
        self.journal.check(head)
        self.decisions = Decisions(self.folder, self.journal, head.number)
        here = numerics()
        problems += [
            f"{name} was {was}, is {here.get(name)}: results may differ in the last bits"
            for name, was in state["numerics"].items()
            if here.get(name) != was
        ]
        return state, problems

    def recorded(self, source: Source, before: Position) -> Source:
        """A live source through the journal of the run; others can be read again as they are.

        ``before`` is where the phase before this one left its source.
        """
        return JournaledSource(source, self.journal, before) if isinstance(source, LiveSource) else source

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Notes in the journal what is read from here on, by reference."""
        self.journal.append(Draft(None, facts, "decision"))

    def roll_back(self, number: str, skip: tuple[int, int] | None) -> None:
        """Goes back to an earlier checkpoint. Journal positions within ``skip`` are left out from then on."""
        kept = [path.name for path in checkpoint.folders(self.checkpoints)]
        if number not in kept:
            raise CheckpointError(
                got=f"no checkpoint {number} in {self.folder}",
                wanted=f"one of {', '.join(kept)}",
                do="name one of them",
            )
        checkpoint.read(self.checkpoints / number)  # it must be whole
        self.journal.append(Draft(None, {"rollback": number, "skip": skip}, "decision"))
        checkpoint.drop_after(self.checkpoints, number)

    def report(self, *lines: Mapping[str, Any]) -> None:
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            for line in lines:
                self._metrics.write(json.dumps(line) + "\n")

    def note(self, events: Sequence[Event]) -> None:
        """Writes down what was decided while learning."""
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            for event in events:
                self._events.write(json.dumps(dataclasses.asdict(event)) + "\n")

    def reject(self, rejected: Sequence[Rejection], start: int) -> None:
        """Writes refused records down; ``start`` is the position of their chunk."""
        if not rejected:
            return
        with storage_errors(self.folder, do=checkpoint.GO_ON):
            for item in rejected:
                line = {
                    "position": start + item.offset,
                    "reason": item.reason,
                    "where": item.where,
                    "record": item.record,
                }
                self._dead_letters.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _open(self, name: str, *, keep: bool) -> TextIO:
        return (self.folder / name).open("a" if keep else "w", encoding="utf-8")

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise SettingError(
                got=f"a run that is open already, here or in another process: {self.folder}",
                wanted="a run of one's own",
                do="wait for it, close it (trainer.close()), or name another folder with --run",
            ) from error


def _close(files: Iterable[TextIO | Journal]) -> None:
    for file in files:
        file.close()


def numerics() -> dict[str, Any]:
    """What the last bits of a result depend on besides code and data."""
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
