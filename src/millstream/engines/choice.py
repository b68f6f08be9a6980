"""Which engine computes a rule: the one that is named, or the fastest that takes it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from millstream.contracts import Engine
from millstream.engines.fused import FusedEngine
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule
from millstream.errors import ModelError, SettingError

__all__ = ["NAMES", "choose", "explain"]

_log = logging.getLogger("millstream")
_FASTEST_FIRST: dict[str, tuple[Callable[[UpdateRule], Engine], Callable[[UpdateRule], str]]] = {
    "fused": (FusedEngine, FusedEngine.declines),
    "reference": (ReferenceEngine, lambda _: ""),
}
NAMES = ("auto", *_FASTEST_FIRST)


def choose(name: str, rule: UpdateRule) -> Engine:
    """The engine of this name for this rule; ``auto`` is the fastest that takes it; the log says why others do not."""
    if name not in NAMES:
        raise SettingError(got=f"engine {name!r}", wanted=f"one of {', '.join(NAMES)}", do="leave it at 'auto'")
    if name != "auto":
        return _FASTEST_FIRST[name][0](rule)
    for candidate, (make, _) in _FASTEST_FIRST.items():
        try:
            return make(rule)  # which looks at the model itself: asking first would look twice
        except ModelError as error:
            _log.info("engine %s declines: %s", candidate, error.got)
    raise AssertionError("the reference engine takes every rule")


def explain(rule: UpdateRule) -> dict[str, str]:
    """Why each engine does not take the rule, fastest first; empty for those that do. ``auto`` is the first of these.

    >>> import torch
    >>> from millstream import losses
    >>> model = torch.nn.Linear(2, 2)
    >>> explain(UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters())))
    {'fused': '', 'reference': ''}
    """
    return {name: declines(rule) for name, (_, declines) in _FASTEST_FIRST.items()}
