"""The options that several commands share, in the sections of their help. Nothing here imports torch."""

from __future__ import annotations

from millstream.cli.options import choice, fraction, number, options, section, whole

__all__ = [
    "MODELS",
    "OPTIMIZERS",
    "about_data",
    "about_model",
    "about_run",
    "around",
    "as_json",
    "bounds",
    "columns",
    "data",
    "device",
    "engine",
    "fetch",
    "fitting",
    "identity",
    "loss",
    "model",
    "network",
    "optimizer",
    "output",
    "run",
    "seed",
    "study",
    "threads",
    "training",
]

MODELS = "reference | linear | mlp:256,128 | cnn | my_module:factory"
OPTIMIZERS = "sgd, momentum, nesterov, adagrad, rmsprop, factored, adam, adamw, schedulefree, prodigy"

data, model, training, run = section("Data"), section("Model"), section("Training"), section("Run")
study, output = section("Study"), section("Output")

fetch = data("--fetch", is_flag=True, help="Fetch the data set if it is not here.")
columns = options(
    data("--target", metavar="COLUMN", help="The column to predict.  [default: the last one]"),
    data(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME=KIND",
        help="Correct a guess: zip=category, note=text, id=ignore, y=class:classes=no|yes.",
    ),
    data("--time", metavar="COLUMN", help="When the features were known."),
    data("--label-time", metavar="COLUMN", help="When the label was known."),
)
identity = data(
    "--id", metavar="COLUMN", help="What tells records apart: by it, a label that comes later finds its record."
)
about_data = options(
    columns,
    data(
        "--test",
        callback=fraction(or_file=True),
        metavar="FRACTION|FILE",
        help="Records to test on; 0 for none.  [default: those of the data set, else 0.1 for fit, 0.2 for compare]",
    ),
    fetch,
)
loss = model(
    "--loss",
    default="",
    metavar="NAME",
    help="cross_entropy, binary_cross_entropy, mse, huber:1, poisson, quantile:0.9.  [default: by the target]",
)
optimizer = model("--optimizer", default="sgd", show_default=True, metavar="NAME", help=f"{OPTIMIZERS}.")
racing_optimizer = model(
    "--optimizer",
    default="auto",
    metavar="NAME",
    help=f"{OPTIMIZERS}.  [default: several race; sgd if a rate is given]",
)
engine = model("--engine", default="auto", show_default=True, metavar="NAME", help="auto, fused or reference.")
seed = model("--seed", callback=whole(0), default=0, show_default=True, metavar="N", help="Of weights and orders.")
device = model("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps …  [default: cpu]")
bounds = options(
    model("--weight-decay", callback=number(least=0), default=0.0, metavar="λ", help="How fast weights shrink."),
    model("--clip-norm", callback=number(above=0), metavar="NORM", help="The gradient's largest norm."),
    model(
        "--clip-value",
        callback=number(above=0),
        metavar="SIZE",
        help="The largest size of one element of the gradient.",
    ),
    model("--class-weights", metavar="W,W,…", help="One weight for each class."),
)
network = options(
    model("--model", default="mlp:256", show_default=True, metavar="NAME", help=f"{MODELS}."),
    loss,
    racing_optimizer,
    model(
        "--learning-rate",
        "--lr",
        callback=number(above=0),
        metavar="η",
        help="The step size.  [default: several race, and the best one answers]",
    ),
    bounds,
)
threads = model(
    "--threads",
    callback=whole(),
    default=1,
    show_default=True,
    metavar="N",
    help="Of one matrix product; more pay for large models only.",
)
race = model(
    "--race", metavar="NAME,NAME…", help="Models side by side, the best of which answers: linear,mlp:64,mlp:256."
)
around = options(
    model("--replay", metavar="SHARE", help="Mix in past records while online: 0.2, or 0.2:window:5000."),
    model("--drift", metavar="DETECTOR", help="Watch for drift: adwin, adwin:reset, page-hinkley:raise …"),
    model("--average", callback=number(above=0), metavar="KEPT", help="Answer with a mean of the weights: 0.999."),
)
about_model = options(network, race, around, engine, device, threads, seed)
fitting = options(
    training(
        "--batch-size",
        callback=whole(or_auto=True),
        default="auto",
        show_default=True,
        metavar="RECORDS",
        help="How many records one update averages; auto follows the noise of the gradient.",
    ),
    training(
        "--epochs",
        callback=whole(or_auto=True),
        default="auto",
        show_default=True,
        metavar="N",
        help="Passes over the data; auto stops when validation no longer improves.",
    ),
    training(
        "--schedule",
        callback=choice("constant", "linear", "cosine"),
        metavar="NAME",
        help="How the rate falls over all epochs: constant, linear or cosine; needs a rate and a number of epochs.",
    ),
    training(
        "--warmup",
        callback=fraction(),
        metavar="FRACTION",
        help="The share of all updates in which the rate rises at first.",
    ),
)
as_json = output(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output, and nothing else there."
)
about_run = options(
    run("--run", metavar="FOLDER", help="Where checkpoints and metrics go.  [default: runs/DATA-COMMAND-N]"),
    run("--from", "origin", metavar="RUN", help="Begin with the weights, optimizer and statistics of another run."),
    run("--tuned", metavar="FILE", help="Settings that `millstream tune` has found; the command line wins over it."),
    run("--resume", is_flag=True, help="Go on where the run in --run (or the newest one) stood."),
    run(
        "--commit-seconds",
        callback=number(least=0, or_auto=True),
        default="auto",
        show_default=True,
        metavar="SECONDS",
        help="How often all state is committed; auto: so often that it takes 1 % of the time, but for once a second.",
    ),
    run("--exact", is_flag=True, help="Do not resume where other versions or threads may give other last bits."),
    run(
        "--on-error",
        callback=choice("stop", "quarantine"),
        metavar="stop|quarantine",
        default="stop",
        show_default=True,
        help="What a bad record does: stop the run, or go to the dead letters.",
    ),
    run(
        "--nonfinite",
        callback=choice("error", "skip", "impute"),
        metavar="error|skip|impute",
        default="error",
        show_default=True,
        help="What NaN or infinity in features does: as --on-error says, leave the record out, or count as missing.",
    ),
    run(
        "--max-skips",
        callback=whole(),
        default=100,
        show_default=True,
        metavar="N",
        help="Stop after so many records in a row that cannot be learned.",
    ),
    run(
        "--window",
        callback=whole(),
        default=1000,
        show_default=True,
        metavar="RECORDS",
        help="How many records the window metrics look back.",
    ),
    as_json,
)
