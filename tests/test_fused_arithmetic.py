"""Arithmetic between values in the fused engine equals the reference. Run: pytest tests/test_fused_arithmetic.py"""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import FusedEngine, UpdateRule
from test_fused_models import assert_agree, pair, records

Formula = Callable[[Tensor, Tensor], Tensor]  # of x (N, 6) and a hidden h (N, 12), to (N, 6)


class Scaled(nn.Module):
    """Layers whose outputs are scaled by parameters, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.gain, self.kept = nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) * self.gain)
        return self.last(self.kept * hidden + hidden * self.gain)


class Written(nn.Module):
    """A formula between two linears."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.first, self.last, self._formula = nn.Linear(6, 12), nn.Linear(6, 3), formula

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._formula(x, self.first(x)))


def in_place(x: Tensor, h: Tensor) -> Tensor:
    left = x + h[:, :6]
    left *= 0.5
    left -= x
    return left


def halves(x: Tensor, h: Tensor) -> Tensor:
    left, right = h.chunk(2, dim=-1)
    return left * torch.sigmoid(right)


FORMULAS: dict[str, Formula] = {
    "gate": lambda x, h: torch.tanh(h[:, :6]) * torch.sigmoid(h[:, 6:]),
    "gated sum": lambda x, h: (1 - torch.sigmoid(h[:, 6:])) * x + h[:, :6].sigmoid() * torch.tanh(h[:, :6]),
    "square": lambda x, h: h[:, :6] * h[:, :6],
    "quotient": lambda x, h: h[:, :6] / (1.0 + h[:, 6:] * h[:, 6:]),
    "number over value": lambda x, h: 2 / (3 + torch.tanh(h[:, ::2])),
    "numbers": lambda x, h: -(h[:, :6] / 3 - 0.5) * 2 + 1,
    "difference": lambda x, h: x - torch.sub(h[:, 1:7], h[:, 6:], alpha=0.5),
    "centred": lambda x, h: h[:, :6] - h.mean(1, keepdim=True),
    "planes": lambda x, h: h.view(-1, 2, 6).mean(1),
    "sum of middle": lambda x, h: h.view(-1, 2, 2, 3).sum(dim=(2,)).flatten(1),
    "transposed": lambda x, h: torch.relu(h.view(-1, 4, 3).transpose(1, 2)).reshape(-1, 12)[:, 3:9],
    "permuted": lambda x, h: h.view(-1, 2, 3, 2).permute(0, 3, 1, 2).reshape(-1, 12)[:, 6:] * x,
    "turned": lambda x, h: torch.flip(h, (1,)).narrow(1, 2, 6) + x.flip(1),
    "scores": lambda x, h: (h.view(-1, 2, 6) * x.unsqueeze(1)).sum(2, keepdim=True).expand(-1, 2, 3).flatten(1),
    "one column": lambda x, h: x * h[:, 3].unsqueeze(1),
    "in place": in_place,
    "halves": halves,
    "thirds": lambda x, h: torch.tanh(torch.split(h, [4, 6, 2], dim=1)[1]) + h.split(6, 1)[0] ** 2,
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_formula_equals_the_reference(formula: str, optimizer: str) -> None:
    torch.manual_seed(1)
    assert_agree(*pair(Written(FORMULAS[formula]), optimizer, clip_norm=2.0), *records(40))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("bounds", [{}, {"clip_norm": 0.2}])
def test_products_with_parameters_equal_the_reference(optimizer: str, bounds: dict[str, float]) -> None:
    torch.manual_seed(1)
    assert_agree(*pair(Scaled(), optimizer, **bounds), *records(40))


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv]),
            st.sampled_from(["x", "h", "tanh", "number", "mean"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 99),
)
def test_any_row_of_arithmetic_equals_the_reference(steps: list[Any], seed: int) -> None:
    def formula(x: Tensor, h: Tensor) -> Tensor:
        value = h[:, 3:9]
        parts: dict[str, Callable[[], Any]] = {
            "x": lambda: x,
            "h": lambda: h[:, 6:],
            "tanh": lambda: torch.tanh(h[:, :6]),
            "number": lambda: 1.5,
            "mean": lambda: h.mean(1, keepdim=True),
        }
        for call, name, turned in steps:
            one, other = (parts[name](), value) if turned else (value, parts[name]())
            if call is operator.truediv and (turned or name != "number"):
                other = 2 + torch.sigmoid(other)  # far from 0, near which small differences grow without bound
            value = call(one, other)
        return value + h[:, 6:]

    torch.manual_seed(seed)
    assert_agree(*pair(Written(formula), "sgd", clip_norm=1.0), *records(20, seed))


def changed_and_read(x: Tensor, h: Tensor) -> Tensor:
    left = h[:, :6]
    left += x
    return left + h[:, :6]


def slice_changed(x: Tensor, h: Tensor) -> Tensor:
    left = h[:, :6]
    return F.relu(left, inplace=True) + h[:, :6] + h[:, 6:]


DECLINED: dict[str, tuple[Formula, str]] = {
    "in place": (changed_and_read, "other things"),
    "slice in place": (slice_changed, "in place"),
    "records mixed": (lambda x, h: h[:, :6] - h[:, :6].mean(0, keepdim=True), "records apart"),
    "records turned": (lambda x, h: h[:, :6].flip(0), "records apart"),
    "whole sum": (lambda x, h: h[:, :6] * h.sum(), "not named"),
    "records split": (lambda x, h: h.split(1, 0)[0][:, :6] + h[:, 6:], "records apart"),
    "cubed": (lambda x, h: x + h[:, :6] ** 3 + h[:, 6:], "exponent"),
    "zero": (lambda x, h: x * torch.relu(h[:, :6] / 0), "by 0"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_not_of_one_record_is_left_to_the_reference(name: str) -> None:
    torch.manual_seed(1)
    formula, reason = DECLINED[name]
    model = Written(formula)
    engine = FusedEngine(
        UpdateRule(model, losses.NamedLoss("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.1))
    )
    x, y = records(6)
    engine.learn(Chunk(x.float(), y), 1)
    assert [reason in str(machine) for machine in engine._machines.values()] == [True]
