"""The reference with its sums taken in another order: what rounding alone does to a run.

Floating-point sums depend on their order, and every library, thread count and processor has its own. This measures how
far that carries two runs of the same updates apart, so that an engine has something to be compared with.

Shapes: O outputs, I inputs of a linear map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from millstream.contracts import Chunk, Inputs, Outcome, Questions
from millstream.engines import ReferenceEngine, UpdateRule
from millstream.engines.rule import OfOneRule

__all__ = ["ReorderedReference", "SumsInHalves"]

_OF_WEIGHTS = {F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d}
_OF_WEIGHTS |= {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_OF_MATRICES = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__}


class SumsInHalves(TorchFunctionMode):
    """Takes every sum of a linear map, forward and backward, as the sum of two halves whose terms are drawn.

    W x = (M ∘ W) x + ((1 − M) ∘ W) x for a mask M of zeros and ones, drawn once for each shape: the same terms, and
    only rounding differs. The ids of a bag are summed in an order that is drawn.

    >>> x, weight = torch.randn(1, 300), torch.randn(5, 300)
    >>> with SumsInHalves(seed=1):
    ...     halves = F.linear(x, weight)
    >>> 0 < float((halves - F.linear(x, weight)).norm() / halves.norm()) < 1e-5
    True
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        change: Callable[..., Any] | None = None
        if function in _OF_WEIGHTS:
            change = self._map
        elif function in _OF_MATRICES:
            change = self._product
        elif function is F.embedding_bag:
            change = self._bag
        return function(*arguments, **named) if change is None else change(function, *arguments, **named)

    def _map(self, function: Any, inputs: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Any:
        bias = named.pop("bias", rest[0] if rest else None)
        left, right = self._halves(weight)
        return function(inputs, left, bias, *rest[1:], **named) + function(inputs, right, None, *rest[1:], **named)

    def _product(self, function: Any, left: Tensor, right: Tensor, **named: Any) -> Any:
        first, second = self._halves(left)
        return function(first, right, **named) + function(second, right, **named)

    def _bag(self, function: Any, ids: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Any:
        if ids.ndim == 2 and named.get("per_sample_weights") is None:
            ids = ids[:, torch.randperm(ids.shape[1], generator=self._generator).to(ids.device)]
        return function(ids, weight, *rest, **named)

    def _halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        key = (values.shape, values.dtype, values.device)
        if key not in self._masks:
            drawn = torch.rand(values.shape, generator=self._generator) < 0.5
            self._masks[key] = drawn.to(values.device, values.dtype)
        mask = self._masks[key]
        left = values * mask
        return left, values * (1 - mask)


class ReorderedReference(OfOneRule):
    """The reference engine, the sums of its model in halves that the seed draws."""

    name = "reordered"

    def __init__(self, rule: UpdateRule, seed: int) -> None:
        self.rule = rule
        model = _InHalves(rule.model, SumsInHalves(seed))
        self._engine = ReferenceEngine(dataclasses.replace(rule, model=model))

    def chunk_size(self, update_size: int) -> int:
        return self._engine.chunk_size(update_size)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        return self._engine.learn(chunk, update_size, questions)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._engine.predict(inputs)


class _InHalves(nn.Module):
    """A model, its forward pass under a mode; what the backward pass sums is decided there, too."""

    def __init__(self, model: nn.Module, mode: SumsInHalves) -> None:
        super().__init__()
        self.model, self._mode = model, mode
        self.training = model.training

    def forward(self, inputs: Any) -> Any:
        with self._mode:
            return self.model(inputs)
