"""``millstream compare``: runs the study, prints a table and a sentence, writes the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from millstream.assembly import Recipe
from millstream.cli.progress import counted, err, table
from millstream.cli.training import test_of
from millstream.errors import SettingError
from millstream.studies import compare as study
from millstream.studies import report
from millstream.studies.arms import open_once

__all__ = ["run"]


def run(options: dict[str, Any]) -> None:
    """Runs the comparison that the options ask for."""
    data: tuple[tuple[str, Any], ...] = (
        ("name", options["data"]),
        ("target", options["target"]),
        ("columns", tuple(options["columns"])),
        ("time", options["time"]),
        ("label_time", options["label_time"]),
        ("ordered", options["ordered"]),
        ("fetch", options["fetch"]),
    )
    test = test_of(options["test"])
    opened = open_once((*data, ("test", test)))
    if not opened.ordered and opened.test is None:
        data = (*data, ("test", test or 0.2))
        opened = open_once(data)
    elif test is not None:
        data = (*data, ("test", test))
    recipe = Recipe(
        opened.schema,
        loss=options["loss"],
        optimizer=options["optimizer"],
        engine=options["engine"],
        seed=options["seed"],
    )
    settings = study.Settings(
        models=tuple(options["models"]) or ("mlp:256",),
        batch_size=options["batch_size"],
        epochs=options["epochs"],
        learning_rate=options["learning_rate"],
        **({"rates": _numbers(options["rates"])} if options["rates"] else {}),
        num_seeds=options["num_seeds"],
        seconds=options["seconds"],
        num_records=options["num_records"],
        delays=tuple(part.strip() for part in options["delays"].split(",")),
        retrain_every=options["retrain_every"],
        num_processes=options["num_processes"],
        target=options["target_score"],
    )
    with counted(f"compare {options['data']}") as show:
        result = study.compare(data, recipe, settings, show)
    result["command"] = "millstream " + " ".join(sys.argv[1:])
    if options["report"]:
        report.write(result, Path(options["report"]))
    if options["as_json"]:
        print(json.dumps(result))
        return
    for one in (result, *result["others"]):
        _tell(one)
    if options["report"]:
        err.print(f"the curves: {options['report']}")


def _tell(result: dict[str, Any]) -> None:
    for part in result["delays"] or [result]:
        late = f", labels {part['delay']} late" if result["delays"] and part["delay"] != "0" else ""
        _table(part["strategies"], result, f"\n{result['data']}, {result['model']}{late}")
        if part.get("baselines"):
            facts = ", ".join(f"{name.replace('_', '-')} {value:.4f}" for name, value in part["baselines"].items())
            print(f"without learning: {facts}")
        print(part["verdict"])
    for note in result["notes"]:
        print(f"note: {note}")


def _table(strategies: dict[str, dict[str, Any]], result: dict[str, Any], title: str) -> None:
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
            row.append("" if reached is None else f"{reached:.1f} s")
        row += [f"{arm['updates']:,}", f"{arm['seconds']:.1f}", f"{arm['records_per_second']:,.0f}"]
        rows.append(tuple(row))
    middle: tuple[str, ...] = ()
    if not forward:
        goal = result.get(f"target_{metric}")
        middle = ("loss", f"to {goal:.3f}" if goal is not None else "")
    table(rows, ("strategy", key.replace("_", " "), *middle, "updates", "seconds", "records/s"), title)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise SettingError(got=f"--rates {text}", wanted="rates above 0 with commas between", do="write e.g. 0.01,0.1")
    return rates
