"""The page of a run, made from real runs. Run: pytest tests/test_run_page.py"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from command_line import csv_text, refusal, rows, run, train
from millstream.errors import CheckpointError, StorageError
from millstream.phase import next_line
from millstream.studies import run_page
from millstream.studies.charts import WIDTH
from millstream.studies.history import history
from millstream.studies.run_figures import course, moments_of, rate_lines
from millstream.trainer import Trainer
from test_report import Page

NUM = 3000


def numbers(num: int = NUM) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=made)
    return x, (x[:, :2].sum(1) + 0.5 * torch.randn(num, generator=made) > 0).long()


def trainer(folder: Path | None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(nn.Linear(4, 2), run=folder, **settings)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was fitted and then learned online, with nothing given; it is closed."""
    folder = tmp_path_factory.mktemp("runs") / "both"
    one = trainer(folder)
    one.fit(numbers(400), batch_size="auto")
    one.learn(numbers())
    one.close()
    return folder


@pytest.fixture(autouse=True)
def a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


# ---------------------------------------------------------------- the lines


def test_lines_stand_closer_at_first_and_depend_on_the_number_of_records_only() -> None:
    marks = [0]
    while marks[-1] < 2_000_000:
        marks.append(next_line(marks[-1], 10_000))
    apart = [b - a for a, b in itertools.pairwise(marks)]
    assert sum(mark <= 45_000 for mark in marks) > 40 and max(apart) <= 10_000 and min(apart) >= 512
    assert len(marks) < 2_000_000 / 10_000 + 120  # what they cost does not grow with the run
    for mark, following in itertools.pairwise(marks):
        assert {next_line(n, 10_000) for n in (mark, (mark + following) // 2, following - 1)} == {following}


@pytest.mark.parametrize("delay", [None, 100])
def test_a_line_within_a_chunk_says_what_a_run_that_ended_there_would_say(tmp_path: Path, delay: int | None) -> None:
    def sgd(folder: Path | None) -> Trainer:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        return Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), run=folder)

    whole = sgd(tmp_path / "a")
    whole.learn(numbers(), label_delay=delay)
    whole.close()
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [line["records"] for line in lines] == [512, 1024, 1536, 2048, 2560, NUM]
    for line in lines[:-1]:
        num = line["records"]
        part = sgd(None).learn(tuple(each[:num] for each in numbers()), label_delay=delay)
        assert line["metrics"] == part.metrics
        assert line["position"] == line["updates"] and abs(num - (delay or 0) - line["updates"]) <= (delay or 0)
    assert lines[-1]["updates"] == lines[-1]["position"] == NUM - (delay or 0)


# ---------------------------------------------------------------- the facts


def test_the_history_knows_phases_epochs_points_and_events(both: Path) -> None:
    facts = history(both)
    assert [phase["kind"] for phase in facts["phases"]] == ["fit", "learn"]
    fit, learn = facts["phases"]
    assert fit["first"] == 0 and learn["first"] == fit["records"] == facts["position"] - NUM
    assert facts["finished"] and facts["problems"] == [] and facts["committed"] == facts["position"]
    assert facts["metric"] == "accuracy" and facts["baselines"] == ["no_change_accuracy", "majority_accuracy"]
    epochs = [epoch for epoch in facts["epochs"] if epoch["kind"] == "fit"]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert all(0.5 < epoch["test"]["accuracy"] <= 1 for epoch in epochs)
    positions = [point["position"] for point in facts["points"]]
    assert positions == sorted(positions) and positions[-1] == facts["position"]
    whats = {event["what"] for event in facts["events"]}
    assert {"leads", "training ends"} <= whats
    assert facts["settings"] is None and facts["versions"]["torch"] == torch.__version__
    json.dumps(facts)


def test_it_is_read_while_the_run_is_at_work_and_changes_nothing() -> None:
    one = trainer(Path("live"))
    for step in one.steps(numbers()):
        if step.records >= 1024:
            break
    assert one.run is not None
    one.commit()
    before = {path: path.stat().st_mtime_ns for path in Path("live").rglob("*")}
    facts = history("live")
    assert not facts["finished"] and facts["position"] >= 1024
    assert {path: path.stat().st_mtime_ns for path in Path("live").rglob("*")} == before
    with pytest.raises(ValueError, match="open already"):  # it still holds its lock
        trainer(Path("live"))
    one.close()


def test_after_a_crash_the_lines_are_read_and_what_is_not_committed_is_said(both: Path) -> None:
    names = ("metrics.jsonl", "events.jsonl", "dead_letters.jsonl")
    texts = {name: (both / name).read_bytes() for name in names}
    try:
        last = json.loads(texts["metrics.jsonl"].splitlines()[-1])
        later = json.dumps({**last, "position": last["position"] + 512, "records": last["records"] + 512})
        (both / "metrics.jsonl").write_bytes(texts["metrics.jsonl"] + later.encode() + b'\n{"phase": 1, "ki')
        (both / "events.jsonl").write_bytes(b"\xff\xfe no line\n" + texts["events.jsonl"])
        facts = history(both)
    finally:
        for name, text in texts.items():
            (both / name).write_bytes(text)
    assert facts["position"] == facts["committed"] + 512 and not facts["finished"]
    assert facts["problems"][0] == "1 lines of events.jsonl cannot be read"
    assert "not committed yet" in facts["problems"][1]
    assert len(facts["events"]) == len(texts["events.jsonl"].splitlines())
    assert "not committed yet" in run_page.render(facts)


def test_lines_of_a_run_without_a_whole_checkpoint_still_make_a_page(both: Path) -> None:
    Path("torn").mkdir()
    Path("torn/metrics.jsonl").write_bytes((both / "metrics.jsonl").read_bytes())
    facts = history("torn")
    assert facts["committed"] is None and not facts["finished"] and "no settings" in facts["problems"][0]
    Page(run_page.render(facts))
    Path("empty").mkdir()
    for name in ("empty", "nowhere"):
        with pytest.raises(CheckpointError, match="got no whole checkpoint"):
            history(name)


def test_older_lines_without_a_position_are_placed_one_after_another() -> None:
    lines = [{"phase": p, "kind": "learn", "epoch": 0, "records": n, "metrics": {}} for p in (0, 1) for n in (10, 20)]
    Path("old").mkdir()
    Path("old/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [point["position"] for point in history("old")["points"]] == [10, 20, 30, 40]


# ---------------------------------------------------------------- the page


def test_the_page_is_well_formed_asks_for_nothing_and_shows_every_event(both: Path) -> None:
    facts = history(both)
    text = run_page.render(facts)
    words = Page(text).texts_of()
    assert not re.search(r"https?:|//|url\(|@import|\bsrc=", text.replace("<!doctype html>", ""))
    for event in facts["events"]:
        assert event["detail"] in words and f"{event['position']:,}" in words
    for piece in ("Accuracy", "Loss", "Learning rate η", "Update size", "fit → learn", "Epochs", "a phase begins"):
        assert piece in words
    assert text.count('class="moment') == 4 * len(moments_of(facts))
    assert run_page.render(history(both)) == text


def test_a_step_of_the_rate_stands_where_the_event_was(both: Path) -> None:
    facts = history(both)
    lines = rate_lines(facts["points"], facts["events"], facts["position"])
    assert {line.label for line in lines} == {e["detail"].split()[0] for e in facts["events"] if e["what"] == "leads"}
    drawn = {point for line in lines for point in line.points}
    last = {event["position"]: event["learning_rate"] for event in facts["events"]}
    ends = {epoch["position"] for epoch in facts["epochs"]}  # where the line after the epoch holds
    for position, rate in last.items():
        assert position in ends or (position, rate) in drawn


def test_without_a_race_the_rate_is_that_of_the_points() -> None:
    points = [{"position": n, "learning_rate": 1 / n, "optimizer": "SGD", "metrics": {}} for n in (1, 2, 4)]
    (line,) = rate_lines(points, [{"position": 3, "what": "rate falls", "detail": "", "learning_rate": 0.3}], 5)
    assert line.label == "SGD"
    assert line.points == [(1, 1), (2, 1), (2, 0.5), (3, 0.5), (3, 0.3), (4, 0.3), (4, 0.25), (5, 0.25)]


def test_a_long_run_is_drawn_with_few_points_and_its_last_one() -> None:
    points = [{"phase": n // 5000, "position": n, "records": n, "metrics": {"loss": n}} for n in range(10_000)]
    drawn = course(points, "loss")
    assert len(drawn) < 520 and drawn[-1] == (9999, 9999) and sum(y is None for _, y in drawn) == 1
    events = [{"position": n, "what": "leads", "detail": f"sgd {n}", "learning_rate": 0.1} for n in range(10_000)]
    facts = {"events": events, "phases": [], "position": 10_000}
    found = moments_of(facts)
    assert len(found) <= 200 and "and 49 more" in found[0].text
    left_out = run_page.render(
        {
            **facts,
            **{"run": "r", "points": points, "epochs": [], "metric": "loss", "baselines": [], "problems": []},
            **{"finished": True, "committed": 1, "written": None, "settings": None, "versions": {}},
            "refused": {"num": 0, "reasons": []},
        }
    )
    assert "9,600 from the middle are not shown" in left_out
    assert all(float(x) <= WIDTH for x in re.findall(r'class="moment[^>]* x1="([\d.]+)"', left_out))


def test_all_text_of_a_run_is_escaped(both: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key in ("metric", "kind") else poison(value[key]) for key in value}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + evil if isinstance(value, str) and "accuracy" not in value else value

    facts = {**history(both), "refused": {"num": 1, "reasons": [{"reason": "bad", "num": 1, "examples": ["a:1"]}]}}
    clean, poisoned = Page(run_page.render(facts)), Page(run_page.render(poison(facts)))
    assert [tag for tag, _ in poisoned.elements].count("script") == 1
    assert {tag for tag, _ in poisoned.elements} == {tag for tag, _ in clean.elements}


# ---------------------------------------------------------------- the command


def test_report_writes_a_page_says_how_the_run_stands_and_names_refused_records() -> None:
    records = csv_text(rows(1000)) + "x,y,z\n" + "bad,1,x,high\n" * 5
    Path("some.csv").write_text(records)
    train("fit", "some.csv", "--on-error", "quarantine", "--epochs", "2", "--run", "r")
    answer = run("report", "r", "-o", "page.html")
    assert answer.code == 0 and answer.out.startswith("r: Accuracy ") and "the page: page.html" in answer.out
    words = Page(Path("page.html").read_text(encoding="utf-8")).texts_of()
    assert "'bad' in column 'a'; wanted a number" in words and "some.csv:1003" in words
    for piece in ("linear", "quarantine", "Phases", torch.__version__, "label (class)", "kind (category)"):
        assert piece in words
    facts = run("report", "r", "--json").json
    assert facts["refused"]["num"] == 6 and facts["settings"]["schema"]["target"] == "label"
    described = re.search(r"^### Keys of report$(.*?)(?=^#|\Z)", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert described and set(re.findall(r"^\| `(\w+)` \|", described[1], flags=re.MULTILINE)) == facts.keys()


DOCUMENT = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")


def test_mistakes_are_said_in_a_line(both: Path) -> None:
    assert "no whole checkpoint in nothing" in refusal(run("report", "nothing"))
    Path("page.html").mkdir()
    assert "page.html" in refusal(run("report", both, "-o", "page.html"))
    with pytest.raises(StorageError, match="name another place"):
        run_page.write(history(both), Path())
