"""Run: pytest tests/test_randomness.py"""

import copy
import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import ReferenceEngine, UpdateRule
from millstream.engines.dropout import KeyedDropout
from millstream.engines.kernels import masks
from millstream.engines.randomness import keep, key, keys, scale_of, threshold_of
from millstream.errors import LearningError

seeds = st.integers(-(2**31), 2**63)
places = st.lists(st.integers(0, 2**62), min_size=1, max_size=5)


def kernel_drop(inputs: np.ndarray, word: int, call: int, p: float) -> tuple[np.ndarray, np.ndarray]:
    scales, outputs = np.full_like(inputs, 9), np.full_like(inputs, 9)
    masks.drop(inputs, word, call, threshold_of(p), scale_of(p, inputs.dtype), scales, outputs)
    return scales, outputs


@given(seeds, places)
def test_keys_are_the_key_of_each_position(seed: int, positions: list[int]) -> None:
    assert keys(seed, np.array(positions)).tolist() == [key(seed, position) for position in positions]


@settings(deadline=None)
@given(seeds, places, st.integers(0, 2**20), st.integers(1, 70), st.floats(0, 1), st.sampled_from(["f4", "f8"]))
def test_the_kernel_and_its_twin_agree(
    seed: int, positions: list[int], call: int, num: int, p: float, number: str
) -> None:
    words = keys(seed, np.array(positions))
    kept = keep(words, call, num, p)
    inputs = np.linspace(-2, 3, num).astype(number)
    for word, row in zip(words.tolist(), kept, strict=True):
        scales, outputs = kernel_drop(inputs, word, call, p)
        assert np.array_equal(scales, row * inputs.dtype.type(scale_of(p, number)))
        assert np.array_equal(outputs, inputs * scales)
        if p < 1:
            drawn = [masks.draw(word, call, element) >= threshold_of(p) for element in range(num)]
            assert row.tolist() == drawn


def test_the_numbers_are_pinned() -> None:
    """A change of the arithmetic changes what a resumed run draws."""
    assert key(3, 5) == 1970205321
    drawn = [masks.draw(key(3, 5), call, element) for call in (0, 1) for element in (0, 1)]
    assert drawn == [4266794257, 2663710930, 524125669, 2609407369]


def test_in_place_and_not_finite() -> None:
    inputs = np.array([np.nan, np.inf, 1.0] * 20, np.float32)
    scales, outputs = kernel_drop(inputs, 1, 0, 0.5)
    assert np.array_equal(outputs, torch.from_numpy(inputs).mul(torch.from_numpy(scales)).numpy(), equal_nan=True)
    assert np.isnan(outputs[1::3]).any(), "infinity that is dropped is not finite, as in torch"
    masks.drop(inputs, 1, 0, threshold_of(0.5), 2.0, scales, inputs)
    assert np.array_equal(inputs, outputs, equal_nan=True)


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_the_share_that_is_kept(p: float) -> None:
    num = 1_000_000
    kept = int(keep(keys(1, np.arange(1000)), 0, 1000, p).sum())
    assert abs(kept - num * (1 - p)) <= 5 * math.sqrt(num * p * (1 - p))


def test_masks_of_other_elements_calls_records_and_seeds_have_nothing_in_common() -> None:
    records, elements = 1000, 512
    base = keep(keys(0, np.arange(records)), 0, elements, 0.5) * 2.0 - 1
    others = {
        "next element": np.roll(base, 1, axis=1),
        "element 64 on": np.roll(base, 64, axis=1),
        "next position": np.roll(base, 1, axis=0),
        "position 256 on, element before": np.roll(base, (256, -1), axis=(0, 1)),
        "next call": keep(keys(0, np.arange(records)), 1, elements, 0.5) * 2.0 - 1,
        "call 7": keep(keys(0, np.arange(records)), 7, elements, 0.5) * 2.0 - 1,
        "next seed": keep(keys(1, np.arange(records)), 0, elements, 0.5) * 2.0 - 1,
    }
    for name, other in others.items():
        products = base * other
        assert abs(products.sum()) < 5 * math.sqrt(products.size), name
        for axis in (0, 1):  # nor does any one record or any one element repeat itself
            worst = np.abs(products.sum(axis)).max() / math.sqrt(products.shape[axis])
            assert worst < 5.5, name
    for axis in (0, 1):
        spread = base.sum(axis).var() / base.shape[axis]
        assert abs(spread - 1) < 6 * math.sqrt(2 / base.shape[1 - axis]), "as even as a coin, and not more"


# Modules of a model


class Spy(nn.Module):
    """Keeps what comes out of a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.part(inputs)
        if self.training:
            self.seen.append(outputs.detach().clone())
        return outputs


def model_with(part: nn.Module, width: int = 12) -> tuple[nn.Sequential, Spy]:
    torch.manual_seed(0)
    spy = Spy(part)
    return nn.Sequential(nn.Linear(4, width), spy, nn.Linear(width, 6), nn.Dropout(0.3), nn.Linear(6, 3)), spy


def engine_of(model: nn.Module, lr: float = 0.0, **settings_: object) -> ReferenceEngine:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return ReferenceEngine(UpdateRule(model, losses.resolve("cross_entropy"), optimizer, **settings_))  # type: ignore[arg-type]


def records(num: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 4, generator=generator), torch.randint(3, (num,), generator=generator)


def seen_by(part: nn.Module, size: int, *cuts: int, num: int = 64) -> Tensor:
    """What the part gives for each record, learned in updates of ``size``, in chunks that end at ``cuts``."""
    model, spy = model_with(part)
    x, y = records(num)
    with mock.patch("millstream.engines.noise._LEAST", 1 << 30):  # or the part would see some records twice
        for first, last in itertools.pairwise((0, *cuts, num)):
            engine_of(model).learn(Chunk(x[first:last], y[first:last], start=first), size)
    return torch.cat(spy.seen)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_masks_do_not_depend_on_update_size_or_cuts(kind: type[nn.Module]) -> None:
    one, many, cut = seen_by(kind(0.4), 1), seen_by(kind(0.4), 64), seen_by(kind(0.4), 8, 8, 40)
    # A product of 64 rows has other last bits than 64 of one row.
    assert torch.allclose(one, many, atol=1e-6) and torch.allclose(one, cut, atol=1e-6)
    assert torch.equal(one == 0, many == 0)


def test_the_mask_is_that_of_keep() -> None:
    kept = torch.from_numpy(keep(keys(0, np.arange(64)), 0, 12, 0.4))
    assert torch.equal(seen_by(nn.Dropout(0.4), 16) != 0, kept)


@pytest.mark.parametrize("size", [1, 4])
def test_a_hole_does_not_shift_the_masks(size: int) -> None:
    x, y = records(12)
    left = np.delete(np.arange(12), [1, 6])
    model, spy = model_with(nn.Dropout(0.4))
    engine_of(model).learn(Chunk(x, y), size)
    holed, other = model_with(nn.Dropout(0.4))
    engine_of(holed).learn(Chunk(x[left], y[left], offsets=left, span=12), size)
    assert torch.equal(torch.cat(other.seen) != 0, (torch.cat(spy.seen) != 0)[left])


def test_a_record_that_is_left_out_does_not_shift_the_masks_of_the_others() -> None:
    x, y = records(8)
    x[3] = float("nan")
    model, spy = model_with(nn.Dropout(0.4))
    outcome = engine_of(model).learn(Chunk(x, y, start=20), 8)
    assert outcome.skipped == (3,)
    first, again = spy.seen
    rows = np.delete(np.arange(8), 3)
    assert torch.equal(again != 0, (first != 0)[rows])


def weights_after(lr: float, start: int = 0) -> dict[str, Tensor]:
    model, _ = model_with(nn.Dropout(0.4))
    x, y = records(20)
    engine_of(model, lr).learn(Chunk(x, y, start=start), 1)
    return copy.deepcopy(model.state_dict())


def test_runs_repeat_and_places_differ() -> None:
    first, second, elsewhere = weights_after(0.1), weights_after(0.1), weights_after(0.1, start=100)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], elsewhere[name]) for name in first)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.AlphaDropout(0.5)])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_it_is_what_torch_computes_with_these_masks(part: nn.Module, p: float) -> None:
    part.p = p
    x = torch.randn(5, 64, requires_grad=True)
    dropout = KeyedDropout(part, seed=2)
    with dropout.installed():
        ours = dropout.forward(Chunk(x * 1, start=7))
    kept = torch.from_numpy(keep(keys(2, np.arange(7, 12)), 0, 64, p))
    theirs = x * kept / (1 - p) if p < 1 else x * 0
    if isinstance(part, nn.AlphaDropout) and p < 1:
        low = -1.7580993408473766
        a = (1 - p + p * (1 - p) * low**2) ** -0.5
        theirs = a * torch.where(kept, x, torch.tensor(low)) - a * p * low
    assert torch.allclose(ours, theirs, atol=1e-6)
    slope = torch.autograd.grad(ours.sum(), x, retain_graph=True)[0]
    assert torch.allclose(slope, torch.autograd.grad(theirs.sum(), x)[0], atol=1e-6)


def test_channels_are_dropped_whole() -> None:
    for kind, dims in ((nn.Dropout1d, 1), (nn.Dropout2d, 2), (nn.Dropout3d, 3), (nn.FeatureAlphaDropout, 2)):
        dropout = KeyedDropout(kind(0.5), seed=0)
        with dropout.installed():
            outputs = dropout.forward(Chunk(torch.ones(4, 9, *(3,) * dims)))
        kept = torch.from_numpy(keep(keys(0, np.arange(4)), 0, 9, 0.5))
        flat = outputs.flatten(2)
        assert bool((flat == flat[:, :, :1]).all())
        assert torch.equal(flat[:, :, 0] == flat.max(), kept)


def test_modules_are_as_before_also_after_an_error() -> None:
    model, _ = model_with(nn.Dropout(0.5))
    x, y = records(4)
    engine_of(model).learn(Chunk(x, y), 2)
    with pytest.raises(LearningError, match="shapes cannot be multiplied"):
        engine_of(model).learn(Chunk(x[:, :2], y), 2)
    assert not any("forward" in vars(part) for part in model.modules())
    torch.manual_seed(5)
    outputs = model.train()[3](torch.ones(64))
    torch.manual_seed(5)
    assert torch.equal(outputs, nn.functional.dropout(torch.ones(64), 0.3))


def test_a_frozen_module_drops_nothing_and_is_not_counted() -> None:
    model, spy = model_with(nn.Dropout(0.4))
    model.insert(1, nn.Dropout(0.9).eval())
    engine_of(model).learn(Chunk(*records(6)), 2)
    kept = torch.from_numpy(keep(keys(0, np.arange(6)), 0, 12, 0.4))
    assert torch.equal(torch.cat(spy.seen) != 0, kept)


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs[:, None].repeat(1, 5, 1)
        hidden = self.layer(steps if self.batch_first else steps.transpose(0, 1))
        hidden = hidden if self.batch_first else hidden.transpose(0, 1)
        outputs: Tensor = self.head(self.attention(hidden, hidden, hidden)[0].mean(1))
        return outputs


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("size", [1, 5])
def test_attention_trains_and_repeats(batch_first: bool, size: int) -> None:
    after = []
    for noise in (0, 3):
        torch.manual_seed(0)
        model = Attention(batch_first)
        torch.rand(noise)
        assert engine_of(model, 0.1).learn(Chunk(*records(10)), size).num_updates == 10 // size
        after.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_recomputed_on_the_way_back_has_the_mask_of_the_way_there(reentrant: bool) -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(200))
            self.dropout = nn.Dropout(0.5)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = checkpoint(lambda x: self.dropout(x * self.scale) * 1, inputs, use_reentrant=reentrant)
            return outputs

    model = Recomputed()
    dropout = KeyedDropout(model, seed=0)
    with dropout.installed():
        outputs = dropout.forward(Chunk(torch.ones(1, 200, requires_grad=True)))
        outputs.sum().backward()
    assert model.scale.grad is not None
    assert torch.equal(model.scale.grad, outputs[0].detach())


def test_a_compiled_model_trains() -> None:
    model = torch.compile(model_with(nn.Dropout(0.4))[0][2:], backend="eager")
    x, y = records(9)
    assert engine_of(model).learn(Chunk(torch.cat([x, x, x], 1), y), 3).num_updates == 3
