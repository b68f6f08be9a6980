"""Tables on disk: one folder for each data set, with Parquet files and an info.json that is written last.

A folder counts once its info.json is there and fits its files, so a fetch that was cut short leaves nothing that could
be mistaken for data. This file knows folders, Parquet and hashes; it does not know any data set.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from millstream.datasets.archives import sha256_of
from millstream.storage import cache_folder, replace, storage_errors

__all__ = ["is_intact", "read_info", "scratch", "write_tables"]

_DO = "make room, or set MILLSTREAM_CACHE to another folder"
INFO = "info.json"
ROW_GROUP_ROWS = 65_536
# LZ4 read as fast as no compression and faster than Snappy and Zstandard, for images and for narrow integers alike.
COMPRESSION = "lz4"


def read_info(folder: Path, *, layout: str) -> dict[str, Any] | None:
    """What info.json says, or None when there is none, it is of another ``layout``, or its files are not all there."""
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if info["layout"] != layout:
            return None
        whole = all((folder / name).stat().st_size == facts["bytes"] for name, facts in info["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return info if whole else None


def is_intact(folder: Path, info: Mapping[str, Any]) -> bool:
    """Whether each file still has the SHA-256 that it was written with. Reads them all."""
    try:
        return all(sha256_of(folder / name) == facts["sha256"] for name, facts in info["files"].items())
    except OSError:
        return False


def write_tables(folder: Path, tables: Mapping[str, pa.Table], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``SPLIT.parquet`` for each table, then info.json: ``facts``, and each file's rows, bytes and SHA-256."""
    with storage_errors(folder, do=_DO):
        folder.mkdir(parents=True, exist_ok=True)
        files = {f"{split}.parquet": _write_parquet(folder / f"{split}.parquet", t) for split, t in tables.items()}
        info = {**facts, "files": files}
        replace(folder / INFO, json.dumps(info, indent=1).encode())
    return info


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder within the cache, removed at the end; on the same disk, so that there is room for both."""
    parent = cache_folder()
    with storage_errors(parent, do=_DO):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as folder:
            yield Path(folder)


def _write_parquet(path: Path, table: pa.Table) -> dict[str, Any]:
    # A dictionary of pixels costs time and saves little; that of strings and small integers pays.
    words = [field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression=COMPRESSION, use_dictionary=words)
    replace(path, sink.getvalue())
    return {"rows": table.num_rows, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
