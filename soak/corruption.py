"""Part three: files of a run are damaged at random. Each damage is detected or harmless; none goes unseen.

A run is stopped on the way. In copies of its folder bits are flipped, files cut, emptied, deleted or exchanged, in one
checkpoint or in all. Then the run goes on to its end, or refuses in one line. Harmless means: it ends as the
undisturbed run to the last bit. Evil checkpoints are files that somebody made to do harm:
nothing in them is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from millstream import checkpoint
from millstream.errors import MillstreamError
from millstream.studies.killing import Note, differences, fingerprints
from soak.report import Finding
from soak.scenarios import Scenario, write_data

__all__ = ["FEW", "corrupt", "evil"]

FEW = (Scenario("csv", "adam", "fused", 1), Scenario("tensors", engine="fused", tally=True))
_LINES = ("metrics.jsonl", "events.jsonl", "dead_letters.jsonl")


def corrupt(num: int, seed: int, *, seconds: float | None = None, stop_at_first: bool = False) -> Finding:
    """Damages ``num`` copies of stopped runs, one after another."""
    began = time.monotonic()
    found = Finding("corruption", "")
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="millstream-corrupt-") as folder:
        place = Path(folder)
        write_data(place)
        stopped = [_stopped(scenario, place) for scenario in FEW]
        while (
            found.num < num
            and not (stop_at_first and found.bad)
            and (seconds is None or time.monotonic() - began < seconds)
        ):
            draws = random.Random(f"{seed}/{found.num}")
            scenario, original, alone = stopped[found.num % len(stopped)]
            copy = place / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(original, copy)
            told = damage(copy, draws)
            outcome, wrong = _go_on(scenario, place, copy, alone)
            outcomes[outcome] += 1
            found.bad += [f"{scenario.name}: {told}: {wrong}"] if wrong else []
            found.num += 1
    found.num_runs, found.seconds = found.num, time.monotonic() - began
    found.name = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    return found


def damage(folder: Path, draws: random.Random) -> str:
    """Does one thing to a run folder, and says what."""
    checkpoints = sorted(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    where = draws.choice(["newest", "newest", "all", "lines", "journal"])
    if where == "journal":
        files = [path for path in (folder / "journal").rglob("*") if path.is_file() and path.stat().st_size]
        return "journal: " + _hurt(draws.choice(sorted(files)), draws)
    if where == "lines":
        files = [folder / name for name in _LINES if (folder / name).stat().st_size]
        return _hurt(draws.choice(files), draws)
    chosen = checkpoints[-1:] if where == "newest" else checkpoints
    if draws.random() < 0.1:
        for path in chosen:
            shutil.rmtree(path)
        return f"{where} checkpoints deleted"
    if draws.random() < 0.1 and len(checkpoints) > 1:
        name = draws.choice(["state.json", "weights.safetensors", "manifest.json"])
        shutil.copyfile(checkpoints[0] / name, checkpoints[-1] / name)
        return f"{name} of an older checkpoint in the newest"
    name = draws.choice(["state.json", "weights.safetensors", "manifest.json"])
    return f"{where}: " + ", ".join(_hurt(path / name, draws) for path in chosen)


def _hurt(path: Path, draws: random.Random) -> str:
    data = bytearray(path.read_bytes())
    kind = draws.choice(["flip", "flip", "flip", "cut", "empty", "delete", "zero", "append"])
    if kind == "delete":
        path.unlink()
        return f"{path.name} deleted"
    place = draws.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << draws.randrange(8)
    elif kind == "zero":
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    elif kind == "append":
        data += draws.randbytes(draws.randint(1, 600))
    else:
        del data[0 if kind == "empty" else place :]
    path.write_bytes(data)
    return f"{path.name} {kind} at {place}"


def _stopped(scenario: Scenario, place: Path) -> tuple[Scenario, Path, dict[str, str]]:
    """A run that was left in the middle with some checkpoints, and what it comes to undisturbed."""
    whole, stopped = place / f"whole {scenario.name}", place / f"stopped {scenario.name}"
    scenario.job(place)(whole, Note(), None)
    trainer, source = scenario.trainer(), scenario.open(place)
    trainer.open(stopped)
    for turn, _ in enumerate(trainer.steps(source, update_size=scenario.update_size)):
        if turn in (4, 8, 12):
            trainer.commit()
        if turn == 12:
            break
    trainer.close()
    return scenario, stopped, fingerprints(whole)


def _go_on(scenario: Scenario, place: Path, folder: Path, alone: dict[str, str]) -> tuple[str, str]:
    """What came of a damaged run: refused, passed over or harmless; and what is wrong with that, if anything is."""
    warnings: list[str] = []
    try:
        trainer, source = scenario.trainer(), scenario.open(place)
        begins_anew = not checkpoint.exists(folder / "checkpoints")
        if begins_anew:  # a person is told that there is no run
            return "refused", _refuses(trainer, folder)
        warnings = trainer.open(folder, resume=True)
        trainer.learn(source, update_size=scenario.update_size, resume=True)
        trainer.close()
    except MillstreamError as error:
        return "refused", "" if "\n" not in str(error) else f"in more than one line: {error}"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    differing = differences(alone, fingerprints(folder))
    if not differing:
        return ("passed over" if warnings else "harmless"), ""
    lines_only = all(name in _LINES for name in differing)
    if lines_only and warnings:
        return "lines lost, told", ""
    return "SILENT", f"ends with other {', '.join(differing[:3])} and {warnings or 'no warning'}"


def _refuses(trainer: Any, folder: Path) -> str:
    try:
        trainer.open(folder, resume=True)
    except MillstreamError:
        return ""
    return "a run without checkpoints was resumed"


# ---------------------------------------------------------------- checkpoints made to do harm


class _Canary:
    """Pickled, it is a command that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def evil() -> Finding:
    """Loads checkpoints that were made to do harm, sealed with a right manifest where that makes them worse."""
    began = time.monotonic()
    found = Finding("evil files", "pickles, lengths, overlaps, shapes, other models")
    with tempfile.TemporaryDirectory(prefix="millstream-evil-") as folder:
        place = Path(folder)
        canary = place / "executed"
        for number, (name, files) in enumerate(_evils(place, canary)):
            run = place / f"evil-{number}"
            one = run / "checkpoints" / "00000000"
            one.mkdir(parents=True)
            for file, content in files.items():
                (one / file).write_bytes(content)
            if "manifest.json" not in files:
                _seal(one)
            found.bad += [f"{name}: {wrong}" for wrong in _load(run) if wrong]
            found.bad += [f"{name} was executed"] if canary.exists() else []
            found.num += 1
    found.num_runs, found.seconds = found.num, time.monotonic() - began
    return found


def _seal(folder: Path) -> None:
    """A manifest that fits, whatever the files hold."""
    files = {}
    for name in ("weights.safetensors", "state.json"):
        data = (folder / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    body = {"format": checkpoint.FORMAT, "files": files}
    text = json.dumps({**body, "sha256": checkpoint._self_digest(body)})
    (folder / checkpoint.MANIFEST).write_text(text, encoding="utf-8")


def _load(run: Path) -> Iterator[str]:
    scenario = Scenario("tensors", "adam", "reference")
    trainer = scenario.trainer()
    try:
        trainer.open(run, resume=True)
        yield "was loaded"
    except MillstreamError as error:
        yield "" if "\n" not in str(error) else f"more than one line: {error}"
    except Exception as error:
        yield f"{type(error).__name__}: {error}"
    finally:
        trainer.close()


def _evils(place: Path, canary: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    good = place / "good"
    trainer = Scenario("tensors", "adam", "reference").trainer()
    trainer.open(good)
    trainer.commit()
    trainer.close()
    one = checkpoint.newest(good / "checkpoints")[1]
    state, tensors = (one / "state.json").read_bytes(), (one / "weights.safetensors").read_bytes()

    def files(weights: bytes = tensors, tree: bytes = state, **more: bytes) -> dict[str, bytes]:
        return {"weights.safetensors": weights, "state.json": tree, **more}

    yield "a pickle as weights", files(pickle.dumps(_Canary(canary)))
    yield "a torch.save file as weights", files(_torch_saved(place, canary))
    yield "a pickle as state", files(tree=pickle.dumps(_Canary(canary)))
    yield "a header of 2^63 bytes", files(struct.pack("<Q", 1 << 63) + tensors[8:])
    yield "a header of 2^64 − 1 bytes", files(b"\xff" * 8 + tensors[8:])
    yield "a header longer than the file", files(struct.pack("<Q", len(tensors)) + tensors[8:])
    yield "overlapping tensors", files(_header({"a": [0, 8], "b": [4, 12]}, 12))
    yield "a tensor beyond the end", files(_header({"a": [0, 800]}, 8))
    yield "an offset below 0", files(_header({"a": [-8, 0]}, 8))
    yield "something after the tensors", files(tensors + b"more")
    yield "no tensors", files(b"")
    yield "weights of other shapes", files(_other_shapes(place, one))
    yield "state that names no tensor that is there", files(_header({"a": [0, 8]}, 8))
    yield "state that is no object", files(tree=b"[1, 2]")
    yield "state of a later version", files(tree=state.replace(b'"version": 1', b'"version": 999', 1))
    yield "state nested a hundred thousand deep", files(tree=b"[" * 100_000 + b"]" * 100_000)
    yield "state with NaN", files(tree=b'{"version": NaN}')
    yield "state with a mark of a wrong kind", files(tree=b'{"version": {"$tensor": 5}}')
    wrong = json.dumps({"format": 1, "files": {}, "sha256": "0" * 64}).encode()
    yield "a manifest with a wrong hash", files(**{"manifest.json": wrong})
    yield "a manifest that names a file elsewhere", files(**{"manifest.json": _elsewhere()})
    yield "a manifest that is a list", files(**{"manifest.json": b"[]"})
    other = Scenario("tensors", "momentum", "reference").trainer()
    other.open(place / "other")
    other.commit()
    other.close()
    kept = checkpoint.newest(place / "other" / "checkpoints")[1]
    yield "a whole checkpoint of another optimizer", {path.name: path.read_bytes() for path in kept.iterdir()}


def _torch_saved(place: Path, canary: Path) -> bytes:
    torch.save({"a": _Canary(canary)}, place / "saved.pt")
    return (place / "saved.pt").read_bytes()


def _header(offsets: dict[str, list[int]], size: int) -> bytes:
    text = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in offsets.items()})
    return struct.pack("<Q", len(text)) + text.encode() + bytes(size)


def _other_shapes(place: Path, one: Path) -> bytes:
    state = checkpoint.read(one)
    model = state["learner"]["model"]
    tensors = {f"learner.model.{name}": torch.zeros(3, 3) for name in model}
    save_file(tensors, place / "other-shapes.safetensors")
    return (place / "other-shapes.safetensors").read_bytes()


def _elsewhere() -> bytes:
    body = {"format": 1, "files": {"../../../../etc/hostname": {"bytes": 1, "sha256": "0" * 64}}}
    return json.dumps({**body, "sha256": checkpoint._self_digest(body)}).encode()
