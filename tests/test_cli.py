"""The command line as a user meets it. Run: pytest tests/test_cli.py"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from command_line import CLASSES, Answer, csv_text, jsonl_text, letters, refusal, rows, run, train
from millstream.cli import cli
from millstream.cli.output import print_json
from millstream.cli.progress import StepProgress
from millstream.sources import StdinSource

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
MNIST = Path(__file__).parent / "fixtures" / "mnist-small.parquet"


@pytest.fixture(autouse=True)
def a_folder_of_its_own(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # One cache for all tests: compiled kernels are kept in it.
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here
    Path("good.csv").write_text(csv_text(rows()))


def documented(heading: str) -> set[str]:
    """The words in code in the first column of the table below a heading of docs/commands.md."""
    found = re.search(rf"^#+ {heading}$(.*?)(?=^#|\Z)", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert found, heading
    return set(re.findall(r"^\| `?([\w./ ]+?)`? \|", found[1], flags=re.MULTILINE)) - {"key", "name", "code"} | (
        {"name"} & set(re.findall(r"^\| `(name)`", found[1], flags=re.MULTILINE))
    )


# ---------------------------------------------------------------- --json and what is documented


@pytest.mark.parametrize("kind", ["fit", "learn"])
def test_json_of_training_is_one_object_with_the_documented_keys(kind: str) -> None:
    once = ["--batch-size", "64", "--epochs", "1"] if kind == "fit" else []
    answer = train(kind, "good.csv", "--run", "run", *once)
    found = answer.json
    assert found.keys() == documented("Keys of fit and learn")
    assert found["finished"] is True and found["checkpoint"].startswith("run/checkpoints/")
    assert found["metrics"]["accuracy"] > 0.3 and found["metrics"]["window_count"] == found["records"]
    assert (found["test"] is None) == (kind == "learn")
    assert found["records"] == (300 if kind == "learn" else 300 - found["test"]["count"])
    assert found["updates"] == (300 if kind == "learn" else -(-found["records"] // 64))
    assert answer.err == ""


def test_json_has_no_numbers_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [1.5, (float("-inf"), {"c": float("inf")})], "d": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN"}
    Path("one.csv").write_text(csv_text([(a, b, k, "same") for a, b, k, _ in rows()]))
    assert train("learn", "one.csv").json["metrics"]["accuracy"] > 0


def test_json_of_evaluate_and_data() -> None:
    train("learn", "good.csv", "--run", "run")
    found = run("evaluate", "run", "good.csv", "--json").json
    assert found.keys() == documented("Keys of evaluate")
    assert found["metrics"]["count"] == 300 and found["metrics"]["num_refused"] == 0
    names = [item["name"] for item in run("data", "list", "--json").json["data_sets"]]
    assert "mnist" in names and "sea" in names
    assert run("data", "show", "elec2", "--json").json["rows"] == 45_312


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "words", "arms"),
    [
        (
            "good.csv",
            ["--epochs", "2"],
            ["batch", "online", "batch_tuned", "online_tuned", "batch_auto", "online_auto"],
        ),
        (
            "sea:records=2000",
            ["--label-delay", "0,10"],
            ["online_auto", "online", "micro_batch", "retrain", "frozen"],
        ),
    ],
)
def test_json_of_compare_has_the_documented_keys(data: str, words: list[str], arms: list[str]) -> None:
    answer = run("compare", data, "--model", "linear", "--seeds", "2", "--rates", "0.01,0.1", "--json", *words)
    assert answer.code == 0 and answer.err == ""
    found, through_time = answer.json, data.startswith("sea")
    assert found.keys() == documented("Keys of compare") - ({"target_accuracy"} if through_time else set())
    assert list(found["strategies"]) == arms
    keys = documented("Keys of a strategy")
    always = {"records", "updates", "seconds", "records_per_second", "learning_rate", "engine", "curve"}
    for arm in found["strategies"].values():
        assert arm.keys() <= keys, arm.keys() - keys
        assert always | {"test_accuracy", "test_loss", "prequential_accuracy"} <= arm.keys()
        assert arm["curve"] and arm["records"] and arm["updates"]
        assert (arm["test_accuracy"] is None) == through_time
    assert {key for arm in found["strategies"].values() for key in arm} | {"baselines"} >= keys - {
        *("baselines", "kappa_temporal", "prequential_loss", "prequential_loss_interval", "grid"),
        *("time_to_target", "test_accuracy_interval", "test_loss_interval", "prequential_accuracy_interval"),
    }
    assert found["verdict"] and Path("report.html").stat().st_size > 10_000


def test_the_run_folder_and_the_exit_codes_are_as_documented() -> None:
    train("learn", "good.csv", "--run", "run")
    assert {path.name for path in Path("run").iterdir()} == {n.rstrip("/") for n in documented("The run folder")}
    assert documented("Exit codes") == {"0", "1", "2", "130", "141"}
    line = json.loads((train("fit", "good.csv", "--run", "b"), Path("b/metrics.jsonl").read_text())[1].splitlines()[0])
    described = re.search(r"`metrics.jsonl` \| (.*?)\|", DOCUMENT)
    assert described and line.keys() | {"test"} == set(re.findall(r"`(\w+)`", described[1]))


# ---------------------------------------------------------------- help and usage


def every_command(command: click.Command = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(found for name, one in below for found in every_command(one, (*path, name)))]


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_is_whole_and_says_what_every_option_is(path: tuple[str, ...]) -> None:
    answer = run(*path, "--help")
    assert answer.code == 0 and not answer.err
    assert "..." not in answer.out.replace("[ARGS]...", "").replace("NAMES...", "")
    assert max(map(len, answer.out.splitlines())) <= 110
    command: Any = cli
    for name in path:
        command = command.commands[name]
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lern", "x"], "command 'lern'.*try learn"),
        (["data", "shw"], "command 'shw'.*try show"),
        (["learn", "x", "--lerning-rate", "1"], "option --lerning-rate.*try --learning-rate"),
        (["learn", "x", "--bogus"], "option --bogus.*see `millstream learn --help`"),
        (["learn"], "no DATA"),
        (["predict", "run"], "no DATA"),
        (["learn", "x", "y", "z"], "unexpected extra argument"),
        (["learn", "x", "--lr"], "'--lr', which requires an argument"),
    ],
)
def test_a_mistake_on_the_line_is_told_in_one_line(words: list[str], said: str) -> None:
    assert re.search(said, refusal(run(*words)))


def test_no_command_shows_the_help() -> None:
    answer = run()
    assert answer.code == 2 and "Commands:" in answer.err and not answer.out


# ---------------------------------------------------------------- standard input


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("kind", ["learn", "fit"])
def test_standard_input_gives_what_the_file_gives(kind: str, form: str) -> None:
    text = csv_text(rows(1500)) if form == "csv" else jsonl_text(rows(1500))
    Path(f"all.{form}").write_text(text)
    words = ["--test", "0", *(["--update-size", "5"] if kind == "learn" else ["--epochs", "1"])]
    piped = train(kind, "-", *words, stdin=text.encode()).json
    filed = train(kind, f"all.{form}", *words).json
    assert piped["records"] == 1500
    assert piped["metrics"] == filed["metrics"]


def test_a_second_pipe_is_not_taken_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CACHE", "cache")
    found = [train("fit", "-", stdin=csv_text(rows(300, seed)).encode()).json["metrics"]["loss"] for seed in (0, 1)]
    assert found[0] != found[1]
    assert not list(Path("cache").glob("*.arrow"))


def test_peeking_into_a_pipe_takes_nothing() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a,b\n1,2\n3,4\n")
    source = StdinSource(reading, patience_seconds=0.2)
    source.declare({"a": pa.float64()})
    for _ in range(2):
        seen = source.peek(1)
        assert seen is not None and seen.inputs.to_pydict() == {"a": [1.0], "b": [2]}
    os.write(writing, b"5.5,6\n")
    os.close(writing)
    chunks = [chunk.inputs.to_pydict()["a"] for chunk in source.read(size=10)]
    assert chunks == [[1.0, 3.0], [5.5]] and source.peek(1) is None
    os.close(reading)


def test_whole_numbers_may_be_followed_by_others() -> None:
    records = [(k, k % 7, "u" if k % 2 else "v") for k in range(400)] + [(0.5, 1.25, "u")]
    text = csv_text(records, "a,b,label")
    assert train("learn", "-", stdin=text.encode()).json["records"] == 401
    Path("n.csv").write_text(text)
    assert train("learn", "n.csv").json["records"] == 401


def test_a_pipe_that_was_left_goes_on_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = csv_text(rows(1200)).splitlines(keepends=True)
    words = ["learn", "-", "--model", "linear", "--engine", "reference", "--json", "--label-delay", "7", CLASSES]
    whole = run(*words, "--run", "whole", stdin="".join(lines).encode()).json
    answer = interrupted(monkeypatch, 1, *words, "--run", "cut", stdin="".join(lines).encode())
    done = json.loads(answer.out)["records"]
    assert answer.code == 130 and 0 < done < 1200
    rest = "".join([lines[0], *lines[1 + done :]]).encode()
    found = run(*words, "--run", "cut", "--resume", stdin=rest).json
    assert found["records"] == 1200 and found["metrics"] == whole["metrics"]
    assert exported("whole") == exported("cut")


def test_a_pipe_that_ended_is_gone_on_with_by_the_next_one() -> None:
    lines = csv_text(rows(400)).splitlines(keepends=True)
    train("learn", "-", "--run", "run", stdin="".join(lines[:201]).encode())
    rest = "".join([lines[0], *lines[201:]]).encode()
    assert train("learn", "-", "--run", "run", "--resume", stdin=rest).json["records"] == 200
    state = json.loads(max(Path("run/checkpoints").glob("*/state.json")).read_text())
    assert state["position"] == 400 and state["phase"]["number"] == 1


def test_a_run_begins_with_the_weights_of_another() -> None:
    Path("history.csv").write_text(csv_text(rows(2000)))
    Path("events.csv").write_text(csv_text([(b, k, a, y) for a, b, k, y in rows(300, 1)], "b,kind,a,label"))
    train("fit", "history.csv", "--epochs", "3", "--lr", "0.1", "--run", "old")
    before = exported("old")
    fresh = train("learn", "events.csv", "--target", "label").json
    words = ["--from", "old", "--lr", "0.02", "--json"]
    found = run("learn", "events.csv", *words, "--run", "new").json
    assert found["metrics"]["log_loss"] < fresh["metrics"]["log_loss"] and found["learning_rate"] == 0.02
    assert exported("old") == before != exported("new")
    assert run("learn", "events.csv", "--run", "new", "--resume", "--json").json["metrics"] == found["metrics"]
    assert run("learn", "-", *words, stdin=Path("events.csv").read_bytes()).json["metrics"] == found["metrics"]
    assert "--model beside --from old" in refusal(run("learn", "events.csv", "--from", "old", "--model", "mlp:4"))
    assert "no column 'a' in other.csv" in refusal(run("learn", other_file(), "--from", "old"))


def other_file() -> str:
    Path("other.csv").write_text("b,kind,label\n1,x,high\n")
    return "other.csv"


# ---------------------------------------------------------------- runs: Ctrl-C, resume, refusals


def exported(folder: str) -> bytes:
    assert run("export", folder, f"{folder}.safetensors").code == 0
    return Path(f"{folder}.safetensors").read_bytes()


def interrupted(monkeypatch: pytest.MonkeyPatch, steps: int, *words: str, stdin: bytes | None = None) -> Answer:
    """A command that gets Ctrl-C after so many chunks."""
    shown = StepProgress.show
    left = [steps]

    def show(self: StepProgress, step: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        shown(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(StepProgress, "show", show)
        return run(*words, stdin=stdin)


@pytest.mark.parametrize("kind", ["fit", "learn"])
def test_ctrl_c_commits_and_says_how_to_go_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("many.csv").write_text(csv_text(rows(2600)))
    words = [kind, "many.csv", "--model", "mlp:4", "--engine", "reference"]
    words += (
        ["--epochs", "3", "--batch-size", "8", "--validation", "0.1"]
        if kind == "fit"
        else ["--label-delay", "20", "--update-size", "4"]
    )
    assert run(*words, "--run", "whole").code == 0
    answer = interrupted(monkeypatch, 2, *words, "--run", "cut")
    assert answer.code == 130
    assert "go on with the same command and --resume --run cut" in answer.err
    answer = interrupted(monkeypatch, 3, *words, "--run", "cut", "--resume")
    assert answer.code == 130
    assert run(*words, "--run", "cut", "--resume").code == 0
    assert exported("whole") == exported("cut")
    assert Path("whole/metrics.jsonl").read_bytes() == Path("cut/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lr", "0.5"], "--learning-rate 0.5 for a run that began with a race of rates"),
        (["--model", "mlp:4"], "--model mlp:4"),
        (["--seed", "3"], "--seed 3"),
        (["--nonfinite", "skip"], "--nonfinite skip"),
        (["--class-weights", "1,2,3"], "--class-weights"),
        (["--window", "7"], "--window 7"),
        (["--batch-size", "9"], "update size 9 for a run that began with auto"),
        (["--target", "kind"], "columns that are not read as they were"),
        (["--test", "0.3"], "source .* for a run that began with"),
        (["--no-shuffle"], "shuffle False for a run that began with True"),
    ],
)
def test_resuming_with_other_settings_is_refused(words: list[str], said: str) -> None:
    train("fit", "good.csv", "--run", "run")
    before = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert re.search(said, refusal(run("fit", "good.csv", "--run", "run", "--resume", *words)))
    assert sorted(path.name for path in Path("run/checkpoints").iterdir())[0] == before[0]


def test_resuming_what_is_done_and_with_more_epochs() -> None:
    once = train("fit", "good.csv", "--epochs", "1", "--run", "run").json
    again = train("fit", "good.csv", "--epochs", "1", "--run", "run", "--resume").json
    assert again["updates"] == once["updates"]
    assert train("fit", "good.csv", "--run", "run", "--resume", "--epochs", "3").json["updates"] == 3 * once["updates"]
    whole = train("fit", "good.csv", "--epochs", "3", "--run", "whole").json
    assert whole["metrics"] == train("fit", "good.csv", "--epochs", "3", "--run", "run", "--resume").json["metrics"]
    assert exported("whole") == exported("run")


def test_runs_get_free_names_and_the_newest_is_resumed() -> None:
    folders = [train("learn", "good.csv").json["checkpoint"].split("/")[1] for _ in range(2)]
    assert folders == ["good.csv-learn-1", "good.csv-learn-2"]
    assert train("learn", "good.csv", "--resume").json["checkpoint"].startswith("runs/good.csv-learn-2/")
    assert "no run runs/good.csv-fit-N" in refusal(run("fit", "good.csv", "--resume"))
    assert "holds a run already" in refusal(run("learn", "good.csv", "--run", "runs/good.csv-learn-1"))


# ---------------------------------------------------------------- quarantine


BAD_ROWS = {50: "1.0,abc,x,high", 60: "1.0,2.0", 70: "1.0,2.0,x,", 80: "inf,1.0,y,low"}


def with_bad_rows() -> bytes:
    lines = csv_text(rows()).splitlines()
    for number, text in BAD_ROWS.items():
        lines[number] = text
    return ("\n".join(lines) + "\n").encode().replace(b"1.0,2.0\n", b"\xff,2.0,x,low\n1.0,2.0\n", 1)


def test_bad_records_go_to_the_dead_letters_and_leave_holes() -> None:
    Path("bad.csv").write_bytes(with_bad_rows())
    assert train("learn", "bad.csv", "--on-error", "quarantine", "--run", "run").json["rejected"] == 5
    found = letters("run")
    assert [letter["where"] for letter in found] == [f"bad.csv:{line}" for line in (51, 61, 62, 72, 82)]
    assert [letter["position"] for letter in found] == [49, 59, 60, 70, 80]
    reasons = ["'abc' in column 'b'", "not UTF-8", "2 fields; wanted 4", "no label", "with inf"]
    assert all(reason in letter["reason"] for reason, letter in zip(reasons, found, strict=True))
    assert found[0]["record"] == "1.0,abc,x,high" and found[2]["record"] == "1.0,2.0"
    state = json.loads(max(Path("run/checkpoints").glob("*/state.json")).read_text())
    assert state["position"] == 301 and state["phase"]["records"] == 296


def test_each_bad_record_of_a_fit_is_told_once_with_its_line() -> None:
    Path("bad.csv").write_bytes(with_bad_rows())
    words = ["--on-error", "quarantine", "--test", "0", "--epochs", "3", "--run", "run"]
    found = train("fit", "bad.csv", *words).json
    assert found["rejected"] == 5 and found["records"] == 3 * 296
    assert sorted(letter["where"] for letter in letters("run")) == [f"bad.csv:{n}" for n in (51, 61, 62, 72, 82)]


# ---------------------------------------------------------------- Python objects


MODULE = """
import torch, millstream
from torch import nn
rng = torch.Generator().manual_seed(0)
source = (torch.randn(300, 3, generator=rng), torch.randint(2, (300,), generator=rng))
def net(num_inputs, num_outputs):
    return nn.Sequential(nn.Linear(num_inputs, 5), nn.Tanh(), nn.Linear(5, num_outputs))

torch.manual_seed(0)
model = net(3, 2)
trainer = millstream.Trainer(model, "cross_entropy", torch.optim.Adam(model.parameters(), lr=0.01), engine="reference")

def make_trainer():
    schema = millstream.infer(__import__("pyarrow.csv").csv.read_csv("numbers.csv"), target="label")
    torch.manual_seed(0)
    model = net(2, 3)
    return millstream.Trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                              features=millstream.Features(schema), commit_seconds=1e9, engine="reference")
"""


def module(name: str, text: str = MODULE) -> str:
    Path(f"{name}.py").write_text(text)
    return name


def test_a_trainer_of_ones_own_with_its_data() -> None:
    name = module("run_of_mine", MODULE + "\ntest = (torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64))\n")
    found = run("fit", f"{name}:trainer", "--batch-size", "16", "--epochs", "1", "--run", "run", "--json").json
    assert found["records"] == 300 and found["test"]["count"] == 10 and found["learning_rate"] == 0.01
    assert "the run of a Python object" in refusal(run("evaluate", "run", "good.csv"))


def test_a_function_that_makes_a_trainer_for_named_data(monkeypatch: pytest.MonkeyPatch) -> None:
    name = module("maker_of_mine")
    Path("numbers.csv").write_text(csv_text([(a, b, label) for a, b, _, label in rows(3000)], "a,b,label"))
    words = ["learn", f"{name}:make_trainer", "numbers.csv", "--json"]
    whole = run(*words, "--run", "whole").json
    assert whole["records"] == 3000 and whole["metrics"]["accuracy"] > 0.7
    assert interrupted(monkeypatch, 2, *words, "--run", "cut").code == 130
    assert run(*words, "--run", "cut", "--resume").json["metrics"] == whole["metrics"]


def test_a_model_of_ones_own() -> None:
    name = module("model_of_mine")
    Path("numbers.csv").write_text(csv_text([(a, b, label) for a, b, _, label in rows()], "a,b,label"))
    words = ["--model", f"{name}:net", "--engine", "reference", "--run", "run", "--json"]
    assert run("learn", "numbers.csv", *words).json["updates"] == 300
    assert list(load_file_of("run")) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def load_file_of(folder: str) -> dict[str, torch.Tensor]:
    exported(folder)
    return dict(sorted(load_file(f"{folder}.safetensors").items()))


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (MODULE, ["--lr", "0.1"], "--learning-rate beside the Python object"),
        (MODULE, ["--target", "y"], "--target beside the Python object"),
        ("trainer = 7", [], "int at .*:trainer; wanted a millstream.Trainer"),
        (MODULE.replace("source =", "records ="), [], "without data; wanted a source; define `source`"),
        ("def trainer(): raise OSError('no disk')", [], r"which failed at .*\.py:1: OSError: no disk"),
        ("import no_such_thing", [], "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def trainer(:", [], r"which failed at .*\.py:1: SyntaxError"),
        ("", [], "no 'trainer' in module"),
    ],
)
def test_what_is_no_trainer_is_refused(text: str, words: list[str], said: str) -> None:
    name = module(f"object_{abs(hash((text, *words))) % 10**9}", text)
    assert re.search(said, refusal(run("fit", f"{name}:trainer", *words)))


# ---------------------------------------------------------------- predict, evaluate, export


def test_predictions_are_the_same_in_every_form() -> None:
    train("learn", "good.csv", "--run", "run")
    Path("new.csv").write_text(csv_text([record[:3] for record in rows(1500, 1)], "a,b,kind"))
    lines = [json.loads(line) for line in run("predict", "run", "new.csv").out.splitlines()]
    assert [line["record"] for line in lines] == list(range(1500))
    assert {line["prediction"] for line in lines} <= {"high", "low", "middle"}
    readers = {
        "csv": pa.csv.read_csv,
        "parquet": pa.parquet.read_table,
        "arrow": lambda path: pa.ipc.open_file(path).read_all(),
        "jsonl": lambda path: pa.Table.from_pylist([json.loads(one) for one in Path(path).read_text().splitlines()]),
    }
    for form, read in readers.items():
        assert run("predict", "run", "new.csv", "-o", f"p.{form}").out == ""
        table = read(f"p.{form}")
        assert table["record"].to_pylist() == list(range(1500))
        assert table["prediction"].to_pylist() == [line["prediction"] for line in lines]
        assert np.allclose(table["probability"].to_numpy(), [line["probability"] for line in lines], atol=1e-6)
    piped = run("predict", "run", "-", stdin=Path("new.csv").read_bytes())
    assert [json.loads(line) for line in piped.out.splitlines()] == lines


def test_labels_are_not_looked_at_when_predicting() -> None:
    train("learn", "good.csv", "--run", "run")
    records = rows(20, 1)
    Path("known.csv").write_text(csv_text(records))
    Path("empty.csv").write_text(csv_text([(*record[:3], "") for record in records]))
    Path("odd.csv").write_text(csv_text([("", record[2], "?", *record[:2]) for record in records], "id,kind,label,a,b"))
    answers = {run("predict", "run", f"{name}.csv").out for name in ("known", "empty", "odd")}
    assert len(answers) == 1
    assert "no label in column 'label' in empty.csv:2" in refusal(run("evaluate", "run", "empty.csv"))


def test_records_that_cannot_be_predicted_keep_their_numbers() -> None:
    train("learn", "good.csv", "--on-error", "quarantine", "--run", "run")
    Path("new.csv").write_text("a,b,kind\n1,2,x\ninf,2,x\n3,4,y\n")
    answer = run("predict", "run", "new.csv")
    assert [json.loads(line)["record"] for line in answer.out.splitlines()] == [0, 2]
    assert "1 records could not be predicted" in answer.err


def test_numbers_are_predicted_in_their_own_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    Path("n.csv").write_text(csv_text(list(zip(x, 5000 + 300 * x, strict=True)), "x,y"))
    train("learn", "n.csv", "--lr", "0.05", "--run", "run")
    found = [json.loads(line)["prediction"] for line in run("predict", "run", "n.csv").out.splitlines()]
    assert np.abs(np.array(found) - (5000 + 300 * x)).mean() < 30
    assert run("evaluate", "run", "n.csv", "--json").json["metrics"]["mae"] < 30


def test_exported_weights_fit_a_plain_torch_model() -> None:
    words = ["--model", "mlp:16", "--run", "run", "--test", "0.2", "--epochs", "3"]
    assert train("fit", MNIST, *words).json["test"]["count"] > 50
    plain = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    exported("run")
    plain.load_state_dict(load_file("run.safetensors"), strict=True)
    images = pa.parquet.read_table(MNIST)["image"].combine_chunks()
    while pa.types.is_nested(images.type):
        images = images.flatten()
    pixels = torch.from_numpy(images.to_numpy().astype(np.float32)).reshape(-1, 784) / 255
    with torch.no_grad():
        expected = plain(pixels).softmax(-1).max(-1)
    lines = [json.loads(line) for line in run("predict", "run", MNIST).out.splitlines()]
    assert [int(line["prediction"]) for line in lines] == expected.indices.tolist()
    assert np.allclose([line["probability"] for line in lines], expected.values.numpy(), atol=1e-5)


def test_asking_a_run_changes_nothing_in_it() -> None:
    train("learn", "good.csv", "--run", "run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    for words in (["evaluate", "run", "good.csv"], ["predict", "run", "good.csv"], ["export", "run", "w.safetensors"]):
        assert run(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


# ---------------------------------------------------------------- what people see


def test_lines_keep_within_110_columns_and_have_no_colours() -> None:
    wide = ["number_with_a_rather_long_name_" + str(k) for k in range(60)]
    text = csv_text(
        [[*rng, "yes" if rng[0] > 0 else "no"] for rng in np.random.default_rng(0).normal(size=(50, 60))], ""
    )
    Path("wide.csv").write_text(",".join([*wide, "label"]) + text)
    answers = [run("learn", "wide.csv", "--model", "linear", "--engine", "reference")]
    answers += [run("data", "list"), run("data", "show", "elec2"), run("evaluate", "runs/wide.csv-learn-1", "wide.csv")]
    for answer in answers:
        assert answer.code == 0
        for line in (*answer.out.splitlines(), *answer.err.splitlines()):
            assert len(line) <= 110 and "\033" not in line and line == line.rstrip(), line
    assert "… and 50 more columns" in answers[0].err and "label" in answers[0].err


def millstream(*words: str, **settings: Any) -> subprocess.Popen[bytes]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "millstream", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["lern"], ["learn", "x", "--lr", "0"]])
def test_help_and_mistakes_are_answered_at_once(words: list[str]) -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        process = millstream(*words)
        process.communicate(timeout=20)
        times.append(time.perf_counter() - started)
        assert process.returncode == (0 if "--help" in words else 2)
    assert min(times) < 0.8  # 0.1 s on an idle machine; torch alone would take more than this


@pytest.mark.slow
def test_a_reader_that_stops_reading_ends_predict_quietly() -> None:
    Path("many.csv").write_text(csv_text(rows(20_000)))
    train("learn", "good.csv", "--run", "run")
    process = millstream("predict", "run", "many.csv")
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["record"] == 0
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.slow
def test_a_slow_pipe_is_learned_as_it_comes_and_ctrl_c_does_not_wait_for_it() -> None:
    process = millstream(
        *("learn", "-", "--run", "run", "--commit-seconds", "0", "--model", "linear", "--json", CLASSES),
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    lines = csv_text(rows()).encode().splitlines(keepends=True)

    def learned() -> int:
        states = sorted(Path("run/checkpoints").glob("0*/state.json"))
        return int(json.loads(states[-1].read_text())["phase"]["records"]) if states else 0

    def await_records(number: int) -> None:
        ends = time.monotonic() + 300  # loops may have to be compiled, on a busy machine
        while learned() < number:
            assert time.monotonic() < ends and process.poll() is None
            time.sleep(0.05)

    sent = 0
    for number in (1, 3, 40):  # records
        for line in lines[sent : number + 1]:
            process.stdin.write(line)
        process.stdin.flush()
        sent = number + 1
        await_records(number)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(20) == 130  # the pipe is still open, and nothing comes
    assert time.monotonic() - started < 10
    out, err = process.communicate()
    assert json.loads(out)["records"] == 40 and b"--resume --run run" in err
    rest = b"".join([lines[0], *lines[41:]])
    assert run("learn", "-", "--run", "run", "--resume", "--json", CLASSES, stdin=rest).json["records"] == 300


@pytest.mark.slow
def test_a_fit_that_is_killed_twice_ends_with_the_same_bytes() -> None:
    Path("many.csv").write_text(csv_text(rows(3000)))
    words = ["fit", "many.csv", "--model", "mlp:8", "--batch-size", "8", "--epochs", "40", "--commit-seconds", "0.05"]
    words += ["--validation", "0.1", "--engine", "reference", "--optimizer", "adam", "--json"]
    assert run(*words, "--run", "whole").code == 0
    kills = 0
    for attempt in range(3):
        process = millstream(*words, "--run", "cut", *(["--resume"] if attempt else []))
        if attempt < 2:
            before = set(Path("cut/checkpoints").glob("0*"))
            ends = time.monotonic() + 60
            while len(set(Path("cut/checkpoints").glob("0*")) - before) < 2 and process.poll() is None:
                assert time.monotonic() < ends
                time.sleep(0.01)
            process.kill()
        process.communicate(timeout=90)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2 and process.returncode == 0
    assert exported("whole") == exported("cut")
    assert Path("whole/metrics.jsonl").read_bytes() == Path("cut/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_pipe_does_not() -> None:
    Path("many.csv").write_text(csv_text(rows(3000)))
    words = ["fit", "many.csv", "--model", "linear", "--epochs", "30", "--batch-size", "8", "--engine", "reference"]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "110"}
    process = subprocess.Popen(
        [sys.executable, "-m", "millstream", *words], stdout=subprocess.PIPE, stderr=follower, env=environment
    )
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            seen += os.read(leader, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    shown = seen.decode()
    assert "\033[" in shown and "━" in shown and "epoch 1/30" in shown and "/s" in shown
    frames = [re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]+", shown)]
    assert max(map(len, frames)) <= 110
    assert b"\033" not in out
    process = millstream(*words, "--run", "again")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"\033" not in out + err and "━".encode() not in err


@pytest.mark.slow
def test_ctrl_c_ends_a_comparison_at_once() -> None:
    process = millstream(
        "compare", "sea:records=60000", "--seeds", "20", "--engine", "reference", "--report", "", start_new_session=True
    )
    time.sleep(8)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == b"" and b"Traceback" not in err
