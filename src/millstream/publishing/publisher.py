"""The publisher: at fixed run positions it hands out the weights that answer, while a gate lets them through.

It knows learners and metrics, and no loop. What it publishes is a function of state and run position, so a run that
was killed and resumed publishes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from millstream import engines
from millstream.contracts import Event, State
from millstream.errors import CheckpointError, SettingError
from millstream.learner import Learner
from millstream.metrics import Metrics
from millstream.publishing import publications
from millstream.publishing.gate import Gate, GateState

__all__ = ["Publisher"]

_VERSION = 1


class Publisher:
    """Publishes to ``folder`` after the chunk in which a multiple of ``every`` records is reached.

    ``gate`` may be None: then all is published whose weights are finite. The last ``keep`` stay for readers that are
    slow. A new run takes no folder that another one has published to.

    >>> import tempfile
    >>> from torch import nn
    >>> from millstream.trainer import Trainer
    >>> model, folder = nn.Linear(3, 2), Path(tempfile.mkdtemp())
    >>> trainer = Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1), engine="reference")
    >>> _ = trainer.learn((torch.randn(200, 3), torch.randint(2, (200,))))
    >>> Publisher(folder, every=100).after_chunk(trainer.learner, trainer.metrics, 200)
    ()
    >>> sorted(path.name for path in folder.iterdir())
    ['0000000200', 'current.json']
    """

    def __init__(self, folder: str | Path, *, every: int = 10_000, gate: Gate | None = None, keep: int = 5) -> None:
        if every < 1 or keep < 2:
            raise SettingError(
                got=f"publications every {every} records, {keep} kept", wanted="1 or more, 2 or more", do="raise it"
            )
        self.folder, self.every, self.gate, self._keep = Path(folder), every, gate, keep
        self._state = GateState()
        self._looked_at = 0  # run position
        self._published_at: int | None = None
        self._begun = False

    @property
    def is_open(self) -> bool:
        """Whether what is good now would be published; False after an event that said so."""
        return self._state.closed_at is None

    def after_chunk(
        self,
        learner: Learner,
        metrics: Metrics | None,
        position: int,
        *,
        phase: int = 0,
        spec: Mapping[str, Any] | None = None,
    ) -> tuple[Event, ...]:
        """Publishes if it is time, and tells when publishing stops or goes on. ``spec`` is the run's recipe."""
        if not self._begun:
            self._begin()
        is_due = position // self.every > self._looked_at // self.every
        if not is_due or metrics is None:
            return ()
        self._looked_at = position
        was_open = self.is_open
        weights = answering_weights(learner)
        self._state, reason = self._decide(weights, metrics, position, phase)
        if reason == "":
            self._publish(learner, weights, position, spec)
        if self.is_open == was_open:
            return ()
        what = "publishing goes on" if self.is_open else "publishing stopped"
        stays = "nothing" if self._published_at is None else f"what was published at {self._published_at}"
        detail = self._shown() if self.is_open else f"{reason}; {stays} stays"
        return (Event(position, what, detail, learner.engine.learning_rate),)

    def state_dict(self) -> State:
        return {
            "version": _VERSION,
            "every": self.every,
            "gate": self._state.to_json(),
            "looked_at": self._looked_at,
            "published_at": self._published_at,
        }

    def load_state_dict(self, state: State) -> None:
        if state.get("version") != _VERSION or state.get("every") != self.every:
            raise CheckpointError(
                got=f"publications every {state.get('every')} records, in version {state.get('version')}",
                wanted=f"every {self.every}, in version {_VERSION}, as asked now",
                do="publish as often as the run began with",
            )
        self._state = GateState.from_json(state["gate"])
        self._looked_at, self._published_at = state["looked_at"], state["published_at"]
        self._begun = True

    def _begin(self) -> None:
        if publications.stands_at(self.folder) is not None:
            raise SettingError(
                got=f"a folder that another run has published to: {self.folder}",
                wanted="one of its own for each run",
                do="name another folder, or resume that run",
            )
        self._begun = True

    def _decide(
        self, weights: dict[str, torch.Tensor], metrics: Metrics, position: int, phase: int
    ) -> tuple[GateState, str | None]:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values() if tensor.is_floating_point()):
            closed_at = position if self._state.closed_at is None else self._state.closed_at
            return GateState(self._state.reference, self._state.phase, closed_at), "weights that are not finite"
        if self.gate is None:
            return GateState(), ""
        return self.gate.decide(self._state, self.gate.read(metrics), position=position, phase=phase)

    def _publish(
        self, learner: Learner, weights: dict[str, torch.Tensor], position: int, spec: Mapping[str, Any] | None
    ) -> None:
        self._published_at = position
        current = publications.stands_at(self.folder)
        if current is not None and current > position:  # by this run before it was killed; readers do not go back
            return
        model = engines.model_that_answers(learner.engine)
        reading = self._state.reference
        state = {
            "version": _VERSION,
            "position": position,
            "spec": None if spec is None else dict(spec),
            "name": model.name if isinstance(model, engines.Several) else "",
            "model": weights,
            "features": None if learner.features is None else learner.features.state_dict(),
            "metric": None if reading is None else {"name": reading.metric, "mean": reading.mean},
        }
        publications.publish(self.folder, state, keep=self._keep)

    def _shown(self) -> str:
        reading = self._state.reference
        return "weights are finite again" if reading is None else f"{reading.metric} {reading.mean:.4g}"


def answering_weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Those that predict, under the names of the model that answers."""
    return engines.answering(engines.model_that_answers(learner.engine).state_dict())
