"""The proof that an engine equals the reference, or does not. Run: pytest tests/test_check.py"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import millstream
from command_line import refusal, run
from millstream import losses
from millstream.assembly import Recipe, build
from millstream.contracts import Chunk, Outcome, Questions
from millstream.engines import ReferenceEngine, UpdateRule, choice, parameter_of
from millstream.errors import DataError, ModelError, SettingError
from millstream.studies import check as study
from millstream.studies.lockstep import twin
from millstream.studies.reordering import ReorderedReference, SumsInHalves

DOCUMENT = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
NUM = 60


@pytest.fixture(autouse=True, scope="module")
def no_time_is_taken() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_TIMED_SECONDS", 0.0)
        yield


def records(num: int = NUM, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, width, generator=generator)
    return x, torch.randint(3, (num,), generator=generator)


def network(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), *more, nn.Linear(7, 3))


def trainer_of(model: nn.Module, optimizer: str = "momentum", **settings_: Any) -> millstream.Trainer:
    made = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "rprop": torch.optim.Rprop,
    }[optimizer](model.parameters())  # type: ignore[no-untyped-call]
    return millstream.Trainer(model, "cross_entropy", made, **settings_)


# ---------------------------------------------------------------- sums in another order

MAPS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (3, 70), (4, 70)),
    "linear with a bias": (lambda x, w: F.linear(x, w[:, :70], w[:, 70]), (3, 70), (4, 71)),
    "named bias": (lambda x, w: F.linear(x, weight=w[:, :70], bias=w[:, 70]), (3, 70), (4, 71)),
    "conv1d": (lambda x, w: F.conv1d(x, w, None, 2, 1), (2, 8, 20), (5, 8, 3)),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), (2, 6, 9, 9), (5, 6, 3, 3)),
    "grouped": (lambda x, w: F.conv2d(x, w, groups=2), (2, 6, 9, 9), (4, 3, 3, 3)),
    "transposed": (F.conv_transpose2d, (2, 6, 5, 5), (6, 3, 3, 3)),
    "matmul": (lambda x, w: x @ w, (3, 70), (70, 4)),
    "mm": (torch.mm, (3, 70), (70, 4)),
    "bag": (lambda x, w: F.embedding_bag((x * 9).long() % 40, w, mode="sum"), (3, 30), (40, 6)),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_halves_are_the_same_sums_but_for_rounding(kind: str, seed: int) -> None:
    function, shape, of_weights = MAPS[kind]
    generator = torch.Generator().manual_seed(5)
    for number, least, most in ((torch.float32, 1e-9, 1e-5), (torch.float64, 1e-18, 1e-14)):
        x = torch.randn(shape, generator=generator, dtype=number).abs().requires_grad_()
        w = torch.randn(of_weights, generator=generator, dtype=number).requires_grad_()
        plain = function(x, w)
        with SumsInHalves(seed):
            halves = function(x, w)
        assert least < float(((plain - halves).norm() / plain.norm()).detach()) < most
        slope = torch.randn(plain.shape, generator=generator).to(number)
        for one in (w,) if kind == "bag" else (x, w):
            wanted = torch.autograd.grad(plain, one, slope, retain_graph=True)[0]
            found = torch.autograd.grad(halves, one, slope, retain_graph=True)[0]
            assert float((wanted - found).norm() / wanted.norm()) < most


def test_the_gradient_of_the_inputs_is_summed_in_halves_too() -> None:
    x, w = torch.randn(1, 90).requires_grad_(), torch.randn(80, 90)
    with SumsInHalves(0):
        halves = F.linear(x, w)
    found = torch.autograd.grad(halves.sum(), x)[0]
    wanted = torch.autograd.grad(F.linear(x, w).sum(), x)[0]
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_reordered_run_makes_the_same_updates(dropout: float) -> None:
    x, y = records()
    models = [network(nn.Dropout(dropout)).double() for _ in range(2)]
    for model, make in zip(models, (ReferenceEngine, lambda rule: ReorderedReference(rule, 1)), strict=True):
        rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.Adam(model.parameters()))
        make(rule).learn(Chunk(x.double(), y), 1)
    apart = [float((a - b).norm()) for a, b in zip(*(m.state_dict().values() for m in models), strict=True)]
    assert 0 < max(apart) < 1e-10


# ---------------------------------------------------------------- what is equal


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_fused_engine_is_found_equal(optimizer: str) -> None:
    found = millstream.check(trainer_of(network(), optimizer), records())
    assert found.is_equal is True, str(found)
    assert found.num_updates == NUM and found.auto == "fused"
    assert set(found.records_per_second) == {"fused", "reference"}
    assert [one.numbers for one in found.differences if one.num_updates == found.num_updates] == ["float64", "float32"]
    assert "fused equals the reference" in found.verdict and found.verdict in str(found)


def test_a_schedule_clipping_and_class_weights_are_part_of_it() -> None:
    model = network(nn.Dropout(0.4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=200)
    trainer = millstream.Trainer(
        model,
        "cross_entropy",
        optimizer,
        scheduler=schedule,
        clip_norm=0.5,
        class_weights=torch.tensor([1.0, 2.0, 3.0]),
    )
    trainer.learn(records())  # it goes on from where it stands
    found = millstream.check(trainer, records(), engine=ReferenceEngine)
    assert found.is_equal, str(found)
    assert all(one.worst.difference == 0 for one in found.differences)
    assert found.differences[-1].optimizer.reordered >= 0


def test_a_table_with_features_and_a_scaled_target() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(50, 20, NUM) for name in "ab"}
    table = pa.table({**columns, "kind": rng.choice(["x", "y"], NUM), "load": columns["a"] * 3 + 100})
    schema = millstream.infer(table, target="load")
    for model in ("linear", "mlp:8"):
        trainer = build(Recipe(schema, model=model))
        before = trainer.state_dict()
        found = millstream.check(trainer, table, engine=ReferenceEngine)
        assert found.is_equal and found.num_records == NUM and found.loss == "huber:1"
        assert_same(trainer.state_dict(), before)


def test_what_compile_gives_can_be_checked() -> None:
    model = network()
    updater = millstream.compile(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.1))
    assert millstream.check(updater, records()).is_equal and updater.position == 0
    assert millstream.check(updater.rule, records()).is_equal


class Leaves(ReferenceEngine):
    """Says that it has left what begins after record ``first`` to the reference."""

    first = 0

    def chunk_size(self, update_size: int) -> int:
        return 20

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        outcome = super().learn(chunk, update_size, questions)
        return dataclasses.replace(outcome, by_reference="its labels are odd" if chunk.start >= self.first else "")


@pytest.mark.parametrize("number", [torch.float32, torch.float64])
@pytest.mark.parametrize("reason", ["update_size", "autocast", "label"])
def test_what_the_reference_has_learned_twice_is_not_called_equal(reason: str, number: torch.dtype) -> None:
    x, y = records()
    y[::10] = -100 if reason == "label" else 1
    with torch.autocast("cpu", enabled=reason == "autocast"):
        found = millstream.check(
            trainer_of(network().to(number)), (x.to(number), y), update_size=1 + (reason == "update_size")
        )
    assert found.is_equal is None and found.to_json()["equal"] is None
    assert not found.differences and set(found.records_per_second) == {"reference"}
    words = {"update_size": "more than one record", "autocast": "torch.autocast is on", "label": "-100"}
    assert words[reason] in found.left and found.left == found.to_json()["left_to_reference"]
    assert "nothing was compared" in found.verdict and found.left in str(found) and found.advice in found.verdict
    assert "equals" not in str(found)


def test_a_part_that_is_left_to_the_reference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaves, "first", 40)
    found = millstream.check(trainer_of(network()), records(), engine=Leaves)
    assert found.is_equal and found.left == ""
    assert found.notes == ["own reference left 10 of 60 records to the reference: its labels are odd"]


@pytest.mark.parametrize("update_size", [1, 7])
@pytest.mark.parametrize("engine", ["fused", ReferenceEngine])
def test_data_of_which_nothing_can_be_learned_prove_nothing(update_size: int, engine: Any) -> None:
    x, y = records()
    with pytest.raises(DataError, match="60 records, of which none") as caught:
        millstream.check(trainer_of(network()), (x * torch.nan, y), update_size=update_size, engine=engine)
    assert "NaN" in caught.value.do


def test_records_that_no_engine_can_learn_are_left_out_by_both() -> None:
    x, y = records()
    x[[3, 40]] = torch.nan
    assert millstream.check(trainer_of(network(), "adam"), (x, y)).is_equal


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, Tensor | np.ndarray):
        assert np.array_equal(np.asarray(left), np.asarray(right), equal_nan=True)
    else:
        assert left == right


@settings(max_examples=8, deadline=None)
@given(
    optimizer=st.sampled_from(["sgd", "momentum", "adam", "rprop"]),
    learned=st.sampled_from([0, 5]),
    mode=st.booleans(),
    update_size=st.integers(1, 4),
)
def test_the_trainer_stays_as_it_is(optimizer: str, learned: int, mode: bool, update_size: int) -> None:
    model = network(nn.Dropout(0.3)).train(mode)
    model[2].eval()
    trainer = trainer_of(model, optimizer)
    if learned:
        trainer.learn(records(learned))
    before = copy.deepcopy(trainer.state_dict())
    modes = [part.training for part in model.modules()]
    addresses = [p.data_ptr() for p in model.parameters()]
    gradients = copy.deepcopy([p.grad for p in model.parameters()])
    generator = torch.get_rng_state()
    millstream.check(trainer, records(20), update_size=update_size)
    assert_same(trainer.state_dict(), before)
    assert [part.training for part in model.modules()] == modes
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert_same([g is None for g in gradients], [p.grad is None for p in model.parameters()])
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_twin_goes_on_from_where_the_rule_stands() -> None:
    trainer = trainer_of(network(), "adam")
    trainer.learn(records())
    rule = trainer.learner.rule
    copied = twin(rule, torch.float64)
    assert [parameter_of(one.model).dtype for one in (copied, rule)] == [torch.float64, torch.float32]
    assert [id(p) for p in copied.optimizer.state] == [id(p) for p in copied.model.parameters()]
    for a, b in zip(copied.optimizer.state.values(), rule.optimizer.state.values(), strict=True):
        assert a["exp_avg"].dtype == torch.float64 and a["step"] == b["step"] == NUM
        assert torch.equal(a["exp_avg"], b["exp_avg"].double())


# ---------------------------------------------------------------- what is not


def test_where_rounding_runs_away_the_early_rows_are_the_proof() -> None:
    parts = [study.Part("a", size, size, 0.1) for size in (1e-16, 1e-3)]
    found = findings_of(
        [study.Difference("float64", 10**n, p, p, p, p.difference, p.reordered) for n, p in enumerate(parts)]
    )
    assert found.is_equal and "float64 differs by 1.0e-16 after 1 updates" in found.verdict
    assert "amplifies rounding" in str(found)


def findings_of(differences: list[study.Difference]) -> study.Findings:
    found = study.Findings(
        "a", 10, 1, 1, "SGD", "mse", "fused", "fused", {"fused": "", "reference": ""}, 10, differences
    )
    found.judge()
    return found


class Wrong:
    """The reference with a mistake, which gets the rule before and after each chunk."""

    name = "wrong"

    def __init__(self, rule: UpdateRule, mistake: Callable[[Any, Chunk], Chunk | None]) -> None:
        self.rule, self._mistake = rule, mistake
        self._engine = ReferenceEngine(rule)

    def chunk_size(self, update_size: int) -> int:
        return 4 * update_size

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        return self._engine.learn(self._mistake(self.rule, chunk) or chunk, update_size, questions)

    def predict(self, inputs: Any) -> Tensor:
        return self._engine.predict(inputs)


def _of_float32_only(rule: UpdateRule, _: Chunk) -> None:
    weight = next(rule.model.parameters()).data
    if weight.dtype == torch.float32:
        weight.mul_(1 + 1e-4)


def _forgets_momentum(rule: UpdateRule, chunk: Chunk) -> None:
    if chunk.start >= 20:
        for state in rule.optimizer.state.values():
            state["momentum_buffer"].zero_()


def _drops_state(rule: UpdateRule, _: Chunk) -> None:
    rule.optimizer.state.pop(next(iter(rule.optimizer.state), None), None)


def _leaves_a_bias(rule: UpdateRule, _: Chunk) -> None:
    list(rule.model.parameters())[-1].requires_grad_(False)


def _spoils(rule: UpdateRule, chunk: Chunk) -> None:
    if chunk.start >= 40:
        next(rule.model.parameters()).data[0, 0] = torch.nan


MISTAKES: dict[str, tuple[Callable[[Any, Chunk], Chunk | None], str]] = {
    "learns the wrong label": (lambda _, chunk: dataclasses.replace(chunk, targets=(chunk.targets + 1) % 3), "float64"),
    "weighs records": (
        lambda _, chunk: dataclasses.replace(chunk, weights=torch.full((len(chunk),), 1.001)),
        "float64",
    ),
    "forgets the momentum": (_forgets_momentum, "float64"),
    "drops the state": (_drops_state, "float64"),
    "leaves a bias": (_leaves_a_bias, "float64"),
    "is inexact in float32": (_of_float32_only, "float32"),
    "spoils a weight": (_spoils, "float64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_engine_with_a_mistake_is_found_out(mistake: str) -> None:
    change, where = MISTAKES[mistake]
    found = millstream.check(trainer_of(network()), records(), engine=lambda rule: Wrong(rule, change))
    assert found.is_equal is False, str(found)
    assert "does not equal the reference" in found.verdict and "NOT EQUAL" in str(found)
    assert next(one.numbers for one in found.differences if not one.is_within) == where
    assert found.to_json()["equal"] is False


@settings(max_examples=8, deadline=None)
@given(size=st.floats(-6.5, -1), sign=st.sampled_from([-1, 1]), optimizer=st.sampled_from(["sgd", "momentum", "adam"]))
def test_a_rate_that_is_off_by_a_millionth_is_found_out(size: float, sign: int, optimizer: str) -> None:
    def make(rule: UpdateRule) -> Wrong:
        for group in rule.optimizer.param_groups:
            group["lr"] *= 1 + sign * 10**size
        return Wrong(rule, lambda *_: None)

    found = millstream.check(trainer_of(network(), optimizer), records(20), engine=make)
    assert found.is_equal is False


class PredictsTooLate(Wrong):
    """Weights and state are right, but a record is scored after it was learned."""

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        outcome = self._engine.learn(chunk, update_size, questions)
        return dataclasses.replace(outcome, outputs=self.predict(chunk.inputs))


def test_predictions_after_the_update_are_found_out() -> None:
    found = millstream.check(
        trainer_of(network()), records(), engine=lambda rule: PredictsTooLate(rule, lambda *_: None)
    )
    assert found.is_equal is False
    one = found.differences[0]
    assert one.weights.difference == one.optimizer.difference == 0 < one.predictions.difference


def test_rounding_that_only_some_runs_show_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """More reordered runs are made before an engine is blamed for what float32 does by itself."""
    seeds: list[int] = []

    def noisy(seed: int) -> Callable[[UpdateRule], Any]:
        seeds.append(seed)
        return lambda rule: Wrong(rule, _of_float32_only if seed == 4 else lambda *_: None)

    monkeypatch.setattr(study, "_reordered", noisy)
    found = millstream.check(trainer_of(network()), records(), engine=lambda rule: Wrong(rule, _of_float32_only))
    assert found.is_equal and max(seeds) == 4


# ---------------------------------------------------------------- what is declined or refused


def test_an_engine_that_declines_says_why_and_what_to_change() -> None:
    found = millstream.check(trainer_of(network(), "rprop"), records())
    assert found.is_equal is None and found.auto == "reference" and not found.differences
    assert "Rprop" in found.declines["fused"] and "SGD" in found.advice
    assert found.advice in found.verdict and set(found.records_per_second) == {"reference"}


def test_an_engine_made_by_a_function_may_decline() -> None:
    def make(rule: UpdateRule) -> Any:
        raise ModelError(got="hooks of some kind", wanted="none", do="take them away")

    found = millstream.check(trainer_of(network()), records(), engine=make)
    assert found.declines["own"] == "hooks of some kind" and found.is_equal is None


class OfFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.float())
        return outputs


def test_a_model_that_runs_in_one_type_of_number_is_compared_in_that() -> None:
    found = millstream.check(trainer_of(OfFloat32()), records(), engine=ReferenceEngine)
    assert found.is_equal and {one.numbers for one in found.differences} == {"float32"}
    assert "not compared in float64" in str(found)


@pytest.mark.parametrize("seconds", [1e-6, 1000.0])
def test_time_bounds_the_number_of_updates(seconds: float) -> None:
    found = millstream.check(trainer_of(network()), records(), seconds=seconds)
    assert found.num_updates == (10 if seconds < 1 else NUM)
    assert millstream.check(trainer_of(network()), records(), num_records=4).num_updates == 4


class NotCopied(nn.Linear):
    def __deepcopy__(self, _: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("make", "source", "more", "error", "words"),
    [
        (lambda: nn.Linear(5, 3), records(), {}, SettingError, "Linear to be checked"),
        (lambda: trainer_of(network()), records(), {"update_size": 0}, SettingError, "update_size=0"),
        (lambda: trainer_of(network()), records(), {"num_records": 0}, SettingError, "num_records=0"),
        (lambda: trainer_of(network()), records(), {"engine": "reference"}, SettingError, "'reference' to be checked"),
        (lambda: trainer_of(network()), records(), {"engine": "none"}, SettingError, "'none' to be checked"),
        (lambda: trainer_of(network()), records()[0], {}, DataError, "without labels"),
        (lambda: trainer_of(network()), iter([]), {}, DataError, "without records"),
        (lambda: trainer_of(network()), records(NUM, 4), {}, ModelError, "fails on inputs"),
        (lambda: trainer_of(NotCopied(5, 3)), records(), {}, ModelError, "cannot be copied"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    make: Callable[[], Any], source: Any, more: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        millstream.check(make(), source, **more)


# ---------------------------------------------------------------- the command

MODULE = """
import torch
import millstream
torch.manual_seed(0)
source = (torch.randn(60, 5), torch.randint(3, (60,)))
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
trainer = millstream.Trainer(model, "cross_entropy", torch.optim.Adam(model.parameters(), lr=0.01))
declined = millstream.Trainer(model, "cross_entropy", torch.optim.Rprop(model.parameters()))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"run_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name


def test_the_command_checks_a_persons_own_trainer(module: str) -> None:
    answer = run("check", f"{module}:trainer")
    assert answer.code == 0, answer.err
    assert "fused equals the reference" in answer.out and "records/s" in answer.out
    assert not (Path.cwd() / "runs").exists()


def test_the_command_ends_with_1_where_the_engine_is_wrong(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (lambda rule: Wrong(rule, _leaves_a_bias), lambda _: "")
    monkeypatch.setitem(choice._FASTEST_FIRST, "fused", wrong)
    answer = run("check", f"{module}:trainer")
    assert answer.code == 1 and "does not equal the reference" in answer.out


def test_the_command_ends_with_0_where_the_engine_declines(module: str) -> None:
    answer = run("check", f"{module}:declined")
    assert answer.code == 0 and "does not take this model: optimizer Rprop" in answer.out


def test_the_command_ends_with_0_where_nothing_was_compared(module: str) -> None:
    answer = run("check", f"{module}:trainer", "--update-size", "4")
    assert answer.code == 0 and "nothing was compared, as fused left these records to the reference" in answer.out


def documented(heading: str) -> set[str]:
    found = re.search(rf"^### {heading}\n(.*?)(?=^#|\Z)", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert found, heading
    return set(re.findall(r"^\| `(\w+)`", found[1], flags=re.MULTILINE))


def test_the_command_gives_json_whose_keys_are_documented(module: str) -> None:
    found = run("check", f"{module}:trainer", "--records", "20", "--json").json
    assert found.keys() == documented("Keys of check")
    assert found["equal"] is True and (found["records"], found["updates"]) == (20, 20)
    for one in found["differences"]:
        assert one.keys() | one["weights"].keys() == documented("Keys of a difference")


def test_the_command_takes_data_by_name() -> None:
    found = run("check", "sea:records=300", "--model", "mlp:8", "--optimizer", "adam", "--records", "50", "--json").json
    assert found["equal"] is True and found["optimizer"] == "Adam" and found["records"] == 50


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["sea:records=300", "other.csv"], "one name of data"),
        (["sea:records=300", "--records", "0"], "--records 0"),
        (["sea:records=300", "--seconds", "no"], "--seconds no"),
    ],
)
def test_the_command_refuses_what_cannot_work(words: list[str], wanted: str) -> None:
    assert wanted in refusal(run("check", *words))


def test_settings_beside_an_own_trainer_are_refused(module: str) -> None:
    assert "--learning-rate" in refusal(run("check", f"{module}:trainer", "--lr", "1"))


def test_a_schedule_that_ends_is_an_error_with_a_remedy() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 30)
    trainer = millstream.Trainer(model, "cross_entropy", optimizer, scheduler=scheduler)
    with pytest.raises(millstream.SettingError, match="num_records"):
        millstream.check(trainer, (torch.randn(60, 3), torch.randint(2, (60,))))
