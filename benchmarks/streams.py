"""Prequential accuracy on streams with nothing set by hand, beside fixed rates in hindsight and other libraries.

Run: python benchmarks/streams.py [--quick] [--json] [--streams A,B] [--delays 0,10] [--methods A,B] [--seeds N]
         [--limit N] [--processes N] [--results FILE] [--again] [--report] [--document FILE]

Each job (a stream, a label delay, a group of methods, a seed) is a process of its own; its results are lines of FILE,
so that a run that was stopped goes on where it was. ``--again`` measures the named methods afresh; ``--report``
measures nothing. ``--document`` writes tables and plots into a Markdown file, between its two marks.

The slow methods (River, torch loops) take the first 50,000 records and the first seed; ours is then compared on these
records. Those that step every weight at each record are left out on flights, whose table of categories has 4.5 million.
All of it takes about three hours on two idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

import stream_tables
from overhead import machine
from stream_data import STREAMS, Answers, Stream
from stream_methods import GROUPS, SLOW_RECORDS

DELAYS = ("0", "10", "100", "500")
QUICK = {"streams": ["sea"], "delays": ["0", "100"], "seeds": 2, "limit": 1000}
WINDOW = 1000  # records, before and after a drift
NUM_POINTS = 100  # of a curve of accuracy
PRELOADED = [
    "millstream.assembly",
    "millstream.engines",
    "rich.progress",
    "river.forest",
    "river.ensemble",
    "river.compose",
]
DEFAULT_RESULTS = Path("benchmarks/streams.jsonl")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    stream: str
    delay: str
    group: str
    seed: int
    limit: int  # 0: all records

    def rows(self) -> set[tuple[str, str, str, int, int]]:
        """The keys of the rows that it makes."""
        return {(self.stream, self.delay, name, self.seed, self.limit) for name in GROUPS[self.group].runs}


def jobs(streams: list[str], delays: list[str], groups: list[str], seeds: int, limit: int) -> list[Job]:
    """All that there is to measure, what matters most first: ours before others, seed after seed."""
    made = []
    for seed in range(seeds):
        for name in groups:
            for stream in streams:
                for delay in [*delays, *(["known"] if stream == "flights" and len(delays) == len(DELAYS) else [])]:
                    group = GROUPS[name]
                    is_second = stream.endswith("-gradual") and stream.removesuffix("-gradual") in STREAMS
                    if (group.is_slow and (seed or is_second)) or (group.is_dense and stream == "flights"):
                        continue
                    most = min(limit or SLOW_RECORDS, SLOW_RECORDS) if group.is_slow else limit
                    made.append(Job(stream, delay, name, seed, most))
    return sorted(made, key=lambda job: (job.seed, GROUPS[job.group].is_slow))


def run(job: Job, results: Path) -> None:
    """Measures a job, and adds a line for each of its methods at once."""
    torch.set_num_threads(1)
    stream = STREAMS[job.stream]
    lines = []
    for measure in GROUPS[job.group].runs.values():
        answers = measure(stream, job.delay, job.seed, job.limit)
        lines.append(json.dumps(dataclasses.asdict(job) | as_row(answers, stream)))
    with results.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def as_row(answers: Answers, stream: Stream) -> dict[str, Any]:
    """What is kept of a run."""
    right, num = answers.right, len(answers.right)
    no_change = float(np.mean(answers.known == answers.targets))
    accuracy = float(right.mean())
    edges = np.linspace(0, num, NUM_POINTS + 1).astype(int)
    return {
        "method": answers.name,
        "records": num,
        "accuracy": accuracy,
        "accuracy_of_first": float(right[:SLOW_RECORDS].mean()),
        "kappa_temporal": (accuracy - no_change) / (1 - no_change) if no_change < 1 else None,
        "seconds": answers.seconds,
        "records_per_second": num / answers.seconds,
        "copies": answers.copies,
        "leader": answers.leader,
        "events": answers.events,
        "drifts": [drift_of(right, stream, point) for point in points(stream, num)],
        "curve": [round(float(right[a:b].mean()), 4) for a, b in itertools.pairwise(edges) if b > a],
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def points(stream: Stream, num: int) -> range:
    """Known drift points that have a window before and after them."""
    return range(stream.drift, num - stream.width - WINDOW + 1, stream.drift) if stream.drift else range(0)


def drift_of(right: np.ndarray, stream: Stream, point: int) -> dict[str, Any]:
    """Accuracy in the window before a drift begins and after it, and records until back within a point of the former.

    A gradual drift begins half its width before its point. Recovery is counted from its end: the number of records
    until a window begins that is good enough; None if there is none before the next drift begins.
    """
    begin, end = point - stream.width // 2, point + stream.width // 2
    before = float(right[begin - WINDOW : begin].mean())
    until = min(len(right), point + stream.drift - stream.width // 2)
    sums = np.concatenate([[0], np.cumsum(right[end:until])])
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    back = np.flatnonzero(means >= before - 0.01)
    after = float(right[begin : end + WINDOW].mean())
    recovery = int(back[0]) if len(back) else None
    return {"at": point, "before": before, "after": after, "recovery": recovery, "most": until - end}


def read(results: Path) -> list[dict[str, Any]]:
    """The rows of a file, the later one of two measurements of the same; a line that was cut short is passed over."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[key_of(row)] = row
    return list(rows.values())


def key_of(row: dict[str, Any]) -> tuple[str, str, str, int, int]:
    return row["stream"], row["delay"], row["method"], row["seed"], row["limit"]


def measure(todo: list[Job], results: Path, num_processes: int) -> list[str]:
    """Runs jobs, each in its own process. Gives what failed."""
    results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    failed: list[str] = []
    running: dict[int, tuple[Any, Job]] = {}
    waiting = todo[::-1]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(todo))
        while waiting or running:
            while waiting and len(running) < num_processes:
                job = waiting.pop()
                process = context.Process(target=run, args=(job, results))
                process.start()
                running[process.sentinel] = process, job
                progress.update(bar, description=f"{job.stream} {job.delay} {job.group} {job.seed}")
            for sentinel in wait(list(running)):
                process, job = running.pop(sentinel)  # type: ignore[index]
                process.join()
                if process.exitcode:
                    failed.append(f"{job} ended with {process.exitcode}")
                progress.advance(bar)
    return failed


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run, under a minute")
    parser.add_argument("--json", action="store_true", help="rows as JSON, on standard output")
    parser.add_argument("--streams", type=names, help=f"of {', '.join(STREAMS)}")
    parser.add_argument("--delays", type=names, help="in records, or known")
    parser.add_argument("--methods", type=names, help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--limit", type=int, help="the first records of each stream; 0: all")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--results", type=Path, help=f"JSON Lines; default {DEFAULT_RESULTS}")
    parser.add_argument("--again", action="store_true", help="measure the named methods afresh")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--document", type=Path, help="a Markdown file to write tables and plots into")
    given = parser.parse_args(argv)
    usual = QUICK if given.quick else {"streams": list(STREAMS), "delays": list(DELAYS), "seeds": 5, "limit": 0}
    for name, value in usual.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.methods = given.methods or list(GROUPS)
    given.results = given.results or DEFAULT_RESULTS.with_stem("streams-quick" if given.quick else "streams")
    for asked, known in ((given.streams, STREAMS), (given.methods, GROUPS)):
        if not set(asked) <= set(known):
            parser.error(f"{', '.join(sorted(set(asked) - set(known)))}: none of {', '.join(known)}")
    return given


def main() -> None:
    given = arguments()
    every = jobs(given.streams, given.delays, given.methods, given.seeds, given.limit)
    wanted = {key for job in every for key in job.rows()}
    failed: list[str] = []
    if not given.report:
        done = set() if given.again or given.quick else {key_of(row) for row in read(given.results)}
        failed = measure([job for job in every if not job.rows() <= done], given.results, given.processes)
    rows = [row for row in read(given.results) if key_of(row) in wanted]
    if given.json:
        print(
            json.dumps(
                {"machine": machine().strip(), "rows": stream_tables.aggregated(rows), "failed": failed}, indent=1
            )
        )
    else:
        print(f"{machine()}\n{stream_tables.text(rows)}")
    if given.document:
        stream_tables.write(given.document, rows)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
