"""Run: pytest tests/test_joining.py"""

import collections
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from command_line import refusal, run
from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import Candidate
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.features import Features
from millstream.joining import Joining
from millstream.metrics import Metrics
from millstream.schema import Field, Schema, Target
from millstream.sources import TableSource
from millstream.trainer import Trainer

CLASSES = Target("y", "class", ("no", "yes", "maybe"))
NUMBER = Target("y", "number")
COLUMNS = pa.schema([("id", pa.string()), ("a", pa.float64()), ("b", pa.string()), ("t", pa.float64())])
Event = dict[str, Any]


def schema_of(target: Target, weight: str | None = None) -> Schema:
    fields = Field("a", "number"), Field("b", "category", values=("u", "v")), Field("t", "ignore")
    return Schema(fields, target, weight, "t", None, "id")


def batch_of(events: list[Event], target: Target) -> pa.RecordBatch:
    kind = pa.string() if target.kind == "class" else pa.float64()
    return pa.RecordBatch.from_pylist(events, COLUMNS.append(pa.field("y", kind)))


class CutSource:
    """A table that is handed out in these pieces, as a live source might."""

    name, can_seek, can_jump = "cut", True, False

    def __init__(self, events: list[Event], target: Target, cuts: list[int]) -> None:
        self._batch = batch_of(events, target)
        self.schema, self.num_records = self._batch.schema, len(events)
        self._edges = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})

    def read(self, position: Any = None, *, size: int = 4096) -> Iterator[Chunk]:
        for first, last in itertools.pairwise(self._edges):
            if first >= (position or 0):
                yield Chunk(self._batch.slice(first, last - first), after=last)

    def take(self, numbers: Any) -> Chunk:
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "cut", "records": self.num_records}


class Net(nn.Module):
    """A line through dense numbers and a table of ids, in float64."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.table = nn.Linear(1, num_outputs).double(), nn.Embedding(4, num_outputs).double()

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.line(x["dense"].double()) + self.table(x["ids"])[:, 0]
        return found


def trainer_of(target: Target, **options: Any) -> Trainer:
    model = Net(target.num_outputs)
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    loss = "cross_entropy" if target.kind == "class" else "mse"
    features = Features(options.pop("schema", None) or schema_of(target), on_error="quarantine")
    options = {"engine": "reference", "window": 50} | options
    return Trainer(model, loss, optimizer, features=features, **options)


class Simple:
    """The join as one reads it: a dict of open questions, one event after another."""

    def __init__(self, target: Target, joining: Joining, update_size: int) -> None:
        self.target, self.joining, self.update_size = target, joining, update_size
        self.model = Net(target.num_outputs)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.5)
        self.loss = losses.resolve("cross_entropy" if target.kind == "class" else "mse")
        self.features = Features(schema_of(target))
        self.metrics = Metrics("classes" if target.kind == "class" else "number", target.num_outputs, window=50)
        self.open: dict[str, dict[str, Any]] = {}
        self.closed: dict[str, bool] = {}
        self.labels: list[float] = []
        self.ready: list[tuple[dict[str, Any], float]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.clock = -math.inf
        self.refused = self.updates = 0

    def see(self, place: int, event: Event) -> None:
        asks, label = event["a"] is not None or event["b"] is not None, event["y"]
        if event["id"] is None or (not asks and label is None) or (asks and event["t"] is None):
            self.refused += 1
            return
        by_time = self.joining.timeout_seconds is not None
        self.clock = self.clock if event["t"] is None else max(self.clock, event["t"])
        now = self.clock if by_time else place
        timeout = self.joining.timeout_seconds if by_time else self.joining.timeout_records
        while timeout is not None and self.open and now - next(iter(self.open.values()))["at"] > timeout:
            self.time_out()
        number = label if label is None or self.target.kind == "number" else self.target.classes.index(label)
        name = event["id"]
        if asks:
            self.ask(name, event, number, now)
        elif name in self.open:
            self.counts["answered"] += 1
            self.answer(name, self.open.pop(name), number)
        elif self.closed.get(name):
            self.counts["duplicates"] += 1
        else:
            self.refused += 1
            self.counts["late" if name in self.closed else "unknown"] += 1

    def ask(self, name: str, event: Event, label: Any, now: float) -> None:
        if name in self.open:
            self.counts["repeated"] += 1
            self.refused += 1
            return
        if label is None and len(self.open) == self.joining.max_open:
            self.time_out()
        self.counts["questions"] += 1
        dummy = "no" if self.target.kind == "class" else 0.0
        row = self.features.transform(Chunk(batch_of([{**event, "y": dummy}], self.target)), learn=True).inputs
        shift, scale = 0.0, 1.0
        if self.target.kind == "number":
            shift, scale = (
                float(np.float32(v[0])) for v in self.features.scale_targets(torch.empty(0), learn=False)[1:]
            )
        with torch.no_grad():
            outputs = self.model(row)
        question = {"row": row, "outputs": outputs, "shift": shift, "scale": scale, "at": now, **self.known()}
        self.closed.pop(name, None)
        if label is None:
            self.open[name] = question
        else:
            self.counts["answered"] += 1
            self.answer(name, question, label)

    def known(self) -> dict[str, float]:
        if not self.labels:
            return {"known": math.nan, "guess": math.nan}
        if self.target.kind == "number":
            return {"known": self.labels[-1], "guess": sum(self.labels) / len(self.labels)}
        return {"known": self.labels[-1], "guess": max(sorted(set(self.labels)), key=self.labels.count)}

    def time_out(self) -> None:
        name = next(iter(self.open))
        question, default = self.open.pop(name), self.joining.default
        if default is None:
            self.counts["dropped"] += 1
            self.close(name, False)
        else:
            self.counts["defaulted"] += 1
            label = float(default) if self.target.kind == "number" else self.target.classes.index(default)
            self.answer(name, question, label, answered=False)

    def answer(self, name: str, question: dict[str, Any], label: float, answered: bool = True) -> None:
        self.close(name, answered)
        self.labels.append(label)
        is_class = self.target.kind == "class"
        target = torch.tensor([label]) if is_class else torch.tensor([label], dtype=torch.float32)
        shift, scale = question["shift"], question["scale"]
        outputs = question["outputs"]
        judged = target if is_class else (target - shift) / scale
        loss = self.loss(outputs, judged)
        shown = outputs if is_class else outputs.reshape(1) * scale + shift
        self.metrics.update(shown, target, loss, np.array([question["known"]]), np.array([question["guess"]]))
        self.ready.append((question["row"], label))
        if len(self.ready) == self.update_size:
            self.learn()

    def learn(self) -> None:
        rows = {name: torch.cat([row[name] for row, _ in self.ready]) for name in ("dense", "ids")}
        targets = torch.tensor([label for _, label in self.ready])
        if self.target.kind == "number":
            targets = self.features.scale_targets(targets, learn=True)[0]
        self.optimizer.zero_grad()
        self.loss(self.model(rows), targets).mean().backward()
        self.optimizer.step()
        self.ready, self.updates = [], self.updates + 1

    def close(self, name: str, answered: bool) -> None:
        self.closed.pop(name, None)
        self.closed[name] = answered
        if len(self.closed) > self.joining.remembered:
            del self.closed[next(iter(self.closed))]


IDS = st.sampled_from(["k0", "k1", "k2", "k3", "k4", "k5", "ключ"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[Target, Joining, int, list[Event], list[int]]:
    target = draw(st.sampled_from([CLASSES, NUMBER]))
    labels = st.sampled_from(CLASSES.classes) if target is CLASSES else st.integers(-3, 3).map(float)
    a, b = st.sampled_from([-1.0, 0.5, 2.0, None]), st.sampled_from(["u", "v", None])
    clock, events = 0.0, []
    for _ in range(draw(st.integers(1, 30))):
        clock += draw(st.sampled_from([0.0, 1.0, 2.0, -1.0]))
        event: Event = {"id": draw(IDS), "a": None, "b": None, "t": clock, "y": None}
        kind = draw(st.sampled_from(["ask"] * 5 + ["answer"] * 5 + ["both", "no id", "empty", "answer without a time"]))
        if kind in ("ask", "both"):
            event |= {"a": draw(a), "b": draw(b)}
        if kind not in ("ask", "empty"):
            event["y"] = draw(labels)
        if kind == "answer without a time":
            event["t"] = None
        if kind == "no id":
            event["id"] = None
        events.append(event)
    timeout = draw(st.sampled_from([{}, {"timeout_records": draw(st.integers(0, 8))}, {"timeout_seconds": 3.0}]))
    default = draw(st.sampled_from([None, "yes" if target is CLASSES else "1.5"]))
    joining = Joining(
        **timeout,
        default=default,
        max_open=draw(st.sampled_from([1, 3, 100])),
        remembered=draw(st.sampled_from([0, 2, 100])),
    )
    return target, joining, draw(st.integers(1, 3)), events, draw(st.lists(st.integers(0, 30), max_size=5))


def agree(one: dict[str, float], other: dict[str, float]) -> None:
    assert one == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(streams())
def test_any_stream_is_learned_as_one_event_after_another_would_be(stream: Any) -> None:
    target, joining, update_size, events, cuts = stream
    simple = Simple(target, joining, update_size)
    for place, event in enumerate(events):
        simple.see(place, event)
    trainer = trainer_of(target)
    found = trainer.learn(CutSource(events, target, cuts), update_size=update_size, label_delay=joining)
    counts = {name: num for name, num in (found.labels or {}).items() if num}
    open_now = {"open": len(simple.open)} if simple.open else {}
    assert counts == {name: num for name, num in simple.counts.items() if num} | open_now
    assert (found.rejected, found.updates) == (simple.refused, simple.updates)
    for name, value in simple.model.state_dict().items():
        assert torch.allclose(trainer.learner.rule.model.state_dict()[name], value, rtol=1e-10, atol=1e-12), name
    if simple.labels:
        agree(found.metrics, simple.metrics.report())
    else:
        assert found.metrics == {}


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor | np.ndarray):
        a, b = np.asarray(one), np.asarray(other)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(one == other) or (one != one and other != other)


def learned_state(trainer: Trainer) -> Any:
    state = trainer.state_dict()
    state["phase"].pop("seconds")
    return {name: state[name] for name in ("phase", "delay", "metrics", "learner", "position", "guard")}


FEW = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.05, 0.001, 1.0)]
WRAPPED = [{}, {"optimizer": FEW}, {"optimizer": FEW, "replay": 0.5, "drift": "page-hinkley", "average": 0.9}]


@settings(max_examples=25, deadline=None)
@given(streams(), st.integers(0, 5), st.sampled_from(WRAPPED))
def test_a_run_that_was_stopped_at_any_cut_goes_on_to_the_same_bits(stream: Any, stop: int, around: Any) -> None:
    target, joining, update_size, events, cuts = stream
    source, how = CutSource(events, target, cuts), {"update_size": update_size, "label_delay": joining}
    whole = trainer_of(target, **around)
    states = [json_free(whole.state_dict()) for _ in whole.steps(source, **how)]
    again = trainer_of(target, **around)
    again.load_state_dict(states[min(stop, len(states) - 1)])
    again.learn(source, resume=True, **how)
    assert same(learned_state(again), learned_state(whole))


def json_free(state: Any) -> Any:
    """A copy that shares no memory."""
    import copy

    return copy.deepcopy(state)
