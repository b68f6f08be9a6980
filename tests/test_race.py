"""Rates that race: the standings, the engine, its state. Run: pytest tests/test_race.py"""

import copy
import dataclasses
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


@pytest.mark.parametrize("size", [512, 300])
def test_scores_that_rise_a_little_for_long_are_a_change_and_noise_is_none(size: int) -> None:
    found, rng, changed = Standings(2), np.random.default_rng(0), []
    for number in range(60):
        worse = 0.08 if number >= 50 else 0.0  # less than three standard errors of a segment
        found.see((rng.random((2, size)) < 0.25 + worse).astype(float))
        found.close()
        changed.append(found.has_changed())
    assert not any(changed[:50]) and any(changed[50:55])
    found.reopen(changed=True)
    assert not found.has_changed()


def test_levels_that_wander_by_themselves_are_soon_no_change_any_more() -> None:
    found, rng, changed = Standings(1), np.random.default_rng(0), []
    for number in range(400):  # by four standard errors of a segment
        found.see((rng.random((1, 512)) < 0.3 + 0.08 * np.sin(number)).astype(float))
        found.close()
        changed.append(found.has_changed())
        if changed[-1]:
            found.reopen(changed=True)
    assert sum(changed[:60]) > 0 == sum(changed[60:])


def test_whoever_leads_runs_where_nothing_is_wrong_any_more() -> None:
    """Near 0 a copy is beaten for sure by less than what makes another one lead."""
    found = Standings(3)
    for number in range(40):
        scores = np.full((3, 512), 1e-6)
        scores[0] = 1.001e-6 if number > 2 else 1e-6
        found.see(np.where(found.running[:, None], scores, np.nan))
        found.close()
        assert found.running[found.leader]


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


@pytest.mark.parametrize("delay", [0, 100])
def test_after_a_change_a_copy_begins_anew_and_leads_where_what_was_learned_misleads(delay: int) -> None:
    x, y = records(12_000)
    y[6000:] = 1 - y[6000:]
    first = (net()[0].weight * 50).detach()
    model = net()
    slow = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.02, 0.002)]
    rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.0))
    engine = RaceEngine(rule, slow, "reference")
    assert torch.equal(engine._first[""].state_dict()["0.weight"] * 50, first)
    outcomes = learned(engine, list(range(500, 12_000, 500)), (x, y), delay)
    events = [event for outcome in outcomes for event in outcome.events]
    begun = [event.position for event in events if event.what == "begins anew"]
    assert begun and all(6000 <= position <= 8000 for position in begun[:1])
    right = torch.cat([outcome.outputs for outcome in outcomes]).argmax(1) == y
    assert right[5000:6000].double().mean() > 0.9 and right[-1000:].double().mean() > 0.9
    assert engine.standings.running[engine.standings.leader]


def test_a_race_resumes_while_a_copy_has_begun_anew() -> None:
    x, y = records(9000, turn=3000)
    whole, cut = race(), race()
    learned(whole, [4000], (x, y))
    learned(cut, [], (x[:4000], y[:4000]))
    twin = race()
    twin.load_state_dict(copy.deepcopy(cut.state_dict()))
    assert twin.standings.running.tolist() == cut.standings.running.tolist()
    rest = Chunk(x[4000:], y[4000:], start=4000)
    assert torch.equal(twin.learn(rest, 1).outputs, cut.learn(rest, 1).outputs)
    assert all(
        torch.equal(a, b) for a, b in zip(twin.rule.model.parameters(), whole.rule.model.parameters(), strict=True)
    )


# ---------------------------------------------------------------- labels that come late, in any order, or never

TURN = 6000


def late_by(num: int, often: int, seldom: float, every: int = 40) -> np.ndarray:
    """When labels are known: after ``often`` records, but one of ``every`` after ``seldom`` (NaN: never)."""
    times = np.arange(num, dtype=np.float64)
    return times + np.where(np.arange(num) % every == 0, seldom, often)


def asked_and_learned(
    engine: RaceEngine,
    data: tuple[Tensor, Tensor],
    known_at: np.ndarray,
    *,
    size: int,
    labelled: bool = True,
    to: int | None = None,
    late: LabelDelay | None = None,
    done: int = 0,
) -> tuple[LabelDelay, list[Any], Tensor]:
    """Questions and lessons in chunks of ``size``, from record ``done``; what was decided, and who was right."""
    late = late or LabelDelay(Delay(), 1)
    events, right = [], []
    for first in range(done, to or len(data[0]), size):
        last = min(first + size, to or len(data[0]))
        x, y = data[0][first:last], data[1][first:last]
        times = np.arange(first, last, dtype=np.float64)
        chunk = Chunk(x, y, times=times, label_times=known_at[first:last], start=first)
        arrivals = late.arrive(chunk)
        questions = arrivals.questions
        if not labelled:
            asked = dataclasses.replace(questions.chunk, targets=torch.zeros_like(y))
            questions = dataclasses.replace(questions, chunk=asked, labelled=False)
        arrivals.lessons.start = first
        outcome = engine.learn(arrivals.lessons, 1, questions)
        events += [(event.what, event.detail) for event in outcome.events]
        right.append(outcome.outputs.argmax(1) == y)
    return late, events, torch.cat(right)


def turning(num: int = 12_000) -> tuple[RaceEngine, tuple[Tensor, Tensor]]:
    """A race that is slow to unlearn, and a world that turns."""
    slow = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.02, 0.002)]
    return race(slow), records(num, turn=TURN)


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_an_answer_from_before_a_copy_began_anew_says_nothing_of_it(labelled: bool) -> None:
    """Also where that copy leads by the time that the label comes: what is unknown never becomes a score."""
    engine, data = turning()
    known_at = late_by(len(data[0]), 5, 3000)
    _, events, right = asked_and_learned(engine, data, known_at, size=500, labelled=labelled)
    anew = [at for at, (what, _) in enumerate(events) if what == "begins anew"]
    assert anew and any(what == "leads" for what, _ in events[anew[0] :])
    state = engine.standings.state_dict()
    assert np.isfinite(state["sums"]).all() and np.isfinite(state["products"]).all()
    assert right[-1000:].double().mean() > 0.9


def test_questions_that_nobody_answers_hide_no_change() -> None:
    found = []
    for seldom in (5.0, np.nan):
        engine, data = turning()
        known_at = late_by(len(data[0]), 5, seldom, every=4)
        _, events, right = asked_and_learned(engine, data, known_at, size=500, labelled=False)
        found.append(events)
        assert right[-1000:].double().mean() > 0.9
    for events in found:
        assert ("all run again", "the score of the leader has risen") in events or (
            "all run again",
            "the score of the leader has doubled",
        ) in events


@pytest.mark.parametrize(("often", "is_late"), [(256, False), (257, True)])
def test_labels_are_late_if_most_are(often: int, is_late: bool) -> None:
    for size in (100, 512):
        engine, (x, y) = race(), records(1500)
        asked_and_learned(engine, (x, y), late_by(1500, often, 5), size=size, labelled=False, to=1400)
        assert engine._scores.are_late is is_late


@pytest.mark.parametrize("size", [37, 512])
@pytest.mark.parametrize("stop", [TURN + 1100, TURN + 3600])
def test_a_race_resumes_while_questions_wait_that_a_copy_answered_before_it_began_anew(size: int, stop: int) -> None:
    engine, data = turning(11_000)
    known_at = late_by(len(data[0]), 5, 3000)
    stop -= stop % size
    late, before, _ = asked_and_learned(engine, data, known_at, size=size, labelled=False, to=stop)
    twin = turning()[0]
    twin.load_state_dict(copy.deepcopy(engine.state_dict()))
    later = LabelDelay(Delay(), 1)
    later.load_state_dict(copy.deepcopy(late.state_dict()))
    assert any(what == "begins anew" for what, _ in before)
    found = [
        asked_and_learned(one, data, known_at, size=size, labelled=False, late=delay, done=stop)
        for one, delay in ((engine, late), (twin, later))
    ]
    assert found[0][1] == found[1][1] and torch.equal(found[0][2], found[1][2])
    ours, its = ([*one.rule.model.parameters()] for one in (engine, twin))
    assert all(torch.equal(a, b) for a, b in zip(ours, its, strict=True))


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


def test_the_default_race_names_its_rates() -> None:
    names = [candidate.name for candidate in candidates()]
    assert names[0] == "factored 0.003" and "sgd 0.03" in names
    assert [c.name for c in candidates(0.1)] == names
