"""``millstream fit`` and ``millstream learn``: from options to a trainer, its steps shown, its end told."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from millstream import assembly, features, models, sources
from millstream.assembly import Data, Recipe
from millstream.cli.progress import StepProgress, err, table
from millstream.errors import SettingError
from millstream.phase import Summary
from millstream.schema import Schema
from millstream.trainer import Trainer

__all__ = ["run", "test_of"]

_RECIPE = ("model", "loss", "optimizer", "learning_rate", "weight_decay", "clip_norm", "clip_value", "engine", "device")
_RUN = ("seed", "window", "max_skips", "on_error", "nonfinite")


def run(kind: str, options: dict[str, Any], given: set[str]) -> None:
    """Runs ``fit`` or ``learn`` as the options say."""
    torch.set_num_threads(max(1, options["threads"]))
    folder = _folder(kind, options)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", options["data"]) and not Path(options["data"]).exists():
        trainer, data = _from_object(options)
        if options["run"] or options["resume"] or trainer.run is None:
            for warning in trainer.open(folder, resume=options["resume"]):
                err.print(f"millstream: {warning}")
        elif trainer.run is not None:
            folder = trainer.run.folder
    else:
        data = _opened(kind, options)
        trainer = _trainer(data, folder, options, given)
    if not options["as_json"]:
        err.print(_welcome(kind, data, trainer, folder))
    steps = _steps(kind, trainer, data, options)
    test = None
    total = data.train.num_records
    with (
        StepProgress(trainer, total and total * options.get("epochs", 1), quiet=options["as_json"]) as shown,
        _signals(trainer),
    ):
        for step in steps:
            shown.show(step)
            test = step.validation or test
    summary = trainer.summary(test)
    if data.test is not None and summary.finished:
        summary = dataclasses.replace(summary, test=trainer.evaluate(data.test))
    _tell(summary, options["as_json"])
    if not summary.finished:
        err.print(f"millstream: stopped and committed; go on with the same command and: --resume --run {folder}")
        sys.exit(130)


def test_of(value: str | None) -> float | str | None:
    """``--test`` is a fraction or a file."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return value


def _steps(kind: str, trainer: Trainer, data: Data, options: dict[str, Any]) -> Iterator[Any]:
    if kind == "fit":
        return trainer.steps(
            data.train,
            kind="fit",
            update_size=options["batch_size"],
            epochs=options["epochs"],
            shuffle=not options["no_shuffle"],
            validation=options["validation"],
            resume=options["resume"],
        )
    return trainer.steps(
        data.train, update_size=options["update_size"], label_delay=options["label_delay"], resume=options["resume"]
    )


def _opened(kind: str, options: dict[str, Any]) -> Data:
    if options["source"]:
        raise SettingError(
            got=f"{options['source']!r} beside {options['data']!r}",
            wanted="one name of data",
            do="join files by a glob",
        )
    # A fit is judged by records that it has not seen; learning online is judged by what it predicts before it learns.
    test = test_of(options["test"]) if options["test"] is not None or kind == "learn" else 0.1
    return assembly.open_data(
        options["data"],
        target=options["target"],
        columns=options["columns"],
        time=options["time"],
        label_time=options["label_time"],
        test=test,
        fetch=options["fetch"],
        on_error=options["on_error"],
        seed=options["seed"],
    )


def _trainer(data: Data, folder: Path, options: dict[str, Any], given: set[str]) -> Trainer:
    if options["resume"]:
        trainer = assembly.load(folder)
        spec = trainer.spec or {}
        for name in (*_RECIPE, "seed"):
            if name in given and name in spec and options[name] != spec[name]:
                raise SettingError(
                    got=f"{name.replace('_', ' ')} {options[name]} for a run that began with {spec[name]}",
                    wanted="the settings that it began with",
                    do="leave the option out, or begin a new run",
                )
        return trainer
    weights = options["class_weights"]
    recipe = Recipe(
        data.schema,
        **{name: options[name] for name in (*_RECIPE, *_RUN)},
        class_weights=None if weights is None else _numbers("--class-weights", weights),
    )
    return assembly.build(recipe, run=folder, commit_seconds=options["commit_seconds"])


def _from_object(options: dict[str, Any]) -> tuple[Trainer, Data]:
    """A person's own trainer (or a function that makes one), with its data."""
    sys.path.insert(0, str(Path.cwd()))
    found = models.load_object(options["data"])
    trainer = found() if callable(found) and not isinstance(found, Trainer) else found
    if not isinstance(trainer, Trainer):
        raise SettingError(
            got=f"a {type(trainer).__name__} at {options['data']}",
            wanted="a millstream.Trainer",
            do="name the trainer itself",
        )
    module = importlib.import_module(options["data"].partition(":")[0])
    source = options["source"] if options["source"] else getattr(module, "source", None)
    if source is None:
        raise SettingError(
            got=f"{options['data']} without data",
            wanted="a source",
            do=f"define `source` in {module.__name__}.py, or name data after it",
        )
    if isinstance(source, str):
        data = assembly.open_data(source, test=test_of(options["test"]), fetch=options["fetch"], seed=options["seed"])
    else:
        schema = trainer.learner.features.schema if trainer.learner.features is not None else Schema(())
        data = Data(options["data"], sources.as_source(source), None, schema, ordered=False)
    test = getattr(module, "test", None)
    return trainer, data if test is None else dataclasses.replace(data, test=sources.as_source(test))


def _folder(kind: str, options: dict[str, Any]) -> Path:
    """The run folder: as named, else runs/DATA-COMMAND-N with the next free N (with --resume: the last one)."""
    if options["run"]:
        return Path(options["run"])
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(options["data"]).name.split(":")[0]).strip("-") or "stdin"
    taken = [
        int(path.name.rpartition("-")[2])
        for path in Path("runs").glob(f"{stem}-{kind}-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    last = max(taken, default=0)
    return Path("runs") / f"{stem}-{kind}-{last if options['resume'] else last + 1}"


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C asks the trainer to stop between two chunks; the second one ends the process at once."""

    def ask(number: int, _: FrameType | None) -> None:
        trainer.stop()
        for each in kinds:
            signal.signal(each, signal.SIG_DFL)
        err.print("\nmillstream: stopping after this chunk; once more ends at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, ask) for each in kinds]
    try:
        yield
    finally:
        for each, handler in zip(kinds, before, strict=True):
            signal.signal(each, handler)


def _welcome(kind: str, data: Data, trainer: Trainer, folder: Path) -> str:
    num = data.train.num_records
    engine = trainer.learner.engine.name
    size = sum(p.numel() for p in trainer.learner.rule.model.parameters())
    lines = [features.describe(data.schema)] if data.schema.fields else []
    many = "a stream of" if num is None else f"{num:,}"
    lines.append(f"{kind} on {many} records of {data.name}: {size:,} parameters, engine {engine}, run in {folder}")
    return "\n".join(lines)


def _tell(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary.to_json()))
        return
    print(
        f"{summary.records:,} records, {summary.updates:,} updates in {summary.seconds:.1f} s "
        f"({summary.records_per_second:,.0f} records/s)"
        + (f", {summary.skipped:,} skipped" if summary.skipped else "")
        + (f", {summary.rejected:,} refused" if summary.rejected else "")
    )
    hidden = {"count", "num_nonfinite"}
    names = [n for n in summary.metrics if not n.startswith("window_") and n not in hidden]
    header: tuple[str, ...] = ("", "before each update", "last window") + (("test",) if summary.test else ())
    rows: list[tuple[str, ...]] = []
    for name in names:
        row = (name.replace("_", " "), _text(summary.metrics[name]), _text(summary.metrics.get(f"window_{name}")))
        rows.append((*row, _text(summary.test.get(name))) if summary.test else row)
    if rows:
        table(rows, header)
    if summary.checkpoint:
        print(f"checkpoint: {summary.checkpoint}")


def _text(value: float | None) -> str:
    return (
        "" if value is None else (f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}")
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            got=f"{option} {text}", wanted="numbers with commas between", do="write e.g. 1,2.5"
        ) from None
