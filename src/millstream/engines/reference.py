"""The reference engine: the plain torch loop, and the definition of right.

Every other engine must compute these updates. Nothing here is clever: predict, score, take the gradient, look at it,
step.

Shapes: B records of one update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from millstream.contracts import Chunk, Inputs, Outcome, Questions, map_tensors
from millstream.engines.dropout import KeyedDropout
from millstream.engines.failures import OF_TORCH, failed_at
from millstream.engines.noise import NoiseMeasurement
from millstream.engines.randomness import kept_generators, key
from millstream.engines.rule import Modes, OfOneRule, UpdateRule
from millstream.rows import rows_of

__all__ = ["ReferenceEngine"]


class ReferenceEngine(OfOneRule):
    """Forward, backward, step: one update after another, by torch itself."""

    name = "reference"

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self._modes = Modes(rule.model, rule.optimizer)
        self._dropout = KeyedDropout(rule.model, rule.seed)
        self._parameters = [p for group in rule.optimizer.param_groups for p in group["params"]]
        self._buffers = list(rule.model.buffers())
        self._device = next((p.device for p in self._parameters), torch.device("cpu"))
        self._squared_norm = 0.0  # of the last gradient, before it was clipped

    def chunk_size(self, update_size: int) -> int:
        """512 to 4,096 records in whole updates: often enough to look up, seldom enough to cost nothing."""
        return max(1, min(4096, max(512, 64 * update_size)) // update_size) * update_size

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        if update_size == 1:
            self._modes.refuse_single_records()
        outputs: list[Tensor] = []
        losses: list[Tensor] = []
        skipped: list[int] = []
        noise = NoiseMeasurement(update_size)
        num_updates = asked = learned = first = last = 0
        places = None if chunk.offsets is None else chunk.offsets.tolist()
        try:
            with kept_generators(self._device) as generators, self._dropout.installed():
                self._modes.train()
                for first, last in chunk.updates(update_size):
                    if questions is not None:
                        due = int(np.searchsorted(questions.learned_before, last))
                        asked = self._answer(questions.chunk, asked, due, outputs, losses)
                    position = chunk.start + (places[first] if places else first)
                    learning = _part(chunk, first, last), position, generators, noise
                    record_outputs, record_losses, left_out = self._measured_update(*learning)
                    learned = last
                    if len(left_out) < last - first:
                        num_updates += 1
                        if self.rule.scheduler is not None:
                            self.rule.scheduler.step()
                    skipped.extend(first + place for place in left_out)
                    if questions is None:
                        outputs.append(record_outputs)
                        losses.append(record_losses)
                if questions is not None:
                    self._answer(questions.chunk, asked, len(questions.chunk), outputs, losses)
        except OF_TORCH as error:
            self._modes.rest()
            raise failed_at(error, chunk, (first, last), learned) from error
        self._modes.rest()
        nothing = [torch.empty(0)]  # lessons without a question among them
        outputs, losses = outputs or nothing, losses or nothing
        return Outcome(torch.cat(outputs), torch.cat(losses), num_updates, tuple(skipped), norms=noise.found())

    def predict(self, inputs: Inputs) -> Tensor:
        with kept_generators(self._device), torch.no_grad():
            self._modes.eval()
            outputs: Tensor = self.rule.model(inputs)
            return outputs

    def _measured_update(
        self, part: Chunk, position: int, generators: Sequence[torch.Generator], noise: NoiseMeasurement
    ) -> tuple[Tensor, Tensor, list[int]]:
        """An update, before which the gradient of a few of its records may be looked at: they draw the same."""
        draws, of_few = key(self.rule.seed, position), None
        num_few = noise.num_few(position, len(part))
        if num_few:
            _seed(generators, draws)
            of_few = self._norm_of_few(_part(part, 0, num_few))
        _seed(generators, draws)
        outputs, losses, left_out = self._update(part)
        if not left_out:
            noise.add(len(part), self._squared_norm, num_few, of_few)
        return outputs, losses, left_out

    def _update(self, part: Chunk) -> tuple[Tensor, Tensor, list[int]]:
        """One update: the outputs and losses of its B records before it, and the places of those left out of it."""
        before = [buffer.clone() for buffer in self._buffers]
        try:
            return self._try_update(part, before)
        except OF_TORCH:
            self._put_back(before)
            raise

    def _try_update(self, part: Chunk, before: list[Tensor]) -> tuple[Tensor, Tensor, list[int]]:
        rule = self.rule
        scored = None
        if rule.scoring == "eval" and self._modes.differ:
            scored = self._score(part)
            self._modes.train()
        if len(part) == 1:
            self._modes.refuse_single_records()
        outputs = self._dropout.forward(part)
        losses = rule.loss(outputs, _labels(part))
        left_out: list[int] = []
        if not self._gradient_is_finite(losses, part.weights):
            self._put_back(before)
            left_out = self._not_finite(part)
            if self._modes.batch_norm is not None and len(left_out) == len(part) - 1:
                left_out = list(range(len(part)))  # one record that is left has no statistics of its own
            if len(left_out) < len(part):
                rest = part.select(np.setdiff1d(np.arange(len(part)), left_out))
                again = rule.loss(self._dropout.forward(rest), _labels(rest))
                if not self._gradient_is_finite(again, rest.weights):  # each is finite alone, but their sum is not
                    self._put_back(before)
                    left_out = list(range(len(part)))
        if len(left_out) < len(part):
            rule.optimizer.step()
        return *(scored or (outputs.detach(), losses.detach())), left_out

    def _gradient_is_finite(self, losses: Tensor, weights: Tensor | None) -> bool:
        """Leaves the clipped gradient of the mean of weight × loss in ``.grad``; whether it and the loss are finite."""
        self.rule.optimizer.zero_grad(set_to_none=True)
        weighted = losses if weights is None else losses * weights
        objective = weighted.mean() if len(weighted) > 1 else weighted
        objective.backward()  # type: ignore[no-untyped-call]
        gradients = [_elements(p) for p in self._parameters if p.grad is not None]
        self._squared_norm = squared_norm = _squared_norm(gradients)
        if not math.isfinite(float(objective.detach()) + squared_norm):
            return False
        clip_norm = self.rule.clip_norm
        if clip_norm is not None and squared_norm > clip_norm**2:
            for gradient in gradients:
                gradient.mul_(clip_norm / math.sqrt(squared_norm))
        if self.rule.clip_value is not None:
            for gradient in gradients:
                gradient.clamp_(-self.rule.clip_value, self.rule.clip_value)
        return True

    def _norm_of_few(self, few: Chunk) -> float | None:
        """The squared norm of the mean gradient of a few records; None if it is not finite. Changes nothing."""
        before = [buffer.clone() for buffer in self._buffers]
        try:
            losses = self.rule.loss(self._dropout.forward(few), _labels(few))
            return self._squared_norm if self._gradient_is_finite(losses, few.weights) else None
        finally:
            self._put_back(before)

    def _not_finite(self, part: Chunk) -> list[int]:
        """The places of the records whose own loss or gradient is not finite.

        Each is looked at alone and in eval mode: in one graph, a bad record spoils the gradients of all (0 × ∞).
        """
        if len(part) == 1:
            return [0]
        self._modes.eval()
        alone = (_part(part, place, place + 1) for place in range(len(part)))
        bad = [
            place
            for place, record in enumerate(alone)
            if not self._gradient_is_finite(
                self.rule.loss(self.rule.model(record.inputs), _labels(record)), record.weights
            )
        ]
        self._modes.train()
        return bad

    def _put_back(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)

    def _score(self, part: Chunk) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self._modes.eval()
            outputs = self.rule.model(part.inputs)
            return outputs, self.rule.loss(outputs, _labels(part))

    def _answer(self, asked: Chunk, first: int, last: int, outputs: list[Tensor], losses: list[Tensor]) -> int:
        """Predicts and scores questions ``first`` to ``last``, in eval mode; gives the place of the next one."""
        if last > first:
            answer, loss = self._score(_part(asked, first, last))
            outputs.append(answer)
            losses.append(loss)
            self._modes.train()
        return max(first, last)


def _part(chunk: Chunk, first: int, last: int) -> Chunk:
    """Records ``first`` to ``last`` as views, with their run positions. ``Chunk.select`` does more and is slower."""
    offsets, targets, weights, rows = chunk.offsets, chunk.targets, chunk.weights, slice(first, last)
    return Chunk(
        map_tensors(chunk.inputs, lambda value: rows_of(value, rows)),
        None if targets is None else targets[first:last],
        None if weights is None else weights[first:last],
        span=last - first,
        offsets=None if offsets is None else offsets[first:last],
        start=chunk.start + (first if offsets is None else 0),
    )


def _seed(generators: Sequence[torch.Generator], draws: int) -> None:
    for generator in generators:
        generator.manual_seed(draws)


def _squared_norm(gradients: list[Tensor]) -> float:
    """Not finite if an element is not, or if one is so large that its square is not (1.8e19 in float32)."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    return sum(float(torch.dot(g, g)) for g in flat)


def _elements(parameter: Tensor) -> Tensor:
    """The elements of a parameter's gradient that may differ from 0, to look at and to change in place."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()  # a row that occurs twice is one row
    return parameter.grad._values()


def _labels(part: Chunk) -> Tensor:
    assert part.targets is not None, "the learner hands over labelled records only"
    return part.targets
