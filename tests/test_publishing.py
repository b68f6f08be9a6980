"""What is published: when, whole, and by a gate. Run: pytest tests/test_publishing.py"""

import json
import multiprocessing
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from millstream import assembly, publishing
from millstream.assembly import Recipe, follow
from millstream.contracts import Event
from millstream.errors import CheckpointError, SettingError, StorageError
from millstream.metrics import Metrics
from millstream.publishing import Gate, GateState, Publisher, Reading
from millstream.publishing.publications import publish
from millstream.schema import Field, Schema, Target
from millstream.trainer import Trainer

SCHEMA = Schema((Field("a", "number"), Field("b", "number")), Target("y", "class", classes=("no", "yes")))


def table(num_records: int, seed: int = 0, noise: float = 0.0) -> dict[str, list[Any]]:
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(2, num_records))
    label = (a > b) ^ (draws.random(num_records) < noise)
    return {"a": a.tolist(), "b": b.tolist(), "y": ["yes" if one else "no" for one in label]}


def recipe(**changes: Any) -> Recipe:
    plain = {"model": "mlp:8", "optimizer": "sgd", "learning_rate": 0.1, "engine": "reference"}
    return Recipe(SCHEMA, **{**plain, **changes})


def learn(trainer: Trainer, data: Any, publisher: Publisher) -> list[Event]:
    """The few lines that a loop needs."""
    events: list[Event] = []
    for _ in trainer.steps(data):
        events += publisher.after_chunk(trainer.learner, trainer.metrics, trainer.position, spec=trainer.spec)
    return events


def published(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


# ---------------------------------------------------------------- the gate

readings = st.builds(
    Reading,
    metric=st.just("accuracy"),
    mean=st.floats(0, 1) | st.just(float("nan")),
    error=st.floats(0, 0.05),
    count=st.integers(0, 1000),
    gain=st.floats(-0.1, 0.5),
    gain_error=st.floats(0, 0.02),
)
walks = st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 1), st.none() | readings), max_size=30)


@settings(max_examples=200, deadline=None)
@given(walks, st.lists(st.booleans(), min_size=30, max_size=30))
def test_a_gate_decides_the_same_wherever_it_was_saved(walk: list[tuple[Any, ...]], saved: list[bool]) -> None:
    gate = Gate(patience=10_000)
    whole, cut, position, phase = GateState(), GateState(), 0, 0
    for (step, next_phase, reading), is_saved in zip(walk, saved, strict=False):
        position, phase = position + step, phase + next_phase
        if is_saved:
            cut = GateState.from_json(json.loads(json.dumps(cut.to_json())))
        whole, reason = gate.decide(whole, reading, position=position, phase=phase)
        cut, other = gate.decide(cut, reading, position=position, phase=phase)
        assert (whole, reason) == (cut, other)
        if reason == "":
            assert reading.gain >= -gate.tolerance * reading.gain_error
            assert whole == GateState(reading, phase)
        elif reason:
            assert whole.closed_at is not None


@settings(max_examples=200, deadline=None)
@given(walks, readings)
def test_a_gate_never_stays_shut_for_longer_than_its_patience(walk: list[tuple[Any, ...]], last: Reading) -> None:
    """Of what is no worse than a guess."""
    gate, state, position = Gate(patience=10_000), GateState(), 0
    for step, _, reading in walk:
        position += step
        state, _ = gate.decide(state, reading, position=position)
    if last.count >= gate.minimum and np.isfinite(last.mean) and last.gain >= 0:
        state, reason = gate.decide(state, last, position=position)
        if reason:
            assert gate.decide(state, last, position=position + 10_000)[1] == ""


def test_noise_alone_closes_a_gate_about_as_often_as_two_standard_errors_say() -> None:
    draws = np.random.default_rng(0)
    gate, state, closed = Gate(), GateState(), 0
    for look in range(2000):
        metrics = Metrics("classes", 2, window=500)
        hits = torch.from_numpy(draws.random(500) < 0.8)
        targets = torch.from_numpy(draws.integers(2, size=500))
        logits = torch.nn.functional.one_hot(torch.where(hits, targets, 1 - targets), 2).float()
        metrics.update(logits, targets, torch.ones(500))
        state, reason = gate.decide(state, gate.read(metrics), position=500 * look)
        closed += bool(reason)
    assert 0.005 < closed / 2000 < 0.06


def test_a_real_drop_closes_it_at_once_and_a_return_opens_it() -> None:
    gate = Gate()
    state, _ = gate.decide(GateState(), Reading("mae", 1.0, 0.02, 1000), position=1000)
    state, reason = gate.decide(state, Reading("mae", 1.2, 0.02, 1000), position=2000)
    assert "mae 1.2 after 1 when last published" in (reason or "")
    state, reason = gate.decide(state, Reading("mae", 1.04, 0.02, 1000), position=3000)
    assert reason == "" and state.closed_at is None and state.reference is not None and state.reference.mean == 1.04
    worse = Reading("mae", 0.9, 0.02, 1000, gain=-0.1, gain_error=0.01, baseline="mean_mae")
    for position in (4000, 400_000):
        state, reason = gate.decide(state, worse, position=position)
        assert "worse than mean_mae by 0.1" in (reason or "")


@pytest.mark.parametrize(
    ("task", "metric", "name"),
    [
        ("classes", "auto", "accuracy"),
        ("classes", "log_loss", "log_loss"),
        ("number", "auto", "mae"),
        ("other", "auto", "loss"),
    ],
)
def test_a_reading_is_what_the_metrics_report(task: str, metric: str, name: str) -> None:
    metrics = Metrics(task, 3 if task == "classes" else 1, window=200)
    gate = Gate(metric=metric)
    assert gate.read(metrics) is None
    outputs = torch.randn(500, 3) if task == "classes" else torch.randn(500)
    targets = torch.randint(3, (500,)) if task == "classes" else torch.randn(500)
    metrics.update(outputs, targets, torch.rand(500))
    reading, report = gate.read(metrics), metrics.report()
    assert reading is not None and reading.metric == name and reading.count == 200
    assert reading.mean == pytest.approx(report[f"window_{name}"])
    if reading.baseline:
        gain = report[f"window_{name}"] - report[f"window_{reading.baseline}"]
        assert reading.gain == pytest.approx(gain if name == "accuracy" else -gain)
    with pytest.raises(SettingError, match="a metric and a baseline of this task"):
        Gate(metric="mae" if task == "classes" else "accuracy").read(metrics)


def test_settings_that_cannot_be() -> None:
    for settings_ in ({"metric": "f1"}, {"baseline": "luck"}, {"tolerance": -1}, {"patience": 0}):
        with pytest.raises(SettingError):
            Gate(**settings_)
    with pytest.raises(SettingError):
        Publisher("x", every=0)
    with pytest.raises(SettingError):
        Publisher("x", keep=1)


# ---------------------------------------------------------------- publishing


@pytest.mark.parametrize(
    "changes", [{}, {"race": ("mlp:8", "linear")}, {"average": 0.99}, {"optimizer": "auto", "learning_rate": None}]
)
def test_a_replica_answers_as_the_trainer_did(changes: dict[str, Any], tmp_path: Path) -> None:
    trainer = assembly.build(recipe(**changes))
    publisher = Publisher(tmp_path, every=100)  # so after each chunk
    learn(trainer, table(1500), publisher)
    replica, questions = follow(tmp_path), table(50, seed=1)
    assert replica.position == trainer.position == 1500
    assert torch.equal(replica.predict(questions), trainer.predict(questions))
    assert not replica.refresh()
    learn(trainer, table(600, seed=2), publisher)
    assert replica.refresh()
    assert replica.position == 2100
    assert torch.equal(replica.predict(questions), trainer.predict(questions))
    assert replica.evaluate(questions)["accuracy"] == trainer.evaluate(questions)["accuracy"]


def test_a_replica_of_a_python_object_needs_it(tmp_path: Path) -> None:
    def made(model: nn.Module) -> Trainer:
        return Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1), engine="reference")

    trainer, data = made(nn.Linear(3, 2)), (torch.randn(300, 3), torch.randint(2, (300,)))
    learn(trainer, data, Publisher(tmp_path, every=100))
    with pytest.raises(CheckpointError, match="give the trainer as well"):
        follow(tmp_path)
    other = made(nn.Linear(3, 2))
    before = other.predict(data)
    replica = follow(tmp_path, other)
    assert torch.equal(replica.predict(data), trainer.predict(data))
    assert torch.equal(other.predict(data), before)
    with pytest.raises(CheckpointError, match="another model"):
        follow(tmp_path, made(nn.Linear(4, 2)))


def test_a_run_that_resumes_publishes_the_same(tmp_path: Path) -> None:
    """Stopped after any chunk, with a publication in between that no checkpoint knows."""
    data, gate = table(6000), Gate(minimum=50)
    calm = Publisher(tmp_path / "calm", every=700, gate=gate, keep=100)
    learn(assembly.build(recipe(), run=tmp_path / "run-calm"), data, calm)
    folder = tmp_path / "cut"
    for stop_after, lost in ((3, 2), (5, 4), (1, 1), (None, 0)):
        run = tmp_path / "run-cut"
        publisher = Publisher(folder, every=700, gate=gate, keep=100)
        is_new = not run.exists()
        trainer = assembly.build(recipe(), run=run) if is_new else assembly.load(run)
        if not is_new:
            publisher.load_state_dict(json.loads((tmp_path / "state.json").read_text()))
        for number, _ in enumerate(trainer.steps(data, resume=not is_new)):
            publisher.after_chunk(trainer.learner, trainer.metrics, trainer.position, spec=trainer.spec)
            if number == stop_after:
                trainer.commit()
                (tmp_path / "state.json").write_text(json.dumps(publisher.state_dict()))
            if stop_after is not None and number == stop_after + lost:
                break
        trainer.close()
    assert published(folder) == published(tmp_path / "calm") and len(published(folder)) >= 7
    for path in sorted((tmp_path / "calm").rglob("*.*")):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(tmp_path / "calm")).read_bytes(), path
    with pytest.raises(SettingError, match="another run has published"):
        learn(assembly.build(recipe()), data, Publisher(folder, every=700))
    with pytest.raises(CheckpointError, match="as often"):
        Publisher(folder, every=800).load_state_dict(publisher.state_dict())


def test_a_gate_keeps_the_last_good_ones_and_tells_it_once(tmp_path: Path) -> None:
    """Labels become noise for a while; then the world is as it was."""
    trainer = assembly.build(recipe(window=500))
    publisher = Publisher(tmp_path, every=512, gate=Gate(), keep=100)
    events = learn(trainer, table(5000), publisher)
    good = published(tmp_path)[-1]
    events += learn(trainer, table(3000, seed=1, noise=0.5), publisher)
    assert [event.what for event in events] == ["publishing stopped"]
    assert f"what was published at {published(tmp_path)[-1]} stays" in events[0].detail
    assert follow(tmp_path).position == published(tmp_path)[-1] < 5000 + 1024 and not publisher.is_open
    assert follow(tmp_path).metric == {"name": "accuracy", "mean": pytest.approx(0.97, abs=0.05)} and good <= 5000
    events = learn(trainer, table(6000, seed=2), publisher)
    assert [event.what for event in events] == ["publishing goes on"] and publisher.is_open
    assert published(tmp_path)[-1] > 12_000


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path) -> None:
    trainer = assembly.build(recipe())
    publisher = Publisher(tmp_path, every=100)
    learn(trainer, table(600), publisher)
    with torch.no_grad():
        saved = [parameter.clone() for parameter in trainer.learner.rule.model.parameters()]
        next(trainer.learner.rule.model.parameters())[0] = float("nan")
    events = publisher.after_chunk(trainer.learner, trainer.metrics, 700)
    assert events[0].what == "publishing stopped" and "not finite" in events[0].detail
    assert publisher.after_chunk(trainer.learner, trainer.metrics, 800) == ()
    assert follow(tmp_path).position == 600
    with torch.no_grad():
        for parameter, value in zip(trainer.learner.rule.model.parameters(), saved, strict=True):
            parameter.copy_(value)
    assert (
        publisher.after_chunk(trainer.learner, trainer.metrics, 900, spec=trainer.spec)[0].what == "publishing goes on"
    )
    assert follow(tmp_path).position == 900


# ---------------------------------------------------------------- readers


def test_a_damaged_one_is_never_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing published"):
        follow(tmp_path)
    trainer = assembly.build(recipe())
    publisher = Publisher(tmp_path, every=100)
    learn(trainer, table(600), publisher)
    replica, questions = follow(tmp_path), table(20, seed=3)
    before = replica.predict(questions)
    learn(trainer, table(600, seed=1), publisher)
    (newest,) = [path for path in tmp_path.iterdir() if path.name == f"{trainer.position:010d}"]
    for name in ("weights.safetensors", "state.json", "manifest.json"):
        content = (newest / name).read_bytes()
        for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2], b""):
            (newest / name).write_bytes(damaged)
            assert not replica.refresh() and "damaged" in replica.problem
            assert torch.equal(replica.predict(questions), before)
            with pytest.raises(CheckpointError, match="damaged"):
                publishing.newest(tmp_path)
        (newest / name).write_bytes(content)
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(StorageError, match="does not read"):
        follow(tmp_path)
    assert not replica.refresh() and replica.problem
    # A whole publication under the name of another is not what current.json says, either.
    shutil.copytree(tmp_path / "0000000600", tmp_path / "0000000999")
    facts = {"folder": "0000000999", "position": 999, "sha256": "0" * 64}
    (tmp_path / "current.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError):
        follow(tmp_path)


def publish_on(folder: Path, num: int) -> None:
    for number in range(1, num + 1):
        publish(
            folder, {"position": number, "metric": None, "model": {"w": torch.full((2000,), float(number))}}, keep=2
        )


def test_readers_beside_a_writer_see_whole_ones_that_only_become_newer(tmp_path: Path) -> None:
    publish_on(tmp_path, 1)
    writer = multiprocessing.get_context("fork").Process(target=publish_on, args=(tmp_path, 150))
    writer.start()
    seen, known = [0], ""
    while writer.is_alive():
        try:
            found = publishing.newest(tmp_path, known)
        except CheckpointError:  # gone meanwhile, and said so; the next look finds the next one
            continue
        if found is not None:
            known = found.sha256
            assert (found.state["model"]["w"] == found.position).all() and found.state["position"] == found.position
            assert found.position >= seen[-1] or found.position == 1
            seen.append(found.position)
    writer.join()
    assert writer.exitcode == 0 and len(seen) > 3
    last = publishing.newest(tmp_path)
    assert last is not None and last.position == 150
    assert published(tmp_path) == [149, 150]


def test_a_publisher_that_is_killed_leaves_whole_ones(tmp_path: Path) -> None:
    draws = random.Random(0)
    publish_on(tmp_path, 1)
    for _ in range(25):
        writer = multiprocessing.get_context("fork").Process(target=publish_on, args=(tmp_path, 1000))
        writer.start()
        writer.join(draws.uniform(0, 0.15))
        writer.kill()
        writer.join()
        found = publishing.newest(tmp_path)
        assert found is not None and (found.state["model"]["w"] == found.position).all()
