"""Data sets by name: what there is, what it is, and its records.

Public sets come from the cache, and get there by ``fetch``; generators need no cache and take options in their name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from millstream.contracts import Source
from millstream.datasets.catalog import ENTRIES, Entry
from millstream.datasets.fetching import cached, ensure, fetch_command, folder_of
from millstream.datasets.generators import GENERATORS, parse_generator
from millstream.errors import SettingError, StorageError
from millstream.schema import Schema
from millstream.sources import FileSource

__all__ = ["DataSet", "Description", "describe", "fetch", "load", "names"]


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """What to know about a data set before it is fetched."""

    name: str
    title: str
    task: str  # "classes (10)" or "number"
    rows: int | None  # None: without an end
    test_rows: int
    ordered: bool  # records are in the order of time
    origin: str  # package==version and the files in it
    licence: str
    label_delay: str  # when the label is known
    note: str
    schema: Schema
    cached: bool
    bytes_on_disk: int


@dataclasses.dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that is ready to be read."""

    name: str
    train: Source
    test: Source | None
    schema: Schema
    ordered: bool
    description: Description


def names() -> list[str]:
    """Every name that ``load`` knows: the public sets, then the generators.

    >>> names()[0], "sea" in names()
    ('mnist', True)
    """
    return [*ENTRIES, *GENERATORS]


def describe(name: str) -> Description:
    """What the data set is; reads nothing but whether it is cached.

    >>> describe("elec2").rows
    45312
    """
    entry = _entry(name)
    return _describe_generator(name) if entry is None else _describe_entry(entry)


def fetch(name: str, *, progress: Callable[[str], None] | None = None) -> DataSet:
    """The data set, downloaded first unless it is cached and its files are intact; ``progress`` is told what is done.

    Raises StorageError when there is no download, DataError when it is not the file that was pinned.
    """
    entry = _entry(name)
    if entry is not None:
        ensure(entry, progress or _silent)
    return load(name)


def load(name: str, *, fetch: bool = False) -> DataSet:
    """The data set from the cache, or a generator; with ``fetch``, a public set that is absent is downloaded.

    >>> load("sea:drift=2000:records=10000:seed=1").train.num_records
    10000
    """
    entry = _entry(name)
    if entry is None:
        source = parse_generator(name)
        return DataSet(name, source, None, source.columns, True, _describe_generator(name))
    info = cached(entry)
    if info is None and fetch:
        info = ensure(entry, _silent)
    if info is None:
        raise StorageError(
            got=f"no {entry.name} in {folder_of(entry).parent}",
            wanted="a data set that was fetched",
            do=f"run `{fetch_command(entry.name)}`",
        )
    test = _source(entry, "test") if "test.parquet" in info["files"] else None
    return DataSet(entry.name, _source(entry, "train"), test, entry.schema, entry.ordered, _describe_entry(entry))


def _entry(name: str) -> Entry | None:
    """The public set of that name; None when it names a generator."""
    first = name.split(":")[0]
    if first in GENERATORS:
        return None
    if first not in ENTRIES:
        near = difflib.get_close_matches(first, names(), n=2, cutoff=0.5)
        raise SettingError(
            got=f"data set {name!r}",
            wanted="a known one",
            do=f"try {' or '.join(near)}" if near else f"choose from {', '.join(names())}",
        )
    if first != name:
        raise SettingError(
            got=f"data set {name!r}", wanted="no options", do=f"write {first}; only generators have them"
        )
    return ENTRIES[first]


def _source(entry: Entry, split: str) -> Source:
    """One split, with the columns that the schema speaks of and no others."""
    schema = entry.schema
    wanted = [field.name for field in schema.fields]
    wanted += [name for name in (schema.target and schema.target.name, schema.time, schema.label_time) if name]
    path = folder_of(entry) / f"{split}.parquet"
    source: Source = FileSource([path], columns=list(dict.fromkeys(wanted)), name=f"{entry.name}/{split}")
    return source


def _describe_entry(entry: Entry) -> Description:
    info = cached(entry)
    files = ", ".join(member.rpartition("/")[2] for member in entry.members)
    return Description(
        name=entry.name,
        title=entry.title,
        task=_task(entry.schema),
        rows=entry.rows,
        test_rows=entry.test_rows,
        ordered=entry.ordered,
        origin=f"{entry.archive.requirement} ({files})",
        licence=entry.licence,
        label_delay=entry.label_delay,
        note=entry.note,
        schema=entry.schema,
        cached=info is not None,
        bytes_on_disk=sum(file["bytes"] for file in info["files"].values()) if info else 0,
    )


def _describe_generator(name: str) -> Description:
    source = parse_generator(name)
    generator = GENERATORS[source.name]
    return Description(
        name=name,
        title=generator.title,
        task=_task(source.columns),
        rows=source.num_records,
        test_rows=0,
        ordered=True,
        origin="generated",
        licence="none needed",
        label_delay="none: there are no times",
        note=generator.note,
        schema=source.columns,
        cached=True,
        bytes_on_disk=0,
    )


def _task(schema: Schema) -> str:
    target = schema.target
    return f"classes ({target.num_outputs})" if target is not None and target.kind == "class" else "number"


def _silent(message: str) -> None:
    """What progress does when nobody asked."""
