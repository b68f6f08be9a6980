"""Part two: the power goes while a run learns on a disk that keeps only what was synced, and something of the rest.

What a commit promised before the cut must be there after it: nothing acknowledged is lost, no torn checkpoint is used,
and the run that goes on ends as the undisturbed one. The lines that a commit speaks of are there, too.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from millstream import checkpoint
from millstream.errors import CheckpointError, MillstreamError
from millstream.studies.killing import Job, Note, Process, differences, fingerprints
from soak.mount import Disk, mounted, why_not
from soak.report import Finding
from soak.scenarios import Scenario, write_data

__all__ = ["FEW", "cut_power", "left_alone", "lost"]

MOST_CUTS = 10  # of one run
SHARES = (0.0, 0.5, 0.9)  # of what was not synced survives
FEW = (
    Scenario("csv", "adam", "fused", 1),
    Scenario("tensors", engine="fused", tally=True),
    Scenario("queue", tally=True),
    Scenario("log", "momentum", "fused", 1),
    Scenario("table", "momentum", "reference", 32),
    Scenario("jsonl", "adagrad", "fused", 1, 7),
)


def cut_power(
    scenarios: Sequence[Scenario],
    num_cuts: int,
    seed: int,
    *,
    seconds: float | None = None,
    within: Callable[[Job], Job] = lambda job: job,
) -> Finding:
    """Runs the scenarios in turns, cutting the power at random instants. ``within`` wraps what runs."""
    found = Finding("power cuts", f"{len(scenarios)} scenarios", skipped=why_not())
    if found.skipped:
        return found
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="millstream-cuts-") as folder, mounted(Path(folder) / "disk") as disk:
        write_data(Path(folder))
        alone: dict[Scenario, tuple[dict[str, str], float]] = {}
        turn = 0
        while found.num < num_cuts and not found.bad:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            scenario, draws = scenarios[turn % len(scenarios)], random.Random(f"{seed}/{turn}")
            job = within(scenario.job(Path(folder)))
            if scenario not in alone:
                alone[scenario] = left_alone(job, Path(folder) / f"alone-{turn}")
            most = min(MOST_CUTS, num_cuts - found.num)
            cuts = _Cuts(disk, scenario, job, disk.folder / f"runs-{turn}" / "run", draws, alone[scenario][1])
            found.bad += [f"{scenario.name}: {text}" for text in cuts.run(most, alone[scenario][0])]
            found.num += cuts.num
            found.num_runs += 1
            turn += 1
        counts = disk.counts()
        found.name += f", {counts['syncs']:,} syncs"
    found.seconds = time.monotonic() - began
    return found


def left_alone(job: Job, folder: Path) -> tuple[dict[str, str], float]:
    """What an undisturbed run on an ordinary disk comes to, and how long it takes."""
    started = time.monotonic()
    process = Process(lambda: job(folder, Note(), None))
    process.wait(None)
    process.kill()
    return fingerprints(folder), time.monotonic() - started


class _Cuts:
    """One run on the lossy disk, to its end."""

    def __init__(
        self, disk: Disk, scenario: Scenario, job: Job, folder: Path, draws: random.Random, seconds: float
    ) -> None:
        self._disk, self._scenario, self._job, self._folder, self._draws = disk, scenario, job, folder, draws
        self._most_seconds = max(0.3, seconds)
        self.num = 0

    def run(self, most: int, alone: dict[str, str]) -> list[str]:
        """What is wrong after up to ``most`` cuts and the end of the run."""
        note, promised = Note(), 0
        while True:
            note.begin()
            draws = random.Random(self._draws.random())
            process = Process(lambda draws=draws: self._job(self._folder, note, draws))
            try:
                seconds = None if self.num >= most else self._draws.uniform(0.01, self._most_seconds)
                has_ended = process.wait(seconds, patience=120.0)
                promised = max(promised, note.promised())  # what was said before the cut
                if self.num >= most:
                    break
                # A run that has ended loses its power, too: what it said last must be there.
                self._disk.cut(self._draws.randrange(1 << 30), self._draws.choice(SHARES))
                self.num += 1
            except MillstreamError as error:
                return [f"after {self.num} cuts it does not go on: {error}"]
            finally:
                process.kill()
            if less := lost(self._folder, promised):
                return less
            if has_ended:
                break
        found = differences(alone, fingerprints(self._folder))
        return [name for name in found if self._scenario.is_judged(name)] + self._scenario.complaints(self._folder)


def lost(run: Path, promised: int) -> list[str]:
    """What a run folder has less than what was promised: that so many records are committed."""
    folder = run / "checkpoints"
    if not checkpoint.exists(folder):
        return [f"{promised} records were committed, and no checkpoint is left"] if promised else []
    try:
        state, _, problems = checkpoint.newest(folder)
    except CheckpointError as error:
        return [f"the checkpoints do not fit: {error}"]
    found = [f"a torn checkpoint has its final name: {text}" for text in problems]
    kept = 0 if state["phase"] is None else state["phase"]["records"]
    if kept < promised:
        found.append(f"{promised} records were committed, {kept} are left")
    for name, size in state["run"]["bytes"].items():
        path = run / f"{name}.jsonl"
        if not path.exists() or path.stat().st_size < size:
            found.append(f"{path.name} is shorter than the {size} bytes that were committed")
    return found
