"""Labels that come later: predict when the features arrive, learn when the label does, score the first prediction.

``LabelDelay`` sits between features and engine. It holds the records whose label is still on its way; they are state.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Inputs, Questions, State
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.rows import join_rows

__all__ = ["Arrivals", "Delay", "LabelDelay", "parse_delay"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Delay:
    """How late a label is: in records, in seconds of the time column, or (neither) as the label_time column says."""

    records: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.records is not None:
            return str(self.records)
        return "known" if self.seconds is None else f"{self.seconds:g}s"


def parse_delay(text: str | int | Delay) -> Delay:
    """``10`` is records, ``30s``, ``5m``, ``2h`` and ``1d`` are time, ``known`` is the data's own label_time column.

    >>> parse_delay("2h")
    Delay(records=None, seconds=7200.0)
    """
    if isinstance(text, Delay):
        return text
    text = str(text).strip()
    if text == "known":
        return Delay()
    if re.fullmatch(r"\d+", text):
        return Delay(records=int(text))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise SettingError(
            got=f"label delay {text!r}",
            wanted="records (10), time (30s, 5m, 2h, 1d) or 'known'",
            do="write one of these",
        )
    return Delay(seconds=float(match[1]) * _UNITS[match[2]])


@dataclasses.dataclass(slots=True)
class Arrivals:
    """What a chunk brings: the records to learn now, the questions between them, the label known at each question."""

    lessons: Chunk  # whole updates; empty when none is complete
    questions: Questions
    known: npt.NDArray[np.float64]  # (M,) the latest label known at each question; NaN before the first


class LabelDelay:
    """Turns records into questions now and lessons later. Lessons come in the order in which labels arrive.

    A question at time t knows the labels that arrived before t, strictly; so never its own, and never one that the cut
    of a chunk lets through early. With a delay of d records, "time" is the record's number: the label of record i is
    known once record i + d was predicted, and d = 0 is learning at once.
    """

    def __init__(self, delay: Delay, update_size: int) -> None:
        self.delay, self.update_size = delay, update_size
        self._waiting: Chunk | None = None  # predicted, the label is on its way; `times` says when it arrives
        self._ready: Chunk | None = None  # the label is here, the update is not complete
        self._num_seen = self._num_asked = 0
        self._clock = -np.inf
        self._last_label = np.nan

    def arrive(self, chunk: Chunk) -> Arrivals:
        """The chunk's records become questions; the lessons are those whose labels arrive while they are asked."""
        asked_at, known_at = self._times(chunk)
        chunk.numbers = np.arange(self._num_asked, self._num_asked + len(chunk))
        self._num_asked += len(chunk)
        waiting = _join(self._waiting, _bare(chunk, known_at))
        assert waiting.times is not None and waiting.targets is not None
        order = np.argsort(waiting.times, kind="stable")
        arrival = waiting.times[order]
        horizon = self._num_seen if self.delay.records is not None else self._clock
        num_arrived = int(np.searchsorted(arrival, horizon, side="left"))
        arrived = _rows(waiting, order[:num_arrived])
        self._waiting = _rows(waiting, np.sort(order[num_arrived:]))
        num_before = np.minimum(np.searchsorted(arrival, asked_at, side="left"), num_arrived)
        known = self._known(arrived, num_before)
        num_ready = 0 if self._ready is None else len(self._ready)
        pool = _join(self._ready, arrived)
        whole = len(pool) - len(pool) % self.update_size
        self._ready = _rows(pool, np.arange(whole, len(pool)))
        lessons = _rows(pool, np.arange(whole))
        return Arrivals(lessons, Questions(chunk, np.minimum(num_before + num_ready, whole)), known)

    def pass_over(self, span: int) -> int:
        """Places whose records were all refused: the time of a delay in records goes on. Gives the lessons: none."""
        self._num_seen += span
        return 0

    def state_dict(self) -> State:
        return {
            "version": 1,
            "delay": dataclasses.asdict(self.delay),
            "update_size": self.update_size,
            "waiting": _state(self._waiting),
            "ready": _state(self._ready),
            "num_seen": self._num_seen,
            "num_asked": self._num_asked,
            "clock": self._clock,
            "last_label": self._last_label,
        }

    def load_state_dict(self, state: State) -> None:
        if state["delay"] != dataclasses.asdict(self.delay) or state["update_size"] != self.update_size:
            raise CheckpointError(
                got=f"a run with label delay {Delay(**state['delay'])} and update size {state['update_size']}",
                wanted=f"{self.delay} and {self.update_size}, as asked now",
                do="resume with the settings that the run began with",
            )
        self._waiting, self._ready = _chunk(state["waiting"]), _chunk(state["ready"])
        self._num_seen, self._num_asked = state["num_seen"], state["num_asked"]
        self._clock, self._last_label = state["clock"], state["last_label"]

    def _times(self, chunk: Chunk) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """When each record of the chunk is asked and when its label is known, by the clock of this delay."""
        if self.delay.records is not None:
            offsets = np.arange(len(chunk)) if chunk.offsets is None else chunk.offsets
            asked_at = (self._num_seen + offsets).astype(np.float64)
            self._num_seen += chunk.span
            return asked_at, asked_at + self.delay.records
        if chunk.times is None or (self.delay.seconds is None and chunk.label_times is None):
            missing = "time" if chunk.times is None else "label_time"
            raise DataError(
                got=f"label delay {self.delay} on data without a {missing} column",
                wanted=f"a {missing} column in the schema",
                do="name it (--time COLUMN, --label-time COLUMN) or give the delay in records",
            )
        asked_at = np.maximum.accumulate(np.concatenate([[self._clock], chunk.times]))[1:]
        self._clock = float(asked_at[-1]) if len(asked_at) else self._clock
        label_times = chunk.times + self.delay.seconds if self.delay.seconds is not None else chunk.label_times
        assert label_times is not None
        return asked_at, np.maximum(np.nan_to_num(label_times, nan=np.inf), asked_at)

    def _known(self, arrived: Chunk, num_before: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        assert arrived.targets is not None
        targets = (
            arrived.targets.reshape(len(arrived), -1)[:, 0].to(torch.float64).numpy() if len(arrived) else np.empty(0)
        )
        labels = np.concatenate([[self._last_label], targets])
        self._last_label = float(labels[-1])
        known: npt.NDArray[np.float64] = labels[num_before]
        return known


def _bare(chunk: Chunk, known_at: npt.NDArray[np.float64]) -> Chunk:
    """What has to be kept of a chunk until its labels come."""
    return Chunk(chunk.inputs, chunk.targets, chunk.weights, times=known_at, numbers=chunk.numbers)


def _rows(chunk: Chunk, rows: npt.NDArray[np.integer[Any]]) -> Chunk:
    """These records in this order, numbered afresh and in memory of their own."""
    picked = chunk.select(rows.astype(np.int64))
    return dataclasses.replace(picked, offsets=None, span=len(rows))


def _join(first: Chunk | None, second: Chunk) -> Chunk:
    if first is None or not len(first):
        return second
    a, b = first.inputs, second.inputs
    inputs: Inputs
    if isinstance(a, dict) and isinstance(b, dict):
        inputs = {name: join_rows([a[name], b[name]]) for name in a}
    elif isinstance(a, tuple) and isinstance(b, tuple):
        inputs = tuple(join_rows(pair) for pair in zip(a, b, strict=True))
    else:
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        inputs = join_rows([a, b])
    assert first.targets is not None and second.targets is not None
    assert first.times is not None and second.times is not None
    assert first.numbers is not None and second.numbers is not None
    weights = None
    if first.weights is not None and second.weights is not None:
        weights = torch.cat([first.weights, second.weights])
    return Chunk(
        inputs,
        torch.cat([first.targets, second.targets]),
        weights,
        times=np.concatenate([first.times, second.times]),
        numbers=np.concatenate([first.numbers, second.numbers]),
    )


def _state(chunk: Chunk | None) -> State | None:
    if chunk is None or not len(chunk):
        return None
    names = ("inputs", "targets", "weights", "times", "numbers")
    return {name: getattr(chunk, name) for name in names}


def _chunk(state: State | None) -> Chunk | None:
    return None if state is None else Chunk(**state)
