"""The fused engine on many kinds of models equals the reference. Run: pytest tests/test_fused_models.py"""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk, Inputs
from millstream.engines import FusedEngine, ReferenceEngine, UpdateRule
from millstream.errors import DataError
from test_fused import OPTIMIZERS, assert_equal, both_learn

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own Adagrad
CROSS_ENTROPY = losses.NamedLoss("cross_entropy")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.one(torch.relu(self.one(x)))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6) * 0.3), nn.Parameter(torch.zeros(5))
        self.head = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(F.linear(x, self.weight) + self.bias, 0.2)
        return self.head(torch.cat([hidden, x.view(x.size(0), -1)], dim=1))


class Wide(nn.Module):
    """Wide and deep: bags, single embeddings and dense values."""

    def __init__(self, *, sparse: bool, mode: str, padding: int | None = 0) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 4, mode=mode, padding_idx=padding, sparse=sparse)
        self.rows = nn.Embedding(9, 3, padding_idx=2, sparse=sparse)
        self.one = nn.Embedding(7, 2, sparse=sparse)
        self.deep = nn.Sequential(nn.Linear(4 + 6 + 2 + 5, 8), nn.ReLU(), nn.Linear(8, 3))
        self.wide = nn.EmbeddingBag(20, 3, mode="sum", sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        ids = inputs["ids"]
        parts = [self.bag(ids[:, :6]), self.rows(ids[:, 6:8]).flatten(1), self.one(ids[:, 8]), inputs["dense"]]
        return self.deep(torch.cat(parts, dim=1)) + self.wide(ids[:, :6]) + self.bias


class Weighted(nn.Module):
    """Sparse rows with values into a linear layer."""

    def __init__(self, *, sparse: bool = True) -> None:
        super().__init__()
        self.table, self.bias = nn.EmbeddingBag(50, 3, mode="sum", sparse=sparse), nn.Parameter(torch.zeros(3))

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        ids, values = inputs
        return self.table(ids, per_sample_weights=values) + self.bias


class LeNet(nn.Module):
    def __init__(self, *, average: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 6, 3, stride=2, bias=False)
        self.pool = nn.AvgPool2d(2) if average else nn.MaxPool2d(2)
        self.whole = nn.Conv2d(6, 8, 2)  # sees the whole plane
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.one(x)))
        return self.last(torch.flatten(F.relu(self.whole(F.relu(self.two(x)))), 1))


SIGNALS: dict[str, Any] = {
    "1-d": lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same"), nn.SiLU(), nn.MaxPool1d(2), nn.Conv1d(4, 4, 3, groups=2, dilation=2),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3),
    ),
    "normed": lambda: nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.LayerNorm([3, 16]), nn.GELU(), nn.AvgPool1d(4, padding=1, count_include_pad=False),
        nn.Flatten(), nn.Linear(12, 3),
    ),
}  # fmt: skip

MODELS: dict[str, Any] = {
    "residual": lambda: nn.Sequential(nn.Linear(6, 4), Residual(4), Residual(4), nn.RMSNorm(4), nn.Linear(4, 3)),
    "norms": lambda: nn.Sequential(
        nn.LayerNorm(6, bias=False), nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Tanh(),
        nn.RMSNorm(8), nn.Linear(8, 3),
    ),
    "dropout": lambda: nn.Sequential(
        nn.Dropout(0.2), nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 9), nn.Dropout(0.0), nn.Linear(9, 3),
        nn.Dropout(1.0), nn.Linear(3, 3),
    ),
    "tied": Tied,
    "functional": Functional,
    "activations first": lambda: nn.Sequential(nn.ReLU(), nn.Identity(), nn.Linear(6, 3), nn.ReLU(inplace=True)),
}  # fmt: skip


def pair(model: nn.Module, optimizer: str, **options: Any) -> tuple[FusedEngine, ReferenceEngine]:
    twins = [copy.deepcopy(model).double() for _ in range(2)]
    rules = [UpdateRule(twin, CROSS_ENTROPY, OPTIMIZERS[optimizer](twin.parameters()), **options) for twin in twins]
    return FusedEngine(rules[0]), ReferenceEngine(rules[1])


def records(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num, 6, generator=generator, dtype=torch.float64),
        torch.randint(3, (num,), generator=generator),
    )


def assert_ran_fused(engine: FusedEngine) -> None:
    assert engine._machines and not any(isinstance(m, str) for m in engine._machines.values()), engine._machines


def assert_agree(fused: FusedEngine, reference: ReferenceEngine, inputs: Inputs, y: Tensor) -> None:
    half = len(y) // 2
    first, second = _cut(inputs, 0, half), _cut(inputs, half, len(y))
    both_learn(fused, reference, Chunk(first, y[:half]), Chunk(second, y[half:], start=half))
    assert_ran_fused(fused)
    assert_equal(fused, reference)


def _cut(inputs: Any, first: int, last: int) -> Any:
    if isinstance(inputs, dict):
        return {name: value[first:last] for name, value in inputs.items()}
    return tuple(v[first:last] for v in inputs) if isinstance(inputs, tuple) else inputs[first:last]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adagrad", "rmsprop"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_torch_fx_traces_equals_the_reference(model: str, optimizer: str) -> None:
    torch.manual_seed(1)
    assert_agree(*pair(MODELS[model](), optimizer), *records(60))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "rmsprop"])
@pytest.mark.parametrize("average", [False, True])
def test_a_small_network_for_images_equals_the_reference(average: bool, optimizer: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(40, 1, 12, 12, dtype=torch.float64)
    assert_agree(*pair(LeNet(average=average), optimizer), x, records(40)[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("model", SIGNALS)
def test_a_small_network_for_signals_equals_the_reference(model: str, optimizer: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(40, 2, 18, dtype=torch.float64)
    assert_agree(*pair(SIGNALS[model](), optimizer, clip_norm=1.0), x, records(40)[1])


@pytest.mark.parametrize("scoring", ["eval", "train"])
def test_dropout_draws_the_same_masks_and_is_scored_as_said(scoring: str) -> None:
    torch.manual_seed(2)
    fused, reference = pair(MODELS["dropout"](), "sgd", scoring=scoring, seed=5)
    assert_agree(fused, reference, *records(60))


def test_a_dropout_that_is_kept_in_eval_mode_stays_so() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 9), nn.Dropout(0.5), nn.Linear(9, 3))
    model[1].eval()
    assert_agree(*pair(model, "sgd"), *records(60))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(
    ("optimizer", "sparse"),
    [*itertools.product(["sgd", "adagrad"], [True, False]), ("adam", False), ("momentum", False)],
)
def test_embeddings_beside_dense_values_equal_the_reference(optimizer: str, sparse: bool, mode: str) -> None:
    torch.manual_seed(3)
    _, y = records(60)
    ids = torch.cat([torch.randint(20, (60, 6)), torch.randint(7, (60, 3))], 1)
    ids[:, 1] = ids[:, 0]  # a row that occurs twice
    ids[5, :6] = 0  # an empty bag
    inputs = {"dense": torch.randn(60, 5, dtype=torch.float64), "ids": ids}
    assert_agree(*pair(Wide(sparse=sparse, mode=mode), optimizer), inputs, y)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("bounds", [{}, {"clip_norm": 0.3}, {"clip_value": 0.02}])
def test_sparse_rows_with_values_equal_the_reference(optimizer: str, bounds: dict[str, float]) -> None:
    torch.manual_seed(4)
    _, y = records(60)
    ids = torch.randint(50, (60, 7))
    ids[:, 3] = ids[:, 0]
    assert_agree(*pair(Weighted(), optimizer, **bounds), (ids, torch.randn(60, 7, dtype=torch.float64)), y)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("bounds", [{"clip_norm": 0.1}, {"clip_value": 0.01}, {"clip_norm": 0.2, "clip_value": 0.05}])
@pytest.mark.parametrize("model", ["residual", "tied", "dropout"])
def test_clipping_equals_the_reference(model: str, optimizer: str, bounds: dict[str, float]) -> None:
    torch.manual_seed(5)
    assert_agree(*pair(MODELS[model](), optimizer, **bounds), *records(40))


SCHEDULES: dict[str, Any] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=200),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 5), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[9],
    ),
}


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [6, 130])
def test_a_schedule_that_steps_after_every_record_equals_the_reference(
    schedule: str, optimizer: str, width: int
) -> None:
    torch.manual_seed(6)
    made: list[Any] = []
    model = nn.Sequential(nn.Linear(width, 33), nn.Tanh(), nn.Linear(33, 3)).double()
    for kind in (FusedEngine, ReferenceEngine):
        twin = copy.deepcopy(model)
        steps = OPTIMIZERS[optimizer](twin.parameters())
        made.append(kind(UpdateRule(twin, CROSS_ENTROPY, steps, scheduler=SCHEDULES[schedule](steps))))
    x, y = torch.randn(80, width, dtype=torch.float64), records(80)[1]
    x[[3, 50], 1] = float("nan")  # left out: the schedule does not step either
    assert_agree(made[0], made[1], x, y)
    rates = [engine.rule.optimizer.param_groups[0]["lr"] for engine in made]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["linear", "relu", "gelu", "norm", "rms", "drop", "skip"]), min_size=1, max_size=6),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    width=st.integers(2, 9),
    clip=st.sampled_from([None, 0.2]),
    seed=st.integers(0, 99),
)
def test_any_row_of_layers_equals_the_reference(
    parts: list[str], optimizer: str, width: int, clip: float | None, seed: int
) -> None:
    torch.manual_seed(seed)
    kinds: dict[str, Any] = {
        "linear": lambda: nn.Linear(width, width, bias=bool(seed % 2)),
        "relu": lambda: nn.LeakyReLU(0.3),
        "gelu": nn.GELU,
        "norm": lambda: nn.LayerNorm(width),
        "rms": lambda: nn.RMSNorm(width),
        "drop": lambda: nn.Dropout(0.3),
        "skip": lambda: Residual(width),
    }
    layers = [nn.Linear(6, width), *(kinds[part]() for part in parts), nn.Linear(width, 3)]
    if seed % 3 == 0:
        layers[0].weight.requires_grad_(False)
    both = pair(nn.Sequential(*layers), optimizer, clip_norm=clip, seed=seed)
    for engine in both:  # a norm makes some gradients 0 but for rounding, which Adam would divide by itself
        for group in engine.rule.optimizer.param_groups:
            group.update({"eps": 1e-4} if "eps" in group else {})
    assert_agree(*both, *records(24, seed))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    cuts=st.lists(st.integers(1, 1999), max_size=3, unique=True),
    seed=st.integers(0, 99),
)
def test_after_two_thousand_updates_the_engines_agree(
    widths: list[int], optimizer: str, cuts: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(6, widths[0]), nn.Tanh()]
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Softplus()]
    fused, reference = pair(nn.Sequential(*layers, nn.Linear(widths[-1], 3)), optimizer, clip_norm=5.0, seed=seed)
    x, y = records(2000, seed)
    for first, last in itertools.pairwise(sorted({0, *cuts, 2000})):
        ours = fused.learn(Chunk(x[first:last], y[first:last], start=first), 1)
        theirs = reference.learn(Chunk(x[first:last], y[first:last], start=first), 1)
        assert torch.allclose(ours.outputs, theirs.outputs, rtol=1e-9, atol=1e-9)
    assert_ran_fused(fused)
    assert_equal(fused, reference)


def test_what_changes_between_two_calls_is_seen() -> None:
    torch.manual_seed(7)
    fused, reference = pair(MODELS["residual"](), "momentum")
    x, y = records(60)
    for engine in (fused, reference):
        engine.learn(Chunk(x[:20], y[:20]), 1)
        engine.rule.optimizer.param_groups[0]["lr"] = 0.5
        engine.rule.model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
        engine.rule.model[4].weight.data = engine.rule.model[4].weight.data.clone()  # type: ignore[index, union-attr]
        engine.learn(Chunk(x[20:40], y[20:40], start=20), 1)
        engine.rule.optimizer.load_state_dict(copy.deepcopy(engine.rule.optimizer.state_dict()))
        engine.learn(Chunk(x[40:], y[40:], start=40), 1)
    assert_ran_fused(fused)
    assert_equal(fused, reference)


def test_ids_out_of_range_are_refused_and_change_nothing() -> None:
    fused, _ = pair(Wide(sparse=True, mode="sum"), "sgd")
    ids = torch.zeros(4, 9, dtype=torch.int64)
    inputs = {"dense": torch.zeros(4, 5, dtype=torch.float64), "ids": ids}
    fused.learn(Chunk(inputs, torch.zeros(4, dtype=torch.int64)), 1)
    before = copy.deepcopy(fused.rule.model.state_dict())
    for wrong in (-1, 7, 10**12):
        bad = ids.clone()
        bad[0, 8] = wrong
        with pytest.raises(DataError, match=f"id {wrong} at position 0 for a table of 7 rows"):
            fused.learn(Chunk({**inputs, "ids": bad}, torch.zeros(4, dtype=torch.int64)), 1)
    assert all(torch.equal(value, before[name]) for name, value in fused.rule.model.state_dict().items())


@pytest.mark.parametrize("of", ["module", "parameter"])
def test_hooks_that_come_later_are_called(of: str) -> None:
    fused, reference = pair(MODELS["tied"](), "sgd")
    x, y = records(20)
    both_learn(fused, reference, Chunk(x, y))
    for engine in (fused, reference):
        layer = engine.rule.model.last
        if of == "module":
            layer.register_forward_hook(lambda _, inputs, outputs: outputs * 2)  # type: ignore[operator, union-attr]
        else:
            layer.weight.register_hook(lambda gradient: gradient * 0)  # type: ignore[operator, union-attr]
    both_learn(fused, reference, Chunk(x, y, start=20))
    assert_equal(fused, reference)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_a_copy_of_an_engine_has_memory_of_its_own(twin_of: Any) -> None:
    fused, reference = pair(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), "momentum")
    x, y = records(40)
    both_learn(fused, reference, Chunk(x[:20], y[:20]))
    twin, kept = twin_of(fused), copy.deepcopy(fused.rule.model.state_dict())
    both_learn(twin, reference, Chunk(x[20:], y[20:], start=20))
    assert_equal(twin, reference)
    assert all(torch.equal(value, kept[name]) for name, value in fused.rule.model.state_dict().items())
