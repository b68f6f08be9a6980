"""``millstream tune``: a search for settings, its progress, its end told."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from millstream import sources
from millstream.assembly import Data, Recipe, build
from millstream.cli import training, tuned
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import counted, err
from millstream.cli.tuning import Kind, base_recipe, opened, refuse, stated
from millstream.errors import DivergenceError, SettingError
from millstream.studies import tuning_page
from millstream.studies.population import BatchPopulation, Objective, Population, StreamPopulation, Trial
from millstream.studies.search import Found, Search
from millstream.studies.space import Space, space_for

__all__ = ["run"]

_MOST_ROWS = 10
_EPOCHS = 3


def run(options: dict[str, Any], given: set[str]) -> None:
    """Runs the search that the options ask for; ``given`` are those that stand on the command line."""
    torch.set_num_threads(options["threads"])
    refuse({"rates": "--rates"}, given, "a search")
    options = {**options, "epochs": options["epochs"] or _EPOCHS, "update_size": options["update_size"] or 1}
    folder = training.folder_of("tune", options)
    kind, data = opened(options, given)
    recipe = base_recipe(options, data)
    objective = _objective(options["objective"], recipe)
    space = space_for(kind, {name: options[name] for name in ("model", "optimizer", "batch_size") if name in given})
    build(dataclasses.replace(recipe, **_of_a_recipe(space.settings(space.starts()[0]))))  # a mistake is told now
    facts = _facts(kind, options, data, recipe, space, objective)
    make = _Maker(kind, options, data, recipe, objective)
    with Search(folder, space, facts, make, seed=options["seed"], resume=options["resume"]) as search:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
        try:
            with counted(f"tune {options['data']}", quiet=options["as_json"]) as show:
                found = search.run(options["num_trials"], options["size"], show)
        except KeyboardInterrupt:
            place = shlex.quote(str(folder))
            err.print(f"millstream: stopped; go on with the same command and --resume --run {place}")
            raise click.exceptions.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)
    if not found[0].finished:
        raise DivergenceError(
            got=f"{len(found)} trials none of which learned to the end", wanted="one that does", do="bound the gradient"
        )
    settings = stated(kind, options, given) | found[0].settings
    settings |= {"epochs": options["epochs"]} if kind == "fit" else {"update_size": options["update_size"]}
    told = {"data": options["data"], "by": "a search", "objective": objective, "score": found[0].score}
    file = tuned.write(folder, kind, settings, {**told, "trials": len(found)})
    result = {**told, "for": kind, "settings": settings, "file": str(file), "trials": [t.to_json() for t in found]}
    result["command"] = "millstream " + " ".join(sys.argv[1:])
    page = folder / "report.html"
    tuning_page.write_search(result, page)
    _tell(result, found, page, options["as_json"])


class _Maker:
    """Makes the population of some settings."""

    def __init__(self, kind: Kind, options: dict[str, Any], data: Data, recipe: Recipe, objective: Objective) -> None:
        self._kind, self._options, self._recipe, self._objective = kind, options, recipe, objective
        self._train, self._validation = data.train, data.train
        if kind == "fit":
            by: Any = "time" if data.ordered else "hash"
            held = sources.hold_out(data.train, options["validation"], by=by, seed=options["seed"])
            self._train, self._validation = held

    def __call__(self, settings: Sequence[dict[str, Any]]) -> Population:
        trials = [
            Trial(dataclasses.replace(self._recipe, **_of_a_recipe(one)), one.get("batch_size", self._size))
            for one in settings
        ]
        if self._kind == "learn":
            return StreamPopulation(trials, self._train, self._objective, self._options["label_delay"])
        return BatchPopulation(trials, self._train, self._validation, self._objective, self._options["epochs"])

    @property
    def _size(self) -> int:
        size: int = self._options["update_size"]
        return size


def _of_a_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in ("model", "optimizer", "learning_rate")}


def _objective(asked: str, recipe: Recipe) -> Objective:
    target = recipe.schema.target
    is_class = target is not None and target.kind == "class"
    if asked == "error" and not is_class:
        raise SettingError(got="--objective error for numbers", wanted="loss", do="leave it out")
    return "error" if is_class and asked != "loss" else "loss"


def _facts(
    kind: Kind, options: dict[str, Any], data: Data, recipe: Recipe, space: Space, objective: Objective
) -> dict[str, Any]:
    names = ["epochs", "validation"] if kind == "fit" else ["update_size", "label_delay"]
    return {
        "kind": kind,
        "objective": objective,
        **{name: options[name] for name in (*names, "size")},
        "data": dict(data.train.fingerprint()),
        "recipe": recipe.to_json(),
        "space": space.to_json(),
    }


def _tell(result: dict[str, Any], found: Sequence[Found], page: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    rows = []
    for trial in found[:_MOST_ROWS]:
        score = f"{trial.score:.4f}" + ("" if trial.finished else f" (stopped at rung {len(trial.scores)})")
        rate, size = trial.settings["learning_rate"], trial.settings.get("batch_size")
        optimizer = trial.settings["optimizer"]
        row = [str(trial.number), trial.settings["model"], "race" if optimizer == "auto" else optimizer]
        rows.append([*row, "" if rate is None else f"{rate:.3g}", "" if size is None else str(size), score])
    print_table(rows, ["trial", "model", "optimizer", "rate", "batch", result["objective"]], left=3)
    if len(found) > _MOST_ROWS:
        print(f"… and {len(found) - _MOST_ROWS} more trials")
    print(f"to use the best: millstream {result['for']} {result['data']} --tuned {shlex.quote(result['file'])}")
    err.print(f"the study: {page}")
