"""A recipe: all that is needed to build a trainer for data of a known schema. It is JSON, saved with every checkpoint.

So a run can be gone on with, asked, or be the beginning of another, without the data that it was made for. This file
knows no data.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from millstream import checkpoint, engines, features, losses, models
from millstream.assembly import optimizers
from millstream.contracts import State
from millstream.errors import CheckpointError, DataError, ModelError, SettingError
from millstream.schema import Schema
from millstream.trainer import Trainer

__all__ = ["Recipe", "build", "from_state", "load", "snapshot"]


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """All that is needed to build a trainer for data of a known schema."""

    schema: Schema
    model: str = "mlp:256"
    race: tuple[str, ...] = ()  # models by name that race, in place of ``model``
    loss: str = ""  # "": cross_entropy for classes, huber for numbers
    optimizer: str = "auto"  # several optimizers race, or plain SGD where a rate is given
    learning_rate: float | None = None  # None: several race
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    class_weights: tuple[float, ...] | None = None
    replay: str | None = None  # "0.2", "0.2:window:5000"
    drift: str | None = None  # "adwin", "adwin:reset"
    average: float | None = None
    engine: str = "auto"
    device: str = "cpu"
    seed: int = 0
    window: int = 1000
    max_skips: int = 100
    on_error: Literal["stop", "quarantine"] = "stop"
    nonfinite: Literal["error", "skip", "impute"] = "error"

    @property
    def loss_name(self) -> str:
        """The loss that is meant. For numbers one whose gradient is bounded: one record must not throw a model."""
        target = self.schema.target
        return self.loss or ("huber" if target is not None and target.kind == "number" else "cross_entropy")

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
                "race": tuple(value.get("race", ())),
                "schema": Schema.from_json(value["schema"]),
                "class_weights": None if weights is None else tuple(weights),
            }
        )


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
    loss = losses.resolve(recipe.loss_name, _class_weights(recipe, device))
    _check_loss(loss, recipe.schema)
    num_outputs = 1 if loss.task == "binary" else parts.num_outputs
    with torch.random.fork_rng(devices=[]):
        shape = models.InputShape(parts.input_shape, parts.num_ids)
        model = _model(recipe, shape, num_outputs)
    return Trainer(
        model.to(device),
        loss,
        optimizers.made(recipe.optimizer, recipe.learning_rate, recipe.weight_decay, model),
        features=parts,
        clip_norm=recipe.clip_norm,
        clip_value=recipe.clip_value,
        replay=recipe.replay,
        drift=recipe.drift,
        average=recipe.average,
        engine=recipe.engine,
        seed=recipe.seed,
        window=recipe.window,
        max_skips=recipe.max_skips,
        run=run,
        spec=recipe.to_json(),
        **settings,
    )


def load(run: str | Path, trainer: Trainer | None = None, *, exact: bool = False, **settings: Any) -> Trainer:
    """The trainer of a run, as its newest whole checkpoint has it, ready to go on in that folder.

    A run of a Python object needs that object: ``trainer``, built as it was then, takes the state in. ``exact``
    refuses other numerics than those of before; ``settings`` are those of ``build``.
    """
    if trainer is None:
        trainer = build(_recipe(checkpoint.newest(Path(run) / "checkpoints")[0], run), **settings)
    for warning in trainer.open(run, resume=True, exact=exact):
        warnings.warn(warning, stacklevel=2)
    return trainer


def snapshot(run: str | Path, changes: Mapping[str, Any] | None = None, **settings: Any) -> Trainer:
    """The trainer of a run, as ``load`` gives it, to be asked or to begin another run with: the folder is only read.

    So a run can be asked while it trains. ``changes`` are settings of its recipe that are others from now on.
    """
    changes = changes or {}
    state, _, problems = checkpoint.newest(Path(run) / "checkpoints")
    trainer = from_state(state, run, changes, **settings)
    for group in trainer.learner.rule.optimizer.param_groups:  # these came back with the state
        if "learning_rate" in changes:
            group["lr"] = changes["learning_rate"]
            group.pop("initial_lr", None)  # of a schedule that has ended
        group["weight_decay"] = changes.get("weight_decay", group["weight_decay"])
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return trainer


def from_state(state: State, run: str | Path, changes: Mapping[str, Any] | None = None, **settings: Any) -> Trainer:
    """A trainer with the state of a checkpoint of ``run``, which writes nowhere; ``changes`` are to its recipe."""
    trainer = build(dataclasses.replace(_recipe(state, run), **(changes or {})), **settings)
    trainer.load_state_dict(state)
    return trainer


def _recipe(state: dict[str, Any], run: str | Path) -> Recipe:
    if not state.get("spec"):
        raise CheckpointError(
            got=f"the run of a Python object in {run}",
            wanted="that object, built as it was",
            do="call millstream.load(run, trainer)",
        )
    return Recipe.from_json(state["spec"])


def _model(recipe: Recipe, shape: models.InputShape, num_outputs: int) -> nn.Module:
    """The model, or those that race. Each has the weights that it would have alone."""
    made = {}
    for name in recipe.race or (recipe.model,):
        torch.manual_seed(recipe.seed)
        made[name] = models.build(name, shape, num_outputs, sparse=_takes_sparse_gradients(recipe))
        _check_parameters(name, made[name])
    return engines.Several(made) if recipe.race else made[recipe.model]


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
    return recipe.optimizer in ("auto", "sgd", "adagrad", "factored") and recipe.weight_decay == 0
