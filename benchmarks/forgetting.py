"""What replay keeps: half of the classes learned online, then the other half, accuracy on both after each.

    python benchmarks/forgetting.py                 the table of docs/drift.md, as Markdown
    python benchmarks/forgetting.py --quick --json  a smoke run, one JSON object a line

With `--average` also what averaged weights score: test accuracy after one pass in order, with and without.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from millstream import assembly

DATA = {"mnist": 5, "covertype": 3}  # classes of the first task
SHARES = ("0", "0.2", "0.5", "1", "0.5:window")
AVERAGES = (None, 0.99, 0.999, 0.9999)


def tables(name: str, records: int) -> tuple[assembly.Data, pa.Table, pa.Table]:
    """The data, and its records to learn from and to test on as tables."""
    data = assembly.open_data(name, test=0.1 if name == "covertype" else None, fetch=True)
    assert data.test is not None

    def first(source: Any, most: int) -> pa.Table:
        chunks, num = [], 0
        for chunk in source.read(size=4096):
            chunks.append(chunk.inputs)
            num += len(chunk)
            if num >= most:
                break
        return pa.Table.from_batches(chunks)

    return data, first(data.train, records), first(data.test, 10_000)


def forgetting(name: str, share: str, rate: float | None, records: int, seed: int) -> dict[str, Any]:
    """Task A, then task B."""
    data, train, test = tables(name, records)
    target = data.schema.target
    assert target is not None and target.classes is not None
    old = pa.array([str(label) for label in target.classes[: DATA[name]]])

    def halves(table: pa.Table) -> tuple[pa.Table, pa.Table]:
        is_old = pc.is_in(pc.cast(table[target.name], pa.string()), old)
        return table.filter(is_old), table.filter(pc.invert(is_old))

    (train_a, train_b), (test_a, test_b) = halves(train), halves(test)
    recipe = assembly.Recipe(data.schema, model="mlp:64", learning_rate=rate, replay=share, seed=seed)
    trainer = assembly.build(recipe)
    row: dict[str, Any] = {"data": name, "replay": share, "optimizer": "race" if rate is None else f"sgd {rate:g}"}
    row |= {"seed": seed, "records_a": len(train_a), "records_b": len(train_b)}
    started = time.perf_counter()
    for task, table in (("a", train_a), ("b", train_b)):
        trainer.learn(table)
        row[f"seconds_{task}"], started = time.perf_counter() - started, time.process_time()
        for of, held_out in (("a", test_a), ("b", test_b)):
            row[f"{of}_after_{task}"] = 100 * trainer.evaluate(held_out)["accuracy"]
        started = time.perf_counter()
    return row


def averaging(name: str, average: float | None, rate: float | None, records: int, seed: int) -> dict[str, Any]:
    """One pass in order, then the test records."""
    data, train, test = tables(name, records)
    trainer = assembly.build(
        assembly.Recipe(data.schema, model="mlp:64", learning_rate=rate, average=average, seed=seed)
    )
    started = time.perf_counter()
    summary = trainer.learn(train)
    seconds = time.perf_counter() - started
    return {
        "data": name,
        "average": average,
        "optimizer": "race" if rate is None else f"sgd {rate:g}",
        "seed": seed,
        "prequential": 100 * summary.metrics["accuracy"],
        "test": 100 * trainer.evaluate(test)["accuracy"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--average", action="store_true", help="averaged weights in place of replay")
    parser.add_argument("--rate", type=float, help="plain SGD at this rate in place of the race")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default=",".join(DATA))
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = 4_000 if options.quick else 60_000
    first = True
    for name in options.data.split(","):
        for seed in range(options.seeds):
            for arm in AVERAGES if options.average else SHARES:
                row = (averaging if options.average else forgetting)(name, arm, options.rate, records, seed)  # type: ignore[operator]
                if options.json:
                    print(json.dumps(row), flush=True)
                    continue
                if first:
                    print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
                    first = False
                shown = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values())
                print("| " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
