"""The options of ``journal``, ``change`` and ``rollback``. Nothing here imports torch."""

from __future__ import annotations

import click

from millstream.cli import shared
from millstream.cli.options import Commands, number, whole

__all__ = ["change", "journal", "rollback"]


@click.group(cls=Commands)
def journal() -> None:
    """What a run has consumed: shown, verified, filled, cut.

    FOLDER is that of a run, or of a journal of its own, which `learn journal://FOLDER` follows.
    """


@journal.command("show")
@click.argument("folder")
@shared.as_json
def show(folder: str, as_json: bool) -> None:
    """Positions, groups and decisions."""
    from millstream.cli import journaling

    journaling.show(folder, as_json)


@journal.command("verify")
@click.argument("folder")
@click.argument("data", required=False)
@shared.as_json
def verify(folder: str, data: str | None, as_json: bool) -> None:
    """Check every sum; learn again between checkpoints.

    Each state that is learned again must be the next checkpoint, bit for bit. DATA is needed where the journal only
    refers to what was read, as it does for files.
    """
    from millstream.cli import journaling

    journaling.verify(folder, data, as_json)


@journal.command("append")
@click.argument("folder")
@click.argument("data")
def append(folder: str, data: str) -> None:
    """Append the records of DATA, durably."""
    from millstream.cli import journaling

    journaling.append(folder, data)


@journal.command("erase")
@click.argument("folder")
@click.argument("positions")
def erase(folder: str, positions: str) -> None:
    """Take records away for good; the chain still verifies.

    POSITIONS are numbers and ranges: 3,7,10-12.
    """
    from millstream.cli import journaling

    journaling.erase(folder, positions)


@journal.command("forget")
@click.argument("folder")
@shared.run("--before", callback=whole(), required=True, metavar="POSITION", help="The first position to be kept.")
def forget(folder: str, before: int) -> None:
    """Drop whole segments of old records."""
    from millstream.cli import journaling

    journaling.forget(folder, before)


@journal.command("accept-loss")
@click.argument("folder")
def accept_loss(folder: str) -> None:
    """Go on with a journal that has lost its end.

    What was lost is written down in it. Restore the folder from a copy if you can.
    """
    from millstream.cli import journaling

    journaling.accept_loss(folder)


@click.command()
@click.argument("run")
@shared.training(
    "--learning-rate", "--lr", callback=number(above=0), required=True, metavar="η", help="The rate from then on."
)
def change(run: str, learning_rate: float) -> None:
    """Change a RUN that is at work.

    The change is written into its journal, so that a replay makes it at the same record.
    """
    from millstream.cli import journaling

    journaling.change(run, learning_rate)


@click.command()
@click.argument("run")
@shared.run("--to", "number", required=True, metavar="CHECKPOINT", help="Its number, as the folder is called.")
@shared.run("--skip", metavar="A-B", help="Journal positions to be left out when it goes on.")
def rollback(run: str, number: str, skip: str | None) -> None:
    """Take a RUN back to an earlier checkpoint.

    With --resume it learns again what came after, without the records that are skipped: those that spoiled it.
    """
    from millstream.cli import journaling

    journaling.rollback(run, number, skip)
