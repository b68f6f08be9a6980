"""What a journal does when its files are damaged, its disk is full or its process is killed.

Run: pytest tests/test_journal_damage.py
"""

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import apsw
import pyarrow as pa
import pytest

from millstream.contracts import Rejection
from millstream.errors import MillstreamError, StorageError
from millstream.journal import Draft, Journal, JournalReader, accept_loss, is_full, verify
from millstream.journal.mark import read_mark
from millstream.journal.segments import Segment


def filled(folder: Path, num: int = 12, *, is_closed: bool = True) -> Path:
    """A journal of three segments; if it is not closed, as a killed process leaves it, with its log."""
    with Journal(folder / "work", segment_bytes=120_000) as journal:
        for k in range(num):
            batch = pa.record_batch({"n": [k, k + 1000], "text": [f"text {k} " * 1500, None]})
            journal.append(Draft(batch, producer="p", sequence=2 * k), Draft(kind="decision", facts={"k": k}))
            journal.append(Draft(rejected=(Rejection(0, f"bad {k}"),), ids=[f"id {k}"]))
        if not is_closed:
            time.sleep(0.7)  # the mark is there by then
            shutil.copytree(folder / "work", folder / "left")
    return folder / ("work" if is_closed else "left")


def content(folder: Path) -> list[Any]:
    with Journal(folder) as journal:
        found = [
            (
                group.number,
                group.first,
                group.span,
                dict(group.facts),
                group.rejected,
                group.records and group.records.to_pydict(),
            )
            for group in journal.read(0)
        ]
    problems = verify(folder).problems
    if problems:
        raise StorageError(got=problems[0], wanted="", do="")
    return found


@pytest.mark.parametrize("is_closed", [True, False])
def test_no_damage_is_silent(tmp_path: Path, is_closed: bool) -> None:
    whole = filled(tmp_path, is_closed=is_closed)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    expected = content(copy)
    draws = random.Random(7)
    files = sorted(path.name for path in whole.iterdir() if path.stat().st_size and not path.name.endswith("-shm"))
    assert is_closed or any(name.endswith("-wal") for name in files)
    num_told = 0
    for trial in range(60):
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        path = copy / files[trial % len(files)]
        data = bytearray(path.read_bytes())
        place = draws.randrange(len(data))
        if trial % 5 == 0:
            del data[place:]
        else:
            data[place] ^= 1 << draws.randrange(8)
        path.write_bytes(data)
        try:
            assert content(copy) == expected, f"{path.name} at {place}"
        except MillstreamError as error:
            assert "\n" not in str(error)
            num_told += 1
    assert num_told > 20


def test_a_shorter_journal_names_what_is_lost_and_the_loss_can_be_accepted(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    last = sorted(folder.glob("*.segment"))[-1]
    database = sqlite3.connect(last)
    database.execute("DELETE FROM groups WHERE number > 30")
    database.commit()
    database.close()
    with pytest.raises(StorageError, match="ends at position 30, without positions 30 to 35"):
        Journal(folder)
    facts = accept_loss(folder)
    assert (facts["first"], facts["end"]) == (30, 36)
    with Journal(folder) as journal:
        assert journal.head.position == 36
        assert next(journal.read(35)).facts["what"] == "accepted loss"
        journal.append(Draft(pa.record_batch({"n": [1], "text": ["new"]})))
        assert journal.verify().is_sound
    assert accept_loss(folder) == {}


def test_damaged_records_become_holes_when_a_person_accepts_that(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    first = sorted(folder.glob("*.segment"))[0]
    database = sqlite3.connect(first)
    database.execute("UPDATE groups SET payload = zeroblob(length(payload)) WHERE number = 4")
    database.commit()
    database.close()
    with Journal(folder) as journal, pytest.raises(StorageError, match="positions 3 to 4 damaged"):
        list(journal.read(0))
    assert not verify(folder).is_sound
    assert accept_loss(folder)["emptied"] == [[3, 5]]
    with Journal(folder) as journal:
        groups = list(journal.read(0))
        assert groups[3].span == 2 and groups[3].records is not None and len(groups[3].records) == 0
        assert journal.verify().is_sound


def test_what_is_damaged_for_good_in_the_last_segment_is_cut_off_when_accepted(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    database = sqlite3.connect(sorted(folder.glob("*.segment"))[-1])
    database.execute("UPDATE groups SET digests = zeroblob(length(digests)) WHERE number = 34")
    database.commit()
    database.close()
    assert not verify(folder).is_sound
    facts = accept_loss(folder)
    with Journal(folder) as journal:
        assert journal.verify().is_sound and journal.head.position == 36 and facts["end"] == 36
        groups = list(journal.read(0))
        assert [g.number for g in groups][-2:] == [33, 36] and groups[-1].span == 36 - facts["first"]


@pytest.mark.parametrize("evil", ["text", "empty", "huge", "name", "other", "gone", "mark", "no mark"])
def test_evil_files_are_an_error_in_one_line(tmp_path: Path, evil: str) -> None:
    folder = filled(tmp_path)
    segments = sorted(folder.glob("*.segment"))
    if evil == "text":
        segments[-1].write_text("hello\n" * 10_000)
    elif evil == "empty":
        segments[-1].write_bytes(b"")
    elif evil == "gone":
        segments[1].unlink()
    elif evil == "name":
        (folder / "x.segment").write_bytes(segments[0].read_bytes())
    elif evil in ("huge", "other"):
        database = sqlite3.connect(segments[0])
        change = "payload = zeroblob(100000000)" if evil == "huge" else "facts = x'ff', chain = x''"
        database.execute(f"UPDATE groups SET {change} WHERE number = 1")
        database.commit()
        database.close()
    elif evil == "mark":
        (folder / "mark").write_bytes(b"\xff" * 100)
    else:
        (folder / "mark").unlink()
    with pytest.raises(StorageError) as caught:
        content(folder)
    assert "\n" not in str(caught.value)


class _Full:
    """A connection whose commits find the disk full, or fail, as often as asked."""

    def __init__(self, connection: apsw.Connection, error: type[apsw.Error]) -> None:
        self._connection, self._error, self.num_left = connection, error, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *rest: Any) -> Any:
        if statement == "COMMIT" and self.num_left:
            self.num_left -= 1
            raise self._error("said so")
        return self._connection.execute(statement, *rest)


def test_a_full_disk_refuses_and_goes_on_and_a_failing_one_ends_it(tmp_path: Path) -> None:
    one = Draft(pa.record_batch({"n": [1]}))
    journal = Journal(tmp_path)
    journal.append(one)
    journal._segment.connection = _Full(journal._segment.connection, apsw.FullError)  # type: ignore[assignment]
    with pytest.raises(StorageError, match="a full disk"):
        journal.append(one)
    assert journal.append(one)[0].first == 1
    journal._segment.connection.num_left, journal._segment.connection._error = 1, apsw.IOError  # type: ignore
    for _ in range(2):
        with pytest.raises(StorageError):
            journal.append(one)
    journal.close()
    with Journal(tmp_path) as journal:
        assert journal.head.position == 2


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    batch = pa.record_batch({"text": ["x" * 100_000]})
    journal.append(Draft(batch))
    journal._segment.connection.pragma("max_page_count", 30)
    num = 1
    with pytest.raises(StorageError, match="a full disk"):
        for _ in range(100):
            journal.append(Draft(batch))
            num += 1
    journal._segment.connection.pragma("max_page_count", 1 << 30)
    assert journal.append(Draft(batch))[0].first == num
    assert journal.verify().is_sound
    journal.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_mark_for_which_there_is_no_room_is_written_later(small_disk: Path) -> None:
    draft = Draft(pa.record_batch({"text": ["x" * 20_000]}))
    with Journal(small_disk / "journal") as journal:
        for _ in range(3):
            journal.append(draft)
        journal._segment.checkpoint()  # from here on the log is written over, which needs no room
        time.sleep(0.7)
        fill(small_disk / "ballast")
        journal.append(draft)
        time.sleep(0.7)
        assert read_mark(small_disk / "journal") != (journal._journal, journal.head)
        journal.append(draft)
        (small_disk / "ballast").unlink()
        time.sleep(1.2)
        assert read_mark(small_disk / "journal") == (journal._journal, journal.head)
        assert journal.append(draft)[0].first == 5


def test_a_file_system_without_room_refuses_appends_until_there_is_some(small_disk: Path) -> None:
    journal, ballast = Journal(small_disk / "journal", segment_bytes=100_000), small_disk / "ballast"
    appended = 0

    def append() -> None:
        nonlocal appended
        batch = pa.record_batch({"n": [appended], "text": ["x" * 20_000]})
        assert journal.append(Draft(batch, producer="p", sequence=appended))[0].first == appended
        appended += 1

    for _ in range(4):
        append()
        fill(ballast)
        for _ in range(3):
            with pytest.raises(StorageError, match="a full disk") as caught:
                for _ in range(200):  # the log has some room of its own
                    append()
            assert is_full(caught.value)
            time.sleep(0.6)  # the mark is tried, too
        ballast.unlink()
        append()
        head = journal.head
        journal.check(head)
        time.sleep(0.6)
        marked = read_mark(small_disk / "journal")
        assert marked is not None and marked[1] == head
    fill(ballast)
    journal.close()  # what there is no room for now is done when it is opened
    ballast.unlink()
    with Journal(small_disk / "journal") as journal:
        assert journal.head == head and journal.num_segments > 1 and journal.verify().is_sound
        numbers = [group.records["n"][0].as_py() for group in journal.read(0) if group.records is not None]
        assert numbers == list(range(appended))
        append()


@pytest.mark.parametrize("what", ["begin a segment", "erase", "forget"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failing_disk_ends_a_journal_wherever_it_fails_and_a_full_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    journal = Journal(tmp_path, segment_bytes=1)
    draft = Draft(pa.record_batch({"n": [1]}), ids=["a"])
    journal.append(draft)
    journal.append(Draft(pa.record_batch({"n": [2]}), ids=["b"]))

    def fails(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    new = Draft(pa.record_batch({"n": [3]}), ids=["c"])
    with monkeypatch.context() as patch:
        name = {"begin a segment": "create_segment", "erase": "erase", "forget": "carry_ids"}[what]
        patch.setattr(f"millstream.journal.journal.{name}", fails)
        if what == "erase":
            patch.setattr(journal, "_roll", lambda: None)
        with pytest.raises(StorageError):
            {
                "begin a segment": lambda: journal.append(new),
                "erase": lambda: journal.erase([0]),
                "forget": lambda: journal.forget(1),
            }[what]()
    if code == errno.EIO:
        with pytest.raises(StorageError, match="a disk that takes what it is given"):
            journal.append(new)
    else:
        assert journal.append(new)[0].first == 2
    journal.close()
    with Journal(tmp_path) as journal:
        assert journal.verify().is_sound and journal.append(draft)[0].positions.tolist() == [0]
        assert (next(journal.read(0)).offsets is not None) == (what == "erase")


def test_an_erasure_that_was_noted_is_finished_after_a_kill(tmp_path: Path) -> None:
    secret = "the-name-of-a-person" * 100
    with Journal(tmp_path, segment_bytes=1) as journal:
        for _ in range(3):
            journal.append(Draft(pa.record_batch({"who": [secret, "other"]})))
    child = os.fork()
    if child == 0:
        journal = Journal(tmp_path, segment_bytes=1)
        with mock.patch("millstream.journal.erasing.without", lambda *_: os._exit(7)):
            journal.erase([0, 4])
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [g.facts["positions"] for g in JournalReader(tmp_path).read() if g.facts] == [[0, 4]]
    with Journal(tmp_path, segment_bytes=1) as journal:
        held = [g.records["who"].to_pylist() for g in journal.read() if g.records is not None]
        assert held == [["other"], [secret, "other"], ["other"]]
        assert journal.erase([0, 4]) == 0 and journal.erase([2]) == 1
        assert journal.verify().is_sound
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_who_sent_what_is_known_after_a_loss_was_accepted(tmp_path: Path) -> None:
    def one(sequence: int, producer: str = "p") -> Draft:
        return Draft(pa.record_batch({"n": [sequence]}), producer=producer, sequence=sequence)

    with Journal(tmp_path, segment_bytes=1, window=1) as journal:
        journal.append(one(0, "early"))
        for k in range(3):
            journal.append(one(k))
    with Journal(tmp_path, window=1) as journal:
        for k in range(3, 8):
            journal.append(one(k))
    database = sqlite3.connect(sorted(tmp_path.glob("*.segment"))[-1])
    database.execute("UPDATE groups SET digests = zeroblob(length(digests)) WHERE number = 7")
    database.commit()
    database.close()
    facts = accept_loss(tmp_path)
    assert (facts["first"], facts["end"]) == (6, 9)
    with Journal(tmp_path, window=1) as journal:
        assert journal.append(one(0, "early"))[0].positions.tolist() == [0]
        assert [journal.append(one(k))[0].positions.tolist() for k in range(7)] == [[1], [2], [3], [4], [5], [-1], [-1]]
        assert journal.append(one(8))[0].first == 9


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), apsw.BusyError("held")])
def test_what_cannot_be_looked_at_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = filled(tmp_path)
    before = [path.read_bytes() for path in sorted(folder.glob("*.segment"))]

    def held(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Segment, "rows", held)
        with pytest.raises(StorageError):
            accept_loss(folder)
    assert [path.read_bytes() for path in sorted(folder.glob("*.segment"))] == before
    assert accept_loss(folder) == {}


def _append_until_killed(folder: Path, pipe: int, begin: int) -> None:
    journal = Journal(folder, segment_bytes=60_000)
    for k in range(begin, 1 << 30):
        done = journal.append(
            Draft(pa.record_batch({"n": [k] * 3, "t": ["x" * 900] * 3}), producer="p", sequence=3 * k)
        )
        os.write(pipe, json.dumps([k, done[0].positions.tolist()[0]]).encode() + b"\n")


def test_a_kill_in_the_middle_of_appends_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    draws, acknowledged, begin = random.Random(3), {}, 0
    for _ in range(8):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read_end)
                _append_until_killed(tmp_path, write_end, begin)
            finally:
                os._exit(1)
        os.close(write_end)
        time.sleep(draws.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read_end, "rb") as told:
            acknowledged |= dict(json.loads(line) for line in told.read().splitlines())
        # It sends again what was not acknowledged, and the last that was.
        begin = max(max(acknowledged, default=0), 0)
    with Journal(tmp_path) as journal:
        held = [(group.records["n"][0].as_py(), group.first) for group in journal.read(0) if group.records is not None]
        assert journal.verify().is_sound
    assert [number for number, _ in held] == list(range(len(held)))
    assert len(acknowledged) > 20 and acknowledged.items() <= dict(held).items()
    assert len(list(JournalReader(tmp_path).read(0))) == len(held)
