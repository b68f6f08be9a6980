"""python -m soak: runs the parts of the proof and prints a table. Ends with 1 if anything was bad."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soak import corruption, faults, kills, planted, powercuts, scenarios
from soak.report import Finding, table

_QUICK = {"kills": 60, "cuts": 12, "faults": 6, "corruption": 40, "evil": 0, "planted": 0}
_WHOLE = {"kills": 10_000, "cuts": 1_000, "faults": 120, "corruption": 1_000, "evil": 0, "planted": 0}
_FEW_BUGS = ("acknowledged before the commit", "lines not synced", "optimizer not loaded", "damage not looked for")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*_WHOLE, []], help="all, if none is named")
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    parser.add_argument("--num", type=int, help="how many kills, cuts, faults or damages, in place of a soak's")
    parser.add_argument("--seconds", type=float, help="begin nothing new in a part after so long")
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--only", default="", metavar="WORD", help="kills: the scenarios whose name holds it")
    parser.add_argument("--log", type=Path, help="kills: a line of JSON for each run is added to this file")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    kills.make_ready()
    findings = []
    for finding in _run(options):
        findings.append(finding)
        print(f"{finding.part}: {finding.verdict} ({finding.num:,}, {finding.seconds:.1f} s)", flush=True)
        for text in finding.bad[:20]:
            print(f"  {text}")
    print(table(findings))
    return int(any(finding.bad for finding in findings))


def _run(options: argparse.Namespace) -> Iterator[Finding]:
    sizes = _QUICK if options.quick else _WHOLE
    limits: dict[str, Any] = {"seconds": options.seconds}
    for part in options.parts or sizes:
        num = options.num or sizes[part]
        doers: dict[str, Callable[..., Finding]] = {
            "kills": lambda num: _kill(options, num),
            "cuts": lambda num: powercuts.cut_power(powercuts.FEW, num, options.seed, **limits),
            "faults": lambda num: faults.break_disk(faults.FEW, num, options.seed),
            "corruption": lambda num: corruption.corrupt(num, options.seed, **limits),
            "evil": lambda num: corruption.evil(),
            "planted": lambda num: planted.hunt_all(options.seed, _FEW_BUGS if options.quick else ()),
        }
        yield doers[part](num)


def _kill(options: argparse.Namespace, num: int) -> Finding:
    chosen = scenarios.few() if options.quick else list(scenarios.by_name([options.only]))
    if options.log is None:
        return kills.kill(chosen, num, options.seed, seconds=options.seconds)
    with options.log.open("a", encoding="utf-8") as log:
        return kills.kill(chosen, num, options.seed, seconds=options.seconds, log=log)


if __name__ == "__main__":
    sys.exit(main())
