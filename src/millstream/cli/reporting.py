"""``millstream report``: what a run has been through, as a page or as JSON. Nothing in its folder is changed."""

from __future__ import annotations

from pathlib import Path

from millstream.cli.output import print_json
from millstream.studies import run_page
from millstream.studies.history import history

__all__ = ["report"]


def report(run: str, output: str, as_json: bool) -> None:
    """Writes the page of a run and says in a line how the run stands; or prints its facts."""
    facts = history(run)
    if as_json:
        print_json(facts)
        return
    run_page.write(facts, Path(output))
    print(f"{run}: {run_page.headline(facts)}")
    for problem in facts["problems"]:
        print(f"note: {problem}")
    print(f"the page: {output}")
