"""What a person gives to be trained on, as sources that a loop can read."""

from __future__ import annotations

from typing import Any

from millstream.contracts import LiveSource, Position, Source
from millstream.errors import SettingError
from millstream.sources.cache import CachedSource, cached
from millstream.sources.conversion import as_source
from millstream.sources.holdout import hold_out
from millstream.sources.order import Subset

__all__ = ["check_goes_on", "imported", "training_sources"]


_HELD_OUT = 0.1  # where something must be validated on and nothing is given
_LEAST_TO_HOLD_OUT = 50  # records; of fewer, a tenth would say nothing


def training_sources(
    source: Any, validation: Any, *, shuffle: bool, seed: int, validates: bool = False
) -> tuple[Source, Source | None]:
    """The records to learn and those to validate on, which may be given as a fraction to hold out.

    What must be shuffled and cannot jump is imported once. With ``validates``, a tenth of the records is held out if
    nothing is given, unless they are few.
    """
    source = as_source(source)
    if isinstance(source, LiveSource) and source.can_seek and (shuffle or validates or isinstance(validation, float)):
        raise SettingError(
            got=f"{source.name}, which has no end, for what must be shuffled or held out",
            wanted="a stream to be read in order, once",
            do="learn it online, or copy a part of it to a file",
        )
    if validates and validation is None:
        source = source if source.can_jump else cached(source)
        if source.num_records is None or source.num_records >= _LEAST_TO_HOLD_OUT:
            validation = _HELD_OUT
    if isinstance(validation, float):
        source, validation = hold_out(source, validation, seed=seed)
    if shuffle and not source.can_jump:
        source = cached(source)
    return source, None if validation is None else as_source(validation)


def imported(source: Source) -> CachedSource | None:
    """The copy that a source is, or is a part of."""
    whole: Any = source.whole if isinstance(source, Subset) else source
    return whole if isinstance(whole, CachedSource) else None


def check_goes_on(source: Source, place: Position) -> None:
    """Refuses a source that cannot start at this place of a run that is resumed."""
    if place is None or source.can_seek:
        return
    if isinstance(source, LiveSource):
        source.read(place)  # refuses a place where it does not stand
    else:
        raise SettingError(
            got=f"a source that cannot start again at a position: {source.name}",
            wanted="a file, a table or an array",
            do="copy the stream to a file first, or learn on without --resume",
        )
