"""Endless streams with known drift: any record follows from the seed and its number alone.

Records are generated in whole blocks of a fixed size, each from its own counter-based random stream, so that reading
may start anywhere, cuts change nothing, and a million records on is as near as the next one. What is generated is in
``concepts``.

    sea                                              the default: 100,000 records, abrupt drift every 25,000
    sea:drift=2000:noise=0.1:records=10000:seed=1    options after the name
    sea:records=0                                    no end
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position
from millstream.datasets.concepts import Agrawal, Concept, Hyperplane, Led, Moment, RandomRbf, Sea
from millstream.errors import CheckpointError, SettingError
from millstream.schema import Field, Schema, Target

__all__ = ["GENERATORS", "Generator", "GeneratorSource", "parse_generator"]

BLOCK_RECORDS = 4096
CACHED_BLOCKS = 64
ENDLESS = 2**62  # stands for the end of a source that has none; far beyond what anyone reads
MAX_SEED = 2**63 - 1
_BLOCKS, _EPOCHS = 0, 1  # the two families of random streams of one seed


@dataclasses.dataclass(frozen=True, slots=True)
class Generator:
    """A named generator: its concept with the default options, and how many records lie between two drift points."""

    name: str
    title: str
    concept: Concept
    drift: int
    note: str


_ALL = (
    Generator("sea", "whether two of three numbers add up to little", Sea(), 25_000, "Four thresholds in turn."),
    Generator(
        "hyperplane",
        "the side of a turning plane",
        Hyperplane(),
        10_000,
        "The plane turns all the time; a drift point is where its course changes.",
    ),
    Generator(
        "agrawal",
        "loan applicants in two groups",
        Agrawal(),
        10_000,
        "Ten functions in turn; the eighth and the tenth put nearly everybody in group 1.",
    ),
    Generator(
        "random-rbf",
        "classes about moving centroids",
        RandomRbf(),
        0,
        "Centroids move all the time; with drift=N they are also drawn anew every N records.",
    ),
    Generator(
        "led",
        "the digit that seven of 24 lights show",
        Led(),
        25_000,
        "At a drift point lights change places.",
    ),
)
GENERATORS = {generator.name: generator for generator in _ALL}

# Whole numbers that name something rather than measure it.
_CATEGORIES = {"car": range(1, 21), "zipcode": range(9)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Recipe:
    """All that a record depends on, but its number."""

    concept: Concept
    drift: int
    width: int
    seed: int


class GeneratorSource:
    """A stream of one of the generators, as named columns with ``label`` last.

    ``drift`` records lie between two drift points (0 is none). With ``width`` a drift is gradual: about each point
    records follow the new concept with a probability that rises as a sigmoid, from nearly 0 to nearly 1 over ``width``
    records. ``num_records=None`` is a stream without an end.

    >>> source = GeneratorSource("sea", drift=2_000, num_records=5_000)
    >>> list(source.drift_points)
    [2000, 4000]
    >>> next(source.read(4_990)).inputs.num_rows
    10
    """

    can_seek = True
    can_jump = True

    def __init__(
        self,
        generator: str,
        *,
        drift: int | None = None,
        width: int = 0,
        num_records: int | None = 100_000,
        seed: int = 0,
        **options: float,
    ) -> None:
        known = GENERATORS[_known(generator)]
        concept = _concept(known, options)
        self._recipe = _Recipe(concept, known.drift if drift is None else drift, width, seed)
        _check_recipe(self._recipe)
        _in_range("num_records", 1 if num_records is None else num_records, 1, ENDLESS)
        self.name = generator
        self.num_records = num_records
        self.schema: pa.Schema = _block(self._recipe, 0).schema

    @property
    def drift_points(self) -> range:
        """The record numbers at which the concept changes; a gradual drift is half done there."""
        drift = self._recipe.drift
        return range(drift, self._end, drift) if drift else range(0)

    @property
    def columns(self) -> Schema:
        """What the columns mean."""
        fields = tuple(
            Field(name, "category", values=tuple(map(str, _CATEGORIES[name])))
            if name in _CATEGORIES
            else Field(name, "number")
            for name in self.schema.names[:-1]
        )
        classes = tuple(str(number) for number in range(self._recipe.concept.num_classes))
        return Schema(fields, Target("label", "class", classes=classes))

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        """Chunks of ``size`` records from ``position``, which is a record number."""
        if size < 1:
            raise SettingError(got=f"size={size}", wanted="at least 1", do="pass how many records a chunk holds")
        number = self._place(position)
        while number < self._end:
            stop = min(number + size, self._end)
            yield Chunk(self._records(number, stop), after=stop, locate=self._locate(number))
            number = stop

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        """The records with these numbers, in this order."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self._end):
            raise SettingError(
                got=f"record numbers from {wanted.min()} to {wanted.max()}",
                wanted=f"0 to {self._end - 1}",
                do="take records that exist",
            )
        blocks, which = np.unique(wanted // BLOCK_RECORDS, return_inverse=True)
        batches = [_block(self._recipe, block) for block in blocks.tolist()] or [_block(self._recipe, 0)]
        rows = pa.array(which * BLOCK_RECORDS + wanted % BLOCK_RECORDS)
        return Chunk(_joined(batches).take(rows), locate=lambda place: f"{self.name}:{int(wanted[place])}")

    def fingerprint(self) -> dict[str, Any]:
        """The generator and all that the records depend on."""
        return {
            "kind": "generator",
            "name": self.name,
            "num_records": self.num_records,
            **dataclasses.asdict(self._recipe),
        }

    @property
    def _end(self) -> int:
        return ENDLESS if self.num_records is None else self.num_records

    def _place(self, position: Position) -> int:
        if position is None:
            return 0
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position <= self._end:
            raise CheckpointError(
                got=f"position {position!r} for {self.name}",
                wanted=f"a record number from 0 to {self._end}",
                do="resume with the source that the position came from",
            )
        return position

    def _locate(self, first: int) -> Callable[[int], str]:
        return lambda place: f"{self.name}:{first + place}"

    def _records(self, start: int, stop: int) -> pa.RecordBatch:
        first, last = start // BLOCK_RECORDS, (stop - 1) // BLOCK_RECORDS
        skipped = start - first * BLOCK_RECORDS
        return _joined([_block(self._recipe, block) for block in range(first, last + 1)]).slice(skipped, stop - start)


@lru_cache(maxsize=CACHED_BLOCKS)
def _block(recipe: _Recipe, block: int) -> pa.RecordBatch:
    """The records of one block, always whole, so that what is read never changes what is drawn."""
    random = _random(recipe.seed, _BLOCKS, block)
    numbers = np.arange(block * BLOCK_RECORDS, (block + 1) * BLOCK_RECORDS, dtype=np.int64)
    epochs = _epochs(recipe, numbers, random.random(BLOCK_RECORDS))
    moment = Moment(numbers, epochs, recipe.drift, random, lambda epoch: _random(recipe.seed, _EPOCHS, epoch))
    columns = recipe.concept.columns(moment)
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def _epochs(recipe: _Recipe, numbers: npt.NDArray[np.int64], chance: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(N,) which concept each record follows; ``chance`` decides while one gives way to the next."""
    if not recipe.drift:
        return np.zeros_like(numbers)
    if not recipe.width:
        return numbers // recipe.drift
    nearest = (numbers + recipe.drift // 2) // recipe.drift
    away = (numbers - nearest * recipe.drift) / recipe.width
    is_new = chance < 1 / (1 + np.exp(-4 * away))
    return np.maximum(nearest - 1 + is_new, 0)


def _random(seed: int, family: int, number: int) -> np.random.Generator:
    """The random stream of one block or epoch: a 256-bit counter of which the draws count up the lowest part."""
    counter = np.array([0, 0, number, family], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def parse_generator(text: str) -> GeneratorSource:
    """A generator from its name and options, ``NAME:OPTION=VALUE:…``.

    >>> parse_generator("sea:drift=2000:records=10000:seed=1").num_records
    10000
    """
    name, *settings = text.split(":")
    options: dict[str, Any] = {}
    for setting in settings:
        option, _, value = setting.partition("=")
        if option in options:
            raise SettingError(got=f"{option} twice in {text!r}", wanted="each option once", do="drop one of the two")
        options[option] = _number(setting, value)
    for whole in {"drift", "width", "records", "seed"} & options.keys():
        options[whole] = _whole(whole, options[whole])
    if "records" in options:
        options["num_records"] = options.pop("records") or None
    return GeneratorSource(name, **options)


def _known(name: str) -> str:
    if name in GENERATORS:
        return name
    near = difflib.get_close_matches(name, GENERATORS, n=1)
    raise SettingError(
        got=f"generator {name!r}", wanted=f"one of {', '.join(GENERATORS)}", do=f"try {near[0] if near else 'sea'}"
    )


def _concept(generator: Generator, options: Mapping[str, float]) -> Concept:
    """The generator's concept with ``options`` in place of its defaults, each checked."""
    defaults = dataclasses.asdict(generator.concept)
    values: dict[str, Any] = {}
    for option, value in options.items():
        if option not in defaults:
            raise SettingError(
                got=f"{generator.name} with option {option!r}",
                wanted=f"one of {', '.join(['drift', 'width', 'records', 'seed', *defaults])}",
                do="leave it out or correct it",
            )
        values[option] = _whole(option, value) if isinstance(defaults[option], int) else float(value)
        _in_range(option, values[option], *_LIMITS[option])
    return dataclasses.replace(generator.concept, **values)


# Option -> the least and the greatest value, for every concept that has it.
_LIMITS: dict[str, tuple[float, float]] = {
    "noise": (0, 1),
    "features": (1, 200),
    "classes": (2, 127),
    "centroids": (2, 10_000),
    "speed": (0, 1),
    "moving": (0, 200),
}


def _check_recipe(recipe: _Recipe) -> None:
    """Refuse values that are out of range, alone or with one another."""
    _in_range("seed", recipe.seed, 0, MAX_SEED)
    _in_range("drift", recipe.drift, 0, ENDLESS)
    if isinstance(recipe.concept, Hyperplane):
        _in_range("moving", recipe.concept.moving, 0, recipe.concept.features)
        # The plane turns from one point to the next; a mixture of two planes is another thing.
        _in_range("width", recipe.width, 0, 0)
    if isinstance(recipe.concept, Led):
        _in_range("moving", recipe.concept.moving, 0, 7)
    if isinstance(recipe.concept, RandomRbf):
        _in_range("classes", recipe.concept.classes, 2, recipe.concept.centroids)
    # Were it wider than half the way to the next point, one drift would begin before the last one was over.
    _in_range("width", recipe.width, 0, recipe.drift // 2)


def _in_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SettingError(got=f"{option}={value}", wanted=f"{low} to {high}", do="choose a value in that range")


def _number(setting: str, value: str) -> float:
    try:
        # Not every whole number is a float: a seed keeps all its digits.
        return int(value) if value.lstrip("-").isdecimal() else float(value)
    except ValueError as error:
        raise SettingError(
            got=f"option {setting!r}", wanted="OPTION=NUMBER", do="write for example sea:drift=2000:seed=1"
        ) from error


def _whole(option: str, value: float) -> int:
    if not float(value).is_integer():
        raise SettingError(got=f"{option}={value}", wanted="a whole number", do="leave out the fraction")
    return int(value)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
