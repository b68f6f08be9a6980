"""Live sources through a run's journal: exactly once, whatever happens between. Run: pytest tests/test_journaled.py"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream
from live_sources import ScriptedSource
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.journal import Draft, Journal, JournalReader
from millstream.sources import JournaledSource, JournalSource
from millstream.studies.audit import audit
from millstream.studies.states import differences, digests
from millstream.trainer import Trainer

NUM = 150


def table(num: int = NUM) -> pa.Table:
    rng = np.random.default_rng(5)
    a, b = rng.normal(2, 3, num), rng.exponential(2, num)
    return pa.table({"a": a, "b": b, "label": np.where(a + b > 4, "high", "low")})


def make(run: Path | None = None, **changes: Any) -> Trainer:
    features = millstream.Features(millstream.infer(table(), target="label"))
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(features.num_dense, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    how: dict[str, Any] = {"features": features, "commit_seconds": 0, "report_records": 50, "window": 50, **changes}
    return Trainer(model, "cross_entropy", optimizer, run=run, **how)


def replayed(run: Path, *, update_size: int, source: Any = None, delay: Any = None) -> Trainer:
    """What a trainer learns of the journal of a run, at once and undisturbed."""
    trainer = make()
    facts = ScriptedSource(table(), [1], can_seek=True).fingerprint()
    again = JournaledSource(source, JournalReader(run / "journal"), facts=facts)
    trainer.learn(again, update_size=update_size, label_delay=delay)
    return trainer


def state(trainer: Trainer) -> dict[str, Any]:
    found = trainer.state_dict()
    assert found["phase"]["finished"]
    return found


@settings(max_examples=8, deadline=None)
@given(
    arrivals=st.lists(st.integers(3, 40), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 4), max_size=3),
    update_size=st.sampled_from([1, 3]),
    can_seek=st.booleans(),
    delay=st.sampled_from([None, 7]),
    holes=st.sets(st.integers(0, NUM - 1), max_size=5),
)
def test_a_live_run_that_is_cut_anywhere_is_what_its_journal_makes_of_it(
    arrivals: list[int],
    cuts: list[int],
    update_size: int,
    can_seek: bool,
    delay: Any,
    holes: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = tmp_path_factory.mktemp("run")
    trainer = make(run)
    source = ScriptedSource(table(), arrivals, can_seek=can_seek, holes=sorted(holes))
    cuts = [*itertools.takewhile(lambda cut: cut < 4, cuts), 10_000]  # else the run may have ended before it is cut
    for turn, cut in enumerate(cuts):
        steps = trainer.steps(source, update_size=update_size, label_delay=delay, resume=turn > 0)
        for _, _ in zip(range(cut + 1), steps, strict=False):
            pass
        steps.close()
        if cut < 10_000:  # what was acknowledged is gone from a pipe; the journal has it
            trainer.close()
            shift = [*arrivals[1:], arrivals[0]]
            source = ScriptedSource(
                table(), shift, can_seek=can_seek, holes=sorted(holes), start=0 if can_seek else source.acknowledged
            )
            trainer = make()
            trainer.open(run, resume=True)
    assert trainer.consumed == NUM
    whole = replayed(run, update_size=update_size, source=source if can_seek else None, delay=delay)
    assert not differences(digests(state(trainer)), digests(state(whole)))
    lines = [json.loads(line) for line in (run / "dead_letters.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines if line["reason"] == "bad"] == [f"at {place}" for place in sorted(holes)]
    trainer.close()
    assert audit(run, source if can_seek else None, make=make).is_exact


def test_the_journal_of_a_run_equals_the_table_that_arrived(tmp_path: Path) -> None:
    trainer, twin = make(tmp_path, engine="reference"), make(engine="reference")
    trainer.learn(ScriptedSource(table(), [7, 1, 30], can_seek=False))
    twin.learn(table())
    learned, wanted = trainer.state_dict()["learner"], twin.state_dict()["learner"]
    assert not differences(digests(learned), digests(wanted))


def test_a_change_by_hand_is_made_at_the_same_record_when_it_is_replayed(tmp_path: Path) -> None:
    trainer = make(tmp_path, commit_seconds=1e9)
    source = ScriptedSource(table(), [10], can_seek=True)
    for turn, _ in enumerate(trainer.steps(source)):
        if turn == 12:
            millstream.change(tmp_path, learning_rate=0.001)
    assert trainer.learning_rate == 0.001
    changed = trainer.state_dict()
    trainer.close()
    for folder in sorted((tmp_path / "checkpoints").iterdir())[1:]:  # back to where nothing was learned
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = make()
    again.open(tmp_path, resume=True)
    assert again.consumed == 0 and again.learning_rate == 0.05
    again.learn(source, resume=True)
    assert not differences(digests(again.state_dict()), digests(changed))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(one["what"], one["position"]) for one in events] == [("rate set by hand", 130)]
    assert not list((tmp_path / "inbox").iterdir())


def test_wishes_that_are_none_change_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        millstream.change(tmp_path, learning_rate=0.1)
    trainer = make(tmp_path)
    trainer.commit()
    with pytest.raises(SettingError, match="above 0"):
        millstream.change(tmp_path, learning_rate=-1)
    (tmp_path / "inbox").mkdir()
    for number, text in enumerate(["", "{", "[]", '{"learning_rate": NaN}', '{"a": 1}', '{"learning_rate": true}']):
        (tmp_path / "inbox" / f"{number}.json").write_text(text)
    trainer.learn(ScriptedSource(table(), [50], can_seek=False))
    assert trainer.learning_rate == 0.05 and not list((tmp_path / "inbox").iterdir())


def test_a_rollback_leaves_out_what_spoiled_the_run(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    source = ScriptedSource(table(), [10], can_seek=False)
    checkpoints = []
    for _ in trainer.steps(source):
        checkpoints.append((trainer.consumed, trainer.commit()))
        if trainer.consumed == 100:
            break
    assert trainer.run is not None
    kept = sorted(path.name for path in trainer.run.checkpoints.iterdir() if path.name.isdigit())
    oldest = next(consumed for consumed, path in checkpoints if path is not None and path.name == kept[0])
    trainer.run.roll_back(kept[0], (oldest, oldest + 10))
    trainer.close()
    again = make()
    again.open(tmp_path, resume=True)
    assert again.consumed == oldest
    again.learn(ScriptedSource(table(), [10], can_seek=False, start=100), resume=True)
    assert again.consumed == NUM and again.summary().records == NUM - 10 and again.summary().rejected == 10
    lines = [json.loads(line) for line in (tmp_path / "dead_letters.jsonl").read_text().splitlines()]
    assert [line["position"] for line in lines] == list(range(oldest, oldest + 10))


def test_what_a_phase_has_left_is_learned_by_the_next_one(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.learner.engine.chunk_size = lambda size: 10  # type: ignore[method-assign]
    source = ScriptedSource(table(), [25], can_seek=False)
    steps = trainer.steps(source)
    next(steps)
    steps.close()
    assert (trainer.consumed, source.acknowledged) == (10, 10)
    trainer.learn(source)  # a new phase, not a resumed one
    assert trainer.consumed == NUM and trainer.position == NUM


def test_a_journal_of_its_own_is_a_source(tmp_path: Path) -> None:
    with Journal(tmp_path / "events") as journal:
        for batch in table().to_batches(max_chunksize=37):
            journal.append(Draft(batch))
        source = JournalSource(tmp_path / "events", follow=False)
        trainer, twin = make(engine="reference"), make(engine="reference")
        trainer.learn(source)
        twin.learn(table())
        assert not differences(digests(trainer.state_dict()["learner"]), digests(twin.state_dict()["learner"]))
    with pytest.raises(DataError, match="records by number"):
        source.take(np.array([0]))


def test_a_phase_over_a_file_between_two_live_ones_leaves_the_journal_where_it_stands(tmp_path: Path) -> None:
    trainer = make(tmp_path, engine="reference")
    half = NUM // 2
    trainer.learn(ScriptedSource(table(half), [10], can_seek=False))
    trainer.fit(table(60), batch_size=20, epochs=1)
    trainer.learn(ScriptedSource(table(), [10], can_seek=False, start=half))
    assert trainer.summary().records == NUM - half and trainer.consumed == NUM + 60


def test_labels_that_join_are_audited(tmp_path: Path) -> None:
    def joins(run: Path | None = None) -> Trainer:
        features = millstream.Features(millstream.infer(events, target="label", id="key"))
        torch.manual_seed(1)
        model = torch.nn.Linear(features.num_dense, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        return Trainer(model, "cross_entropy", optimizer, features=features, run=run, commit_seconds=0)

    asked = table(40).append_column("key", pa.array([f"k{number}" for number in range(40)]))
    questions = asked.set_column(2, "label", pa.nulls(40, pa.string()))
    answers = asked.set_column(0, "a", pa.nulls(40, pa.float64())).set_column(1, "b", pa.nulls(40, pa.float64()))
    events = pa.concat_tables([questions, answers])
    trainer = joins(tmp_path)
    for _ in trainer.steps(ScriptedSource(events, [9], can_seek=False), label_delay="join"):
        if trainer.consumed >= 70:
            break
    trainer.close()
    found = audit(tmp_path, make=joins)
    assert found.is_exact and found.stretches


def test_what_somebody_else_has_appended_to_the_journal_of_a_run_is_said(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    source = ScriptedSource(table(), [50], can_seek=False)
    next(trainer.steps(source))
    trainer.close()
    with Journal(tmp_path / "journal") as journal:
        journal.append(Draft(table(5).to_batches()[0]))
    again = make()
    again.open(tmp_path, resume=True)
    with pytest.raises(DataError, match="the run has not written"):
        again.learn(source, resume=True)
