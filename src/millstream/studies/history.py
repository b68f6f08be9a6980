"""What a run has been through, as plain JSON values: its folder is read, and neither locked nor changed.

So it can be read while the run is at work, and after a crash: a last line that was cut short is passed over. It knows
the files of a run; it does not know how they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from millstream import checkpoint
from millstream.errors import CheckpointError
from millstream.storage import storage_errors

__all__ = ["history", "measures_of"]

Line: TypeAlias = dict[str, Any]

_MOST_REASONS, _EXAMPLES = 100, 3
_HEADLINES = {"accuracy": ("no_change_accuracy", "majority_accuracy"), "mae": ("no_change_mae", "mean_mae")}


def history(run: str | Path) -> dict[str, Any]:
    """The facts of a run: how it stands, its phases, points, epochs and events, what was refused, how it was made."""
    folder = Path(run)
    problems: list[str] = []
    with storage_errors(folder, do="name a run folder that can be read"):
        points = list(_lines(folder / "metrics.jsonl", problems))
        events = list(_lines(folder / "events.jsonl", problems))
        refused = _refused(_lines(folder / "dead_letters.jsonl", problems))
    state: Mapping[str, Any] = {}
    try:
        state, _, damaged = checkpoint.newest(folder / "checkpoints")
        problems += damaged
    except CheckpointError as error:
        if not points:  # nothing at all is known of it
            raise
        problems.append(f"no settings: {error.got}")
    _place(points)
    phases = _phases(points, state.get("phase"), state.get("position", 0))
    stands_at = max([state.get("position", 0), *(point["position"] for point in points)])
    is_behind = stands_at > state.get("position", stands_at)
    if is_behind:
        problems.append(
            f"what comes after record {state['position']:,} is not committed yet; resumed from there, it is made again"
        )
    headline, baselines = measures_of(points)
    return {
        "run": str(run),
        "position": stands_at,
        "committed": state.get("position"),
        "finished": bool(phases) and bool(phases[-1]["finished"]) and not is_behind,
        "written": _written(folder),
        "metric": headline,
        "baselines": list(baselines),
        "phases": phases,
        "points": points,
        "epochs": _epochs(points),
        "events": events,
        "refused": refused,
        "settings": _settings(state),
        "versions": dict(state.get("numerics", {})),
        "problems": problems,
    }


def measures_of(points: Sequence[Line]) -> tuple[str, tuple[str, ...]]:
    """The measure that matters most, and the baselines beside it.

    >>> measures_of([{"metrics": {"loss": 0.1, "mae": 2.0, "mean_mae": 3.0}}])
    ('mae', ('mean_mae',))
    """
    names = {name for point in points for name in point["metrics"]}
    for headline, baselines in _HEADLINES.items():
        if headline in names:
            return headline, tuple(name for name in baselines if name in names)
    return "loss", ()


def _lines(path: Path, problems: list[str]) -> Iterator[Line]:
    """The objects in a file of JSON lines. Only the last line may be half there; others that are none are told."""
    if not path.exists():
        return
    num_bad = 0
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict):
                yield line
            elif text.endswith(b"\n"):
                num_bad += 1
    if num_bad:
        problems.append(f"{num_bad:,} lines of {path.name} cannot be read")


def _place(points: list[Line]) -> None:
    """Gives each point its run position, where lines do not name it: those of before, all records one after another."""
    points[:] = [point for point in points if isinstance(point.get("metrics"), dict) and "records" in point]
    first, phase, last = 0, None, 0
    for point in points:
        if point.get("phase") != phase:
            first, phase = last, point.get("phase")
        point.setdefault("position", first + point["records"])
        last = point["position"]


def _phases(points: Sequence[Line], now: Mapping[str, Any] | None, committed: int) -> list[dict[str, Any]]:
    """Each ``fit`` and ``learn``: where it began and how it stands; the state knows more of the last one."""
    found: dict[Any, dict[str, Any]] = {}
    end = 0
    names = ("kind", "records", "updates", "skipped", "optimizer", "learning_rate", "engine", "update_size")
    for point in points:
        phase = found.setdefault(point.get("phase"), {"number": point.get("phase"), "first": end})
        phase |= {name: point.get(name) for name in (*names, "noise_scale")}
        phase |= {"epochs": point.get("epoch", 0), "finished": None}
        end = point["position"]
    if now is None:
        return list(found.values())
    phase = found.setdefault(now["number"], {"number": now["number"], "first": end if found else 0})
    if phase.get("records", 0) <= now["records"]:
        phase |= {name: now[name] for name in ("kind", "records", "updates", "skipped", "update_size", "noise_scale")}
        phase["epochs"] = now["epoch"]
    last = points[-1] if points else {}
    phase |= {name: phase.get(name, last.get(name)) for name in ("optimizer", "learning_rate", "engine")}
    phase |= {"finished": now["finished"], "seconds": now["seconds"], "total": now["total"], "plan": now["plan"]}
    phase |= {"source": _source(now["source"]), "label_delay": now["delay"]}
    return [found[number] for number in sorted(found, key=lambda number: -1 if number is None else number)]


def _source(fingerprint: Mapping[str, Any]) -> str:
    """What was read, in a word: the files, or what kind of source it was."""
    inner = fingerprint
    while "files" not in inner and isinstance(inner.get("of"), dict):
        inner = inner["of"]
    files = [Path(str(file.get("path", ""))) for file in inner.get("files") or () if isinstance(file, dict)]
    if not files:
        return str(inner.get("kind", ""))
    return "/".join(files[0].parts[-2:]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _epochs(points: Sequence[Line]) -> list[dict[str, Any]]:
    """The line after each epoch: it is the first one with the next number."""
    found, before = [], (None, 0)
    for point in points:
        place = point.get("phase"), point.get("epoch", 0)
        if place[1] > (before[1] if place[0] == before[0] else 0):
            kept = ("phase", "kind", "epoch", "position", "records", "learning_rate", "update_size")
            found.append({**{name: point.get(name) for name in kept}, "test": point.get("test")})
        before = place
    return found


def _refused(lines: Iterator[Line]) -> dict[str, Any]:
    """How many records were refused or skipped, by reason, the first few of each by place."""
    reasons: dict[str, dict[str, Any]] = {}
    num = 0
    for line in lines:
        num += 1
        reason = str(line.get("reason", ""))
        if reason not in reasons and len(reasons) == _MOST_REASONS:
            reason = "other reasons"
        entry = reasons.setdefault(reason, {"reason": reason, "num": 0, "examples": []})
        entry["num"] += 1
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(line.get("where") or f"position {line.get('position')}")
    return {"num": num, "reasons": sorted(reasons.values(), key=lambda entry: -entry["num"])}


def _settings(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe, with its schema in short; None for a run of a Python object."""
    spec = state.get("spec")
    if not isinstance(spec, dict):
        return None
    schema = spec.get("schema") or {}
    target = schema.get("target") or {}
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in spec.items()}
    told["schema"] = {
        "target": target.get("name"),
        "kind": target.get("kind"),
        "columns": [[field["name"], field["kind"]] for field in schema.get("fields", ())],
    }
    return told


def _written(folder: Path) -> str | None:
    """When one of its files was written last."""
    names = ("metrics.jsonl", "events.jsonl", "dead_letters.jsonl", "checkpoints")
    times = [path.stat().st_mtime for path in (folder / name for name in names) if path.exists()]
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
