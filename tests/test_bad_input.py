"""What is bad is told in one line, with exit code 2, and nothing is lost. Run: pytest tests/test_bad_input.py"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from command_line import CLASSES, csv_text, jsonl_text, letters, refusal, rows, run, train
from millstream import checkpoint

GOOD = rows()
LINES = csv_text(GOOD).splitlines()


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug here
    Path("good.csv").write_text(csv_text(GOOD))
    Path("numbers.csv").write_text(csv_text([(a, b, label) for a, b, _, label in GOOD], "a,b,label"))


def with_line(number: int, text: str, name: str = "bad.csv") -> str:
    """The good file with one line replaced (line 1 is the header)."""
    Path(name).write_bytes("\n".join([*LINES[: number - 1], text, *LINES[number:], ""]).encode("latin-1"))
    return name


def written(name: str, content: bytes | str) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def table(**columns: object) -> str:
    pa.parquet.write_table(pa.table(columns), "bad.parquet")
    return "bad.parquet"


def damaged_parquet() -> str:
    pa.parquet.write_table(pa.table({"a": np.arange(4000.0), "y": ["u", "v"] * 2000}), "bad.parquet")
    return written("bad.parquet", Path("bad.parquet").read_bytes()[:-500])


A, B = [1.0, 2.0, 3.0, 4.0] * 20, ["u", "v"] * 40

DATA: dict[str, tuple[Callable[[], str], str]] = {
    "no such file": (lambda: "goood.csv", "no file goood.csv; .*try 'good.csv'"),
    "no such folder": (lambda: "nowhere/a.csv", "no file nowhere/a.csv"),
    "no such pattern": (lambda: "*.nope", r"no file like \*.nope"),
    "a folder": (lambda: ".", r"folder .*use a pattern"),
    "a data set misspelt": (lambda: "mnsit", "data 'mnsit'.*try mnist"),
    "options of no generator": (lambda: "elec2:records=5", "write elec2"),
    "an unknown option": (lambda: "sea:recrods=5", "option 'recrods'"),
    "a device": (lambda: "/dev/null", "no regular file"),
    "an empty file": (lambda: written("e.csv", ""), "empty file e.csv"),
    "blank lines": (lambda: written("e.csv", "\n\n\n"), "e.csv without records"),
    "a header only": (lambda: written("e.csv", "a,b,label\n"), "e.csv without records"),
    "no header": (lambda: written("e.csv", "1,2,3\n4,5,6\n"), "only numbers in its first line"),
    "one column": (lambda: written("e.csv", "label\nx\ny\nx\n"), "without any field to learn from"),
    "a column twice": (lambda: written("e.csv", "a,a,label\n1,2,x\n"), "column 'a' twice in e.csv"),
    "a short row": (lambda: with_line(200, "1.0,2.0,x"), "bad.csv:200: 3 fields; wanted 4"),
    "a long row": (lambda: with_line(200, "1.0,2.0,x,high,7"), "bad.csv:200: 5 fields; wanted 4"),
    "a text for a number": (
        lambda: with_line(200, "1.0,abc,x,high"),
        "bad.csv:200: 'abc' in column 'b'; wanted a number",
    ),
    "a quote without end": (lambda: with_line(300, '1.0,2.0,"x,high'), "bad.csv:300: a quote that is never closed"),
    "no label": (lambda: with_line(200, "1.0,2.0,x,"), "no label in column 'label' in bad.csv:200"),
    "infinity": (lambda: with_line(200, "inf,2.0,x,high"), "column 'a' with inf in bad.csv:200.*--nonfinite impute"),
    "bytes of another code": (
        lambda: with_line(200, "1.0,2.0,\xe9t\xe9,high"),
        "bad.csv:200: bytes that are not UTF-8",
    ),
    "a header of another code": (lambda: written("e.csv", b"a,\xe9t\xe9\n1,x\n"), "e.csv in another encoding"),
    "noise": (lambda: written("e.csv", bytes(range(256)) * 20), "neither text nor Parquet nor Arrow"),
    "gzip cut short": (
        lambda: written("e.csv.gz", gzip.compress(csv_text(GOOD).encode())[:900]),
        "e.csv.gz .*get it again",
    ),
    "parquet cut short": (damaged_parquet, "bad.parquet .*whole Parquet"),
    "nan in parquet": (lambda: table(a=[1.0, np.nan, *A], y=["u", "v", *B]), "column 'a' with nan in bad.parquet:2"),
    "no label in parquet": (lambda: table(a=A, y=[*B[:-1], None]), "no label in column 'y' in bad.parquet:80"),
    "a label of nan": (lambda: table(a=A, y=[0.5, *A[:-2], np.nan]), "label nan in column 'y' in bad.parquet:80"),
    "a label of infinity": (lambda: table(a=A, y=[0.5, *A[:-2], np.inf]), "label inf in column 'y' in bad.parquet:80"),
    "names for labels": (
        lambda: written("e.csv", csv_text([(k, f"id{k}") for k in range(300)], "a,y")),
        "distinct values",
    ),
    "a JSON array": (lambda: written("e.json", '[{"a": 1}]'), r"e.json with a JSON array.*jq"),
    "half a JSON line": (lambda: written("e.jsonl", jsonl_text(GOOD) + '{"a": 1, "b"'), "e.jsonl:301: no JSON"),
    "JSON without keys": (lambda: written("e.jsonl", "{}\n{}\n"), "without a single record"),
    "other columns in the second file": (
        lambda: (written("p1.csv", csv_text(GOOD)), written("p2.csv", "a,b\n1,2\n"), "p?.csv")[-1],
        "p2.csv with the columns a, b; wanted those of p1.csv",
    ),
}


@pytest.mark.parametrize(("kind", "case"), [(("learn", "fit")[k % 2], case) for k, case in enumerate(DATA)])
def test_bad_data_is_told_in_one_line(kind: str, case: str) -> None:
    make, said = DATA[case]
    answer = run(kind, make(), "--model", "linear", "--engine", "reference", "--test", "0")
    assert re.search(said, refusal(answer)), answer.err
    assert answer.out == ""


def test_a_new_label_after_the_first_records_is_told_with_its_line() -> None:
    for kind in ("learn", "fit"):
        words = [CLASSES, "--model", "linear", "--engine", "reference"]
        said = refusal(run(kind, with_line(250, "1.0,2.0,x,hihg"), *words))
        assert "label 'hihg' in column 'label' in bad.csv:250; wanted one of the classes high, low, middle" in said
        assert "--column label=class:new=class,capacity=N" in said and "--on-error quarantine" in said


def test_a_text_after_more_numbers_than_are_looked_at_is_a_bad_record() -> None:
    written("long.csv", csv_text([*rows(12_000), ("1.0", "abc", "x", "high"), *GOOD]))
    said = refusal(run("learn", "long.csv", "--engine", "reference", "--update-size", "64"))
    assert "long.csv:12002: 'abc' in column 'b'; wanted a number" in said
    assert train("learn", "long.csv", "--on-error", "quarantine", "--update-size", "64").json["records"] == 12_300


def test_what_was_learned_before_a_bad_record_is_kept() -> None:
    lines = csv_text(rows(1500)).splitlines()
    written("bad.csv", "\n".join([*lines[:1200], "1.0,2.0,x", *lines[1200:]]))
    said = refusal(run("learn", "bad.csv", "--model", "linear", "--engine", "reference", "--run", "run"))
    assert "bad.csv:1201: 3 fields" in said
    state, _, _ = checkpoint.newest(Path("run/checkpoints"))
    assert state["phase"]["records"] == 1024  # whole chunks
    assert run("evaluate", "run", "good.csv").code == 0


@pytest.mark.parametrize("policy", ["error", "skip", "impute"])
def test_numbers_that_are_not_finite(policy: str) -> None:
    name = table(a=[np.nan, np.inf, *A], y=["u", "v", *B])
    words = ["--nonfinite", policy, "--run", "run", "--engine", "reference"]
    if policy == "error":
        assert "--nonfinite impute or --nonfinite skip" in refusal(run("learn", name, *words))
        shutil.rmtree("run")
        words += ["--on-error", "quarantine"]
    found = train("learn", name, *words).json
    assert (found["records"], found["rejected"]) == ((82, 0) if policy == "impute" else (80, 2))
    assert [letter["where"] for letter in letters("run")] == [f"{name}:{k}" for k in (1, 2)][: found["rejected"]]


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("\ufeff" + csv_text(GOOD), 300),
        (csv_text(GOOD).replace("\n", "\r\n"), 300),
        ("\n\n" + csv_text(GOOD).rstrip("\n"), 300),
        (csv_text(GOOD).replace(",", ";"), 300),
        (csv_text(GOOD).replace(",x,", ',"x, or so",'), 300),
        (csv_text([(*record[:3], "same") for record in GOOD]), 300),
        (csv_text([(*record[:3], 2.5) for record in GOOD]), 300),
        (csv_text([("", "NA", record[2], record[3]) for record in GOOD]), 300),
    ],
    ids=[
        "byte order mark",
        "CRLF",
        "no last line end",
        "semicolons",
        "quotes",
        "one class",
        "one number",
        "all missing",
    ],
)
def test_what_looks_odd_but_is_fine(text: str, num: int) -> None:
    assert train("learn", written("odd.csv", text)).json["records"] == num
    assert train("fit", "odd.csv", "--test", "0", "--epochs", "1").json["records"] == num


def test_columns_in_another_order_are_found_by_name() -> None:
    written("p1.csv", csv_text(GOOD))
    written("p2.csv", csv_text([(y, k, b, a) for a, b, k, y in GOOD], "label,kind,b,a"))
    assert train("learn", "p?.csv", "--target", "label", "--run", "both").json["records"] == 600
    written("p3.csv", csv_text([*GOOD, *GOOD]))
    in_one = train("learn", "p3.csv").json["metrics"]
    Path("p3.csv").unlink()
    assert train("learn", "p?.csv", "--target", "label").json["metrics"] == in_one


def test_very_many_classes() -> None:
    rng = np.random.default_rng(0)
    labels = [f"c{k}" for k in rng.integers(10_000, size=12_000)]
    written("many.csv", csv_text([(k % 13, label) for k, label in enumerate(labels)], "a,y"))
    found = train("learn", "many.csv", "--update-size", "8").json
    assert found["records"] == 12_000 and found["metrics"]["accuracy"] >= 0


# ---------------------------------------------------------------- options

OPTIONS = {
    "--target lable": "no column 'lable'.*label",
    "--column knd=category": "column 'knd'.*kind",
    "--column kind=categry": "kind among category",
    "--column kind": "NAME=KIND",
    "--column a=number:foo=1": "option 'foo'",
    "--time tme": "no column 'tme'",
    "--label-time tme": "no column 'tme'",
    "--time kind": "wanted an ISO 8601 time",
    "--model lnear": "model 'lnear'.*try 'linear'",
    "--model mlp:0": "wanted mlp:WIDTH",
    "--model cnn": "",
    "--loss crossentropy": "loss 'crossentropy'; wanted one of cross_entropy",
    "--loss mse": "loss 'mse' for target 'label' of 3 classes",
    "--loss huber:x": "huber:NUMBER",
    "--optimizer sdg": "optimizer 'sdg'; wanted one of auto, sgd",
    "--engine fuzed": "engine 'fuzed'; wanted one of auto",
    "--device nonsense": "device 'nonsense'",
    "--device meta": "device 'meta'",
    "--lr 0": "--learning-rate 0; wanted a number above 0",
    "--lr -1": "--learning-rate -1",
    "--lr nan": "--learning-rate nan",
    "--lr inf": "--learning-rate inf",
    "--lr abc": "--learning-rate abc",
    "--weight-decay -1": "--weight-decay -1; wanted a number, 0 or more",
    "--clip-norm 0": "--clip-norm 0",
    "--clip-value -1": "--clip-value -1",
    "--class-weights 1,2": "class weights 1, 2 for 3 classes",
    "--class-weights 1,x,2": "wanted numbers with commas between",
    "--class-weights 1,-2,2": "not negative",
    "--threads 0": "--threads 0; wanted a whole number, 1 or more",
    "--update-size 0": "--update-size 0",
    "--update-size 1.5": "--update-size 1.5",
    "--label-delay x": "label delay 'x'",
    "--label-delay 3w": "wanted records .10., time .30s",
    "--label-delay 2h": "on data without a time column",
    "--commit-seconds -1": "--commit-seconds -1",
    "--window 0": "--window 0",
    "--max-skips 0": "--max-skips 0",
    "--test 1.5": "--test 1.5; wanted a share between 0 and 1",
    "--test nan": "--test nan",
    "--test nofile.csv": "no file nofile.csv",
    "--seed -1": "--seed -1",
    "--seed 99999999999999999999": "--seed 99999999999999999999",
    "--on-error stopp": "--on-error stopp; wanted one of stop, quarantine; try stop",
    "--nonfinite zap": "--nonfinite zap; wanted one of error, skip, impute",
    "--run good.csv/run": "'Not a directory' at good.csv/run",
    "--run /proc/none/run": "/proc/none/run",
    "--from nowhere": "no whole checkpoint in nowhere/checkpoints",
    "--resume --run nowhere": "no whole checkpoint in nowhere/checkpoints",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_bad_options_are_told_before_anything_is_written(words: str) -> None:
    engine = [] if "--engine" in words else ["--engine", "reference"]  # which needs no compiler
    answer = run("learn", "good.csv", *words.split(), *engine)
    assert re.search(OPTIONS[words], refusal(answer)), answer.err
    assert answer.out == "" and not Path("nowhere").exists()


@pytest.mark.parametrize(
    "words", ["--batch-size 0", "--epochs 0", "--epochs x", "--validation 0", "--validation 1", "--validation nan"]
)
def test_bad_options_of_fit(words: str) -> None:
    assert words.split()[0] in refusal(run("fit", "good.csv", *words.split()))


@pytest.mark.parametrize(
    ("data", "words", "said"),
    [
        ("numbers.csv", "--rates a", "--rates a; wanted numbers with commas"),
        ("numbers.csv", "--rates 0.1,-1", "wanted rates above 0"),
        ("numbers.csv", "--rates nan", "wanted rates above 0"),
        ("numbers.csv", "--seeds 0", "--seeds 0"),
        ("numbers.csv", "--epochs 0", "--epochs 0"),
        ("numbers.csv", "--processes -1", "--processes -1"),
        ("numbers.csv", "--seconds 0", "--seconds 0"),
        ("numbers.csv", "--label-delay x", "label delay 'x'"),
        ("numbers.csv", "--label-delay 5", "--label-delay for data whose order is not that of time.*--ordered"),
        ("numbers.csv", "--model linear --model lnear", "model 'lnear'"),
        ("numbers.csv", "--optimizer x", "optimizer 'x'"),
        ("numbers.csv", "--report numbers.csv/r.html", "numbers.csv/r.html.*--report"),
        ("numbers.csv", "--report .", "'Is a directory'"),
        ("sea:records=500", "--target-score 0.9", "--target-score for data in the order of time"),
        ("-", "", "a pipe to be compared on"),
        ("nothing.csv", "", "no file nothing.csv"),
    ],
)
def test_bad_options_of_compare_are_told_before_the_work(data: str, words: str, said: str) -> None:
    assert re.search(said, refusal(run("compare", data, "--engine", "reference", *words.split())))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    for words in (["learn", "good.csv"], ["fit", "good.csv"]):
        assert "device 'cuda'" in refusal(run(*words, "--device", "cuda", "--run", "run"))
    assert not Path("run").exists()
    train("learn", "good.csv", "--run", "run")
    assert "device 'cuda'" in refusal(run("evaluate", "run", "good.csv", "--device", "cuda"))


# ---------------------------------------------------------------- models of one's own

MODULE = """
import torch
from torch import nn
def wide(i, o): return nn.Linear(i, o + 3)
def narrow(i, o): return nn.Linear(i, o - 1)
def other_inputs(i, o): return nn.Linear(i + 1, o)
def fails(i, o): raise RuntimeError("no weights\\ntoday")
def three(a, b, c): return nn.Linear(1, 1)
def seven(): return 7
def double(i, o): return nn.Linear(i, o).double()
def empty(i, o): return nn.Identity()
def lazy(): return nn.LazyLinear(3)
def batch_norm(i, o): return nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o))
class Mean(nn.Linear):
    def forward(self, x): return super().forward(x).mean(0)
class Text(nn.Linear):
    def forward(self, x): return "high"
number = 7
"""
MODELS = {
    "wide": "a model with 6 outputs for 3 classes",
    "narrow": "a model with 2 outputs for 3 classes",
    "other_inputs": r"fails on inputs of shape \(1, 2\) torch.float32",
    "fails": r"which failed at .*\.py:7: RuntimeError: no weights; ",
    "three": "missing 1 required positional argument",
    "seven": "int from .*:seven'; wanted a torch.nn.Module",
    "double": "same dtype|Double",
    "empty": "no parameters",
    "lazy": "lazy layers",
    "batch_norm": "BatchNorm1d in train mode with an update of one record",
    "Mean": r"outputs of shape \(3,\) for one record",
    "Text": "gives outputs str for one record",
    "number": "int at .*:number'",
    "missing": "no 'missing' in module",
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_serve_is_refused_at_once(name: str) -> None:
    module = f"models_{abs(hash(MODULE)) % 10**6}_{os.getpid()}_{name}"
    written(f"{module}.py", MODULE)
    words = ["--model", f"{module}:{name}", "--engine", "reference"]
    assert re.search(MODELS[name], refusal(run("learn", "numbers.csv", *words)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"which failed at .*\.py:1: SyntaxError"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("\nraise ValueError('no good')\n", r"at .*\.py:2: ValueError: no good"),
        (None, "no module 'absent_module'"),
    ],
)
def test_a_module_that_cannot_be_imported(text: str | None, said: str) -> None:
    name = "absent_module" if text is None else f"broken_{abs(hash(text)) % 10**9}"
    if text is not None:
        written(f"{name}.py", text)
    assert re.search(said, refusal(run("learn", "numbers.csv", "--model", f"{name}:f")))


# ---------------------------------------------------------------- checkpoints, disks, outputs


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def checkpoints() -> list[Path]:
    return sorted(Path("run/checkpoints").glob("0*"))


ASK = (["evaluate", "run", "good.csv"], ["predict", "run", "good.csv"], ["export", "run", "w.safetensors"])


def test_what_is_no_run_is_refused() -> None:
    Path("run").mkdir()
    for words in ASK:
        assert "no whole checkpoint in run/checkpoints" in refusal(run(*words))
    assert not Path("w.safetensors").exists()


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_it_is_used() -> None:
    train("fit", "good.csv", "--epochs", "2", "--run", "run")
    flip(checkpoints()[-1] / "weights.safetensors")
    answer = run("evaluate", "run", "good.csv")
    assert answer.code == 0 and "millstream: passed over a torn or damaged checkpoint" in answer.err
    assert train("fit", "good.csv", "--epochs", "3", "--run", "run", "--resume").json["finished"]


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
def test_when_all_checkpoints_are_damaged_it_is_said(name: str) -> None:
    train("fit", "good.csv", "--epochs", "2", "--run", "run")
    for path in checkpoints():
        flip(path / name)
    for words in (*ASK, ["fit", "good.csv", "--epochs", "2", "--run", "run", "--resume"]):
        assert "no whole checkpoint in run/checkpoints (passed over a torn" in refusal(run(*words))
    assert "holds a run already" in refusal(run("fit", "good.csv", "--run", "run"))


def test_checkpoints_of_another_version_or_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    train("learn", "good.csv", "--run", "run")
    folder = Path("run/checkpoints")
    state, _, _ = checkpoint.newest(folder)
    changed = {
        "state of version 2": {**state, "version": 2},
        "a recipe with future": {**state, "spec": {**state["spec"], "future": 1}},
        "a checkpoint of another model": {**state, "spec": {**state["spec"], "model": "mlp:7"}},
        "the run of a Python object": {**state, "spec": None},
    }
    for said, other in changed.items():
        checkpoint.write(folder, other, keep=1)
        for words in (["evaluate", "run", "good.csv"], ["learn", "good.csv", "--run", "run", "--resume"]):
            assert said in refusal(run(*words))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 9)
        checkpoint.write(folder, state, keep=1)
    assert "a checkpoint of format 9" in refusal(run("evaluate", "run", "good.csv"))


def test_a_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "good.csv", "--epochs", "3", "--model", "linear", "--engine", "reference", "--run", "run"]
    written, left = checkpoint.write_pieces, [2]

    def write(path: Path, parts: Sequence[Any]) -> dict[str, Any]:
        left[0] -= path.name == "weights.safetensors"
        if left[0] < 0:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return written(path, parts)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_pieces", write)
        said = refusal(run(*words))
    assert "'No space left on device' at run/checkpoints" in said and "go on with --resume" in said
    assert len(checkpoints()) == 2 and not list(Path("run/checkpoints").glob(".new*"))
    assert run(*words, "--resume").code == 0
    assert run(*words[:-1], "whole").code == 0
    for name in ("run", "whole"):
        assert run("export", name, f"{name}.safetensors").code == 0
    assert Path("run.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_outputs_that_cannot_be_written() -> None:
    train("learn", "good.csv", "--run", "run")
    for words, said in (
        (["predict", "run", "good.csv", "-o", "p.txt"], "--output p.txt; wanted a file name in .csv"),
        (["predict", "run", "good.csv", "-o", "good.csv/p.csv"], "'Not a directory' at good.csv/p.csv"),
        (["predict", "run", "good.csv", "-o", "none/p.parquet"], "No such file or directory.* at none/p.parquet"),
        (["export", "run", "good.csv/w"], "'Not a directory' at good.csv/w"),
        (["export", "run", "none/w"], "'No such file or directory' at none/w"),
        (["export", "run", "cache"], "'Is a directory' at cache"),
    ):
        Path("cache").mkdir(exist_ok=True)
        assert re.search(said, refusal(run(*words)))
    assert sorted(path.name for path in Path().glob(".*")) == []


def test_a_prediction_that_fails_leaves_no_half_a_file() -> None:
    train("learn", "good.csv", "--run", "run")
    written("new.csv", csv_text([record[:3] for record in rows(3000)], "a,b,kind") + "1,2\n")
    written("p.csv", "of before\n")
    assert "new.csv:3002: 2 fields" in refusal(run("predict", "run", "new.csv", "-o", "p.csv"))
    assert Path("p.csv").read_text() == "of before\n"
    assert "no column 'kind'" in refusal(run("predict", "run", "numbers.csv"))
    assert "records without labels" in refusal(run("evaluate", "run", csv_without_labels()))


def csv_without_labels() -> str:
    return written("unlabelled.csv", csv_text([record[:3] for record in GOOD], "a,b,kind"))


def test_records_to_test_on_are_looked_at_before_the_training() -> None:
    said = refusal(run("learn", "good.csv", "--test", csv_without_labels(), "--run", "run"))
    assert "no column 'label' in unlabelled.csv" in said and not Path("run").exists()


def test_what_was_learned_is_told_though_the_test_records_are_bad() -> None:
    written("test.csv", csv_text([*GOOD[:5], (1.0, 2.0, "x", "")]))
    words = ["learn", "good.csv", "--test", "test.csv", "--engine", "reference", "--json"]
    answer = run(*words)
    assert "no label in column 'label' in test.csv:7" in refusal(answer)
    assert answer.json["records"] == 300 and answer.json["finished"]
