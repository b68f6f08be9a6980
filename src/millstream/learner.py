"""A learner is features, model, loss, optimizer and engine: ``state, outcome = learn(state, chunk)``.

It knows chunks, not where they come from, nor what is done with the outcome.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from millstream.contracts import Chunk, Engine, Event, Inputs, Questions, Rejection, State, Stateful, map_tensors
from millstream.delay import LabelDelay
from millstream.engines import UpdateRule
from millstream.errors import CheckpointError, DataError, ModelError
from millstream.features import Features

__all__ = ["Learner", "Scored", "load_or_refuse"]

_IGNORED = -100  # torch's own mark of a label that has no loss


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
    events: tuple[Event, ...]

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
        self.num_classes = 0  # of the model's outputs, once it was looked at
        self.device = next((p.device for p in rule.model.parameters()), torch.device("cpu"))

    def prepare(self, chunk: Chunk, *, learn: bool) -> Chunk:
        """Tensors from named columns, on the model's device. ``learn`` lets the features' statistics take them in."""
        if isinstance(chunk.inputs, pa.RecordBatch):
            if self.features is None:
                raise DataError(
                    got=f"named columns ({', '.join(chunk.inputs.schema.names[:4])}, …) without features",
                    wanted="features that turn them into tensors",
                    do="pass features=Features(infer(table, target=…)) to the Trainer",
                )
            chunk = self.features.transform(chunk, learn=learn)
        elif chunk.targets is not None and self.rule.loss.task == "classes":
            _check_classes(chunk.targets, self.num_classes, chunk.start)
        if self.device.type != "cpu":
            chunk.inputs = _moved(chunk.inputs, self.device)
            chunk.targets = None if chunk.targets is None else chunk.targets.to(self.device, non_blocking=True)
            chunk.weights = None if chunk.weights is None else chunk.weights.to(self.device, non_blocking=True)
        return chunk

    def learn(self, chunk: Chunk, update_size: int, position: int, delay: LabelDelay | None, *, frozen: bool) -> Scored:
        """Predicts, scores and learns a prepared chunk; ``position`` is the run position of the next lesson.

        ``frozen`` keeps the scale of the targets as it is.
        """
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
            before = np.arange(len(chunk)) if questions is None else questions.learned_before
            shift_N, scale_N = self._units(shift[before]), self._units(scale[before])
            if questions is not None:
                asked = dataclasses.replace(questions.chunk, targets=((targets - shift_N) / scale_N).to(targets.dtype))
                questions = Questions(asked, questions.learned_before)
            outcome = self.engine.learn(chunk, update_size, questions)
            outputs = outcome.outputs.reshape(len(targets)) * scale_N + shift_N
        return Scored(
            outputs,
            targets,
            outcome.losses,
            known,
            len(chunk),
            outcome.num_updates,
            outcome.skipped,
            outcome.events,
        )

    def predict(self, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """The outputs of a prepared chunk in the units of the targets, and the losses where there are labels."""
        raw = self.engine.predict(chunk.inputs)
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
        """Predicts one record before the first update: a model that does not fit the data is refused at once."""
        one = chunk.select(slice(0, 1))
        try:
            outputs = self.engine.predict(one.inputs)
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ModelError(
                got=f"a model that fails on inputs of {_shapes(one.inputs)}: {str(error).splitlines()[0]}",
                wanted="a model for these inputs",
                do="check the width of its first layer and the type of its inputs",
            ) from error
        if not isinstance(outputs, Tensor) or not outputs.ndim or len(outputs) != 1:
            shape = f"of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ModelError(
                got=f"a model that gives outputs {shape} for one record",
                wanted="a tensor with one row for each record",
                do="return it from forward()",
            )
        num_numbers = outputs[0].numel()
        if self.features is not None and self.features.scales_targets and num_numbers != 1:
            raise ModelError(
                got=f"a model with {num_numbers} outputs for one number",
                wanted="one output, since targets are scaled",
                do="give the model one output, or tensors in place of named columns",
            )
        if self.rule.loss.task != "classes" or chunk.targets is None:
            return
        width = self.num_classes = outputs.shape[-1] if outputs.ndim > 1 else 1
        wanted = self.features.num_outputs if self.features is not None else int(chunk.targets.max()) + 1
        if width < wanted or (self.features is not None and width != wanted):
            raise ModelError(
                got=f"a model with {width} outputs for {wanted} classes",
                wanted=f"{wanted} outputs",
                do="change the model's last layer, or the classes of the schema",
            )

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
        race = self.engine if isinstance(self.engine, Stateful) else None
        load_or_refuse(race, state["engine"], "a race of learning rates")

    def _scale_of_targets(self) -> tuple[float, float]:
        assert self.features is not None
        _, shift, scale = self.features.scale_targets(torch.empty(0), learn=False)
        return float(shift[0]), float(scale[0])

    def _units(self, values: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.device, torch.float32)


def _check_classes(targets: Tensor, num_classes: int, position: int) -> None:
    """Class numbers that no output stands for are refused before they reach a loss."""
    if targets.is_floating_point():
        if targets.ndim == 1:
            raise DataError(
                got=f"labels of type {targets.dtype} for a loss of classes",
                wanted="whole numbers, or one probability for each class",
                do="convert them with .long(), or choose another loss",
            )
        return
    if not len(targets):
        return
    few = targets.tolist() if targets.ndim == 1 and len(targets) < 16 else targets.aminmax()
    if min(few) >= 0 and (max(few) < num_classes or not num_classes):
        return
    bad = (targets < 0) & (targets != _IGNORED)
    if num_classes:
        bad |= targets >= num_classes
    for place in torch.nonzero(bad)[:1, 0].tolist():
        raise DataError(
            got=f"label {targets[place].max().item()} at position {position + place}",
            wanted=f"0 to {num_classes - 1}, as the model has {num_classes} outputs" if num_classes else "0 or more",
            do="correct the label, or give the model more outputs",
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


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    moved: Inputs = map_tensors(inputs, lambda value: value.to(device, non_blocking=True))
    return moved


def _shapes(inputs: Inputs) -> str:
    if isinstance(inputs, dict):
        return ", ".join(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in inputs.items())
    if isinstance(inputs, tuple):
        return ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in inputs)
    assert isinstance(inputs, Tensor)
    return f"shape {tuple(inputs.shape)} {inputs.dtype}"


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"class": type(optimizer).__name__, "state": optimizer.state_dict()}


def _public(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without its caches of bound methods, which it makes anew."""
    return {name: value for name, value in state.items() if not (name.startswith("_") and callable(value))}
