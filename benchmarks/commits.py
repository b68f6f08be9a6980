"""What a commit costs the loop, and how long a restart takes.

Run: python benchmarks/commits.py [--megabytes N,N…] [--seconds S] [--rounds N] [--folder FOLDER]

1. A commit of so many megabytes: how long the loop waits for the snapshot, processor time of the thread, time until it
   is durable, the default interval that follows from it, and the share of the processor that commits take then.
2. The longest gap in a busy Python loop while such a commit is written; beside it the same gap with nothing written,
   and with safetensors' own save_file in the thread.
3. The time of a real model's learning with commits at the default interval against none, sides in turn. A busy machine
   makes this noisy; the spread says how much.
4. A restart: seconds in a new process from `import torch` to the first chunk that is learned again.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from millstream import checkpoint
from millstream.commits import Commits
from millstream.trainer import Trainer

NUM_COMMITS = 7

RESTART = """
import time
began = time.perf_counter()
import torch
marks = [("import torch", time.perf_counter())]
torch.set_num_threads(1)
from torch import nn
from millstream.trainer import Trainer
marks.append(("import millstream", time.perf_counter()))
import sys
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(784, int(sys.argv[2])), nn.ReLU(), nn.Linear(int(sys.argv[2]), 10))
trainer = Trainer(model, optimizer=torch.optim.Adam(model.parameters()))
marks.append(("build the trainer", time.perf_counter()))
for warning in trainer.open(sys.argv[1], resume=True):
    print(warning, file=sys.stderr)
marks.append(("read the checkpoint", time.perf_counter()))
x, y = torch.randn(4096, 784), torch.randint(10, (4096,))
for step in trainer.steps((x, y)):
    break
marks.append(("learn the first chunk", time.perf_counter()))
for name, at in marks:
    print(f"{name}\\t{at - began}")
    began = at
"""


def state_of(megabytes: float) -> dict[str, Any]:
    """Eight tensors and a little JSON."""
    return {"tensors": [torch.randn(int(megabytes * 1e6 / 32)) for _ in range(8)], "numbers": list(range(100))}


def busy(work: Callable[[], Any]) -> float:
    """The longest gap in a loop that only looks at the clock while ``work`` goes on in a thread, in milliseconds."""
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    thread, worst = threading.Thread(target=run), 0.0
    thread.start()
    last = time.perf_counter()
    while not done.is_set():
        now = time.perf_counter()
        worst, last = max(worst, now - last), now
    thread.join()
    return worst * 1e3


def cost(megabytes: float, folder: Path) -> list[str]:
    commits = Commits(folder / f"cost-{megabytes:g}", {}, keep=3, seconds="auto")
    state, pauses, costs, took = state_of(megabytes), [], [], []
    for number in range(NUM_COMMITS + 1):
        commits.commit(state)
        if number:  # the first one touches new memory
            pauses.append(commits.pause * 1e3)
            costs.append(commits.cost * 1e3)
            took.append(commits.took * 1e3)
    commits.cost, commits.took = statistics.median(costs) / 1e3, statistics.median(took) / 1e3
    share = commits.cost / commits.interval
    numbers = [min(pauses), statistics.median(pauses), max(pauses), commits.cost * 1e3, commits.took * 1e3]
    return [f"{megabytes:g} MB", *(f"{number:.1f}" for number in numbers), f"{commits.interval:.1f}", f"{share:.2%}"]


def gaps(megabytes: float, folder: Path) -> list[str]:
    state, place = state_of(megabytes), folder / "gap"
    snapshot = checkpoint.take(state, checkpoint.Block())
    tensors = {str(number): tensor for number, tensor in enumerate(state["tensors"])}
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: checkpoint.store(place, snapshot),
        "save_file": lambda: save_file(tensors, folder / "theirs.safetensors"),
        "nothing": lambda: time.sleep(0.3),
    }
    found = {name: [busy(work) for _ in range(NUM_COMMITS)] for name, work in sides.items()}
    return [f"{megabytes:g} MB", *(f"{min(each):.1f} / {statistics.median(each):.1f}" for each in found.values())]


def learning(megabytes: float, seconds: float, rounds: int, folder: Path) -> list[str]:
    """Chunks a second of processor time and of the clock, with commits over without."""
    hidden = max(1, int(megabytes * 1e6 / 12 / 795))
    clocks: dict[str, list[float]] = {"commits": [], "none": []}
    x, y = torch.randn(200_000, 784), torch.randint(10, (200_000,))
    trainers = {}
    for name in clocks:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        optimizer = torch.optim.Adam(model.parameters())
        run = folder / f"learning-{megabytes:g}" if name == "commits" else None
        trainers[name] = Trainer(model, optimizer=optimizer, run=run)
    num_commits = 0
    for number in range(rounds + 1):
        for name, trainer in trainers.items():
            records, began = 0, time.perf_counter()
            for step in trainer.steps((x, y), update_size=64):
                records += step.num_records
                if time.perf_counter() - began > (seconds if number else 2):
                    break
            if number:  # the first round warms up
                clocks[name].append((time.perf_counter() - began) / records * 1e6)
    if trainers["commits"].run is not None:
        num_commits = int(checkpoint.kept(trainers["commits"].run.checkpoints)[-1].name) - rounds
    ratios = sorted(a / b - 1 for a, b in zip(clocks["commits"], clocks["none"], strict=True))
    middle = statistics.median(ratios)
    return [f"{megabytes:g} MB", f"{num_commits}", f"{middle:+.2%}", f"{ratios[0]:+.1%} … {ratios[-1]:+.1%}"]


def restart(megabytes: float, rounds: int, folder: Path) -> list[tuple[str, float]]:
    hidden, place = max(1, int(megabytes * 1e6 / 12 / 795)), folder / f"restart-{megabytes:g}"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    trainer = Trainer(model, optimizer=torch.optim.Adam(model.parameters()), run=place)
    trainer.learn((torch.randn(64, 784), torch.randint(10, (64,))))
    trainer.close()
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        command = [sys.executable, "-c", RESTART, str(place), str(hidden)]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            name, _, number = line.partition("\t")
            found.setdefault(name, []).append(float(number))
    return [(name, statistics.median(each)) for name, each in found.items()]


def measure(sizes: list[float], seconds: float, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The four tables, each with its title, header and rows."""
    one = ["state", "wait least ms", "median", "most", "processor ms", "durable after ms", "interval s", "share"]
    found = restart(min(10.0, sizes[-1]), min(3, rounds), folder)
    rows = [
        ("1. One commit", one, [cost(size, folder) for size in sizes]),
        (
            "2. Longest gap of a busy loop in ms: least / median",
            ["state", "ours", "save_file", "nothing"],
            [gaps(size, folder) for size in sizes],
        ),
        (
            "3. Learning with commits against without",
            ["state", "timed commits", "time a record", "spread"],
            [learning(size, seconds, rounds, folder) for size in sizes],
        ),
        ("4. A restart", ["step", "seconds"], [[step, f"{took:.2f}"] for step, took in found]),
    ]
    return [{"title": title, "header": header, "rows": each} for title, header, each in rows]


def show(tables: list[dict[str, Any]]) -> None:
    for each in tables:
        header = each["header"]
        print(f"\n{each['title']}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for row in each["rows"]:
            print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", default="1,10,30,100")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where commits go: its disk is what is measured")
    options = parser.parse_args()
    sizes = [float(word) for word in options.megabytes.split(",")]
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        show(measure(sizes, options.seconds, options.rounds, Path(name)))


if __name__ == "__main__":
    main()
