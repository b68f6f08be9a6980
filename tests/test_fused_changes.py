"""What changes around a fused engine, and what it must leave to torch. Run: pytest tests/test_fused_changes.py"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk, Questions
from millstream.engines import FusedEngine, ReferenceEngine, UpdateRule
from test_fused import OPTIMIZERS, assert_equal, both_learn
from test_fused_models import CROSS_ENTROPY, Wide, pair, records


class Forward(nn.Module):
    """A model with some layers and this forward."""

    def __init__(self, forward: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.table, self.relu, self.drop = nn.Embedding(9, 6), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)
        self.flatten, self._forward = nn.Flatten(), forward

    def forward(self, x: Any) -> Tensor:
        return self._forward(self, x)


def in_place_behind_a_view(model: Any, x: Tensor) -> Tensor:
    hidden = model.a(x)
    out: Tensor = model.head(model.relu(model.flatten(hidden)) + hidden)
    return out


def not_used(model: Any, x: Tensor) -> Tensor:
    other = model.b(x)
    out: Tensor = model.head(model.a(x).view(other.size(0), -1))
    return out


def an_attribute(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model.head(model.a(x).data)
    return out


def by_name(model: Any, x: Tensor) -> Tensor:
    out: Tensor = model.head(torch.flatten(input=F.relu(input=model.a(input=x)), start_dim=1))
    return out


@pytest.mark.parametrize("optimizer", ["decay", "momentum", "adamw"])
@pytest.mark.parametrize("forward", [in_place_behind_a_view, not_used, an_attribute, by_name])
def test_a_forward_that_is_easily_misread_equals_the_reference(forward: Any, optimizer: str) -> None:
    torch.manual_seed(0)
    fused, reference = pair(Forward(forward), optimizer)
    x, y = records(40)
    both_learn(fused, reference, Chunk(x, y))
    assert_equal(fused, reference)


def test_whole_numbers_that_are_computed_with_are_left_to_torch() -> None:
    def forward(model: Any, inputs: Any) -> Tensor:
        x, ids = inputs
        out: Tensor = model.head(model.table(ids[:, 0]) + model.a(x) + ids[:, :6])
        return out

    fused, reference = pair(Forward(forward), "sgd")
    x, y = records(30)
    both_learn(fused, reference, Chunk((x, torch.randint(9, (30, 6))), y))
    assert_equal(fused, reference)


def test_questions_of_another_structure_are_left_to_torch() -> None:
    fused, reference = pair(Wide(sparse=True, mode="sum"), "sgd")
    dense, ids = torch.randn(20, 5, dtype=torch.float64), torch.randint(7, (20, 9))
    lessons = Chunk({"dense": dense, "ids": ids}, torch.randint(3, (20,)))
    wider = torch.cat([ids, ids], 1)
    questions = Questions(Chunk({"ids": wider, "dense": dense}, torch.randint(3, (20,))), np.arange(20))
    ours, theirs = (engine.learn(lessons, 1, questions) for engine in (fused, reference))
    assert torch.allclose(ours.outputs, theirs.outputs)
    assert_equal(fused, reference)


def test_a_parameter_that_becomes_larger_or_is_turned_is_seen() -> None:
    fused, reference = pair(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), "sgd")
    x, y = records(30)
    both_learn(fused, reference, Chunk(x[:10], y[:10]))
    for engine in (fused, reference):
        layer: Any = engine.rule.model[0]  # type: ignore[index]
        layer.weight.data = layer.weight.data.t()
    both_learn(fused, reference, Chunk(x[10:20], y[10:20], start=10))
    grown = torch.randn(5, 6, dtype=torch.float64)
    for engine in (fused, reference):
        head: Any = engine.rule.model[2]  # type: ignore[index]
        head.weight.data, head.bias.data = grown.clone(), torch.zeros(5, dtype=torch.float64)
        for p in (head.weight, head.bias):
            p.grad = None
    both_learn(fused, reference, Chunk(x[20:], y[20:], start=20))
    assert_equal(fused, reference)


@pytest.mark.parametrize("change", ["scoring", "clip_norm", "dropout", "class weights", "optimizer hook"])
def test_what_changes_in_the_rule_is_seen(change: str) -> None:
    fused, reference = pair(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 3)), "sgd", seed=3)
    x, y = records(40)
    both_learn(fused, reference, Chunk(x[:20], y[:20]))
    calls = []
    for engine in (fused, reference):
        if change == "scoring":
            engine.rule.scoring = "train"
        elif change == "clip_norm":
            engine.rule.clip_norm = 0.1
        elif change == "dropout":
            engine.rule.model[1].p = 0.8  # type: ignore[index]
        elif change == "optimizer hook":
            engine.rule.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    both_learn(fused, reference, Chunk(x[20:], y[20:], start=20))
    assert_equal(fused, reference)
    assert len(calls) == (40 if change == "optimizer hook" else 0)


@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
@pytest.mark.parametrize("width", [6, 130])
def test_a_schedule_that_turns_an_option_on_equals_the_reference(option: str, width: int) -> None:
    model = nn.Sequential(nn.Linear(width, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    made: list[Any] = []
    for kind in (FusedEngine, ReferenceEngine):
        twin = copy.deepcopy(model)
        steps = torch.optim.SGD(twin.parameters(), lr=0.05)

        class Turning(torch.optim.lr_scheduler.LRScheduler):
            def get_lr(self) -> list[float | Tensor]:
                for group in self.optimizer.param_groups:
                    group[option] = 0.5 if self.last_epoch > 12 else 0.0
                return [0.05]

        made.append(kind(UpdateRule(twin, CROSS_ENTROPY, steps, scheduler=Turning(steps))))
    x, y = torch.randn(40, width, dtype=torch.float64), records(40)[1]
    both_learn(made[0], made[1], Chunk(x, y))
    assert_equal(made[0], made[1])


@pytest.mark.parametrize("bad", [(), (4,)])
def test_a_schedule_that_ends_within_a_chunk_ends_where_the_reference_does(bad: tuple[int, ...]) -> None:
    made: list[Any] = []
    model = nn.Linear(6, 3).double()
    for kind in (FusedEngine, ReferenceEngine):
        twin = copy.deepcopy(model)
        steps = OPTIMIZERS["dampened"](twin.parameters())
        made.append(
            kind(UpdateRule(twin, CROSS_ENTROPY, steps, scheduler=torch.optim.lr_scheduler.OneCycleLR(steps, 0.1, 19)))
        )
    x, y = records(20)
    x[list(bad), 0] = float("nan")
    for engine in made:
        if bad:
            engine.learn(Chunk(x, y), 1)
        else:
            with pytest.raises(ValueError, match="step"):
                engine.learn(Chunk(x, y), 1)
    assert_equal(made[0], made[1])


def test_a_restored_schedule_goes_on_as_the_reference_does() -> None:
    made: list[Any] = []
    model = nn.Linear(6, 3).double()
    x, y = records(40)
    for kind in (FusedEngine, ReferenceEngine):
        twin = copy.deepcopy(model)
        steps = OPTIMIZERS["momentum"](twin.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(steps, 0.9)
        engine = kind(UpdateRule(twin, CROSS_ENTROPY, steps, scheduler=scheduler))
        kept = copy.deepcopy([part.state_dict() for part in (twin, steps, scheduler)])
        engine.learn(Chunk(x[:20], y[:20]), 1)
        for part, state in zip((twin, steps, scheduler), kept, strict=True):
            part.load_state_dict(state)
        engine.learn(Chunk(x[20:], y[20:]), 1)
        made.append(engine)
    assert_equal(made[0], made[1])


def test_a_block_of_a_part_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.engines.blocks.cache_size", lambda: 0)

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(130, 40), nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.tanh(self.a(x[:, 5:135])))
            return out

    fused, reference = pair(Part(), "momentum")
    both_learn(fused, reference, Chunk(torch.randn(50, 150, dtype=torch.float64), records(50)[1]))
    assert_equal(fused, reference)


def test_sparse_gradients_that_torch_refuses_are_declined() -> None:
    model = Wide(sparse=True, mode="sum").double()
    rule = UpdateRule(model, CROSS_ENTROPY, torch.optim.Adam(model.parameters()))
    assert "sparse gradients" in FusedEngine.declines(rule)


def test_large_inputs_of_small_slopes_are_learned_in_float32_too() -> None:
    made = []
    for kind in (FusedEngine, ReferenceEngine):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        made.append(kind(UpdateRule(model, losses.NamedLoss("mse"), torch.optim.SGD(model.parameters(), lr=1e-25))))
    x, y = torch.tensor([[1e20, 0.0, 0.0]]), torch.zeros(1)
    with torch.no_grad():
        for engine in made:
            engine.rule.model.weight[:] = 1e-29  # type: ignore[operator, union-attr]
            engine.rule.model.bias[:] = 0  # type: ignore[operator, union-attr]
    ours, theirs = (engine.learn(Chunk(x, y), 1) for engine in made)
    assert ours.skipped == theirs.skipped == ()


class Stateful(nn.Module):
    """A forward that changes its model."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.count, self.out = kind, 0, nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "assigned":
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        elif self.kind == "in place":
            self.mean += 1
        else:
            self.count += 1
        found: Tensor = self.out(x) * 0.9 ** (self.count if self.kind == "counted" else 0)
        return found


@pytest.mark.parametrize("kind", ["assigned", "in place", "counted"])
def test_a_forward_that_changes_its_model_is_declined_and_the_model_left_alone(kind: str) -> None:
    model = Stateful(kind)
    rule = UpdateRule(model, CROSS_ENTROPY, torch.optim.SGD(model.parameters(), lr=0.1))
    assert FusedEngine.declines(rule)
    assert type(model.mean) is Tensor and not model.mean.any() and model.count == 0


def test_a_module_that_is_replaced_or_given_another_forward_is_seen() -> None:
    fused, reference = pair(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), "sgd")
    x, y = records(30)
    both_learn(fused, reference, Chunk(x[:10], y[:10]))
    for engine in (fused, reference):
        engine.rule.model[1] = nn.Tanh()  # type: ignore[index, operator]
    both_learn(fused, reference, Chunk(x[10:], y[10:], start=10))
    assert_equal(fused, reference)
    model = nn.Sequential(nn.Linear(6, 3))
    own = model[0].forward
    model[0].forward = lambda x: own(x) * 2  # type: ignore[method-assign]
    assert FusedEngine.declines(UpdateRule(model, CROSS_ENTROPY, torch.optim.SGD(model.parameters(), lr=0.1)))
    lazy = nn.LazyLinear(3)
    assert FusedEngine.declines(UpdateRule(lazy, CROSS_ENTROPY, torch.optim.SGD(lazy.parameters(), lr=0.1)))
