"""The harnesses of benchmarks/, without other libraries. Run: pytest tests/test_benchmarks.py"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.contracts import Chunk

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import durability
import overhead
import stream_tables
import streams
from stream_data import STREAMS, Answers, Stream
from stream_methods import GROUPS
from stream_peers import DoG, Schedule, looped, plain, schedule


def answers(right: np.ndarray, name: str = "ours") -> Answers:
    targets = np.zeros(len(right), np.int64)
    return Answers(name, right, 2.0, targets, np.concatenate([[np.nan], np.ones(len(right) - 1)]))


def rows_of(method: str, right: float, *, stream: str = "sea", seeds: int = 3, records: int = 60_000) -> list[Any]:
    """Rows of a method that is right so often, a little otherwise with each seed."""
    rows = []
    for seed in range(seeds):
        drawn = np.random.default_rng([seed, len(method)]).random(records) < right
        job = {"stream": stream, "delay": "0", "group": method.split()[0], "seed": seed, "limit": 0}
        rows.append(job | streams.as_row(answers(drawn, method), STREAMS[stream]))
    return rows


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.integers(0, 250))
def test_a_label_that_is_late_is_learned_so_many_records_later(num: int, delay: int) -> None:
    made = schedule(Chunk(torch.zeros(num, 1), torch.arange(num)), str(delay))
    assert made.lessons.tolist() == list(range(len(made.lessons)))
    assert made.before.tolist() == [max(0, number - delay) for number in range(num)]
    wanted = [np.nan if number <= delay else number - delay - 1 for number in range(num)]
    assert np.array_equal(made.known, wanted, equal_nan=True)


def test_the_loop_learns_nothing_before_its_time() -> None:
    class Notes:
        def __init__(self) -> None:
            self.learned: list[int] = []
            self.seen: list[int] = []

        def predict(self, number: int) -> int:
            self.seen.append(len(self.learned))
            return number

        def learn(self, number: int) -> None:
            self.learned.append(number)

    before = np.array([0, 0, 0, 2, 3])
    made = Schedule(np.array([0, 1, 7, 3, 4]), np.array([2, 0, 1, 3]), before, np.zeros(5))
    notes = Notes()
    assert looped("notes", notes, made).right.tolist() == [True, True, False, True, True]
    assert notes.seen == before.tolist() and notes.learned == [2, 0, 1]


@pytest.mark.parametrize("width", [0, 400])
def test_recovery_is_counted_from_the_end_of_a_drift(width: int) -> None:
    right = np.ones(12_000, bool)
    end = 5000 + width // 2
    right[end : end + 700] = False
    drift = streams.drift_of(right, Stream("sea", 5000, width), 5000)
    assert drift["before"] == 1
    # A window with 10 wrong ones in 1000 is within a point.
    assert drift["recovery"] == 690
    assert drift["after"] == pytest.approx(1 - 700 / (1000 + width))
    right[end:10_000] = False
    assert streams.drift_of(right, Stream("sea", 5000, width), 5000)["recovery"] is None


def test_jobs_do_each_row_once_and_the_slow_ones_once_only() -> None:
    every = streams.jobs(list(STREAMS), list(streams.DELAYS), list(GROUPS), 5, 0)
    keys = [key for job in every for key in job.rows()]
    assert len(keys) == len(set(keys))
    assert {job.delay for job in every if job.stream == "flights"} == {*streams.DELAYS, "known"}
    slow = [job for job in every if GROUPS[job.group].is_slow]
    assert slow and {(job.seed, job.limit) for job in slow} == {(0, 50_000)}


def test_a_verdict_says_what_is_behind_and_by_how_much() -> None:
    rows = [*rows_of("ours", 0.90), *rows_of("sgd 0.1", 0.92), *rows_of("sgd 1", 0.5), *rows_of("river-tree", 0.8)]
    (verdict,) = stream_tables.verdicts(rows)
    assert verdict.sgd == "sgd 0.1" and verdict.river == "river-tree" and verdict.is_behind
    assert verdict.minus_sgd is not None and verdict.minus_sgd.mean == pytest.approx(-2, abs=0.4)
    assert verdict.minus_river == pytest.approx(10, abs=1)
    assert verdict.times_as_long == 1
    text = stream_tables.text(rows)
    assert "**Below it by more**: sea at 0" in text and "0 of 1" in text
    (ours, *_) = [row for row in stream_tables.aggregated(rows) if row["method"] == "ours"]
    low, high = ours["interval"]
    assert low < ours["prequential_accuracy"] < high


def test_ours_is_compared_with_the_slow_on_the_records_that_they_were_given() -> None:
    ours = rows_of("ours", 0.9, seeds=1)
    ours[0]["accuracy"] = 0.99
    (verdict,) = stream_tables.verdicts([*ours, *rows_of("river-forest", 0.8, seeds=1, records=50_000)])
    assert verdict.minus_river == pytest.approx(10, abs=1)


def test_a_document_gets_tables_and_plots_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "found.md"
    document.write_text(f"# Found\n\n{stream_tables.BEGIN}\nold\n{stream_tables.END}\n\nEnd\n", encoding="utf-8")
    rows = [*rows_of("ours", 0.9), *rows_of("sgd 0.1", 0.88), *rows_of("sgd 1", 0.5)]
    stream_tables.write(document, rows)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Found\n") and text.endswith("\n\nEnd\n") and "old" not in text and "| sea | 0 |" in text
    pictures = sorted(tmp_path.glob("*.svg"))
    assert [picture.name.removeprefix("found-") for picture in pictures] == [
        "drift-dark.svg",
        "drift-light.svg",
        "rates-dark.svg",
        "rates-light.svg",
    ]
    assert all(picture.name in text for picture in pictures)


def test_dog_goes_down_a_slope() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = DoG([weight])
    for _ in range(300):
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
    assert abs(weight.item() - 1) < 0.2


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    job = streams.Job("sea", "3", "ours", 0, 600)
    streams.run(job, results)
    streams.run(streams.Job("sea", "3", "baselines", 0, 600), results)
    with results.open("a", encoding="utf-8") as file:
        file.write(results.read_text(encoding="utf-8")[:50])  # a line that was cut short
    rows = streams.read(results)
    assert {row["method"] for row in rows} == {"ours", "no-change", "majority"}
    assert job.rows() <= {streams.key_of(row) for row in rows}
    ours = next(row for row in rows if row["method"] == "ours")
    assert ours["records"] == 600 and ours["accuracy"] > 0.7 and 1 <= ours["copies"] <= 12
    assert json.loads(json.dumps(stream_tables.aggregated(rows)))
    majority = plain("majority", STREAMS["sea"], "3", 0, 600)
    assert majority.right.mean() == next(row for row in rows if row["method"] == "majority")["accuracy"]


def test_the_cost_of_the_loop_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--records", "64", "--rounds", "1"])
    threads = torch.get_num_threads()
    try:
        overhead.main()
    finally:
        torch.set_num_threads(threads)
    assert "outside the engine (wanted: 0.2)" in capsys.readouterr().out


def test_what_durability_costs_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["durability.py", "--quick", "--json", "--folder", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        durability.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    parts = {"appends_1", "appends_100", "appends_1000", "opening_ms", "training", "commits"}
    assert parts == found.keys() - {"machine"} and len(found["commits"]) == 4
    assert all(value > 0 for name in parts - {"commits"} for value in found[name].values())
    assert not list(tmp_path.iterdir())
