"""The fused engine: the algorithm of the per-sample loop, unchanged, as one compiled loop over the records.

Weights and optimizer state are torch's own, changed in place, so engines may be swapped between two chunks. Where the
first layer is large and trained by plain SGD, its work is done in blocks of records, as mini-batches do theirs: with
W_t = W_0 − η Σ_{i<t} δᵢ xᵢᵀ,

    W_t x_t + b_t = (W_0 x_t + b_0) − η Σ_{i<t} δᵢ (xᵢ·x_t + 1),

one matrix product gives all W_0 x_t, one all xᵢ·x_t, and one applies the block's updates (Devarakonda and Demmel 2020
have the algebra for linear models). Sums are taken in another order than the reference takes them, and that is all.

Shapes: N records, M questions, L layers, K records of a block.
"""

from __future__ import annotations

import functools
import itertools
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.contracts import Chunk, Inputs, Outcome, Questions
from millstream.engines import chain as chains
from millstream.engines.kernels import dense, losses, steps
from millstream.engines.reference import ReferenceEngine
from millstream.engines.rule import UpdateRule
from millstream.errors import ModelError

__all__ = ["FusedEngine"]

_log = logging.getLogger("millstream")
_BLOCK = 32
_STATE = {
    steps.SGD: ("momentum_buffer",),
    steps.ADAM: ("exp_avg", "exp_avg_sq"),
    steps.ADAMW: ("exp_avg", "exp_avg_sq"),
}


class FusedEngine:
    """Updates of one record by a compiled loop; larger ones by the reference engine, as torch is good at them."""

    name = "fused"

    def __init__(self, rule: UpdateRule) -> None:
        chain = chains.read(rule)
        if isinstance(chain, str):
            raise ModelError(got=chain, wanted="what the fused engine knows", do="leave the engine at 'auto'")
        self.rule, self._chain = rule, chain
        self._reference = ReferenceEngine(rule)
        widths = chain.widths
        num_weights = sum(a * b for a, b in itertools.pairwise(widths))
        self._chunk_size = int(min(4096, max(_BLOCK, 2 ** np.floor(np.log2(1e9 / max(1, num_weights))))))
        self._number = np.float32 if chain.dtype == torch.float32 else np.float64
        _make_ready(self._number)
        weights = chain.criterion.class_weights
        ones = np.ones(max(2, widths[-1]), self._number)
        class_weights = ones if weights is None else weights.detach().cpu().numpy().astype(self._number)
        criterion = chain.criterion
        self._criterion = (criterion.kind, criterion.parameter, criterion.smoothing, class_weights)
        self._num_classes = widths[-1] if criterion.kind == losses.CROSS_ENTROPY else 2

    @staticmethod
    def declines(rule: UpdateRule) -> str:
        """Why this engine does not take the rule; empty if it does."""
        chain = chains.read(rule)
        return chain if isinstance(chain, str) else ""

    def chunk_size(self, update_size: int) -> int:
        return self._chunk_size if update_size == 1 else self._reference.chunk_size(update_size)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._reference.predict(inputs)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        records = self._records(chunk) if update_size == 1 and len(chunk) else None
        asked = None if questions is None or records is None else self._records(questions.chunk)
        if records is None or (questions is not None and asked is None):
            return self._reference.learn(chunk, update_size, questions)
        with torch.no_grad():
            return _Pass(self._chain, self.rule, self._criterion, self._number).learn(records, asked, questions)

    def _records(self, chunk: Chunk) -> tuple[npt.NDArray[Any], ...] | None:
        """Inputs (N, D), classes (N,), numbers (N, C), weights (N,) as arrays; None for what only torch understands."""
        inputs, targets = chunk.inputs, chunk.targets
        widths = self._chain.widths
        if not isinstance(inputs, Tensor) or targets is None or inputs.dtype != self._chain.dtype:
            return None
        if inputs.ndim != 2 and not (inputs.ndim > 2 and self._chain.flattens):
            return None
        if inputs[0].numel() != widths[0] or self._chain.layers[0].linear.weight.dtype != self._chain.dtype:
            return None
        num = len(inputs)
        classes, numbers = np.zeros(num, np.int64), np.zeros((num, widths[-1]), self._number)
        if self._criterion[0] == losses.CROSS_ENTROPY:
            if targets.ndim != 1 or targets.dtype != torch.int64 or not self._are_classes(targets):
                return None
            classes = targets.numpy()
        else:
            if targets.numel() != num * widths[-1] or targets.ndim > 2:
                return None
            numbers = np.ascontiguousarray(targets.reshape(num, widths[-1]).numpy(), self._number)
            if self._criterion[0] == losses.BINARY_CROSS_ENTROPY and not self._are_classes(targets):
                return None
        weights = np.ones(num, self._number) if chunk.weights is None else chunk.weights.numpy().astype(self._number)
        flat = inputs.detach().reshape(num, widths[0]).contiguous().numpy()
        return flat, np.ascontiguousarray(classes), numbers, weights

    def _are_classes(self, targets: Tensor) -> bool:
        low, high = targets.aminmax()
        return bool(low >= 0) and bool(high < self._num_classes)


class _Pass:
    """One call of ``learn``: the weights' addresses and the optimizer's state, taken up and given back."""

    def __init__(self, chain: chains.Chain, rule: UpdateRule, criterion: tuple[Any, ...], number: Any) -> None:
        self._chain, self._rule, self._criterion, self._number = chain, rule, criterion, number
        layers, widths = chain.layers, chain.widths
        self._places = np.zeros((len(layers), dense.NUM_PLACES), np.int64)
        self._trained = np.zeros((len(layers), 2), np.bool_)
        self._dials = np.zeros((2 * len(layers), steps.NUM_DIALS))
        self._counts = np.zeros(2 * len(layers))
        self._network = (
            np.array(widths, np.int64),
            self._places,
            np.array([layer.activation for layer in layers], np.int64),
            np.array([layer.argument for layer in layers]),
        )
        groups = chains.settings_of(rule.optimizer)
        self._states: dict[int, tuple[Tensor, Any]] = {}
        for number_, layer in enumerate(layers):
            for side, parameter in enumerate((layer.linear.weight, layer.linear.bias)):
                if parameter is not None:
                    self._places[number_, side] = parameter.data_ptr()
                    group = groups.get(id(parameter))
                    if group is not None and parameter.requires_grad:
                        self._take_up(number_, side, parameter, group)

    def learn(self, records: tuple[Any, ...], asked: tuple[Any, ...] | None, questions: Questions | None) -> Outcome:
        num = len(records[0])
        outputs, losses_N, skipped = self._room(num)
        if asked is None or questions is None:
            self._run(records, (outputs, losses_N, skipped), blocked=self._pays_in_blocks())
            answers = outputs, losses_N
        else:
            answers = self._between(records, (outputs, losses_N, skipped), asked, questions.learned_before)
        self._give_back()
        places = tuple(np.flatnonzero(skipped).tolist())
        return Outcome(torch.from_numpy(answers[0]), torch.from_numpy(answers[1]), num - len(places), places)

    def _between(
        self, records: tuple[Any, ...], room: tuple[Any, ...], asked: tuple[Any, ...], before: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Answers each question once exactly the records before it were learned."""
        answers, losses_M, _ = self._room(len(asked[0]))
        learned = first = 0
        while first < len(before):
            due = int(before[first])
            last = int(np.searchsorted(before, due, side="right"))
            self._run(_cut(records, learned, due), _cut(room, learned, due), blocked=False)
            piece = _cut(asked, first, last)
            dense.answer(*piece[:3], self._network, self._criterion, answers[first:last], losses_M[first:last])
            learned, first = max(learned, due), last
        self._run(_cut(records, learned, len(records[0])), _cut(room, learned, len(records[0])), blocked=False)
        return answers, losses_M

    def _run(self, records: tuple[Any, ...], room: tuple[Any, ...], *, blocked: bool) -> None:
        if not len(records[0]):
            return
        none = np.empty((0, 0), self._number)
        rest = (self._network, self._trained, self._criterion, self._chain.optimizer, self._dials, self._counts)
        if not blocked:
            dense.learn(*records, *rest, (none, none, none), room)
            return
        linear = self._chain.layers[0].linear
        delta = torch.empty(_BLOCK, linear.out_features, dtype=self._chain.dtype)
        rates = self._dials[0, steps.RATE], self._dials[1, steps.RATE]
        for first in range(0, len(records[0]), _BLOCK):
            piece = _cut(records, first, first + _BLOCK)
            inputs = torch.from_numpy(piece[0])
            size = len(inputs)
            sums = torch.nn.functional.linear(inputs, linear.weight, linear.bias)
            block = (sums.numpy(), (inputs @ inputs.T).numpy(), delta[:size].numpy())
            found = _cut(room, first, first + _BLOCK)
            dense.learn(*piece, *rest, block, found)
            if found[2].any():  # their δ are 0, but 0 times what is not finite is not
                inputs = inputs.masked_fill(torch.from_numpy(found[2])[:, None], 0.0)
            linear.weight.addmm_(delta[:size].T, inputs, alpha=-rates[0])
            if linear.bias is not None:
                linear.bias.sub_(delta[:size].sum(0), alpha=rates[1])

    def _pays_in_blocks(self) -> bool:
        """A large first layer under plain SGD. A static function of the model, never timed."""
        linear = self._chain.layers[0].linear
        sides = [0] if linear.bias is None else [0, 1]
        plain = all(
            self._trained[0, side]
            and self._dials[side, steps.SIGN] == 1
            and not self._dials[side, [steps.DECAY, steps.MOMENTUM]].any()
            for side in sides
        )
        is_large = linear.in_features >= 128 and linear.out_features >= 32
        return self._chain.optimizer == steps.SGD and plain and is_large

    def _room(self, num: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
        outputs = np.empty((num, self._chain.widths[-1]), self._number)
        return outputs, np.empty(num, self._number), np.zeros(num, np.bool_)

    def _take_up(self, layer: int, side: int, parameter: Tensor, group: dict[str, Any]) -> None:
        """The dials of a parameter's group and the addresses of its optimizer state, made as torch makes it."""
        dials = self._dials[2 * layer + side]
        betas = group.get("betas", (0.0, 0.0))
        dials[:] = [
            *(group["lr"], group["weight_decay"], group.get("momentum", 0.0), group.get("dampening", 0.0)),
            *(float(group.get("nesterov", False)), *betas, group.get("eps", 0.0), -1.0 if group["maximize"] else 1.0),
        ]
        self._trained[layer, side] = True
        if self._chain.optimizer == steps.SGD and not group["momentum"]:
            return
        state = self._rule.optimizer.state[parameter]
        names = _STATE[self._chain.optimizer]
        if self._chain.optimizer == steps.SGD:
            self._counts[2 * layer + side] = 0.0 if state.get("momentum_buffer") is None else 1.0
        else:
            self._counts[2 * layer + side] = float(state.setdefault("step", torch.tensor(0.0)))
        for place, name in enumerate(names):
            if state.get(name) is None:
                state[name] = torch.zeros_like(parameter)
            self._places[layer, 2 + 2 * place + side] = state[name].data_ptr()
        self._states[2 * layer + side] = (parameter, state)

    def _give_back(self) -> None:
        """Counts into the optimizer's state; state that no update has touched is not left behind."""
        for place, (parameter, state) in self._states.items():
            count = self._counts[place]
            if count == 0:
                del self._rule.optimizer.state[parameter]
            elif "step" in state:
                state["step"].fill_(count)


@functools.cache
def _make_ready(number: Any) -> None:
    """Loads the compiled loops for this kind of number, or compiles them, before anybody takes the time."""
    if not dense.is_kept():
        _log.warning("compiling the loops of the fused engine; this takes ten seconds, once")
    one, none = np.ones((1, 1), number), np.empty((0, 0), number)
    places = np.zeros((1, dense.NUM_PLACES), np.int64)
    places[0, 0] = one.ctypes.data
    network = (np.ones(2, np.int64), places, np.zeros(1, np.int64), np.zeros(1))
    criterion = (losses.MSE, 0.0, 0.0, np.ones(2, number))
    labels, found = np.zeros(1, np.int64), (np.ones((1, 1), number), np.ones(1, number), np.zeros(1, np.bool_))
    records = (np.ones((1, 1), number), labels, np.ones((1, 1), number))
    dense.answer(*records, network, criterion, *found[:2])
    rest = (np.zeros((1, 2), np.bool_), criterion, steps.SGD, np.zeros((2, steps.NUM_DIALS)), np.zeros(2))
    dense.learn(*records, np.ones(1, number), network, *rest, (none, none, none), found)


def _cut(arrays: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...]:
    return tuple(array[first:last] for array in arrays)
