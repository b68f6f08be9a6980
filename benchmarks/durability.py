"""What durability costs: appends to the journal against bare SQLite, and training from it against memory.

Run: python benchmarks/durability.py [--quick] [--json]

Medians over rounds, the sides in turn:

1. appends of events of 512 bytes by one producer, 1, 100 and 1,000 in a commit, each on the disk when it returns;
   beside it bare inserts of the same bytes through apsw, one row for each commit, with the same settings.
2. training a 784-256-10 network record by record (fused engine) on records of 784 float32, from memory and from the
   journal, and reading the journal alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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

from millstream import engines
from millstream.journal import Draft, Journal

EVENT_BYTES = 512
PRAGMAS = {"page_size": 16384, "journal_mode": "wal", "synchronous": "full", "wal_autocheckpoint": 2048}
TARGETS = {1: 3_000, 100: 100_000, 1_000: 200_000}


@contextmanager
def scratch(folder: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def bare_appends(size: int, commits: int, folder: str | None) -> float:
    """Events a second of plain inserts."""
    with scratch(folder) as path:
        connection = apsw.Connection(str(path / "bare.sqlite"))
        for name, value in PRAGMAS.items():
            connection.pragma(name, value)
        connection.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, content BLOB)")
        content = os.urandom(EVENT_BYTES * size)
        started = time.perf_counter()
        for number in range(commits):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO events VALUES (?, ?)", (number, content))
            connection.execute("COMMIT")
        seconds = time.perf_counter() - started
        connection.close()
    return size * commits / seconds


def journal_appends(size: int, commits: int, folder: str | None) -> float:
    """Events a second of the journal: one column of bytes, a producer with sequences."""
    with scratch(folder) as path:
        batch = pa.record_batch({"event": [os.urandom(EVENT_BYTES) for _ in range(size)]})
        journal = Journal(path / "journal")
        started = time.perf_counter()
        for number in range(commits):
            journal.append(Draft(batch, producer="one", sequence=number * size))
        seconds = time.perf_counter() - started
        journal.close()
    return size * commits / seconds


def measure_appends(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    found = {}
    for size, commits in ((1, 400), (100, 200), (1_000, 100)):
        bare, ours = [], []
        for _ in range(rounds):
            bare.append(bare_appends(size, max(int(commits * share), 5), folder))
            ours.append(journal_appends(size, max(int(commits * share), 5), folder))
        ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
        found[f"appends_{size}"] = {
            "bare": statistics.median(bare),
            "journal": statistics.median(ours),
            "ratio": ratio,
            "wanted": TARGETS[size],
        }
    return found


def learner() -> Callable[[torch.Tensor, torch.Tensor], None]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    update = engines.compile(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.01))

    def learn(x: torch.Tensor, y: torch.Tensor) -> None:
        update.learn(x, y)

    return learn


def columns(batch: pa.RecordBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A column of lists of one size as a matrix on the same memory, and the labels."""
    x = np.frombuffer(batch.column("x").values.buffers()[1], np.float32, len(batch) * 784).reshape(-1, 784)
    return torch.from_numpy(x.copy()), torch.from_numpy(batch.column("y").to_numpy().copy())


def measure_training(rounds: int, share: float, folder: str | None) -> dict[str, Any]:
    num, size = max(int(60 * share), 4), 1024
    x = np.random.default_rng(0).random((size, 784), np.float32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 784)
    batch = pa.record_batch({"x": values, "y": np.arange(size) % 10})
    memory, journal, alone = [], [], []
    with scratch(folder) as path, Journal(path / "journal") as book:
        for _ in range(num):
            book.append(Draft(batch))
        learn = learner()
        learn(*columns(batch))  # compiled by now
        for _ in range(rounds):
            for rates, batches in (
                (memory, lambda: (batch for _ in range(num))),
                (journal, lambda: (group.records for group in book.read(0))),
            ):
                started = time.perf_counter()
                for one in batches():
                    learn(*columns(one))
                rates.append(num * size / (time.perf_counter() - started))
            started = time.perf_counter()
            for group in book.read(0):
                columns(group.records)
            alone.append(num * size / (time.perf_counter() - started))
    ratio = statistics.median(b / a for a, b in zip(memory, journal, strict=True))
    rates = {"memory": memory, "journal": journal, "reading_alone": alone}
    return {
        "training": {name: statistics.median(each) for name, each in rates.items()} | {"ratio": ratio, "wanted": 0.9}
    }


MEASURES = {"appends": measure_appends, "training": measure_training}


def machine() -> str:
    """The machine, the versions and the commit, in one line."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, SQLite {apsw.sqlite_lib_version()}"
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions}; commit {commit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
    for name, figures in found.items():
        print(f"{name:14}", "  ".join(f"{key} {value:,.{2 if value < 10 else 0}f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
