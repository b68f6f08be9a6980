"""The folder of what was published: whole, checksummed, never unpickled, and one small file that names the newest.

    published/0000123456/weights.safetensors   the weights that answer (and the numbers of the features)
                         state.json            everything else: recipe, features, run position, metric
                         manifest.json         size and SHA-256 of both, and of itself
              current.json                     {"folder": "0000123456", "position": 123456, "sha256": …}

Writing is that of a checkpoint. ``current.json`` is replaced once its folder is durable, so a reader that begins there
finds all of it, or a newer one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from millstream import checkpoint
from millstream.contracts import State
from millstream.errors import CheckpointError, StorageError
from millstream.storage import replace, storage_errors

__all__ = ["Publication", "newest", "publish", "stands_at"]

_CURRENT = "current.json"
_ATTEMPTS = 5  # a folder goes away while it is read only when newer ones are there
_DO = "make room, or allow writing; the run can be gone on with"


@dataclasses.dataclass(frozen=True, slots=True)
class Publication:
    """What was published: weights that answer, and what is needed to answer with them."""

    position: int
    sha256: str  # of its manifest
    state: State = dataclasses.field(repr=False)


def publish(folder: Path, state: State, *, keep: int) -> None:
    """Writes ``state`` under its run position, then names it the current one. The same twice is the same as once."""
    name = f"{state['position']:010d}"
    made = checkpoint.write(folder, state, keep=keep, name=name)
    facts = {"folder": name, "position": state["position"], "sha256": _seal(made), "metric": state["metric"]}
    with storage_errors(folder, do=_DO):
        replace(folder / _CURRENT, json.dumps(facts))


def stands_at(folder: Path) -> int | None:
    """The run position of the current publication; None where there is none."""
    found = _current(folder)
    return None if found is None else int(found["position"])


def newest(folder: Path, known: str = "") -> Publication | None:
    """The current publication, every byte of it checked; None if it is the ``known`` one (``sha256``).

    Raises ``CheckpointError`` where there is none, or where it is damaged.
    """
    for attempt in range(_ATTEMPTS):
        found = _current(folder)
        if found is None:
            raise CheckpointError(
                got=f"nothing published in {folder}", wanted="a folder that a run publishes to", do="wait, or name it"
            )
        if found["sha256"] == known:
            return None
        path = folder / found["folder"]
        try:
            state = checkpoint.read(path)
            if _seal(path) == found["sha256"]:
                return Publication(found["position"], found["sha256"], state)
        except (CheckpointError, OSError, ValueError, KeyError) as error:
            if attempt == _ATTEMPTS - 1 or _current(folder) == found:
                raise CheckpointError(
                    got=f"a damaged publication in {path}",
                    wanted="files that match their manifest",
                    do="wait for the next one",
                ) from error
    raise CheckpointError(
        got=f"publications in {folder} that went away while they were read",
        wanted="one that stays",
        do="keep more of them, or publish less often",
    )


def _current(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _CURRENT).read_text(encoding="utf-8"))
        return {"folder": str(found["folder"]), "position": int(found["position"]), "sha256": str(found["sha256"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            got=f"{folder / _CURRENT} that does not read as it was written",
            wanted="the file that a run put there",
            do="wait for the next one, or remove it",
        ) from error


def _seal(path: Path) -> str:
    manifest = json.loads((path / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    return str(manifest["sha256"])
