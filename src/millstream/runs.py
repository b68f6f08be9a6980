"""A run's folder: its lock, checkpoints, metrics and dead letters, which always agree with one another.

    runs/elec2/lock                 held while a process trains
              /checkpoints/…        see checkpoint.py
              /metrics.jsonl        one line per report
              /dead_letters.jsonl   one line per refused record, with its reason
              /events.jsonl         one line per decision: which rate leads, drift

Lines that were written after the last commit are cut off when the run resumes: they will be written again. Lines that
could not be written or synced end this open run: a second sync may say that all is well, when what it should have
written is lost.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy
import pyarrow
import torch

from millstream import checkpoint
from millstream.contracts import Event, Rejection, State
from millstream.errors import CheckpointError, SettingError, StorageError
from millstream.storage import make_folder, storage_errors, sync

__all__ = ["Run", "numerics"]

_PART_BYTES = 1 << 20
_NAME_IT = "name the folder that was given with --run"


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
            self._metrics = self._open("metrics.jsonl", keep=resume)
            self._dead_letters = self._open("dead_letters.jsonl", keep=resume)
            self._events = self._open("events.jsonl", keep=resume)
            sync(self.folder)  # the names of these files: a synced file without a name is lost with the power
        self._lines = {"metrics": self._metrics, "dead_letters": self._dead_letters, "events": self._events}
        self._failure: StorageError | None = None
        # A run that is dropped gives its lock back, whether or not anybody closed it.
        self.close = weakref.finalize(self, _close, (*(one.file for one in self._lines.values()), self._lock))

    def commit(self, state: State) -> Path:
        """Makes the lines and the state durable, lines first: a state never speaks of lines that are not there."""
        with self._writing():
            for lines in self._lines.values():
                lines.sync()
        sizes = {name: lines.num_bytes for name, lines in self._lines.items()}
        run = {"bytes": sizes, "sha256": {name: lines.digest() for name, lines in self._lines.items()}}
        return checkpoint.write(self.checkpoints, {**state, "run": run, "numerics": numerics()}, keep=self._keep)

    def restore(self) -> tuple[State, list[str]]:
        """The newest whole state, the lines cut back to it, and warnings: damaged checkpoints, other numerics."""
        state, _, problems = checkpoint.newest(self.checkpoints)
        try:
            run, was_here = dict(state["run"]), dict(state["numerics"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                got=f"state that is not of a run in {self.checkpoints}",
                wanted="that of a trainer with a run",
                do=_NAME_IT,
            ) from error
        with self._writing():
            for name, lines in self._lines.items():
                if not lines.cut_back(run["bytes"][name], run.get("sha256", {}).get(name)):
                    problems.append(f"{lines.path.name} is not as it was committed: damaged, or lines are missing")
        here = numerics()
        problems += [
            f"{name} was {was}, is {here.get(name)}: results may differ in the last bits"
            for name, was in was_here.items()
            if here.get(name) != was
        ]
        return state, problems

    def report(self, line: Mapping[str, Any]) -> None:
        with self._writing():
            self._metrics.write(json.dumps(line) + "\n")

    def note(self, events: Sequence[Event]) -> None:
        """Writes down what was decided while learning."""
        with self._writing():
            for event in events:
                self._events.write(json.dumps(dataclasses.asdict(event)) + "\n")

    def reject(self, rejected: Sequence[Rejection], start: int) -> None:
        """Writes refused records down; ``start`` is the position of their chunk."""
        if not rejected:
            return
        with self._writing():
            for item in rejected:
                line = {
                    "position": start + item.offset,
                    "reason": item.reason,
                    "where": item.where,
                    "record": item.record,
                }
                self._dead_letters.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _open(self, name: str, *, keep: bool) -> _Lines:
        return _Lines(self.folder / name, keep=keep)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what changes the files of lines; nothing does any more once that has failed."""
        if self._failure is not None:
            raise self._failure
        try:
            with storage_errors(self.folder, do=checkpoint.GO_ON):
                yield
        except StorageError as error:
            self._failure = error
            raise

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


class _Lines:
    """A file of lines with the hash of all that it holds."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self.file = path.open("ab" if keep else "wb")
        self.num_bytes, self._hash = 0, hashlib.sha256()

    def write(self, text: str) -> None:
        data = text.encode()
        self.file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def digest(self) -> str:
        return self._hash.hexdigest()

    def cut_back(self, num_bytes: int, digest: str | None) -> bool:
        """Goes back to the first ``num_bytes``; False where they are not the ones with this digest (None: unknown)."""
        self.file.truncate(min(num_bytes, self.file.seek(0, os.SEEK_END)))
        self.num_bytes = self.file.seek(0, os.SEEK_END)
        with self.path.open("rb") as file:
            self._hash = hashlib.sha256()
            while part := file.read(_PART_BYTES):
                self._hash.update(part)
        return self.num_bytes == num_bytes and digest in (None, self.digest())


def _close(files: Iterable[IO[Any]]) -> None:
    for file in files:
        # What a full disk does not take now was not committed, and is cut off anyway.
        with suppress(OSError):
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
