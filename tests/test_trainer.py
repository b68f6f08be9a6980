"""The loop, and that a run which was cut anywhere ends bit-identical. Run: pytest tests/test_trainer.py"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import millstream
from millstream import checkpoint
from millstream.engines import FusedEngine
from millstream.errors import CheckpointError, DataError, DivergenceError, ModelError, SettingError
from millstream.phase import Step
from millstream.trainer import Trainer

NUM = 2000


def table(num: int = NUM, seed: int = 0) -> pa.Table:
    """Numbers, categories and gaps; the label depends on them."""
    rng = np.random.default_rng(seed)
    a, b, kind = rng.normal(5, 3, num), rng.exponential(2, num), rng.choice(["x", "y", "z"], num)
    label = np.where(a + b + (kind == "x") * 4 > 9, "high", np.where(b > 2, "middle", "low"))
    a[rng.random(num) < 0.05] = np.nan
    return pa.Table.from_pandas(pd.DataFrame({"a": a, "b": b, "kind": kind, "label": label}))


class Net(nn.Module):
    def __init__(self, features: millstream.Features) -> None:
        super().__init__()
        self.dense = nn.Linear(features.num_dense, 16)
        self.ids = nn.EmbeddingBag(features.num_ids, 16, mode="sum", padding_idx=0)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = self.rest(self.dense(inputs["dense"]) + self.ids(inputs["ids"]))
        return out


ENGINE = "auto"


@pytest.fixture(autouse=True, params=["reference", "fused"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds with each engine. Chunks are small, so that there are many of them."""
    monkeypatch.setattr(sys.modules[__name__], "ENGINE", request.param)
    monkeypatch.setattr(FusedEngine, "chunk_size", lambda self, size: self._reference.chunk_size(size))


def make(run: Path | None = None, **changes: Any) -> Trainer:
    """A trainer with everything that has state: features, dropout, Adam, a schedule."""
    features = millstream.Features(millstream.infer(table(), target="label"))
    torch.manual_seed(3)
    model = Net(features)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5000)
    settings_: dict[str, Any] = {"engine": ENGINE, "commit_seconds": 0, "report_records": 300, "window": 200, **changes}
    return Trainer(model, "cross_entropy", optimizer, features=features, scheduler=scheduler, run=run, **settings_)


def everything(trainer: Trainer) -> dict[str, Any]:
    """All state but the clock."""
    state = trainer.state_dict()
    state["phase"]["seconds"] = 0
    return state


def assert_same(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}.{place}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.tobytes() == b.tobytes(), path
    else:
        assert a == b or (a != a and b != b), path


def reopened(trainer: Trainer) -> Trainer:
    """What a new process would have: nothing but the run folder."""
    assert trainer.run is not None
    trainer.run.close()
    again = make()
    again.open(trainer.run.folder, resume=True)
    return again


def phase(trainer: Trainer, kind: str, resume: bool) -> Iterator[Step]:
    """Four chunks, or eight where there are two epochs."""
    trainer.learner.engine.chunk_size = lambda size: 128 // size * size  # type: ignore[method-assign]
    if kind == "fit":
        return trainer.steps(
            table(500), kind="fit", update_size=64, epochs=2, shuffle=True, validation=table(300, 1), resume=resume
        )
    return trainer.steps(
        table(500), update_size=1 if kind == "learn" else 3, label_delay=None if kind == "learn" else 37, resume=resume
    )


WHOLE: dict[tuple[str, str], tuple[dict[str, Any], bytes]] = {}
"""State and lines of runs that were not cut, by engine and kind."""


@pytest.mark.parametrize("kind", ["fit", "learn", "late"])
@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_a_run_that_is_cut_anywhere_ends_bit_identical(
    kind: str, cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = WHOLE.get((ENGINE, kind))
    if whole is None:
        whole_run = tmp_path_factory.mktemp("whole")
        uncut = make(whole_run, commit_seconds=1e9)
        for _ in phase(uncut, kind, resume=False):
            pass
        whole = WHOLE[ENGINE, kind] = everything(uncut), (whole_run / "metrics.jsonl").read_bytes()
    cut_run = tmp_path_factory.mktemp("cut")
    trainer = make(cut_run)
    for place, cut in enumerate(cuts):
        steps = phase(trainer, kind, resume=place > 0)
        for _, _ in zip(range(cut + 1), steps, strict=False):
            pass
        steps.close()
        trainer = reopened(trainer)
    for _ in phase(trainer, kind, resume=True):
        pass
    assert_same(whole[0], everything(trainer))
    assert whole[1] == (cut_run / "metrics.jsonl").read_bytes()


def test_resuming_at_the_end_changes_nothing_and_more_epochs_go_on(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.fit(table(), epochs=2)
    after_two = everything(trainer)
    again = trainer
    for _ in range(2):
        again = reopened(again)
        again.fit(table(), epochs=2, resume=True)
        assert_same(after_two["learner"], everything(again)["learner"])
    again.fit(table(), epochs=3, resume=True)
    at_once = make()
    at_once.fit(table(), epochs=3)
    assert_same(everything(at_once)["learner"], everything(again)["learner"])


def test_fit_then_learn_then_fit_keep_weights_optimizer_and_counters(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.fit(table(), batch_size=50, epochs=1)
    trainer.learn(table(500, 5))
    summary = trainer.fit(table(), batch_size=50, epochs=1)
    assert trainer.position == 2 * NUM + 500
    assert summary.updates == NUM // 50
    state = next(iter(trainer.learner.rule.optimizer.state.values()))
    assert state["step"] == 2 * NUM // 50 + 500
    assert_same(everything(trainer), everything(reopened(trainer)))


def test_learning_scores_each_record_before_it_is_learned() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 3), torch.randint(2, (50,))
    model = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    trainer = Trainer(model, optimizer=torch.optim.SGD(model.parameters(), 0.01))
    outputs = [step.scored.outputs for step in trainer.steps((x, y)) if step.scored]
    expected = []
    for record, label in zip(x, y, strict=True):
        out = twin(record[None])
        expected.append(out.detach())
        twin.zero_grad()
        nn.functional.cross_entropy(out, label[None]).backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 0.01 * parameter.grad  # type: ignore[operator]
    assert torch.allclose(torch.cat(outputs), torch.cat(expected), atol=1e-6)


def test_the_statistics_of_features_are_frozen_after_the_first_epoch() -> None:
    trainer = make()
    steps = phase(trainer, "fit", resume=False)
    seen = []
    for step in steps:
        if step.validation is not None:
            seen.append(trainer.learner.features.state_dict())  # type: ignore[union-attr]
    assert_same(seen[0], seen[1])


def test_numbers_are_scaled_and_told_in_their_own_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    frame = pa.table({"x": x, "y": 5000 + 300 * x + rng.normal(0, 10, 3000)})
    features = millstream.Features(millstream.infer(frame, target="y"))
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=0.05), features=features)
    summary = trainer.learn(frame)
    assert summary.metrics["window_mae"] < 30
    assert trainer.evaluate(frame)["mae"] < 30
    assert abs(float(trainer.predict(frame).mean()) - 5000) < 30


def test_the_same_run_with_and_without_saving(tmp_path: Path) -> None:
    saving, not_saving = make(tmp_path), make()
    saving.learn(table(1200))
    not_saving.learn(table(1200))
    assert_same(everything(saving), everything(not_saving))


def test_a_trainer_that_was_interrupted_within_a_chunk_does_not_save_half_of_it(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    steps = trainer.steps(table(1200))
    next(steps)
    trainer.learner.rule.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    with pytest.raises(CheckpointError, match="in the middle of a chunk"):
        trainer.commit()
    again = reopened(trainer)
    again.learn(table(1200), resume=True)
    whole = make()
    whole.learn(table(1200))
    assert_same(everything(whole), everything(again))


def test_diverging_stops_at_the_last_good_state(tmp_path: Path) -> None:
    x, y = torch.randn(900, 3), torch.randn(900)
    x[400:] = float("inf")
    model = nn.Linear(3, 1)
    trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=0.01), run=tmp_path, max_skips=50)
    with pytest.raises(DivergenceError, match="in a row"):
        trainer.learn((x, y))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    letters = [json.loads(line) for line in (tmp_path / "dead_letters.jsonl").read_text().splitlines()]
    assert letters[0]["position"] == 400
    assert "not finite" in letters[0]["reason"]
    state, _, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert torch.equal(state["learner"]["model"]["weight"], model.weight)


@pytest.mark.parametrize(
    ("model", "data", "error"),
    [
        (nn.Linear(4, 2), (torch.zeros(5, 3), torch.zeros(5).long()), "inputs of shape"),
        (nn.Linear(3, 2), (torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 0])), "label 2 at position 2.*2 outputs"),
        (nn.Linear(3, 2), (torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5).long()), "int64"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_at_once(model: nn.Module, data: Any, error: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ModelError, DataError), match=error):
        Trainer(model).learn(data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_named_columns_need_features() -> None:
    with pytest.raises(DataError, match="features=Features"):
        Trainer(nn.Linear(2, 2)).learn(table())


def test_a_run_is_not_overwritten_nor_shared_nor_mistaken(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    with pytest.raises(SettingError, match="open already"):
        make(tmp_path)
    trainer.learn(table(300))
    assert trainer.run is not None
    trainer.run.close()
    with pytest.raises(SettingError, match="add --resume"):
        make(tmp_path)
    other = Trainer(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="another model"):
        other.open(tmp_path, resume=True)
    assert other.run is not None
    other.run.close()
    same = make()
    same.open(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="update size 5"):
        same.learn(table(300), update_size=5, resume=True)


def test_a_validation_that_fails_ends_no_epoch(tmp_path: Path) -> None:
    def fresh(run: Path | None = None) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return Trainer(model, "cross_entropy", optimizer, scheduler=scheduler, scheduler_steps="epoch", run=run)

    data = (torch.randn(100, 3, generator=torch.Generator().manual_seed(1)), torch.arange(100) % 2)
    bad = (torch.zeros(4, 3), torch.zeros(4))
    trainer = fresh(tmp_path)
    with pytest.raises(DataError):
        trainer.fit(data, epochs=3, validation=pa.table({"x": [1.0]}))
    trainer.close()
    trainer = fresh()
    trainer.open(tmp_path, resume=True)
    trainer.fit(data, epochs=3, validation=data, resume=True)
    whole = fresh()
    whole.fit(data, epochs=3, validation=data)
    assert trainer.learning_rate == whole.learning_rate == pytest.approx(0.0125)
    assert_same(everything(whole)["learner"], everything(trainer)["learner"])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    with pytest.raises(DataError, match="whole numbers"):
        fresh().learn(bad)


def test_labels_that_no_output_stands_for_are_refused_wherever_they_come() -> None:
    x, y = torch.randn(2000, 3), torch.zeros(2000).long()
    y[1700] = 5
    trainer = Trainer(nn.Linear(3, 2), engine="reference")
    with pytest.raises(DataError, match="label 5 at position 1700"):
        trainer.learn((x, y))
    assert trainer.position == 1536, "what came before is learned"
    y[0] = -1
    with pytest.raises(DataError, match="label -1 at position 0"):
        Trainer(nn.Linear(3, 2)).learn((x, y))


def test_what_was_learned_before_a_bad_label_is_committed(tmp_path: Path) -> None:
    x, y = torch.randn(2000, 3), torch.zeros(2000).long()
    y[1700] = 5
    trainer = Trainer(nn.Linear(3, 2), engine="reference", run=tmp_path)
    with pytest.raises(DataError, match="label 5"):
        trainer.learn((x, y))
    assert checkpoint.newest(tmp_path / "checkpoints")[0]["position"] == 1536


def test_the_place_of_refused_records_does_not_depend_on_cuts_when_labels_are_late() -> None:
    frame = table(3000)
    label = frame["label"].to_pylist()
    label[900:2100] = ["unheard of"] * 1200
    frame = frame.set_column(frame.schema.get_field_index("label"), "label", pa.array(label))
    found = []
    for size in (256, 1000):
        trainer = make()
        trainer.learner.features = millstream.Features(trainer.learner.features.schema, on_error="quarantine")  # type: ignore[union-attr]
        trainer.learner.engine.chunk_size = lambda _, size=size: size  # type: ignore[method-assign]
        trainer.learn(frame, label_delay=300)
        found.append(everything(trainer))
    assert found[0]["position"] == found[1]["position"]
    assert_same(found[0]["learner"], found[1]["learner"])


def test_a_plateau_scheduler_waits_for_epochs() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
    trainer = Trainer(model, "cross_entropy", optimizer, scheduler=plateau)
    trainer.fit((torch.randn(64, 3), torch.randint(2, (64,))), epochs=4)
    assert trainer.learning_rate == pytest.approx(1e-6)


PROGRAM = """
import sys, time, torch, test_trainer
trainer = test_trainer.make(commit_seconds=0.02)
trainer.open(sys.argv[1], resume=sys.argv[2] == "resume")
print("ready", flush=True)
for step in test_trainer.phase(trainer, sys.argv[3], resume=sys.argv[2] == "resume"):
    time.sleep(0.03)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fit", "late"])
def test_a_process_that_is_killed_again_and_again_ends_bit_identical(kind: str, tmp_path: Path) -> None:
    whole = make()
    for _ in phase(whole, kind, resume=False):
        pass
    rng = np.random.default_rng(len(kind))
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    kills = 0
    for attempt in range(30):
        committed = (tmp_path / "checkpoints").is_dir() and any((tmp_path / "checkpoints").glob("[0-9]*"))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), "resume" if committed else "begin", kind]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as lines:
            assert lines.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0, 0.25)) if attempt < 6 else 0)
        if attempt < 6:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        else:
            assert process.wait() == 0
            break
    assert kills >= 3
    state, _, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert_same(everything(whole)["learner"], state["learner"])
    assert_same(everything(whole)["books"], state["books"])
