"""The streams of ``streams.py``, and what a method makes of one.

Shapes: N records.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from millstream.assembly import open_data
from millstream.contracts import Source
from millstream.schema import Schema
from stream_river import HELD_OUT, RiverStream

MODEL = "mlp:256"
CHUNK = 4096  # records that are read at once


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """Data in order of time. ``drift`` records lie between two drift points (0: none is known), each ``width`` wide."""

    data: str
    drift: int = 0
    width: int = 0
    is_generated: bool = False

    def name(self, seed: int) -> str:
        """As ``open_data`` knows it. A generator draws other records for each seed."""
        options = f":drift={self.drift}:width={self.width}:seed={seed}" if self.is_generated else ""
        return f"{self.data}{options}"

    def open(self, seed: int) -> tuple[Schema, Source]:
        """What the columns mean, and the records."""
        data = open_data(self.name(seed), fetch=True)
        return data.schema, data.train


STREAMS: dict[str, Stream | RiverStream] = {
    "elec2": Stream("elec2"),
    "noaa-weather": Stream("noaa-weather"),
    "covertype": Stream("covertype"),
    "flights": Stream("flights"),
    "sea": Stream("sea", 25_000, is_generated=True),
    "sea-gradual": Stream("sea", 25_000, 5_000, is_generated=True),
    "hyperplane-gradual": Stream("hyperplane", 10_000, is_generated=True),
    "agrawal": Stream("agrawal", 10_000, is_generated=True),
    "agrawal-gradual": Stream("agrawal", 10_000, 2_000, is_generated=True),
    "random-rbf": Stream("random-rbf:speed=0", 25_000, is_generated=True),
    "random-rbf-gradual": Stream("random-rbf", is_generated=True),
    "led": Stream("led", 25_000, is_generated=True),
    "led-gradual": Stream("led", 25_000, 5_000, is_generated=True),
    **HELD_OUT,
}


@dataclasses.dataclass(slots=True)
class Answers:
    """What a method made of a stream: per record whether it was right, and what it took."""

    name: str
    right: npt.NDArray[np.bool_]  # (N,)
    seconds: float
    targets: npt.NDArray[np.int64]  # (N,)
    known: npt.NDArray[np.float64]  # (N,) the latest label known at each prediction; NaN before the first
    copies: float | None = None  # that ran, on average
    leader: str | None = None  # at the end
    events: dict[str, int] = dataclasses.field(default_factory=dict)
