"""The fused engine computes the updates of the reference. Run: pytest tests/test_fused.py"""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk, Questions
from millstream.engines import FusedEngine, ReferenceEngine, UpdateRule, choose
from millstream.errors import ModelError
from millstream.trainer import Trainer

ACTIVATIONS = [
    *(nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.Sigmoid()),
    *(nn.SiLU(), nn.GELU(), nn.ELU(0.7), nn.Softplus(2.0)),
]
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.001, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, initial_accumulator_value=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.002, weight_decay=0.01),
    "centred": lambda p: torch.optim.RMSprop(p, lr=0.002, centered=True, momentum=0.5),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95)),
}
LOSSES: dict[str, Any] = {
    "cross_entropy": losses.NamedLoss("cross_entropy"),
    "smoothed": losses.NamedLoss("cross_entropy", class_weights=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1),
    "binary_cross_entropy": losses.NamedLoss("binary_cross_entropy", class_weights=torch.tensor([1.0, 3.0])),
    "mse": losses.NamedLoss("mse"),
    "huber": losses.NamedLoss("huber", 0.5),
    "poisson": losses.NamedLoss("poisson"),
    "quantile": losses.NamedLoss("quantile", 0.8),
}


def records(loss: str, num: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, width, generator=generator, dtype=torch.float64)
    if loss in ("cross_entropy", "smoothed"):
        return x, torch.randint(3, (num,), generator=generator)
    if loss == "binary_cross_entropy":
        return x, torch.randint(2, (num,), generator=generator).double()
    return x, torch.rand(num, generator=generator, dtype=torch.float64)


def pair(model: nn.Module, optimizer: str, loss: str) -> tuple[FusedEngine, ReferenceEngine]:
    made = []
    for kind in (FusedEngine, ReferenceEngine):
        twin = copy.deepcopy(model).double()
        criterion = copy.copy(LOSSES[loss])
        if criterion.class_weights is not None:
            criterion.class_weights = criterion.class_weights.double()
        made.append(kind(UpdateRule(twin, criterion, OPTIMIZERS[optimizer](twin.parameters()))))
    return made[0], made[1]  # type: ignore[return-value]


def assert_equal(fused: FusedEngine, reference: ReferenceEngine, tolerance: float = 1e-9) -> None:
    ours, theirs = fused.rule.model.state_dict(), reference.rule.model.state_dict()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=tolerance, atol=tolerance), name
    state, other = fused.rule.optimizer.state_dict()["state"], reference.rule.optimizer.state_dict()["state"]
    assert state.keys() == other.keys()
    for key in state:
        assert state[key].keys() == other[key].keys()
        for name, value in state[key].items():
            if value is not None:
                assert torch.allclose(
                    torch.as_tensor(value), torch.as_tensor(other[key][name]), rtol=tolerance, atol=tolerance
                )


def both_learn(fused: FusedEngine, reference: ReferenceEngine, *chunks: Chunk) -> None:
    for chunk in chunks:
        ours, theirs = fused.learn(chunk, 1), reference.learn(chunk, 1)
        kept = np.setdiff1d(np.arange(len(chunk)), ours.skipped)
        assert ours.skipped == theirs.skipped and ours.num_updates == theirs.num_updates
        assert torch.allclose(
            ours.outputs[kept], theirs.outputs[kept].reshape(ours.outputs[kept].shape), rtol=1e-8, atol=1e-9
        )
        assert torch.allclose(ours.losses[kept], theirs.losses[kept], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_optimizer_and_loss_equals_the_reference(optimizer: str, loss: str) -> None:
    torch.manual_seed(1)
    num_outputs = 3 if loss in ("cross_entropy", "smoothed") else 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, num_outputs, bias=False))
    fused, reference = pair(model, optimizer, loss)
    x, y = records(loss, 60, 5)
    weights = torch.rand(60, dtype=torch.float64)
    both_learn(fused, reference, Chunk(x[:25], y[:25], weights[:25]), Chunk(x[25:], y[25:], weights[25:], start=25))
    assert_equal(fused, reference)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_every_activation_equals_the_reference(activation: nn.Module) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(6, 9), activation, nn.Sequential(nn.Linear(9, 5), activation), nn.Linear(5, 3), activation
    )
    fused, reference = pair(model, "sgd", "cross_entropy")
    x, y = records("cross_entropy", 50, 6)
    both_learn(fused, reference, Chunk(x * 3, y))
    assert_equal(fused, reference)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 11), min_size=1, max_size=3),
    width=st.sampled_from([1, 4, 130]),
    first=st.sampled_from([1, 3, 33]),
    num=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_chains_of_any_widths_equal_the_reference_in_blocks_and_directly(
    widths: list[int], width: int, first: int, num: int, seed: int
) -> None:
    torch.manual_seed(seed)
    sizes = [width, first, *widths, 3]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    fused, reference = pair(nn.Sequential(*layers[:-1]), "sgd", "cross_entropy")
    x, y = records("cross_entropy", num, width, seed)
    both_learn(fused, reference, Chunk(x, y))
    assert_equal(fused, reference)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_where_records_lie_in_memory_changes_no_bit(optimizer: str) -> None:
    x, y = records("cross_entropy", 100, 784)
    found = []
    for offset in (0, 1, 7):
        torch.manual_seed(0)
        fused, _ = pair(nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 3)), optimizer, "cross_entropy")
        room = torch.empty(x.numel() + offset, dtype=x.dtype)
        moved = room[offset:].view(x.shape).copy_(x)
        outcome = fused.learn(Chunk(moved, y), 1)
        found.append([outcome.outputs, *(p.detach() for p in fused.rule.model.parameters())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("width", [5, 130])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_record_that_is_not_finite_is_left_out_in_both(value: float, width: int, optimizer: str) -> None:
    torch.manual_seed(3)
    fused, reference = pair(
        nn.Sequential(nn.Linear(width, 40), nn.ReLU(), nn.Linear(40, 3)), optimizer, "cross_entropy"
    )
    x, y = records("cross_entropy", 50, width)
    x[[0, 7, 33], 2] = value
    both_learn(fused, reference, Chunk(x, y))
    assert_equal(fused, reference)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.ReLU()])
@pytest.mark.parametrize("width", [2, 130])
def test_an_infinite_input_behind_a_saturated_unit_is_left_out_in_both(activation: nn.Module, width: int) -> None:
    torch.manual_seed(8)
    fused, reference = pair(nn.Sequential(nn.Linear(width, 40), activation, nn.Linear(40, 3)), "sgd", "cross_entropy")
    x, y = records("cross_entropy", 40, width)
    x[0, 1], x[5, 0] = float("inf"), float("-inf")
    both_learn(fused, reference, Chunk(x, y))
    assert_equal(fused, reference)
    assert all(bool(torch.isfinite(p).all()) for p in fused.rule.model.parameters())


def test_what_only_torch_understands_is_left_to_it() -> None:
    model = nn.Linear(3, 3)
    decoupled = torch.optim.Adam(model.parameters(), decoupled_weight_decay=True)
    assert "decoupled" in FusedEngine.declines(UpdateRule(model, LOSSES["cross_entropy"], decoupled))
    model.weight.register_hook(lambda gradient: gradient * 0)
    assert "hooks" in FusedEngine.declines(
        UpdateRule(model, LOSSES["cross_entropy"], torch.optim.SGD(model.parameters()))
    )


def test_late_labels_are_answered_as_the_reference_does() -> None:
    torch.manual_seed(4)
    fused, reference = pair(nn.Sequential(nn.Linear(130, 40), nn.ReLU(), nn.Linear(40, 3)), "sgd", "cross_entropy")
    x, y = records("cross_entropy", 40, 130)
    questions = Questions(Chunk(x[20:], y[20:]), np.sort(np.random.default_rng(0).integers(0, 21, 20)))
    ours, theirs = (engine.learn(Chunk(x[:20], y[:20]), 1, questions) for engine in (fused, reference))
    assert torch.allclose(ours.outputs, theirs.outputs)
    assert torch.allclose(ours.losses, theirs.losses)
    assert_equal(fused, reference)


def test_engines_may_be_swapped_between_two_chunks() -> None:
    torch.manual_seed(5)
    fused, reference = pair(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), "adam", "cross_entropy")
    x, y = records("cross_entropy", 60, 5)
    on_the_same_rule = ReferenceEngine(fused.rule)
    for first in range(0, 60, 20):
        chunk = Chunk(x[first : first + 20], y[first : first + 20], start=first)
        (on_the_same_rule if first == 20 else fused).learn(chunk, 1)
        reference.learn(chunk, 1)
    assert_equal(fused, reference)


def test_frozen_parameters_and_groups_of_their_own_are_respected() -> None:
    torch.manual_seed(6)
    made = []
    for kind in (FusedEngine, ReferenceEngine):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3)).double()
        model[0].weight.requires_grad_(False)
        groups = [{"params": [model[0].bias, *model[4].parameters()]}, {"params": [model[2].weight], "lr": 0.5}]
        made.append(kind(UpdateRule(model, LOSSES["cross_entropy"], torch.optim.SGD(groups, lr=0.01, momentum=0.5))))
    x, y = records("cross_entropy", 40, 5)
    both_learn(made[0], made[1], Chunk(x, y))  # type: ignore[arg-type]
    assert_equal(made[0], made[1])  # type: ignore[arg-type]


def test_float32_differs_no_more_than_another_order_of_sums_does() -> None:
    torch.manual_seed(7)
    x, y = torch.rand(500, 784), torch.randint(10, (500,))
    models = [nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))]
    models.append(copy.deepcopy(models[0]))
    for model, kind in zip(models, (FusedEngine, ReferenceEngine), strict=True):
        kind(UpdateRule(model, LOSSES["cross_entropy"], torch.optim.SGD(model.parameters(), lr=0.01))).learn(
            Chunk(x, y), 1
        )
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("model", "settings_", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), {}, "Softmax"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), {}, "BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).half()), {}, "float32"),
    ],
)
def test_what_it_cannot_do_it_declines_and_auto_takes_the_reference(
    model: nn.Module, settings_: Any, reason: str
) -> None:
    rule = UpdateRule(model, LOSSES["cross_entropy"], torch.optim.SGD(model.parameters(), lr=0.1), **settings_)
    assert reason in FusedEngine.declines(rule)
    assert choose("auto", rule).name == "reference"
    with pytest.raises(ModelError, match=reason):
        choose("fused", rule)


def test_the_trainer_takes_it_by_itself() -> None:
    x, y = torch.randn(300, 4), torch.randint(3, (300,))
    summaries = {}
    for engine in ("auto", "reference"):
        torch.manual_seed(0)
        summaries[engine] = Trainer(nn.Linear(4, 3), engine=engine).learn((x, y))
    assert summaries["auto"].engine == "fused"
    assert summaries["auto"].metrics["loss"] == pytest.approx(summaries["reference"].metrics["loss"], rel=1e-5)
    assert Trainer(nn.Linear(4, 3)).fit((x, y), batch_size=64, epochs=1).updates == 5
