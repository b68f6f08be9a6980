"""Records as sparse rows: taken, joined, refused, learned by both engines. Run: pytest tests/test_sparse_rows.py"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import millstream
from millstream import Trainer, losses
from millstream.contracts import Chunk, Questions
from millstream.engines import FusedEngine, ReferenceEngine, UpdateRule
from millstream.errors import DataError
from millstream.rows import by_rows, csr, join_rows, rows_of
from millstream.sources import as_source
from test_fused import OPTIMIZERS, assert_equal, both_learn

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch says that CSR is new, and does not check it
WIDTH = 12
BOUNDS: list[dict[str, float]] = [{}, {"clip_norm": 0.3}, {"clip_value": 0.02}]


def sparse_rows(
    num: int, width: int = WIDTH, seed: int = 0, *, twice: bool = False, index: Any = torch.int64
) -> Tensor:
    """Rows with 0 to 5 numbers in no order; ``twice`` lets a row name a column more than once."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 6, num)
    columns = [draw.choice(width, count, replace=twice) for count in counts]
    edges = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])).to(index)
    places = torch.from_numpy(np.concatenate([*columns, np.empty(0, np.int64)]).astype(np.int64)).to(index)
    return csr(edges, places, torch.from_numpy(draw.normal(size=len(places))), width)


def labels(num: int, seed: int = 0) -> Tensor:
    return torch.randint(3, (num,), generator=torch.Generator().manual_seed(seed))


def engines(model: nn.Module, optimizer: str, **options: Any) -> tuple[FusedEngine, ReferenceEngine]:
    twins = [copy.deepcopy(model).double() for _ in range(2)]
    loss = losses.NamedLoss("cross_entropy")
    rules = [UpdateRule(twin, loss, OPTIMIZERS[optimizer](twin.parameters()), **options) for twin in twins]
    return FusedEngine(rules[0]), ReferenceEngine(rules[1])


def assert_agree(fused: FusedEngine, reference: ReferenceEngine, *chunks: Chunk) -> None:
    both_learn(fused, reference, *chunks)
    assert fused._machines and not any(isinstance(machine, str) for machine in fused._machines.values())
    assert_equal(fused, reference)


def network(kind: str = "deep") -> nn.Module:
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(WIDTH, 3, bias=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 9), seed=st.integers(0, 99), index=st.sampled_from([torch.int32, torch.int64]), data=st.data()
)
def test_rows_are_taken_and_joined_as_dense_ones_are(num: int, seed: int, index: Any, data: Any) -> None:
    rows = sparse_rows(num, seed=seed, index=index)
    dense = rows.to_dense()
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, num - 1), max_size=6)), dtype=torch.int64)
    ends = st.one_of(st.none(), st.integers(-num - 2, num + 2))
    part = slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from([None, 1, 2, 3])))
    assert torch.equal(rows_of(rows, numbers).to_dense(), dense[numbers])
    assert torch.equal(rows_of(rows, part).to_dense(), dense[part])
    joined = join_rows([rows, rows_of(rows, part), rows_of(rows, numbers)])
    assert torch.equal(joined.to_dense(), torch.cat([dense, dense[part], dense[numbers]]))
    picked = Chunk({"x": rows}).select(numbers.numpy())
    assert torch.equal(picked.inputs["x"].to_dense(), dense[numbers])  # type: ignore[index, union-attr, call-overload]


@settings(max_examples=40, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=st.sampled_from(["linear", "deep"]),
    bounds=st.sampled_from(BOUNDS),
    twice=st.booleans(),
    index=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 99),
)
def test_updates_are_those_of_the_reference(
    optimizer: str, kind: str, bounds: dict[str, float], twice: bool, index: Any, seed: int
) -> None:
    x, y = sparse_rows(24, seed=seed, twice=twice, index=index), labels(24, seed)
    chunks = [Chunk(rows_of(x, slice(a, b)), y[a:b], start=a) for a, b in ((0, 1), (1, 14), (14, 24))]
    assert_agree(*engines(network(kind), optimizer, **bounds), *chunks)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_only_the_columns_that_occur_are_touched(optimizer: str) -> None:
    """Weights of other columns that are not finite would spoil everything that reads them."""
    fused, _ = engines(network("linear"), optimizer)
    x = sparse_rows(30)
    absent = np.setdiff1d(np.arange(WIDTH), [3, 7])
    x = csr(x.crow_indices(), torch.where(x.col_indices() % 2 == 0, 3, 7), x.values(), WIDTH)
    weight = fused.rule.model.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight[:, absent] = torch.nan
    before = weight.detach().clone()
    outcome = fused.learn(Chunk(x, labels(30)), 1)
    assert outcome.num_updates == 30
    assert torch.isfinite(outcome.outputs).all() and torch.isfinite(weight[:, [3, 7]]).all()
    assert (weight[:, [3, 7]] != before[:, [3, 7]]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_a_row_that_is_not_finite_is_left_out_in_both(value: float) -> None:
    x = sparse_rows(30, seed=2)
    x.values()[[0, 20, 33]] = value
    fused, reference = engines(network(), "sgd")
    assert_agree(fused, reference, Chunk(x, labels(30)))


class Beside(nn.Module):
    """Two linears of the same sparse rows, one of them used twice with others, beside dense values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.dense = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        first = self.one(inputs["a"]) + torch.tanh(self.two(inputs["a"])) + self.two(inputs["b"])
        return first + self.dense(inputs["dense"])


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad"])
def test_several_sparse_inputs_beside_dense_ones(optimizer: str) -> None:
    dense = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = {"a": sparse_rows(40), "b": sparse_rows(40, seed=1), "dense": dense}
    assert_agree(*engines(Beside(), optimizer, clip_norm=0.5), Chunk(inputs, labels(40)))


def test_late_labels_are_answered_as_the_reference_does() -> None:
    fused, reference = engines(network(), "sgd")
    x, y = sparse_rows(40), labels(40)
    before = np.sort(np.random.default_rng(0).integers(0, 21, 20))
    questions = Questions(Chunk(rows_of(x, slice(20, 40)), y[20:]), before)
    lessons = Chunk(rows_of(x, slice(0, 20)), y[:20])
    ours, theirs = (engine.learn(lessons, 1, questions) for engine in (fused, reference))
    assert torch.allclose(ours.outputs, theirs.outputs) and torch.allclose(ours.losses, theirs.losses)
    assert_equal(fused, reference)


def test_a_loop_of_ones_own_takes_rows_at_once_or_one_by_one() -> None:
    x, y = sparse_rows(20, twice=False), labels(20)
    made = []
    for _ in range(3):
        model = network().double()
        made.append(millstream.compile(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1)))
    whole, parts, ones = made
    assert whole.engine == "fused"
    whole.learn(x, y)
    for first in range(0, 20, 5):
        parts.learn(rows_of(x, slice(first, first + 5)).to_sparse_coo(), y[first : first + 5])
    for place in range(20):
        ones.learn(x[place], int(y[place]))  # torch gives a COO vector
    expected = whole.predict(x)
    assert torch.allclose(parts.predict(x), expected) and torch.allclose(ones.predict(x), expected)
    with pytest.raises(DataError, match="sparse rows"):
        ones.learn(x, 1)


@pytest.mark.parametrize("column", [-1, WIDTH, 10**9])
def test_columns_that_there_are_not_are_refused(column: int) -> None:
    model = network().double()
    updater = millstream.compile(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1))
    bad = csr(torch.tensor([0, 1]), torch.tensor([column]), torch.ones(1, dtype=torch.float64), WIDTH)
    with pytest.raises(DataError, match=str(column)):
        updater.learn(bad, torch.tensor([0]))
    with pytest.raises(DataError, match=str(column)):
        as_source(bad, torch.tensor([0]))
    with pytest.raises(DataError, match="sparse_csc"):
        by_rows(sparse_rows(3).to_sparse_csc())


@pytest.mark.parametrize("delay", [None, 7])
@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_a_run_that_stops_and_goes_on_ends_with_the_same_bits(tmp_path: Path, engine: str, delay: int | None) -> None:
    num = 5000 if engine == "fused" else 600  # more than a chunk
    x, y = sparse_rows(num).float(), labels(num)

    def trainer() -> Trainer:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(model, optimizer=optimizer, engine=engine)

    whole = trainer()
    whole.learn((x, y), label_delay=delay)
    stopped = trainer()
    stopped.open(tmp_path)
    next(iter(stopped.steps((x, y), label_delay=delay)))
    stopped.commit()
    stopped.close()
    gone_on = trainer()
    gone_on.open(tmp_path, resume=True)
    assert 0 < gone_on.learn((x, y), label_delay=delay, resume=True).records == num
    gone_on.close()
    for one, other in zip(whole.learner.rule.model.parameters(), gone_on.learner.rule.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_mini_batches_are_shuffled_and_learned_by_the_reference() -> None:
    x, y = sparse_rows(60).float(), labels(60)
    made = []
    for inputs in (x, x.to_dense()):
        trainer = Trainer(network())
        trainer.fit((inputs, y), epochs=2)
        made.append(trainer.predict((inputs,)))
    assert torch.allclose(made[0], made[1], atol=1e-5)
