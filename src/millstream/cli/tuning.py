"""``millstream tune --lr``: a range test of learning rates; and what both kinds of tuning have in common."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from millstream import assembly, sources
from millstream.assembly import Data, Recipe
from millstream.cli import training, tuned
from millstream.cli.output import print_json
from millstream.cli.progress import counted, err
from millstream.delay import parse_delay
from millstream.errors import SettingError
from millstream.studies import tuning_page
from millstream.studies.range_test import lr_range

__all__ = ["Kind", "base_recipe", "opened", "refuse", "run", "stated"]

Kind = Literal["fit", "learn"]

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_OF_A_SEARCH = {
    "epochs": "--epochs",
    "num_trials": "--trials",
    "size": "--side-by-side",
    "objective": "--objective",
    "validation": "--validation",
    "label_delay": "--label-delay",
    "resume": "--resume",
}
_OF_FIT = {"batch_size": "--batch-size", "epochs": "--epochs", "validation": "--validation"}
_OF_LEARN = {"update_size": "--update-size", "label_delay": "--label-delay"}
_REPORT = "report.html"


def run(options: dict[str, Any], given: set[str]) -> None:
    """Runs the range test that the options ask for; ``given`` are those that stand on the command line."""
    torch.set_num_threads(options["threads"])
    refuse(_OF_A_SEARCH, given, "a range test")
    bounds = _bounds(options)
    name = options["data"]
    folder = training.folder_of("tune", options)
    is_object = _OBJECT.fullmatch(name) is not None and not assembly.is_known(name) and not Path(name).exists()
    if is_object:
        kind: Kind = "learn" if options["online"] else "fit"
        trainer, data = training.from_object({**options, "on_error": "quarantine"}, given)
    else:
        kind, data = opened(options, given)
        recipe = dataclasses.replace(base_recipe(options, data), optimizer=options["optimizer"] or "sgd")
        trainer = assembly.build(dataclasses.replace(recipe, learning_rate=1.0))
    size = (options["update_size"] or 1) if kind == "learn" else options["batch_size"] or 64
    with counted(f"tune --lr {name}", quiet=options["as_json"]) as show:
        found = lr_range(
            trainer, data.train, update_size=size, shuffle=kind == "fit", lowest=bounds[0], highest=bounds[1], show=show
        )
    result: dict[str, Any] = {"data": name, "for": kind, "settings": None, "file": None, **found.to_json()}
    if found.suggestion is not None:
        rate = {"learning_rate": float(f"{found.suggestion:.3g}")}
        result["settings"] = rate if is_object else _settings(kind, options, given, size) | rate
    if result["settings"] is not None and not is_object:
        result["file"] = str(tuned.write(folder, kind, result["settings"], {"data": name, "by": "a range test"}))
    result["command"] = "millstream " + " ".join(sys.argv[1:])
    page = folder / _REPORT
    tuning_page.write_range(found, result, page)
    _tell(result, str(found), page, options["as_json"])


def refuse(names: dict[str, str], given: set[str], what: str) -> None:
    """Refuses options that mean nothing here."""
    idle = sorted(given & names.keys())
    if idle:
        raise SettingError(got=f"{names[idle[0]]} for {what}", wanted="options that it has", do="leave it out")


def opened(options: dict[str, Any], given: set[str]) -> tuple[Kind, Data]:
    """Which kind of training is tuned, and the data, whose test records nobody looks at."""
    training.check_one_name(options)
    if options["data"] == "-":
        raise SettingError(got="a pipe to tune on", wanted="data that can be read again", do="copy it to a file first")
    if options["label_delay"] is not None:
        parse_delay(options["label_delay"])
    how = {name: options[name] for name in ("target", "columns", "time", "label_time", "fetch", "seed")}
    how["on_error"] = "quarantine"
    is_online = options["online"]
    if is_online is None:
        is_online = assembly.open_data(options["data"], **how).ordered
    kind: Kind = "learn" if is_online else "fit"
    refuse(_OF_FIT if is_online else _OF_LEARN, given, f"tuning {kind}")
    test = options["test"]
    # As `fit` holds out; for what is learned online it holds none out, unless it is told to.
    data = assembly.open_data(options["data"], test=0.1 if test is None and not is_online else test, **how)
    train = data.train if data.train.can_jump and data.train.num_records else sources.cached(data.train)
    if options["num_records"] and options["num_records"] < (train.num_records or 0):
        train = sources.Subset(train, np.arange(options["num_records"]))
    return kind, dataclasses.replace(data, train=train)


def base_recipe(options: dict[str, Any], data: Data) -> Recipe:
    """What the trainers of all trials have in common."""
    return Recipe(
        data.schema,
        model=options["model"] or "mlp:256",
        loss=options["loss"],
        weight_decay=options["weight_decay"],
        clip_norm=options["clip_norm"],
        clip_value=options["clip_value"],
        class_weights=training.numbers("--class-weights", options["class_weights"]),
        engine=options["engine"],
        device=options["device"] or "cpu",
        seed=options["seed"],
        on_error="quarantine",
        nonfinite="skip",
    )


def stated(kind: Kind, options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The settings that stand on the command line and that ``fit`` or ``learn`` has, too.

    The seed is always one of them: it decides which records are held out to test on.
    """
    names = {*training.OF_A_RECIPE, *training.OF_THE_COLUMNS, "test", "threads"}
    names |= {"batch_size", "epochs"} if kind == "fit" else {"update_size", "label_delay"}
    return {name: options[name] for name in sorted(given & names)} | {"seed": options["seed"]}


def _settings(kind: Kind, options: dict[str, Any], given: set[str], size: int) -> dict[str, Any]:
    tested = {"model": options["model"] or "mlp:256", "optimizer": options["optimizer"] or "sgd"}
    return stated(kind, options, given) | tested | {"batch_size" if kind == "fit" else "update_size": size}


def _bounds(options: dict[str, Any]) -> tuple[float, float]:
    rates = training.numbers("--rates", options["rates"]) or (1e-6, 10.0)
    if len(rates) != 2:
        raise SettingError(got=f"--rates {options['rates']}", wanted="two rates", do="write e.g. 1e-6,10")
    return rates[0], rates[1]


def _tell(result: dict[str, Any], text: str, page: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    print(text)
    if result["file"]:
        print(f"to use it: millstream {result['for']} {result['data']} --tuned {result['file']}")
    err.print(f"the curve: {page}")
