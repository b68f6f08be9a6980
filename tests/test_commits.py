"""Commits in the background: order, bad disks, kills at any instant. Run: pytest tests/test_commits.py"""

import contextlib
import errno
import json
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from millstream import checkpoint, commits, numerics, packing, runs
from millstream import lines as lines_module
from millstream.commits import Commits
from millstream.contracts import Event, Rejection
from millstream.errors import CheckpointError, SettingError, StorageError
from millstream.lines import Lines
from millstream.runs import Run
from millstream.trainer import Trainer


def state(number: int, size: int = 10) -> dict[str, Any]:
    return {"number": number, "t": torch.full((size,), float(number))}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While this event is not set, a thread that writes waits before its first byte."""
    go, write = threading.Event(), checkpoint.write_pieces

    def waits(path: Path, parts: Any) -> dict[str, Any]:
        assert go.wait(60)
        return write(path, parts)

    monkeypatch.setattr(checkpoint, "write_pieces", waits)
    yield go
    go.set()


def test_a_timed_commit_does_not_wait_and_holds_the_state_of_its_instant(tmp_path: Path, held: threading.Event) -> None:
    run = Run(tmp_path, commit_seconds=1e-9)
    now = state(1)
    assert run.commit_if_due(lambda: now) is None
    now["t"].fill_(7)  # the loop goes on
    run.report({"late": 1})
    assert run.commit_if_due(lambda: pytest.fail("one is in flight")) is None
    assert not checkpoint.exists(run.checkpoints)
    held.set()
    run.close()
    found, path, _ = checkpoint.newest(run.checkpoints)
    assert path.name == "00000000" and found["t"].tolist() == [1.0] * 10
    assert found["run"]["bytes"] == {"metrics": 0, "dead_letters": 0, "events": 0}


def test_a_commit_that_is_asked_for_waits_for_the_one_in_flight_and_for_itself(
    tmp_path: Path, held: threading.Event
) -> None:
    run = Run(tmp_path, commit_seconds=1e-9)
    run.commit_if_due(lambda: state(1))
    threading.Timer(0.2, held.set).start()
    path = run.commit(state(2))
    assert [each.name for each in checkpoint.kept(run.checkpoints)] == ["00000000", "00000001"]
    assert path.name == "00000001" and checkpoint.read(path)["number"] == 2
    assert run.commit_if_due(lambda: state(3)) == path


def test_those_who_wait_for_a_commit_are_told_once_it_is_durable(tmp_path: Path, held: threading.Event) -> None:
    run, told = Run(tmp_path, commit_seconds=1e-9), []

    def tell(tree: Any) -> None:
        told.append((tree["number"], checkpoint.verify(run.checkpoints / "00000000")["number"]))

    run.after.append(tell)
    run.commit_if_due(lambda: state(5))
    time.sleep(0.05)
    assert not told
    held.set()
    run.close()
    assert told == [(5, 5)]


def test_lines_are_cut_back_to_the_commit_and_written_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    synced, lines_synced, renamed = commits.sync, Lines.sync, Path.rename
    monkeypatch.setattr(Lines, "sync", lambda self: (order.append(self.path.name), lines_synced(self))[1])
    monkeypatch.setattr(commits, "sync", lambda path: (order.append(path.name), synced(path))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append("rename"), renamed(self, to))[1])
    run = Run(tmp_path)
    order.clear()  # of the journal that was made
    run.report({"a": 1})
    run.note([Event(3, "drift", "", 0.1)])
    run.reject([Rejection(2, "bad", "f:3", "half \udc80 of one")], 5)
    run.commit(state(1))
    files = ["metrics.jsonl", "dead_letters.jsonl", "events.jsonl"]
    new = ["weights.safetensors", "state.json", "manifest.json", ".new-00000000"]
    assert order == [*files, *new, "rename", "checkpoints"]
    run.report({"a": 2})
    run.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'
    again = Run(tmp_path, resume=True)
    again.restore()
    again.report({"a": 3})
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n{"a": 3}\n'
    letter = json.loads((tmp_path / "dead_letters.jsonl").read_text())
    assert letter["position"] == 7 and letter["record"] == "half \udc80 of one"


# ---------------------------------------------------------------- when


def test_the_default_interval_follows_from_the_cost_of_one(tmp_path: Path) -> None:
    found = Commits(tmp_path, {}, keep=3, seconds="auto")
    found.commit(state(1))
    assert 0 < found.pause <= found.cost and found.pause < found.took
    for cost, took, interval in ((0.001, 0.01, 1.0), (0.05, 0.1, 5.0), (0.02, 3.0, 30.0)):
        found.cost, found.took = cost, took
        assert found.interval == pytest.approx(interval)
    assert Commits(tmp_path, {}, keep=3, seconds=7).interval == 7
    for wrong in (-1, float("nan"), float("inf"), "often"):
        with pytest.raises(SettingError, match="commit_seconds"):
            Run(tmp_path / "run", commit_seconds=wrong)


def test_none_begins_before_its_time(tmp_path: Path) -> None:
    run = Run(tmp_path, commit_seconds=1000)
    assert run.commit_if_due(lambda: pytest.fail("too early")) is None
    path = run.commit(state(1))
    assert run.commit_if_due(lambda: pytest.fail("too early")) == path


# ---------------------------------------------------------------- disks that fail


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "weights.safetensors", "manifest.json", ".new-00000001", "checkpoints"]
)
def test_a_sync_that_failed_is_told_and_never_tried_again(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tries = Run(tmp_path, commit_seconds=1e-9), [0]
    first = run.commit(state(1))
    synced, lines_synced = commits.sync, Lines.sync

    def fails(path: Path) -> None:
        if path.name == name:
            tries[0] += 1
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(commits, "sync", lambda path: (fails(path), synced(path))[1])
    monkeypatch.setattr(Lines, "sync", lambda self: (fails(self.path), lines_synced(self))[1])
    run.commit_if_due(lambda: state(2))
    with pytest.raises(StorageError, match=r"got 'Input/output error' at .*; wanted .*; free some space"):
        for _ in range(1000):
            run.commit_if_due(lambda: state(3))
            time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(StorageError, match="a commit after a sync that failed"):
            run.commit(state(4))
        with pytest.raises(StorageError, match="a commit after a sync that failed"):
            run.commit_if_due(lambda: state(4))
    assert tries == [1]
    run.close()
    assert checkpoint.read(first)["number"] == 1
    assert checkpoint.newest(tmp_path / "checkpoints")[0]["number"] in ((1, 2) if name == "checkpoints" else (1,))


def test_a_full_disk_is_waited_out_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, commit_seconds=1e-9)
    run.commit(state(1))
    is_full, written = [True], os.write

    def write(file: int, data: Any) -> int:
        if is_full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, data)

    monkeypatch.setattr(packing.os, "write", write)
    assert lines_module.os.write is write
    with pytest.warns(UserWarning, match="no room for a commit .*learning goes on") as said:
        for number in range(30):
            run.report({"number": number, "filler": "x" * 1000})  # more than is written at once
            run.commit_if_due(lambda: state(2))
            time.sleep(0.002)
    assert len(said) == 1
    with pytest.raises(StorageError, match="No space left"):
        run.commit(state(3))
    assert [path.name for path in run.checkpoints.iterdir()] == ["00000000"]
    is_full[0] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.commit(state(4)).name == "00000001"
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(30))
    assert (
        checkpoint.newest(run.checkpoints)[0]["run"]["bytes"]["metrics"] == (tmp_path / "metrics.jsonl").stat().st_size
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_trainer_learns_on_while_a_real_disk_is_full(small_disk: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(1000, 100)  # 400 kB
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, optimizer=optimizer, engine="reference", run=small_disk / "run", commit_seconds=1e-9)
    trainer.learner.engine.chunk_size = lambda _: 50  # type: ignore[method-assign]
    ballast, num_chunks = small_disk / "ballast", 0
    with pytest.warns(UserWarning, match="No space left on device.*learning goes on") as said:
        for _ in trainer.steps((torch.randn(4000, 1000), torch.randint(100, (4000,))), update_size=50):
            num_chunks += 1
            if num_chunks == 1:
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):  # until nothing more goes in
                        pass
                before = checkpoint.kept(small_disk / "run" / "checkpoints")[-1]
            if num_chunks == 4:
                time.sleep(0.3)
            if num_chunks == 6:
                assert checkpoint.kept(small_disk / "run" / "checkpoints")[-1] >= before
                ballast.unlink()
    assert len(said) == 1 and trainer.position == 4000
    trainer.close()
    found, _, problems = checkpoint.newest(small_disk / "run" / "checkpoints")
    assert found["position"] == 4000 and not problems
    assert torch.equal(found["learner"]["model"]["weight"], model.weight)


def test_what_failed_in_the_last_commit_is_said_when_the_run_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, commit_seconds=1e-9)

    def fails(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "write_pieces", fails)
    run.commit_if_due(lambda: state(1))
    with pytest.warns(UserWarning, match="the last timed commit failed: got 'Permission denied'"):
        run.close()
    Run(tmp_path).close()  # the lock is free


# ---------------------------------------------------------------- numerics


def test_other_numerics_are_said_counted_and_refused_where_they_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    run = Run(tmp_path)
    run.commit(state(1))
    run.close()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    exact = Run(tmp_path, resume=True, exact=True)
    with pytest.raises(CheckpointError, match="MKL_CBWR was None, is COMPATIBLE; wanted the same ones"):
        exact.restore()
    exact.close()
    for number in (1, 2):
        again = Run(tmp_path, resume=True)
        assert again.restore()[1] == [
            f"MKL_CBWR was {'None' if number == 1 else 'COMPATIBLE'}, is {os.environ.get('MKL_CBWR')}: "
            "results may differ in the last bits"
        ]
        again.commit(state(2))
        again.close()
        assert again.numerics_changes == number
        monkeypatch.delenv("MKL_CBWR", raising=False)
    same = Run(tmp_path, resume=True, exact=True)
    assert same.restore()[1] == [] and same.numerics_changes == 2


def test_what_an_older_version_did_not_record_is_refused_only_where_all_must_be_the_same(tmp_path: Path) -> None:
    known = {name: value for name, value in numerics.numerics().items() if name != "numba"}
    checkpoint.write(tmp_path / "checkpoints", {"numerics": known, "run": {"bytes": dict.fromkeys(LINES, 0)}})
    run = Run(tmp_path, resume=True)
    assert run.restore()[1] == [] and run.numerics_changes == 0
    run.close()
    exact = Run(tmp_path, resume=True, exact=True)
    with pytest.raises(CheckpointError, match="numba was not recorded"):
        exact.restore()


LINES = ("metrics", "dead_letters", "events")


# ---------------------------------------------------------------- killed at any instant

NUM, SIZE = 480, 24


def trainer_in(folder: Path | None) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    made = Trainer(
        model, optimizer=optimizer, engine="reference", run=folder, commit_seconds=1e9, report_records=40, window=50
    )
    made.learner.engine.chunk_size = lambda _: SIZE  # type: ignore[method-assign]
    return made


def data() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(4)
    return torch.randn(NUM, 6, generator=rng), torch.randint(3, (NUM,), generator=rng)


def learn(trainer: Trainer, commit_at: set[int], resume: bool) -> None:
    """Commits in the background after these chunks, where none is in flight."""
    for step in trainer.steps(data(), resume=resume):
        if trainer.run is not None and step.place // SIZE in commit_at:
            trainer.run._commits._seconds = 1e-9
            trainer.run.commit_if_due(trainer.state_dict)
            trainer.run._commits._seconds = 1e9
    trainer.close()


def dies_at(instant: int, work: Callable[[], None], seed: int) -> int:
    """Does the work in a child whose disk is slow, and which is gone at the n-th of all instants that matter."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        count, lock, rng = [0], threading.Lock(), np.random.default_rng(seed)

        def before(function: Any, *, sleeps: float) -> Any:
            def called(*given: Any, **named: Any) -> Any:
                with lock:
                    count[0] += 1
                    pause = rng.uniform(0, sleeps)
                    if count[0] == instant:
                        os._exit(9)
                time.sleep(pause)
                return function(*given, **named)

            return called

        packing._PIECE = 64
        for owner, name in ((os, "write"), (os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, before(getattr(owner, name), sleeps=0.0005))
        Trainer._take = before(Trainer._take, sleeps=0.001)  # type: ignore[method-assign]
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


WHOLE: dict[str, Any] = {}


@settings(max_examples=8, deadline=None)
@given(
    kills=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    commit_at=st.sets(st.integers(1, NUM // SIZE), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_a_run_that_is_killed_while_it_commits_ends_bit_identical(
    kills: list[int], commit_at: set[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not WHOLE:
        folder = tmp_path_factory.mktemp("whole")
        learn(trainer_in(folder), set(), resume=False)
        WHOLE.update(checkpoint.newest(folder / "checkpoints")[0], lines=(folder / "metrics.jsonl").read_bytes())
    folder = tmp_path_factory.mktemp("killed")

    def go() -> None:
        begun = checkpoint.exists(folder / "checkpoints")
        trainer = trainer_in(None if begun else folder)
        if begun:
            assert trainer.open(folder, resume=True) == []
        learn(trainer, commit_at, resume=begun)

    for instant in kills:
        assert dies_at(instant, go, seed) in (0, 9)
        for path in checkpoint.kept(folder / "checkpoints")[-3:-1]:
            checkpoint.verify(path)
    go()
    found = checkpoint.newest(folder / "checkpoints")[0]
    for name in ("model", "optimizer"):
        assert flat(found["learner"][name]) == flat(WHOLE["learner"][name])
    assert flat(found["books"]) == flat(WHOLE["books"]) and found["position"] == NUM
    assert (folder / "metrics.jsonl").read_bytes() == WHOLE["lines"]


def flat(value: Any) -> Any:
    """Tensors and arrays as their bytes."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return repr(value)


def test_a_run_that_nobody_closes_finishes_its_commit(tmp_path: Path, held: threading.Event) -> None:
    run = Run(tmp_path, commit_seconds=1e-9)
    run.commit_if_due(lambda: state(1))
    threading.Timer(0.1, held.set).start()
    del run
    assert checkpoint.newest(tmp_path / "checkpoints")[0]["number"] == 1
    assert runs.Run(tmp_path, resume=True).restore()[0]["number"] == 1
