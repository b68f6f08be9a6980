"""What was asked of a phase: batch size and epochs as numbers or ``auto``, a schedule by name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

from millstream.errors import SettingError

__all__ = ["Count", "Plan"]

Count: TypeAlias = 'int | Literal["auto"]'

MOST_EPOCHS = 200
_FIRST_SIZE, _FIRST_SIZE_OF_FEW = 64, 8
_LEAST_UPDATES = 32  # of an epoch, before the first size is made smaller
_SIZE_OF_A_SCHEDULE = 64  # its length is a number of updates, so that the batch does not grow
_SCHEDULES = ("", "constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """``schedule`` is what the rate does after ``warmup``, a share of all updates in which it rises to its full size.

    >>> Plan("auto", "auto").first_size(60_000), Plan("auto", "auto").first_size(300), Plan(100, 3).first_size(300)
    (64, 8, 100)
    """

    batch_size: Count
    epochs: Count
    schedule: str = ""
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("an update size", self.batch_size), ("a number of epochs", self.epochs)):
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise SettingError(
                    got=f"{name} of {value}", wanted="1 or more, or auto", do="leave it out for the default"
                )
        if self.schedule not in _SCHEDULES:
            raise SettingError(
                got=f"schedule {self.schedule!r}", wanted=f"one of {', '.join(_SCHEDULES[1:])}", do="leave it out"
            )
        if not 0 <= self.warmup < 1:
            raise SettingError(got=f"warmup={self.warmup}", wanted="a share from 0 to 1", do="use for example 0.05")
        if self.has_schedule and self.epochs == "auto":
            raise SettingError(
                got="a schedule whose length is not known", wanted="a number of epochs", do="give epochs (--epochs 10)"
            )

    @property
    def has_schedule(self) -> bool:
        return bool(self.schedule or self.warmup)

    @property
    def grows(self) -> bool:
        return self.batch_size == "auto" and not self.has_schedule

    @property
    def most_epochs(self) -> int:
        return MOST_EPOCHS if self.epochs == "auto" else self.epochs

    def first_size(self, num_records: int | None) -> int:
        """Of the first updates, a power of two where it is to be found."""
        if self.batch_size != "auto":
            return self.batch_size
        if self.has_schedule:
            return _SIZE_OF_A_SCHEDULE
        size = _FIRST_SIZE
        while num_records is not None and size > _FIRST_SIZE_OF_FEW and num_records < _LEAST_UPDATES * size:
            size //= 2
        return size

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
