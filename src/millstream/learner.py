"""A learner is features, model, loss, optimizer and engine: ``state, outcome = learn(state, chunk)``.

It knows chunks, not where they come from, nor what is done with the outcome.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import (
    Chunk,
    Engine,
    Event,
    GradientNorms,
    Inputs,
    Outcome,
    Questions,
    Rejection,
    State,
    Stateful,
    map_tensors,
)
from millstream.delay import LabelDelay
from millstream.engines import UpdateRule, parameter_of
from millstream.engines.failures import predicted
from millstream.errors import CheckpointError, DataError, ModelError
from millstream.features import Features
from millstream.joining import LabelJoin
from millstream.losses import fitting_labels
from millstream.shelf import Shelf

__all__ = ["Learner", "Scored", "check_version", "load_or_refuse"]

_DO = "check the width of its first layer, the type of its inputs, and ids"


@dataclasses.dataclass(slots=True)
class Scored:
    """What was predicted before each update, in the units of the targets, and how well."""

    outputs: Tensor
    targets: Tensor
    losses: Tensor
    known: npt.NDArray[np.float64] | None  # the latest label known at each prediction; None: that of the record before
    num_learned: int
    num_updates: int
    skipped: tuple[int, ...]
    events: tuple[Event, ...] = ()
    by_reference: str = ""  # why the engine left the lessons to the reference, if it did
    norms: tuple[GradientNorms, ...] = ()
    guesses: npt.NDArray[np.float64] | None = None  # the majority or mean of the labels known then; None: by ``known``
    labels: dict[str, int] | None = None  # counts of a ``LabelJoin``
    predicted: Tensor | None = None  # where labels join: outputs of the chunk's questions, of which few are scored yet
    places: npt.NDArray[np.int64] | None = None  # where labels join: of what is scored, among all that the run has read
    ids: list[str] | None = None  # and under which ids it was asked

    def part(self, first: int, last: int) -> tuple[Any, ...]:
        """Outputs, targets, losses, known labels and guesses of some of the records, as metrics take them."""
        known, guesses = (None if each is None else each[first:last] for each in (self.known, self.guesses))
        return self.outputs[first:last], self.targets[first:last], self.losses[first:last], known, guesses

    def refusals(self, chunk: Chunk | None) -> list[Rejection]:
        """The lessons that were skipped; ``chunk`` is where they came from, None if that is not one chunk."""
        offsets, locate = (None, None) if chunk is None else (chunk.offsets, chunk.locate)
        places = [place if offsets is None else int(offsets[place]) for place in self.skipped]
        reason = "its loss or gradient is not finite"
        return [Rejection(place, reason, locate(place) if locate else "") for place in places]


class Learner:
    """Turns chunks of a source into weight changes and scored predictions."""

    def __init__(self, rule: UpdateRule, engine: Engine, features: Features | None = None) -> None:
        self.rule, self.engine, self.features = rule, engine, features
        self.shape: tuple[int, ...] | None = None  # of the model's outputs for one record, once it was looked at
        self.device = next((p.device for p in rule.model.parameters()), torch.device("cpu"))

    def begin(self, kind: Literal["fit", "learn"], scoring: Literal["auto", "eval", "train"]) -> None:
        """Another phase begins: ``auto`` is eval mode when learning online, and the update's own output in a fit."""
        automatic: Literal["eval", "train"] = "eval" if kind == "learn" else "train"
        self.rule.scoring = automatic if scoring == "auto" else scoring
        self.rule.online = kind == "learn"

    def prepare(self, chunk: Chunk, *, learn: bool, late: LabelDelay | LabelJoin | None = None) -> Chunk:
        """Tensors from named columns, on the model's device. ``learn`` lets the features' statistics take them in.

        Where labels join by ids, these are the questions, and ``late`` has taken up the answers.
        """
        join = late if isinstance(late, LabelJoin) else None
        if isinstance(chunk.inputs, pa.RecordBatch):
            if self.features is None:
                raise DataError(
                    got=f"named columns ({', '.join(chunk.inputs.schema.names[:4])}, …) without features",
                    wanted="features that turn them into tensors",
                    do="pass features=Features(infer(table, target=…)) to the Trainer",
                )
            chunk = (
                self._admitted(chunk, self.features, join, learn)
                if join
                else self.features.transform(chunk, learn=learn)
            )
        elif join is not None:
            raise DataError(
                got="tensors for labels that join by ids",
                wanted="named columns",
                do="give a table, or delay labels by time",
            )
        elif self.shape is not None:
            self._fit_labels(chunk)
        if self.device.type != "cpu":
            chunk.inputs = _moved(chunk.inputs, self.device)
            chunk.targets = None if chunk.targets is None else chunk.targets.to(self.device, non_blocking=True)
            chunk.weights = None if chunk.weights is None else chunk.weights.to(self.device, non_blocking=True)
        return chunk

    def learn(
        self, chunk: Chunk, update_size: int, position: int, delay: LabelDelay | LabelJoin | None, *, frozen: bool
    ) -> Scored:
        """Predicts, scores and learns a prepared chunk; ``position`` is the run position of the next lesson.

        ``frozen`` keeps the scale of the targets as it is.
        """
        if isinstance(delay, LabelJoin):
            return self._learn_joined(chunk, update_size, position, delay, frozen)
        targets = _labels(chunk)
        questions, known = None, None
        chunk.start = position
        if delay is not None:
            arrivals = delay.arrive(chunk)
            chunk, questions, known = arrivals.lessons, arrivals.questions, arrivals.known
            chunk.start = position
        if self.features is None or not self.features.scales_targets:
            outcome = self.engine.learn(chunk, update_size, questions)
            outputs = outcome.outputs
        else:
            scaled, shift, scale = self.features.scale_targets(_labels(chunk).cpu(), learn=not frozen)
            chunk = dataclasses.replace(chunk, targets=scaled.to(self.device))
            before = np.arange(len(chunk)) if questions is None else _whole(questions, update_size)
            shift_N, scale_N = self._units(shift[before]), self._units(scale[before])
            if questions is not None:
                asked = dataclasses.replace(questions.chunk, targets=((targets - shift_N) / scale_N).to(targets.dtype))
                questions = Questions(asked, questions.learned_before)
            outcome = self.engine.learn(chunk, update_size, questions)
            outputs = outcome.outputs.reshape(len(targets)) * scale_N + shift_N
        facts = len(chunk), outcome.num_updates, outcome.skipped, outcome.events, outcome.by_reference, outcome.norms
        return Scored(outputs, targets, outcome.losses, known, *facts)

    def _admitted(self, chunk: Chunk, features: Features, join: LabelJoin, learn: bool) -> Chunk:
        """The questions of a chunk; the answers go to ``join``."""
        if join.default is None and join.joining.default is not None:
            join.default = features.label_of(join.joining.default, learn=learn)
        return features.transform_events(chunk, join.admit, learn=learn)

    def _learn_joined(self, chunk: Chunk, update_size: int, position: int, join: LabelJoin, frozen: bool) -> Scored:
        """As ``learn``; what is scored are the questions whose labels have come, by what was predicted of them."""
        joined, nothing = join.arrive(chunk), torch.empty(0)
        if joined is None:
            return Scored(nothing, nothing, nothing, np.empty(0), 0, 0, (), labels=join.counts)
        lessons, questions, shelf = joined.lessons, joined.questions, join.shelf
        lessons.start = position
        scales = self.features is not None and self.features.scales_targets
        if scales:
            assert self.features is not None
            scaled, shift, scale = self.features.scale_targets(_labels(lessons).cpu(), learn=not frozen)
            before = _whole(questions, update_size)
            shelf.put("shift", joined.asked, self._units(shift[before]))
            shelf.put("scale", joined.asked, self._units(scale[before]))
            lessons.judged = _scaled(_labels(lessons), shelf, joined.learned)
            lessons.targets = scaled.to(self.device)
        outcome = Outcome(nothing, nothing)
        if len(lessons) or len(questions.chunk):
            outcome = self.engine.learn(lessons, update_size, questions)
        if len(questions.chunk):
            shelf.put("outputs", joined.asked, outcome.outputs)
        targets, raw = joined.labels, shelf.rows("outputs", joined.arrived)
        with torch.no_grad():
            losses = self.rule.loss(raw, _scaled(targets, shelf, joined.arrived) if scales else targets)
        outputs, predicted = (_outputs(shelf, slots, scales) for slots in (joined.arrived, joined.asked))
        known, guesses, places = (shelf.rows(name, joined.arrived).numpy() for name in ("known", "guess", "place"))
        join.finish(joined)
        facts = len(lessons), outcome.num_updates, outcome.skipped, outcome.events, outcome.by_reference, outcome.norms
        return Scored(outputs, targets, losses, known, *facts, guesses, join.counts, predicted, places, joined.names)

    def predict(self, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """The outputs of a prepared chunk in the units of the targets, and the losses where there are labels."""
        raw = predicted(self.engine, chunk.inputs, _DO)
        targets = chunk.targets
        if self.features is None or not self.features.scales_targets:
            return raw, None if targets is None else self.rule.loss(raw, targets)
        shift, scale = self._scale_of_targets()
        outputs = raw.reshape(len(raw)) * scale + shift
        return outputs, None if targets is None else self.rule.loss(raw, self.scaled(targets).to(raw.dtype))

    def scaled(self, targets: Tensor) -> Tensor:
        """Targets as the loss takes them, by the scale that is known now; nothing is learned."""
        if self.features is None or not self.features.scales_targets:
            return targets
        shift, scale = self._scale_of_targets()
        return (targets - shift) / scale

    def check(self, chunk: Chunk) -> None:
        """Predicts one record before the first update and looks at the labels: what does not fit is refused at once."""
        one = chunk.select(slice(0, 1))
        outputs = predicted(self.engine, one.inputs, _DO)
        self.shape = tuple(outputs.shape[1:])
        num_numbers = outputs[0].numel()
        if self.features is not None and self.features.scales_targets and num_numbers != 1:
            raise ModelError(
                got=f"a model with {num_numbers} outputs for one number",
                wanted="one output, since targets are scaled",
                do="give the model one output, or tensors in place of named columns",
            )
        width, wanted = (
            outputs.shape[-1] if self.shape else 1,
            self.features.num_outputs if self.features is not None else None,
        )
        if self.rule.loss.task == "classes" and wanted is not None and width != wanted:
            raise ModelError(
                got=f"a model with {width} outputs for {wanted} classes",
                wanted=f"{wanted} outputs",
                do="change the model's last layer, or the classes of the schema",
            )
        if self.features is None:
            self._fit_labels(chunk)

    def state_dict(self) -> State:
        scheduler = self.rule.scheduler
        return {
            "version": 1,
            "model": dict(self.rule.model.state_dict()),
            "optimizer": _optimizer_state(self.rule.optimizer),
            "scheduler": None if scheduler is None else _public(scheduler.state_dict()),
            "features": None if self.features is None else self.features.state_dict(),
            "engine": self.engine.state_dict() if isinstance(self.engine, Stateful) else None,
        }

    def load_state_dict(self, state: State) -> None:
        try:
            self.rule.model.load_state_dict(state["model"])
            if state["optimizer"]["class"] != type(self.rule.optimizer).__name__:
                raise ValueError(f"its optimizer is {state['optimizer']['class']}")
            self.rule.optimizer.load_state_dict(state["optimizer"]["state"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                got=f"a checkpoint of another model or optimizer: {str(error).strip().splitlines()[-1].strip()}",
                wanted="the model and optimizer that it was made with",
                do="build the same ones, or begin a new run",
            ) from error
        load_or_refuse(self.rule.scheduler, state["scheduler"], "a scheduler")
        load_or_refuse(self.features, state["features"], "features")
        stateful = self.engine if isinstance(self.engine, Stateful) else None
        kind = getattr(self.engine, "kind", "") or (state["engine"] or {}).get("wrapper")
        load_or_refuse(stateful, state["engine"], kind or "a race of learning rates")

    def _fit_labels(self, chunk: Chunk) -> None:
        """Labels of tensors become what the loss takes, or are refused; those of named columns are so already."""
        if chunk.targets is not None and self.shape is not None:
            number = parameter_of(self.rule.model).dtype
            chunk.targets = fitting_labels(self.rule.loss, chunk, self.shape, number)

    def _scale_of_targets(self) -> tuple[float, float]:
        assert self.features is not None
        _, shift, scale = self.features.scale_targets(torch.empty(0), learn=False)
        return float(shift[0]), float(scale[0])

    def _units(self, values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.device, torch.float32)


def check_version(state: State) -> None:
    """Refuses the state of a trainer of another version."""
    if state.get("version") != 1:
        raise CheckpointError(
            got=f"state of version {state.get('version')}", wanted="version 1", do="use the Millstream that wrote it"
        )


def load_or_refuse(part: Any, state: State | None, name: str) -> None:
    """Loads the state of a part that may be missing; what is in one place only is refused."""
    if (part is None) != (state is None):
        has = "without" if state is None else "with"
        raise CheckpointError(
            got=f"a checkpoint {has} {name}", wanted="what this trainer has", do=f"build the trainer {has} {name}"
        )
    if part is not None:
        part.load_state_dict(state)


def _labels(chunk: Chunk) -> Tensor:
    if chunk.targets is None:
        raise DataError(
            got="records without labels", wanted="a label for each record to be learned", do="name the label (--target)"
        )
    return chunk.targets


def _outputs(shelf: Shelf, slots: Tensor, scales: bool) -> Tensor:
    """What these questions were answered with, in the units of the targets."""
    raw = shelf.rows("outputs", slots)
    return raw.reshape(len(slots)) * shelf.rows("scale", slots) + shelf.rows("shift", slots) if scales else raw


def _whole(questions: Questions, update_size: int) -> npt.NDArray[np.int64]:
    """(M,) the lessons of whole updates before each question: those that were learned, however the stream was cut."""
    return questions.learned_before // update_size * update_size


def _scaled(targets: Tensor, shelf: Shelf, slots: Tensor) -> Tensor:
    """Targets by the scale that was known when they were asked for."""
    return ((targets - shelf.rows("shift", slots)) / shelf.rows("scale", slots)).to(targets.dtype)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    moved: Inputs = map_tensors(inputs, lambda value: value.to(device, non_blocking=True))
    return moved


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"class": type(optimizer).__name__, "state": optimizer.state_dict()}


def _public(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without its caches of bound methods, which it makes anew."""
    return {name: value for name, value in state.items() if not (name.startswith("_") and callable(value))}
