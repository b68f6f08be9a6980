"""What a fit finds by itself: batch size, noise, end, memory, schedules. Run: pytest tests/test_controllers.py"""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import millstream
from millstream import losses
from millstream.assembly.optimizers import OPTIMIZERS, made
from millstream.contracts import Chunk, GradientNorms
from millstream.controllers import NoiseScale, Plan, largest_batch
from millstream.controllers.batches import BatchSize
from millstream.controllers.memory import bytes_per_record, largest_that_runs
from millstream.controllers.patience import Patience
from millstream.engines import Candidate, ReferenceEngine, UpdateRule
from millstream.engines.heats import HEATS, Heats
from millstream.errors import CheckpointError, MissingPackageError, SettingError
from millstream.trainer import Trainer

RATES = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate, momentum=0.9)) for rate in (0.1, 1e-5)]


def records(num: int = 3000, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))
    return x, (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.5 * x[:, 3] ** 2 > 0).long()


def table(num: int = 2000) -> pa.Table:
    """Records of which one in ten has another label, so that gradients have noise."""
    x, y = records(num)
    y[::10] = 1 - y[::10]
    return pa.table({**{name: x[:, k].numpy() for k, name in enumerate("abcd")}, "y": y.numpy()})


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))


def rule_of(model: nn.Module) -> UpdateRule:
    return UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.0))


# ---------------------------------------------------------------- the race of a fit


def test_the_better_half_goes_on_after_each_heat_and_nobody_runs_again() -> None:
    heats, rng, stopped = Heats(7), np.random.default_rng(0), []
    for _ in range(sum(HEATS) // 512):
        heats.see(rng.random((7, 512)) + np.arange(7)[::-1, None])
        stopped.append(heats.close())
    assert [each for each in stopped if each] == [[0, 1, 2], [3, 4], [5]]
    assert heats.leader == 6 and heats.is_over and not heats.is_time_to_reopen() and heats.reopen() == []


def test_a_fit_with_nothing_given_learns_and_ends_by_itself() -> None:
    trainer = Trainer(net(), features=None)
    summary = trainer.fit(records())
    assert summary.finished and 3 <= summary.epochs < 60
    assert summary.test is not None and summary.test["accuracy"] > 0.9
    assert summary.test == trainer.evaluate(_held_out())  # the weights are those that it speaks of
    assert summary.update_size >= 32 and trainer._controller.noise.num_measured > 10


def _held_out() -> Any:
    return millstream.hold_out(millstream.as_source(records()), 0.1, seed=0)[1]


@pytest.mark.parametrize("num", [12, 300])
def test_few_records_are_enough(num: int) -> None:
    trainer = Trainer(net(), "cross_entropy", RATES)
    summary = trainer.fit(records(num))
    assert summary.finished and summary.seconds < 10
    assert (summary.test is None) == (num < 50)
    assert trainer.evaluate(records(num))["accuracy"] > 0.8


def test_learning_online_goes_on_from_a_fit_with_copies_of_its_own() -> None:
    trainer = Trainer(net())
    trainer.fit(records(), epochs=2)
    before = trainer.evaluate(records(500, 1))
    trainer.learn(records(10, 2))
    assert trainer.learner.engine.optimizer in [c.name for c in millstream.engines.candidates()]
    assert trainer.evaluate(records(500, 1))["accuracy"] > before["accuracy"] - 0.1


# ---------------------------------------------------------------- resuming


def make(kind: str, folder: Path | None, seed: int = 0) -> Trainer:
    model = net(seed)
    optimizer: Any = RATES if kind == "race" else made(kind, None if kind == "prodigy" else 0.03, 0.0, model)
    parts = millstream.Features(millstream.infer(table(50), target="y"))
    return Trainer(model, optimizer=optimizer, features=parts, run=folder, commit_seconds=0, report_records=500)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("race", {}),
        ("adam", {}),
        ("schedulefree", {"update_size": 32, "epochs": 3}),
        ("prodigy", {"update_size": 32, "epochs": 4, "schedule": "cosine", "warmup": 0.1}),
    ],
)
def test_a_fit_is_resumed_to_the_last_bit_wherever_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: dict[str, Any]
) -> None:
    monkeypatch.setattr("millstream.controllers.batches._LEAST_UPDATES", 10)
    monkeypatch.setattr("millstream.controllers.batches._NOISE_PER_RECORD", 0.01)  # so that the batch grows soon
    words: Any = {"kind": "fit", "shuffle": True, "update_size": "auto", "epochs": "auto", **how}
    source = millstream.as_source(table())
    whole = make(kind, tmp_path / "whole")
    steps = list(whole.steps(source, **words))
    if kind == "race":
        assert {step.update_size for step in steps} > {32}
    for number, place in enumerate({1, len(steps) // 2, len(steps) - 2}):
        cut = make(kind, tmp_path / f"cut{number}")
        for count, _ in enumerate(cut.steps(source, **words)):
            if count == place:
                break
        cut.close()
        again = make(kind, None, seed=1)
        again.open(tmp_path / f"cut{number}", resume=True)
        for _ in again.steps(source, **words, resume=True):
            pass
        for mine, its in zip(again.learner.rule.model.parameters(), whole.learner.rule.model.parameters(), strict=True):
            assert torch.equal(mine, its)
        for name in ("metrics.jsonl", "events.jsonl"):
            assert (tmp_path / f"cut{number}" / name).read_text() == (tmp_path / "whole" / name).read_text()
        again.close()


def test_a_resumed_fit_is_what_it_began_as(tmp_path: Path) -> None:
    trainer = make("adam", tmp_path)
    trainer.fit(table(), epochs=2)
    trainer.close()
    for words, said in (({"batch_size": 32}, "update size 32"), ({"epochs": "auto"}, "epochs|source")):
        again = make("adam", None)
        again.open(tmp_path, resume=True)
        with pytest.raises(CheckpointError, match=said):
            again.fit(table(), **{"epochs": 2, **words}, resume=True)  # type: ignore[arg-type]
        again.close()


# ---------------------------------------------------------------- noise


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 1e4), st.integers(1, 64))
def test_norms_at_their_expectations_give_the_noise_scale(gradient: float, variance: float, size: int) -> None:
    noise = NoiseScale()
    for num in (5, 40, 3):
        noise.see([GradientNorms(size, num, gradient + variance / size, variance, 1)])
    assert math.isclose(noise.value or 0, variance / gradient, rel_tol=1e-6)
    again = NoiseScale()
    again.load_state_dict(noise.state_dict())
    assert again.value == noise.value


def test_what_is_measured_while_training_is_the_noise_of_the_gradient() -> None:
    x, y = records(8192)
    model = net()
    model.eval()  # no dropout: it would be noise, too
    each = torch.stack(
        [torch.cat([g.flatten() for g in _gradient(model, x[k : k + 1], y[k : k + 1])]) for k in range(2000)]
    )
    expected = each.var(0).sum() / each.mean(0).square().sum()
    noise, engine = NoiseScale(), ReferenceEngine(rule_of(model))  # its rate is 0
    for start in range(0, 8192, 512):
        noise.see(engine.learn(Chunk(x[start : start + 512], y[start : start + 512], start=start), 16).norms)
    assert noise.num_measured >= 16
    assert 0.5 < (noise.value or 0) / expected < 2


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))


def test_measuring_changes_no_update() -> None:
    """Weights are those of the plain loop, and so is what dropout and statistics of a batch come to."""
    data = records(640)
    found = []
    for size in (64, 64):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        engine = ReferenceEngine(rule_of(model))
        engine.rule.optimizer.param_groups[0]["lr"] = 0.1
        start = 0 if not found else 64  # then no update is measured
        norms = engine.learn(Chunk(*data, start=start), size).norms
        assert (norms[0].num_measured == 0) == bool(start)
        found.append((model, norms))
    first, second = (dict(model.state_dict()) for model, _ in found)
    assert torch.equal(first["1.num_batches_tracked"], second["1.num_batches_tracked"])


def test_the_batch_doubles_while_it_is_small_against_the_noise() -> None:
    size = BatchSize(32, most=512)
    assert [size.next(100.0, 99), size.next(None, 99), size.next(math.inf, 99), size.next(1e9, 99)] == [32, 32, 64, 64]


# ---------------------------------------------------------------- patience, memory


def test_patience_survives_its_state() -> None:
    rng, patience = np.random.default_rng(0), Patience()
    for score in rng.random(4):
        patience.after_epoch(score)
    again = Patience()
    again.load_state_dict(copy.deepcopy(patience.state_dict()))
    scores = rng.random(8).tolist()
    assert [again.after_epoch(s) for s in scores] == [patience.after_epoch(s) for s in scores]


def test_the_largest_batch_is_found_and_leaves_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    rule, chunk = rule_of(model), Chunk(*records(3))
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert largest_batch(rule, chunk, 1000) == 512
    assert largest_that_runs(rule, chunk, 64) == 64
    assert bytes_per_record(rule, chunk) >= 3 * 4 * (8 + 2)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_device_that_is_full_bounds_the_batch() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 100:
                raise torch.OutOfMemoryError("full")
            out: Tensor = self.line(x)
            return out

    assert largest_that_runs(rule_of(Full()), Chunk(*records(3)), 4096) == 32


def test_little_memory_bounds_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, chunk = rule_of(net()), Chunk(*records(3))
    each = bytes_per_record(rule, chunk)
    monkeypatch.setattr("millstream.controllers.memory.free_bytes", lambda: 200 * each)
    assert largest_batch(rule, chunk, 4096) == 64


# ---------------------------------------------------------------- optimizers and schedules


def test_schedule_free_weights_answer_and_are_saved_and_others_are_trained() -> None:
    model = net()
    optimizer: Any = made("schedulefree", 0.01, 0.0, model)
    trainer = Trainer(model, optimizer=optimizer)
    trainer.fit(records(), epochs=3, batch_size=32)
    assert not optimizer.param_groups[0]["train_mode"]
    answering = model[0].weight.detach().clone()
    optimizer.train()
    assert not torch.equal(answering, model[0].weight)
    optimizer.eval()
    trainer.learn(records(50))  # predicted with the weights that answer
    assert not optimizer.param_groups[0]["train_mode"]
    assert trainer.evaluate(records(500, 1))["accuracy"] > 0.8


def test_an_optimizer_that_finds_its_rate_needs_none() -> None:
    model = net()
    optimizer: Any = made("prodigy", None, 0.0, model)
    Trainer(model, optimizer=optimizer).fit(records(), epochs=6, batch_size=32)
    assert optimizer.param_groups[0]["d"] > 1e-4  # from 1e-6


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("schedulefree", "prodigyopt"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for name in ("schedulefree", "prodigy"):
        with pytest.raises(MissingPackageError, match=r"pip install 'millstream\[optimizers\]'"):
            made(name, 0.1, 0.0, net())
    assert set(OPTIMIZERS) > {"schedulefree", "prodigy"}


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_a_schedule_rises_falls_and_is_gone_in_the_next_phase(name: str) -> None:
    model = net()
    trainer = Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.2))
    how: Any = {"kind": "fit", "epochs": 4, "update_size": 50, "schedule": name, "warmup": 0.25}
    rates = [step.learning_rate for step in trainer.steps(records(1000), **how) if step.scored]
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert rates[-1] == pytest.approx(0.2 if name == "constant" else 0.0, abs=0.01)
    trainer.learn(records(10))
    assert trainer.learning_rate == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"schedule": "cosine"}, "length is not known"),
        ({"schedule": "cubic", "epochs": 2}, "schedule 'cubic'"),
        ({"schedule": "cosine", "epochs": 2}, "beside rates that race"),
        ({"warmup": 2.0, "epochs": 2}, "warmup=2"),
        ({"batch_size": 0}, "an update size of 0"),
        ({"batch_size": "big"}, "an update size of big"),
    ],
)
def test_what_cannot_be_planned_is_refused(how: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Trainer(net(), optimizer=RATES).fit(records(100), **how)


def test_a_scheduler_of_a_person_keeps_the_rate() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer=optimizer, scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    summary = trainer.fit(records())
    assert summary.finished and summary.learning_rate == 0.1


def test_plans_survive_json() -> None:
    plan = Plan("auto", 3, "linear", 0.1)
    assert Plan(**plan.to_json()) == plan and plan.most_epochs == 3
