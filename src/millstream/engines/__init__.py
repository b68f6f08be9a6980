"""Engines: how a chunk becomes weight changes. ``reference`` defines what is right; the others are faster and equal."""

from millstream.engines.choice import NAMES, choose, explain
from millstream.engines.fused import FusedEngine
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule, parameter_of, step_after_epoch
from millstream.engines.updater import Updater, compile

__all__ = [
    "NAMES",
    "FusedEngine",
    "ReferenceEngine",
    "UpdateRule",
    "Updater",
    "choose",
    "compile",
    "explain",
    "parameter_of",
    "step_after_epoch",
]
