"""``millstream fit`` and ``millstream learn``: from options to a trainer, its steps shown, its end told."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from millstream import assembly, features, models, sources
from millstream.assembly import Data, Recipe
from millstream.cli import tuned
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import StepProgress, err
from millstream.delay import Delay, parse_delay
from millstream.errors import CheckpointError, DataError, SettingError
from millstream.joining import Joining
from millstream.phase import Phase, Summary, journaled, parse_lateness
from millstream.publishing import Gate, Publisher
from millstream.schema import Schema
from millstream.studies.statistics import seconds_text
from millstream.trainer import Trainer

__all__ = ["OF_A_RECIPE", "OF_THE_COLUMNS", "check_one_name", "folder_of", "numbers", "run"]

OF_A_RECIPE = (
    *("model", "loss", "optimizer", "learning_rate", "weight_decay", "clip_norm", "clip_value", "class_weights"),
    *("replay", "drift", "average"),
    *("engine", "device", "seed", "window", "max_skips", "on_error", "nonfinite", "race"),
)
_MAY_CHANGE = (  # in a run that begins with the weights of another one
    *("learning_rate", "weight_decay", "clip_norm", "clip_value", "engine", "device"),
    *("seed", "window", "max_skips", "on_error", "nonfinite"),
)
OF_THE_COLUMNS = ("target", "columns", "time", "label_time", "id")
_MOST_COLUMNS, _MOST_WIDTH = 20, 110  # of the table of columns


def run(kind: str, options: dict[str, Any], given: set[str]) -> None:
    """Runs ``fit`` or ``learn`` as the options say; ``given`` are those that stand on the command line."""
    options, given = tuned.applied(kind, options, given)
    torch.set_num_threads(options["threads"])
    if kind == "learn":
        options = {**options, "label_delay": _lateness(options)}
    weights = numbers("--class-weights", options["class_weights"])
    options = {**options, "class_weights": weights, "device": options["device"] or "cpu"}
    options["race"] = models.names_of(options["race"])
    trainer, data, folder = _prepared(kind, options, given)
    if not options["as_json"]:
        for line in _welcome(kind, data, trainer, folder):
            err.print(line)
    summary = _run(kind, trainer, data, options)
    try:
        if data.test is not None and summary.finished:
            summary = dataclasses.replace(summary, test=trainer.evaluate(data.test))
    finally:  # records to test on may be bad; what was learned is told nevertheless
        _tell(summary, options["as_json"])
    if not summary.finished:
        place = shlex.quote(str(folder))
        err.print(f"millstream: stopped and committed; go on with the same command and --resume --run {place}")
        raise click.exceptions.Exit(130)


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of an option, with commas between."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            got=f"{option} {text}", wanted="numbers with commas between", do="write e.g. 1,2.5"
        ) from None


def _lateness(options: dict[str, Any]) -> Delay | Joining | None:
    """How late labels are, and what becomes of those that never come."""
    timeout, default, most = (options[name] for name in ("label_timeout", "default_label", "max_open"))
    if options["label_delay"] != "join":
        idle = [name for name in ("label_timeout", "default_label", "max_open") if options[name] is not None]
        if idle:
            raise SettingError(
                got=f"--{_option(idle[0])} for labels that do not join",
                wanted="labels with the ids of their records",
                do="add --label-delay join --id COLUMN, or leave it out",
            )
        return parse_lateness(options["label_delay"])
    waits = Delay() if timeout is None else parse_delay(timeout)
    if timeout is not None and waits == Delay():
        raise SettingError(got=f"--label-timeout {timeout}", wanted="records, or a time", do="write e.g. 1000 or 2h")
    bound = {} if most is None else {"max_open": most}
    return Joining(waits.records, waits.seconds, None if default == "drop" else default, **bound)


def _prepared(kind: str, options: dict[str, Any], given: set[str]) -> tuple[Trainer, Data, Path]:
    name = options["data"]
    folder = folder_of(kind, options)
    is_object = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None and not assembly.is_known(name)
    if not is_object or Path(name).exists():
        return _from_recipe(kind, options, given, folder)
    trainer, data = from_object(options, given)
    if trainer.run is not None and not options["run"] and not options["resume"]:
        return trainer, data, trainer.run.folder
    for warning in trainer.open(folder, resume=options["resume"], exact=options["exact"]):
        err.print(f"millstream: {warning}")
    return trainer, data, folder


def _from_recipe(kind: str, options: dict[str, Any], given: set[str], folder: Path) -> tuple[Trainer, Data, Path]:
    """A new trainer, that of the run to be resumed, or that of another run in a folder of its own."""
    if not options["origin"] and not options["resume"]:
        data = _opened(kind, options, None)
        recipe = Recipe(data.schema, **{name: options[name] for name in OF_A_RECIPE})
        return assembly.build(recipe, run=folder, **_beside(options)), data, folder
    trainer = _descended(options, given) if options["origin"] else _resumed(folder, options, given)
    assert trainer.learner.features is not None
    data = _opened_again(kind, options, trainer)
    if options["origin"]:
        trainer.open(folder)
    elif options["data"] == "-":
        # A pipe that ended is one phase, this one is the next.
        options["resume"] = not trainer.state_dict()["phase"]["finished"]
    return trainer, data, folder


def _opened_again(kind: str, options: dict[str, Any], trainer: Trainer) -> Data:
    """The data, read as the run's schema says. A pipe may have ended meanwhile: the run learns what its journal has."""
    assert trainer.learner.features is not None
    schema = trainer.learner.features.schema
    try:
        return _opened(kind, options, schema)
    except DataError as error:
        if options["data"] != "-" or options["origin"] or not sources.has_no_records(error):
            raise
        assert trainer.run is not None
        phase = Phase.from_state(trainer.state_dict()["phase"])
        return Data("-", journaled(phase, trainer.run.journal), None, schema, ordered=False)


def _beside(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a trainer that are no part of its recipe: how often it commits, and what it hands on."""
    publish, gate = options.get("publish"), options.get("gate")
    if publish is None and gate is not None:
        raise SettingError(got=f"--gate {gate} without --publish", wanted="a folder to publish to", do="name one")
    publisher = None
    if publish is not None:
        quality = None if gate == "none" else Gate() if gate is None else Gate(gate)
        publisher = Publisher(publish, every=options["publish_every"], gate=quality)
    return {"commit_seconds": options["commit_seconds"], "outcomes": options.get("outcomes"), "publish": publisher}


def _run(kind: str, trainer: Trainer, data: Data, options: dict[str, Any]) -> Summary:
    test = None
    progress = StepProgress(trainer, kind, data.train.num_records, options.get("epochs", 1), quiet=options["as_json"])
    with progress, _signals(trainer):
        for step in _steps(kind, trainer, data, options):
            progress.show(step)
            test = step.validation or test
    return trainer.summary(test)


def _steps(kind: str, trainer: Trainer, data: Data, options: dict[str, Any]) -> Iterator[Any]:
    if kind == "fit":
        return trainer.steps(
            data.train,
            kind="fit",
            update_size=options["batch_size"],
            epochs=options["epochs"],
            shuffle=not options["no_shuffle"],
            validation=options["validation"],
            schedule=options["schedule"] or "",
            warmup=options["warmup"] or 0.0,
            resume=options["resume"],
        )
    return trainer.steps(
        data.train, update_size=options["update_size"], label_delay=options["label_delay"], resume=options["resume"]
    )


def check_one_name(options: dict[str, Any]) -> None:
    """Only a Python object has its data in a name of their own."""
    if options["source"]:
        raise SettingError(
            got=f"{options['source']!r} beside {options['data']!r}",
            wanted="one name of data",
            do="join files by a glob in quotes",
        )


def _opened(kind: str, options: dict[str, Any], schema: Schema | None) -> Data:
    """The data; with the ``schema`` of a run, read as it says."""
    check_one_name(options)
    test = options["test"]
    if options["data"] == "-" and kind == "learn" and isinstance(test, float) and test > 0:
        raise SettingError(
            got=f"--test {test:g} of a pipe that is learned as it comes",
            wanted="records of their own",
            do="name a file",
        )
    if test is None and kind == "fit":
        # A fit is judged by records that it has not seen; learning online by what it predicts before it learns.
        test = 0.1
    return assembly.open_data(
        options["data"],
        target=options["target"],
        columns=options["columns"],
        time=options["time"],
        label_time=options["label_time"],
        id=options["id"],
        schema=schema,
        test=test,
        fetch=options["fetch"],
        on_error=options["on_error"],
        seed=options["seed"],
    )


def _resumed(folder: Path, options: dict[str, Any], given: set[str]) -> Trainer:
    """The trainer of a run, whose settings must be those that it began with."""
    trainer = assembly.load(folder, exact=options["exact"], **_beside(options))
    assert trainer.spec is not None
    began = Recipe.from_json(trainer.spec)
    for name in OF_A_RECIPE:
        was = getattr(began, name)
        if name in given and options[name] != was:
            raise SettingError(
                got=f"--{_option(name)} {options[name]} for a run that began with {_told(name, was)}",
                wanted="the settings that it began with",
                do="leave the option out, or begin a new run (--from carries its weights over)",
            )
    return trainer


def _descended(options: dict[str, Any], given: set[str]) -> Trainer:
    """The trainer of another run, which stays as it is."""
    fixed = sorted(given & {*OF_A_RECIPE, "resume"} - {*_MAY_CHANGE})
    if fixed:
        raise SettingError(
            got=f"--{_option(fixed[0])} beside --from {options['origin']}",
            wanted="that run's own model, loss and optimizer" if fixed[0] != "resume" else "one of the two",
            do="leave it out" if fixed[0] != "resume" else "write --resume --run FOLDER to go on in a folder",
        )
    changes = {name: options[name] for name in _MAY_CHANGE if name in given}
    return assembly.snapshot(options["origin"], changes, **_beside(options))


def _told(name: str, value: Any) -> str:
    return "a race of rates" if name == "learning_rate" and value is None else str(value)


def _option(name: str) -> str:
    return {"columns": "column"}.get(name, name.replace("_", "-"))


def from_object(options: dict[str, Any], given: set[str]) -> tuple[Trainer, Data]:
    """A person's own trainer (or a function that makes one), with its data."""
    name = options["data"]
    idle = sorted(given & {*OF_A_RECIPE, *OF_THE_COLUMNS, "commit_seconds", "origin"} - {"seed", "on_error"})
    if idle:
        raise SettingError(
            got=f"--{_option(idle[0])} beside the Python object {name}",
            wanted="settings of the trainer where it is made",
            do=f"set it in {name.partition(':')[0]}.py",
        )
    found = models.load_object(name)
    trainer = models.call_object(name, found) if callable(found) and not isinstance(found, Trainer) else found
    if not isinstance(trainer, Trainer):
        raise SettingError(
            got=f"{type(trainer).__name__} at {name}",
            wanted="a millstream.Trainer, or a function that makes one",
            do="name the trainer itself",
        )
    module = importlib.import_module(name.partition(":")[0])
    source = options["source"] if options["source"] else getattr(module, "source", None)
    if source is None:
        raise SettingError(
            got=f"{name} without data",
            wanted="a source",
            do=f"define `source` in {module.__name__}.py, or name data after it",
        )
    parts = trainer.learner.features
    schema = Schema(()) if parts is None else parts.schema
    if isinstance(source, str):
        data = assembly.open_data(
            source,
            schema=schema if parts is not None else None,
            test=options["test"],
            fetch=options["fetch"],
            on_error=options["on_error"],
            seed=options["seed"],
        )
        data = dataclasses.replace(data, schema=schema)
    else:
        data = Data(name, sources.as_source(source), None, schema, ordered=False)
    test = getattr(module, "test", None)
    return trainer, data if test is None else dataclasses.replace(data, test=sources.as_source(test))


def folder_of(kind: str, options: dict[str, Any]) -> Path:
    """The run folder: as named, else runs/DATA-COMMAND-N with the next free N (with --resume: the last one)."""
    if options["run"]:
        return Path(options["run"])
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(options["data"]).name.split(":")[0]).strip("-.") or "stdin"
    taken = [
        int(path.name.rpartition("-")[2])
        for path in Path("runs").glob(f"{stem}-{kind}-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    if options["resume"] and not taken:
        raise CheckpointError(
            got=f"no run runs/{stem}-{kind}-N to resume", wanted="one", do="name its folder with --run"
        )
    last = max(taken, default=0)
    return Path("runs") / f"{stem}-{kind}-{last if options['resume'] else last + 1}"


@contextmanager
def _signals(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C asks the trainer to stop between two chunks; the second one ends the process at once."""

    def ask(_: int, __: FrameType | None) -> None:
        trainer.stop()
        for each in kinds:
            signal.signal(each, signal.SIG_DFL)
        err.print("millstream: stopping after this chunk; once more ends at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, ask) for each in kinds]
    try:
        yield
    finally:
        for each, handler in zip(kinds, before, strict=True):
            signal.signal(each, handler)


def _welcome(kind: str, data: Data, trainer: Trainer, folder: Path) -> list[str]:
    """What the columns are taken for, and what is about to happen."""
    lines = features.describe(data.schema).splitlines() if data.schema.fields else []
    num_fields = len(data.schema.fields)
    if num_fields > _MOST_COLUMNS:
        head = _MOST_COLUMNS // 2
        lines[1 + head : 1 + num_fields] = [f"… and {num_fields - head} more columns"]
    num = data.train.num_records
    facts = [] if num is None else [f"{num:,} records"]
    facts.append(f"{sum(p.numel() for p in trainer.learner.rule.model.parameters()):,} parameters")
    name = "standard input" if data.name == "-" else data.name
    lines.append(f"{kind} {name}: {', '.join(facts)}; run in {folder}")
    return [line if len(line) <= _MOST_WIDTH else line[: _MOST_WIDTH - 1] + "…" for line in lines[:-1]] + lines[-1:]


def _size(num: int) -> str:
    return "one record" if num == 1 else f"{num:,} records"


def _tell(summary: Summary, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_json())
        return
    counts = [(summary.skipped, "skipped"), (summary.rejected, "refused")]
    counts += [(num, what) for what, num in (summary.labels or {}).items()]
    noise = "" if summary.noise_scale is None else f", noise scale {summary.noise_scale:,.0f}"
    print(
        f"{summary.records:,} records, {summary.updates:,} updates in {seconds_text(summary.seconds)} "
        f"({summary.records_per_second:,.0f} records/s), engine {summary.engine}"
    )
    print(
        f"{summary.optimizer}, η {summary.learning_rate:.3g}, {_size(summary.update_size)} an update{noise}"
        + "".join(f", {num:,} {what}" for num, what in counts if num)
    )
    hidden = {"count", "num_nonfinite"}
    names = [n for n in summary.metrics if not n.startswith("window_") and n not in hidden]
    header = ["", "before each update", "last window", *(["test"] if summary.test else [])]
    rows = []
    for name in names:
        values = [summary.metrics[name], summary.metrics.get(f"window_{name}")]
        values += [summary.test.get(name)] if summary.test else []
        rows.append([name.replace("_", " "), *("" if value is None else f"{value:.4f}" for value in values)])
    if rows:
        print_table(rows, header)
    if summary.checkpoint:
        print(f"checkpoint: {summary.checkpoint}")
