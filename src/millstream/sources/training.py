"""What a person gives to be trained on, as sources that a loop can read."""

from __future__ import annotations

from typing import Any

from millstream.contracts import Source
from millstream.sources.cache import cached
from millstream.sources.conversion import as_source
from millstream.sources.holdout import hold_out

__all__ = ["training_sources"]


def training_sources(source: Any, validation: Any, *, shuffle: bool, seed: int) -> tuple[Source, Source | None]:
    """The records to learn and those to validate on, which may be given as a fraction to hold out.

    What must be shuffled and cannot jump is imported once.
    """
    source = as_source(source)
    if isinstance(validation, float):
        source, validation = hold_out(source, validation, seed=seed)
    if shuffle and not source.can_jump:
        source = cached(source)
    return source, None if validation is None else as_source(validation)
