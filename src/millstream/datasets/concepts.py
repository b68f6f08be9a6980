"""Five classic drifting concepts, each as vectorised formulas: record number and epoch in, columns and label out.

An epoch is the stretch between two drift points; what a concept draws for an epoch depends on the seed and the epoch
alone. This file knows no positions, chunks or sources: ``generators`` does.

Shapes: N records of a block, F features, P centroids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Agrawal", "Columns", "Concept", "Hyperplane", "Led", "Moment", "RandomRbf", "Sea"]

Columns: TypeAlias = dict[str, npt.NDArray[np.generic]]
"""Named columns, each (N,), the label last."""

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """When the records of a block happen, and the two generators that they may draw from."""

    numbers: npt.NDArray[np.int64]  # (N,) record numbers
    epochs: npt.NDArray[np.int64]  # (N,) the epoch whose concept each record follows
    period: int  # records from one drift point to the next; 0 when there is none
    random: np.random.Generator  # of this block; every block draws the same amount in the same order
    epoch_random: Callable[[int], np.random.Generator]  # of an epoch: the same whenever it is asked for

    def by_epoch(self) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """Each epoch among the records, and which of them are in it."""
        for epoch in np.unique(self.epochs).tolist():
            yield epoch, self.epochs == epoch


@dataclasses.dataclass(frozen=True, slots=True)
class Sea:
    """Three numbers in [0, 10); class 1 when the first two add up to at most a threshold; the third is irrelevant.

    W. N. Street and Y. Kim, "A streaming ensemble algorithm (SEA) for large-scale classification", KDD 2001: the
    thresholds are 8, 9, 7 and 9.5 in turn, and 10 % of the labels are flipped.
    """

    noise: float = 0.1

    @property
    def num_classes(self) -> int:
        return 2

    def columns(self, moment: Moment) -> Columns:
        x_NF = 10 * moment.random.random((len(moment.numbers), 3))
        thresholds = np.array([8.0, 9.0, 7.0, 9.5])[moment.epochs % 4]
        label = (x_NF[:, 0] + x_NF[:, 1] <= thresholds) ^ _flips(moment, self.noise)
        return _with_label(x_NF, label)


@dataclasses.dataclass(frozen=True, slots=True)
class Hyperplane:
    """Numbers in [0, 1); class 1 on one side of a plane that halves the cube and turns all the time.

    G. Hulten, L. Spencer and P. Domingos, "Mining time-changing data streams", KDD 2001: class 1 when
    Σ wᵢ xᵢ ≥ ½ Σ wᵢ, with ``moving`` of the weights changing. There, a weight changes by a fixed step and sometimes
    turns round; here it moves evenly from one drift point to the next, to a value drawn from [0, 1), so that a record
    does not depend on those before it.
    """

    features: int = 10
    moving: int = 5
    noise: float = 0.05

    @property
    def num_classes(self) -> int:
        return 2

    def columns(self, moment: Moment) -> Columns:
        x_NF = moment.random.random((len(moment.numbers), self.features))
        weights_NF = self._weights(moment)
        label = ((weights_NF * (x_NF - 0.5)).sum(axis=1) >= 0) ^ _flips(moment, self.noise)
        return _with_label(x_NF, label)

    def _weights(self, moment: Moment) -> Floats:
        fixed = moment.epoch_random(0).random(self.features)
        if not moment.period:
            return np.broadcast_to(fixed, (len(moment.numbers), self.features))
        # The plane turns with the record's number; a gradual mixture of epochs has no meaning here.
        knots, steps = np.divmod(moment.numbers, moment.period)
        first, last = int(knots.min()), int(knots.max())
        table = np.stack([self._knot(moment, fixed, knot) for knot in range(first, last + 2)])
        share = (steps / moment.period)[:, None]
        return np.asarray((1 - share) * table[knots - first] + share * table[knots - first + 1])

    def _knot(self, moment: Moment, fixed: Floats, knot: int) -> Floats:
        drawn = moment.epoch_random(knot).random(self.features)
        return np.where(np.arange(self.features) < self.moving, drawn, fixed)


@dataclasses.dataclass(frozen=True, slots=True)
class Agrawal:
    """Nine columns of loan applicants; class 1 is group A of one of ten functions, which follow one another.

    R. Agrawal, T. Imielinski and A. Swami, "Database mining: a performance perspective", IEEE Transactions on Knowledge
    and Data Engineering 5(6), 1993. ``noise`` is their perturbation: each amount of money is moved, after the label is
    set, by up to that share of its range.
    """

    noise: float = 0.05

    @property
    def num_classes(self) -> int:
        return 2

    def columns(self, moment: Moment) -> Columns:
        people = self._people(moment.random, len(moment.numbers))
        label = np.zeros(len(moment.numbers), dtype=np.int8)
        functions = moment.epochs % len(_AGRAWAL)
        for number in np.unique(functions).tolist():
            rows = functions == number
            label[rows] = _AGRAWAL[number]({name: values[rows] for name, values in people.items()})
        shifts = self.noise * (2 * moment.random.random((len(_MONEY), len(label))) - 1)
        for (name, (low, high)), shift in zip(_MONEY.items(), shifts, strict=True):
            moved = np.clip(people[name] + shift * (high - low), low, high)
            # No commission stays none.
            people[name] = np.where(people[name] == 0, 0.0, moved) if name == "commission" else moved
        whole = {name: people[name].astype(np.int16) for name in ("age", "elevel", "car", "zipcode", "hyears")}
        return {**people, **whole, "label": label}

    @staticmethod
    def _people(random: np.random.Generator, count: int) -> dict[str, Floats]:
        uniform = random.random((9, count))
        salary = 20_000 + 130_000 * uniform[0]
        zipcode = np.floor(9 * uniform[5])
        return {
            "salary": salary,
            "commission": np.where(salary >= 75_000, 0, 10_000 + 65_000 * uniform[1]),
            "age": np.floor(20 + 61 * uniform[2]),
            "elevel": np.floor(5 * uniform[3]),
            "car": np.floor(1 + 20 * uniform[4]),
            "zipcode": zipcode,
            "hvalue": (9 - zipcode) * 100_000 * (0.5 + uniform[6]),
            "hyears": np.floor(1 + 30 * uniform[7]),
            "loan": 500_000 * uniform[8],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class RandomRbf:
    """Points about moving centroids, each of one class, with its own weight and width.

    A. Bifet, G. Holmes, B. Pfahringer, R. Kirkby and R. Gavaldà, "New ensemble methods for evolving data streams", KDD
    2009, and the generator of MOA: a point lies in a random direction from its centroid, at a normal distance; each
    centroid moves on a line by ``speed`` for each record and bounces off the unit cube. Centroids are drawn anew at
    each drift point, if there are any.
    """

    features: int = 10
    classes: int = 5
    centroids: int = 50
    speed: float = 0.0001

    @property
    def num_classes(self) -> int:
        return self.classes

    def columns(self, moment: Moment) -> Columns:
        count = len(moment.numbers)
        choice = moment.random.random(count)
        direction_NF = moment.random.standard_normal((count, self.features))
        distance = moment.random.standard_normal(count)
        centre_NF, width = np.empty((count, self.features)), np.empty(count)
        label = np.empty(count, dtype=np.int64)
        for epoch, rows in moment.by_epoch():
            random = moment.epoch_random(epoch)
            start_PF = random.random((self.centroids, self.features))
            course_PF = _unit(random.standard_normal((self.centroids, self.features)))
            weights, widths = random.random(self.centroids), random.random(self.centroids)
            labels = random.permutation(np.arange(self.centroids) % self.classes)
            edges = np.cumsum(weights)
            chosen = np.minimum(np.searchsorted(edges, choice[rows] * edges[-1], side="right"), self.centroids - 1)
            travelled = self.speed * moment.numbers[rows].astype(np.float64)[:, None]
            centre_NF[rows] = _bounced(start_PF[chosen] + travelled * course_PF[chosen])
            width[rows], label[rows] = widths[chosen], labels[chosen]
        return _with_label(centre_NF + _unit(direction_NF) * (distance * width)[:, None], label)


@dataclasses.dataclass(frozen=True, slots=True)
class Led:
    """The seven lights of a digit, each wrong with probability ``noise``, among 17 lights that mean nothing.

    L. Breiman, J. Friedman, R. Olshen and C. Stone, "Classification and regression trees", 1984, section 2.6.1. From
    the first drift point on, ``moving`` of the seven lights have changed places with others, drawn at each point.
    """

    moving: int = 7
    noise: float = 0.1

    @property
    def num_classes(self) -> int:
        return 10

    def columns(self, moment: Moment) -> Columns:
        count = len(moment.numbers)
        digit = np.floor(10 * moment.random.random(count)).astype(np.int64)
        lights = np.empty((count, 24), dtype=np.uint8)
        lights[:, :7] = _SEGMENTS[digit] ^ (moment.random.random((count, 7)) < self.noise)
        lights[:, 7:] = moment.random.random((count, 17)) < 0.5
        for epoch, rows in moment.by_epoch():
            if epoch:
                lights[rows] = lights[rows][:, self._order(moment.epoch_random(epoch))]
        return _with_label(lights, digit, name="light")

    def _order(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """(24,) which light is shown at each place."""
        order = np.arange(24)
        lights, others = random.permutation(7)[: self.moving], 7 + random.permutation(17)[: self.moving]
        order[lights], order[others] = others, lights
        return order


Concept: TypeAlias = Sea | Hyperplane | Agrawal | RandomRbf | Led
"""What a generator generates: each states its ``num_classes``, and its ``columns`` at a moment."""

# Lights of the digits 0 to 9: top, upper left, upper right, middle, lower left, lower right, bottom.
_SEGMENTS = np.array(
    [
        [1, 1, 1, 0, 1, 1, 1],
        [0, 0, 1, 0, 0, 1, 0],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 1, 0, 1, 1],
        [0, 1, 1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 1, 1],
        [1, 1, 0, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 1, 1],
    ],
    dtype=np.uint8,
)

_MONEY = {
    "salary": (20_000, 150_000),
    "commission": (10_000, 75_000),
    "hvalue": (50_000, 1_350_000),
    "loan": (0, 500_000),
}


def _by_age(person: dict[str, Floats], young: Floats, middle: Floats, old: Floats) -> Floats:
    """One of three values: below 40, below 60, and older."""
    age = person["age"]
    return np.where(age < 40, young, np.where(age < 60, middle, old))


def _between(values: Floats, low: Floats | float, high: Floats | float) -> Floats:
    return np.asarray((low <= values) & (values <= high), dtype=np.float64)


def _in_band(person: dict[str, Floats], amount: Floats) -> Floats:
    """50–100 thousand below 40 years, 75–125 below 60, 25–75 above."""
    bands = [(50_000, 100_000), (75_000, 125_000), (25_000, 75_000)]
    young, middle, old = (_between(amount, low, high) for low, high in bands)
    return _by_age(person, young, middle, old)


def _at_level(person: dict[str, Floats]) -> Floats:
    """Education level 0–1 below 40 years, 1–3 below 60, 2–4 above."""
    young, middle, old = (_between(person["elevel"], low, high) for low, high in [(0, 1), (1, 3), (2, 4)])
    return _by_age(person, young, middle, old)


def _fourth(person: dict[str, Floats]) -> Floats:
    salary, level = person["salary"], _at_level(person)
    low, mid, high = (_between(salary, s, s + 50_000) for s in (25_000, 50_000, 75_000))
    return np.where(level, _by_age(person, low, mid, mid), _by_age(person, mid, high, low))


def _fifth(person: dict[str, Floats]) -> Floats:
    low, mid, high = (_between(person["loan"], start, start + 200_000) for start in (100_000, 200_000, 300_000))
    return np.where(
        _in_band(person, person["salary"]), _by_age(person, low, mid, high), _by_age(person, mid, high, low)
    )


def _disposable(*, level: float = 0, loan: float = 0, equity: float = 0, spent: float) -> Callable[..., Floats]:
    """Functions 7 to 10: whether two thirds of the income are more than what is spent."""

    def positive(person: dict[str, Floats]) -> Floats:
        worth = 0.1 * person["hvalue"] * np.maximum(person["hyears"] - 20, 0)
        left = 0.67 * (person["salary"] + person["commission"]) - level * person["elevel"] - loan * person["loan"]
        return np.asarray(left + equity * worth - spent > 0, dtype=np.float64)

    return positive


_AGRAWAL: tuple[Callable[[dict[str, Floats]], Floats], ...] = (
    lambda person: _by_age(person, *(np.asarray(value) for value in (1.0, 0.0, 1.0))),
    lambda person: _in_band(person, person["salary"]),
    _at_level,
    _fourth,
    _fifth,
    lambda person: _in_band(person, person["salary"] + person["commission"]),
    _disposable(loan=0.2, spent=20_000),
    _disposable(level=5_000, spent=20_000),
    _disposable(level=5_000, loan=0.2, spent=10_000),
    _disposable(level=5_000, equity=0.2, spent=10_000),
)


def _flips(moment: Moment, share: float) -> npt.NDArray[np.bool_]:
    return moment.random.random(len(moment.numbers)) < share


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)))


def _bounced(values: Floats) -> Floats:
    """Positions on a line folded into [0, 1], as a ball between two walls."""
    return 1 - np.abs(values % 2 - 1)


def _with_label(x_NF: npt.NDArray[np.generic], label: npt.NDArray[np.generic], name: str = "x") -> Columns:
    columns: Columns = {f"{name}{number}": np.ascontiguousarray(column) for number, column in enumerate(x_NF.T)}
    return {**columns, "label": label.astype(np.int8)}
