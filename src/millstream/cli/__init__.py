"""The command line: options here, work in the modules beside, which are loaded when a command runs.

``--help`` and a usage error must not wait for torch, so nothing here imports it.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from millstream import __version__
from millstream.cli.options import Commands, choice, fraction, in_one_line, number, options, section, whole
from millstream.errors import MillstreamError

__all__ = ["cli", "main"]

MODELS = "reference | linear | mlp:256,128 | cnn | my_module:factory"
OPTIMIZERS = "sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw"


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


_data, _model, _training, _run = section("Data"), section("Model"), section("Training"), section("Run")
_study, _output = section("Study"), section("Output")

_fetch = _data("--fetch", is_flag=True, help="Fetch the data set if it is not here.")
_about_data = options(
    _data("--target", metavar="COLUMN", help="The column to predict.  [default: the last one]"),
    _data(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME=KIND",
        help="Correct a guess: zip=category, note=text, id=ignore, y=class:classes=no|yes.",
    ),
    _data("--time", metavar="COLUMN", help="When the features were known."),
    _data("--label-time", metavar="COLUMN", help="When the label was known."),
    _data(
        "--test",
        callback=fraction(or_file=True),
        metavar="FRACTION|FILE",
        help="Records to test on; 0 for none.  [default: those of the data set, else 0.1 for fit, 0.2 for compare]",
    ),
    _fetch,
)
_loss = _model(
    "--loss",
    default="",
    metavar="NAME",
    help="cross_entropy, binary_cross_entropy, mse, huber:1, poisson, quantile:0.9.  [default: by the target]",
)
_optimizer = _model("--optimizer", default="sgd", show_default=True, metavar="NAME", help=f"{OPTIMIZERS}.")
_engine = _model("--engine", default="auto", show_default=True, metavar="NAME", help="auto or reference.")
_seed = _model("--seed", callback=whole(0), default=0, show_default=True, metavar="N", help="Of weights and orders.")
_device = _model("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps …  [default: cpu]")
_about_model = options(
    _model("--model", default="mlp:256", show_default=True, metavar="NAME", help=f"{MODELS}."),
    _loss,
    _optimizer,
    _model(
        "--learning-rate",
        "--lr",
        callback=number(above=0),
        default=0.01,
        show_default=True,
        metavar="η",
        help="The step size.",
    ),
    _model("--weight-decay", callback=number(least=0), default=0.0, metavar="λ", help="How fast weights shrink."),
    _model("--clip-norm", callback=number(above=0), metavar="NORM", help="The gradient's largest norm."),
    _model(
        "--clip-value",
        callback=number(above=0),
        metavar="SIZE",
        help="The largest size of one element of the gradient.",
    ),
    _model("--class-weights", metavar="W,W,…", help="One weight for each class."),
    _engine,
    _device,
    _model(
        "--threads",
        callback=whole(),
        default=1,
        show_default=True,
        metavar="N",
        help="Of one matrix product; more pay for large models only.",
    ),
    _seed,
)
_json = _output(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output, and nothing else there."
)
_about_run = options(
    _run("--run", metavar="FOLDER", help="Where checkpoints and metrics go.  [default: runs/DATA-COMMAND-N]"),
    _run("--from", "origin", metavar="RUN", help="Begin with the weights, optimizer and statistics of another run."),
    _run("--resume", is_flag=True, help="Go on where the run in --run (or the newest one) stood."),
    _run(
        "--commit-seconds",
        callback=number(least=0),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How often all state is committed.",
    ),
    _run(
        "--on-error",
        callback=choice("stop", "quarantine"),
        metavar="stop|quarantine",
        default="stop",
        show_default=True,
        help="What a bad record does: stop the run, or go to the dead letters.",
    ),
    _run(
        "--nonfinite",
        callback=choice("error", "skip", "impute"),
        metavar="error|skip|impute",
        default="error",
        show_default=True,
        help="What NaN or infinity in features does: as --on-error says, leave the record out, or count as missing.",
    ),
    _run(
        "--max-skips",
        callback=whole(),
        default=100,
        show_default=True,
        metavar="N",
        help="Stop after so many records in a row that cannot be learned.",
    ),
    _run(
        "--window",
        callback=whole(),
        default=1000,
        show_default=True,
        metavar="RECORDS",
        help="How many records the window metrics look back.",
    ),
    _json,
)


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@_about_data
@_about_model
@_training(
    "--batch-size",
    callback=whole(),
    default=64,
    show_default=True,
    metavar="RECORDS",
    help="How many records one update averages.",
)
@_training("--epochs", callback=whole(), default=1, show_default=True, metavar="N", help="Passes over the data.")
@_training(
    "--validation", callback=fraction(), metavar="FRACTION", help="Records to hold out and evaluate after every epoch."
)
@_training("--no-shuffle", is_flag=True, help="Keep the order of the data.")
@_about_run
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
@_about_data
@_about_model
@_training(
    "--update-size",
    callback=whole(),
    default=1,
    show_default=True,
    metavar="RECORDS",
    help="How many records one update averages.",
)
@_training(
    "--label-delay",
    metavar="DELAY",
    help="How late labels are: 10 (records), 30s, 5m, 2h, 1d, or known (the column of --label-time).",
)
@_about_run
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
@_fetch
@_device
@_output(
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
@_fetch
@_device
@_json
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
@click.argument("data")
@_about_data
@_model("--model", "models", multiple=True, metavar="NAME", help=f"{MODELS}; may be repeated.  [default: mlp:256]")
@_loss
@_optimizer
@_model(
    "--learning-rate",
    "--lr",
    callback=number(above=0),
    metavar="η",
    help="The given rate.  [default: 0.01; through time: each arm's own best]",
)
@_engine
@_seed
@_study("--rates", metavar="η,η,…", help="The grid of rates.  [default: 0.001,0.003,0.01,0.03,0.1,0.3,1]")
@_study("--batch-size", callback=whole(), default=64, show_default=True, metavar="RECORDS", help="Of batch training.")
@_study(
    "--epochs",
    callback=whole(),
    default=5,
    show_default=True,
    metavar="N",
    help="Passes of batch training; online training passes once.",
)
@_study(
    "--seeds",
    "num_seeds",
    callback=whole(),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs of each arm, for intervals.",
)
@_study(
    "--seconds", callback=number(above=0), metavar="SECONDS", help="Budget: seeds, then records, are left out to fit."
)
@_study("--records", "num_records", callback=whole(), metavar="N", help="Budget: only the first so many records.")
@_study(
    "--label-delay",
    "delays",
    default="0",
    show_default=True,
    metavar="D,D,…",
    help="How late labels are, on data in the order of time.",
)
@_study(
    "--retrain-every",
    callback=whole(),
    metavar="RECORDS",
    help="For the arm that retrains.  [default: a tenth of the data]",
)
@_study("--target-score", callback=number(), metavar="SCORE", help="The accuracy (or MAE) whose time is taken.")
@_study("--ordered/--shuffled", default=None, help="Whether the order of the data is that of time.")
@_study(
    "--processes",
    "num_processes",
    callback=whole(),
    metavar="N",
    help="How many arms run at once.  [default: one a core]",
)
@_output(
    "--report", default="report.html", show_default=True, metavar="FILE", help="The page with curves; '' for none."
)
@_json
@click.pass_context
def compare(context: click.Context, /, **given: Any) -> None:
    """Which strategy for my data? Batch against online.

    On data in the order of time also: retrained now and then, and trained once.
    """
    from millstream.cli import comparing

    comparing.run(given, _on_the_line(context))


@cli.group(cls=Commands)
def data() -> None:
    """Public data sets by name.

    They are fetched once, checked, and kept in the user's cache folder.
    """


@data.command("list")
@_json
def data_list(as_json: bool) -> None:
    """All data sets and generators, and which are here."""
    from millstream.cli import data_sets

    data_sets.show_all(as_json)


@data.command("show")
@click.argument("name")
@_json
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
