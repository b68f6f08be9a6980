"""``millstream compare``: runs the study, prints a table and a sentence, writes the page."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from millstream.assembly import Data, Recipe, build
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import counted, err
from millstream.cli.training import numbers
from millstream.delay import parse_delay
from millstream.errors import SettingError
from millstream.storage import storage_errors
from millstream.studies import compare as study
from millstream.studies import report
from millstream.studies.arms import open_once
from millstream.studies.statistics import seconds_text

__all__ = ["run"]

_THROUGH_TIME = ("delays", "retrain_every")
_SHUFFLED = ("target_score",)
_WIDTH = 110


def run(options: dict[str, Any], given: set[str]) -> None:
    """Runs the comparison that the options ask for; ``given`` are those that stand on the command line."""
    settings = _settings(options)
    data, opened = _opened(options)
    for name in _SHUFFLED if opened.ordered else _THROUGH_TIME:
        if name in given:
            raise SettingError(
                got=f"--{ {'delays': 'label-delay'}.get(name, name.replace('_', '-')) } for data "
                + ("in the order of time" if opened.ordered else "whose order is not that of time"),
                wanted="what is compared there",
                do=f"leave it out, or add {'--shuffled' if opened.ordered else '--ordered'} if that is so",
            )
    recipe = Recipe(
        opened.schema,
        loss=options["loss"],
        optimizer=options["optimizer"],
        engine=options["engine"],
        seed=options["seed"],
    )
    for model in settings.models:  # better to know of a mistake before the work than after it
        build(dataclasses.replace(recipe, model=model))
    if options["report"]:
        _check_writable(Path(options["report"]))
    with counted(f"compare {options['data']}", quiet=options["as_json"]) as show:
        result = study.compare(data, recipe, settings, show)
    result["command"] = "millstream " + " ".join(sys.argv[1:])
    if options["as_json"]:
        print_json(result)
    else:
        for one in (result, *result["others"]):
            _tell(one)
    sys.stdout.flush()  # should the page fail, the answer is out
    if options["report"]:
        report.write(result, Path(options["report"]))
        if not options["as_json"]:
            err.print(f"\nthe curves: {options['report']}")


def _settings(options: dict[str, Any]) -> study.Settings:
    rates = numbers("--rates", options["rates"])
    if rates is not None and not all(0 < rate < float("inf") for rate in rates):
        raise SettingError(got=f"--rates {options['rates']}", wanted="rates above 0", do="write e.g. 0.01,0.1")
    delays = tuple(part.strip() for part in options["delays"].split(","))
    for delay in delays:
        parse_delay(delay)
    return study.Settings(
        models=tuple(options["models"]) or ("mlp:256",),
        batch_size=options["batch_size"],
        epochs=options["epochs"],
        learning_rate=options["learning_rate"],
        **({} if rates is None else {"rates": rates}),
        num_seeds=options["num_seeds"],
        seconds=options["seconds"],
        num_records=options["num_records"] or 0,
        delays=delays,
        retrain_every=options["retrain_every"] or 0,
        num_processes=options["num_processes"] or 0,
        target=options["target_score"],
    )


def _opened(options: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], Data]:
    """What the data are called by, for every process to open them, and the data themselves."""
    if options["data"] == "-":
        raise SettingError(
            got="a pipe to be compared on", wanted="data that every arm can read", do="copy it to a file first"
        )
    data: tuple[tuple[str, Any], ...] = (
        ("name", options["data"]),
        ("target", options["target"]),
        ("columns", tuple(options["columns"])),
        ("time", options["time"]),
        ("label_time", options["label_time"]),
        ("ordered", options["ordered"]),
        ("fetch", options["fetch"]),
        ("test", options["test"]),
    )
    opened = open_once(data)
    if not opened.ordered and opened.test is None:
        data = (*data[:-1], ("test", 0.2 if options["test"] is None else options["test"]))
        opened = open_once(data)
    return data, opened


def _check_writable(path: Path) -> None:
    """Refuses a file that cannot be written."""
    with storage_errors(path, do="name another file with --report, or none: --report ''"):
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def _tell(result: dict[str, Any]) -> None:
    for part in result["delays"] or [result]:
        late = f", labels {part['delay']} late" if result["delays"] and part["delay"] != "0" else ""
        print(f"\n{result['data']}, {result['model']}{late}")
        _table(part["strategies"], result)
        if part.get("baselines"):
            facts = ", ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in part["baselines"].items())
            print(f"without learning: {facts}")
        print(textwrap.fill(part["verdict"], _WIDTH))
    for note in result["notes"]:
        print(textwrap.fill(f"note: {note}", _WIDTH, subsequent_indent="      "))


def _table(strategies: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    metric = result["metric"]
    forward = result["data_info"]["ordered"]
    key = f"prequential_{metric}" if forward else f"test_{metric}"
    rows = []
    for arm in strategies.values():
        score = arm.get(key)
        spread = arm.get(f"{key}_interval")
        margin = f" ± {(spread[1] - spread[0]) / 2:.4f}" if spread else ""
        row = [arm["title"], "diverged" if score is None else f"{score:.4f}{margin}"]
        if not forward:
            row.append(f"{arm['test_loss']:.3f}" if arm.get("test_loss") is not None else "")
            reached = arm.get("time_to_target")
            row.append("" if reached is None else seconds_text(reached))
        row += [f"{arm['updates']:,}", seconds_text(arm["seconds"]), f"{arm['records_per_second']:,.0f}"]
        rows.append(row)
    middle: list[str] = []
    if not forward:
        goal = result.get(f"target_{metric}")
        middle = ["loss", f"to {goal:.3f}" if goal is not None else ""]
    print_table(rows, ["strategy", key.replace("_", " "), *middle, "updates", "time", "records/s"])
