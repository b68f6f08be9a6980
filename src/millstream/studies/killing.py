"""``millstream check --kill``: is a run that is killed at any instant, and goes on, the same run as one left alone?

A person's own trainer learns his own data twice: once undisturbed, and again in processes that are killed with SIGKILL
at random instants, each going on from what the one before had committed. At the end every tensor, counter and line of
the two runs must be the same, bit for bit. The processes are forked from this one, so that none imports torch again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import hub

from millstream import checkpoint
from millstream.errors import MillstreamError, ModelError, SettingError
from millstream.studies.states import CLOCKS, differences, digests
from millstream.studies.survival import Survival
from millstream.trainer import Trainer

__all__ = ["Job", "Note", "Process", "Rehearsal", "check_kills", "fingerprints", "learning"]

LINES = ("metrics.jsonl", "events.jsonl", "dead_letters.jsonl")
_STARTING, _LEARNING, _COMMITTING = range(3)
_STAGES = ("starting", "learning", "committing")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.005, 0.25  # that a process lives; longer where a whole run takes longer
_COMMITS = 0.5  # chunks after which a disturbed run commits, besides when it would by itself
_PATIENCE_SECONDS = 120.0


class Note:
    """What a process that may be killed tells its parent: how far it is, and how many records it has learned."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 24)  # shared with what is forked from here on

    def stage(self, number: int, num_records: int | None = None) -> None:
        self._memory[0] = number
        if num_records is not None:
            self._memory[8:16] = num_records.to_bytes(8, "little")

    def committed(self) -> None:
        """What was learned so far is said to be durable."""
        self._memory[16:24] = self._memory[8:16]

    def promised(self) -> int:
        """How many records the last commit that returned holds."""
        return int.from_bytes(self._memory[16:24], "little")

    def begin(self) -> None:
        self._memory[:] = bytes(24)

    def cut_short(self) -> None:
        self._memory[1] = 1

    def read(self) -> tuple[str, int]:
        return _STAGES[self._memory[0]], int.from_bytes(self._memory[8:16], "little")

    @property
    def was_cut_short(self) -> bool:
        return bool(self._memory[1])


class Job(Protocol):
    """Begins the run in ``folder``, or goes on with it, to its end. ``draws`` is None when it is left alone."""

    def __call__(self, folder: Path, note: Note, draws: random.Random | None) -> None: ...


def check_kills(
    make: Callable[[], tuple[Trainer, Any]],
    *,
    num_kills: int = 100,
    seconds: float = 60.0,
    seed: int = 0,
    num_records: int | None = None,
    name: str = "",
    progress: Callable[[str, int, int], None] | None = None,
    **how: Any,
) -> Survival:
    """Kills runs of ``make()``, a new trainer without a run folder and its data, and compares them with one left alone.

    ``how`` goes to ``Trainer.steps`` (``kind="fit"``, ``update_size``, …); only the first ``num_records`` records are
    learned, if so told, and fewer where an undisturbed run would take more than a tenth of ``seconds``. Each run is
    killed up to 20 times and then left to end. No run begins after ``seconds``. Raises what ``make`` and the trainer
    raise.

    >>> import torch
    >>> def make():
    ...     torch.manual_seed(0)
    ...     model = torch.nn.Linear(3, 2)
    ...     trainer = Trainer(model, "cross_entropy", torch.optim.Adam(model.parameters()), engine="reference")
    ...     return trainer, (torch.randn(99, 3), torch.randint(2, (99,)))
    >>> check_kills(make, num_kills=3).is_identical
    True
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="millstream-kill-") as parent:
        limit = _Limit(num_records, time.monotonic() + seconds / 10)
        rehearsal = Rehearsal(learning(make, limit, **how), Path(parent))
        rehearsal.run_alone()
        limit.settle(rehearsal.num_records if rehearsal.was_cut_short else None)
        found = Survival(name, seed, num_kills, rehearsal.num_records, rehearsal.seconds_alone)
        draws = random.Random(seed)
        while found.num_kills < num_kills and time.monotonic() - began < seconds and not found.differences:
            most = min(20, num_kills - found.num_kills)
            before = found.num_kills

            def show(kills: int, before: int = before) -> None:
                if progress is not None:
                    progress(f"{found.num_runs} runs ended", before + kills, num_kills)

            found.add(*rehearsal.run_disturbed(draws, most, show))
        found.seconds = time.monotonic() - began
    return found


@dataclasses.dataclass(slots=True)
class _Limit:
    """Where a run that is too long ends: after so many records, which the undisturbed run finds by the clock."""

    num_records: int | None
    deadline: float | None

    def settle(self, num_records: int | None) -> None:
        self.num_records, self.deadline = num_records, None

    def is_reached(self, num_records: int) -> bool:
        if self.num_records is not None and num_records >= self.num_records:
            return True
        return self.deadline is not None and time.monotonic() > self.deadline


def learning(make: Callable[[], tuple[Trainer, Any]], limit: _Limit | None = None, **how: Any) -> Job:
    """The job of a trainer and its data; see ``check_kills``."""

    def job(folder: Path, note: Note, draws: random.Random | None) -> None:
        trainer, source = make()
        if trainer.run is not None:
            raise SettingError(
                got="a trainer that has a run folder of its own",
                wanted="one without, since each run that is killed needs a new folder",
                do="leave run= out where it is made",
            )
        resume = checkpoint.exists(folder / "checkpoints")
        trainer.open(folder, resume=resume)
        if not (resume and limit is not None and limit.is_reached(trainer.summary().records)):
            for step in trainer.steps(source, resume=resume, **how):
                note.stage(_LEARNING, step.records)
                if limit is not None and limit.is_reached(step.records):
                    note.cut_short()
                    break
                if draws is not None and draws.random() < _COMMITS:
                    note.stage(_COMMITTING)
                    trainer.commit()
                    note.committed()
                    note.stage(_LEARNING)
        note.stage(_COMMITTING)
        trainer.commit()
        note.committed()
        trainer.close()

    return job


class Rehearsal:
    """Runs of one job, in folders of its own below ``parent``: first one alone, then any number that are killed."""

    def __init__(self, job: Job, parent: Path) -> None:
        self._job, self._parent, self._note = job, parent, Note()
        self._most_seconds = _LONGEST_SECONDS  # that a process lives, if it is to be killed
        self._alone: dict[str, str] = {}
        self._num_runs = 0
        self.last_folder = parent  # of the run that has ended last
        self.num_records, self.seconds_alone, self.was_cut_short = 0, 0.0, False

    def run_alone(self) -> None:
        """The undisturbed run, which the others are compared with."""
        started = time.monotonic()
        self.last_folder = self._parent / "alone"
        with self._process(self.last_folder, None) as process:
            process.wait(None)
        self.seconds_alone = time.monotonic() - started
        self.num_records, self.was_cut_short = self._note.read()[1], self._note.was_cut_short
        self._alone = fingerprints(self._parent / "alone")
        self._most_seconds = max(_LONGEST_SECONDS, self.seconds_alone / 2)

    def run_disturbed(
        self, draws: random.Random, most_kills: int, show: Callable[[int], None] = lambda kills: None
    ) -> tuple[Counter[str], list[str]]:
        """A run that is killed up to ``most_kills`` times: at what it was when killed, and what differs at its end."""
        self._num_runs += 1
        shutil.rmtree(self.last_folder, ignore_errors=True)
        folder = self.last_folder = self._parent / f"run-{self._num_runs}"
        stages: Counter[str] = Counter()
        has_ended = False
        while not has_ended:
            with self._process(folder, random.Random(draws.random())) as process:
                is_last = stages.total() >= most_kills
                has_ended = process.wait(
                    None if is_last else draws.uniform(_SHORTEST_SECONDS, self._most_seconds),
                    patience=_PATIENCE_SECONDS + 10 * self.seconds_alone,
                )
            if not has_ended:
                stages[self._note.read()[0]] += 1
                show(stages.total())
        return stages, differences(self._alone, fingerprints(folder))

    @contextlib.contextmanager
    def _process(self, folder: Path, draws: random.Random | None) -> Iterator[Process]:
        self._note.begin()
        process = Process(lambda: self._job(folder, self._note, draws))
        try:
            yield process
        finally:
            process.kill()


class Process:
    """A fork of this process that does one thing, tells of its failure through a pipe, and may be killed."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._ending, theirs = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._ending)
            _do_and_exit(do, theirs)
        os.close(theirs)

    def wait(self, seconds: float | None, patience: float | None = None) -> bool:
        """Whether it has ended within ``seconds``. Without them it must end, and within ``patience``."""
        most = patience if seconds is None else seconds
        ended, _, _ = select.select([self._ending], [], [], most)
        if not ended:
            if seconds is None:
                raise ModelError(
                    got=f"a run that has not ended after {patience:.0f} s",
                    wanted="the time of a run that is left alone",
                    do="look whether the model or its data wait for something when they are resumed",
                )
            return False
        told = b""
        while part := os.read(self._ending, 1 << 16):
            told += part
        if told:
            kind, facts = json.loads(told)
            raise _FAILURES.get(kind, ModelError)(**facts)
        return True

    def kill(self) -> None:
        """With all that it has started."""
        if self._pid:
            for kill in (os.kill, os.killpg):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._ending)
            self._pid = 0


_FAILURES: dict[str, type[MillstreamError]] = {kind.__name__: kind for kind in MillstreamError.__subclasses__()}


def _do_and_exit(do: Callable[[], None], told: int) -> None:
    """The life of a forked process. Nothing of its parent's runs in it: no handlers at exit, no output."""
    try:
        os.setpgid(0, 0)
        bar = getattr(hub, "tqdm", None)
        if bar is not None and hasattr(bar, "set_lock"):  # one for all forks: the dead do not give it back
            bar.set_lock(threading.RLock())
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        do()
    except MillstreamError as error:
        facts = {"got": error.got, "wanted": error.wanted, "do": error.do}
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _FAILURES), "")
        os.write(told, json.dumps([kind, facts]).encode())
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        got = f"{type(error).__name__}: {str(error)[:200]} at {place.filename}:{place.lineno}"
        facts = {"got": got, "wanted": "a run that can be made, learned and resumed", "do": "try it with learn first"}
        os.write(told, json.dumps(["", facts]).encode())
    finally:
        os._exit(0)


def fingerprints(folder: Path) -> dict[str, str]:
    """Digests of all that a run folder's newest checkpoint and lines hold, by name.

    Clock readings, and what says where and with which versions it ran, are left out.
    """
    state, _, _ = checkpoint.newest(folder / "checkpoints")
    found = digests(state, {*CLOCKS, "run", "numerics"})
    for name in LINES:
        found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return found
