"""The command line: options here, work in the modules beside, which are loaded when a command runs.

``--help`` and a usage error must not wait for torch, so nothing here imports it.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from millstream import __version__
from millstream.cli import journal_commands, shared
from millstream.cli.options import Commands, fraction, in_one_line, number, whole
from millstream.cli.tune_options import about_tuning
from millstream.errors import MillstreamError

__all__ = ["cli", "main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Train PyTorch models in batches and online: same model, same loop, same checkpoint.

    DATA is a public data set by name (see `millstream data list`), a file or glob (CSV, JSON Lines, Parquet, Arrow;
    plain, gzip, zstd), or - for standard input.
    """


def main() -> int:
    """Runs a command and gives its exit code. What a person did wrong is said in one line, with exit code 2."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = _show_warning
        try:
            return int(cli.main(prog_name="millstream", standalone_mode=False) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
        except (MillstreamError, click.ClickException) as error:
            click.echo(in_one_line(error), err=True)
        except click.Abort:
            click.echo("millstream: stopped", err=True)
            return 130
    return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"millstream: {' '.join(str(message).split())}", err=True)


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@shared.about_data
@shared.identity
@shared.about_model
@shared.fitting
@shared.training(
    "--validation",
    callback=fraction(),
    metavar="FRACTION",
    help="Records to hold out and evaluate after every epoch.  [default: 0.1 with --epochs auto]",
)
@shared.training("--no-shuffle", is_flag=True, help="Keep the order of the data.")
@shared.about_run
@click.pass_context
def fit(context: click.Context, /, **given: Any) -> None:
    """Train in batches: passes over finite data, shuffled.

    DATA may also be a Python object, MODULE:TRAINER, with its data in SOURCE (or in the module's own `source`).
    """
    from millstream.cli import training

    training.run("fit", given, _on_the_line(context))


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@shared.about_data
@shared.identity
@shared.about_model
@shared.training(
    "--update-size",
    callback=whole(),
    default=1,
    show_default=True,
    metavar="RECORDS",
    help="How many records one update averages.",
)
@shared.training(
    "--label-delay",
    metavar="DELAY",
    help="How late labels are: 10 (records), 30s, 5m, 2h, 1d, known (the column of --label-time), or join: they come "
    "by themselves, with the id of their record.",
)
@shared.training(
    "--label-timeout",
    metavar="DELAY",
    help="How long a record waits for a label that joins: 1000 (records), 2h …  [default: for ever]",
)
@shared.training(
    "--default-label",
    metavar="LABEL|drop",
    help="What a record learns when its time is up; drop: nothing.  [default: drop]",
)
@shared.training(
    "--max-open",
    callback=whole(),
    metavar="RECORDS",
    help="How many records wait at most; then the time of the oldest one is up.  [default: 100000]",
)
@shared.about_run
@shared.handing_on
@click.pass_context
def learn(context: click.Context, /, **given: Any) -> None:
    """Train online: every record once, in order.

    Each record is predicted, scored, and then learned. DATA may also be a Python object, MODULE:TRAINER, with its data
    in SOURCE (or in the module's own `source`).
    """
    from millstream.cli import training

    training.run("learn", given, _on_the_line(context))


@cli.command()
@click.argument("run")
@click.argument("data")
@shared.fetch
@shared.device
@shared.output(
    "--output",
    "-o",
    default="-",
    metavar="FILE",
    help="A .csv, .jsonl, .parquet or .arrow file.  [default: JSON Lines on standard output]",
)
def predict(**given: Any) -> None:
    """Predict DATA with the model of a RUN.

    Labels are not needed, and not looked at. Of a public data set it is the test records that are predicted.
    """
    from millstream.cli import answering

    answering.predict(**given)


@cli.command()
@click.argument("run")
@click.argument("data")
@shared.fetch
@shared.device
@shared.as_json
def evaluate(**given: Any) -> None:
    """Score the model of a RUN on DATA; nothing is learned.

    Of a public data set it is the test records that are scored.
    """
    from millstream.cli import answering

    answering.evaluate(**given)


@cli.command()
@click.argument("run")
@click.argument("file")
def export(run: str, file: str) -> None:
    """Write the weights of a RUN to a safetensors FILE.

    They have the names of the model's state_dict.
    """
    from millstream.cli import answering

    answering.export(run, file)


@cli.command()
@click.argument("run")
@shared.output("--output", "-o", default="report.html", show_default=True, metavar="FILE", help="The page.")
@shared.as_json
def report(**given: Any) -> None:
    """Show what a RUN has been through, on a page.

    Curves, rates, batch sizes and alarms over its records.

    The run may be at work meanwhile, or have been killed. With --json no page is written.
    """
    from millstream.cli import reporting

    reporting.report(given["run"], given["output"], given["as_json"])


@cli.command()
@click.argument("data")
@shared.about_data
@shared.model(
    "--model", "models", multiple=True, metavar="NAME", help=f"{shared.MODELS}; may be repeated.  [default: mlp:256]"
)
@shared.loss
@shared.optimizer
@shared.model(
    "--learning-rate",
    "--lr",
    callback=number(above=0),
    metavar="η",
    help="The given rate.  [default: 0.01; through time: each arm's own best]",
)
@shared.engine
@shared.seed
@shared.study("--rates", metavar="η,η,…", help="The grid of rates.  [default: 0.001,0.003,0.01,0.03,0.1,0.3,1]")
@shared.study(
    "--batch-size", callback=whole(), default=64, show_default=True, metavar="RECORDS", help="Of batch training."
)
@shared.study(
    "--epochs",
    callback=whole(),
    default=5,
    show_default=True,
    metavar="N",
    help="Passes of batch training; online training passes once.",
)
@shared.study(
    "--seeds",
    "num_seeds",
    callback=whole(),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs of each arm, for intervals.",
)
@shared.study(
    "--seconds", callback=number(above=0), metavar="SECONDS", help="Budget: seeds, then records, are left out to fit."
)
@shared.study("--records", "num_records", callback=whole(), metavar="N", help="Budget: only the first so many records.")
@shared.study(
    "--label-delay",
    "delays",
    default="0",
    show_default=True,
    metavar="D,D,…",
    help="How late labels are, on data in the order of time.",
)
@shared.study(
    "--retrain-every",
    callback=whole(),
    metavar="RECORDS",
    help="For the arm that retrains.  [default: a tenth of the data]",
)
@shared.study("--target-score", callback=number(), metavar="SCORE", help="The accuracy (or MAE) whose time is taken.")
@shared.study("--ordered/--shuffled", default=None, help="Whether the order of the data is that of time.")
@shared.study(
    "--processes",
    "num_processes",
    callback=whole(),
    metavar="N",
    help="How many arms run at once.  [default: one a core]",
)
@shared.output(
    "--report", default="report.html", show_default=True, metavar="FILE", help="The page with curves; '' for none."
)
@shared.as_json
@click.pass_context
def compare(context: click.Context, /, **given: Any) -> None:
    """Which strategy for my data? Batch against online.

    On data in the order of time also: retrained now and then, and trained once.
    """
    from millstream.cli import comparing

    comparing.run(given, _on_the_line(context))


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@shared.columns
@shared.fetch
@shared.network
@shared.threads
@shared.seed
@shared.study(
    "--records",
    "num_records",
    callback=whole(),
    metavar="N",
    help="How many records are learned at most.  [default: those of 2,000 updates]",
)
@shared.study(
    "--update-size",
    callback=whole(),
    default=1,
    show_default=True,
    metavar="RECORDS",
    help="How many records one update averages.",
)
@shared.study(
    "--seconds",
    callback=number(above=0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Budget: fewer updates are compared to fit.",
)
@shared.study(
    "--kill",
    "num_kills",
    callback=whole(),
    metavar="N",
    help="Kill runs N times at random instants instead, and compare them with one left alone.",
)
@shared.as_json
@click.pass_context
def check(context: click.Context, /, **given: Any) -> None:
    """Does the fused engine compute what the reference does?

    Runs copies of the model on DATA with both, and tells how far apart they come, beside what rounding alone does.
    With --kill, runs of it are killed and resumed until they end, and must be the same to the last bit.
    DATA may also be a Python object, MODULE:TRAINER, with its data in SOURCE (or in the module's own `source`).
    """
    from millstream.cli import checking

    checking.run(given, _on_the_line(context))


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@about_tuning
@click.pass_context
def tune(context: click.Context, /, **given: Any) -> None:
    """Which settings? Finds them for fit or learn.

    They take them by --tuned FILE. Trials with many settings begin, and the poor ones are stopped on the way. Nothing
    is learned or scored on test records. With --lr, DATA may also be a Python object, MODULE:TRAINER, with its data in
    SOURCE.
    """
    if given["range_test"]:
        from millstream.cli import tuning as command
    else:
        from millstream.cli import searching as command  # type: ignore[no-redef]

    command.run(given, _on_the_line(context))


@cli.command()
@shared.as_json
def warmup(as_json: bool) -> None:
    """Compile the loops of the fused engine now, not at first use."""
    from millstream.cli import warming

    warming.run(as_json)


for command in (journal_commands.journal, journal_commands.change, journal_commands.rollback):
    cli.add_command(command)


@cli.group(cls=Commands)
def data() -> None:
    """Public data sets by name.

    They are fetched once, checked, and kept in the user's cache folder.
    """


@data.command("list")
@shared.as_json
def data_list(as_json: bool) -> None:
    """All data sets and generators, and which are here."""
    from millstream.cli import data_sets

    data_sets.show_all(as_json)


@data.command("show")
@click.argument("name")
@shared.as_json
def data_show(name: str, as_json: bool) -> None:
    """One data set: origin, licence, rows and columns."""
    from millstream.cli import data_sets

    data_sets.show(name, as_json)


@data.command("fetch")
@click.argument("names", nargs=-1, required=True)
def data_fetch(names: tuple[str, ...]) -> None:
    """Fetch data sets into the cache."""
    from millstream.cli import data_sets

    data_sets.fetch(names)


def _on_the_line(context: click.Context) -> set[str]:
    """The options that stand on the command line."""
    source = click.core.ParameterSource
    return {name for name in context.params if context.get_parameter_source(name) not in (source.DEFAULT, None)}
