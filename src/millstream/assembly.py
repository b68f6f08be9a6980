"""From names to a trainer: data, features, model, loss and optimizer as the command line and saved runs speak of them.

A ``Recipe`` is JSON. It is saved with every checkpoint, so ``load`` can build the trainer again without the data.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import nn

from millstream import checkpoint, datasets, features, losses, models, sources
from millstream.contracts import Source
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.schema import Schema
from millstream.trainer import Trainer

__all__ = ["OPTIMIZERS", "Data", "Recipe", "build", "load", "open_data"]

SAMPLE_RECORDS = 10_000

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """All that is needed to build a trainer for data of a known schema."""

    schema: Schema
    model: str = "mlp:256"
    loss: str = ""  # "": cross_entropy for classes, mse for numbers
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    class_weights: tuple[float, ...] | None = None
    engine: str = "auto"
    device: str = "cpu"
    seed: int = 0
    window: int = 1000
    max_skips: int = 100
    on_error: Literal["stop", "quarantine"] = "stop"
    nonfinite: Literal["error", "skip", "impute"] = "error"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recipe:
        weights = value.get("class_weights")
        return cls(
            **{
                **value,
                "schema": Schema.from_json(value["schema"]),
                "class_weights": None if weights is None else tuple(weights),
            }
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """What a person named as data: records to learn, records to test on, and what their columns mean."""

    name: str
    train: Source
    test: Source | None
    schema: Schema
    ordered: bool  # in the order of time: nothing is shuffled before it is compared


def build(recipe: Recipe, *, run: str | Path | None = None, **settings: Any) -> Trainer:
    """The trainer of a recipe. Its initial weights are a function of the seed; torch's generator is left as it was.

    >>> from millstream.schema import Field, Schema, Target
    >>> schema = Schema((Field("a", "number"), Field("b", "number")), Target("y", "class", classes=("no", "yes")))
    >>> build(Recipe(schema, model="mlp:4")).learner.rule.model[0]
    Linear(in_features=2, out_features=4, bias=True)
    """
    target = recipe.schema.target
    if target is None:
        raise DataError(got="data without a label", wanted="the column to predict", do="name it with --target COLUMN")
    parts = features.Features(recipe.schema, on_error=recipe.on_error, nonfinite=recipe.nonfinite)
    loss = losses.resolve(
        recipe.loss or ("cross_entropy" if target.kind == "class" else "mse"),
        None if recipe.class_weights is None else torch.tensor(recipe.class_weights),
    )
    _check_loss(loss, recipe.schema)
    num_outputs = 1 if loss.task == "binary" else parts.num_outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = models.build(recipe.model, models.InputShape(parts.input_shape, parts.num_ids), num_outputs)
    return Trainer(
        model.to(recipe.device),
        loss,
        _optimizer(recipe, model),
        features=parts,
        clip_norm=recipe.clip_norm,
        clip_value=recipe.clip_value,
        engine=recipe.engine,
        seed=recipe.seed,
        window=recipe.window,
        max_skips=recipe.max_skips,
        run=run,
        spec=recipe.to_json(),
        **settings,
    )


def load(run: str | Path, trainer: Trainer | None = None) -> Trainer:
    """The trainer of a run, as its newest whole checkpoint has it, ready to go on.

    A run of a Python object needs that object: ``trainer``, built as it was then, takes the state in.
    """
    if trainer is None:
        folder = Path(run) / "checkpoints"
        state, _, _ = checkpoint.newest(folder)
        if not state.get("spec"):
            raise CheckpointError(
                got=f"the run of a Python object in {run}",
                wanted="that object, built as it was",
                do="call millstream.load(run, trainer)",
            )
        trainer = build(Recipe.from_json(state["spec"]))
    for warning in trainer.open(run, resume=True):
        warnings.warn(warning, stacklevel=2)
    return trainer


def open_data(
    name: str,
    *,
    target: str | None = None,
    columns: Sequence[str] = (),
    time: str | None = None,
    label_time: str | None = None,
    test: float | str | None = None,
    ordered: bool | None = None,
    fetch: bool = False,
    on_error: Literal["stop", "quarantine"] = "stop",
    seed: int = 0,
) -> Data:
    """The data that a name stands for: a public data set, files, a glob, or ``-`` for standard input.

    ``columns`` are corrections of the guessed schema (``zip=category``). ``test`` is a fraction of the records to hold
    out, or the name of a file; without it only a data set with a test split of its own has one. ``ordered`` says if
    the order of the data is that of time; a public data set knows.
    """
    if name.partition(":")[0] in datasets.names() and not Path(name).exists():
        known = datasets.load(name, fetch=fetch)
        data = Data(known.name, known.train, known.test, known.schema, known.ordered)
    else:
        source, schema = _opened(name, target, on_error)
        data = Data(name, source, None, schema, ordered=False)
    schema = data.schema
    if target is not None and (schema.target is None or schema.target.name != target):
        raise DataError(
            got=f"target {target!r} for {name}",
            wanted=repr(schema.target),
            do="leave --target out for a known data set",
        )
    for text in columns:
        schema = features.parse_override(text, schema)
    if time is not None or label_time is not None:
        schema = schema.replace(time=time or schema.time, label_time=label_time or schema.label_time)
    data = dataclasses.replace(data, schema=schema, ordered=data.ordered if ordered is None else ordered)
    if isinstance(test, str):
        return dataclasses.replace(data, test=sources.FileSource(test, on_error=on_error))
    if test and data.test is None:
        train, held_out = sources.hold_out(data.train, test, by="time" if data.ordered else "hash", seed=seed)
        return dataclasses.replace(data, train=train, test=held_out)
    return data


def _opened(name: str, target: str | None, on_error: Literal["stop", "quarantine"]) -> tuple[Source, Schema]:
    source: Source = sources.as_source(name) if name == "-" else sources.FileSource(name, on_error=on_error)
    first = next(source.read(size=SAMPLE_RECORDS), None)
    if first is None or not isinstance(first.inputs, pa.RecordBatch) or not len(first):
        raise DataError(got=f"no records in {name}", wanted="at least one", do="check that this is the right file")
    schema = features.infer(first.inputs, target=target)
    return source, schema


def _check_loss(loss: Any, schema: Schema) -> None:
    target = schema.target
    assert target is not None
    wanted = ("classes", "binary", "other") if target.kind == "class" else ("number", "other")
    if loss.task not in wanted or (loss.task == "binary" and target.num_outputs != 2):
        kind = f"{target.num_outputs} classes" if target.kind == "class" else "numbers"
        raise SettingError(
            got=f"loss {loss.name!r} for target {target.name!r} of {kind}",
            wanted="a loss for them",
            do="leave --loss out, or declare the target otherwise",
        )


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer not in OPTIMIZERS:
        raise SettingError(
            got=f"optimizer {recipe.optimizer!r}", wanted=f"one of {', '.join(OPTIMIZERS)}", do="pick one of these"
        )
    if not recipe.learning_rate > 0:
        raise SettingError(got=f"learning rate {recipe.learning_rate}", wanted="a number above 0", do="try 0.01")
    kind, settings = OPTIMIZERS[recipe.optimizer]
    return kind(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **settings)  # type: ignore[call-arg]
