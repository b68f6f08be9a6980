"""Ways to learn a stream without knowing the right rate, and those to compare with, by name; for ``streams.py``.

Ours, and all that the engines know, go through ``Trainer``; the others are in ``stream_peers``.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from millstream.assembly import Recipe, build
from stream_data import MODEL, STREAMS, Answers, Stream
from stream_peers import BASELINES, RIVER, TORCH, plain

SGD_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.06, 0.1, 0.3, 1.0)
FACTORED_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SLOW_RECORDS = 50_000


@functools.cache
def _warm() -> None:
    """Loads the compiled kernels, or compiles them, which is not to be timed."""
    schema, source = STREAMS["sea"].open(0)
    records = source.take(np.arange(64))  # type: ignore[attr-defined]
    for delay in (None, 10):
        build(Recipe(schema, model=MODEL)).learn(records.inputs, label_delay=delay)


def trained(name: str, stream: Stream, delay: str, seed: int, limit: int, **settings: Any) -> Answers:
    """``Trainer.learn`` with a recipe of these settings; nothing set is the default, in which rates race."""
    _warm()
    schema, source = stream.open(seed)
    trainer = build(Recipe(schema, model=MODEL, seed=seed, max_skips=10**9, **settings))
    right, targets, known = [], [], []
    running, events = 0.0, collections.Counter[str]()
    started = time.perf_counter()
    for step in trainer.steps(source, label_delay=None if delay == "0" else delay):
        scored = step.scored
        if scored is None:
            continue
        right.append((scored.outputs.argmax(1) == scored.targets).numpy())
        targets.append(scored.targets.numpy())
        known.append(np.full(len(scored.targets), np.nan) if scored.known is None else scored.known)
        standings = getattr(trainer.learner.engine, "standings", None)
        running += len(scored.targets) * (1 if standings is None else standings.running.sum())
        events.update(event.what for event in scored.events)
        if limit and step.records >= limit:
            break
    learned = step.records
    seconds = (time.perf_counter() - started) * min(limit or learned, learned) / learned
    labels = np.concatenate(targets)[: limit or None]
    latest = np.concatenate(known)[: limit or None] if delay != "0" else np.concatenate([[np.nan], labels[:-1]])
    answers = Answers(name, np.concatenate(right)[: limit or None], seconds, labels, latest)
    if hasattr(trainer.learner.engine, "standings"):
        answers.copies, answers.events = float(running / learned), dict(events)
        answers.leader = trainer.learner.engine.optimizer
    return answers


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Methods that one process runs, one after the other."""

    runs: dict[str, Callable[[Stream, str, int, int], Answers]]
    is_slow: bool = False  # one seed, the first records, one of two streams that differ in how drift comes
    is_dense: bool = False  # steps every weight of a table of categories at each record


def _of_trainer(name: str, **settings: Any) -> Callable[[Stream, str, int, int], Answers]:
    return functools.partial(trained, name, **settings)


def _family(kind: str, rates: tuple[float, ...]) -> Group:
    names = {f"{kind} {rate:g}": rate for rate in rates}
    return Group({name: _of_trainer(name, optimizer=kind, learning_rate=rate) for name, rate in names.items()})


def _plain(name: str, **settings: bool) -> Group:
    return Group({name: functools.partial(plain, name)}, **settings)


GROUPS: dict[str, Group] = {
    "ours": Group({"ours": _of_trainer("ours")}),
    "sgd": _family("sgd", SGD_RATES),
    "factored": _family("factored", FACTORED_RATES),
    "adam": Group({"adam": _of_trainer("adam", optimizer="adam", learning_rate=1e-3)}, is_dense=True),
    "baselines": Group({name: functools.partial(plain, name) for name in BASELINES}),
    **{name: _plain(name, is_slow=True) for name in RIVER},
    **{name: _plain(name, is_slow=True, is_dense=True) for name in TORCH},
}
