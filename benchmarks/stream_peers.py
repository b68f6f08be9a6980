"""Methods of other libraries, and plain ones, in one loop: predict each record, learn it once its label has come.

All follow the same schedule of questions and lessons, that of ``LabelDelay``. Packages that are not installed raise
ImportError, and the job that wanted them fails.

Shapes: N records, L lessons.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from millstream.assembly import Recipe, build
from millstream.contracts import Chunk, map_tensors
from millstream.delay import LabelDelay, parse_delay
from millstream.schema import Schema
from stream_data import CHUNK, MODEL, Answers, Stream


class Method(Protocol):
    def predict(self, number: int) -> int: ...
    def learn(self, number: int) -> None: ...


@dataclasses.dataclass(slots=True)
class Schedule:
    """When each record of a stream is asked and learned, as ``LabelDelay`` has it."""

    targets: npt.NDArray[np.int64]  # (N,)
    lessons: npt.NDArray[np.int64]  # (L,) record numbers in the order in which labels come
    before: npt.NDArray[np.int64]  # (N,) lessons before each question
    known: npt.NDArray[np.float64]  # (N,)


def schedule(records: Chunk, delay: str) -> Schedule:
    """``records`` with targets, and times if the delay is one of time.

    >>> made = schedule(Chunk(torch.zeros(5, 1), torch.tensor([0, 1, 1, 0, 1])), "2")
    >>> made.lessons.tolist(), made.before.tolist()
    ([0, 1], [0, 0, 0, 1, 2])
    """
    late = LabelDelay(parse_delay(delay), 1)
    num, taken = len(records), 0
    lessons: list[npt.NDArray[np.int64]] = []
    before: list[npt.NDArray[np.int64]] = []
    known: list[npt.NDArray[np.float64]] = []
    for first in range(0, num, CHUNK):
        place = np.arange(first, min(num, first + CHUNK))
        chunk = dataclasses.replace(records.select(place), inputs=torch.from_numpy(place), offsets=None)
        arrived = late.arrive(chunk)
        before.append(taken + arrived.questions.learned_before)
        known.append(arrived.known)
        if len(arrived.lessons):
            assert isinstance(arrived.lessons.inputs, Tensor)
            lessons.append(arrived.lessons.inputs.numpy())
            taken += len(lessons[-1])
    assert records.targets is not None
    order = np.concatenate([np.zeros(0, np.int64), *lessons])
    return Schedule(records.targets.numpy(), order, np.concatenate(before), np.concatenate(known))


def looped(name: str, method: Method, when: Schedule) -> Answers:
    """Predicts and learns one record at a time."""
    right = np.zeros(len(when.targets), bool)
    before, lessons, targets = when.before.tolist(), when.lessons.tolist(), when.targets.tolist()
    done = 0
    started = time.perf_counter()
    for number, due in enumerate(before):
        while done < due:
            method.learn(lessons[done])
            done += 1
        right[number] = method.predict(number) == targets[number]
    return Answers(name, right, time.perf_counter() - started, when.targets, when.known)


def prepared(stream: Stream, seed: int, limit: int, *, named: bool) -> tuple[Recipe, Chunk, list[dict[str, Any]]]:
    """A recipe, the records as the model takes them, and, if wanted, the same as named values."""
    schema, source = stream.open(seed)
    recipe = Recipe(schema, model=MODEL, seed=seed, optimizer="adam", learning_rate=1e-3)
    learner = build(recipe).learner
    chunks, rows, start = [], [], 0
    for chunk in source.read(None, size=CHUNK):
        if named:
            rows += chunk.inputs.to_pylist()
        chunk.start = start
        start += chunk.span
        chunks.append(learner.prepare(chunk, learn=True))
        if limit and start >= limit:
            break
    return recipe, _joined(chunks).select(slice(0, limit or None)), rows


def _joined(chunks: list[Chunk]) -> Chunk:
    def column(name: str) -> Any:
        values = [getattr(chunk, name) for chunk in chunks]
        return None if values[0] is None else np.concatenate(values)

    first = chunks[0].inputs
    inputs: Any
    if isinstance(first, dict):
        inputs = {name: torch.cat([chunk.inputs[name] for chunk in chunks]) for name in first}  # type: ignore[call-overload, index]
    else:
        inputs = torch.cat([chunk.inputs for chunk in chunks])  # type: ignore[arg-type, misc]
    targets = torch.cat([chunk.targets for chunk in chunks])  # type: ignore[misc]
    return Chunk(inputs, targets, times=column("times"), label_times=column("label_times"))


class DoG(torch.optim.Optimizer):
    """Distance over gradients (Ivgi, Hinder, Carmon 2023), one rate for all weights, without averaging of iterates."""

    def __init__(self, params: Iterable[nn.Parameter], first_step: float = 1e-6, eps: float = 1e-8) -> None:
        super().__init__(params, {})
        self._weights = [weight for group in self.param_groups for weight in group["params"]]
        self._first = [weight.detach().clone() for weight in self._weights]
        self._distance = first_step * (1 + math.sqrt(sum(float(w.square().sum()) for w in self._first)))
        self._squares = eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self._squares += sum(float(weight.grad.square().sum()) for weight in self._weights)
        rate = self._distance / math.sqrt(self._squares)
        moved = 0.0
        for weight, first in zip(self._weights, self._first, strict=True):
            weight.sub_(weight.grad, alpha=rate)
            moved += float((weight - first).square().sum())
        self._distance = max(self._distance, math.sqrt(moved))


def _dog(model: nn.Module) -> torch.optim.Optimizer:
    return DoG(model.parameters())


def _prodigy(model: nn.Module) -> torch.optim.Optimizer:
    import prodigyopt

    return prodigyopt.Prodigy(model.parameters())  # type: ignore[no-any-return]


def _schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    import schedulefree

    return schedulefree.AdamWScheduleFree(model.parameters())  # type: ignore[no-any-return]


TORCH: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "dog": _dog,
    "prodigy": _prodigy,
    "schedule-free": _schedule_free,
}


class TorchLoop:
    """Our model and features, with an optimizer of torch's kind at its defaults."""

    def __init__(self, make: Callable[[nn.Module], torch.optim.Optimizer], recipe: Recipe, records: Chunk) -> None:
        self._model = build(recipe).learner.rule.model
        self._optimizer = make(self._model)
        self._rows = [map_tensors(records.inputs, lambda v, n=n: v[n : n + 1]) for n in range(len(records))]  # type: ignore[misc]
        assert records.targets is not None
        self._targets = records.targets
        self._averages = hasattr(
            self._optimizer, "eval"
        )  # Schedule-Free answers with other weights than it learns with

    def predict(self, number: int) -> int:
        if self._averages:
            self._optimizer.eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            return int(self._model(self._rows[number]).argmax())

    def learn(self, number: int) -> None:
        if self._averages:
            self._optimizer.train()  # type: ignore[attr-defined]
        self._optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self._model(self._rows[number]), self._targets[number : number + 1])
        loss.backward()
        self._optimizer.step()


class NoChange:
    """The latest label known."""

    def __init__(self, when: Schedule) -> None:
        self._known = np.nan_to_num(when.known, nan=-1).astype(int).tolist()

    def predict(self, number: int) -> int:
        return int(self._known[number])

    def learn(self, number: int) -> None:
        pass


class Majority:
    """The most frequent label so far."""

    def __init__(self, when: Schedule) -> None:
        self._targets = when.targets.tolist()
        self._counts = [0] * (max(self._targets) + 1)

    def predict(self, number: int) -> int:
        return max(range(len(self._counts)), key=self._counts.__getitem__)

    def learn(self, number: int) -> None:
        self._counts[self._targets[number]] += 1


class River:
    """A model of River, given named values: numbers as they are, categories as text, instants as hour and weekday."""

    def __init__(self, model: Any, schema: Schema, rows: list[dict[str, Any]], when: Schedule) -> None:
        kinds = {field.name: field.kind for field in schema.fields}
        self._rows = [_named(row, kinds) for row in rows]
        self._model, self._targets = model, when.targets.tolist()

    def predict(self, number: int) -> int:
        found = self._model.predict_one(self._rows[number])
        return -1 if found is None else int(found)

    def learn(self, number: int) -> None:
        self._model.learn_one(self._rows[number], self._targets[number])


def _named(row: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = row.get(name)
        if value is None or kind == "ignore":
            continue
        if kind == "category":
            values[name] = str(value)
        elif kind == "time":
            values[f"{name}-hour"] = value.hour + value.minute / 60
            values[f"{name}-weekday"] = float(value.weekday())
        else:
            values[name] = float(value)
    return values


def _river(name: str, seed: int) -> Any:
    from river import compose, ensemble, forest, linear_model, multiclass, preprocessing, tree

    if name == "river-logistic":
        numbers = compose.SelectType(float) | preprocessing.StandardScaler()
        texts = compose.SelectType(str) | preprocessing.OneHotEncoder()
        return (numbers + texts) | multiclass.OneVsRestClassifier(linear_model.LogisticRegression())
    if name == "river-tree":
        return tree.HoeffdingAdaptiveTreeClassifier(seed=seed)
    if name == "river-forest":
        return forest.ARFClassifier(n_models=10, seed=seed)
    return ensemble.ADWINBoostingClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=seed)


RIVER = ("river-logistic", "river-tree", "river-forest", "river-boosting")
BASELINES = ("no-change", "majority")


def plain(name: str, stream: Stream, delay: str, seed: int, limit: int) -> Answers:
    """One of the methods that are not the trainer's."""
    recipe, records, rows = prepared(stream, seed, limit, named=name in RIVER)
    when = schedule(records, delay)
    method: Method
    if name in TORCH:
        method = TorchLoop(TORCH[name], recipe, records)
    elif name in RIVER:
        method = River(_river(name, seed), recipe.schema, rows, when)
    else:
        method = NoChange(when) if name == "no-change" else Majority(when)
    return looped(name, method, when)
