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
    return {name: state[name] for name in ("phase", "delay", "books", "learner", "position")}


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


def flow(target: Target, num: int, seed: int = 0) -> list[Event]:
    """Records with a label each, as they would be without any delay."""
    draw = np.random.default_rng(seed)
    a, b, noise = draw.normal(size=num), draw.integers(0, 2, num), draw.normal(size=num)
    score = a + b + 0.3 * noise
    made = score.tolist() if target is NUMBER else [CLASSES.classes[k] for k in np.digitize(score, [0.0, 1.0])]
    rows = zip(a.tolist(), b.tolist(), made, strict=True)
    return [{"id": f"r{i}", "a": x, "b": "uv"[k], "t": float(i), "y": y} for i, (x, k, y) in enumerate(rows)]


def later(records: list[Event], delay: int) -> list[Event]:
    """The same records as questions, each answered once ``delay`` more were asked."""
    events: list[Event] = []
    for i, record in enumerate(records):
        events.append({**record, "y": None})
        if i >= delay:
            events.append({**records[i - delay], "a": None, "b": None})
    return events


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.learner.rule.model.state_dict()


@pytest.mark.parametrize("target", [CLASSES, NUMBER], ids=["class", "number"])
def test_answers_directly_after_their_questions_are_no_delay(target: Target) -> None:
    records = flow(target, 400)
    plain, joined, at_once = (trainer_of(target) for _ in range(3))
    want = plain.learn(CutSource(records, target, []))
    found = joined.learn(CutSource(later(records, 0), target, [7, 300]), label_delay="join")
    once = at_once.learn(CutSource(records, target, [100]), label_delay="join")
    for trainer, summary in ((joined, found), (at_once, once)):
        assert all(
            torch.equal(a, b) for a, b in zip(weights_of(trainer).values(), weights_of(plain).values(), strict=True)
        )
        apart = {"loss", "window_loss"} if target is NUMBER else set()  # a target is 0 before its spread is known
        agree(*({n: v for n, v in each.metrics.items() if n not in apart} for each in (summary, want)))
        assert summary.metrics["window_loss"] == pytest.approx(want.metrics["window_loss"], rel=1e-5)
        assert summary.records == summary.labels["answered"] == 400


AROUND: list[dict[str, Any]] = [
    {},
    {"engine": "fused"},
    {"optimizer": FEW},
    {"optimizer": FEW, "drift": "page-hinkley:reopen", "replay": 0.5},
    {"drift": "adwin:raise", "replay": "0.3:window:50", "engine": "fused"},
    {"drift": "adwin:reset", "average": 0.99},
]


def turned(target: Target, num: int) -> list[Event]:
    """Records whose labels are chance from the middle on, for detectors to see."""
    draw, records = np.random.default_rng(1), flow(target, num)
    for record in records[num // 2 :]:
        record["y"] = float(draw.normal(0, 40)) if target is NUMBER else str(draw.choice(CLASSES.classes))
    return records


@pytest.mark.parametrize("target", [CLASSES, NUMBER], ids=["class", "number"])
def test_a_detector_sees_true_losses_only_when_labels_come(target: Target) -> None:
    """The alarm is that of labels that are late by as much; no question is an error before its label is known."""
    records, alarms = turned(target, 1600), []
    for events, late in ((records, 20), (later(records, 20), "join")):
        trainer = trainer_of(target, drift="adwin:none")
        steps = trainer.steps(CutSource(events, target, [500]), label_delay=late)
        found = [event for step in steps if step.scored for event in step.scored.events]
        alarms.append([(event.what, event.position) for event in found if event.what == "drift"])
    assert alarms[0] == alarms[1] and any(800 < position < 1600 for _, position in alarms[0]), alarms


@pytest.mark.parametrize("around", AROUND, ids=lambda around: "+".join(map(str, around)) or "plain")
@pytest.mark.parametrize(("delay", "update_size"), [(7, 1), (4, 3)])
@pytest.mark.parametrize("target", [CLASSES, NUMBER], ids=["class", "number"])
def test_answers_so_many_records_later_are_that_delay(
    target: Target, delay: int, update_size: int, around: dict[str, Any]
) -> None:
    """What races and detectors see of a question when its label comes is what they see where it is known before."""
    records = turned(target, 700)
    found = []
    for events, late in ((records, delay), (later(records, delay), "join")):
        trainer = trainer_of(target, **around)
        steps = list(trainer.steps(CutSource(events, target, []), update_size=update_size, label_delay=late))
        scored = [step.scored for step in steps if step.scored is not None]
        decided = [(e.what, e.detail.split(" by ")[0], e.position) for each in scored for e in each.events]
        found.append((weights_of(trainer), torch.cat([each.losses for each in scored]), decided, trainer.summary()))
    (want, first, planned, plain), (weights, losses_then, decided, joined) = found
    assert joined.updates == plain.updates and len(losses_then) == 700 - delay
    assert decided == planned
    assert torch.allclose(losses_then, first[: 700 - delay], rtol=1e-5, atol=1e-6)
    for a, b in zip(weights.values(), want.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cuts", [[3], [4, 9, 100], list(range(120))])
def test_cuts_change_nothing_where_updates_take_several_late_numbers(cuts: list[int]) -> None:
    records = flow(NUMBER, 120)
    found = [trainer_of(NUMBER) for _ in range(2)]
    reports = [
        trainer.learn(CutSource(records, NUMBER, where), update_size=4, label_delay=3).metrics
        for trainer, where in zip(found, ([], cuts), strict=True)
    ]
    agree(reports[1], reports[0])
    assert all(torch.equal(a, b) for a, b in zip(*(weights_of(each).values() for each in found), strict=True))


def test_what_waits_to_be_scored_is_bounded() -> None:
    """Questions that are dropped are forgotten by races and detectors, too, and their places are used again."""
    records = [{**record, "y": None} for record in flow(CLASSES, 3000)]
    records += flow(CLASSES, 100, seed=1)
    trainer = trainer_of(CLASSES, optimizer=FEW, drift="page-hinkley:reopen")
    found = trainer.learn(CutSource(records, CLASSES, list(range(0, 3000, 100))), label_delay=Joining(max_open=20))
    assert found.labels is not None and found.labels["dropped"] == 2980 and found.labels["open"] == 20
    state = trainer.state_dict()
    engine = state["learner"]["engine"]
    assert len(engine["own"]["pending"]["numbers"]) <= 120 and len(engine["inner"]["pending"]["numbers"]) <= 120
    assert len(trainer._delay.shelf.columns["outputs"]) <= 512  # type: ignore[union-attr]
    assert len(state["delay"]["rows"]["outputs"]) == 20


def test_another_phase_goes_on_with_the_questions_that_are_open() -> None:
    events = later(flow(CLASSES, 60), 10)
    whole, halves = trainer_of(CLASSES), trainer_of(CLASSES)
    whole.learn(CutSource(events, CLASSES, [40]), label_delay="join")
    halves.learn(CutSource(events[:40], CLASSES, []), label_delay="join")
    found = halves.learn(CutSource(events[40:], CLASSES, []), label_delay="join")
    assert all(torch.equal(a, b) for a, b in zip(weights_of(whole).values(), weights_of(halves).values(), strict=True))
    assert found.labels is not None and found.labels["unknown"] == 0
    assert found.labels["answered"] == sum(event["y"] is not None for event in events[40:])


def test_a_refused_event_leaves_no_trace_in_the_statistics() -> None:
    asked = [{"id": "k", "a": 1.0, "b": "u", "t": 0.0, "y": None}, {"id": "m", "a": 3.0, "b": "v", "t": 1.0, "y": None}]
    again = {"id": "k", "a": 1e6, "b": "u", "t": 2.0, "y": None}
    unknown = {"id": "x", "a": None, "b": None, "t": 2.0, "y": "yes"}
    plain, refusing = trainer_of(CLASSES), trainer_of(CLASSES)
    plain.learn(CutSource(asked, CLASSES, []), label_delay="join")
    found = refusing.learn(CutSource([*asked, again, unknown], CLASSES, []), label_delay="join")
    assert found.rejected == 2 and found.records == 2 and found.metrics == {}
    for trainer in (plain, refusing):
        assert trainer.learner.features is not None
    assert same(refusing.learner.features.state_dict(), plain.learner.features.state_dict())  # type: ignore[union-attr]


def test_weights_of_records_are_those_of_their_questions() -> None:
    schema = schema_of(CLASSES, weight="w")
    records = [{**record, "w": float(i % 3)} for i, record in enumerate(flow(CLASSES, 90))]
    plain, joined = trainer_of(CLASSES, schema=schema), trainer_of(CLASSES, schema=schema)
    plain.learn(TableSource(pa.Table.from_pylist(records)))
    answers = [event if event["a"] is not None else {**event, "w": None} for event in later(records, 0)]
    joined.learn(TableSource(pa.Table.from_pylist(answers)), label_delay="join")
    assert all(torch.equal(a, b) for a, b in zip(weights_of(plain).values(), weights_of(joined).values(), strict=True))


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"timeout_records": 3, "timeout_seconds": 2.0}, "timeouts of 3 and 2.0"),
    ({"timeout_seconds": math.nan}, "timeouts of nan"),
    ({"timeout_records": -1}, "timeouts of -1"),
    ({"max_open": 0}, "max_open=0"),
]


@pytest.mark.parametrize(("given", "message"), BAD_SETTINGS)
def test_settings_that_cannot_work_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Joining(**given)


def test_what_a_join_lacks_is_said() -> None:
    events = later(flow(CLASSES, 5), 1)
    source = CutSource(events, CLASSES, [])
    with pytest.raises(SettingError, match="default label 'perhaps'"):
        trainer_of(CLASSES).learn(source, label_delay=Joining(default="perhaps"))
    with pytest.raises(SettingError, match="default label 'much'"):
        trainer_of(NUMBER).learn(CutSource(later(flow(NUMBER, 5), 1), NUMBER, []), label_delay=Joining(default="much"))
    fields = schema_of(CLASSES).fields
    with pytest.raises(DataError, match="without an id column"):
        trainer_of(CLASSES, schema=Schema(fields, CLASSES)).learn(source, label_delay="join")
    untimed = Schema(fields, CLASSES, id="id")
    with pytest.raises(DataError, match="timeout of 5 s on data without a time column"):
        trainer_of(CLASSES, schema=untimed).learn(source, label_delay=Joining(timeout_seconds=5.0))
    plain = Trainer(nn.Linear(2, 2), "cross_entropy", None, engine="reference")
    with pytest.raises(DataError, match="tensors for labels that join"):
        plain.learn((torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), label_delay="join")
    stopping = trainer_of(CLASSES)
    assert stopping.learner.features is not None
    stopping.learner.features.on_error = "stop"
    with pytest.raises(DataError, match="no id in column 'id' in record 1"):
        stopping.learn(CutSource([events[0], {**events[1], "id": None}], CLASSES, []), label_delay="join")


def test_a_run_with_other_settings_is_not_resumed() -> None:
    source = CutSource(later(flow(CLASSES, 30), 3), CLASSES, [20])
    first = trainer_of(CLASSES)
    state = next(json_free(first.state_dict()) for _ in first.steps(source, label_delay=Joining(timeout_records=9)))
    other = trainer_of(CLASSES)
    other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="delay"):
        other.learn(source, label_delay=Joining(timeout_records=8), resume=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = [
    "--model",
    "linear",
    "--lr",
    "0.1",
    "--target",
    "clicked",
    "--id",
    "impression",
    "--label-delay",
    "join",
    "--json",
]
CLICKS = """impression,time,price,shop,clicked
007,2024-01-01T00:00:00,1.5,a,
08,2024-01-01T00:00:01,2.5,b,
007,2024-01-01T00:00:02,,,1
9,2024-01-01T00:00:03,0.5,a,0
7,2024-01-01T00:00:04,,,1
,2024-01-01T00:00:05,0.5,a,
007,2024-01-01T00:00:06,,,1
10,2024-01-01T00:00:20,3.5,b,
08,2024-01-01T00:00:21,,,1
"""


def test_the_command_line_joins_and_counts(folder: Path) -> None:
    Path("clicks.csv").write_text(CLICKS)
    words = ["learn", "clicks.csv", *WORDS, "--column", "clicked=class:classes=0|1", "--on-error", "quarantine"]
    found = run(*words, "--time", "time", "--label-timeout", "10s", "--default-label", "0", "--run", "run").json
    want = {"questions": 4, "answered": 2, "defaulted": 1, "dropped": 0, "late": 1, "duplicates": 1, "unknown": 1}
    assert found["labels"] == {**want, "repeated": 0, "open": 1}
    assert found["records"] == 4 and found["updates"] == 3 and found["metrics"]["count"] == 3
    letters = [json.loads(line) for line in Path("run/dead_letters.jsonl").read_text().splitlines()]
    assert [letter["where"] for letter in letters] == ["clicks.csv:6", "clicks.csv:7", "clicks.csv:10"]
    assert "id '7', which nobody has asked" in letters[0]["reason"] and "no id" in letters[1]["reason"]
    assert "after its time was up" in letters[2]["reason"]
    piped = run(
        *["-" if w == "clicks.csv" else w for w in words], "--time", "time", "--run", "pipe", stdin=CLICKS.encode()
    ).json
    assert piped["labels"]["answered"] == 3 and piped["labels"]["open"] == 1


def test_a_stream_that_was_killed_goes_on_with_its_open_questions(folder: Path) -> None:
    events = later(flow(CLASSES, 600), 40)
    words = [
        "--model",
        "linear",
        "--engine",
        "reference",
        "--target",
        "y",
        "--id",
        "id",
        "--label-delay",
        "join",
        "--column=t=ignore",
        "--json",
    ]
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    whole = run("learn", "-", *words, "--run", "whole", stdin=b"".join(lines)).json
    run("learn", "-", *words, "--run", "cut", stdin=b"".join(lines[:700]))
    rest = run("learn", "-", *words, "--run", "cut", "--resume", stdin=b"".join(lines[700:])).json
    assert rest["labels"]["unknown"] == 0 and rest["labels"]["open"] == whole["labels"]["open"] == 40
    assert rest["learning_rate"] == whole["learning_rate"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label-timeout", "5"], "--label-timeout for labels that do not join"),
        (["--default-label", "0"], "--default-label for labels that do not join"),
        (["--label-delay", "join", "--label-timeout", "known"], "--label-timeout known"),
        (["--label-delay", "join", "--label-timeout", "soon"], "'soon'"),
        (["--label-delay", "join"], "without an id column"),
        (["--label-delay", "join", "--id", "nothing"], "no column 'nothing'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder: Path, words: list[str], message: str) -> None:
    Path("clicks.csv").write_text(CLICKS)
    assert message in refusal(run("learn", "clicks.csv", "--model", "linear", "--target", "clicked", *words))


@pytest.mark.parametrize("target", [CLASSES, NUMBER], ids=["class", "number"])
def test_a_step_has_the_predictions_of_its_questions_before_their_labels_come(target: Target) -> None:
    records = flow(target, 60)
    plain, joined = trainer_of(target), trainer_of(target)
    want = [step.scored for step in plain.steps(CutSource(records, target, []), label_delay=8) if step.scored]
    found = [s.scored for s in joined.steps(CutSource(later(records, 8), target, [31]), label_delay="join") if s.scored]
    predicted = torch.cat([scored.predicted for scored in found if scored.predicted is not None])
    assert torch.allclose(predicted, torch.cat([scored.outputs for scored in want]), rtol=1e-9)


@pytest.mark.parametrize("engine", ["reference", "fused", "race"])
def test_chunks_of_answers_alone_are_learned(engine: str) -> None:
    """Of which the first comes after the last question; the fused engine has no question to answer then."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=30).tolist()
    asked = [{"id": f"k{n}", "a": value, "b": None, "t": None, "y": None} for n, value in enumerate(values)]
    answers = [{**asked[n], "a": None, "y": "yes" if value > 0 else "no"} for n, value in enumerate(values)]
    features = Features(Schema((Field("a", "number"),), CLASSES, id="id"))
    torch.manual_seed(0)
    model = nn.Linear(features.num_dense, 3)
    optimizer = None if engine == "race" else torch.optim.SGD(model.parameters(), lr=0.1)
    how = {"engine": "auto" if engine == "race" else engine}
    trainer = Trainer(model, "cross_entropy", optimizer, features=features, **how)
    summary = trainer.learn(CutSource([*asked, *answers], CLASSES, [30, 37, 52]), label_delay="join")
    assert summary.labels is not None and summary.labels["answered"] == summary.updates == 30
    assert trainer.metrics is not None and trainer.metrics.report()["count"] == 30
