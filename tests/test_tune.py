"""A search for settings, and the file that fit and learn take. Run: pytest tests/test_tune.py"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import millstream
import millstream.cli
import millstream.studies
from command_line import csv_text, refusal, rows, run
from millstream.assembly import Recipe, build, open_data
from millstream.errors import CheckpointError, SettingError
from millstream.features import Features
from millstream.sources import Subset, hold_out
from millstream.studies.population import RUNGS, BatchPopulation, Population, StreamPopulation, Trial
from millstream.studies.search import Found, Search, survivors
from millstream.studies.space import Space, space_for

DOCUMENT = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
FEW = ["--trials", "4", "--side-by-side", "4", "--model", "linear", "--engine", "reference"]


@pytest.fixture(autouse=True)
def a_folder_of_its_own(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    Path("good.csv").write_text(csv_text(rows(600)))


def quiet(*_: Any) -> None:
    """Shows nothing."""


# ---------------------------------------------------------------- who goes on


@given(
    st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=1),
    st.lists(st.floats(0, 1), max_size=20),
)
def test_those_that_go_on_are_the_best_and_at_most_half(scores: dict[int, float], earlier: list[float]) -> None:
    kept = survivors(scores, earlier)
    assert kept == sorted(set(kept)) and set(kept) <= scores.keys()
    assert len(kept) <= -(-len(scores) // 2)
    worst = max((scores[place] for place in kept), default=-1.0)
    assert all(scores[place] >= worst for place in scores.keys() - set(kept))
    better = sum(value < worst for value in [*scores.values(), *earlier])
    assert better < -(-(len(scores) + len(earlier)) // 2) or not kept
    if not earlier:
        assert kept


def test_a_trial_that_diverged_never_goes_on() -> None:
    assert survivors({0: 1e300, 1: 1e300}, []) == []


# ---------------------------------------------------------------- populations


def stream(num: int = 500) -> tuple[Any, Any]:
    data = open_data(f"sea:records={num}")
    return data, Recipe(data.schema, model="mlp:8", engine="reference", on_error="quarantine")


@pytest.mark.parametrize("delay", [None, "10"])
def test_trials_that_share_a_pass_score_as_each_alone_does(delay: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data, recipe = stream()
    changes: list[dict[str, Any]] = [
        {"optimizer": "sgd", "learning_rate": 0.05},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"optimizer": "auto", "learning_rate": None},
        {"model": "linear", "optimizer": "sgd", "learning_rate": 0.5},
    ]
    trials = [Trial(Recipe(**{**vars_of(recipe), **change}), 2) for change in changes]
    alone = []
    for trial in trials:
        trainer = build(trial.recipe)
        summary = trainer.learn(data.train, update_size=2, label_delay=delay)
        alone.append(1 - summary.metrics["accuracy"])
    calls = []
    transform = Features.transform
    monkeypatch.setattr(Features, "transform", lambda *a, **k: calls.append(1) or transform(*a, **k))  # type: ignore[func-returns-value]
    population = StreamPopulation(trials, data.train, "error", delay)
    first = population.advance(0.5, quiet)
    assert first.keys() == {0, 1, 2, 3}
    population.alive = [1, 2, 3]
    scores = population.advance(1.0, quiet)
    assert scores == pytest.approx({place: alone[place] for place in (1, 2, 3)}, abs=1e-12)
    monkeypatch.undo()
    size = min(build(trial.recipe).learner.engine.chunk_size(2) for trial in trials)
    assert len(calls) == -(-500 // size), "features are computed once for all trials"


def vars_of(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


def test_trials_of_fit_score_as_each_alone_does_and_learn_no_record_that_they_are_scored_on() -> None:
    data, recipe = stream()
    train, held = hold_out(data.train, 0.2, seed=3)
    assert isinstance(train, Subset) and isinstance(held, Subset)
    trials = [
        Trial(Recipe(**{**vars_of(recipe), "optimizer": "sgd", "learning_rate": rate}), size)
        for rate, size in ((0.05, 16), (0.01, 4))
    ]
    population = BatchPopulation(trials, train, held, "loss", epochs=2)
    population.advance(0.5, quiet)
    population.alive = [1]
    shown: list[float] = []
    (score,) = population.advance(1.0, shown.append).values()
    trainer = build(trials[1].recipe)
    trainer.fit(train, batch_size=4, epochs=2)
    assert score == trainer.evaluate(held)["loss"]
    assert shown == sorted(shown) and shown[-1] == pytest.approx(1.0)


def test_a_trial_of_fit_that_diverges_is_the_worst() -> None:
    data, recipe = stream()
    wild = {**vars_of(recipe), "optimizer": "sgd", "learning_rate": 1e30, "max_skips": 3}
    train, held = hold_out(data.train, 0.2)
    population = BatchPopulation([Trial(Recipe(**wild), 1)], train, held, "error", epochs=1)
    assert population.advance(1.0, quiet)[0] > 0.3


# ---------------------------------------------------------------- a study that is killed and goes on


class Formula:
    """A population whose scores follow from the settings alone."""

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self.alive = list(range(len(settings)))
        self._scores = [
            abs(np.log10(one["learning_rate"] or 0.2) + 2) + (one["optimizer"] != "adam") + len(one["model"]) / 50
            for one in settings
        ]

    def advance(self, share: float, show: Callable[[float], None]) -> dict[int, float]:
        show(share)
        return {place: float(self._scores[place] + 0.3 * (1 - share) * (place % 3)) for place in self.alive}


SPACE = space_for("learn", {})


def search(
    folder: Path,
    make: Callable[[Sequence[dict[str, Any]]], Population] = Formula,
    *,
    facts: Any = None,
    space: Space = SPACE,
    **how: Any,
) -> list[Found]:
    with Search(folder, space, facts or {"kind": "learn"}, make, **how) as study:
        return study.run(11, 4, quiet)


class Stop(Exception):
    """The search was killed here."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """The trials of a search that nobody has killed."""
    return search(tmp_path_factory.mktemp("whole") / "study")


@pytest.mark.parametrize("moment", [0, 3, 5, 10, 20])
def test_a_search_that_was_killed_at_any_moment_finds_the_same(
    moment: int, whole: list[Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(whole) == 11 and [trial.score for trial in whole if trial.finished] == sorted(
        trial.score for trial in whole if trial.finished
    )
    count = itertools.count()

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(count) == moment:
                raise Stop
            return original(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("_suggest", "_tell"):
            patch.setattr(Search, name, dying(getattr(Search, name)))
        with pytest.raises(Stop):
            search(tmp_path / "cut")
    again = search(tmp_path / "cut", resume=True)
    assert [trial.to_json() for trial in again] == [trial.to_json() for trial in whole]


def test_a_search_finds_what_is_best_and_begins_with_the_defaults(whole: list[Found]) -> None:
    found = whole
    by_number = sorted(found, key=lambda trial: trial.number)
    assert [trial.settings for trial in by_number[:4]] == [SPACE.settings(values) for values in SPACE.starts()[:4]]
    assert by_number[0].settings == {"model": "mlp:256", "optimizer": "auto", "learning_rate": None}
    assert len({json.dumps(trial.settings) for trial in found}) == len(found)
    assert all(1 <= len(trial.scores) <= len(RUNGS) for trial in found)
    assert found[0].settings["optimizer"] == "adam" and found[0].finished


def test_a_study_is_only_gone_on_with_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no study"):
        search(tmp_path / "none", resume=True)
    with pytest.raises(SettingError, match="open already"), Search(tmp_path / "a", SPACE, {}, Formula):
        search(tmp_path / "a", resume=True)
    with pytest.raises(SettingError, match="holds a study already"):
        search(tmp_path / "a")
    with pytest.raises(CheckpointError, match="kind fit"):
        search(tmp_path / "a", facts={"kind": "fit"}, resume=True)


@given(st.sampled_from(["fit", "learn"]), st.sampled_from([{}, {"model": "linear"}, {"optimizer": "adam"}]))
def test_a_space_searches_what_is_not_stated(kind: Any, stated: dict[str, Any]) -> None:
    space = space_for(kind, stated)
    for values in space.starts():
        settings = space.settings(values)
        assert stated.items() <= settings.items()
        assert settings.keys() == {"model", "optimizer", "learning_rate", *(["batch_size"] if kind == "fit" else [])}
        assert (settings["learning_rate"] is None) == (settings["optimizer"] == "auto")


# ---------------------------------------------------------------- the command


def documented(heading: str) -> set[str]:
    found = re.search(rf"^#+ {heading}$(.*?)(?=^#|\Z)", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert found, heading
    return set(re.findall(r"^\| `(\w+)` \|", found[1], flags=re.MULTILINE))


@pytest.mark.parametrize("kind", ["fit", "learn"])
def test_what_tune_finds_is_taken_as_it_is(kind: str) -> None:
    """Of what it is tested on, nothing is looked at: a label there would be refused."""
    Path("test.csv").write_text(csv_text([(a, b, k, "unheard-of") for a, b, k, _ in rows(50)]))
    how = ["--batch", "--epochs", "1"] if kind == "fit" else ["--online"]
    words = ["--target", "label", "--test", "test.csv", "--seed", "3", "--run", "t", *FEW, *how]
    answer = run("tune", "good.csv", "--json", *words)
    assert answer.code == 0 and answer.err == "", answer
    found = answer.json
    assert found.keys() == documented("Keys of tune")
    assert len(found["trials"]) == 4 and found["objective"] == "error" and 0 <= found["score"] < 0.6
    file = json.loads(Path("t/tuned.json").read_text())
    assert file["settings"] == found["settings"] and file["for"] == kind
    assert found["settings"]["model"] == "linear" and found["settings"]["seed"] == 3
    assert "<svg" in Path("t/report.html").read_text()
    again = run(kind, "good.csv", "--tuned", "t/tuned.json", "--test", "0.1", "--run", "a", "--json")
    assert again.code == 0, again.err
    spec = millstream.load("a").spec
    assert spec is not None
    for name in ("model", "optimizer", "learning_rate", "engine", "seed"):
        assert spec[name] == found["settings"][name], name
    if kind == "fit":
        assert again.json["updates"] == -(-again.json["records"] // found["settings"]["batch_size"])
    wins = run(kind, "good.csv", "--tuned", "t", "--optimizer", "adagrad", "--test", "0", "--run", "b", "--json")
    assert wins.code == 0, wins.err
    assert "adagrad" in wins.json["optimizer"].lower()
    other = "learn" if kind == "fit" else "fit"
    assert f"settings for {kind}" in refusal(run(other, "good.csv", "--tuned", "t"))


def test_an_online_search_scores_its_best_as_learn_does() -> None:
    answer = run("tune", "sea:records=800", "--run", "t", "--json", *FEW)
    assert answer.code == 0, answer.err
    again = run("learn", "sea:records=800", "--tuned", "t", "--run", "a", "--json")
    assert 1 - again.json["metrics"]["accuracy"] == pytest.approx(answer.json["score"], abs=1e-12)


def test_lr_alone_is_a_range_test() -> None:
    answer = run("tune", "good.csv", "--lr", "--model", "linear", "--run", "t", "--json")
    assert answer.code == 0 and answer.err == "", answer
    found = answer.json
    assert found.keys() == documented("Keys of tune --lr")
    assert found["for"] == "fit" and found["rates"][0] < found["suggestion"] < found["rates"][-1]
    assert "<svg" in Path("t/report.html").read_text()
    spec_of = run("fit", "good.csv", "--tuned", "t", "--run", "a", "--epochs", "1", "--json")
    assert spec_of.json["learning_rate"] == found["settings"]["learning_rate"]
    told = run("tune", "good.csv", "--lr", "--model", "linear", "--rates", "1e-3,1", "--online", "--run", "u")
    assert told.code == 0 and "suggested η" in told.out and "▲" in told.out and "learn good.csv --tuned" in told.out


def test_lr_of_a_trainer_made_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("own_trainer.py").write_text(
        "import torch, millstream\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Linear(3, 1)\n"
        "x = torch.randn(3000, 3)\n"
        "source = x, x.sum(1, keepdim=True)\n"
        "trainer = millstream.Trainer(model, 'mse', torch.optim.SGD(model.parameters(), lr=9.0))\n"
    )
    answer = run("tune", "own_trainer:trainer", "--lr", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["settings"].keys() == {"learning_rate"} and answer.json["file"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-"], "a pipe to tune on"),
        (["good.csv", "--lr", "--trials", "3"], "--trials for a range test"),
        (["good.csv", "--rates", "1,2"], "--rates for a search"),
        (["good.csv", "--online", "--batch-size", "8"], "--batch-size for tuning learn"),
        (["good.csv", "--batch", "--label-delay", "8"], "--label-delay for tuning fit"),
        (["good.csv", "--optimizer", "adma"], "optimizer 'adma'"),
        (["good.csv", "--lr", "--rates", "1"], "two rates"),
        (["good.csv", "--column", "label=number", "--objective", "error"], "error for numbers"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(words: list[str], said: str) -> None:
    if "label=number" in words:
        Path("good.csv").write_text(csv_text([(a, b, k, str(a + b)) for a, b, k, _ in rows()]))
    assert said in refusal(run("tune", *words))


def test_a_file_that_holds_no_settings_is_refused() -> None:
    assert "No such file" in refusal(run("fit", "good.csv", "--tuned", "none.json"))
    Path("other.json").write_text("{}")
    assert "holds no settings" in refusal(run("fit", "good.csv", "--tuned", "other.json"))
    assert "--tuned beside --from" in refusal(run("fit", "good.csv", "--tuned", "other.json", "--from", "a"))


def test_without_optuna_the_pip_command_is_said_and_lr_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for package, name in ((millstream.studies, "search"), (millstream.cli, "searching")):
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    assert "pip install 'millstream[tune]'" in refusal(run("tune", "good.csv"))
    assert run("tune", "good.csv", "--lr", "--model", "linear", "--json").code == 0


def test_a_search_that_is_killed_goes_on_and_finds_the_same() -> None:
    words = ["good.csv", "--batch", "--epochs", "1", "--seed", "1", "--trials", "9", "--side-by-side", "3"]
    words += ["--model", "linear", "--engine", "reference", "--json"]
    command = [sys.executable, "-m", "millstream", "tune", *words, "--run", "cut"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends and num_ended("cut/study.sqlite") < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= num_ended("cut/study.sqlite") <= 9 and not Path("cut/tuned.json").exists()
    again = run("tune", *words, "--run", "cut", "--resume")
    assert again.code == 0, again.err
    whole = run("tune", *words, "--run", "whole").json
    assert again.json["trials"] == whole["trials"] and again.json["settings"] == whole["settings"]


def num_ended(path: str) -> int:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as study:
            return int(study.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
