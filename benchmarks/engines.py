"""The same per-sample algorithm by engine, beside torch's mini-batches and the machine's ceiling, in one run.

Run: python benchmarks/engines.py [--rounds N]

One thread; the sides in turn, medians over rounds; records a second of the updates alone. The ceiling is what two
matrix products a record would allow at the speed of `torch.mm` of 1024 × 1024 in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from millstream import losses
from millstream.contracts import Chunk
from millstream.engines import UpdateRule, choose
from overhead import machine

NETWORKS = {"784-10": (784, 10), "784-256-10": (784, 256, 10), "784-256-256-256-10": (784, 256, 256, 256, 10)}
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
}


def network(widths: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def rate(engine: str, widths: tuple[int, ...], optimizer: str, x: Tensor, y: Tensor, size: int = 1) -> float:
    """Records a second of one engine, after a warm-up on the same engine."""
    model = network(widths)
    made = choose(
        engine, UpdateRule(model, losses.resolve("cross_entropy"), OPTIMIZERS[optimizer](list(model.parameters())))
    )
    made.learn(Chunk(x[: 4 * size], y[: 4 * size]), size)
    chunk_size = made.chunk_size(size)
    started = time.perf_counter()
    for first in range(0, len(x), chunk_size):
        made.learn(Chunk(x[first : first + chunk_size], y[first : first + chunk_size], start=first), size)
    return len(x) / (time.perf_counter() - started)


def ceiling(widths: tuple[int, ...]) -> float:
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    torch.mm(a, b)
    started = time.perf_counter()
    for _ in range(10):
        torch.mm(a, b)
    flops = 10 * 2 * 1024**3 / (time.perf_counter() - started)
    return flops / sum(4 * i * o for i, o in itertools.pairwise(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(machine())
    names = ("reference", "fused", "mini-batch 64", "mini-batch 512", "ceiling")
    print(f"{'network':20} {'optimizer':10}" + "".join(f"{name:>16}" for name in names))
    x = torch.rand(8192, 784)
    x[x < 0.8] = 0
    y = torch.randint(10, (8192,))
    for (name, widths), optimizer in itertools.product(NETWORKS.items(), OPTIMIZERS):
        found: dict[str, list[float]] = {side: [] for side in names}
        for _ in range(rounds):
            found["reference"].append(rate("reference", widths, optimizer, x[:1024], y[:1024]))
            found["fused"].append(rate("fused", widths, optimizer, x, y))
            found["mini-batch 64"].append(rate("reference", widths, optimizer, x, y, 64))
            found["mini-batch 512"].append(rate("reference", widths, optimizer, x, y, 512))
            found["ceiling"].append(ceiling(widths))
        cells = "".join(f"{statistics.median(found[side]):16,.0f}" for side in names)
        print(f"{name:20} {optimizer:10}{cells}")


if __name__ == "__main__":
    main()
