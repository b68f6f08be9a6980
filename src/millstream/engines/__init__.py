"""Engines: how a chunk becomes weight changes. ``reference`` defines what is right; the others are faster and equal."""

from millstream.engines.candidates import (
    Candidate,
    Entrants,
    MakesOptimizer,
    Racing,
    batch_candidates,
    candidates,
    candidates_around,
    entrants,
    entrants_of,
)
from millstream.engines.choice import NAMES, choose, explain
from millstream.engines.factored import FactoredRMSprop
from millstream.engines.fused import FusedEngine
from millstream.engines.race import RaceEngine, prepare
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule, parameter_of, step_after_epoch
from millstream.engines.updater import Updater, compile

__all__ = [
    "NAMES",
    "Candidate",
    "Entrants",
    "FactoredRMSprop",
    "FusedEngine",
    "MakesOptimizer",
    "RaceEngine",
    "Racing",
    "ReferenceEngine",
    "UpdateRule",
    "Updater",
    "batch_candidates",
    "candidates",
    "candidates_around",
    "choose",
    "compile",
    "entrants",
    "entrants_of",
    "explain",
    "parameter_of",
    "prepare",
    "step_after_epoch",
]
