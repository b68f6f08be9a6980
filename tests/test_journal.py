"""The journal against a plain list. Run: pytest tests/test_journal.py"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from millstream.contracts import Rejection
from millstream.errors import DataError, SettingError, StorageError
from millstream.journal import Draft, Group, Head, Journal, JournalReader, verify
from millstream.journal.digests import digest_rows
from millstream.journal.duplicates import IdWindow

SCHEMA = pa.schema([("x", pa.float64()), ("text", pa.string()), ("list", pa.list_(pa.float32()))])


def batch_of(numbers: list[int]) -> pa.RecordBatch:
    columns = [
        [None if n % 5 == 0 else n / 2 for n in numbers],
        [f"text {n}" * (n % 7) for n in numbers],
        [None if n % 4 == 0 else [float(n)] * (n % 3) for n in numbers],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def records_in(groups: list[Group]) -> dict[int, dict[str, Any]]:
    """Each record by its position."""
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        if group.records is not None:
            found |= dict(zip(group.positions().tolist(), group.records.to_pylist(), strict=True))
    return found


def refused_in(groups: list[Group]) -> dict[int, str]:
    return {group.first + one.offset: one.reason for group in groups for one in group.rejected}


class AsAList(RuleBasedStateMachine):
    """A journal is a list of records, refused ones, holes and decisions that forgets its beginning."""

    @initialize(segment_bytes=st.sampled_from([1, 100_000, 1 << 30]))
    def begin(self, segment_bytes: int) -> None:
        self.folder = Path(os.environ["JOURNAL_TEST_FOLDER"]) / str(time.monotonic_ns())
        self.segment_bytes, self.next = segment_bytes, 1
        self.records: dict[int, dict[str, Any]] = {}
        self.refused: dict[int, str] = {}
        self.decisions: list[tuple[int, Any]] = []
        self.size = self.first = 0
        self.sequences: dict[str, list[int]] = {}  # position of each sequence
        self.ids: dict[str, int] = {}
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.folder, segment_bytes=self.segment_bytes, window=10_000)

    def numbers(self, num: int) -> list[int]:
        self.next += num
        return list(range(self.next - num, self.next))

    def keep(self, batch: pa.RecordBatch, positions: list[int]) -> None:
        self.records |= dict(zip(positions, batch.to_pylist(), strict=True))

    @rule(nums=st.lists(st.integers(0, 5), min_size=1, max_size=4))
    def append(self, nums: list[int]) -> None:
        batches = [batch_of(self.numbers(num)) for num in nums]
        for batch, done in zip(batches, self.journal.append(*map(Draft, batches)), strict=True):
            assert (done.first, done.span) == (self.size, len(batch))
            self.keep(batch, done.positions.tolist())
            self.size += len(batch)

    @rule(places=st.lists(st.sampled_from(["record", "refused", "hole"]), max_size=8))
    def append_with_holes(self, places: list[str]) -> None:
        offsets = [place for place, what in enumerate(places) if what == "record"]
        rejected = tuple(Rejection(i, f"bad {i}", "a:1", "raw") for i, what in enumerate(places) if what == "refused")
        batch = batch_of(self.numbers(len(offsets)))
        self.journal.append(Draft(batch, span=len(places), offsets=np.array(offsets, np.int64), rejected=rejected))
        self.keep(batch, [self.size + place for place in offsets])
        self.refused |= {self.size + one.offset: one.reason for one in rejected}
        self.size += len(places)

    @rule(producer=st.sampled_from("ab"), back=st.integers(0, 6), num=st.integers(1, 6))
    def produce(self, producer: str, back: int, num: int) -> None:
        known = self.sequences.setdefault(producer, [])
        begin = max(len(known) - back, 0)
        batch = batch_of(self.numbers(num))
        [done] = self.journal.append(Draft(batch, producer=producer, sequence=begin))
        old = known[begin : begin + num]
        assert done.num_duplicates == len(old) and done.span == num - len(old)
        for given_back, was in zip(done.positions.tolist(), old, strict=False):
            assert given_back == was or (given_back == -1 and was < self.first)
        fresh = list(range(self.size, self.size + done.span))
        assert done.positions.tolist()[len(old) :] == fresh
        known += fresh
        self.keep(batch.slice(len(old)), fresh)
        self.size += done.span

    @rule(ids=st.lists(st.sampled_from([*"abcdefgh", None]), min_size=1, max_size=6))
    def append_with_ids(self, ids: list[str | None]) -> None:
        batch = batch_of(self.numbers(len(ids)))
        [done] = self.journal.append(Draft(batch, ids=ids))
        for row, one in enumerate(ids):
            position = self.size if one is None else self.ids.setdefault(one, self.size)
            assert done.positions[row] == position
            if position == self.size:
                self.keep(batch.slice(row, 1), [position])
                self.size += 1

    @rule(value=st.integers())
    def decide(self, value: int) -> None:
        self.journal.append(Draft(kind="decision", facts={"value": value}))
        self.decisions.append((self.size, value))

    @rule(span=st.integers(0, 5))
    def refer(self, span: int) -> None:
        self.journal.append(Draft(kind="reference", span=span, facts={"source": "s", "before": None}))
        self.size += span

    @precondition(lambda self: self.size > 0)
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.integers(0, self.size - 1), max_size=5))
        there = {one for one in wanted if one in self.records or one in self.refused}
        assert self.journal.erase(wanted) == len({one for one in there if one >= self.first})
        for one in there:
            self.records.pop(one, None)
            self.refused.pop(one, None)

    @rule(part=st.floats(0, 1))
    def forget(self, part: float) -> None:
        before = int(part * self.size)
        self.first = self.journal.forget(before)
        assert self.first <= max(before, self.journal.first)
        for store in (self.records, self.refused):
            for one in [one for one in store if one < self.first]:
                del store[one]

    @rule()
    def reopen(self) -> None:
        head = self.journal.head
        self.journal.close()
        self.open()
        assert self.journal.head == head
        self.journal.check(head)

    @rule(part=st.floats(0, 1))
    def read_from(self, part: float) -> None:
        start = self.first + int(part * (self.size - self.first))
        groups = list(self.journal.read(start))
        assert {k: v for k, v in records_in(groups).items() if k >= start} == {
            k: v for k, v in self.records.items() if k >= start
        }
        if groups:
            assert groups[0].first <= start and all(g.first + g.span >= start for g in groups)

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "journal"):
            return
        groups = list(self.journal.read(self.first))
        assert records_in(groups) == self.records and refused_in(groups) == self.refused
        assert [g.number for g in groups] == list(range(groups[0].number, groups[-1].number + 1)) if groups else True
        assert self.journal.head.position == self.size
        told = [(g.first, g.facts["value"]) for g in groups if "value" in g.facts]
        assert told == self.decisions[len(self.decisions) - len(told) :]

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            found = self.journal.verify()
            assert found.problems == ()
            self.journal.close()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_TEST_FOLDER", str(tmp_path))


def test_a_journal_is_a_list_that_lasts() -> None:
    run_state_machine_as_test(
        AsAList,
        settings=settings(
            max_examples=10, stateful_step_count=10, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )


def test_callers_at_once_share_commits_and_each_gets_its_own_places(tmp_path: Path) -> None:
    with Journal(tmp_path, segment_bytes=200_000) as journal:
        got: dict[int, int] = {}

        def produce(who: int) -> None:
            for k in range(40):
                [done] = journal.append(Draft(pa.record_batch({"n": [who * 1000 + k]}), producer=str(who), sequence=k))
                got[who * 1000 + k] = done.first

        threads = [threading.Thread(target=produce, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = {record["n"]: position for position, record in records_in(list(journal.read())).items()}
    assert held == got and sorted(held.values()) == list(range(320))


def test_a_call_that_is_refused_leaves_nothing_and_others_go_on(tmp_path: Path) -> None:
    one = pa.record_batch({"x": [1]})
    with Journal(tmp_path) as journal:
        journal.append(Draft(one, producer="p", sequence=5))
        with pytest.raises(DataError, match="sequence 8 of producer 'p' after 5; wanted sequence 6"):
            journal.append(Draft(one), Draft(one, producer="p", sequence=8))
        with pytest.raises(DataError, match="no JSON"):
            journal.append(Draft(one), Draft(kind="decision", facts={"x": {1, 2}}))
        assert journal.head.position == 1
        assert journal.append(Draft(one, producer="p", sequence=6))[0].first == 1


@pytest.mark.parametrize(
    "draft",
    [
        Draft(kind="decision", span=2),
        Draft(batch_of([1, 2]), span=3),
        Draft(batch_of([1]), offsets=np.array([4]), span=2),
        Draft(batch_of([1, 2]), offsets=np.array([1, 1]), span=2),
        Draft(batch_of([1]), ids=["a", "b"]),
        Draft(batch_of([1]), ids=["a"], producer="p"),
        Draft(rejected=(Rejection(3, "why"),), span=1),
        Draft(pa.record_batch({"x": pa.array([1], pa.int64())}), rejected=(Rejection(0, "why"),), span=1),
        Draft(batch_of([1]), kind="reference"),
        Draft(kind="reference", span=1, facts={"x": float("nan")}),
        Draft(pa.record_batch({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])})),
    ],
)
def test_drafts_that_cannot_be_groups_are_refused_in_one_line(draft: Draft, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        with pytest.raises(DataError) as caught:
            journal.append(draft)
        assert "\n" not in str(caught.value) and journal.head.position == 0


def test_a_reader_follows_within_milliseconds_across_segments(tmp_path: Path) -> None:
    with Journal(tmp_path, segment_bytes=1) as journal:
        journal.append(Draft(kind="decision"))
        seen: list[tuple[int, float]] = []
        enough = threading.Event()

        def follow() -> None:
            for group in JournalReader(tmp_path).read(follow=True, stop=enough.is_set):
                seen.append((group.number, time.perf_counter()))

        thread = threading.Thread(target=follow)
        thread.start()
        sent = []
        for _ in range(20):
            journal.append(Draft(batch_of([1])))
            sent.append(time.perf_counter())
            time.sleep(0.01)
        enough.set()
        thread.join(5)
        assert not thread.is_alive() and [number for number, _ in seen] == list(range(1, 22))
        late = sorted(got - at for (_, got), at in zip(seen[1:], sent, strict=True))
        assert late[len(late) // 2] < 0.05  # 4 ms and a new segment each time; a busy machine needs more


def test_another_process_reads_while_this_one_writes(tmp_path: Path) -> None:
    code = (
        "import sys; from millstream.journal import JournalReader, Journal\n"
        "print(sum(len(g.records) for g in JournalReader(sys.argv[1]).read()))\n"
        "try: Journal(sys.argv[1])\nexcept ValueError as e: print(e)"
    )
    with Journal(tmp_path) as journal:
        journal.append(Draft(batch_of([1, 2, 3])))
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3\ngot a journal that is open already")


def test_what_was_erased_is_in_no_file(tmp_path: Path) -> None:
    secret = "the-name-of-a-person"
    with Journal(tmp_path, segment_bytes=50_000) as journal:
        for k in range(20):
            journal.append(Draft(pa.record_batch({"who": [f"{secret}-{k}" * 300, "other"]})))
        journal.append(Draft(rejected=(Rejection(0, "bad", "x:1", secret),)))
        assert any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
    with Journal(tmp_path, segment_bytes=50_000) as journal:
        assert journal.erase([*range(0, 40, 2), 40]) == 21
        assert journal.erase([0]) == 0
        assert journal.verify().is_sound and journal.verify().num_erased == 21
        groups = list(journal.read(0))
        assert groups[0].records is not None and groups[0].records.to_pydict() == {"who": ["other"]}
        assert groups[0].positions().tolist() == [1] and groups[-1].facts["what"] == "erased"
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_an_id_is_known_after_its_segment_was_dropped_and_not_outside_the_window(tmp_path: Path) -> None:
    one = pa.record_batch({"x": [1]})
    with Journal(tmp_path, segment_bytes=1, window=10) as journal:
        for k in range(8):
            journal.append(Draft(one, ids=[f"id {k}"]))
        assert journal.forget(7) == 7
    with Journal(tmp_path, segment_bytes=1, window=10) as journal:
        assert journal.append(Draft(one, ids=["id 3"]))[0].positions.tolist() == [3]
        for k in range(20):
            journal.append(Draft(one, ids=[f"new {k}"]))
        assert journal.append(Draft(one, ids=["id 3"]))[0].num_duplicates == 0
        assert journal.append(Draft(one, ids=["new 19"]))[0].positions.tolist() == [27]
        with pytest.raises(DataError, match="dropped by its retention"):
            journal.read(0)


def test_the_id_of_an_erased_record_is_kept_while_it_would_be_told_again(tmp_path: Path) -> None:
    one = pa.record_batch({"x": [1]})

    def ids(number: int) -> bytes:
        return next(iter(journal._segment.rows(number, num_bytes=1))).ids

    with Journal(tmp_path, window=4) as journal:
        for k in range(6):
            journal.append(Draft(one, ids=[f"id {k}"]))
        assert journal.erase([0, 5]) == 2
        assert ids(1) == bytes(16) and ids(6) != bytes(16) and ids(2) != bytes(16)
        assert journal.verify().is_sound
    with Journal(tmp_path, window=4) as journal:
        assert journal.append(Draft(one, ids=["id 5"]))[0].positions.tolist() == [5]
        assert journal.append(Draft(one, ids=["id 0"]))[0].positions.tolist() == [6]


def test_ids_outlive_their_segment_over_several_new_ones(tmp_path: Path) -> None:
    one = pa.record_batch({"x": [1]})
    with Journal(tmp_path, segment_bytes=1, window=100) as journal:
        for k in range(5):
            journal.append(Draft(one, ids=[f"id {k}"]))
        assert journal.forget(4) == 4
        for k in range(5, 8):
            journal.append(Draft(one, ids=[f"id {k}"]))
    with Journal(tmp_path, segment_bytes=1, window=100) as journal:
        assert [journal.append(Draft(one, ids=[f"id {k}"]))[0].positions.tolist() for k in range(8)] == [
            [k] for k in range(8)
        ]


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=50))
def test_the_window_of_ids_is_a_dict(wanted: list[int]) -> None:
    window = IdWindow(1 << 40)
    keys = [n.to_bytes(16, "little") for n in range(30_000)]
    for first in range(0, 30_000, 5_000):
        window.add({key: first + i for i, key in enumerate(keys[first : first + 5_000])})
    for n in wanted:
        assert window.find(n.to_bytes(16, "little"), oldest=100) == (n if 100 <= n < 30_000 else None)


TYPES = {
    "int": pa.array([1, None, 3, 4]),
    "bool": pa.array([True, None, False, True]),
    "text": pa.array(["a", None, "", "dd"]),
    "bytes": pa.array([b"aa", b"bb", b"cc", b"dd"]),
    "large": pa.array(["a", "b", None, "dd"], pa.large_string()),
    "time": pa.array([1, 2, None, 4], pa.timestamp("us", "UTC")),
    "fixed": pa.array([[1, 2], None, [3, None], [4, 5]], pa.list_(pa.float32(), 2)),
    "lists": pa.array([[["a"], None], None, [[]], [["b", None]]], pa.list_(pa.list_(pa.string()))),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": "y"}]),
    "words": pa.array(["u", None, "u", "v"]).dictionary_encode(),
    "nothing": pa.nulls(4),
    "decimal": pa.array([1, 2, None, 4]).cast(pa.decimal128(21, 2)),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_digest_is_of_the_record_and_not_of_how_it_is_stored(name: str) -> None:
    batch = pa.record_batch({"k": pa.array(range(4)), name: TYPES[name]})
    salts = bytes(range(64))
    whole = [digest_rows(batch, salts)[i : i + 16] for i in range(0, 64, 16)]
    assert len(set(whole)) == 4
    for row in range(4):
        for one in (batch.slice(row, 1), batch.take(pa.array([row]))):
            assert digest_rows(one, salts[16 * row : 16 * row + 16]) == whole[row]
    reordered = batch.take(pa.array([2, 0, 3, 1]))
    turned = b"".join(salts[16 * row : 16 * row + 16] for row in (2, 0, 3, 1))
    assert digest_rows(reordered, turned) == b"".join(whole[row] for row in (2, 0, 3, 1))


def test_a_digest_does_not_depend_on_the_lengths_in_other_records() -> None:
    columns = {"a": ["x", "long"], "b": ["yy", "zz"], "c": [b"", b"1"], "d": [[1], [2]], "e": [None, "w"]}
    batch, salts = pa.record_batch(columns), bytes(range(32))
    whole = digest_rows(batch, salts)
    assert digest_rows(batch.slice(0, 1), salts[:16]) + digest_rows(batch.slice(1), salts[16:]) == whole


def test_each_value_changes_the_digest() -> None:
    same = digest_rows(pa.record_batch({"a": ["x", "yz"], "b": ["", ""]}), bytes(32))
    for a, b in ((["xy", "z"], ["", ""]), (["x", "yz"], [None, ""]), (["x", "y"], ["", "z"]), (["", "yz"], ["x", ""])):
        assert digest_rows(pa.record_batch({"a": a, "b": pa.array(b, pa.string())}), bytes(32)) != same


def test_a_head_belongs_to_its_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "a") as a, Journal(tmp_path / "b") as b:
        for journal in (a, b):
            journal.append(Draft(batch_of([1])))
        head = json.loads(json.dumps(a.head.to_json()))
        a.append(Draft(batch_of([2])))
        a.check(head)
        with pytest.raises(StorageError, match="another journal"):
            b.check(head)
        with pytest.raises(StorageError, match="without positions 1 to 1"):
            b.check(dataclasses.replace(a.head, number=2))
        with pytest.raises(StorageError, match="as a journal's head"):
            a.check({"number": "x"})
        assert Head.from_json(head) == Head(1, 1, head["chain"])


def test_a_closed_journal_says_so_and_reading_an_empty_folder_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.close()
    journal.close()
    with pytest.raises(SettingError, match="a closed journal"):
        journal.append(Draft(batch_of([1])))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no journal in"):
        JournalReader(tmp_path / "empty")
    with pytest.raises(StorageError):
        JournalReader(tmp_path / "missing")
    assert not verify(tmp_path / "missing").is_sound
