"""Part four: a sync that fails, a disk that is full, one that becomes read-only, at any operation of a run.

The run ends in one line, a StorageError. A failed sync is followed by a power cut, since what it should have written is
lost although the next sync succeeds. Then the fault is mended, the run goes on, and ends as the undisturbed one.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from millstream.errors import MillstreamError, StorageError
from millstream.studies.killing import Job, Note, Process, differences, fingerprints
from soak.mount import Disk, mounted, why_not
from soak.powercuts import left_alone, lost
from soak.report import Finding
from soak.scenarios import Scenario, write_data

__all__ = ["FAULTS", "FEW", "break_disk"]

FAULTS = ("sync", "space", "read-only")
_MOST_OPERATIONS = {"sync": 40, "space": 60, "read-only": 80}  # before the fault
FEW = (Scenario("csv", "adam", "fused", 1), Scenario("tensors", engine="fused", tally=True))


def break_disk(
    scenarios: Sequence[Scenario],
    num_faults: int,
    seed: int,
    *,
    faults: Sequence[str] = FAULTS,
    within: Callable[[Job], Job] = lambda job: job,
) -> Finding:
    """Runs the scenarios in turns with one fault each."""
    found = Finding("faults", "", skipped=why_not())
    if found.skipped:
        return found
    began = time.monotonic()
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="millstream-faults-") as folder, mounted(Path(folder) / "disk") as disk:
        write_data(Path(folder))
        alone: dict[Scenario, dict[str, str]] = {}
        while found.num < num_faults and not found.bad:
            scenario, draws = scenarios[found.num % len(scenarios)], random.Random(f"{seed}/{found.num}")
            fault = faults[found.num % len(faults)]
            job = within(scenario.job(Path(folder)))
            if scenario not in alone:
                alone[scenario] = left_alone(job, Path(folder) / f"alone-{found.num}")[0]
            run = disk.folder / f"runs-{found.num}" / "run"
            outcome, wrong = _one(disk, scenario, job, run, fault, draws, alone[scenario])
            told[f"{fault} {outcome}"] += 1
            found.bad += [f"{scenario.name}, {fault}: {text}" for text in wrong]
            found.num += 1
    found.name = ", ".join(f"{number} {what}" for what, number in sorted(told.items()))
    found.num_runs, found.seconds = found.num, time.monotonic() - began
    return found


def _one(
    disk: Disk, scenario: Scenario, job: Job, run: Path, fault: str, draws: random.Random, alone: dict[str, str]
) -> tuple[str, list[str]]:
    """What the run said of its fault, and what is wrong with how it went on."""
    note = Note()
    outcome = "not met"
    disk.fail(fault, draws.randrange(_MOST_OPERATIONS[fault]))
    try:
        _run(job, run, note, draws)
    except StorageError as error:
        outcome = "told"
        if "\n" in str(error):
            return outcome, [f"in more than one line: {error}"]
    except MillstreamError as error:
        return "as another error", [str(error)]
    disk.heal()
    if fault == "sync":  # what a sync did not take is gone once the power is
        disk.cut(draws.randrange(1 << 30), 0.0)
    if less := lost(run, note.promised()):
        return outcome, less
    try:
        _run(job, run, note, draws)
    except MillstreamError as error:
        return outcome, [f"it does not go on: {error}"]
    found = differences(alone, fingerprints(run))
    return outcome, [name for name in found if scenario.is_judged(name)] + scenario.complaints(run)


def _run(job: Job, run: Path, note: Note, draws: random.Random) -> None:
    own = random.Random(draws.random())
    process = Process(lambda: job(run, note, own))
    try:
        process.wait(None, patience=120.0)
    finally:
        process.kill()
