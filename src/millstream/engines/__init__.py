"""Engines: how a chunk becomes weight changes. ``reference`` defines what is right; the others are faster and equal."""

from millstream.engines.candidates import Candidate, MakesOptimizer, candidates, candidates_around, candidates_of
from millstream.engines.choice import NAMES, choose, explain
from millstream.engines.factored import FactoredRMSprop
from millstream.engines.fused import FusedEngine
from millstream.engines.race import RaceEngine, prepare
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule, parameter_of, step_after_epoch
from millstream.engines.several import Several, answering
from millstream.engines.updater import Updater, compile

__all__ = [
    "NAMES",
    "Candidate",
    "FactoredRMSprop",
    "FusedEngine",
    "MakesOptimizer",
    "RaceEngine",
    "ReferenceEngine",
    "Several",
    "UpdateRule",
    "Updater",
    "answering",
    "candidates",
    "candidates_around",
    "candidates_of",
    "choose",
    "compile",
    "explain",
    "parameter_of",
    "prepare",
    "step_after_epoch",
]
