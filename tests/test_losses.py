"""Run: pytest tests/test_losses.py"""

import pytest
import torch
from torch import nn

from millstream import losses
from millstream.errors import ModelError, SettingError


@pytest.mark.parametrize("name", losses.NAMES)
def test_every_named_loss_gives_one_value_per_record(name: str) -> None:
    loss = losses.resolve(name)
    outputs = torch.randn(7, 3 if loss.task == "classes" else 1)
    targets = torch.randint(2, (7,)) if loss.task != "number" else torch.rand(7)
    assert loss(outputs, targets).shape == (7,)


def test_class_weights_multiply_the_loss_of_their_records() -> None:
    plain, weighted = losses.resolve("cross_entropy"), losses.resolve("cross_entropy", torch.tensor([1.0, 5.0]))
    outputs, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    assert torch.allclose(weighted(outputs, targets), plain(outputs, targets) * torch.tensor([1.0, 5.0, 5.0, 1.0]))


def test_a_mean_reducing_loss_module_becomes_a_loss_per_record() -> None:
    module = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    loss = losses.resolve(module)
    one = loss(torch.zeros(1, 2), torch.tensor([1]))
    assert torch.allclose(one, torch.tensor([3 * 0.6931472])), "its mean would have cancelled the weight"
    assert module.reduction == "mean", "the person's own object stays as it was"


def test_a_loss_that_gives_one_number_for_all_is_refused() -> None:
    with pytest.raises(ModelError, match="one value per record"):
        losses.resolve(lambda outputs, targets: (outputs - targets).square().mean())(torch.zeros(3), torch.zeros(3))


def test_one_output_beside_flat_targets_does_not_broadcast() -> None:
    outputs, targets = torch.randn(5, 1), torch.randn(5)
    assert torch.allclose(losses.resolve("mse")(outputs, targets), (outputs[:, 0] - targets).square())
    with pytest.raises(ModelError, match="one output for each target"):
        losses.resolve("mse")(torch.randn(5, 2), targets)


def test_quantile_is_the_pinball_loss() -> None:
    loss = losses.resolve("quantile:0.9")
    assert torch.allclose(loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0])), torch.tensor([0.9, 0.1]))


@pytest.mark.parametrize("text", ["mes", "huber:wide", "mse:2"])
def test_unknown_losses_are_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(SettingError, match=r"got .*; wanted .*; "):
        losses.resolve(text)
