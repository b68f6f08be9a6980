"""What a person sees while a run goes on, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from millstream.phase import Step

__all__ = ["StepProgress", "counted", "err"]

# Lines are left whole: who reads them in a file can search them. Names in them are no markup.
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
_LINE_SECONDS = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "…", style="cyan")


class StepProgress:
    """Shows the steps of a trainer: records, rate, loss, window metric and its baseline, learning rate, time left."""

    def __init__(self, trainer: Any, kind: str, total: int | None, epochs: int | str, *, quiet: bool) -> None:
        self._trainer, self._kind, self._epochs = trainer, kind, epochs
        self._total = None if total is None or isinstance(epochs, str) else total * epochs
        self._started = self._shown = time.monotonic()
        self._begun_at: int | None = None
        self._bar: Progress | None = None
        self._quiet = quiet
        if err.is_terminal:
            columns = (
                *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.completed:,}")),
                *(_Rate(), TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True, ratio=1))),
                TimeRemainingColumn(compact=True),
            )
            self._bar = Progress(*columns, console=err, transient=True, expand=True)
            self._task = self._bar.add_task(kind, total=self._total, facts="")

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
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown > 0.1:
                self._shown = now
                facts = self._facts(step)
                self._bar.update(self._task, completed=step.records, facts=facts, description=self._name(step))
        elif not self._quiet and now - self._shown > _LINE_SECONDS:
            self._shown = now
            rate = (step.records - self._begun_at) / (now - self._started)
            total = f" of {self._total:,}" if self._total else ""
            err.print(f"{self._name(step)}  {step.records:,}{total} records  {rate:,.0f}/s  {self._facts(step)}")
        if step.validation is not None and not self._quiet:
            name = next(n for n in ("accuracy", "mae", "loss") if n in step.validation)
            err.print(f"{self._name(step)}  validation {name} {step.validation[name]:.4g}")

    def _name(self, step: Step) -> str:
        if self._kind == "learn":
            return self._kind
        return f"epoch {step.epoch + 1}" + (f"/{self._epochs}" if self._epochs != "auto" else "")

    def _facts(self, step: Step) -> str:
        metrics = self._trainer.metrics
        facts = [f"η {step.learning_rate:.3g}"]
        if self._kind == "fit":
            facts.append(f"batch {step.update_size}")
        found = None if metrics is None else metrics.window_headline()
        if found is not None:
            name, baseline = metrics.headline
            value, other = found
            facts.insert(0, f"{name} {value:.3f}")
            if baseline:
                facts[0] += f" ({baseline.removesuffix(f'_{name}').replace('_', '-')} {other:.3f})"
        if step.scored is not None and len(step.scored.losses):
            facts.insert(0, f"loss {float(step.scored.losses.mean()):.3f}")
        return "  ".join(facts)


@contextmanager
def counted(title: str, *, quiet: bool) -> Iterator[Any]:
    """A bar for jobs that are counted: ``show(text, done, total)``."""
    if not err.is_terminal:
        last = [time.monotonic()]

        def line(text: str, done: int, total: int) -> None:
            if not quiet and (done == total or time.monotonic() - last[0] > _LINE_SECONDS):
                last[0] = time.monotonic()
                err.print(f"{title}: {done} of {total}  {text}")

        yield line
        return
    text_column = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, ratio=1))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(16), text_column)
    with Progress(*columns, TimeRemainingColumn(compact=True), console=err, transient=True, expand=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def update(text: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, text=f"{done} of {total}  {text}")

        yield update
