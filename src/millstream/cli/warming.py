"""``millstream warmup``: compiles what would else be compiled when it is first used."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from millstream.cli.output import print_json
from millstream.cli.progress import err
from millstream.engines import fused
from millstream.engines.kernels import compiled
from millstream.studies.statistics import seconds_text

__all__ = ["run"]


def run(as_json: bool) -> None:
    """Compiles the loops of the fused engine for float32 and float64, and says how long it took and where they are."""
    folder = compiled.cache_folder()
    before = _kept(folder)
    started = time.perf_counter()
    with err.status("compiling the loops of the fused engine"):
        for number in (torch.float32, torch.float64):
            fused.make_ready(number)
    seconds = time.perf_counter() - started
    kept = _kept(folder)
    num_compiled = len(kept - before)
    if as_json:
        print_json({"seconds": seconds, "folder": str(folder), "kept": bool(kept), "compiled": num_compiled})
    elif not kept:
        print(f"compiled in {seconds_text(seconds)}, but not kept: {folder} cannot be written")
        print("set MILLSTREAM_CACHE to a folder that can be; until then it may be compiled again by each process")
    elif num_compiled:
        print(f"compiled in {seconds_text(seconds)}, kept in {folder}")
    else:
        print(f"nothing to compile: all is in {folder}, loaded in {seconds_text(seconds)}")


def _kept(folder: Path) -> set[Path]:
    """The compiled loops in a folder, which may not be there."""
    return set(folder.rglob("*.nbc"))
