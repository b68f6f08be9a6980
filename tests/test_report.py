"""Run: pytest tests/test_report.py"""

from __future__ import annotations

import math
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millstream.errors import StorageError
from millstream.studies import report
from millstream.studies.statistics import binomial_interval, interval

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.8)  # and 3, which diverges


def arm(
    title: str,
    kind: str,
    final: float,
    *,
    update_size: int = 1,
    rate: float = 0.01,
    records: int = 60_000,
    seconds: float = 1.0,
    seeds: int = 3,
    prequential: float | None = None,
    metric: str = "accuracy",
    spread: float = 0.002,
    seed: int = 0,
) -> dict[str, Any]:
    """One strategy whose curve nears its final score as 1/√n, with a little noise."""
    noise = np.random.default_rng(seed)
    finals = final + spread * noise.standard_normal(seeds)
    worse = -1.0 if metric == "accuracy" else 1.0
    curve = []
    for k in range(1, 16):
        gap = 0.35 * (1 / math.sqrt(k) - 1 / math.sqrt(15)) * (1 if metric == "accuracy" else final)
        score = float(final + worse * gap + spread * noise.standard_normal())
        curve.append(
            {
                "records": records * k // 15,
                "updates": max(1, records * k // 15 // update_size),
                "seconds": seconds * k / 15,
                f"test_{metric}": score if prequential is None else None,
                "test_loss": 3.2 * (1 - score if metric == "accuracy" else score) + 0.02 * noise.random(),
                f"prequential_{metric}": None if prequential is None else score + prequential - final,
                f"window_{metric}": None if prequential is None else score + 0.03 * math.sin(k) + prequential - final,
            }
        )
    test = float(finals.mean())
    return {
        "title": title,
        "kind": kind,
        "update_size": update_size,
        "learning_rate": rate,
        "engine": "fused" if update_size == 1 else "reference",
        "records": records,
        "updates": records // update_size,
        "seconds": seconds,
        "records_per_second": records / seconds,
        f"test_{metric}": test,
        f"test_{metric}_interval": interval(finals.tolist()),
        "test_loss": 0.11,
        f"prequential_{metric}": prequential,
        f"prequential_{metric}_interval": None if prequential is None else binomial_interval(prequential, records),
        "time_to_target": seconds * 0.6 if final >= 0.95 else None,
        "runs": [
            {
                "seed": number,
                f"test_{metric}": float(value),
                "test_loss": 0.11,
                f"prequential_{metric}": None if prequential is None else prequential + 0.3 * float(value - test),
                "seconds": seconds,
            }
            for number, value in enumerate(finals)
        ],
        "curve": curve,
    }


def with_grid(one: dict[str, Any], best: float) -> dict[str, Any]:
    """The arm with the scores of a learning-rate search; the largest rate diverges."""
    score = one["test_accuracy"]
    grid = [{"learning_rate": rate, "score": max(0.1, score - 0.05 * math.log10(rate / best) ** 2)} for rate in RATES]
    return {**one, "grid": [*grid, {"learning_rate": 3.0, "score": None}]}


def header(**changes: Any) -> dict[str, Any]:
    return {
        "data": "mnist",
        "data_info": {
            "records": 60_000,
            "test_records": 10_000,
            "task": "class",
            "num_outputs": 10,
            "ordered": False,
            "note": "Handwritten digits, 28 × 28 pixels, scaled to 0–1 and shuffled.",
        },
        "model": "mlp:256",
        "seed": 0,
        "seeds": 3,
        "loss": "cross_entropy",
        "optimizer": "SGD",
        "engine": "auto",
        "budget": "60,000 records, 5 batch epochs, 3 seeds",
        "threads": 1,
        "versions": {"millstream": "0.1.0", "torch": "2.6.0", "numpy": "2.1.3"},
        "machine": "x86_64, 2 cores, AVX2",
        "created": "2026-03-01 12:00 UTC",
        "command": "millstream compare mnist --model mlp:256 --seeds 3 --report report.html",
        "delays": None,
        "baselines": None,
        "gradient_variance": None,
        "target_accuracy": None,
        "notes": [],
        **changes,
    }


def mnist_result() -> dict[str, Any]:
    strategies = {
        "batch": arm("mini-batch 64, η = 0.01", "batch", 0.868, update_size=64, seconds=3.1, records=300_000, seed=1),
        "online": arm("online, η = 0.01", "online", 0.9682, records=300_000, seconds=4.2, seed=2),
        "batch_tuned": with_grid(
            arm(
                "batch: mini-batch of 64, η = 0.8, its best",
                "batch",
                0.966,
                update_size=64,
                rate=0.8,
                seconds=3.3,
                records=300_000,
            ),
            0.5,
        ),
        "online_tuned": with_grid(
            arm(
                "online: one record at a time, η = 0.03, its best",
                "online",
                0.9675,
                rate=0.03,
                records=300_000,
                seconds=4.1,
                seed=3,
            ),
            0.02,
        ),
    }
    relu = {
        "batch": arm("mini-batch 64, η = 0.01", "batch", 0.80, update_size=64, seconds=1.1, spread=0.08, seed=5),
        "online": arm("online, η = 0.01", "online", 0.82, seconds=0.3, spread=0.07, seed=6),
    }
    variance = [
        {"batch_size": size, "variance": 3.1 / size * wobble, "variance_times_batch": 3.1 * wobble}
        for size, wobble in zip((1, 4, 16, 64, 256), (1.0, 1.04, 0.95, 1.02, 0.9), strict=True)
    ]
    note = "The reference network ends in a ReLU: a logit that dies gets no gradient again, so the seed decides."
    return header(
        strategies=strategies,
        target_accuracy=0.95,
        gradient_variance=variance,
        notes=["Both strategies of a pair start from the same weights.", "Times leave out evaluation."],
        others=[header(model="reference", strategies=relu, notes=[note])],
    )


def elec2_result() -> dict[str, Any]:
    info = {"records": 45_312, "test_records": None, "task": "class", "num_outputs": 2, "ordered": True}

    def at(*scores: float) -> dict[str, Any]:
        names = ("online", "micro_batch", "retrain", "frozen")
        titles = ("online, η = 0.1", "micro-batch 64, η = 0.3", "retrained every 5,000", "frozen after 5,000")
        costs, rates, sizes = (0.4, 0.3, 9.5, 0.05), (0.1, 0.3, 0.3, 0.3), (1, 64, 64, 64)
        shared: dict[str, Any] = {"records": 45_312, "spread": 0.004}
        return {
            name: arm(
                title, name, score, prequential=score, seconds=cost, rate=rate, update_size=size, seed=k, **shared
            )
            for k, (name, title, score, cost, rate, size) in enumerate(
                zip(names, titles, scores, costs, rates, sizes, strict=True)
            )
        }

    table = {
        "0": (0.905, 0.782, 0.774, 0.70),
        "10": (0.827, 0.780, 0.773, 0.70),
        "48": (0.781, 0.776, 0.771, 0.70),
        "500": (0.764, 0.762, 0.765, 0.70),
    }
    delays = [
        {"delay": delay, "strategies": at(*scores), "baselines": {"no_change": late, "majority": 0.575}}
        for (delay, scores), late in zip(table.items(), (0.853, 0.71, 0.66, 0.56), strict=True)
    ]
    return header(
        data="elec2",
        data_info=info,
        model="mlp:32",
        strategies=at(*table["0"]),
        baselines={"no_change": 0.853, "majority": 0.575},
        delays=delays,
        command="millstream compare elec2 --label-delay 0,10,48,500 --report report.html",
    )


def auto_result() -> dict[str, Any]:
    """A comparison with an arm that sets its own rate."""
    result = elec2_result()
    auto = {
        **result["strategies"]["online"],
        **{"title": "online: one record at a time, no rate given", "sets_rate": True, "learning_rate": 0.003},
        "prequential_accuracy": 0.92,
        "course": [
            {"records": n, "epoch": 0, "optimizer": "factored 0.003", "learning_rate": 0.003}
            | {"update_size": 1 if n < 3 else 64, "noise_scale": None if n < 3 else 300.0}
            for n in range(1, 6)
        ],
        "events": [
            {"position": 1, "what": "leads", "detail": "factored 0.01", "learning_rate": 0.01},
            {"position": 2, "what": "leads", "detail": "factored 0.003", "learning_rate": 0.003},
        ],
        "records": 5,
    }
    return {**result, "strategies": {"online_auto": auto, **result["strategies"]}}


def regression_result() -> dict[str, Any]:
    strategies = {
        "batch": arm("mini-batch 64", "batch", 2.31, update_size=64, metric="mae", spread=0.02, seed=1),
        "online": arm("online", "online", 2.05, metric="mae", spread=0.02, seed=2, seconds=0.6),
    }
    info = {"records": 60_000, "test_records": 10_000, "task": "number", "num_outputs": 1, "ordered": False}
    return header(data="taxi.csv", metric="mae", data_info=info, strategies=strategies, loss="squared_error")


VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def texts_of(self) -> str:
        return " ".join(self.texts).replace("\xa0", " ")


RESULTS = {"mnist": mnist_result, "elec2": elec2_result, "auto": auto_result, "regression": regression_result}


@pytest.mark.parametrize("name", RESULTS)
def test_page_is_well_formed_and_asks_for_nothing(name: str) -> None:
    text = report.render(RESULTS[name]())
    parsed = Page(text)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"link", "img", "iframe", "object", "audio", "video"}
    assert not re.search(r"https?:|//|url\(|@import|\bsrc=", text.replace("<!doctype html>", ""))
    assert "nan" not in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL).lower().replace("banana", "")


def test_page_says_the_verdict_first_and_shows_all_strategies() -> None:
    result = {**mnist_result(), "verdict": "Online wins by a whisker."}
    text = report.render(result)
    words = Page(text).texts_of()
    assert "<h1>Online wins by a whisker.</h1>" in text
    for strategy in result["strategies"].values():
        assert strategy["title"] in words
    for piece in ("best", "96.8 %", "300,000", "4,687", result["command"], result["machine"], "torch 2.6.0", "1/B"):
        assert piece in words
    assert text.index("<h1>") < text.index("<table>") < text.index(result["command"])
    assert text.count('class="badge"') == 2  # one for each model


def test_each_model_has_its_own_verdict_and_notes() -> None:
    words = Page(report.render(mnist_result())).texts_of()
    assert "reference: It is too noisy to call" in words.replace("reference:  ", "reference: ")
    assert "a logit that dies" in words


def test_delays_have_a_chart_and_a_row_each() -> None:
    result = elec2_result()
    text = report.render(result)
    words = Page(text).texts_of()
    assert "When labels come late" in words
    for row in result["delays"]:
        assert f"<th>{row['delay']}</th>" in text
    assert 'aria-label="prequential_accuracy by label delay' in text
    assert "no change 85.3 %" in words


def test_an_arm_without_a_rate_shows_its_rates_and_sizes() -> None:
    text = report.render(auto_result())
    words = Page(text).texts_of()
    assert "Online (no rate given) beats" in words and "Each at the best rate" not in words
    assert "at last" in words and "leads (2)" in words
    assert text.count('aria-label="learning rate by records') == text.count('aria-label="update size by records') == 1
    assert "Rates and sizes that nobody gave" not in Page(report.render(elec2_result())).texts_of()


def test_one_delay_of_nothing_needs_no_part_of_its_own() -> None:
    result = elec2_result()
    result["delays"] = result["delays"][:1]
    assert "When labels come late" not in Page(report.render(result)).texts_of()


def test_all_text_is_escaped() -> None:
    evil = '<script>alert("x")</script>&\'"><b>'

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key == "metric" else poison(value[key]) for key in value}
        if isinstance(value, list | tuple):
            return [poison(item) for item in value]
        return value + evil if isinstance(value, str) else value

    for build in RESULTS.values():
        result = poison(build())
        result["strategies"] = {name + evil: one for name, one in result["strategies"].items()}
        result["baselines"] = {evil: 0.5}
        for row in result["delays"] or ():
            row["strategies"] = {name + evil: one for name, one in row["strategies"].items()}
        clean, poisoned = Page(report.render(build())), Page(report.render(result))
        assert [tag for tag, _ in poisoned.elements].count("script") == 1
        assert {tag for tag, _ in poisoned.elements} - {tag for tag, _ in clean.elements} == set()
        names = {key for _, attributes in poisoned.elements for key in attributes}
        assert names <= {key for _, attributes in clean.elements for key in attributes}


def test_the_least_that_a_result_may_hold_still_makes_a_page() -> None:
    lonely = {"strategies": {"online": {"test_accuracy": None, "curve": [], "runs": []}}}
    assert "No strategy reached a finite score" in Page(report.render(lonely)).texts_of()
    nan = {"strategies": {"a": {"test_accuracy": math.nan, "learning_rate": "auto"}, "b": {"test_accuracy": 0.5}}}
    words = Page(report.render(nan)).texts_of()
    assert "Only b has a finite score, 50.0 %" in words
    assert "auto" in words


def test_runs_that_diverged_are_counted() -> None:
    result = mnist_result()
    result["strategies"]["batch"]["runs"][1].update(test_accuracy=None, diverged=True)
    assert "1 of 3 runs diverged" in Page(report.render(result)).texts_of()


def test_writing_is_atomic_and_failure_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(regression_result(), path)
    assert path.read_text(encoding="utf-8") == report.render(regression_result())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR
    with pytest.raises(StorageError, match=r"got .*report.html.*; wanted .*; "):
        report.write(regression_result(), path / "report.html")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        report.write(regression_result(), folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "report.html"]


def test_the_same_result_makes_the_same_page() -> None:
    assert report.render(mnist_result()) == report.render(mnist_result())
