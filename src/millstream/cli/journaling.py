"""``millstream journal …`` and ``millstream change``: what a run's journal holds, checked, filled and cut."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from millstream import assembly, checkpoint, sources
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import counted, err
from millstream.decisions import change as leave_wish
from millstream.errors import DataError, SettingError
from millstream.journal import DECISIONS, Draft, Journal, JournalReader
from millstream.journal import accept_loss as give_up
from millstream.journal import verify as verify_journal
from millstream.runs import Run
from millstream.studies.audit import audit

__all__ = ["accept_loss", "append", "change", "erase", "forget", "rollback", "show", "verify"]

_RECORDS_OF_A_COMMIT = 1000


def show(folder: str, as_json: bool) -> None:
    """What a journal holds."""
    journal = JournalReader(_folder(folder))
    decisions = [
        {"number": group.number, "position": group.first, **group.facts}
        for group in journal.read(journal.first(), kinds=DECISIONS)
    ]
    facts = {"first": journal.first(), **journal.head().to_json(), "decisions": decisions}
    if as_json:
        print_json(facts)
        return
    print(f"{facts['position'] - facts['first']:,} positions from {facts['first']:,}, {facts['number']:,} groups")
    if decisions:
        rows = [[f"{one.pop('number'):,}", f"{one.pop('position'):,}", _in_words(one)] for one in decisions]
        print_table(rows, ["group", "position", "decision"])


def verify(run: str, data: str | None, as_json: bool) -> None:
    """Checks every sum, and learns again from checkpoint to checkpoint where there are some."""
    folder = Path(run)
    if not (folder / "journal").is_dir():
        _verify_alone(_folder(run), as_json)
        return
    source = None if data is None else _opened(data, folder)
    with counted("learning again", quiet=as_json) as line:
        found = audit(folder, source, show=lambda done, total: line("records", done, total))
    if as_json:
        print_json(found.to_json())
    else:
        _tell(found)
    if not found.is_exact:
        raise click.exceptions.Exit(1)


def append(folder: str, data: str) -> None:
    """Appends the records of DATA; each is durable before the next is read."""
    if any((place / "checkpoints").is_dir() for place in (Path(folder), Path(folder).resolve().parent)):
        raise SettingError(
            got=f"the folder of a run: {folder}",
            wanted="a journal of its own; a run writes its own one itself",
            do="name another folder",
        )
    source: Any = sources.as_source(data)
    done = 0
    with Journal(folder) as journal, counted("appending", quiet=False) as line:
        for chunk in source.read(size=_RECORDS_OF_A_COMMIT):
            if not isinstance(chunk.inputs, pa.RecordBatch):
                raise DataError(got=f"tensors in {data}", wanted="named columns", do="append a table")
            journal.append(Draft(chunk.inputs, span=chunk.span, offsets=chunk.offsets, rejected=chunk.rejected))
            done += chunk.span
            line("records", done, source.num_records or done)
        err.print(f"{done:,} records are durable in {folder}, up to position {journal.head.position:,}")


def erase(folder: str, positions: str) -> None:
    """Takes records away for good; the chain still verifies."""
    with Journal(_folder(folder)) as journal:
        num = journal.erase(_positions(positions))
    print(f"{num:,} records are gone; checkpoints learned from them are as they were")


def forget(folder: str, before: int) -> None:
    """Drops whole segments below a position."""
    with Journal(_folder(folder)) as journal:
        journal.forget(before)
        print(f"the journal begins at position {journal.first:,} now")


def accept_loss(folder: str) -> None:
    """Goes on with a journal that has lost its end; what was lost is written down."""
    lost = give_up(_folder(folder))
    print("nothing was lost" if not lost else f"the journal goes on; it notes what was lost: {_in_words(lost)}")


def change(run: str, learning_rate: float) -> None:
    """Leaves a wish for a run that is at work, or that will go on."""
    leave_wish(run, learning_rate=learning_rate)
    print(f"the run takes a rate of {learning_rate:g} from its next chunk on; see events.jsonl in {run}")


def rollback(run: str, number: str, skip: str | None) -> None:
    """Drops the newer checkpoints; what is to be left out is written down first."""
    span = None
    if skip is not None:
        match = re.fullmatch(r"(\d+)-(\d+)", skip)
        if match is None or int(match[2]) < int(match[1]):
            raise SettingError(got=f"--skip {skip}", wanted="two positions", do="write e.g. 1000-1999")
        span = (int(match[1]), int(match[2]) + 1)
    with contextlib.closing(Run(run, resume=True)) as opened:
        opened.roll_back(number, span)
    skipped = "" if skip is None else f", without positions {skip}"
    print(f"the run stands at checkpoint {number} again; go on with --resume --run {run}{skipped}")


def _verify_alone(folder: Path, as_json: bool) -> None:
    """Of a journal that is no run's."""
    found = verify_journal(folder)
    facts = {"groups": found.num_groups, "records": found.num_records, "erased": found.num_erased}
    if as_json:
        print_json({**facts, "problems": found.problems})
    else:
        for problem in found.problems:
            print(problem)
        if found.is_sound:
            print(f"{found.num_records:,} records in {found.num_groups:,} groups: every sum and link is right")
    if not found.is_sound:
        raise click.exceptions.Exit(1)


def _tell(found: Any) -> None:
    print(f"journal: {found.records:,} records in {found.groups:,} groups, every sum and link is right")
    rows = [
        [f"{one.older} to {one.newer}", f"{one.records:,}", one.difference or "the same bits"]
        for one in found.stretches
    ]
    if rows:
        print_table(rows, ["checkpoints", "records learned again", "state"])
    for reason in found.left_out:
        err.print(f"not compared: {reason}")


def _folder(name: str) -> Path:
    """The journal of a run, or one of its own; refused where there is none, rather than made."""
    inner = Path(name) / "journal"
    folder = inner if inner.is_dir() else Path(name)
    if not folder.is_dir():
        raise SettingError(got=f"no journal in {name}", wanted="the folder of a run or a journal", do="check the name")
    return folder


def _opened(data: str, run: Path) -> Any:
    """What a run has read, as it read it; of a Python object, the data are that object's own."""
    spec = checkpoint.newest(run / "checkpoints")[0]["spec"]
    if not spec:
        return sources.as_source(data)
    return assembly.open_data(data, schema=assembly.Recipe.from_json(spec).schema, test=0.0).train


def _positions(text: str) -> list[int]:
    """Positions of ``3,7,10-12``."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise SettingError(got=f"positions {text!r}", wanted="numbers and ranges", do="write e.g. 3,7,10-12")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _in_words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
