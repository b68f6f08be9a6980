"""The command line: options here, work in the modules beside, which are loaded when a command runs.

``--help`` and a usage error must not wait for torch, so nothing here imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from millstream import __version__
from millstream.errors import MillstreamError

__all__ = ["cli", "main"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
MODELS = "reference | linear | mlp:256,128 | cnn | my_module:factory"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Train PyTorch models in batches and online: same model, same loop, same checkpoint.

    DATA is a public data set by name (see `millstream data list`), a file or glob (CSV, JSON Lines, Parquet, Arrow;
    plain, gzip, zstd), or - for standard input.
    """


def main() -> None:
    """Runs a command. What a person did wrong is said in one line, with exit code 2; nothing is lost."""
    try:
        cli.main(standalone_mode=False)
    except MillstreamError as error:
        click.echo(f"millstream: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)


def _options(*options: Callable[[Any], Any]) -> Callable[[_Function], _Function]:
    def apply(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


_about_data = _options(
    click.option("--target", metavar="COLUMN", help="The column to predict.  [default: the last one]"),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME=KIND",
        help="Correct a guess: zip=category, note=text, id=ignore.",
    ),
    click.option("--time", metavar="COLUMN", help="When the features were known."),
    click.option("--label-time", metavar="COLUMN", help="When the label was known."),
    click.option(
        "--test",
        metavar="FRACTION|FILE",
        help="Records to test on.  [default: those of the data set; for fit and compare else 0.1, 0.2]",
    ),
    click.option("--fetch", is_flag=True, help="Fetch the data set if it is not here."),
)
_about_model = _options(
    click.option("--model", default="mlp:256", show_default=True, help=MODELS),
    click.option(
        "--loss",
        default="",
        metavar="NAME",
        help="cross_entropy, binary_cross_entropy, mse, huber:1, poisson, quantile:0.9.  [default: by the target]",
    ),
    click.option(
        "--optimizer", default="sgd", show_default=True, help="sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw."
    ),
    click.option("--learning-rate", "--lr", type=float, default=0.01, show_default=True),
    click.option("--weight-decay", type=float, default=0.0, show_default=True),
    click.option("--clip-norm", type=float, help="The gradient's largest norm."),
    click.option("--clip-value", type=float, help="The largest magnitude of one element of the gradient."),
    click.option("--class-weights", metavar="W,W,…", help="One weight for each class."),
    click.option("--engine", default="auto", show_default=True, help="auto or reference."),
    click.option("--device", default="cpu", show_default=True),
    click.option(
        "--threads",
        type=int,
        default=1,
        show_default=True,
        help="Of one matrix product; more pay for large models only.",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)
_about_run = _options(
    click.option("--run", metavar="FOLDER", help="Where checkpoints and metrics go.  [default: runs/DATA-COMMAND-N]"),
    click.option("--resume", is_flag=True, help="Go on where the run in --run (or the newest one) stood."),
    click.option(
        "--commit-seconds", type=float, default=30.0, show_default=True, help="How often all state is committed."
    ),
    click.option(
        "--on-error",
        type=click.Choice(["stop", "quarantine"]),
        default="stop",
        show_default=True,
        help="What a bad record does: stop the run, or go to the dead letters.",
    ),
    click.option(
        "--nonfinite",
        type=click.Choice(["error", "skip", "impute"]),
        default="error",
        show_default=True,
        help="NaN or infinity in features.",
    ),
    click.option(
        "--max-skips",
        type=int,
        default=100,
        show_default=True,
        help="Stop after so many records in a row that cannot be learned.",
    ),
    click.option("--window", type=int, default=1000, show_default=True, help="Records of the window metrics."),
)
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output, and nothing else there."
)


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@_about_data
@_about_model
@click.option("--batch-size", type=int, default=64, show_default=True, help="Records that one update averages.")
@click.option("--epochs", type=int, default=1, show_default=True, help="Passes over the data.")
@click.option(
    "--validation", type=float, metavar="FRACTION", help="Records to hold out and evaluate after every epoch."
)
@click.option("--no-shuffle", is_flag=True, help="Keep the order of the data.")
@_about_run
@_json
@click.pass_context
def fit(context: click.Context, /, **options: Any) -> None:
    """Train in batches: several passes over finite data, shuffled, so many records an update.

    DATA may also be a Python object, MODULE:TRAINER, with its data in SOURCE (or in the module's own `source`).
    """
    from millstream.cli import training

    training.run("fit", options, _given(context))


@cli.command()
@click.argument("data")
@click.argument("source", required=False)
@_about_data
@_about_model
@click.option("--update-size", type=int, default=1, show_default=True, help="Records that one update averages.")
@click.option(
    "--label-delay",
    metavar="DELAY",
    help="How late labels are: 10 (records), 30s, 5m, 2h, 1d, or 'known' (label time column).",
)
@_about_run
@_json
@click.pass_context
def learn(context: click.Context, /, **options: Any) -> None:
    """Train online: every record once, in order; predict, score, update.

    DATA may also be a Python object, MODULE:TRAINER, with its data in SOURCE (or in the module's own `source`).
    """
    from millstream.cli import training

    training.run("learn", options, _given(context))


@cli.command()
@click.argument("run")
@click.argument("data")
@click.option(
    "--output",
    "-o",
    default="-",
    metavar="FILE",
    help="A .csv, .jsonl, .parquet or .arrow file.  [default: JSON Lines on standard output]",
)
@click.option("--fetch", is_flag=True, help="Fetch the data set if it is not here.")
def predict(**options: Any) -> None:
    """Predict DATA with the model of a RUN; labels are not needed."""
    from millstream.cli import answering

    answering.predict(**options)


@cli.command()
@click.argument("run")
@click.argument("data")
@click.option("--fetch", is_flag=True, help="Fetch the data set if it is not here.")
@_json
def evaluate(**options: Any) -> None:
    """Score the model of a RUN on DATA (the test records of a public data set); nothing is learned."""
    from millstream.cli import answering

    answering.evaluate(**options)


@cli.command()
@click.argument("run")
@click.argument("file")
def export(run: str, file: str) -> None:
    """Write the weights of a RUN as a plain state_dict in safetensors to FILE."""
    from millstream.cli import answering

    answering.export(run, file)


@cli.command()
@click.argument("data")
@_about_data
@click.option("--model", "models", multiple=True, help=f"{MODELS}; may be repeated.  [default: mlp:256]")
@click.option("--loss", default="", metavar="NAME", help="As for fit.")
@click.option("--optimizer", default="sgd", show_default=True)
@click.option(
    "--learning-rate", "--lr", type=float, help="The given rate.  [default: 0.01; through time: each arm's own best]"
)
@click.option("--rates", metavar="η,η,…", help="The grid of rates.")
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option(
    "--epochs", type=int, default=5, show_default=True, help="Passes of batch training; online training passes once."
)
@click.option("--seeds", "num_seeds", type=int, default=3, show_default=True, help="Runs of each arm, for intervals.")
@click.option("--seconds", type=float, help="Budget: seeds, then records, are left out to fit.")
@click.option("--records", "num_records", type=int, default=0, help="Budget: only the first so many records.")
@click.option(
    "--label-delay",
    "delays",
    default="0",
    show_default=True,
    metavar="D,D,…",
    help="How late labels are, on data in time order.",
)
@click.option(
    "--retrain-every",
    type=int,
    default=0,
    metavar="RECORDS",
    help="For the arm that retrains.  [default: a tenth of the data]",
)
@click.option("--target-score", type=float, help="The accuracy (or MAE) whose time is taken.")
@click.option("--ordered/--shuffled", default=None, help="Whether the order of the data is that of time.")
@click.option("--processes", "num_processes", type=int, default=0, help="[default: one a core]")
@click.option("--engine", default="auto", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--report", default="report.html", show_default=True, metavar="FILE", help="The page with the curves; '' for none."
)
@_json
def compare(**options: Any) -> None:
    """Which strategy for my data? Batch against online; through time, also retrained and frozen."""
    from millstream.cli import comparing

    comparing.run(options)


@cli.group()
def data() -> None:
    """Public data sets by name: fetched once, checked, kept in the user's cache folder."""


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


def _given(context: click.Context) -> set[str]:
    """The options that stand on the command line."""
    source = click.core.ParameterSource
    return {name for name in context.params if context.get_parameter_source(name) not in (source.DEFAULT, None)}
