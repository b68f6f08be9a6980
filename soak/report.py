"""What a part has found, and the table of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

__all__ = ["Finding", "table"]


@dataclasses.dataclass(slots=True)
class Finding:
    """One row: how often something was done to how many runs, and what was wrong after it."""

    part: str
    name: str
    num: int = 0
    num_runs: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    skipped: str = ""  # why the part could not run here
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        return f"skipped: {self.skipped}" if self.skipped else f"BAD: {self.bad[0]}" if self.bad else "ok"


def table(findings: Iterable[Finding]) -> str:
    """As Markdown.

    >>> print(table([Finding("kills", "2 scenarios", 40, 2, seconds=3.0)]))
    | part | what | times | runs | seconds | verdict |
    |---|---|---:|---:|---:|---|
    | kills | 2 scenarios | 40 | 2 | 3.0 | ok |
    """
    lines = ["| part | what | times | runs | seconds | verdict |", "|---|---|---:|---:|---:|---|"]
    for one in findings:
        lines.append(
            f"| {one.part} | {one.name} | {one.num:,} | {one.num_runs:,} | {one.seconds:.1f} | {one.verdict} |"
        )
    return "\n".join(lines)
