"""What people decide while a run is at work: written into its journal before it takes effect, so that a replay decides
the same at the same record.

A person leaves a wish in the run's folder; the loop looks there between two chunks.

    runs/elec2/inbox/20261128T180000-1234.json     {"learning_rate": 0.003}
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from millstream.errors import CheckpointError, SettingError
from millstream.journal import DECISIONS, Draft, Journal
from millstream.storage import replace, storage_errors

__all__ = ["Decisions", "change"]

_MOST_BYTES = 4096
_TICK_NANOSECONDS = 100_000_000  # more than the clock of any file system


class Decisions:
    """Those of a run. ``since`` is the last group before the checkpoint that it goes on from; None where it begins.

    ``consumed`` counts the places that the run has read, over all phases: a decision is made between two chunks, at one
    such count.
    """

    def __init__(self, folder: Path, journal: Journal, since: int | None = None) -> None:
        self._inbox, self._journal = folder / "inbox", journal
        self._looked_at = 0
        decided = () if since is None else (group.facts for group in journal.read(number=since + 1, kinds=DECISIONS))
        made = [facts for facts in decided if "wish" in facts]
        self._again = [facts for facts in made if facts["wish"] is not None]
        self._known = {facts["name"] for facts in made}

    def due(self, consumed: int) -> Iterator[dict[str, Any]]:
        """The wishes that take effect now: those of the journal, then new ones, which are written down first."""
        while self._again and self._again[0]["consumed"] <= consumed:
            yield self._again.pop(0)["wish"]
        if self._again:  # what was decided later was decided after these
            return
        for path in self._new():
            wish = _read(path)
            if path.name not in self._known:
                self._journal.append(Draft(None, {"wish": wish, "name": path.name, "consumed": consumed}, "decision"))
                self._known.add(path.name)
                if wish is not None:
                    yield wish
            path.unlink(missing_ok=True)

    def _new(self) -> list[Path]:
        """Wishes that have come, by name; looking costs one call of the operating system."""
        try:
            changed = self._inbox.stat().st_mtime_ns
        except OSError:
            return []
        if changed == self._looked_at:
            return []
        if time.time_ns() - changed > _TICK_NANOSECONDS:  # else another file may come with the same time
            self._looked_at = changed
        return sorted(path for path in self._inbox.iterdir() if path.suffix == ".json")


def change(run: str | Path, *, learning_rate: float) -> Path:
    """Changes a run that is at work, here or in another process: it takes the rate from its next chunk on.

    Gives the file that the wish lies in until then. Raises ``CheckpointError`` where there is no run, and
    ``SettingError`` for a rate that is none.
    """
    folder = Path(run)
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(got=f"no run in {run}", wanted="the folder of a run", do="name the one given with --run")
    wish = {"learning_rate": learning_rate}
    _check(wish)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}.json"
    path = folder / "inbox" / name
    with storage_errors(folder, do="make room, or allow writing there"):
        replace(path, json.dumps(wish))
    return path


def _check(wish: dict[str, Any]) -> None:
    """Refuses a wish that no run can take up."""
    rate = wish.get("learning_rate")
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if set(wish) != {"learning_rate"} or not is_number or not 0 < float(rate or 0) < float("inf"):
        raise SettingError(
            got=f"a change to {json.dumps(wish)[:80]}",
            wanted="a learning rate above 0",
            do="write millstream change RUN --learning-rate 0.003",
        )


def _read(path: Path) -> dict[str, Any] | None:
    """The wish in a file; None where it is none: then that is what is written down, and nothing changes."""
    try:
        with path.open("rb") as file:
            wish = json.loads(file.read(_MOST_BYTES))
        if not isinstance(wish, dict):
            return None
        _check(wish)
    except (OSError, ValueError):
        return None
    return wish
