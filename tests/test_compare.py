"""The comparison, end to end on small generated data. Run: pytest tests/test_compare.py"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from millstream.assembly import Recipe, build
from millstream.sources import as_source
from millstream.studies import compare, gradient, report
from millstream.studies.arms import Arm, known_before, open_once, run
from millstream.trainer import Trainer

STREAM = (("name", "sea:records=1500:drift=700"),)
SHUFFLED = (("name", "led:records=1200"), ("ordered", False), ("test", 0.3))


def arm(data: tuple[tuple[str, Any], ...], kind: Any, size: Any, rate: float | None = 0.05, **changes: Any) -> Arm:
    recipe = Recipe(open_once(data).schema, model="linear", learning_rate=rate)
    return Arm(kind, kind, data, recipe, size, **changes)


def test_an_arm_through_time_is_scored_from_its_first_record_on() -> None:
    results = {
        kind: run(arm(STREAM, kind, size, forward=True, first_scored=300, retrain_every=300, epochs=3))
        for kind, size in (("online", 1), ("micro_batch", 16), ("retrain", 16), ("frozen", 16))
    }
    for result in results.values():
        assert result["curve"][-1]["records"] == 1500
        assert 0.4 < result["prequential_accuracy"] <= 1
        json.dumps(result, allow_nan=False)
    assert results["online"]["updates"] == 1500
    assert results["frozen"]["records"] == 3 * 300
    assert results["retrain"]["records"] == 3 * (300 + 600 + 900 + 1200)


def test_the_score_of_the_online_arm_is_that_of_its_trainer() -> None:
    whole = run(arm(STREAM, "online", 1, forward=True))
    opened = open_once(STREAM)
    trainer = build(Recipe(opened.schema, model="linear", learning_rate=0.05))
    summary = trainer.learn(opened.train)
    assert whole["prequential_accuracy"] == pytest.approx(summary.metrics["accuracy"])


@pytest.mark.parametrize("delay", ["0", "20"])
def test_an_arm_without_a_rate_is_the_trainer_of_learn_and_tells_its_rates(delay: str) -> None:
    found = run(arm(STREAM, "online", 1, None, forward=True, delay=delay))
    opened = open_once(STREAM)
    trainer = build(Recipe(opened.schema, model="linear"))
    summary = trainer.learn(opened.train, label_delay=delay)
    assert found["prequential_accuracy"] == pytest.approx(summary.metrics["accuracy"])
    assert found["sets_rate"] and found["learning_rate"] == summary.learning_rate
    assert found["optimizer"] == summary.optimizer
    assert any(event["what"] == "leads" for event in found["events"])
    assert found["course"][-1] == {
        **{"records": 1500, "epoch": 0, "optimizer": summary.optimizer, "learning_rate": summary.learning_rate},
        **{"update_size": 1, "noise_scale": None},
    }
    json.dumps(found, allow_nan=False)
    given = run(arm(STREAM, "online", 1, forward=True, delay=delay))
    assert not given["sets_rate"] and "course" not in given and given["learning_rate"] == 0.05


def test_a_batch_arm_without_a_rate_tells_how_its_batches_grow() -> None:
    noisy = (("name", "sea:records=16000:noise=0.3"), ("ordered", False), ("test", 0.1))
    found = run(arm(noisy, "batch", "auto", None, epochs=2))
    sizes = [point["update_size"] for point in found["course"]]
    assert sizes == sorted(sizes) and found["update_size"] == sizes[-1]
    grown = [event["detail"] for event in found["events"] if event["what"] == "batch grows"]
    assert len(grown) == len(set(sizes)) - 1
    assert found["records"] == 2 * (open_once(noisy).train.num_records or 0)  # as many passes as the other arms
    assert any(point["noise_scale"] is not None for point in found["course"])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("delay", "known"), [("0", 300), ("10", 290), ("500", 0)])
def test_retraining_knows_only_the_labels_that_have_come(delay: str, known: int) -> None:
    opened = open_once(STREAM)
    assert known_before(opened.train, 300, delay, build(Recipe(opened.schema))) == known


def test_arms_of_a_seed_begin_with_the_same_weights_and_see_the_same_test_records() -> None:
    batch = run(arm(SHUFFLED, "batch", 32, epochs=2))
    online = run(arm(SHUFFLED, "online", 1))
    num_train = open_once(SHUFFLED).train.num_records
    assert batch["records"] == 2 * online["records"] == 2 * num_train
    assert batch["curve"][-1]["test_accuracy"] == batch["test_accuracy"] > 0.3
    assert run(arm(SHUFFLED, "online", 1))["test_accuracy"] == online["test_accuracy"]


def test_the_variance_of_the_gradient_falls_as_one_over_the_batch_size() -> None:
    torch.manual_seed(0)
    trainer = Trainer(nn.Linear(20, 3))
    source = as_source((torch.randn(4000, 20), torch.randint(3, (4000,))))
    rows = gradient.gradient_variance(trainer, source, num_batches=200)
    slope = np.polyfit(np.log([r["batch_size"] for r in rows]), np.log([r["variance"] for r in rows]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("data", [STREAM, SHUFFLED])
def test_a_whole_comparison_answers_in_one_sentence(data: tuple[tuple[str, Any], ...]) -> None:
    recipe = Recipe(open_once(data).schema)
    settings = compare.Settings(
        models=("linear", "mlp:8"), rates=(0.01, 0.1), num_seeds=2, epochs=2, delays=("0", "20")
    )
    told: list[int] = []
    result = compare.compare(data, recipe, settings, lambda text, done, total: told.append(total - done))
    json.dumps(result, allow_nan=False)
    assert told[-1] == 0
    assert result["verdict"].endswith(".") and result["verdict"].count(". ") == 0
    names = (
        ("online_auto", "online", "micro_batch", "retrain", "frozen")
        if data is STREAM
        else ("batch", "online", "batch_tuned", "online_tuned", "batch_auto", "online_auto")
    )
    key = "prequential_accuracy" if data is STREAM else "test_accuracy"
    for one in (result, *result["others"]):
        assert tuple(one["strategies"]) == names
        assert all(len(strategy["runs"]) == 2 and strategy[key] > 0.05 for strategy in one["strategies"].values())
    if data is STREAM:
        assert [row["delay"] for row in result["delays"]] == ["0", "20"]
    else:
        assert result["gradient_variance"][0]["batch_size"] == 1
    assert result["verdict"][:20] in report.render(result)
