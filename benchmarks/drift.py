"""What drift alarms are worth: streams with known drift points, each action of each detector, against none.

    python benchmarks/drift.py                      the table of docs/drift.md, as Markdown
    python benchmarks/drift.py --quick --json       a smoke run, one JSON object a line

`after` is the accuracy in the 1,000 records after each drift point; `false` counts alarms that do not come within 3,000
records (and the width of a gradual drift) after one. elec2 has no known points: all its alarms count as alarms only.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from millstream import assembly
from millstream.datasets.generators import parse_generator

STREAMS = (
    *("sea", "sea:width=5000", "agrawal", "agrawal:width=2000", "led", "led:width=5000", "hyperplane", "elec2"),
    *("sea:drift=0:noise=0.3", "led:drift=0", "agrawal:drift=0"),
)
ARMS = (
    *("none", "adwin:none", "adwin:reopen", "adwin:reset", "adwin:raise", "adwin:replay"),
    *("page-hinkley:none", "page-hinkley:reopen"),
)
AFTER, HEARD = 1000, 3000


def run(data: assembly.Data, stream: str, arm: str, rate: float | None, records: int, seed: int) -> dict[str, Any]:
    """One pass over a stream."""
    recipe = assembly.Recipe(
        data.schema, model="mlp:64", drift=None if arm == "none" else arm, learning_rate=rate, seed=seed
    )
    trainer = assembly.build(recipe)
    right: list[np.ndarray] = []
    alarms: list[int] = []
    started = time.perf_counter()
    for step in trainer.steps(data.train):
        if step.scored is None:  # the end
            break
        right.append((step.scored.outputs.argmax(1) == step.scored.targets).numpy())
        alarms += [event.position for event in step.scored.events if event.what == "drift"]
        if step.records >= records:
            break
    seconds = time.perf_counter() - started
    hits = np.concatenate(right).astype(float)
    points, width = _points(stream, len(hits))
    late = [alarm for alarm in alarms if not any(-width <= alarm - point <= HEARD + width for point in points)]
    return {
        "stream": stream,
        "arm": arm,
        "optimizer": "race" if rate is None else f"sgd {rate:g}",
        "seed": seed,
        "records": len(hits),
        "accuracy": 100 * hits.mean(),
        "after": 100 * np.mean([hits[point : point + AFTER].mean() for point in points]) if points else None,
        "points": len(points),
        "alarms": len(alarms),
        "false": len(late) if stream != "elec2" else None,
        "seconds": seconds,
    }


def _points(stream: str, records: int) -> tuple[list[int], int]:
    if stream == "elec2":
        return [], 0
    source = parse_generator(stream)
    width = int(next((part.split("=")[1] for part in stream.split(":") if part.startswith("width=")), 0))
    return [point for point in source.drift_points if point < records - AFTER], width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=float, help="plain SGD at this rate in place of the race")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--streams", default=",".join(STREAMS))
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    records = 4_000 if options.quick else 100_000
    if not options.json:
        print("| stream | arm | accuracy | after | alarms | false | seconds |\n|---|---|---|---|---|---|---|")
    torch.set_num_threads(1)
    for stream in options.streams.split(","):
        data = assembly.open_data(stream, test=0.0, fetch=False)
        for arm in options.arms.split(","):
            for seed in range(options.seeds):
                row = run(data, stream, arm, options.rate, records, seed)
                if options.json:
                    print(json.dumps(row), flush=True)
                    continue
                after = "" if row["after"] is None else f"{row['after']:.2f}"
                print(
                    f"| {stream} | {arm} | {row['accuracy']:.2f} | {after} | {row['alarms']} | {row['false']} "
                    f"| {row['seconds']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
