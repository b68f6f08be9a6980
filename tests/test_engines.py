"""Run: pytest tests/test_engines.py"""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk, Questions
from millstream.engines import ReferenceEngine, UpdateRule
from millstream.errors import ModelError


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def records(num: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 4, generator=generator), torch.randint(3, (num,), generator=generator)


def engine_of(model: nn.Module, **settings_: object) -> ReferenceEngine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return ReferenceEngine(UpdateRule(model, losses.resolve("cross_entropy"), optimizer, **settings_))  # type: ignore[arg-type]


def by_hand(model: nn.Module, x: Tensor, y: Tensor, size: int, weights: Tensor | None = None) -> list[Tensor]:
    """The formula, written down: θ ← θ − η/B Σ w ∇L, with the outputs before each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = []
    for first in range(0, len(x), size):
        outputs = model(x[first : first + size])
        before.append(outputs.detach())
        each = nn.functional.cross_entropy(outputs, y[first : first + size], reduction="none")
        total = (each if weights is None else each * weights[first : first + size]).sum() / len(each)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return before


@pytest.mark.parametrize("size", [1, 4, 7])
def test_the_reference_is_the_formula(size: int) -> None:
    x, y = records(30)
    weights = torch.rand(30)
    ours, theirs = small_model(), small_model()
    outcome = engine_of(ours).learn(Chunk(x, y, weights), size)
    before = by_hand(theirs, x, y, size, weights)
    assert torch.equal(outcome.outputs, torch.cat(before))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert outcome.num_updates == -(-30 // size)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([1, 3]))
def test_how_much_is_read_never_changes_what_is_computed(pieces: list[int], size: int) -> None:
    cuts = np.cumsum([0, *(size * piece for piece in pieces)]).tolist()
    x, y = records(cuts[-1])
    whole, cut = small_model(), small_model()
    once = engine_of(whole).learn(Chunk(x, y), size)
    engine = engine_of(cut)
    parts = [engine.learn(Chunk(x[a:b], y[a:b], start=a), size) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(once.outputs, torch.cat([part.outputs for part in parts]))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_record_that_is_not_finite_touches_nothing(size: int, value: float) -> None:
    x, y = records(20)
    bad = x.clone()
    bad[7, 2] = value
    with_it, without = small_model(), small_model()
    outcome = engine_of(with_it).learn(Chunk(bad, y), size)
    places = np.delete(np.arange(20), 7)
    engine_of(without).learn(Chunk(x[places], y[places], offsets=places, span=20), size)
    assert outcome.skipped == (7,)
    assert all(torch.equal(a, b) for a, b in zip(with_it.parameters(), without.parameters(), strict=True))


def test_a_hole_does_not_shift_the_updates_after_it() -> None:
    x, y = records(12)
    places = np.delete(np.arange(12), [1, 4])
    chunk = Chunk(x[places], y[places], offsets=places, span=12)
    assert [places[a:b].tolist() for a, b in chunk.updates(4)] == [[0, 2, 3], [5, 6, 7], [8, 9, 10, 11]]


def test_gradients_are_clipped_by_norm_and_by_value() -> None:
    x, y = records(1)
    for bound in ({"clip_norm": 0.01}, {"clip_value": 0.001}):
        model = small_model()
        start = [p.detach().clone() for p in model.parameters()]
        engine_of(model, **bound).learn(Chunk(x * 50, y), 1)
        moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start, strict=True)]) / 0.1
        size = moved.norm() if "clip_norm" in bound else moved.abs().max()
        assert torch.isclose(size, torch.tensor(next(iter(bound.values()))), rtol=1e-3)


def test_batch_normalisation_is_refused_at_one_record_and_welcome_when_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = records(6)
    with pytest.raises(ModelError, match=r"GroupNorm.*\.eval\(\)"):
        engine_of(model).learn(Chunk(x, y), 1)
    engine_of(model).learn(Chunk(x, y), 3)
    model[1].eval()
    statistics = model[1].running_mean.clone()
    engine_of(model).learn(Chunk(x, y), 1)
    assert torch.equal(model[1].running_mean, statistics)


def test_a_skipped_batch_leaves_the_running_statistics_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = records(4)
    before = copy.deepcopy(model.state_dict())
    outcome = engine_of(model).learn(Chunk(torch.full_like(x, float("nan")), y), 4)
    assert outcome.num_updates == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_one_bad_record_among_batch_norm_does_not_cost_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = records(10)
    x[3] = float("nan")
    outcome = engine_of(model).learn(Chunk(x, y), 5)
    assert outcome.skipped == (3,) and outcome.num_updates == 2
    assert all(bool(torch.isfinite(buffer).all()) for buffer in model.buffers())
    assert engine_of(model).learn(Chunk(x[2:4], y[2:4]), 2).skipped == (0, 1)


def test_an_optimizer_that_asks_for_many_gradients_a_step_is_refused() -> None:
    model = small_model()
    with pytest.raises(ModelError, match="LBFGS"):
        UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.LBFGS(model.parameters()))


def test_dropout_is_scored_in_eval_mode_and_keyed_by_position() -> None:
    x, y = records(10)

    def model_with_dropout() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    first, second, other_place = model_with_dropout(), model_with_dropout(), model_with_dropout()
    quiet = first.eval()(x[:1]).detach()
    first.train()
    state = torch.get_rng_state()
    outcome = engine_of(first).learn(Chunk(x, y), 1)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's generator is disturbed"
    assert torch.equal(outcome.outputs[0], quiet[0])
    torch.rand(3)
    engine_of(second).learn(Chunk(x, y), 1)
    engine_of(other_place).learn(Chunk(x, y, start=1000), 1)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other_place[0].weight)


def test_questions_are_answered_between_the_updates_that_they_know() -> None:
    x, y = records(8)
    model = small_model()
    asked = Chunk(x[4:7], y[4:7])
    known = np.array([0, 2, 4])
    outcome = engine_of(model).learn(Chunk(x[:4], y[:4]), 2, Questions(asked, known))
    for question, learned in enumerate(known):
        twin = small_model()
        by_hand(twin, x[:learned], y[:learned], 2)
        with torch.no_grad():
            assert torch.allclose(outcome.outputs[question], twin(asked.inputs[question : question + 1])[0])


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="after the model"):
        UpdateRule(small_model(), losses.resolve("mse"), torch.optim.SGD(small_model().parameters(), lr=0.1))


def test_a_scheduler_steps_after_every_update() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rule = UpdateRule(model, losses.resolve("cross_entropy"), optimizer, scheduler)
    ReferenceEngine(rule).learn(Chunk(*records(6)), 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.125)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_inputs_may_be_a_tuple_or_a_dict(kind: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: object) -> Tensor:
            a, b = inputs.values() if isinstance(inputs, dict) else inputs  # type: ignore[misc]
            return self.layer(torch.cat([a, b], 1))

    x, y = records(9)
    halves = (x[:, :1], x[:, 1:])
    inputs = halves if kind == "tuple" else {"a": halves[0], "b": halves[1]}
    torch.manual_seed(0)
    split = Two()
    torch.manual_seed(0)
    whole = nn.Linear(4, 3)
    engine_of(split).learn(Chunk(inputs, y), 1)
    engine_of(whole).learn(Chunk(x, y), 1)
    assert torch.allclose(split.layer.weight, whole.weight)
