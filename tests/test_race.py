"""Rates that race: the standings, the engine, its state, and factored second moments. Run: pytest tests/test_race.py"""

import copy
import itertools
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
from millstream.contracts import Chunk, Outcome, Questions
from millstream.delay import Delay, LabelDelay
from millstream.engines import (
    Candidate,
    FactoredRMSprop,
    FusedEngine,
    RaceEngine,
    ReferenceEngine,
    Several,
    UpdateRule,
    answering,
    candidates,
    candidates_around,
    standings,
)
from millstream.engines.standings import Standings
from millstream.errors import CheckpointError, LearningError, SettingError
from millstream.trainer import Trainer

FEW = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.05, 0.001, 5.0)]


def records(num: int = 3000, seed: int = 0, turn: int | None = None) -> tuple[Tensor, Tensor]:
    """A line through a plane; from ``turn`` on the labels are the other way round."""
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed))
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()
    if turn is not None:
        y[turn:] = 1 - y[turn:]
    return x, y


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


class Picky(nn.Module):
    """A model that fails at large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if (x > 1e6).any():
            raise ValueError("too large")
        out: Tensor = self.line(x)
        return out


def race(of: list[Candidate] | None = None, engine: str = "reference") -> RaceEngine:
    model = net()
    rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.0))
    return RaceEngine(rule, of or FEW, engine)


def learned(engine: RaceEngine, cuts: list[int], data: tuple[Tensor, Tensor], delay: int = 0) -> list[Outcome]:
    """All records in chunks that end at ``cuts``."""
    late = LabelDelay(Delay(records=delay), 1) if delay else None
    found, position = [], 0
    for first, last in zip([0, *cuts], [*cuts, len(data[0])], strict=True):
        chunk = Chunk(data[0][first:last], data[1][first:last], start=first)
        questions: Questions | None = None
        if late is not None:
            arrivals = late.arrive(chunk)
            chunk, questions = arrivals.lessons, arrivals.questions
            chunk.start = position
            position += len(chunk)
        found.append(engine.learn(chunk, 1, questions))
    return found


# ---------------------------------------------------------------- who leads


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=6), st.integers(0, 2**31))
def test_whoever_has_the_least_discounted_sum_leads_and_cuts_change_no_bit(cuts: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).random((3, 400))
    whole, cut = Standings(3), Standings(3)
    found = whole.see(scores)
    edges = sorted({min(c, 400) for c in np.cumsum(cuts).tolist()} | {0, 400})
    pieces = [cut.see(scores[:, a:b])[:-1] for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), found[:-1])
    sums, leader = np.zeros(3), 0
    for n in range(400):
        if sums[leader] - sums.min() > standings._AHEAD + 1e-9:
            leader = int(sums.argmin())
        assert leader == found[n] or abs(sums[leader] - sums[found[n]]) < standings._AHEAD + 1e-6
        leader = int(found[n])
        sums = standings.KEPT * sums + scores[:, n]


def test_a_copy_without_a_chance_is_stopped_and_runs_again_later() -> None:
    found, rng = Standings(3), np.random.default_rng(0)
    stopped = []
    for _ in range(6):
        found.see(np.stack([rng.random(512), rng.random(512) * 0.98, rng.random(512) + 1]))
        stopped += found.close()
    assert stopped == [2] and found.running.tolist() == [True, True, False]
    assert not found.is_time_to_reopen()
    for _ in range(20):
        found.see(np.stack([rng.random(512), rng.random(512) * 0.98, np.full(512, np.nan)]))
        found.close()
    assert found.is_time_to_reopen()
    assert set(found.reopen()) == {0, 2} and found.running.all()  # 0 is no better than 1, which has led for long


def test_like_copies_are_stopped_only_after_one_has_led_for_long() -> None:
    found, rng, stopped = Standings(3), np.random.default_rng(0), []
    for _ in range(12):
        same = rng.random(512)
        found.see(np.stack([same, same, same]))
        stopped.append(found.close())
    assert [len(each) for each in stopped] == [0] * 7 + [1, 0, 1, 0, 0] and found.leader == 0


def test_a_leader_that_is_suddenly_far_worse_is_lost() -> None:
    found, rng = Standings(2), np.random.default_rng(0)
    for _ in range(4):
        found.see(rng.random((2, 512)) * 0.1)
        assert not found.is_lost()
        found.close()
    found.see(rng.random((2, 512)) * 0.5)
    assert found.is_lost()


# ---------------------------------------------------------------- the engine


def test_the_best_rate_answers_and_the_person_sees_its_weights() -> None:
    engine, data = race(), records()
    outcomes = learned(engine, [1000, 2000], data)
    assert engine.optimizer == "sgd 0.05" and engine.learning_rate == 0.05
    right = (outcomes[-1].outputs.argmax(1) == data[1][2000:]).double().mean()
    assert right > 0.93
    for shown, its in zip(engine.rule.model.parameters(), engine._leading.rule.model.parameters(), strict=True):
        assert shown.data_ptr() == its.data_ptr()
    assert torch.equal(engine.predict(data[0]), engine._leading.engine.predict(data[0]))
    events = [event for outcome in outcomes for event in outcome.events]
    assert any(event.what == "stopped" and event.detail == "sgd 5" for event in events)


def test_one_candidate_is_that_optimizer_alone() -> None:
    engine, data, model = race(FEW[:1]), records(700), net()
    rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.05))
    outcome = ReferenceEngine(rule).learn(Chunk(*data), 1)
    assert torch.equal(learned(engine, [], data)[0].outputs, outcome.outputs)


@pytest.mark.parametrize("delay", [0, 30, 600])
@pytest.mark.parametrize("cuts", [[1, 2, 512, 513], [511, 700, 1024], [100, 640, 1111]])
def test_where_chunks_are_cut_changes_nothing(delay: int, cuts: list[int]) -> None:
    data = records(1200, turn=700)
    whole, cut = race(), race()
    expected = torch.cat([outcome.outputs for outcome in learned(whole, [], data, delay)])
    found = torch.cat([outcome.outputs for outcome in learned(cut, cuts, data, delay)])
    # Those with late labels are predicted for several records at once, and their last bits depend on how many.
    assert torch.allclose(found, expected, atol=0 if not delay else 1e-5)
    assert cut.optimizer == whole.optimizer


def test_late_labels_are_judged_by_what_was_predicted_when_they_were_asked() -> None:
    """A copy that follows every label looks best at once, and is worst when labels are late and change slowly."""
    x = torch.ones(2000, 4)
    y = (torch.arange(2000) // 200 % 2).long()
    at_once, late = (
        race(candidates_around("sgd", lambda p, rate: torch.optim.SGD(p, lr=rate), 0.05)),
        race(candidates_around("sgd", lambda p, rate: torch.optim.SGD(p, lr=rate), 0.05)),
    )
    learned(at_once, [], (x, y))
    learned(late, [], (x, y), delay=200)
    assert at_once.learning_rate > late.learning_rate


@pytest.mark.parametrize("update_size", [1, 16])
def test_a_race_is_resumed_to_the_last_bit(tmp_path: Path, update_size: int) -> None:
    x, y = records(4000, turn=2000)
    table = pa.table({**{name: x[:, k].numpy() for k, name in enumerate("abcd")}, "y": y.numpy()})
    source = millstream.as_source(table)

    def make(folder: Path) -> Trainer:
        parts = millstream.Features(millstream.infer(table, target="y"))
        return Trainer(net(), optimizer=FEW, features=parts, engine="reference", run=folder, commit_seconds=0)

    whole = make(tmp_path / "whole")
    whole.learn(source, update_size=update_size, label_delay=40)
    cut = make(tmp_path / "cut")
    for step in cut.steps(source, update_size=update_size, label_delay=40):
        if step.records >= 1500:
            break
    cut.close()
    again = Trainer(net(1), optimizer=FEW, features=copy.deepcopy(whole.learner.features), engine="reference")
    again.open(tmp_path / "cut", resume=True)
    again.learn(source, update_size=update_size, label_delay=40, resume=True)
    for mine, its in zip(again.learner.rule.model.parameters(), whole.learner.rule.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert again.summary().metrics == whole.summary().metrics
    assert again.learning_rate == whole.learning_rate
    assert (tmp_path / "cut/events.jsonl").read_text() == (tmp_path / "whole/events.jsonl").read_text() != ""


def test_a_race_of_other_rates_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(net(), optimizer=FEW, run=tmp_path)
    trainer.learn(records(100))
    trainer.close()
    with pytest.raises(CheckpointError, match=r"a race of sgd 0\.05"):
        Trainer(net(), optimizer=FEW[:2]).open(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="with a race of learning rates"):
        model = net()
        Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).open(tmp_path, resume=True)


def test_a_record_that_fails_after_others_says_what_was_learned() -> None:
    model = Picky()
    rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.0))
    engine, (x, y) = RaceEngine(rule, FEW, "reference"), records(700)
    x[600] = 1e9
    with pytest.raises(LearningError) as caught:
        engine.learn(Chunk(x, y), 1)
    assert caught.value.num_learned == 600


@pytest.mark.parametrize(
    ("optimizer", "said"), [([], "no optimizers"), ([FEW[0], FEW[1]], "a scheduler beside several optimizers")]
)
def test_what_cannot_race_is_refused(optimizer: Any, said: str) -> None:
    one = net()
    schedule = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(one.parameters(), lr=0.1), 1)
    with pytest.raises(SettingError, match=said):
        Trainer(one, optimizer=optimizer, scheduler=schedule if optimizer else None)


@pytest.mark.parametrize("seed", range(6))
def test_a_rate_that_explodes_never_answers(seed: int) -> None:
    """Numbers of any size: a lucky start of a copy is no reason to follow it."""
    torch.manual_seed(seed)
    x = torch.randn(300, 6)
    y = x[:, :1] * 1000 + 5000
    trainer = Trainer(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), "mse")
    steps = [step.scored.outputs for step in trainer.steps((x, y)) if step.scored]
    assert torch.cat(steps).abs().max() < 20_000


# ---------------------------------------------------------------- models that race


def test_the_best_of_several_models_answers_and_is_exported() -> None:
    torch.manual_seed(0)
    x = torch.randn(6000, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()  # which no line tells
    model = Several({"linear": nn.Linear(2, 2), "deep": nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))})
    trainer = Trainer(model)
    trainer.learn((x, y))
    assert model.name == "deep" and trainer.summary().optimizer.startswith("deep ")
    deep = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    deep.load_state_dict(answering(model.state_dict()))
    assert torch.equal(deep(x), model(x))
    assert (model(x).argmax(1) == y).double().mean() > 0.9
    twin = Trainer(Several({"linear": nn.Linear(2, 2), "deep": copy.deepcopy(deep)}))
    twin.load_state_dict(copy.deepcopy(trainer.state_dict()))
    more = torch.randn(500, 2), torch.randint(2, (500,))
    assert trainer.learn(more).metrics == twin.learn(more).metrics


# ---------------------------------------------------------------- bad input never leaves a dead learner


@pytest.mark.parametrize("what", ["constant", "one class first", "huge", "tiny", "flipped", "nan"])
def test_bad_input_leaves_finite_weights_and_a_learner_that_still_learns(what: str) -> None:
    x, y = records(12_000)
    if what == "constant":
        y[:8000] = 1
    elif what == "one class first":
        y[:9000] = 0
    elif what == "huge":
        x[:6000] *= 1e30
    elif what == "tiny":
        x[:6000] *= 1e-30
    elif what == "flipped":
        y[3000:6000] = 1 - y[3000:6000]
    else:
        x[:6000:7] = torch.nan
    model = net()
    trainer = Trainer(model, max_skips=20_000)
    right: list[Tensor] = []
    for step in trainer.steps((x, y)):
        if step.scored is not None:
            right.append(step.scored.outputs.argmax(1) == step.scored.targets)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.cat(right)[-1500:].double().mean() > 0.9, what


# ---------------------------------------------------------------- factored second moments


class Tables(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.ids = nn.EmbeddingBag(20, 6, mode="sum", sparse=sparse, padding_idx=0)
        self.dense, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.last(torch.relu(self.ids(x["ids"]) + self.dense(x["dense"])))
        return out


def of_tables(num: int) -> dict[str, Tensor]:
    return {"dense": torch.randn(num, 4, dtype=torch.float64), "ids": torch.randint(20, (num, 3))}


TIED = nn.Linear(4, 4)
MODELS = {
    "layers": (nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2)), None),
    "one output": (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1)), None),
    "convolution": (nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (1, 4, 4)),
    "tied": (nn.Sequential(TIED, nn.ReLU(), TIED, nn.Linear(4, 2)), None),
    "rows": (Tables(sparse=True), of_tables),
    "a table": (Tables(sparse=False), of_tables),
}


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_factored_steps_are_the_same_in_both_engines(name: str, clip: float | None) -> None:
    torch.manual_seed(0)
    model, shape = copy.deepcopy(MODELS[name])
    model = model.double()
    x: Any = shape(250) if callable(shape) else torch.randn(250, *(shape or (4,)), dtype=torch.float64)
    y = torch.randint(2, (250,))
    loss = losses.resolve("binary_cross_entropy" if name == "one output" else "cross_entropy")
    found = []
    for make in (ReferenceEngine, FusedEngine):
        twin = copy.deepcopy(model)
        rule = UpdateRule(twin, loss, FactoredRMSprop(twin.parameters(), lr=0.01), clip_norm=clip)
        targets = y.double() if name == "one output" else y
        outcome = make(rule).learn(Chunk(x, targets), 1)
        assert not outcome.by_reference
        state = [v for p in twin.parameters() for v in rule.optimizer.state[p].values()]
        found.append([*twin.parameters(), *state, outcome.outputs])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_matrix_of_rank_one_has_the_second_moments_of_rmsprop() -> None:
    """For one record rows times columns is the mean itself."""
    torch.manual_seed(0)
    mine, its = nn.Linear(5, 3, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)
    its.load_state_dict(mine.state_dict())
    x = torch.randn(1, 5, dtype=torch.float64)
    for model, optimizer in (
        (mine, FactoredRMSprop(mine.parameters(), lr=0.01, most=100)),  # the first step is ten times the rate
        (its, torch.optim.RMSprop(its.parameters(), lr=0.01)),
    ):
        model(x).square().sum().backward()
        optimizer.step()
    assert torch.allclose(mine.weight, its.weight, atol=1e-6)
    assert torch.allclose(mine.bias, its.bias, atol=1e-12)


def test_a_step_has_a_bound_where_rows_and_columns_tell_too_little() -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = FactoredRMSprop(model.parameters(), lr=1.0)
    for row in (0, 1):  # the second gradient is where the first was not
        before = model.weight.detach().clone()
        model.weight.grad = torch.zeros(4, 4)
        model.weight.grad[row, row] = 1e3 if row == 0 else 1e-3
        optimizer.step()
        assert (model.weight - before).square().mean().sqrt() <= 3.0001


def test_decay_shrinks_weights_beside_the_step() -> None:
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 3)
    FactoredRMSprop(model.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(model.weight, before * 0.95)


def test_the_default_race_names_its_rates() -> None:
    names = [candidate.name for candidate in candidates()]
    assert names[0] == "factored 0.003" and "sgd 0.03" in names
    assert [c.name for c in candidates(0.1)] == names
