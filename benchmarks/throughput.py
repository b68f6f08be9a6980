"""Records a second of the same work, predict, then update, one record after another: this engine beside other ways.

Run: python benchmarks/throughput.py [--json] [--quick] [--rounds N] [--only MODEL]

One thread (the rows with 2 aside); all methods of a model in turn, medians over rounds of about
half a second; compilation and reading are not timed. A method takes its records in the form that suits it best: text
parsed beforehand, zeros left out, rows cut beforehand. Mini-batches compute something else: fewer updates. The ceiling
is what two matrix products a record would allow at the speed of `torch.mm` of 1024 × 1024 in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import peers
from millstream import losses
from millstream.contracts import Chunk, Engine, Inputs
from millstream.engines import UpdateRule, choose
from millstream.errors import ModelError
from overhead import machine
from peers import Side, Task

PACKAGES = {"jax": "jax", "sklearn": "scikit-learn", "river": "river", "deep_river": "deep-river"}
PACKAGES |= {"vowpalwabbit": "vowpalwabbit", "pylibvw": "vowpalwabbit"}
LOOP, BATCHES, CEILING = "torch loop", {64: "torch, mini-batches of 64", 512: "torch, mini-batches of 512"}, "torch.mm"
FUSED = "this engine (fused)"
INSTALL = "pip install -c constraints.txt -e '.[bench]' && pip install -c constraints.txt --no-deps deep-river"


class Tables(nn.Module):
    """Eight columns of categories and 13 of numbers: embeddings, then a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(100_000, 16, sparse=True) for _ in range(8))
        self.top = nn.Sequential(nn.Linear(8 * 16 + 13, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        rows = [table(inputs["ids"][:, place]) for place, table in enumerate(self.embeddings)]
        outputs: Tensor = self.top(torch.cat([*rows, inputs["dense"]], 1))
        return outputs


class Hashed(nn.Module):
    """Logistic regression on hashed categories: one weight a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.EmbeddingBag(2**20, 1, mode="sum", sparse=True)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.weights(ids) + self.bias
        return outputs


def dense(widths: tuple[int, ...]) -> nn.Sequential:
    """A ReLU after each layer but the last, or after the only one."""
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*(layers if len(widths) == 2 else layers[:-1]))


def lenet() -> nn.Sequential:
    first = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), *dense((400, 120, 84, 10)))


def images(*shape: int) -> tuple[Tensor, Tensor]:
    """Like handwritten digits: values in [0, 1], four of five 0."""
    x = torch.rand(8192, 784, generator=torch.Generator().manual_seed(1))
    x = ((x - 0.8) * 5).clamp_(min=0)
    return x.reshape(-1, *(shape or (784,))), _labels(8192, 10)


def cover() -> tuple[Tensor, Tensor]:
    """Like forest cover types: ten numbers, and two categories as 4 and 40 columns of 0 and 1."""
    categories = [nn.functional.one_hot(_labels(16384, num), num).float() for num in (4, 40)]
    return torch.cat([torch.randn(16384, 10, generator=torch.Generator().manual_seed(1)), *categories], 1), _labels(
        16384, 7
    )


def categories(num_columns: int, num_values: int) -> Tensor:
    """(65,536, columns) hashed values, few of them frequent, as in logs."""
    draws = torch.rand(65536, num_columns, generator=torch.Generator().manual_seed(2))
    return (draws**3 * num_values).long() * 2654435761 % num_values


def hashed() -> tuple[Tensor, Tensor]:
    return categories(40, 2**20), _labels(65536, 2).float()


def clicks() -> tuple[dict[str, Tensor], Tensor]:
    numbers = torch.randn(65536, 13, generator=torch.Generator().manual_seed(3))
    return {"dense": numbers, "ids": categories(8, 100_000)}, _labels(65536, 2).float()


def _labels(num: int, num_classes: int) -> Tensor:
    return torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(num_classes))


def _dense(widths: tuple[int, ...], optimizer: str = "SGD", records: Callable[[], Any] = images) -> Task:
    build = functools.partial(dense, widths)
    return Task(f"{'-'.join(map(str, widths))}, {optimizer}", optimizer, build, records, widths)


TASKS = {
    "linear": _dense((784, 10)),
    "mlp": _dense((784, 256, 10)),
    "mlp-momentum": _dense((784, 256, 10), "momentum"),
    "deep": _dense((784, 256, 256, 256, 10)),
    "cover": _dense((54, 128, 64, 7), records=cover),
    "mlp-adam": _dense((784, 256, 10), "Adam"),
    "hashed": Task("hashed linear, 2^20 slots, 40 of them a record, SGD", "SGD", Hashed, hashed),
    "tables": Task("8 embeddings of 100,000 × 16, 13 numbers, 141-64-1, SGD", "SGD", Tables, clicks),
    "tables-adagrad": Task("8 embeddings of 100,000 × 16, 13 numbers, 141-64-1, Adagrad", "Adagrad", Tables, clicks),
    "lenet": Task("LeNet-5 on 28 × 28, SGD", "SGD", lenet, functools.partial(images, 1, 28, 28)),
}
DENSE = {"mlp", "mlp-momentum", "deep", "cover", "mlp-adam"}


def torch_loop(task: Task, x: Inputs, y: Tensor, *, size: int) -> Side:
    """What people write: forward, backward, step."""
    model, optimizer = task.train()
    portion = 128 if size == 1 else 4096

    def run(first: int) -> None:
        for place in range(first, first + portion, size):
            loss = peers.criterion(model(_cut(x, place, size)), y[place : place + size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return Side(portion, len(y), run)


def fused(task: Task, x: Inputs, y: Tensor) -> Side:
    engine = fused_engine(task, y)
    portion = min(engine.chunk_size(1), len(y))
    return Side(
        portion,
        len(y),
        lambda first: engine.learn(Chunk(_cut(x, first, portion), y[first : first + portion], start=first), 1),
    )


def fused_engine(task: Task, y: Tensor) -> Engine:
    model, optimizer = task.train()
    loss = losses.resolve("binary_cross_entropy" if y.is_floating_point() else "cross_entropy")
    return choose("fused", UpdateRule(model, loss, optimizer))


def matrix_product(*_: Any) -> Side:
    """Its records are operations, so its rate is the machine's."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    return Side(2 * 1024**3, 2 * 1024**3, lambda _: torch.mm(a, b))


def _cut(inputs: Inputs, first: int, num: int) -> Any:
    if isinstance(inputs, dict):
        return {name: value[first : first + num] for name, value in inputs.items()}
    assert isinstance(inputs, Tensor)
    return inputs[first : first + num]


Make = Callable[[Task, Any, Tensor], Side]
ONLINE: dict[str, tuple[Make, set[str]]] = {  # the peers that do the same work, and the models that they can do
    "torch.compile of the step": (peers.compiled_step, {"linear", *DENSE, "lenet"}),
    "JAX, scan": (peers.jax_scan, {"linear", *DENSE, "lenet"}),
    "scikit-learn, one pass": (functools.partial(peers.sklearn_linear, size=2048), {"linear", "hashed"}),
    "scikit-learn, record by record": (functools.partial(peers.sklearn_linear, size=1), {"linear", "hashed"}),
    "scikit-learn MLP, batches of 1": (peers.sklearn_mlp, DENSE),
    "Vowpal Wabbit, from its cache": (peers.vowpal, {"linear", "hashed"}),
    "River": (peers.river, {"linear", "hashed"}),
    "deep-river": (peers.deep_river, {"linear", *DENSE}),
}


def methods(model: str, num_threads: int) -> Iterator[tuple[str, int, Make]]:
    """The name, number of threads and maker of each method for a model; more threads for this engine only."""
    yield FUSED, 1, fused
    if num_threads > 1:
        yield FUSED, num_threads, fused
    yield LOOP, 1, functools.partial(torch_loop, size=1)
    for size, name in BATCHES.items():
        yield name, 1, functools.partial(torch_loop, size=size)
    for name, (make, models) in ONLINE.items():
        if model in models:
            yield name, 1, make
    yield CEILING, 1, matrix_product


def timed(side: Side, num_calls: int) -> float:
    """Seconds that so many calls take, what comes before each not counted."""
    seconds = 0.0
    for _ in range(num_calls):
        first = side.forward()
        side.before()
        started = time.perf_counter()
        side.run(first)
        seconds += time.perf_counter() - started
    return seconds


def ready(make: Make, task: Task, x: Inputs, y: Tensor, seconds: float) -> tuple[Side, int] | str:
    """A method after its warm-up and the calls of a round of so many seconds, or why there is none."""
    try:
        side = make(task, x, y)
        timed(side, 1)
        return side, max(1, round(seconds / timed(side, 1)))
    except ModelError as error:
        return f"declines: {error.got}"
    except ImportError as error:
        return f"not installed: {PACKAGES.get(str(error.name).partition('.')[0], error.name)}"
    except Exception as error:  # a peer that fails must not end the run
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"


Rates = dict[tuple[str, int], float | str]  # by method and threads: the median, or why there is none


def measure(model: str, rounds: int, *, quick: bool, advance: Callable[[], None]) -> Rates:
    """Two threads take turns waiting for each other when the machine is busy: too slow for a quick run."""
    seconds, most_threads = (0.04, 1) if quick else (0.4, min(2, os.cpu_count() or 1))
    task = TASKS[model]
    x, y = task.records()
    sides: dict[tuple[str, int], tuple[Side, int]] = {}
    rates: Rates = {}
    for method, num_threads, make in methods(model, most_threads):
        torch.set_num_threads(num_threads)
        made = ready(make, task, x, y, seconds)
        rates[method, num_threads] = made if isinstance(made, str) else 0.0
        if not isinstance(made, str):
            sides[method, num_threads] = made
    found: dict[tuple[str, int], list[float]] = {key: [] for key in sides}
    for _ in range(rounds):
        advance()
        for key, (side, num_calls) in sides.items():
            torch.set_num_threads(key[1])
            found[key].append(num_calls * side.portion / timed(side, num_calls))
    torch.set_num_threads(1)
    return rates | {key: statistics.median(each) for key, each in found.items()}


def single_record() -> float:
    """Median microseconds of `engine.learn` of one record, 784-256-10, called from Python."""
    task = TASKS["mlp"]
    x, y = task.records()
    engine = fused_engine(task, y)
    taken = []
    for place in range(2000):
        chunk = Chunk(_cut(x, place, 1), y[place : place + 1], start=place)
        started = time.perf_counter()
        engine.learn(chunk, 1)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def table(model: str, rates: Rates) -> Table:
    task = TASKS[model]
    reasons = dict.fromkeys(f"{method}: {why}" for (method, _), why in rates.items() if isinstance(why, str))
    caption = "\n".join([ceiling(task, rates), *reasons])
    made = Table(title=task.title, title_justify="left", caption=caption, caption_justify="left")
    made.add_column("method")
    base = {"× loop": rates[LOOP, 1]} | {f"× batches of {size}": rates[name, 1] for size, name in BATCHES.items()}
    online = [rates.get((name, 1), 0.0) for name in ONLINE]
    base["× best online peer"] = max((rate for rate in online if isinstance(rate, float)), default=0.0)
    for name in ("threads", "records/s", *base):
        made.add_column(name, justify="right")
    for (method, num_threads), rate in rates.items():
        if method != CEILING and isinstance(rate, float):
            ratios = [_ratio(rate, other) for other in base.values()]
            made.add_row(method, str(num_threads), f"{rate:,.0f}", *ratios)
    return made


def _ratio(rate: float, other: float | str) -> str:
    if isinstance(other, str) or not other:
        return ""
    return f"{rate / other:,.2f}" if rate > 0.1 * other else f"{rate / other:.2g}"


def ceiling(task: Task, rates: Rates) -> str:
    operations, rate = rates[CEILING, 1], rates[FUSED, 1]
    assert isinstance(operations, float)
    text = f"torch.mm: {operations / 1e9:.0f} GFLOP/s"
    if not task.widths:
        return text
    most = operations / sum(4 * a * b for a, b in itertools.pairwise(task.widths))
    reached = f", of which the fused engine reaches {rate / most:.0%}" if isinstance(rate, float) else ""
    return f"{text}; two matrix products a record: {most:,.0f} records/s{reached}"


def versions() -> str:
    """The processor and the versions of the peers."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "processor unknown")
    found = []
    for package in sorted(set(PACKAGES.values())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return f"{name}, {os.cpu_count()} cores; {', '.join(found) or 'no peers installed'}"


def as_rows(model: str, rates: Rates) -> Iterator[dict[str, Any]]:
    loop = rates[LOOP, 1]
    for (method, num_threads), rate in rates.items():
        row = {"model": model, "optimizer": TASKS[model].optimizer, "method": method, "threads": num_threads}
        if isinstance(rate, str):
            yield row | {"records_per_second": None, "ratio_to_loop": None, "reason": rate}
        elif method != CEILING:
            ratio = rate / loop if isinstance(loop, float) else None
            yield row | {"records_per_second": rate, "ratio_to_loop": ratio}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write {machine, rows} instead of tables")
    parser.add_argument("--quick", action="store_true", help="the first four models, one thread, short rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=TASKS, metavar="MODEL", help=f"one of {', '.join(TASKS)}")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    warnings.filterwarnings("ignore")  # of the peers
    models = [given.only] if given.only else list(TASKS)[: 4 if given.quick else None]
    console = Console(width=140 if not sys.stdout.isatty() else None)
    if not given.json:
        print(f"{machine()}{versions()}\n")
    everything: dict[str, Rates] = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(models) * given.rounds)
        for model in models:
            progress.update(bar, description=model)
            everything[model] = measure(model, given.rounds, quick=given.quick, advance=lambda: progress.advance(bar))
            if not given.json:
                console.print(table(model, everything[model]), "")
    torch.set_num_threads(1)
    latency, load = single_record(), os.getloadavg()[0]
    if given.json:
        products = statistics.median(float(rates[CEILING, 1]) for rates in everything.values())
        about = {"text": machine().strip(), "versions": versions(), "matrix_product_flops": products}
        about |= {"single_record_microseconds": latency, "load_average": load}
        rows = [row for model, rates in everything.items() for row in as_rows(model, rates)]
        print(json.dumps({"machine": about, "rows": rows}, indent=1))
        return
    print(f"one record, 784-256-10, engine.learn from Python: {latency:.1f} µs (median)")
    print(f"load average at the end: {load:.1f} (over 1.5: others worked too, and rates are lower than they could be)")
    notes = {rate for rates in everything.values() for rate in rates.values() if isinstance(rate, str)}
    missing = sorted(note.partition(": ")[2] for note in notes if note.startswith("not installed"))
    if missing:
        print(f"Not installed: {', '.join(missing)}. Do: {INSTALL}")


if __name__ == "__main__":
    main()
