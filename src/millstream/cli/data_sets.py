"""``millstream data``: which public data sets there are, and which of them are here."""

from __future__ import annotations

import dataclasses
import json

from millstream import datasets, features
from millstream.cli.progress import err, table

__all__ = ["fetch", "show", "show_all"]


def show_all(as_json: bool) -> None:
    """Prints all data sets and generators."""
    found = [datasets.describe(name) for name in datasets.names()]
    if as_json:
        print(json.dumps([_facts(item) for item in found]))
        return
    rows: list[tuple[str, ...]] = [
        (
            f"{d.name}  {d.title}",
            d.task,
            f"{d.rows:,}",
            f"{d.test_rows:,}" if d.test_rows else "",
            "yes" if d.cached else "",
        )
        for d in found
    ]
    table(rows, ("data set", "task", "records", "test", "here"))


def show(name: str, as_json: bool) -> None:
    """Prints one data set: origin, licence, size and columns."""
    item = datasets.describe(name)
    if as_json:
        print(json.dumps(_facts(item)))
        return
    for key, value in _facts(item).items():
        if key != "schema" and value not in (None, ""):
            print(f"{key.replace('_', ' '):12} {value}")
    print(features.describe(item.schema))


def fetch(names: tuple[str, ...]) -> None:
    """Fetches data sets, and says what is done meanwhile."""
    for name in names:
        with err.status(f"fetching {name}") as status:
            found = datasets.fetch(name, progress=lambda text, status=status: status.update(text))  # type: ignore[misc]
        print(f"{name}: {found.train.num_records:,} records in the cache")


def _facts(item: datasets.Description) -> dict[str, object]:
    facts = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    facts["schema"] = item.schema.to_json()
    return facts
