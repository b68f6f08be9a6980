"""What sinks refuse, in the same words."""

from __future__ import annotations

from typing import Any

from millstream.errors import CheckpointError, SettingError

__all__ = ["GO_ON", "check_state", "holds_rows_already", "is_open_already"]

GO_ON = "make room or allow writing, then go on with --resume: what was committed before is whole"


def check_state(state: dict[str, Any], kind: str) -> None:
    """Refuses what another kind of sink has saved."""
    if state.get("kind") != kind:
        raise CheckpointError(
            got=f"a checkpoint whose outcomes went to {state.get('kind')}",
            wanted=f"one whose outcomes went to {kind}",
            do="name the same place for outcomes as before",
        )


def holds_rows_already(what: str) -> SettingError:
    return SettingError(
        got=what,
        wanted="a new place for the outcomes of this run",
        do="name another, move it away, or resume the run that wrote it",
    )


def is_open_already(what: str) -> SettingError:
    return SettingError(
        got=f"{what}, which another sink writes to, here or in another process",
        wanted="a place of one's own",
        do="wait for it, or name another place",
    )
