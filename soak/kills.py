"""Part one: processes are killed with SIGKILL at random instants until each scenario has had its share.

The parent has torch and the compiled loops in memory and forks, so a killed process costs no start. Each run is killed
up to 20 times, then left to end, and must be the undisturbed run to the last bit; a tally must say "each event once".
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from millstream.engines import fused
from millstream.errors import MillstreamError
from millstream.studies.killing import Job, Rehearsal
from soak.report import Finding
from soak.scenarios import Scenario, write_data

__all__ = ["kill", "make_ready"]

MOST_KILLS = 20  # of one run


def make_ready() -> None:
    """What must be so before the first fork: one thread, and the compiled loops in memory."""
    torch.set_num_threads(1)
    fused.make_ready(torch.float32)


def kill(
    scenarios: Sequence[Scenario],
    num_kills: int,
    seed: int,
    *,
    log: IO[str] | None = None,
    seconds: float | None = None,
    within: Callable[[Job], Job] = lambda job: job,
) -> Finding:
    """``num_kills`` over these scenarios, in turns, a line of ``log`` for each run. ``within`` wraps what is killed."""
    began = time.monotonic()
    stages: Counter[str] = Counter()
    found = Finding("kills", "")
    with tempfile.TemporaryDirectory(prefix="millstream-soak-") as folder:
        rehearsals = {}
        write_data(Path(folder))
        for turn, scenario in enumerate(_turns(scenarios)):
            left = num_kills - found.num
            if left <= 0 or found.bad or (seconds is not None and time.monotonic() - began > seconds):
                break
            draws = random.Random(f"{seed}/{turn}")
            place = Path(folder) / f"{turn:05d}"
            line: dict[str, Any] = {"turn": turn, "scenario": scenario.name}
            try:
                if scenario not in rehearsals:
                    rehearsals[scenario] = _alone(scenario, Path(folder), place, within)
                kills, differing = rehearsals[scenario].run_disturbed(draws, min(MOST_KILLS, left))
                differing = [name for name in differing if scenario.is_judged(name)]
                differing += scenario.complaints(rehearsals[scenario].last_folder)
            except MillstreamError as error:
                kills, differing = Counter(), [str(error)]
            stages += kills
            found.num, found.num_runs = stages.total(), found.num_runs + 1
            found.bad += [f"{scenario.name}: {text}" for text in differing]
            if log is not None:
                log.write(json.dumps({**line, "kills": kills, "bad": differing}) + "\n")
                log.flush()
    found.seconds = time.monotonic() - began
    found.name = f"{len(rehearsals)} scenarios, " + ", ".join(f"{n} {stage}" for stage, n in sorted(stages.items()))
    return found


def _turns(scenarios: Sequence[Scenario]) -> Iterator[Scenario]:
    while True:
        yield from scenarios


def _alone(scenario: Scenario, data: Path, place: Path, within: Callable[[Job], Job]) -> Rehearsal:
    rehearsal = Rehearsal(within(scenario.job(data)), place)
    rehearsal.run_alone()
    complaints = scenario.complaints(rehearsal.last_folder)
    assert not complaints, f"{scenario.name} counts wrongly when left alone: {complaints}"
    return rehearsal
