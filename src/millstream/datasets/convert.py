"""Raw files to Arrow tables: names, order, the smallest types that hold the values, and when each label was known.

Each function takes the paths of the files that it reads and returns tables by split ("train", "test"). This file knows
the raw files' columns; it does not know where they came from or where the tables go.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

__all__ = [
    "COVER_TYPES",
    "ELEC2_COLUMNS",
    "WEATHER_COLUMNS",
    "bikes",
    "covertype",
    "elec2",
    "flights",
    "mnist",
    "weather",
]

Tables = dict[str, pa.Table]

COVER_TYPES = (
    "spruce/fir",
    "lodgepole pine",
    "ponderosa pine",
    "cottonwood/willow",
    "aspen",
    "douglas-fir",
    "krummholz",
)
# The packaged files name their columns feat_1, feat_2 …; the order is that of the published sets.
ELEC2_COLUMNS = ("period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")
WEATHER_COLUMNS = (
    "temperature",
    "dew_point",
    "sea_level_pressure",
    "visibility",
    "mean_wind_speed",
    "max_wind_speed",
    "max_temperature",
    "min_temperature",
)
LATE_MINUTES = 15
# Hours from Greenwich of the airports (all on Atlantic time, no summer time) that airports.csv does not list.
ATLANTIC_HOURS = -4
DAY_MINUTES = 24 * 60


def mnist(train: Path, test: Path) -> Tables:
    """784 pixel columns to one ``image`` (a list of 784 uint8) and ``label`` (int8), in the published order."""
    return {"train": _mnist_split(train), "test": _mnist_split(test)}


def covertype(path: Path) -> Tables:
    """54 integer columns and ``Cover_Type``, a number from 1 to 7 that becomes its name."""
    raw = _read_csv(path)
    columns = {name: _smallest(_numbers(raw, name)) for name in raw.column_names[:-1]}
    columns["cover_type"] = _named(_numbers(raw, "Cover_Type") - 1, COVER_TYPES)
    return {"train": _table(columns)}


def elec2(path: Path) -> Tables:
    """Six columns scaled to [0, 1], in half hours, and ``class``: 1 is UP."""
    raw = _read_csv(path)
    columns = {
        name: pa.array(_numbers(raw, f"feat_{number}").astype(np.float32))
        for number, name in enumerate(ELEC2_COLUMNS, start=1)
    }
    columns["class"] = _named(_numbers(raw, "target"), ("DOWN", "UP"))
    return {"train": _table(columns)}


def weather(path: Path) -> Tables:
    """Eight measured columns, in days, and ``rain``."""
    raw = _read_csv(path)
    columns = {
        name: pa.array(_numbers(raw, f"feat_{number}").astype(np.float32))
        for number, name in enumerate(WEATHER_COLUMNS, start=1)
    }
    columns["rain"] = _named(_numbers(raw, "target"), ("no", "yes"))
    return {"train": _table(columns)}


def flights(path: Path, airports: Path) -> Tables:
    """What was known when a flight was due to leave, in that order, and when and how late it landed.

    A flight without an arrival delay (cancelled or diverted) has no label and is left out. Local times of arrival
    become absolute ones with the hours from Greenwich and the summer time of ``airports``.
    """
    raw = _read_zipped_csv(path)
    raw = raw.filter(pc.is_valid(raw["arr_delay"]))
    utc = pc.add(raw["time_hour"].cast(pa.timestamp("s", "UTC")).cast(pa.int64()), pc.multiply(raw["minute"], 60))
    order = np.argsort(utc.to_numpy(), kind="stable")
    raw, departs = raw.take(pa.array(order)), utc.to_numpy()[order]
    local = _local_seconds(raw)
    minutes = _scheduled_minutes(raw, departs, local, _read_csv(airports))
    delay = _numbers(raw, "arr_delay")
    columns = {
        "scheduled_departure": _seconds(local),
        "carrier": raw["carrier"].combine_chunks(),
        "flight": _smallest(_numbers(raw, "flight")),
        "tailnum": raw["tailnum"].combine_chunks(),
        "origin": raw["origin"].combine_chunks(),
        "dest": raw["dest"].combine_chunks(),
        "distance": _smallest(_numbers(raw, "distance")),
        "scheduled_minutes": _smallest(minutes),
        "departs_at": _seconds(departs, "UTC"),
        "landed_at": _seconds(departs + 60 * (minutes + delay), "UTC"),
        "arrival": _named((delay > LATE_MINUTES).astype(np.int64), ("on-time", "late")),
        "arrival_delay": _smallest(delay),
    }
    return {"train": _table(columns)}


def bikes(path: Path) -> Tables:
    """Hours in order, blanks kept as nulls; without ``casual`` and ``registered``, which add up to ``cnt``."""
    raw = _read_csv(path)
    clock = raw["hr"].to_numpy(zero_copy_only=False).astype(str)
    hour = np.char.rstrip(clock, "apm").astype(np.int64) % 12 + 12 * np.char.endswith(clock, "pm")
    starts = raw["dteday"].cast(pa.timestamp("s")).cast(pa.int64()).to_numpy() + 3600 * hour
    order = np.argsort(starts, kind="stable")
    columns = {"time": _seconds(starts[order])}
    for name in ("season", "hr", "holiday", "weekday", "workingday", "weathersit"):
        columns[name] = raw[name].take(pa.array(order)).combine_chunks()
    for name in ("temp", "atemp", "hum", "windspeed"):
        columns[name] = pa.array(_numbers(raw, name)[order].astype(np.float32))
    columns["cnt"] = _smallest(_numbers(raw, "cnt")[order])
    columns["counted_at"] = _seconds(starts[order] + 3600)
    return {"train": _table(columns)}


def _mnist_split(path: Path) -> pa.Table:
    raw = _read_csv(path)
    pixels = np.empty((raw.num_rows, 784), np.uint8)
    for number, name in enumerate(raw.column_names[1:]):
        pixels[:, number] = _numbers(raw, name)
    # Columns that are declared without nulls read about a third faster.
    kind = pa.list_(pa.field("item", pa.uint8(), nullable=False), 784)
    images = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), type=kind)
    return _table({"image": images, "label": pa.array(_numbers(raw, "label").astype(np.int8))})


def _scheduled_minutes(
    raw: pa.Table, departs: npt.NDArray[np.int64], local: npt.NDArray[np.int64], airports: pa.Table
) -> npt.NDArray[np.int64]:
    """Minutes from the scheduled departure to the scheduled arrival; all are below a day."""
    place = pc.index_in(raw["dest"], value_set=airports["faa"].combine_chunks())
    hours = pc.fill_null(pc.take(airports["tz"], place), ATLANTIC_HOURS).to_numpy()
    has_summer = pc.fill_null(pc.equal(pc.take(airports["dst"], place), "A"), False).to_numpy(zero_copy_only=False)
    new_york_hours = -5
    is_summer = (local - departs) // 3600 != new_york_hours
    clock = _numbers(raw, "sched_arr_time")
    arrives = clock // 100 * 60 + clock % 100 - 60 * (hours + (has_summer & is_summer))
    return np.asarray((arrives - departs // 60) % DAY_MINUTES, dtype=np.int64)


def _local_seconds(raw: pa.Table) -> npt.NDArray[np.int64]:
    """The scheduled departure on the clock of New York, in seconds."""
    months = (_numbers(raw, "year") - 1970) * 12 + _numbers(raw, "month") - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + _numbers(raw, "day") - 1
    return np.asarray((days * 24 + _numbers(raw, "hour")) * 3600 + _numbers(raw, "minute") * 60, dtype=np.int64)


def _read_csv(path: Path) -> pa.Table:
    """A CSV file; empty and "NA" cells are nulls."""
    return pyarrow.csv.read_csv(path, convert_options=_blanks_are_nulls())


def _read_zipped_csv(path: Path) -> pa.Table:
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        return pyarrow.csv.read_csv(pa.BufferReader(file.read()), convert_options=_blanks_are_nulls())


def _blanks_are_nulls() -> pyarrow.csv.ConvertOptions:
    return pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column without nulls: int64 where it is whole, else float64."""
    values: npt.NDArray[Any] = table[name].to_numpy()
    whole = values.astype(np.int64)
    return whole if np.array_equal(whole, values) else values


def _smallest(values: npt.NDArray[np.int64]) -> pa.Array:
    """Whole numbers in the smallest integer type that holds them all."""
    low, high = int(values.min()), int(values.max())
    for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return pa.array(values.astype(kind))
    return pa.array(values)


def _named(codes: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Array:
    return pa.array(names).take(pa.array(codes))


def _seconds(values: npt.NDArray[np.int64], zone: str | None = None) -> pa.Array:
    # Parquet has no seconds; milliseconds are its coarsest.
    return pa.array(values * 1000).cast(pa.timestamp("ms", zone))


def _table(columns: Mapping[str, pa.Array]) -> pa.Table:
    """A table whose columns are declared without nulls where they have none."""
    fields = [pa.field(name, array.type, nullable=array.null_count > 0) for name, array in columns.items()]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))
