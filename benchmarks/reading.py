"""How fast records are read, from each kind of file, into chunks of named columns.

    python benchmarks/reading.py [--records 581012] [--size 4096] [--folder FOLDER]

The file is like covertype: 54 columns of small whole numbers and a label, made from a fixed seed. Each line is measured
in a process of its own, the page cache warm. Memory is the growth of the peak from just before the reading begins to
its end, less the pages of mapped files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from rich.console import Console
from rich.table import Table

import millstream
from millstream.contracts import Chunk, Source
from millstream.features import Features, infer
from millstream.sources import FileSource, Shuffled, cached

NUM_RECORDS = 581_012
NUM_NUMBERS, NUM_FLAGS, NUM_CLASSES = 10, 44, 7
ROUNDS = 3

Measurement = dict[str, Any]


def make_files(folder: Path, num_records: int) -> dict[str, Path]:
    """A covertype-like table, seeded, in each format."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"number_{k}": rng.integers(0, 4000 >> k, num_records) for k in range(NUM_NUMBERS)}
    columns |= {f"flag_{k}": rng.integers(0, 2, num_records) for k in range(NUM_FLAGS)}
    table = pa.table({**columns, "label": rng.integers(0, NUM_CLASSES, num_records)})
    paths = {kind: folder / f"covertype.{kind}" for kind in ("parquet", "csv", "csv.gz", "jsonl")}
    pa.parquet.write_table(table, paths["parquet"], row_group_size=100_000)
    pa.csv.write_csv(table, paths["csv"])
    with paths["csv"].open("rb") as plain, gzip.open(paths["csv.gz"], "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    with paths["jsonl"].open("w") as file:
        for batch in table.to_batches(max_chunksize=20_000):
            file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    return paths


def measure(
    name: str, source: Source, transform: Callable[[Chunk], Any] | None = None, size: int = 4096
) -> Measurement:
    """Read a source to its end, three times; the fastest counts. ``transform`` is done to every chunk."""
    before = _peak_bytes()
    seconds = []
    for _ in range(ROUNDS):
        start, num_records = time.perf_counter(), 0
        for chunk in source.read(size=size):
            if transform is not None:
                transform(chunk)
            num_records += len(chunk)
        seconds.append(time.perf_counter() - start)
    return {
        "name": name,
        "records": num_records,
        "rate": num_records / min(seconds),
        "slowest": num_records / max(seconds),
        "growth": _peak_bytes() - before,
    }


def measure_apart(
    name: str, make: Callable[..., Source], *arguments: Any, size: int, standardised: bool = False
) -> Measurement:
    """``measure`` in a new process: a peak of memory never falls again in the one that had it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_made, (name, make, arguments, size, standardised))


def make_shuffled(path: Path, folder: Path) -> Source:
    """The Parquet file, imported once, in the order of an epoch."""
    return Shuffled(cached(FileSource(path), folder), seed=0, epoch=0)


def report(rows: list[Measurement], size: int) -> None:
    """One table, with what is needed to compare it with another."""
    versions = f"millstream {millstream.__version__}, " if hasattr(millstream, "__version__") else ""
    versions += f"pyarrow {pa.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    table = Table(title=f"Reading {rows[0]['records']:,} records of 55 columns, chunks of {size:,}")
    table.add_column("source")
    for title in ("records/s", "slowest round", "peak memory"):
        table.add_column(title, justify="right")
    for row in rows:
        rates = f"{row['rate']:,.0f}", f"{row['slowest']:,.0f}"
        table.add_row(row["name"], *rates, f"+{row['growth'] / 2**20:,.0f} MiB")
    console = Console(width=100)
    console.print(table)
    console.print(f"{_machine()}; {versions}", highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=NUM_RECORDS)
    parser.add_argument("--size", type=int, default=4096, help="records of a chunk")
    parser.add_argument("--folder", type=Path, help="where the files are made (about 550 bytes a record)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        paths = make_files(folder, options.records)
        lines = [("Parquet", "parquet"), ("CSV", "csv"), ("CSV, gzip", "csv.gz"), ("JSON Lines", "jsonl")]
        rows = [measure_apart(title, FileSource, paths[kind], size=options.size) for title, kind in lines]
        title = "Parquet, standardised into tensors"
        rows.insert(1, measure_apart(title, FileSource, paths["parquet"], size=options.size, standardised=True))
        start = time.perf_counter()
        make_shuffled(paths["parquet"], folder)
        seconds = time.perf_counter() - start
        title = f"shuffled Arrow (import: {seconds:.1f} s)"
        rows.append(measure_apart(title, make_shuffled, paths["parquet"], folder, size=options.size))
        report(rows, options.size)


def _measure_made(
    name: str, make: Callable[..., Source], arguments: tuple[Any, ...], size: int, standardised: bool
) -> Measurement:
    source, transform = make(*arguments), None
    if standardised:
        features = Features(infer(next(iter(source.read(size=10_000))).inputs))
        transform = functools.partial(features.transform, learn=True)
    return measure(name, source, transform, size=size)


def _peak_bytes() -> int:
    """The most memory that this process has held, less what it maps of files now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts what the parent process held into the ru_maxrss of its children; VmHWM is the process's own.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * (int(lines["VmHWM"].split()[0]) - int(lines["RssFile"].split()[0]))


def _machine() -> str:
    models = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
