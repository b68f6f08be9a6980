"""Run: pytest tests/test_models.py"""

import pytest
import torch
from torch import nn

from millstream.errors import ModelError, SettingError
from millstream.models import FirstLayer, InputShape, build


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("reference", (784,)),
        ("linear", (1, 28, 28)),
        ("mlp:16,8", (5,)),
        ("mlp:16", (3, 4)),
        ("cnn", (784,)),
        ("cnn", (28, 28)),
        ("cnn", (3, 32, 32)),
    ],
)
def test_models_take_dense_inputs_of_their_shape(name: str, shape: tuple[int, ...]) -> None:
    assert build(name, InputShape(shape), 4)(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("name", ["linear", "mlp:8"])
@pytest.mark.parametrize("num_dense", [0, 3])
def test_ids_enter_as_the_one_hot_columns_that_they_stand_for(name: str, num_dense: int) -> None:
    model = build(name, InputShape((num_dense,) if num_dense else (), num_ids=7), 2)
    first = model[0]
    assert isinstance(first, FirstLayer) and first.ids is not None
    ids = torch.tensor([[1, 6], [0, 3]])  # 0 is absent
    one_hot = torch.zeros(2, 7).scatter_(1, ids, 1.0)
    one_hot[:, 0] = 0
    inputs = {"ids": ids} | ({"dense": torch.rand(2, num_dense)} if num_dense else {})
    expected = one_hot @ first.ids.weight
    if first.dense is not None:
        expected = expected + first.dense(inputs["dense"])
    assert torch.allclose(first(inputs), expected, atol=1e-6)


def test_the_reference_network_is_the_one_of_the_mission() -> None:
    layers = list(build("reference", InputShape((784,)), 10))  # type: ignore[call-overload]
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU]
    assert layers[0].weight.shape == (10, 784)


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(build("mlp:4", InputShape((3,)), 2)[0].weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "name", ["mpl:256", "mlp", "mlp:a", "mlp:0", "linear:3", "no_such_module:f", "os:nothing", "os:getcwd"]
)
def test_unknown_models_are_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(SettingError, match=r"got .*; wanted .*; "):
        build(name, InputShape((4,)), 2)


def test_what_a_model_cannot_take_is_said() -> None:
    with pytest.raises(ModelError, match="12 × 12"):
        build("cnn", InputShape((54,)), 7)
    with pytest.raises(ModelError, match="categories or text"):
        build("reference", InputShape((4,), num_ids=3), 2)
