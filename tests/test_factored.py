"""Factored second moments: the step, and that the engines agree. Run: pytest tests/test_factored.py"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import FactoredRMSprop, FusedEngine, ReferenceEngine, UpdateRule


class Tables(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.ids = nn.EmbeddingBag(20, 6, mode="sum", sparse=sparse, padding_idx=0)
        self.dense, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.last(torch.relu(self.ids(x["ids"]) + self.dense(x["dense"])))
        return out


def of_tables(num: int) -> dict[str, Tensor]:
    return {"dense": torch.randn(num, 4, dtype=torch.float64), "ids": torch.randint(20, (num, 3))}


TIED = nn.Linear(4, 4)
MODELS = {
    "layers": (nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2)), None),
    "one output": (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1)), None),
    "convolution": (nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (1, 4, 4)),
    "tied": (nn.Sequential(TIED, nn.ReLU(), TIED, nn.Linear(4, 2)), None),
    "rows": (Tables(sparse=True), of_tables),
    "a table": (Tables(sparse=False), of_tables),
}


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_factored_steps_are_the_same_in_both_engines(name: str, clip: float | None) -> None:
    torch.manual_seed(0)
    model, shape = copy.deepcopy(MODELS[name])
    model = model.double()
    x: Any = shape(250) if callable(shape) else torch.randn(250, *(shape or (4,)), dtype=torch.float64)
    y = torch.randint(2, (250,))
    loss = losses.resolve("binary_cross_entropy" if name == "one output" else "cross_entropy")
    found = []
    for make in (ReferenceEngine, FusedEngine):
        twin = copy.deepcopy(model)
        rule = UpdateRule(twin, loss, FactoredRMSprop(twin.parameters(), lr=0.01), clip_norm=clip)
        targets = y.double() if name == "one output" else y
        outcome = make(rule).learn(Chunk(x, targets), 1)
        assert not outcome.by_reference
        state = [v for p in twin.parameters() for v in rule.optimizer.state[p].values()]
        found.append([*twin.parameters(), *state, outcome.outputs])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_a_matrix_of_rank_one_has_the_second_moments_of_rmsprop() -> None:
    """For one record rows times columns is the mean itself."""
    torch.manual_seed(0)
    mine, its = nn.Linear(5, 3, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)
    its.load_state_dict(mine.state_dict())
    x = torch.randn(1, 5, dtype=torch.float64)
    for model, optimizer in (
        (mine, FactoredRMSprop(mine.parameters(), lr=0.01, most=100)),  # the first step is ten times the rate
        (its, torch.optim.RMSprop(its.parameters(), lr=0.01)),
    ):
        model(x).square().sum().backward()
        optimizer.step()
    assert torch.allclose(mine.weight, its.weight, atol=1e-6)
    assert torch.allclose(mine.bias, its.bias, atol=1e-12)


def test_a_step_has_a_bound_where_rows_and_columns_tell_too_little() -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = FactoredRMSprop(model.parameters(), lr=1.0)
    for row in (0, 1):  # the second gradient is where the first was not
        before = model.weight.detach().clone()
        model.weight.grad = torch.zeros(4, 4)
        model.weight.grad[row, row] = 1e3 if row == 0 else 1e-3
        optimizer.step()
        assert (model.weight - before).square().mean().sqrt() <= 3.0001


def test_decay_shrinks_weights_beside_the_step() -> None:
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 3)
    FactoredRMSprop(model.parameters(), lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(model.weight, before * 0.95)
