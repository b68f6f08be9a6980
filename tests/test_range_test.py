"""A range test of learning rates. Run: pytest tests/test_range_test.py"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import millstream
from millstream.errors import DataError, SettingError
from millstream.studies.range_test import NUM_RATES, choose_rate, lr_range
from millstream.studies.tuning_page import render_range
from millstream.trainer import Trainer

RATES = np.geomspace(1e-6, 10, NUM_RATES)
QUICK: dict[str, Any] = {"num_updates": 40, "num_repeats": 2}


def table(num: int = 400, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(5, 3, num), rng.exponential(2, num)
    return pa.table({"a": a, "b": b, "y": (a + b > 7).astype(str)})


def trainer_of(optimizer: str | None, features: bool, momentum: float = 0.9, **settings: Any) -> Trainer:
    parts = millstream.Features(millstream.infer(table(), target="y")) if features else None
    torch.manual_seed(0)
    width = parts.input_shape[0] if parts is not None else 3
    model = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))
    made: dict[str, Any] = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum),
        "adam": lambda: torch.optim.Adam(
            [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters()}]
        ),
    }
    one = made[optimizer]() if optimizer else None
    if one is not None and settings.pop("schedule", False):
        settings["scheduler"] = torch.optim.lr_scheduler.StepLR(one, 5, 0.5)
    return Trainer(model, "cross_entropy", one, features=parts, engine="reference", **settings)


def data_of(features: bool) -> Any:
    if features:
        return table()
    torch.manual_seed(1)
    x = torch.randn(400, 3)
    return x, (x[:, 0] > 0).long()


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested state, by its path; tensors as bytes."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    return {name: value.tobytes() if isinstance(value, np.ndarray) else value}


@settings(max_examples=12, deadline=None)
@given(
    optimizer=st.sampled_from(["sgd", "adam", None]),
    features=st.booleans(),
    before=st.sampled_from(["new", "fit", "learn"]),
    update_size=st.sampled_from([1, 7, 64]),
    shuffle=st.booleans(),
    schedule=st.booleans(),
    is_interrupted=st.booleans(),
)
def test_the_trainer_stays_as_it_is_to_the_last_bit(
    optimizer: str | None,
    features: bool,
    before: str,
    update_size: int,
    shuffle: bool,
    schedule: bool,
    is_interrupted: bool,
) -> None:
    how = {"schedule": schedule} if optimizer else {}
    tested, other = (trainer_of(optimizer, features, clip_norm=1.0, **how) for _ in range(2))
    data = data_of(features)
    if before != "new":
        for each in (tested, other):
            each.fit(data, batch_size=16) if before == "fit" else each.learn(data)
    state = copy.deepcopy(flat(tested.state_dict()))
    torch.manual_seed(5)
    drawn = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def show(text: str, done: int, total: int) -> None:
        assert 0 < done <= total
        if is_interrupted and done == 20:
            raise KeyboardInterrupt

    if is_interrupted:
        with pytest.raises(KeyboardInterrupt):
            lr_range(tested, data, update_size=update_size, shuffle=shuffle, show=show, **QUICK)
    else:
        lr_range(tested, data, update_size=update_size, shuffle=shuffle, show=show, **QUICK)
    assert flat(tested.state_dict()) == state
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[2]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), drawn[1], strict=True))
    for each in (tested, other):
        each.learn(data, update_size=5)
    after = [flat({**each.state_dict(), "phase": None}) for each in (tested, other)]
    assert after[0] == after[1]


# ---------------------------------------------------------------- what is suggested


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_repeats=st.integers(2, 6),
    scale=st.floats(1e-3, 1e3),
    noise=st.floats(0, 10),
    ends=st.lists(st.integers(0, NUM_RATES), min_size=6, max_size=6),
)
def test_a_suggestion_is_a_rate_that_was_tested_whatever_the_losses(
    seed: int, num_repeats: int, scale: float, noise: float, ends: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    curves = scale * (1 + noise * rng.random((num_repeats, NUM_RATES)) + rng.normal(0, 1, NUM_RATES).cumsum() ** 2 / 10)
    for curve, end in zip(curves, ends, strict=False):
        curve[end:] = np.nan
    found = choose_rate(RATES, curves)
    assert found["reason"] and len(found["rates"]) == len(found["losses"]) == len(found["errors"])
    assert np.isfinite(found["losses"]).all() and np.isfinite(found["errors"]).all()
    if found["suggestion"] is not None:
        low, high = found["interval"]
        assert RATES[0] <= low <= found["suggestion"] <= high <= RATES[-1]
        assert found["diverged"] is None or found["suggestion"] < found["diverged"]


def curves_around(best: float, num: int = 5, noise: float = 0.05) -> np.ndarray[Any, Any]:
    """Losses that are least at one rate."""
    rng = np.random.default_rng(0)
    logs = np.log10(RATES / best)
    shape = 1 - 0.5 * np.exp(-(logs**2)) + np.clip(logs, 0, None) ** 2
    return shape + noise * rng.normal(size=(num, NUM_RATES))


@pytest.mark.parametrize("best", [1e-3, 0.03, 0.5])
def test_one_lucky_batch_does_not_decide(best: float) -> None:
    curves = curves_around(best)
    calm = choose_rate(RATES, curves)["suggestion"]
    assert best / 2 < calm < best * 1.5
    assert choose_rate(RATES, curves, 2.0)["suggestion"] == pytest.approx(calm / 2)
    for place in (3, NUM_RATES - 10):
        lucky = curves.copy()
        lucky[2, place] -= 0.9  # lower than all others
        assert calm / 2 < choose_rate(RATES, lucky)["suggestion"] < calm * 2


def test_noise_alone_gives_no_suggestion() -> None:
    rng = np.random.default_rng(1)
    given_none = [choose_rate(RATES, 1 + 0.3 * rng.random((5, NUM_RATES)))["suggestion"] is None for _ in range(20)]
    assert sum(given_none) >= 15
    assert choose_rate(RATES, np.ones((5, NUM_RATES)))["suggestion"] is None


def test_a_suggestion_at_an_end_says_so() -> None:
    falling = (
        1 - np.linspace(0, 0.9, NUM_RATES) + np.zeros((3, 1)) + 0.001 * np.random.default_rng(0).random((3, NUM_RATES))
    )
    assert "highest that was tested" in choose_rate(RATES, falling)["reason"]
    rising = falling[:, ::-1]
    found = choose_rate(RATES, rising)
    assert found["suggestion"] == pytest.approx(RATES[0]) and "the lowest rate" in found["reason"]
    gone = np.full((3, NUM_RATES), np.nan)
    assert choose_rate(RATES, gone)["suggestion"] is None and "lower" in choose_rate(RATES, gone)["reason"]


def test_a_quadratic_is_given_a_rate_at_which_it_converges() -> None:
    """The loss (w·x − y)² of records of length √n diverges in expectation above about 1/n."""
    torch.manual_seed(0)
    x = torch.randn(6000, 8)
    y = (x @ torch.randn(8, 1)) + 0.1 * torch.randn(6000, 1)
    model = nn.Linear(8, 1)
    trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=1.0))
    found = lr_range(trainer, (x, y), update_size=1)
    assert found.suggestion is not None and 1 / 300 < found.suggestion < 1 / 5
    assert found.diverged is not None and found.diverged > found.suggestion
    model.load_state_dict({"weight": torch.linalg.lstsq(x, y).solution.T, "bias": torch.zeros(1)})
    learned = lr_range(trainer, (x, y), update_size=1)
    assert learned.suggestion is not None and learned.suggestion < found.diverged
    assert "does not raise" in learned.reason


def test_a_loss_that_falls_to_zero_gives_no_rate_that_diverges() -> None:
    """Without noise in the labels, weights that are right stay right at any rate."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(4000, 3)
    trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=1.0))
    found = lr_range(trainer, (x, x.sum(1, keepdim=True)), update_size=16)
    assert found.suggestion is not None and found.suggestion < 0.3


def test_more_rates_than_updates_and_fewer_records_than_an_update_are_fine() -> None:
    found = lr_range(trainer_of("sgd", False), data_of(False), update_size=1000, num_updates=12, num_repeats=2)
    assert len(found.rates) <= 12 and found.num_updates == 12


def test_text_and_page_show_the_curve_and_the_choice() -> None:
    found = lr_range(trainer_of("adam", True), table(), update_size=8, num_updates=200)
    text = str(found)
    assert any(bar in text for bar in "▂▃▄▅▆▇") and found.reason in text
    assert found.suggestion is not None and "▲" in text and f"{found.suggestion:.2g}" in text
    html = render_range(found, {"data": "<a>", "for": "fit", "file": None})
    assert "<svg" in html and "&lt;a&gt;" in html and f"{found.suggestion:.2g}" in html
    assert math.isfinite(found.seconds) and found.to_json()["optimizer"] == "Adam"


@pytest.mark.parametrize(
    "settings",
    [{"update_size": 0}, {"num_updates": 3}, {"num_repeats": 1}, {"lowest": 0.0}, {"lowest": 1.0, "highest": 0.1}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        lr_range(trainer_of("sgd", False), data_of(False), **settings)


def test_data_without_records_are_refused() -> None:
    with pytest.raises(DataError, match="0 records"):
        lr_range(trainer_of("sgd", True), table().slice(0, 0), **QUICK)
