"""Drift: a detector watches the errors of lessons, and an alarm acts on what learns.

The errors of what was predicted before learning are averaged over blocks of 8 lessons and fed to a detector at fixed
numbers of lessons. Where labels are late, an error is that of the original prediction, and known when its label comes.

Shapes: N lessons, M questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Engine, Event, Outcome, Questions, State
from millstream.engines.detectors import Detector
from millstream.engines.pieces import Pending, Piecewise, Unscored, find
from millstream.engines.race import RaceEngine
from millstream.engines.replay import ReplayEngine
from millstream.engines.scores import wrong
from millstream.errors import SettingError

__all__ = ["ACTIONS", "Drift", "DriftEngine", "parse_drift"]

ACTIONS = ("reopen", "reset", "raise", "replay", "none")
BLOCK = 8  # lessons of one number that the detector sees
REPLAYED, REPLAY_SHARE, REPLAY_PIECES = 512, 1.0, 4  # after an alarm: from so many records, how much, how long
_RAISED, _FALL = 4.0, 0.5  # the rate after an alarm, and how much of that a piece of 512 lessons leaves
_NEARLY_ONE = 1.05
_KEPT_SCALE = 0.995  # of the mean size of losses, by a block


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """Which detector, and what its alarm does."""

    detector: str
    action: str = "raise"

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise SettingError(
                got=f"drift action {self.action!r}", wanted=f"one of {', '.join(ACTIONS)}", do="leave it out"
            )


def parse_drift(text: str | Drift | None) -> Drift | None:
    """``adwin`` is a detector with the default action, ``adwin:reset`` names the action; ``none`` is no detector.

    >>> parse_drift("adwin:reset")
    Drift(detector='adwin', action='reset')
    """
    if isinstance(text, Drift) or not text or text == "none":
        return text if isinstance(text, Drift) else None
    detector, _, action = text.partition(":")
    return Drift(detector, action or "raise")


class DriftEngine(Piecewise):
    """Watches what an engine predicts; acts on the race, the replay or the optimizer within it."""

    kind = "drift"

    def __init__(self, inner: Engine, drift: Drift) -> None:
        super().__init__(inner)
        self._race: RaceEngine | None = find(inner, RaceEngine)
        self._replay: ReplayEngine | None = find(inner, ReplayEngine)
        self.action = drift.action
        if self.action == "reopen" and self._race is None:
            raise SettingError(
                got="drift action reopen with one optimizer",
                wanted="several that race",
                do="leave the optimizer out, or name another action",
            )
        self.detector = Detector(drift.detector)
        self._pending, self._unscored = Pending(1), Unscored()
        self._block: npt.NDArray[np.float64] = np.zeros(0)  # errors of lessons that the detector has not seen
        self._scale = 0.0  # of losses that are not of classes
        self._factor = 1.0  # of the rate
        self._replays = 0  # pieces for which replay is still on

    def _learn(self, piece: Chunk, update_size: int, questions: Questions | None) -> Outcome:
        if self._factor == 1:
            return self.inner.learn(piece, update_size, questions)
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        rates = [(float(group["lr"]), float(group["lr"]) * self._factor) for group in groups]
        for group, (_, raised) in zip(groups, rates, strict=True):
            group["lr"] = raised
        try:
            return self.inner.learn(piece, update_size, questions)
        finally:
            for group, (base, raised) in zip(groups, rates, strict=True):
                group["lr"] = base if group["lr"] == raised else float(group["lr"]) / self._factor

    def _see(self, piece: Chunk, questions: Questions | None, outcome: Outcome) -> None:
        if not self.rule.online:
            return
        if questions is None:
            assert piece.targets is not None
            errors = self._errors(outcome, piece.targets)
        else:
            assert questions.chunk.targets is not None and questions.chunk.numbers is not None
            if len(questions.chunk):
                errors = self._errors(outcome, questions.chunk.targets)[None]
                if not questions.labelled:
                    errors = self._unscored.kept({0: outcome}, np.zeros(errors.shape, bool))
                self._pending.drop_before(questions.oldest)
                self._pending.keep(questions.chunk.numbers, errors)
            if piece.numbers is None or not len(piece):
                return
            errors = self._known(piece)
        self._block = np.concatenate([self._block, errors])

    def _known(self, lessons: Chunk) -> npt.NDArray[np.float64]:
        """(N,) errors of what these lessons were answered with when they were asked."""
        assert lessons.numbers is not None and lessons.targets is not None
        found = self._pending.take(lessons.numbers)
        if len(found) == 1:
            return np.asarray(found[0])
        targets = lessons.targets if lessons.judged is None else lessons.judged
        outputs = self._unscored.outputs(found, 1, targets.device)[0]
        return self._errors(Outcome(outputs, self.rule.loss(outputs, targets)), targets)

    def _errors(self, outcome: Outcome, targets: Tensor) -> npt.NDArray[np.float64]:
        """(N,) 0 or 1 for classes, else losses as they are."""
        task = self.rule.loss.task
        if task in ("classes", "binary"):
            return wrong(outcome.outputs, targets, task)
        losses: npt.NDArray[np.float64] = outcome.losses.detach().double().cpu().numpy()
        return losses

    def _between(self, position: int) -> None:
        self._calm()
        whole = len(self._block) - len(self._block) % BLOCK
        blocks, self._block = self._block[:whole].reshape(-1, BLOCK), self._block[whole:]
        size = self.detector.update(self._levels(blocks))
        if size > 0:
            self._act(position, size)

    def _levels(self, blocks: npt.NDArray[np.float64]) -> list[float]:
        """The mean of each block, between -1 and 1: losses in proportion to what they usually are, of any size."""
        if self.rule.loss.task in ("classes", "binary"):
            return [float(level) for level in blocks.mean(1).tolist()]
        return [self._level(errors) for errors in blocks]

    def _level(self, errors: npt.NDArray[np.float64]) -> float:
        finite = np.abs(errors[np.isfinite(errors)])
        if len(finite):
            usual = float(np.minimum(finite, 20 * self._scale if self._scale else np.inf).mean())
            self._scale = _KEPT_SCALE * self._scale + (1 - _KEPT_SCALE) * usual if self._scale else usual
        with np.errstate(invalid="ignore"):
            bounded = errors / (np.abs(errors) + max(self._scale, 1e-300))
        return float(np.nan_to_num(bounded, nan=1.0).mean())

    def _calm(self) -> None:
        """What an alarm has turned on runs out."""
        self._factor = self._factor * _FALL if self._factor * _FALL > _NEARLY_ONE else 1.0
        if self._replays:
            self._replays -= 1
            if not self._replays and self._replay is not None:
                self._replay.share = self._replay.usual

    def _act(self, position: int, size: float) -> None:
        if self.action == "reopen" and self._race is not None:
            self._race.world_changed(position, "drift")
        elif self.action == "reset":
            for optimizer in self._optimizers():
                optimizer.state.clear()
        elif self.action == "raise":
            self._factor = _RAISED
        elif self.action == "replay" and self._replay is not None:
            self._replay.share, self._replays = REPLAY_SHARE, REPLAY_PIECES
        detail = f"{self.detector.name}: errors rose by {size:.3g}; {self.action}"
        self._events.append(Event(position, "drift", detail, self.learning_rate))

    def _optimizers(self) -> Iterable[torch.optim.Optimizer]:
        return [self.rule.optimizer] if self._race is None else self._race.optimizers

    def _own_state(self) -> State:
        return {
            "action": self.action,
            "detector": self.detector.state_dict(),
            "pending": self._pending.state_dict(),
            "unscored": self._unscored.state_dict(),
            "block": self._block,
            "scale": self._scale,
            "factor": self._factor,
            "replays": self._replays,
            "taken": self._taken,
        }

    def _load_own_state(self, state: State) -> None:
        self.detector.load_state_dict(state["detector"])
        self._pending.load_state_dict(state["pending"])
        self._unscored.load_state_dict(state.get("unscored", {}))
        self._block, self._scale = np.array(state["block"]), state["scale"]
        self._factor, self._replays, self._taken = state["factor"], state["replays"], state["taken"]
