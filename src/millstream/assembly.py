"""From names to a trainer: data, features, model, loss and optimizer as the command line and saved runs speak of them.

A ``Recipe`` is JSON. It is saved with every checkpoint, so ``load`` can build the trainer again without the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import glob
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import nn

from millstream import checkpoint, datasets, features, losses, models, sources
from millstream.contracts import Source
from millstream.errors import CheckpointError, DataError, ModelError, SettingError
from millstream.schema import Schema
from millstream.trainer import Trainer

__all__ = ["OPTIMIZERS", "Data", "Recipe", "build", "check_name", "is_known", "load", "open_data", "snapshot"]

SAMPLE_RECORDS = 10_000
_PATIENCE_SECONDS = 1.0  # for the records of a pipe that a schema is guessed from, after the first
_TYPES_OF_KINDS = {"number": pa.float64(), "category": pa.string(), "text": pa.string(), "class": pa.string()}

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
        unknown = sorted(value.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise CheckpointError(
                got=f"a recipe with {', '.join(unknown)}",
                wanted="settings that this Millstream knows",
                do="read it with the version that wrote it",
            )
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
    device = _device(recipe.device)
    loss = losses.resolve(
        recipe.loss or ("cross_entropy" if target.kind == "class" else "mse"), _class_weights(recipe, device)
    )
    _check_loss(loss, recipe.schema)
    num_outputs = 1 if loss.task == "binary" else parts.num_outputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        shape = models.InputShape(parts.input_shape, parts.num_ids)
        model = models.build(recipe.model, shape, num_outputs, sparse=_takes_sparse_gradients(recipe))
    _check_parameters(recipe.model, model)
    return Trainer(
        model.to(device),
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


def load(run: str | Path, trainer: Trainer | None = None, **settings: Any) -> Trainer:
    """The trainer of a run, as its newest whole checkpoint has it, ready to go on in that folder.

    A run of a Python object needs that object: ``trainer``, built as it was then, takes the state in. ``settings`` are
    those of ``build``.
    """
    if trainer is None:
        trainer = build(_recipe(checkpoint.newest(Path(run) / "checkpoints")[0], run), **settings)
    for warning in trainer.open(run, resume=True):
        warnings.warn(warning, stacklevel=2)
    return trainer


def snapshot(run: str | Path, *, device: str | None = None) -> Trainer:
    """The trainer of a run, as ``load`` gives it, to be asked and not to go on: the folder is read, never written.

    So a run can be asked while it trains. ``device`` is another one than it was trained on.
    """
    state, _, problems = checkpoint.newest(Path(run) / "checkpoints")
    recipe = _recipe(state, run)
    trainer = build(recipe if device is None else dataclasses.replace(recipe, device=device))
    trainer.load_state_dict(state)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
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
    if is_known(name):
        known = datasets.load(name, fetch=fetch)
        data = Data(known.name, known.train, known.test, known.schema, known.ordered)
        if target is not None and (data.schema.target is None or data.schema.target.name != target):
            label = data.schema.target and data.schema.target.name
            raise SettingError(
                got=f"target {target!r} for {name}", wanted=f"its label, {label!r}", do="leave --target out"
            )
    else:
        source, schema = _opened(name, target, columns, time, label_time, on_error)
        data = Data(name, source, None, schema, ordered=False)
    schema = data.schema
    for text in columns:
        schema = features.parse_override(text, schema)
    for column in filter(None, (time, label_time)):
        _require(column, data.train, name)
    schema = dataclasses.replace(schema, time=time or schema.time, label_time=label_time or schema.label_time)
    data = dataclasses.replace(data, schema=schema, ordered=data.ordered if ordered is None else ordered)
    if isinstance(test, str):
        return dataclasses.replace(data, test=_test_file(test, schema, on_error))
    if test and data.test is None:
        if name == "-":  # it is read once, in one part and in the other
            data = dataclasses.replace(data, train=sources.cached(data.train))
        train, held_out = sources.hold_out(data.train, test, by="time" if data.ordered else "hash", seed=seed)
        return dataclasses.replace(data, train=train, test=held_out)
    return data


def is_known(name: str) -> bool:
    """Whether a name is that of a public data set or a generator, and no file's."""
    return name.partition(":")[0] in datasets.names() and not Path(name).exists()


def _recipe(state: dict[str, Any], run: str | Path) -> Recipe:
    if not state.get("spec"):
        raise CheckpointError(
            got=f"the run of a Python object in {run}",
            wanted="that object, built as it was",
            do="call millstream.load(run, trainer)",
        )
    return Recipe.from_json(state["spec"])


def _opened(
    name: str,
    target: str | None,
    columns: Sequence[str],
    time: str | None,
    label_time: str | None,
    on_error: Literal["stop", "quarantine"],
) -> tuple[Source, Schema]:
    """The source that a name stands for and its guessed schema. Nothing that a pipe has given is lost by looking."""
    source: Any
    if name == "-":
        source = sources.StdinSource(on_error=on_error, patience_seconds=_PATIENCE_SECONDS)
        types = _declared(source, columns)
        source.declare(types)
        first = source.peek(SAMPLE_RECORDS)
    else:
        check_name(name)
        source = sources.FileSource(name, on_error=on_error)
        types = _declared(source, columns)
        source = sources.FileSource(name, on_error=on_error, schema=types) if types else source
        first = next(source.read(size=SAMPLE_RECORDS), None)
    if first is None or not len(first):
        raise DataError(got=f"no records in {name}", wanted="at least one", do="check that this is the right file")
    is_csv = source.fingerprint()["format"] == "csv"
    sample = _texts_as_numbers(first.inputs, set(types)) if is_csv else first.inputs
    schema = features.infer(sample, target=target, time=time, label_time=label_time)
    kinds = {field.name: field.kind for field in (*schema.fields, schema.target) if field is not None}
    misfits = {
        field.name: pa.float64()
        for field in source.schema
        if is_csv
        and pa.types.is_string(field.type)
        and (kinds.get(field.name) == "number" or sample.schema.field(field.name).type != field.type)
    }
    if misfits and name != "-":  # read anew as numbers, so that the few texts among them are told with their place
        source = sources.FileSource(name, on_error=on_error, schema=types | misfits)
    return source, schema


def _texts_as_numbers(batch: pa.RecordBatch, declared: set[str]) -> pa.RecordBatch:
    """The first records of a CSV, whose numbers were taken for texts because a text comes later."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_string(field.type) and field.name not in declared:
            with contextlib.suppress(pa.ArrowInvalid):
                numbers = batch.column(place).cast(pa.float64())
                if numbers.null_count < len(numbers):
                    batch = batch.set_column(place, field.name, numbers)
    return batch


def _declared(source: Source, columns: Sequence[str]) -> dict[str, pa.DataType]:
    """The types that the columns of a text are read as, where they are not what the first records suggest.

    Whole numbers may be followed by others, and are the same to a model as numbers; a code may begin with a zero.
    """
    assert source.schema is not None
    facts = source.fingerprint()
    if facts["format"] not in ("csv", "jsonl"):
        return {}
    types = {field.name: pa.float64() for field in source.schema if pa.types.is_integer(field.type)}
    if facts["format"] == "csv":
        for text in columns:
            column, _, kind = text.partition("=")
            if column in source.schema.names and kind.partition(":")[0] in _TYPES_OF_KINDS:
                types[column] = _TYPES_OF_KINDS[kind.partition(":")[0]]
    return types


def check_name(name: str) -> None:
    """A name that is no file's may be meant to be that of a data set."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1 or glob.has_magic(name):
        return
    first = name.partition(":")[0]
    close = difflib.get_close_matches(first, [*datasets.names(), *(one.name for one in Path().iterdir())], 2, 0.5)
    raise SettingError(
        got=f"data {name!r}",
        wanted="a file, a glob, - or a public data set",
        do=f"try {' or '.join(close)}" if close else "see `millstream data list`",
    )


def _test_file(name: str, schema: Schema, on_error: Literal["stop", "quarantine"]) -> Source:
    """A file to test on, which must have what is needed: better to know before the training than after."""
    source = sources.FileSource(name, on_error=on_error)
    for field in schema.fields:
        if field.kind != "ignore":
            _require(field.name, source, name)
    if schema.target is not None:
        _require(schema.target.name, source, name)
    return source


def _require(column: str, source: Source, name: str) -> None:
    names = source.schema.names if source.schema is not None else []
    if column not in names:
        close = difflib.get_close_matches(column, names, 1) or [", ".join(names[:8])]
        raise DataError(got=f"no column {column!r} in {name}", wanted="one of its columns", do=f"try {close[0]}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(
            got=f"device {name!r} ({(str(error).splitlines() or [''])[0][:80]})",
            wanted="a device that this machine and this PyTorch have",
            do="leave --device out for the CPU",
        ) from error
    return device


def _class_weights(recipe: Recipe, device: torch.device) -> torch.Tensor | None:
    weights, target = recipe.class_weights, recipe.schema.target
    if weights is None or target is None:
        return None
    num_classes = target.num_outputs if target.kind == "class" else 0
    if len(weights) != num_classes or not all(0 <= weight < float("inf") for weight in weights):
        raise SettingError(
            got=f"class weights {', '.join(f'{weight:g}' for weight in weights)} for {num_classes} classes",
            wanted="a finite weight that is not negative for each class",
            do=f"give {num_classes} of them" if num_classes else "leave them out",
        )
    return torch.tensor(weights, device=device)


def _check_parameters(name: str, model: nn.Module) -> None:
    parameters = list(model.parameters())
    if not parameters or any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ModelError(
            got=f"model {name!r} with {'lazy layers' if parameters else 'no parameters'}",
            wanted="layers of known size that can be trained",
            do="make them from (num_inputs, num_outputs)",
        )


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


def _takes_sparse_gradients(recipe: Recipe) -> bool:
    return recipe.optimizer in ("sgd", "adagrad") and recipe.weight_decay == 0


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer not in OPTIMIZERS:
        raise SettingError(
            got=f"optimizer {recipe.optimizer!r}", wanted=f"one of {', '.join(OPTIMIZERS)}", do="pick one of these"
        )
    if not 0 < recipe.learning_rate < float("inf"):
        raise SettingError(got=f"learning rate {recipe.learning_rate}", wanted="a number above 0", do="try 0.01")
    if not 0 <= recipe.weight_decay < float("inf"):
        raise SettingError(got=f"weight decay {recipe.weight_decay}", wanted="0 or more", do="leave it out")
    kind, settings = OPTIMIZERS[recipe.optimizer]
    return kind(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, **settings)  # type: ignore[call-arg]
