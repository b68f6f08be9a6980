"""A model whose weights are the proof: one counter per event id, and a rolling hash of the order.

The loss is −w[id] and the optimizer SGD at rate 1: each time an event is learned adds exactly 1 to its counter. After
any chaos the weights say what was learned how often. The hash says in which order: each update multiplies and adds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from millstream.contracts import State

MULTIPLIER = 6364136223846793005  # of Knuth's generator modulo 2**64
_WRAP = 1 << 64


class Tally(nn.Module):
    """Counts what it learns. ``ids`` is (N, 1) int64, from ``offset`` on."""

    order: Tensor

    def __init__(self, num_ids: int, offset: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(num_ids))
        self.register_buffer("order", torch.zeros((), dtype=torch.int64))
        self.offset = offset

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        ids = (inputs["ids"] if isinstance(inputs, dict) else inputs).reshape(-1) - self.offset
        if self.training:
            for each in ids.tolist():
                self.order.mul_(MULTIPLIER).add_(each + 1)
        return self.w[ids]


class Counters(nn.Module):
    """The counters alone, in a form that the fused engine takes: with quantile loss at 0.5 each gradient is −1/2."""

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        self.w = nn.Embedding(num_ids, 1)
        nn.init.zeros_(self.w.weight)

    def forward(self, ids: Tensor) -> Tensor:
        counters: Tensor = self.w(ids)
        return counters


def minus(outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss −w[id], whatever the label."""
    return -outputs.reshape(-1)


def order_of(ids: Iterable[int]) -> int:
    """The hash that a tally has when it learned these ids in this order.

    >>> order_of([0, 1]) != order_of([1, 0])
    True
    """
    value = 0
    for each in ids:
        value = (value * MULTIPLIER + each + 1) % _WRAP
    return value - _WRAP if value >= _WRAP // 2 else value


def complaints(state: State, num_ids: int, *, times: int = 1, late: int = 0) -> list[str]:
    """What a checkpoint's counters say against "every event exactly ``times`` times, in order".

    The last ``late`` events are still without labels.
    """
    model = state["learner"]["model"]
    counters = next(value for name, value in model.items() if name.startswith("w")).reshape(-1)
    expected = torch.full((num_ids,), float(times))
    expected[num_ids - late :] = 0
    wrong = (counters != expected).nonzero().reshape(-1).tolist()
    found = [f"event {number} was learned {counters[number]:g} times" for number in wrong[:3]]
    if len(wrong) > 3:
        found.append(f"and {len(wrong) - 3} more")
    if "order" in model and int(model["order"]) != order_of(list(range(num_ids - late)) * times):
        found.append("events were learned in another order")
    return found
