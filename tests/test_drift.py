"""Drift: detectors, their state, what alarms do. Run: pytest tests/test_drift.py"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from millstream import losses
from millstream.contracts import Chunk, Outcome
from millstream.engines import (
    Around,
    Candidate,
    parse_drift,
    prepare,
)
from millstream.engines.detectors import Detector
from millstream.errors import MissingPackageError, SettingError
from millstream.trainer import Trainer
from test_around import learned, net, records


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5000)), min_size=1, max_size=6), st.integers(0, 2**31))
@pytest.mark.parametrize("name", ["adwin", "page-hinkley"])
def test_a_detector_that_was_saved_goes_on_as_one_that_was_not(
    name: str, levels: list[tuple[float, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(np.concatenate([rng.normal(level, 0.1, num) for level, num in levels]), 0, 1).tolist()
    whole, saved = Detector(name), Detector(name)
    for place, value in enumerate(values):
        assert saved.update([value]) == whole.update([value])
        if place % 977 == 0:
            state = saved.state_dict()
            saved = Detector(name)
            saved.load_state_dict(state)
    assert len(whole.state_dict()["fed"]) <= 8192


@pytest.mark.parametrize("delay", [0, 100])
@pytest.mark.parametrize("action", ["reopen", "reset", "raise", "replay", "none"])
def test_labels_that_turn_to_chance_are_an_alarm_that_acts(action: str, delay: int, tmp_path: Path) -> None:
    slow = [Candidate("sgd", rate, lambda p, rate=rate: torch.optim.SGD(p, lr=rate)) for rate in (0.002, 0.001)]
    trainer = Trainer(net(), optimizer=slow, drift=f"adwin:{action}", replay=0.1, run=tmp_path)
    trainer.learn(records(10_000, turn=6000), label_delay=delay)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    alarms = [line for line in lines if line["what"] == "drift"]
    assert alarms and all(6000 < line["position"] <= 7200 for line in alarms[:1]) and action in alarms[0]["detail"]
    assert any(line["what"] == "all run again" and line["detail"] == "drift" for line in lines) == (action == "reopen")


def test_an_alarm_lets_the_rate_rise_and_fall_again() -> None:
    model, loss = net(), losses.resolve("cross_entropy")
    engine: Any = prepare("auto", model, loss, torch.optim.SGD(model.parameters(), lr=0.002), Around(drift="adwin"))
    rates: list[float] = []
    learn = engine.inner.learn
    engine.inner.learn = lambda *given: (rates.append(engine.inner.learning_rate), learn(*given))[1]
    learned(engine, [], records(12_000, turn=6000))
    assert max(rates) == 0.008 and rates[0] == rates[-1] == engine.learning_rate == 0.002


def test_losses_of_numbers_are_watched_whatever_their_size() -> None:
    for size in (1e-20, 1.0, 1e20):
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        engine = prepare("reference", model, losses.resolve("huber:1"), optimizer, Around(drift="adwin:none"))
        draws = torch.Generator().manual_seed(0)
        outcome = Outcome(torch.zeros(0), torch.zeros(0))
        found: list[int] = []
        for place in range(160):
            errors = torch.rand(128, generator=draws).double() * size * (5 if place >= 60 else 1)
            errors[:3] = torch.tensor([torch.nan, torch.inf, 0])
            outcome.losses = errors
            engine._see(Chunk(torch.zeros(128, 4), torch.zeros(128)), None, outcome)
            engine._between(128 * place)
            found += [event.position // 128 for event in engine._events]
            engine._events.clear()
        assert len(found) == 1 and 60 <= found[0] < 75


def test_drift_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="drift detector 'adwim'"):
        Trainer(net(), drift="adwim")
    with pytest.raises(SettingError, match="drift action 'jump'"):
        Trainer(net(), drift="adwin:jump")
    model = net()
    with pytest.raises(SettingError, match="reopen with one optimizer"):
        Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), drift="adwin:reopen")
    assert parse_drift("none") is None
    monkeypatch.setitem(__import__("sys").modules, "river.drift", None)
    with pytest.raises(MissingPackageError, match=r"millstream\[drift\]"):
        Trainer(net(), drift="adwin")
