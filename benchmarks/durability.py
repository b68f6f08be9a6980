"""What durability costs: appends to the journal, training from it, commits and their pauses, a restart.

Run: python benchmarks/durability.py [--quick] [--json] [--only PART] [--rounds N] [--folder FOLDER]

Medians over rounds, the sides in turn. A busy machine makes clocks noisy, so processor time (user and system, of all
threads) stands beside them.

1. appends: events of 512 bytes by one producer, 1, 100 and 1,000 in a commit, each on the disk when it returns; beside
   it bare inserts of the same bytes through apsw, one row for each commit, with the same settings.
2. opening: a new journal, one that is there, and closing.
3. training: a 784-256-10 network record by record (fused engine, named columns, one of them an array of 784 float32),
   from the journal and from the same table in memory; and reading the journal alone.
4. commits: what a commit of the state costs, the longest gap of a busy loop meanwhile, learning with commits against
   without, and a restart. See commits.py, which prints these alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pyarrow as pa
import torch
from torch import nn

import commits
from millstream.features import Features
from millstream.journal import Draft, Journal
from millstream.schema import Field, Schema, Target
from millstream.sources import JournalSource
from millstream.trainer import Trainer

EVENT_BYTES = 512
PRAGMAS = {"page_size": 16384, "journal_mode": "wal", "synchronous": "full", "wal_autocheckpoint": 2048}
TARGETS = {1: 3_000, 100: 100_000, 1_000: 200_000}
NUM_COMMITS = {1: 400, 100: 200, 1_000: 100}
GROUP_RECORDS = 1024


@contextmanager
def scratch(folder: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Side:
    """One of the sides that are compared: for each round, items a second and processor microseconds an item."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.costs: list[float] = []

    def time(self, num: int, work: Callable[[], Any]) -> None:
        used, began = processor_seconds(), time.perf_counter()
        work()
        self.rates.append(num / (time.perf_counter() - began))
        self.costs.append((processor_seconds() - used) / num * 1e6)

    def figures(self, name: str) -> dict[str, float]:
        return {name: statistics.median(self.rates), f"{name}_us": statistics.median(self.costs)}

    def over(self, other: Side) -> float:
        """How fast it is, the other being 1; round by round."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True))


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bare_appends(size: int, num: int, folder: str | None, side: Side) -> None:
    """Plain inserts."""
    with scratch(folder) as path:
        connection = apsw.Connection(str(path / "bare.sqlite"))
        for name, value in PRAGMAS.items():
            connection.pragma(name, value)
        connection.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, content BLOB)")
        content = os.urandom(EVENT_BYTES * size)

        def insert() -> None:
            for number in range(num):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO events VALUES (?, ?)", (number, content))
                connection.execute("COMMIT")

        side.time(size * num, insert)
        connection.close()


def journal_appends(size: int, num: int, folder: str | None, side: Side) -> None:
    """The journal: one column of bytes, a producer with sequences."""
    with scratch(folder) as path, Journal(path / "journal") as journal:
        batch = pa.record_batch({"event": [os.urandom(EVENT_BYTES) for _ in range(size)]})

        def append() -> None:
            for number in range(num):
                journal.append(Draft(batch, producer="one", sequence=number * size))

        side.time(size * num, append)


def measure_appends(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    found = {}
    for size, commits_a_round in NUM_COMMITS.items():
        bare, ours, num = Side(), Side(), max(int(commits_a_round * share), 5)
        for _ in range(rounds):
            bare_appends(size, num, folder, bare)
            journal_appends(size, num, folder, ours)
        figures = bare.figures("bare") | ours.figures("journal") | {"ratio": ours.over(bare), "wanted": TARGETS[size]}
        found[f"appends_{size}"] = figures
    return found


def measure_opening(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    """Milliseconds."""
    found: dict[str, list[float]] = {"new": [], "close_new": [], "again": [], "close_changed": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = work()
        found[name].append((time.perf_counter() - began) * 1e3)
        return made

    for _ in range(rounds * 3):
        with scratch(folder) as path:
            timed("close_new", timed("new", lambda path=path: Journal(path / "journal")).close)
            journal = timed("again", lambda path=path: Journal(path / "journal"))
            journal.append(Draft(pa.record_batch({"x": [1.0]})))
            timed("close_changed", journal.close)
    return {"opening_ms": {name: statistics.median(each) for name, each in found.items()} | {"wanted": 10}}


def trainer() -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    target = Target("y", "class", tuple("0123456789"))
    features = Features(Schema((Field("x", "array", shape=(784,)),), target))
    return Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), features=features, engine="fused")


def measure_training(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    num = max(int(40 * share), 2)
    total = num * GROUP_RECORDS
    x = np.random.default_rng(0).random((GROUP_RECORDS, 784), np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 784)
    batch = pa.record_batch({"x": values, "y": [str(number % 10) for number in range(GROUP_RECORDS)]})
    table = pa.Table.from_batches([batch] * num)
    memory, journal, alone = Side(), Side(), Side()
    with scratch(folder) as path:
        with Journal(path / "journal") as book:
            for _ in range(num):
                book.append(Draft(batch))
        trainers = {"memory": trainer(), "journal": trainer()}
        for each in trainers.values():
            each.learn(table.slice(0, GROUP_RECORDS))  # compiled by now
        for _ in range(rounds):
            memory.time(total, lambda: trainers["memory"].learn(table))
            journal.time(total, lambda: trainers["journal"].learn(JournalSource(path / "journal", follow=False)))
            alone.time(total, lambda: sum(len(chunk) for chunk in JournalSource(path / "journal", follow=False).read()))
    sides = memory.figures("memory") | journal.figures("journal") | alone.figures("reading_alone")
    return {"training": sides | {"ratio": journal.over(memory), "wanted": 0.9}}


def measure_commits(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    sizes, seconds = ([1.0], 0.5) if share < 1 else ([1.0, 30.0], 10)
    with scratch(folder) as path:
        return {"commits": commits.measure(sizes, seconds, rounds, path)}


MEASURES = {
    "appends": measure_appends,
    "opening": measure_opening,
    "training": measure_training,
    "commits": measure_commits,
}


def machine() -> str:
    """The machine, the versions and the commit, in one line."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, SQLite {apsw.sqlite_lib_version()}"
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions}; commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test; its numbers mean nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=sorted(MEASURES))
    parser.add_argument("--folder", help="where to write; the disk is what is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds, share = (1, 0.02) if arguments.quick else (arguments.rounds, 1.0)
    found: dict[str, Any] = {"machine": machine()}
    for name, measure in MEASURES.items():
        if arguments.only in (None, name):
            found |= measure(rounds, share, arguments.folder)
    if arguments.json:
        print(json.dumps(found))
        return
    print(found.pop("machine"))
    tables = found.pop("commits", None)
    for name, figures in found.items():
        print(f"{name:14}", "  ".join(f"{key} {value:,.{2 if value < 10 else 0}f}" for key, value in figures.items()))
    if tables:
        commits.show(tables)


if __name__ == "__main__":
    main()
