"""Replay, drift, averaging around an engine: cuts, resumes, bad input. Run: pytest tests/test_around.py"""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk, Outcome, Questions
from millstream.delay import Delay, LabelDelay
from millstream.engines import (
    Around,
    Candidate,
    FusedEngine,
    RaceEngine,
    ReferenceEngine,
    Replay,
    ReplayEngine,
    UpdateRule,
    parse_replay,
    prepare,
)
from millstream.engines.pieces import find, pieces
from millstream.errors import CheckpointError, LearningError, SettingError
from millstream.trainer import Trainer
from test_race import Picky

FEW = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.05, 0.001, 1.0)]
CUTS = [[1, 2, 300], [128, 129, 256, 640], [77, 500]]


def records(num: int = 800, turn: int | None = None) -> tuple[Tensor, Tensor]:
    """A line through a plane; from ``turn`` on labels are chance."""
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(0))
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()
    if turn is not None:
        y[turn:] = torch.randint(2, (num - turn,), generator=torch.Generator().manual_seed(1))
    return x, y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))


def made(around: Around, racing: bool, engine: str = "fused") -> Any:
    model = net()
    optimizer: Any = FEW if racing else torch.optim.SGD(model.parameters(), lr=0.05)
    return prepare(engine, model, losses.resolve("cross_entropy"), optimizer, around, seed=3)


def learned(
    engine: Any, cuts: list[int], data: tuple[Any, Tensor], delay: int = 0, update_size: int = 1
) -> tuple[Tensor, list[Outcome]]:
    """What was answered of all records, in chunks that end at ``cuts``."""
    late = LabelDelay(Delay(records=delay), update_size) if delay else None
    found, position = [], 0
    for first, last in zip([0, *cuts], [*cuts, len(data[1])], strict=True):
        chunk = Chunk(*data).select(slice(first, last))
        chunk.offsets, chunk.span, chunk.start = None, last - first, first
        questions: Questions | None = None
        if late is not None:
            arrivals = late.arrive(chunk)
            chunk, questions = arrivals.lessons, arrivals.questions
            chunk.start = position
            position += len(chunk)
        found.append(engine.learn(chunk, update_size, questions))
    return torch.cat([outcome.outputs for outcome in found]), found


ARMS = {
    "replay": Around(replay=0.5),
    "window": Around(replay="1.5:window:100"),
    "a small reservoir": Around(replay="0.7:reservoir:50"),
    "drift": Around(drift="adwin"),
    "drift reopens": Around(drift="adwin:reopen"),
    "drift drops memory": Around(drift="adwin:reset"),
    "drift replays": Around(drift="adwin:replay"),
    "average": Around(average=0.99),
    "all": Around(replay=0.2, drift="adwin:raise", average=0.99),
}


# ---------------------------------------------------------------- cuts and resumes change nothing


@pytest.mark.parametrize("delay", [0, 40])
@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_where_chunks_are_cut_changes_nothing(arm: str, racing: bool, delay: int) -> None:
    data, racing = records(turn=400), racing or arm == "drift reopens"
    whole = made(ARMS[arm], racing)
    expected, outcomes = learned(whole, [], data, delay)
    assert len(expected) == 800 and sum(o.num_updates for o in outcomes) == 800 - delay
    for cuts in CUTS:
        cut = made(ARMS[arm], racing)
        found, parts = learned(cut, cuts, data, delay)
        # Those with late labels are predicted for several records at once, and their last bits depend on how many.
        assert torch.allclose(found, expected, atol=0 if not delay else 1e-5)
        assert torch.equal(cut.predict(data[0]), whole.predict(data[0]))
        assert [e for o in parts for e in o.events] == [e for o in outcomes for e in o.events]


@pytest.mark.parametrize(("racing", "update_size"), [(True, 1), (False, 16)])
@pytest.mark.parametrize("arm", ARMS)
def test_a_run_that_is_resumed_ends_with_the_same_bits(
    tmp_path: Path, arm: str, racing: bool, update_size: int
) -> None:
    data, racing = records(3000, turn=1200), racing or arm == "drift reopens"

    def make(folder: str) -> Trainer:
        model, around = net(), ARMS[arm]
        optimizer: Any = FEW if racing else torch.optim.SGD(model.parameters(), lr=0.05)
        more: Any = {"replay": around.replay, "drift": around.drift, "average": around.average}
        return Trainer(model, optimizer=optimizer, run=tmp_path / folder, commit_seconds=0, seed=3, **more)

    whole = make("whole")
    whole.learn(data, update_size=update_size, label_delay=40)
    cut = make("cut")
    for place in (1000, 2000):
        for step in cut.steps(data, update_size=update_size, label_delay=40, resume=place > 1000):
            if step.records >= place:
                break
        cut.close()
        (tmp_path / f"into{place}").mkdir()
        cut = make(f"into{place}/again")
        cut.close()
        cut.open(tmp_path / "cut", resume=True)
    cut.learn(data, update_size=update_size, label_delay=40, resume=True)
    for mine, its in zip(cut.learner.rule.model.parameters(), whole.learner.rule.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(cut.predict(data[0]), whole.predict(data[0]))
    assert cut.summary().metrics == whole.summary().metrics
    assert (tmp_path / "cut/events.jsonl").read_text() == (tmp_path / "whole/events.jsonl").read_text()
    assert ('"what": "drift"' in (tmp_path / "whole/events.jsonl").read_text()) == (ARMS[arm].drift is not None)


# ---------------------------------------------------------------- replay


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.sampled_from([0.2, 0.5, 1.0, 2.3]),
    st.sampled_from(["reservoir", "window"]),
    st.integers(1, 40),
)
def test_replayed_rows_are_what_the_reservoir_held_just_before(
    sizes: list[int], share: float, kind: str, most: int
) -> None:
    """Against a plain loop, record by record; the inner engine notes what it is given."""
    given_rows: list[tuple[float, bool]] = []

    class Notes(ReferenceEngine):
        def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
            assert isinstance(chunk.inputs, Tensor) and chunk.numbers is not None
            given_rows.extend(zip(chunk.inputs[:, 0].tolist(), (chunk.numbers >= 0).tolist(), strict=True))
            assert len(set(chunk.positions().tolist())) == len(chunk)
            return super().learn(chunk, update_size, questions)

    model = nn.Linear(1, 2)
    rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.0), seed=5)
    engine = ReplayEngine(Notes(rule), Replay(share, kind, most))
    total = sum(sizes)
    data = torch.arange(total, dtype=torch.float32)[:, None], torch.zeros(total, dtype=torch.int64)
    learned(engine, np.cumsum(sizes)[:-1].tolist(), data)
    held: dict[int, int] = {}
    rows = iter(given_rows)
    for number in range(total):
        assert next(rows) == (number, True)
        for _ in range(int((number + 1) * share) - int(number * share) if number else 0):
            value, is_new = next(rows)
            assert not is_new and value in held.values()
        slot = int(engine._reservoir._slots(np.array([number]))[0])
        if slot < most:
            held[slot] = number
    assert next(rows, None) is None
    kept = engine.state_dict()["own"]["kept"][0][:, 0].tolist()
    assert kept == [held[slot] for slot in range(min(total, most))]
    if kind == "window":
        assert sorted(kept) == list(range(max(0, total - most), total))


def test_a_reservoir_is_an_even_sample() -> None:
    counts = np.zeros(1000)
    for seed in range(200):
        model = nn.Linear(1, 2)
        rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0), seed=seed)
        engine = ReplayEngine(FusedEngine(rule), Replay(0.1, records=50))
        engine._reservoir.take(Chunk(torch.arange(1000.0)[:, None], torch.zeros(1000, dtype=torch.int64)))
        counts[engine.state_dict()["own"]["kept"][0][:, 0].long().numpy()] += 1
    assert np.abs(counts.reshape(10, 100).sum(1) / 1000 - 1).max() < 0.15


@pytest.mark.parametrize("form", ["dict", "tuple", "sparse"])
def test_any_form_of_inputs_is_kept_and_comes_back(form: str, tmp_path: Path) -> None:
    x, y = records(400)
    inputs: Any = {"dict": {"x": x}, "tuple": (x, x[:, :1]), "sparse": x.to_sparse_csr()}[form]

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 2)

        def forward(self, inputs: Any) -> Tensor:
            x = inputs["x"] if isinstance(inputs, dict) else inputs[0] if isinstance(inputs, tuple) else inputs
            out: Tensor = self.line(x)
            return out

    found = []
    for cuts in ([], [100, 101, 250]):
        torch.manual_seed(0)
        model = Takes()
        rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.05))
        engine: Any = ReplayEngine(ReferenceEngine(rule), Replay(1.0, records=60))
        weights = torch.rand(400, generator=torch.Generator().manual_seed(1)) + 0.5
        for first, last in itertools.pairwise([0, *cuts, 400]):
            chunk = Chunk(inputs, y, weights).select(slice(first, last))
            chunk.offsets, chunk.span, chunk.start = None, last - first, first
            engine.learn(chunk, 1)
            again: Any = ReplayEngine(ReferenceEngine(rule), Replay(1.0, records=60))
            again.load_state_dict(engine.state_dict())
            engine = again
        found.append(model.line.weight.detach().clone())
    assert torch.equal(*found)


def test_a_failure_names_the_record_and_says_how_many_new_ones_were_learned() -> None:
    x, y = records(700)
    x[600] = 1e9
    for racing in (False, True):
        model = Picky()
        optimizer: Any = FEW if racing else torch.optim.SGD(model.parameters(), lr=0.05)
        loss = losses.resolve("cross_entropy")
        engine = prepare("reference", model, loss, optimizer, Around(replay=0.5, drift="adwin", average=0.9))
        with pytest.raises(LearningError, match="position 600") as caught:
            engine.learn(Chunk(x, y), 1)
        assert caught.value.num_learned == 600


def test_replay_keeps_while_fitting_and_mixes_in_while_online() -> None:
    trainer = Trainer(net(), optimizer=FEW[:1], replay=1.0)
    seen: list[int] = []
    inner = find(trainer.learner.engine, RaceEngine)
    learn = inner.learn
    inner.learn = lambda chunk, *rest: (seen.append(len(chunk)), learn(chunk, *rest))[1]
    trainer.fit(records(640), batch_size=64, epochs=1)
    assert sum(seen) == 640
    trainer.learn(records(100))
    assert sum(seen) == 840


@pytest.mark.parametrize("text", ["-1", "x", "0.2:heap", "17", "0.2:window:0", "nan"])
def test_replay_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SettingError):
        parse_replay(text)
    assert parse_replay("0") is None and parse_replay(None) is None


# ---------------------------------------------------------------- averaging


def test_the_average_is_that_of_the_weights_after_each_piece() -> None:
    engine = made(Around(average=0.99), racing=False)
    data, seen = records(1280), []
    for first, last in pieces(Chunk(*data), 1, 256, 0):
        chunk = Chunk(data[0][first:last], data[1][first:last], start=first)
        engine.learn(chunk, 1)
        seen.append([p.detach().double().clone() for p in engine.rule.model.parameters()])
    kept = 0.99**256
    shares = np.array([kept ** (len(seen) - 1 - place) for place in range(len(seen))])
    for number, mean in enumerate(engine.model.parameters()):
        expected = sum(s * weights[number] for s, weights in zip(shares / shares.sum(), seen, strict=True))
        assert torch.allclose(mean.double(), expected, atol=1e-6)
    raw = ReferenceEngine(engine.rule).predict(data[0])
    assert not torch.equal(engine.predict(data[0]), raw) and torch.equal(engine.inner.predict(data[0]), raw)


def test_another_leader_begins_another_average() -> None:
    engine = made(Around(average=0.999), racing=True)
    learned(engine, [], records(512))
    engine._of = "another"
    learned(engine, [], records(256))
    for mean, now in zip(engine.model.parameters(), engine.rule.model.parameters(), strict=True):
        assert torch.equal(mean, now)


@pytest.mark.parametrize("average", [0, 1, -0.5, 1.5])
def test_an_average_that_cannot_be_is_refused(average: float) -> None:
    with pytest.raises(SettingError, match="average="):
        Trainer(net(), average=average)


# ---------------------------------------------------------------- all of them


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(net(), replay=0.2, run=tmp_path)
    trainer.learn(records(100))
    trainer.close()
    for other in ({}, {"drift": "adwin"}, {"replay": 0.2, "average": 0.9}):
        with pytest.raises(CheckpointError, match="replay"):
            Trainer(net(), **other).open(tmp_path, resume=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [0, 10, "never"])
@pytest.mark.parametrize("what", ["nan", "one class", "huge", "flipped"])
def test_bad_input_leaves_finite_weights(what: str, delay: Any) -> None:
    x, y = records(4000)
    if what == "nan":
        x[:2000:3] = torch.nan
    elif what == "one class":
        y[:3000] = 0
    elif what == "huge":
        x[:2000] *= 1e30
    else:
        y[1000:2000] = 1 - y[1000:2000]
    trainer = Trainer(net(), max_skips=10_000, replay=0.5, drift="adwin", average=0.99)
    trainer.learn((x, y), label_delay=10**6 if delay == "never" else delay)
    clean, _ = records(50)
    assert torch.isfinite(trainer.predict(clean)).all()
    assert all(torch.isfinite(p).all() for p in trainer.learner.rule.model.parameters())
    if delay != "never":
        assert trainer.summary().metrics["window_accuracy"] > 0.75


@pytest.mark.parametrize("arm", ["replay", "drift", "average", "all"])
def test_both_engines_agree(arm: str) -> None:
    data = records(600, turn=300)
    expected, _ = learned(made(ARMS[arm], racing=False, engine="reference"), [100], data, 40)
    found, _ = learned(made(ARMS[arm], racing=False, engine="fused"), [100], data, 40)
    assert torch.allclose(found, expected, atol=1e-4)


def test_what_a_race_has_decided_between_two_chunks_is_told_after_a_resume() -> None:
    told = []
    for saved in (False, True):
        engine: Any = made(Around(), racing=True, engine="reference")
        engine.learn(Chunk(*records(100)), 1)
        engine.world_changed(100, "drift")
        if saved:
            state, engine = copy.deepcopy(engine.state_dict()), made(Around(), racing=True, engine="reference")
            engine.load_state_dict(state)
        told.append(engine.learn(Chunk(*records(100), start=100), 1).events)
    assert told[0] == told[1] and [event.detail for event in told[0]] == ["drift", "sgd 0.05"]


@pytest.mark.parametrize("around", [Around(average=0.9), Around(drift="adwin")], ids=str)
def test_the_noise_of_gradients_is_measured_whatever_is_around_an_engine(around: Around) -> None:
    found = []
    for each in (Around(), around):
        engine: Any = made(each, racing=False, engine="reference")
        engine.rule.online = False
        outcome = engine.learn(Chunk(*records(2048)), 64)
        found.append(sum(norms.num_updates for norms in outcome.norms))
    assert found[0] == found[1] == 32
