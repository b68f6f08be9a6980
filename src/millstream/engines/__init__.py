"""Engines: how a chunk becomes weight changes. ``reference`` defines what is right; the others are faster and equal."""

from millstream.engines.averaging import AveragedEngine, averaged_weights, model_that_answers
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
from millstream.engines.drift import Drift, DriftEngine, parse_drift
from millstream.engines.factored import FactoredRMSprop
from millstream.engines.fused import FusedEngine
from millstream.engines.preparing import Around, prepare
from millstream.engines.race import RaceEngine
from millstream.engines.reference import ReferenceEngine
from millstream.engines.replay import Replay, ReplayEngine, parse_replay
from millstream.engines.rule import UpdateRule, parameter_of, step_after_epoch
from millstream.engines.several import Several, answering
from millstream.engines.updater import Updater, compile

__all__ = [
    "NAMES",
    "Around",
    "AveragedEngine",
    "Candidate",
    "Drift",
    "DriftEngine",
    "Entrants",
    "FactoredRMSprop",
    "FusedEngine",
    "MakesOptimizer",
    "RaceEngine",
    "Racing",
    "ReferenceEngine",
    "Replay",
    "ReplayEngine",
    "Several",
    "UpdateRule",
    "Updater",
    "answering",
    "averaged_weights",
    "batch_candidates",
    "candidates",
    "candidates_around",
    "choose",
    "compile",
    "entrants",
    "entrants_of",
    "explain",
    "model_that_answers",
    "parameter_of",
    "parse_drift",
    "parse_replay",
    "prepare",
    "step_after_epoch",
]
