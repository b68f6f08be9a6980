"""What a command answers on standard output: one JSON object, or text in columns."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """One JSON object in one line; a number that is not finite is null, which every reader of JSON knows."""
    print(json.dumps(_finite(value), allow_nan=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str], *, left: int = 1) -> None:
    """Text in columns: the first ``left`` ones to the left, the others to the right; the header bold on a terminal."""
    widths = [max(_width(row[place]) for row in (header, *rows)) for place in range(len(header))]
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for row in (header, *rows):
        cells = [
            cell + " " * (width - _width(cell)) if place < left else " " * (width - _width(cell)) + cell
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(f"{bold}{line}{plain}" if row is header else line)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
