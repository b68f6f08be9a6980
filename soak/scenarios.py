"""What is killed: sources × optimizers × engines × update sizes × late labels, each as a job that can be resumed."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

import millstream
from millstream import checkpoint, sources
from millstream.errors import StorageError
from millstream.features import Features
from millstream.journal import JournalReader
from millstream.phase import Phase, journaled
from millstream.schema import Field, Schema, Target
from millstream.studies.killing import Job, Note, learning
from soak import tally
from soak.upstream import Upstream

NUM_RECORDS = {"reference": 384, "reference batches": 4096, "fused": 12_000}
_CHUNK = {"reference": 16, "reference batches": 256, "fused": 512}
_COLUMNS = ("id", "a", "b", "c", "y")
_COLORS = ("red", "green", "blue")
SOURCES = ("table", "tensors", "csv", "jsonl", "parquet", "pipe")
OPTIMIZERS = ("sgd", "momentum", "adam", "adagrad")
LIVE = ("log", "queue")  # upstreams that can be read again, and those that cannot
_FILES = ("csv", "jsonl", "parquet")


class Network(nn.Module):
    """A small network over what features make of columns, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.colors = nn.Embedding(len(_COLORS) + 1, 3)
        self.first, self.dropout, self.last = nn.Linear(5, 12), nn.Dropout(0.2), nn.Linear(12, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = torch.cat([inputs["dense"], self.colors(inputs["ids"][:, 0])], dim=1)
        result: Tensor = self.last(self.dropout(torch.relu(self.first(hidden))))
        return result


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """One way of training. ``tally`` counts events in the weights in place of a network."""

    source: str
    optimizer: str = "sgd"
    engine: str = "reference"
    update_size: int = 1
    delay: int = 0
    tally: bool = False
    kind: str = "learn"

    @property
    def name(self) -> str:
        facts = [self.kind if self.kind == "fit" else "", self.source, "tally" if self.tally else self.optimizer]
        facts += [self.engine, f"x{self.update_size}", f"late {self.delay}" if self.delay else ""]
        return " ".join(filter(None, facts))

    @property
    def size(self) -> str:
        return "reference batches" if self.engine == "reference" and self.update_size > 1 else self.engine

    @property
    def num_records(self) -> int:
        return NUM_RECORDS[self.size]

    def job(self, data: Path) -> Job:
        """What a process does: it begins the run, or goes on with it, to the end."""
        how: dict[str, Any] = {"update_size": self.update_size}
        if self.kind == "fit":
            how |= {"kind": "fit", "epochs": 3, "shuffle": True, "validation": 0.1}
        elif self.delay:
            how["label_delay"] = self.delay
        if self.source in LIVE:
            return functools.partial(_live_job, self, how)
        if self.source == "pipe":
            return functools.partial(_pipe_job, self, data, how)
        return learning(lambda: (self.trainer(), self.open(data)), **how)

    def is_judged(self, name: str) -> bool:
        """Whether what has this name must be the same. The arrivals of a live source are others in each run: where they
        are cut shows in what a line of metrics counts within a chunk, in the places that dead letters name, and with
        late labels in the last bit of scores."""
        if self.source == "pipe":  # and one that had nothing more to send is not told that it has ended
            return name.startswith("learner")
        live = ("dead_letters.jsonl", "metrics.jsonl", *(("books",) if self.delay else ()))
        return not (self.source in LIVE and name.startswith(live))

    def complaints(self, folder: Path) -> list[str]:
        """What a tally has to say against the run that has ended in ``folder``."""
        if not self.tally:
            return []
        state, _, _ = checkpoint.newest(folder / "checkpoints")
        return tally.complaints(state, self.num_records, times=3 if self.kind == "fit" else 1, late=self.delay)

    def trainer(self, **more: Any) -> millstream.Trainer:
        torch.manual_seed(0)
        settings: dict[str, Any] = {"engine": self.engine, "report_records": 100, "seed": 5, "window": 200, **more}
        if self.tally:
            made = self._tally(settings)
        else:
            model = Network() if self.source != "tensors" else _dense()
            if self.source != "tensors":
                settings["features"] = Features(_schema(), on_error="quarantine", nonfinite="skip")
            made = millstream.Trainer(model, "cross_entropy", _optimizer(self.optimizer, model), **settings)
        # How much is read never changes what is computed; small pieces give more instants between two commits.
        size = max(self.update_size, _CHUNK[self.size])
        made.learner.engine.chunk_size = lambda update_size: size  # type: ignore[method-assign]
        return made

    def _tally(self, settings: dict[str, Any]) -> millstream.Trainer:
        if self.engine == "fused":
            model: nn.Module = tally.Counters(self.num_records)
            return millstream.Trainer(model, "quantile:0.5", torch.optim.SGD(model.parameters(), lr=2.0), **settings)
        if self.source != "tensors":
            schema = Schema(_schema().fields[:1], _schema().target)
            counted = dataclasses.replace(schema.fields[0], kind="category", values=_ids(self.size))
            schema = schema.replace(counted, target=Target("y", "class", ("no", "yes", "maybe")))
            settings["features"] = Features(schema)
        model = tally.Tally(self.num_records, 0 if self.source == "tensors" else 1)
        rate = float(self.update_size)  # an update is the mean of its records
        return millstream.Trainer(model, tally.minus, torch.optim.SGD(model.parameters(), lr=rate), **settings)

    def open(self, data: Path) -> Any:
        if self.source in _FILES:
            return sources.FileSource(data / f"{self.size}.{self.source}", on_error="quarantine")
        records = _records(self.num_records)
        if self.source == "table":
            return pa.table(records)
        labels = torch.tensor([value == "yes" for value in records["y"]])
        if not self.tally:
            return torch.tensor([records["a"], records["b"]], dtype=torch.float32).T.contiguous(), labels.long()
        ids = torch.arange(self.num_records)
        return ids, torch.full((self.num_records,), 1e6) if self.engine == "fused" else labels.float()


def matrix() -> list[Scenario]:
    """Every scenario of the soak."""
    found = []
    ways = (("reference", 1), ("reference", 32), ("fused", 1))
    for source, optimizer, (engine, update_size), delay in itertools.product(SOURCES, OPTIMIZERS, ways, (0, 7)):
        if source == "pipe" and update_size > 1:  # such an update ends with what has arrived: another run each time
            continue
        found.append(Scenario(source, optimizer, engine, update_size, delay))
    for source, delay in itertools.product(SOURCES, (0, 7)):
        found.append(Scenario(source, delay=delay, tally=True))
    for source, delay in itertools.product(LIVE, (0, 7)):
        found.append(Scenario(source, delay=delay, tally=True))
        found += [Scenario(source, optimizer, "fused", 1, delay) for optimizer in OPTIMIZERS]
    found.append(Scenario("tensors", engine="fused", tally=True))
    found.append(Scenario("csv", update_size=32, tally=True))
    for optimizer in (*OPTIMIZERS, "race"):
        found.append(Scenario("table", optimizer, "reference", 32, kind="fit"))
        found.append(Scenario("csv", optimizer, "fused", 1, kind="fit"))
    found.append(Scenario("parquet", "race", "fused", 1))
    found.append(Scenario("table", "race", "reference", 32))
    return found


def few() -> list[Scenario]:
    """One of each kind, for a quick look."""
    return [
        Scenario("csv", tally=True),
        Scenario("pipe", tally=True),
        Scenario("queue", tally=True),
        Scenario("log", "adam", "fused", 1),
        Scenario("jsonl", "adam", "fused", 1, 7),
        Scenario("parquet", "momentum", "reference", 32),
        Scenario("tensors", "adagrad", "fused", 1),
        Scenario("table", "sgd", "reference", 1, 7),
        Scenario("table", "adam", "reference", 32, kind="fit"),
    ]


def write_data(folder: Path) -> None:
    """The files that scenarios read, one of each size and format."""
    for size, number in NUM_RECORDS.items():
        records = _records(number)
        pq.write_table(pa.table(records), folder / f"{size}.parquet", row_group_size=1000)
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*records.values(), strict=True)]
        with (folder / f"{size}.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        with (folder / f"{size}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


def _pipe_job(
    scenario: Scenario, data: Path, how: dict[str, Any], folder: Path, note: Note, draws: random.Random | None
) -> None:
    """A pipe whose sender is told what the journal has, and sends what comes after it."""
    position = 0
    if (folder / "journal").is_dir():
        with contextlib.suppress(StorageError):  # killed before it had one: nothing was taken
            position = JournalReader(folder / "journal").head().position
    lines = (data / f"{scenario.size}.csv").read_bytes().splitlines(keepends=True)
    if position >= len(lines) - 1:
        phase = Phase.from_state(checkpoint.newest(folder / "checkpoints")[0]["phase"])
        ended = journaled(phase, JournalReader(folder / "journal"))
        learning(lambda: (scenario.trainer(), ended), **how)(folder, note, draws)
        return
    reading, writing = os.pipe()
    sender = threading.Thread(target=_send, args=(writing, lines[:1] + lines[1 + position :]), daemon=True)
    sender.start()
    types = {"id": pa.string(), "a": pa.float64(), "b": pa.float64(), "c": pa.string(), "y": pa.string()}
    source = sources.StdinSource(reading, format="csv", schema=types, on_error="quarantine")
    learning(lambda: (scenario.trainer(), source), **how)(folder, note, draws)


def _live_job(scenario: Scenario, how: dict[str, Any], folder: Path, note: Note, draws: random.Random | None) -> None:
    """A live upstream through the run's journal. One that gives everything once goes on after what the journal has."""
    start, can_seek = 0, scenario.source == "log"
    if not can_seek and (folder / "journal").is_dir():
        with contextlib.suppress(StorageError):  # killed before it had one: nothing was taken
            groups = JournalReader(folder / "journal").read(0, kinds=("records",))
            start = max((group.facts["after"] for group in groups), default=0)
    source = Upstream(pa.table(_records(scenario.num_records)), can_seek=can_seek, start=start)
    learning(lambda: (scenario.trainer(), source), **how)(folder, note, draws)


def _send(descriptor: int, lines: list[bytes]) -> None:
    with open(descriptor, "wb", buffering=0) as pipe:
        for first in range(0, len(lines), 10):
            pipe.write(b"".join(lines[first : first + 10]))


@functools.cache
def _records(number: int) -> dict[str, list[Any]]:
    draws = random.Random(number)
    a, b = [[round(draws.gauss(0, 1), 4) for _ in range(number)] for _ in range(2)]
    c = [draws.choice(_COLORS) for _ in range(number)]
    y = ["yes" if x + z + draws.gauss(0, 0.3) > 0 else "no" for x, z in zip(a, b, strict=True)]
    for bad in range(37, number, 97):  # a label that the networks refuse: dead letters, which must agree too
        y[bad] = "maybe"
    return {"id": [f"e{number}" for number in range(number)], "a": a, "b": b, "c": c, "y": y}


@functools.cache
def _ids(size: str) -> tuple[str, ...]:
    return tuple(f"e{number}" for number in range(NUM_RECORDS[size]))


def _schema() -> Schema:
    fields = Field("id", "ignore"), Field("a", "number"), Field("b", "number"), Field("c", "category", values=_COLORS)
    return Schema(fields, Target("y", "class", ("no", "yes")))


def _dense() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 12), nn.Dropout(0.2), nn.ReLU(), nn.Linear(12, 2))


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer | None:
    if name == "race":
        return None
    settings: dict[str, Any] = {"lr": 0.01}
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
    if name == "momentum":
        return torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=0.01, **settings)
    made: torch.optim.Optimizer = kinds[name](model.parameters(), **settings)
    return made


def by_name(names: list[str]) -> Iterator[Scenario]:
    """The scenarios of the matrix whose name holds one of these words."""
    return (scenario for scenario in matrix() if not names or any(name in scenario.name for name in names))
