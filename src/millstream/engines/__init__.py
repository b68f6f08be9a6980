"""Engines: how a chunk becomes weight changes. ``reference`` defines what is right; the others are faster and equal."""

from __future__ import annotations

from collections.abc import Callable

from millstream.contracts import Engine
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule
from millstream.errors import SettingError

__all__ = ["NAMES", "ReferenceEngine", "UpdateRule", "choose"]

_FASTEST_FIRST: dict[str, Callable[[UpdateRule], Engine]] = {"reference": ReferenceEngine}
NAMES = ("auto", *_FASTEST_FIRST)


def choose(name: str, rule: UpdateRule) -> Engine:
    """The engine of this name for this rule; ``auto`` is the fastest one that takes it."""
    if name not in NAMES:
        raise SettingError(got=f"engine {name!r}", wanted=f"one of {', '.join(NAMES)}", do="leave it at 'auto'")
    return _FASTEST_FIRST[next(iter(_FASTEST_FIRST)) if name == "auto" else name](rule)
