"""``millstream data``: which public data sets there are, and which of them are here."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from millstream import datasets, features
from millstream.cli.output import print_json, print_table
from millstream.cli.progress import err

__all__ = ["fetch", "show", "show_all"]

_WIDTH = 96


def show_all(as_json: bool) -> None:
    """Prints all data sets and generators."""
    found = [datasets.describe(name) for name in datasets.names()]
    if as_json:
        print_json({"data_sets": [_facts(item) for item in found]})
        return
    rows = [
        (
            item.name,
            item.title if len(item.title) <= 50 else item.title[:49] + "…",
            item.task,
            "endless" if item.rows is None else f"{item.rows:,}",
            f"{item.test_rows:,}" if item.test_rows else "",
            "generated" if item.origin == "generated" else "yes" if item.cached else "no",
        )
        for item in found
    ]
    print_table(rows, ("name", "what", "task", "records", "test", "here"), left=3)


def show(name: str, as_json: bool) -> None:
    """Prints one data set: origin, licence, size and columns."""
    item = datasets.describe(name)
    if as_json:
        print_json(_facts(item))
        return
    for key, value in _facts(item).items():
        if key != "schema" and value not in (None, ""):
            label = f"{key.replace('_', ' '):14}"
            print(textwrap.fill(_text(value), _WIDTH, initial_indent=label, subsequent_indent=" " * len(label)))
    print()
    print(features.describe(item.schema))


def fetch(names: tuple[str, ...]) -> None:
    """Fetches data sets, and says what is done meanwhile."""
    for name in names:
        with err.status(f"fetching {name}") as status:
            found = datasets.fetch(name, progress=lambda text, status=status: status.update(text))  # type: ignore[misc]
        print(f"{name}: {found.train.num_records:,} records in the cache")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _facts(item: datasets.Description) -> dict[str, Any]:
    facts = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    facts["schema"] = item.schema.to_json()
    return facts
