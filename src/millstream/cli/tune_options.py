"""The options of ``tune``, in the sections of its help. Nothing here imports torch."""

from __future__ import annotations

from millstream.cli import shared
from millstream.cli.options import choice, fraction, options, whole

__all__ = ["about_tuning"]

about_tuning = options(
    shared.about_data,
    shared.model("--model", metavar="NAME", help=f"{shared.MODELS}.  [default: an mlp whose width is searched]"),
    shared.loss,
    shared.model(
        "--optimizer", metavar="NAME", help=f"{shared.OPTIMIZERS}.  [default: several are searched; sgd with --lr]"
    ),
    shared.bounds,
    shared.engine,
    shared.device,
    shared.threads,
    shared.seed,
    shared.study("--lr", "range_test", is_flag=True, help="Find the learning rate only, by a range test."),
    shared.study(
        "--online/--batch",
        default=None,
        help="What is tuned: learn or fit.  [default: learn for data in the order of time]",
    ),
    shared.study("--update-size", callback=whole(), metavar="RECORDS", help="Of learn.  [default: 1]"),
    shared.study(
        "--batch-size", callback=whole(), metavar="RECORDS", help="Of fit.  [default: it is searched; 64 with --lr]"
    ),
    shared.study("--epochs", callback=whole(), metavar="N", help="Passes of a trial of fit.  [default: 3]"),
    shared.study("--label-delay", metavar="DELAY", help="How late labels are in a trial of learn, as there."),
    shared.study(
        "--validation",
        callback=fraction(),
        default=0.1,
        show_default=True,
        metavar="FRACTION",
        help="Training records that trials of fit are scored on.",
    ),
    shared.study("--records", "num_records", callback=whole(), metavar="N", help="Only the first so many records."),
    shared.study(
        "--trials",
        "num_trials",
        callback=whole(),
        default=27,
        show_default=True,
        metavar="N",
        help="How many settings are tried in all.",
    ),
    shared.study(
        "--side-by-side",
        "size",
        callback=whole(),
        default=9,
        show_default=True,
        metavar="N",
        help="How many trials advance together; online they share one pass.",
    ),
    shared.study(
        "--objective",
        callback=choice("auto", "error", "loss"),
        default="auto",
        show_default=True,
        metavar="NAME",
        help="What is to be least: error (of classes) or loss; auto is error for classes.",
    ),
    shared.study("--rates", metavar="η,η", help="The lowest and the highest rate of --lr.  [default: 1e-6,10]"),
    shared.run("--run", metavar="FOLDER", help="Where the study goes.  [default: runs/DATA-tune-N]"),
    shared.run("--resume", is_flag=True, help="Go on with the study in --run (or the newest one)."),
    shared.as_json,
)
