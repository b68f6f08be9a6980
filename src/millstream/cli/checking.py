"""``millstream check``: from options to a trainer, the study of its engines, what it found."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import torch

from millstream import assembly, models
from millstream.assembly import Data, Recipe
from millstream.cli import training
from millstream.cli.output import print_json
from millstream.cli.progress import counted, err
from millstream.engines import fused
from millstream.studies import check as study
from millstream.studies.findings import Findings
from millstream.studies.killing import check_kills
from millstream.studies.survival import Survival
from millstream.trainer import Trainer

__all__ = ["run"]

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_OF_A_RECIPE = (
    *("model", "loss", "optimizer", "learning_rate", "weight_decay", "clip_norm", "clip_value", "class_weights"),
    "seed",
)


def run(options: dict[str, Any], given: set[str]) -> None:
    """Checks what the options name; ``given`` are those that stand on the command line. Ends with code 1 if unequal."""
    torch.set_num_threads(options["threads"])
    name = options["data"]
    is_object = _OBJECT.fullmatch(name) is not None and not assembly.is_known(name) and not Path(name).exists()
    # Records that cannot be used are no matter of this command: they are passed over.
    options = {**options, "on_error": "quarantine", "test": None}
    if options["num_kills"]:
        _show(_killed(options, given, is_object), options["as_json"])
        return
    trainer, data = training.from_object(options, given) if is_object else _from_recipe(options)
    with err.status(f"checking {name}"):
        found = study.check(
            trainer,
            data.train,
            num_records=options["num_records"],
            update_size=options["update_size"],
            seconds=options["seconds"],
            name=name,
        )
    _show(found, options["as_json"])


def _show(found: Findings | Survival, as_json: bool) -> None:
    """Prints it. Ends with code 1 unless it is proved, where there was anything to prove."""
    if as_json:
        print_json(found.to_json())
    else:
        print(found)
    if found.is_equal is False if isinstance(found, Findings) else not found.is_identical:
        raise click.exceptions.Exit(1)


def _killed(options: dict[str, Any], given: set[str], is_object: bool) -> Survival:
    """Every process makes its trainer anew, as a new command would; this one only has the modules in memory."""
    if is_object:
        models.load_object(options["data"])
    fused.make_ready(torch.float32)

    def make() -> tuple[Trainer, Any]:
        trainer, data = training.from_object(options, given) if is_object else _from_recipe(options)
        return trainer, data.train

    with counted("check", quiet=options["as_json"]) as show:
        return check_kills(
            make,
            num_kills=options["num_kills"],
            seconds=options["seconds"],
            seed=options["seed"],
            num_records=options["num_records"],
            name=options["data"],
            progress=show,
            update_size=options["update_size"],
        )


def _from_recipe(options: dict[str, Any]) -> tuple[Trainer, Data]:
    """A new trainer for data by name, as ``learn`` makes it."""
    training.check_one_name(options)
    data = assembly.open_data(
        options["data"],
        target=options["target"],
        columns=options["columns"],
        time=options["time"],
        label_time=options["label_time"],
        fetch=options["fetch"],
        on_error="quarantine",
        seed=options["seed"],
    )
    weights = training.numbers("--class-weights", options["class_weights"])
    recipe = Recipe(
        data.schema,
        on_error="quarantine",
        nonfinite="skip",
        **{name: options[name] for name in _OF_A_RECIPE},
    )
    return assembly.build(dataclasses.replace(recipe, class_weights=weights)), data
