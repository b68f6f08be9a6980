"""Runs that are killed, lose power and meet damaged files: a small share of the soak. Run: pytest tests/test_soak.py

The lossy disk needs /dev/fuse, fusermount3 and mfusepy; without them its tests are skipped and say so.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from soak import corruption, faults, kills, mount, planted, powercuts, scenarios, tally
from soak.lossy_state import Node
from torch import nn

from command_line import refusal, run
from millstream import Trainer
from millstream.errors import ModelError, SettingError, StorageError
from millstream.journal import Draft, Journal, segments
from millstream.runs import Run
from millstream.storage import make_folder
from millstream.studies.killing import Process, check_kills, fingerprints

SEED = 7
needs_a_disk = pytest.mark.skipif(bool(mount.why_not()), reason=mount.why_not() or "it can be mounted")

kills.make_ready()


@pytest.mark.slow
def test_two_hundred_kills() -> None:
    found = kills.kill(scenarios.few(), 200, SEED)
    assert (found.bad, found.num) == ([], 200)


def test_twenty_kills() -> None:
    found = kills.kill([scenarios.Scenario("tensors", engine="fused", tally=True)], 20, SEED)
    assert (found.bad, found.num) == ([], 20)


@needs_a_disk
@pytest.mark.slow
def test_sixty_power_cuts() -> None:
    found = powercuts.cut_power(powercuts.FEW, 60, SEED)
    assert (found.bad, found.num) == ([], 60)


@needs_a_disk
@pytest.mark.slow
def test_a_disk_that_fails_is_told_and_the_run_goes_on() -> None:
    found = faults.break_disk(faults.FEW, 12, SEED)
    assert found.bad == []
    assert all(f"{fault} told" in found.name for fault in faults.FAULTS)


@pytest.mark.slow
def test_no_damage_is_silent() -> None:
    found = corruption.corrupt(100, SEED)
    assert found.bad == []
    assert "refused" in found.name and "passed over" in found.name


def test_evil_checkpoints_are_refused_in_one_line_and_never_executed() -> None:
    found = corruption.evil()
    assert found.bad == [] and found.num >= 20


@pytest.mark.slow
@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: planted.Bug) -> None:
    found = planted.hunt(bug, SEED)
    if found.skipped:
        pytest.skip(found.skipped)
    assert found.bad, f"{bug.name} slipped through {found.num} {bug.part}"


# ---------------------------------------------------------------- the instruments


def test_a_tally_tells_what_was_left_out_learned_twice_and_in_another_order() -> None:
    ids = torch.arange(6)
    for learned, wrong in (
        (ids, 0),
        (ids[:5], 2),
        (torch.cat([ids, ids[:1]]), 2),
        (ids.flip(0), 1),
    ):
        model = tally.Tally(6)
        trainer = Trainer(model, tally.minus, torch.optim.SGD(model.parameters(), lr=1.0), engine="reference")
        trainer.learn((learned, torch.zeros(len(learned))))
        assert len(tally.complaints(trainer.state_dict(), 6)) == wrong


def test_what_was_not_synced_is_gone_after_a_cut() -> None:
    folder, file = Node(1, True), Node(2, False)
    folder.name("a", file)
    file.write(b"kept" * 300, 0)
    file.sync()
    folder.survive(random.Random(0), 0.0, set())
    assert folder.names == {}  # the file was synced, its name was not
    folder.name("a", file)
    folder.sync()
    file.write(b"lost", 4)
    folder.survive(random.Random(0), 0.0, set())
    assert bytes(folder.names["a"].seen) == b"kept" * 300


def test_a_second_sync_after_a_failed_one_keeps_nothing_more() -> None:
    file = Node(1, False)
    file.write(b"x" * 600, 0)
    file.fail_to_sync()
    file.sync()
    assert file.kept == bytes(600)
    file.write(b"y", 0)  # the first sector is written anew
    file.sync()
    assert file.kept == b"y" + b"x" * 511 + bytes(88)


def test_some_sectors_of_what_was_not_synced_may_survive() -> None:
    seen = set()
    for seed in range(20):
        file = Node(1, False)
        file.write(bytes(2048), 0)
        file.sync()
        file.write(b"n" * 2048, 0)
        file.survive(random.Random(seed), 0.5, set())
        sectors = [bytes(file.seen[first : first + 512]) for first in range(0, 2048, 512)]
        assert all(sector in (bytes(512), b"n" * 512) for sector in sectors)
        seen.add(sum(sector == b"n" * 512 for sector in sectors))
    assert len(seen) > 2


def test_failures_of_a_process_come_back_as_what_they_are() -> None:
    def with_setting() -> None:
        raise SettingError(got="a", wanted="b", do="c")

    def with_another() -> None:
        raise ZeroDivisionError("by zero")

    for do, kind, text in ((with_setting, SettingError, "got a"), (with_another, ModelError, "ZeroDivisionError")):
        process = Process(do)
        with pytest.raises(kind, match=text):
            process.wait(None, patience=30)
        process.kill()


# ---------------------------------------------------------------- what was mended


def test_a_segment_that_found_no_room_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says nothing of a full disk when it is closed: the tables would be left in a log that nobody finds."""
    real = segments.apsw.Connection

    class Full:
        def __init__(self, *settings: Any, **more: Any) -> None:
            self._real = real(*settings, **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def __enter__(self) -> Any:
            return self._real.__enter__()

        def __exit__(self, *how: Any) -> Any:
            return self._real.__exit__(*how)

        def wal_checkpoint(self, *_: Any, **__: Any) -> None:
            raise segments.apsw.FullError("database or disk is full")

    monkeypatch.setattr(segments.apsw, "Connection", Full)
    with pytest.raises(StorageError, match="full"):
        Journal(tmp_path / "journal")
    monkeypatch.undo()
    assert not list((tmp_path / "journal").glob("*.segment"))
    journal = Journal(tmp_path / "journal")
    journal.append(Draft(None, {"a": 1}, "decision"))
    journal.close()


@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_lines_that_are_not_as_they_were_committed_are_told(change: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.report({"loss": 0.5})
    run.commit({})
    run.close()
    path = tmp_path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[3] ^= 1
    path.write_bytes(data[:4] if change == "cut" else data)
    if change == "gone":
        path.unlink()
    run = Run(tmp_path, resume=True)
    _, problems = run.restore()
    run.close()
    assert [text for text in problems if "metrics.jsonl is not as it was committed" in text]


def test_every_new_name_above_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("millstream.storage.sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


# ---------------------------------------------------------------- millstream check --kill

MODULE = """
import torch, millstream
generator = torch.Generator().manual_seed(1)
source = torch.randn(3000, 8, generator=generator), torch.randint(3, (3000,), generator=generator)

class Forgetful(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = torch.nn.Linear(8, 3), 0
    def forward(self, x):
        self.calls += 1  # no checkpoint knows of it
        return self.inner(x) * (1 + self.calls / 1000)

def trainer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 3))
    return millstream.Trainer(model, "cross_entropy", torch.optim.Adam(model.parameters()), engine="reference")

def forgetful():
    torch.manual_seed(0)
    model = Forgetful()
    return millstream.Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1), engine="reference")

def with_a_run():
    return millstream.Trainer(torch.nn.Linear(8, 3), run="runs/mine")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_kill_run.py").write_text(MODULE)
    return "my_kill_run"


@pytest.mark.slow
def test_a_person_proves_it_on_his_own_model(module: str) -> None:
    done = run("check", f"{module}:trainer", "--kill", "8", "--update-size", "16", "--json")
    found = json.loads(done.out)
    assert (done.code, found["identical"], found["kills"]) == (0, True, 8)
    assert found["records"] == 3000 and found["verdict"].startswith("IDENTICAL")


@pytest.mark.slow
def test_a_model_with_state_that_no_checkpoint_holds_is_found_out(module: str) -> None:
    done = run("check", f"{module}:forgetful", "--kill", "60", "--update-size", "4", "--json", "--seconds", "60")
    found = json.loads(done.out)
    assert (done.code, found["identical"]) == (1, False)
    assert "learner.model.inner.weight" in found["differences"]


@pytest.mark.slow
def test_a_trainer_with_a_run_of_its_own_is_refused(module: str) -> None:
    assert "a run folder of its own" in refusal(run("check", f"{module}:with_a_run", "--kill", "3"))


def test_time_that_is_over_proves_nothing_more() -> None:
    def make() -> tuple[Trainer, object]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        made = Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1), engine="reference")
        return made, (torch.ones(99, 3), torch.ones(99).long())

    found = check_kills(make, num_kills=5, seconds=1e-6)
    assert found.is_identical is None and found.verdict.startswith("NOTHING PROVED")


def test_fingerprints_tell_one_bit(tmp_path: Path) -> None:
    for folder, bias in (("a", 0.0), ("b", 1e-45)):
        model = nn.Linear(1, 1)
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, bias)
        trainer = Trainer(model, "mse", torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / folder)
        trainer.commit()
        trainer.close()
    a, b = fingerprints(tmp_path / "a"), fingerprints(tmp_path / "b")
    assert [name for name in a if a[name] != b[name]] == ["learner.model.bias"]
