"""What the loop costs beside the engine, against the bare torch loop in the same run.

Run: python benchmarks/overhead.py [--records N] [--rounds N]

Three questions, on one thread, medians over rounds with the sides in turn:

1. reference engine and bare loop, update size 1 and 64: how much slower is `Trainer.learn` than the plain loop, and how
   much of its time is not spent in the engine?
2. a chunk of one record: microseconds outside the engine.
3. chunks of 4,096 records with accuracy and log loss: microseconds a record outside the engine.

For 2 and 3 the engine is one that does nothing but hand out outputs made beforehand, so that all time is the loop's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from millstream.contracts import Chunk, Inputs, Outcome, Questions
from millstream.sources import as_source
from millstream.trainer import Trainer

NUM_INPUTS, NUM_CLASSES = 784, 10


class IdleEngine:
    """An engine of no cost: the outputs were made before."""

    name, optimizer, learning_rate = "idle", "none", 0.0

    def __init__(self, size: int) -> None:
        self._size = size
        self._outputs, self._losses = torch.randn(size, NUM_CLASSES), torch.rand(size)

    def chunk_size(self, update_size: int) -> int:
        return self._size

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        num = len(chunk)
        return Outcome(self._outputs[:num], self._losses[:num], num)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._outputs[: len(inputs)]


class TimedEngine:
    """The reference engine with a clock around it."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.seconds = engine, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def learn(self, chunk: Chunk, update_size: int, questions: Questions | None = None) -> Outcome:
        started = time.perf_counter()
        outcome: Outcome = self._engine.learn(chunk, update_size, questions)
        self.seconds += time.perf_counter() - started
        return outcome


def model_of(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    if name == "linear":
        return nn.Sequential(nn.Linear(NUM_INPUTS, NUM_CLASSES))
    return nn.Sequential(nn.Linear(NUM_INPUTS, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES))


def bare_loop(name: str, x: Tensor, y: Tensor, size: int) -> float:
    """What people write: forward, backward, step, with the prediction scored. Seconds."""
    model = model_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hits = 0
    started = time.perf_counter()
    for first in range(0, len(x), size):
        outputs, targets = model(x[first : first + size]), y[first : first + size]
        loss = nn.functional.cross_entropy(outputs, targets)
        hits += int((outputs.argmax(1) == targets).sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def trainer_loop(name: str, x: Tensor, y: Tensor, size: int) -> tuple[float, float]:
    """Seconds of `Trainer.learn`, and of them the seconds outside the engine."""
    model = model_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, "cross_entropy", optimizer, engine="reference")
    timed = TimedEngine(trainer.learner.engine)
    trainer.learner.engine = timed
    started = time.perf_counter()
    trainer.learn((x, y), update_size=size)
    total = time.perf_counter() - started
    return total, total - timed.seconds


def idle_loop(size: int, num: int) -> float:
    """Microseconds a record of everything but the engine."""
    model = model_of("linear")
    trainer = Trainer(model, "cross_entropy", torch.optim.SGD(model.parameters(), lr=0.01))
    trainer.learner.engine = IdleEngine(size)
    source = as_source((torch.randn(num, NUM_INPUTS), torch.randint(NUM_CLASSES, (num,))))
    started = time.perf_counter()
    trainer.learn(source)
    return (time.perf_counter() - started) / num * 1e6


def median(measure: Callable[[], float], rounds: int) -> float:
    return statistics.median(measure() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"{'model':8} {'size':>5} {'bare loop':>14} {'Trainer.learn':>14} {'slower by':>10} {'outside engine':>15}")
    for name in ("linear", "mlp:256"):
        for size in (1, 64):
            num = arguments.records * (1 if size == 1 else 20)
            x, y = torch.rand(num, NUM_INPUTS), torch.randint(NUM_CLASSES, (num,))
            bare, ours, outside = [], [], []
            for _ in range(arguments.rounds):
                bare.append(bare_loop(name, x, y, size))
                total, rest = trainer_loop(name, x, y, size)
                ours.append(total)
                outside.append(rest / total)
            slower = statistics.median(b / a for a, b in zip(bare, ours, strict=True)) - 1
            rates = [f"{num / statistics.median(each):10,.0f}/s" for each in (bare, ours)]
            print(f"{name:8} {size:5} {rates[0]:>14} {rates[1]:>14} {slower:10.1%} {statistics.median(outside):15.1%}")
    one = median(lambda: idle_loop(1, arguments.records), arguments.rounds)
    many = median(lambda: idle_loop(4096, 100 * 4096 if arguments.records >= 3000 else 8 * 4096), arguments.rounds)
    print(f"\nchunks of one record: {one:.1f} µs a record outside the engine (wanted: 20)")
    print(f"chunks of 4,096 records: {many:.3f} µs a record outside the engine (wanted: 0.2)")


def machine() -> str:
    """The machine, the versions and the commit, in one line."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    here = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, one thread"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
    return f"{here}; {versions}; commit {commit}\n"


if __name__ == "__main__":
    main()
