"""What a person sees while a run goes on, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from millstream.phase import Step

__all__ = ["StepProgress", "counted", "err", "out", "table"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_LINE_SECONDS = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "…", style="cyan")


class StepProgress:
    """Shows the steps of a trainer: records, rate, loss, window metric and its baseline, learning rate, time left."""

    def __init__(self, trainer: Any, total: int | None, *, quiet: bool) -> None:
        self._trainer, self._total = trainer, total
        self._started = self._shown = time.monotonic()
        self._begun_at: int | None = None
        self._bar: Progress | None = None
        self._quiet = quiet and not err.is_terminal
        if err.is_terminal:
            columns = (
                *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed:,}")),
                *(_Rate(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn(compact=True)),
            )
            self._bar = Progress(*columns, console=err, transient=True)
            self._task = self._bar.add_task("", total=total, facts="")

    def __enter__(self) -> StepProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: Step) -> None:
        if self._begun_at is None:
            self._begun_at = step.records - step.num_records
        if self._bar is not None:
            if time.monotonic() - self._shown > 0.1:
                self._shown = time.monotonic()
                self._bar.update(
                    self._task, completed=step.records, facts=self._facts(step), description=self._name(step)
                )
        elif not self._quiet and time.monotonic() - self._shown > _LINE_SECONDS:
            self._shown = time.monotonic()
            rate = (step.records - self._begun_at) / (self._shown - self._started)
            total = f" of {self._total:,}" if self._total else ""
            err.print(f"{self._name(step)}  {step.records:,}{total} records  {rate:,.0f}/s  {self._facts(step)}")
        if step.validation is not None and not self._quiet:
            name = next(n for n in ("accuracy", "mae", "loss") if n in step.validation)
            err.print(f"epoch {step.epoch + 1}: test {name.replace('_', ' ')} {step.validation[name]:.4g}")

    def _name(self, step: Step) -> str:
        return f"epoch {step.epoch + 1}"

    def _facts(self, step: Step) -> str:
        metrics = self._trainer.metrics
        found = None if metrics is None else metrics.window_headline()
        facts = [f"η {step.learning_rate:.3g}"]
        if step.scored is not None and len(step.scored.losses):
            facts.insert(0, f"loss {float(step.scored.losses.mean()):.3f}")
        if found is not None:
            name, baseline = metrics.headline
            value, other = found
            facts.insert(
                1,
                f"{name} {value:.3f}"
                + (f" ({baseline.split('_mae')[0].split('_acc')[0]} {other:.3f})" if baseline else ""),
            )
        return "  ".join(facts)


@contextmanager
def counted(title: str) -> Iterator[Any]:
    """A bar for jobs that are counted: ``show(text, done, total)``."""
    if not err.is_terminal:
        last = [time.monotonic()]

        def line(text: str, done: int, total: int) -> None:
            if done == total or time.monotonic() - last[0] > _LINE_SECONDS:
                last[0] = time.monotonic()
                err.print(f"{title}: {done} of {total}  {text}")

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"))
    with Progress(*columns, TimeRemainingColumn(compact=True), console=err, transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def update(text: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, text=f"{done} of {total}  {text}")

        yield update


def table(rows: list[tuple[str, ...]], header: tuple[str, ...], title: str = "") -> None:
    """Prints a table: the first column to the left, the others to the right."""
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        drawn.add_column(name, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for row in rows:
        drawn.add_row(*row)
    (out if sys.stdout.isatty() else Console(width=110, highlight=False)).print(drawn)
