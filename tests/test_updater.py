"""Engines for a loop of one's own. Run: pytest tests/test_updater.py"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import millstream
from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import ReferenceEngine, Updater, UpdateRule
from millstream.errors import DataError, ModelError, SettingError

LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 1, 2, 0])


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3))


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.5)


def records(num: int = 12, width: int = 4) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(1))


def weights_of(updater: Updater) -> list[Tensor]:
    return list(updater.rule.model.state_dict().values())


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=6), dropout=st.sampled_from([0.0, 0.4]), seed=st.integers(0, 9))
def test_one_by_one_or_many_at_once_are_the_same_updates(cuts: list[int], dropout: float, seed: int) -> None:
    x, y, w = records(), LABELS, torch.linspace(0.5, 2, 12)
    model = network(dropout)
    rule = UpdateRule(model, losses.resolve("cross_entropy"), sgd(model), seed=seed)
    whole = ReferenceEngine(rule).learn(Chunk(x, y, w), 1)
    twin = network(dropout)
    updater = millstream.compile(twin, "cross_entropy", sgd(twin), seed=seed, engine="reference")
    outputs, first = [], 0
    for last in sorted({*cuts, len(x)}):
        if last - first == 1:
            outcome = updater.learn(x[first], y[first].item(), w[first].item())
        else:
            outcome = updater.learn(x[first:last], y[first:last], w[first:last])
        outputs.append(outcome.outputs)
        first = last
    assert updater.position == 12
    assert torch.equal(torch.cat(outputs), whole.outputs)
    assert same(weights_of(updater), list(model.state_dict().values()))


def test_it_is_the_loop_that_people_write() -> None:
    model, twin = network(), network()
    optimizer, twins = sgd(model), sgd(twin)
    schedules = [torch.optim.lr_scheduler.StepLR(one, 3, 0.5) for one in (optimizer, twins)]
    updater = millstream.compile(
        model, "cross_entropy", optimizer, class_weights=[1.0, 2.0, 0.5], scheduler=schedules[0], clip_norm=0.3
    )
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), reduction="sum")
    for x, y in zip(records(), LABELS, strict=True):
        outcome = updater.learn(x, y)
        logits = twin(x[None])
        assert torch.allclose(outcome.outputs, logits)
        twins.zero_grad()
        criterion(logits, y[None]).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
        twins.step()
        schedules[1].step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert optimizer.param_groups[0]["lr"] == twins.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


@pytest.mark.parametrize("update_size", [1, 4, 5, 12])
def test_an_update_averages_as_many_records_as_it_is_told(update_size: int) -> None:
    model, twin = network(), network()
    outcome = millstream.compile(model, "cross_entropy", sgd(model)).learn(records(), LABELS, update_size=update_size)
    optimizer = sgd(twin)
    for first in range(0, 12, update_size):
        part = slice(first, first + update_size)
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(records()[part]), LABELS[part]).backward()
        optimizer.step()
    assert outcome.num_updates == -(-12 // update_size)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


FORMS: dict[str, Any] = {
    "tensor": lambda x: x,
    "grown": lambda x: x.clone().requires_grad_(),
    "float32": lambda x: x.numpy(),
    "float64": lambda x: x.numpy().astype(np.float64),
    "big endian": lambda x: x.numpy().astype(">f4"),
    "strided": lambda x: np.asfortranarray(np.repeat(x.numpy(), 2, axis=-1))[..., ::2],
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", [int, np.int64, np.uint8, torch.tensor, np.array])
def test_what_people_have_in_their_hands_gives_the_same(form: str, label: Any) -> None:
    found = []
    for turn in (FORMS[form], FORMS["tensor"]):
        model = network()
        updater = millstream.compile(model, "cross_entropy", sgd(model))
        for x, y in zip(records(), LABELS.tolist(), strict=True):
            assert updater.learn(turn(x), label(y)).outputs.shape == (1, 3)
        updater.learn(turn(records()), LABELS if turn is FORMS["tensor"] else LABELS.tolist())
        assert torch.equal(updater.predict(turn(records()))[2], updater.predict(records())[2])
        found.append(weights_of(updater))
        assert updater.position == 24
    assert same(*found)


def test_a_read_only_array_is_read() -> None:
    model = network()
    updater = millstream.compile(model, "cross_entropy", sgd(model))
    x = records().numpy()
    x.flags.writeable = False
    assert len(updater.learn(x, LABELS).losses) == 12
    assert len(updater.learn(x[0], 1).losses) == 1


class TwoParts(nn.Module):
    """Takes a dict or a tuple of values and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.ids = nn.Linear(4, 3), nn.EmbeddingBag(10, 3, mode="sum")

    def forward(self, inputs: Any) -> Tensor:
        values, ids = (inputs["values"], inputs["ids"]) if isinstance(inputs, dict) else inputs
        found: Tensor = self.values(values) + self.ids(ids)
        return found


def test_dicts_and_tuples_of_parts() -> None:
    x, ids = records(), torch.arange(24).reshape(12, 2) % 10
    found = []
    for make in (lambda a, b: {"values": a, "ids": b}, lambda a, b: (a.numpy(), b.numpy())):
        torch.manual_seed(0)
        model = TwoParts()
        updater = millstream.compile(model, "cross_entropy", sgd(model))
        updater.learn(make(x[0], ids[0]), 2)  # type: ignore[no-untyped-call]
        assert updater.learn(make(x, ids), LABELS).num_updates == 12  # type: ignore[no-untyped-call]
        assert updater.predict(make(x[0], ids[0]), one=True).shape == (3,)  # type: ignore[no-untyped-call]
        found.append(weights_of(updater))
    for ours, others in zip(*found, strict=True):  # torch.fx follows one of the two, so the engines differ
        assert torch.allclose(ours, others, atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "huber:0.5", "binary_cross_entropy", "quantile:0.9", nn.L1Loss()])
@pytest.mark.parametrize("y", [1, 1.0, True, np.float32(1), torch.tensor(1), torch.tensor(1.0, dtype=torch.float64)])
def test_labels_that_are_numbers_come_in_any_type(loss: Any, y: Any) -> None:
    found = []
    for label in (y, 1.0):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        updater = millstream.compile(model, loss, sgd(model))
        for x in records():
            updater.learn(x, label)
        updater.learn(records(), np.full(12, label))
        found.append(weights_of(updater))
    assert same(*found)


def test_an_own_loss_gets_the_labels_as_they_are() -> None:
    seen = []

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return (outputs.sum(1) - targets) ** 2

    model = network()
    updater = millstream.compile(model, own, sgd(model, 0.001))
    updater.learn(records()[0], 3)
    updater.learn(records()[0], 0.5)
    assert [one.dtype for one in seen[-2:]] == [torch.int64, torch.float32]


def test_the_model_keeps_its_own_type() -> None:
    model = network().double()
    updater = millstream.compile(model, "cross_entropy", sgd(model), class_weights=[1, 2, 3])
    assert updater.learn(records().numpy(), LABELS.tolist(), [1] * 12).outputs.dtype == torch.float64


def test_position_is_the_key_of_dropout() -> None:
    def learned(position: int) -> list[Tensor]:
        model = network(dropout=0.5)
        updater = millstream.compile(model, "cross_entropy", sgd(model))
        updater.position = position
        updater.learn(records(), LABELS)
        return weights_of(updater)

    assert same(learned(7), learned(7)) and not same(learned(7), learned(8))
    network()
    state = torch.get_rng_state()
    learned(7)
    network()
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left as it was"


def test_a_record_that_is_not_finite_changes_nothing_and_counts() -> None:
    model = network()
    updater = millstream.compile(model, "cross_entropy", sgd(model))
    before = copy.deepcopy(weights_of(updater))
    outcome = updater.learn(torch.full((4,), torch.nan), 1)
    assert (outcome.skipped, outcome.num_updates, updater.position) == ((0,), 0, 1)
    assert same(weights_of(updater), before)


def test_predicting_changes_nothing() -> None:
    model = network(dropout=0.5)
    updater = millstream.compile(model, "cross_entropy", sgd(model))
    before = copy.deepcopy(weights_of(updater))
    assert torch.equal(updater.predict(records()), updater.predict(records()))
    assert torch.allclose(updater.predict(records()[0], one=True), updater.predict(records())[0])
    assert same(weights_of(updater), before) and updater.position == 0


@pytest.mark.parametrize(
    ("x", "y", "more", "error", "words"),
    [
        (records(), LABELS[:5], {}, DataError, "5 in y for 12 records"),
        (records(), 1, {}, DataError, r"shape \(1,\) for outputs of shape \(1, 12, 3\)"),
        (records()[0], LABELS, {}, ModelError, "one row for each record|fails on inputs"),
        (records(), LABELS, {"weights": [1.0, 2.0]}, DataError, "2 in weights for 12"),
        (records(), LABELS, {"weights": 1.0}, DataError, "weights of shape"),
        (records()[0], 1, {"weights": [1.0]}, DataError, "weights of shape"),
        (records().double(), LABELS, {}, ModelError, "float64"),
        (records(12, 5), LABELS, {}, ModelError, r"\(1, 5\)"),
        (records()[0], 3, {}, DataError, "label 3.*0 to 2"),
        (records()[0], -1, {}, DataError, "label -1"),
        (records(), [0] * 11 + [7], {}, DataError, "label 7"),
        (records()[0], 1.5, {}, DataError, "whole numbers"),
        (records(), torch.rand(12), {}, DataError, "whole numbers"),
        (records(), ["a"] * 12, {}, DataError, "y of type"),
        ([["a"] * 4] * 12, LABELS, {}, DataError, "x of type"),
        ([[1.0], [1.0, 2.0]], [0, 1], {}, DataError, "unequal rows"),
        (torch.empty(0, 4), torch.empty(0, dtype=torch.int64), {}, DataError, "no records"),
        ({}, 1, {}, DataError, "without a tensor"),
        (records(), LABELS, {"update_size": 0}, SettingError, "update_size=0"),
        (records()[0], 1, {"update_size": 1.5}, SettingError, "update_size=1.5"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_learned(
    x: Any, y: Any, more: Any, error: type[Exception], words: str
) -> None:
    model = network()
    updater = millstream.compile(model, "cross_entropy", sgd(model))
    before = copy.deepcopy(weights_of(updater))
    for _ in range(2):  # the first time it looks at the model, too
        with pytest.raises(error, match=words):
            updater.learn(x, y, **more)
    assert same(weights_of(updater), before) and updater.position == 0
    updater.learn(records()[0], 1)
    with pytest.raises((DataError, ModelError, SettingError)):
        updater.learn(x, y, **more)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"scoring": "auto"}, "scoring='auto'"),
        ({"engine": "none"}, "engine 'none'"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"loss": "none"}, "loss 'none'"),
        ({"loss": nn.CrossEntropyLoss(), "class_weights": [1.0, 1.0, 1.0]}, "class weights"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings_: Any, words: str) -> None:
    model = network()
    with pytest.raises(SettingError, match=words):
        millstream.compile(model, **{"loss": "cross_entropy", "optimizer": sgd(model), **settings_})


def test_a_schedule_that_waits_for_a_loss_is_refused() -> None:
    model = network()
    optimizer = sgd(model)
    schedule: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(SettingError, match="waits for a loss"):
        millstream.compile(model, "cross_entropy", optimizer, scheduler=schedule)


def test_the_engine_is_the_fastest_that_takes_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    assert millstream.compile(model, "cross_entropy", sgd(model)).engine == "fused"
    assert millstream.compile(model, "cross_entropy", sgd(model), engine="reference").engine == "reference"
    other = torch.optim.Rprop(model.parameters())
    assert millstream.compile(model, "cross_entropy", other).engine == "reference"
