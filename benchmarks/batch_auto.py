"""``fit`` with nothing given, and the best hand-tuned run of a grid: MNIST, 784-256-10.

Prints, in one run, the seconds until the test accuracy first reaches 97 %, of the best points of a grid (optimizers,
rates, batch sizes) and of ``fit`` with nothing given, and its accuracy at the end. The seconds are all that training
takes: reading, features, updates, races, validation; not the looks at the test records that this program takes after
every chunk. Medians of ``--repeats`` runs, in turn, since machines are shared.

    python benchmarks/batch_auto.py [--quick] [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from typing import Any

import torch

from millstream import assembly
from millstream.assembly import Recipe
from millstream.trainer import Trainer

WANTED = 0.97
GRID = {"sgd": (0.03, 0.1, 0.3), "momentum": (0.01, 0.03, 0.1), "adam": (0.001, 0.003, 0.01)}
SIZES = (32, 64, 128, 256)
AUTO = "nothing given"


def trained(trainer: Trainer, data: Any, most_epochs: int | None, how: dict[str, Any]) -> dict[str, Any]:
    """Seconds until the accuracy that is wanted (None: never), and what it came to."""
    reached, watched, started = None, 0.0, time.perf_counter()
    for step in trainer.steps(data.train, kind="fit", shuffle=True, **how):
        now = time.perf_counter()
        if reached is None and step.records > 10_000 and trainer.evaluate(data.test)["accuracy"] >= WANTED:
            reached = now - started - watched
        watched += time.perf_counter() - now
        if most_epochs is not None and reached is not None:
            break
    seconds = time.perf_counter() - started - watched
    facts = {"optimizer": trainer.learner.engine.optimizer, "epochs": step.epoch + 1, "update_size": step.update_size}
    return {"reached": reached, "seconds": seconds, "test": trainer.evaluate(data.test)["accuracy"], **facts}


def run(data: Any, name: str, rate: float | None, size: int, seed: int, epochs: int) -> dict[str, Any]:
    if name == AUTO:
        recipe = Recipe(data.schema, seed=seed)
        return trained(assembly.build(recipe), data, None, {"update_size": "auto", "epochs": "auto"})
    recipe = Recipe(data.schema, optimizer=name, learning_rate=rate, seed=seed)
    return trained(assembly.build(recipe), data, epochs, {"update_size": size, "epochs": epochs})


def seconds_of(runs: list[dict[str, Any]]) -> float:
    return statistics.median(float("inf") if each["reached"] is None else each["reached"] for each in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two points of the grid, one run each")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the best points and of nothing given")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = assembly.open_data("mnist")
    points: list[tuple[str, float | None, int]] = [
        (name, rate, size) for name, rates in GRID.items() for rate, size in itertools.product(rates, SIZES)
    ]
    if given.quick:
        points, given.repeats = [("momentum", 0.1, 128), ("adam", 0.003, 128)], 1
    first = {point: run(data, *point, seed=0, epochs=3) for point in points}
    best = sorted(points, key=lambda point: seconds_of([first[point]]))[:3]
    contestants = [*best, (AUTO, None, 0)]
    found: dict[Any, list[dict[str, Any]]] = {each: [] for each in contestants}
    for seed in range(given.repeats):  # in turn, so that what else the machine does is shared
        for each in contestants:
            found[each].append(run(data, *each, seed=seed, epochs=4))
    rows = [
        {
            "optimizer": name,
            "learning_rate": rate,
            "batch_size": size or "auto",
            "seconds_to_97": seconds_of(runs),
            "runs": runs,
        }
        for (name, rate, size), runs in found.items()
    ]
    ratio = rows[-1]["seconds_to_97"] / min(row["seconds_to_97"] for row in rows[:-1])
    final = statistics.median(each["test"] for each in found[contestants[-1]])
    facts = {"ratio": ratio, "test_accuracy": final, "load": os.getloadavg()[0], "torch": torch.__version__}
    if given.json:
        print(json.dumps({**facts, "grid": [[*p, r["reached"]] for p, r in first.items()], "rows": rows}))
        return
    for row in rows:
        ends = " ".join(f"{100 * each['test']:.2f}" for each in row["runs"]) if row["optimizer"] == AUTO else ""
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        print(f"{row['optimizer']:14}{rate:>8}{row['batch_size']!s:>8}{row['seconds_to_97']:9.2f} s to 97 %  {ends}")
    last = found[contestants[-1]][-1]
    print(f"nothing given: {ratio:.2f} times the best of {len(points)} points; {100 * final:.2f} % at the end, after")
    print(
        f"{last['epochs']} epochs and {last['seconds']:.1f} s, by {last['optimizer']}, {last['update_size']} an update"
    )
    print(f"load {facts['load']:.1f}, torch {facts['torch']}")


if __name__ == "__main__":
    main()
