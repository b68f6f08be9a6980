"""What has come of runs that were killed: how often, at what, and whether they ended as the one left alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

__all__ = ["Survival"]

_SHOWN = 5


@dataclasses.dataclass(slots=True)
class Survival:
    """The result of ``check_kills``. ``print(found)`` shows it; ``is_identical`` is None before a run has ended."""

    name: str
    seed: int
    num_asked: int  # kills
    num_records: int  # of one run
    seconds_alone: float  # of the run that was left alone
    kills: Counter[str] = dataclasses.field(default_factory=Counter)  # by what the process was at
    num_runs: int = 0  # that were killed, resumed and ended
    differences: list[str] = dataclasses.field(default_factory=list)  # names of what differs in a run, if one does
    seconds: float = 0.0

    @property
    def num_kills(self) -> int:
        return self.kills.total()

    @property
    def is_identical(self) -> bool | None:
        return not self.differences if self.num_runs else None

    @property
    def verdict(self) -> str:
        """One sentence.

        >>> found = Survival("mine", 0, 100, 500, 0.3)
        >>> found.add(Counter(starting=2, learning=5), ["learner.optimizer.state.0.exp_avg"])
        >>> found.verdict
        'DIFFERENT: a run that was killed 7 times ended otherwise than the one left alone'
        """
        if self.is_identical is None:
            return "NOTHING PROVED: no run was killed and ended in the time given"
        if self.differences:
            return f"DIFFERENT: a run that was killed {self.num_kills} times ended otherwise than the one left alone"
        runs = f"{self.num_runs} run" + "s" * (self.num_runs != 1)
        return f"IDENTICAL: {runs}, killed {self.num_kills} times in all, ended bit for bit as the one left alone"

    def add(self, kills: Counter[str], differences: list[str]) -> None:
        """Takes up a run that has ended."""
        self.kills += kills
        self.num_runs += 1
        self.differences = differences

    def to_json(self) -> dict[str, Any]:
        facts = {"name": self.name, "seed": self.seed, "identical": self.is_identical, "verdict": self.verdict}
        counts = {"kills": self.num_kills, "kills_asked": self.num_asked, "kills_while": dict(self.kills)}
        sizes = {"runs": self.num_runs, "records": self.num_records, "differences": self.differences}
        return {**facts, **counts, **sizes, "seconds_alone": self.seconds_alone, "seconds": self.seconds}

    def __str__(self) -> str:
        while_ = ", ".join(f"{number} while {stage}" for stage, number in sorted(self.kills.items()))
        lines = [
            f"{self.name}: {self.num_records:,} records a run, {self.seconds_alone:.2f} s when left alone",
            f"{self.num_kills} of {self.num_asked} kills in {self.seconds:.1f} s, seed {self.seed}: {while_ or 'none'}",
        ]
        if self.num_kills < self.num_asked and not self.differences:
            lines.append("The time was over before all were done: give more with --seconds.")
        if self.differences:
            more = len(self.differences) - _SHOWN
            named = ", ".join(self.differences[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"What differs: {named}.")
            lines.append("Look for state that no checkpoint holds: globals, files, generators, a changing source.")
        return "\n".join([*lines, self.verdict])
