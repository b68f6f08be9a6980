"""What a check has found: the differences, the speeds, and the verdict, as text and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

__all__ = ["Difference", "Findings", "Part", "advice"]

# Where runs that differ in rounding alone are farther apart, a difference proves little.
_CHAOS = {"float64": 1e-10, "float32": 1e-2}
# Words of a reason why an engine does not take a rule, or leaves records to the reference, and what to change then.
_ADVICE = (
    ("more than one record", "check updates of one record (--update-size 1)"),
    ("autocast", "leave torch.autocast off"),
    ("labels", "give labels that the loss takes for every record"),
    ("inputs", "give tensors of float32, float64, int64 or int32, of one length, in the model's type of number"),
    ("optimizer's option", "leave this option of the optimizer out"),
    ("hooks", "take the hooks away while it trains"),
    ("torch.fx", "write forward() without branches on values and types"),
    ("in training", "let modules such as nn.Dropout do what differs in training"),
    ("optimizer state", "let the optimizer make its state anew"),
    ("optimizer", "use torch.optim.SGD, Adam, AdamW, Adagrad or RMSprop"),
    ("learning rate", "give the optimizer its rate as a plain number"),
    ("schedul", "use one that steps by itself after every update or epoch"),
    ("class weights", "give one weight for each output"),
    ("loss", "name the loss: cross_entropy, binary_cross_entropy, mse, huber, poisson or quantile"),
    ("share memory", "give each layer parameters of its own"),
    ("contiguous", "make the parameters contiguous: p.data = p.data.contiguous()"),
    ("CPU", "keep the model on the CPU"),
    ("float32", "keep all parameters in one type of number"),
)


def advice(reason: str) -> str:
    """What to change where an engine declines for this reason.

    >>> advice("optimizer Rprop")
    'use torch.optim.SGD, Adam, AdamW, Adagrad or RMSprop'
    """
    found = next((text for word, text in _ADVICE if word in reason), "")
    return found or "change this part of the model; docs/fused-engine.md says what the engine takes"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The tensor of a kind that is farthest off, by the share of its bound that it takes."""

    name: str
    difference: float  # ‖engine − reference‖ over the largest ‖reference‖ so far
    reordered: float  # the same of the reference with its sums in another order
    share: float  # of the bound; above 1 it is not equal

    def to_json(self) -> dict[str, Any]:
        return {"tensor": self.name, "difference": self.difference, "reordered": self.reordered, "share": self.share}


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How far the engine is from the reference after so many updates."""

    numbers: str  # float64 or float32
    num_updates: int
    weights: Part
    predictions: Part
    optimizer: Part
    largest: float  # of all tensors
    largest_reordered: float

    @property
    def worst(self) -> Part:
        return max((self.weights, self.predictions, self.optimizer), key=lambda part: (part.share, part.difference))

    @property
    def is_within(self) -> bool:
        return self.worst.share <= 1

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).to_json() for name in ("weights", "predictions", "optimizer")}
        largest = {"largest": self.largest, "largest_reordered": self.largest_reordered}
        return {"numbers": self.numbers, "updates": self.num_updates, "equal": self.is_within, **largest, **parts}


@dataclasses.dataclass(slots=True)
class Findings:
    """The result of a check. ``print(findings)`` shows it; ``is_equal`` is None where nothing was compared."""

    name: str
    num_records: int
    update_size: int
    num_parameters: int
    optimizer: str
    loss: str
    engine: str  # the one that was compared with the reference
    auto: str  # the one that engine="auto" takes
    declines: dict[str, str]  # why each engine does not take the model; "" if it does
    num_updates: int = 0
    differences: list[Difference] = dataclasses.field(default_factory=list)
    records_per_second: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    left: str = ""  # why the engine left the records to the reference, so that there is nothing to compare
    advice: str = ""
    is_equal: bool | None = None
    verdict: str = ""

    def leave(self, reasons: Counter[str], num_learned: int) -> None:
        """Notes how many of the records that were learned the engine left to the reference, and why."""
        if reasons.total() == num_learned:
            self.left = ", ".join(reasons)
            self.advice = advice(self.left)
        elif reasons:
            share = f"{reasons.total():,} of {num_learned:,} records"
            note = f"{self.engine} left {share} to the reference: {', '.join(reasons)}"
            self.notes += [note] if note not in self.notes else []

    def judge(self) -> None:
        """Sets ``is_equal`` and ``verdict`` by the differences."""
        if self.declines[self.engine]:
            self.verdict = (
                f"{self.engine} does not take this model: {self.declines[self.engine]}; to let it, {self.advice}. "
                f"Until then {self.auto} trains it"
            )
            return
        if not self.differences:
            self.verdict = (
                f"nothing was compared, as {self.engine} left these records to the reference: {self.left}; to let it "
                f"learn them, {self.advice}"
            )
            return
        if self.left:
            self.notes.append(f"in one type of number {self.engine} left all records to the reference: {self.left}")
            self.left = self.advice = ""
        beyond = [one for one in self.differences if not one.is_within]
        self.is_equal = not beyond
        if beyond:
            first, worst = beyond[0], beyond[0].worst
            self.verdict = (
                f"{self.engine} does not equal the reference: in {first.numbers} {worst.name!r} differs by "
                f"{_size(worst.difference)} after {first.num_updates:,} updates, {worst.share:.2g} times what is "
                "allowed; please report it, and use engine='reference'"
            )
            return
        facts = []
        for numbers in dict.fromkeys(one.numbers for one in self.differences):
            rows = [one for one in self.differences if one.numbers == numbers]
            calm = list(itertools.takewhile(lambda one: one.largest_reordered < _CHAOS[one.numbers], rows))
            facts.append(_said((calm or rows[:1])[-1]))
            if numbers == "float64" and len(calm) < len(rows):
                first = rows[len(calm)]
                self.notes.append(
                    f"this training amplifies rounding: in float64 another order of sums alone makes a difference of "
                    f"{_size(first.largest_reordered)} after {first.num_updates:,} updates; the rows before prove"
                )
        self.verdict = f"{self.engine} equals the reference: {'; '.join(facts)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "records": self.num_records,
            "update_size": self.update_size,
            "updates": self.num_updates,
            "parameters": self.num_parameters,
            "optimizer": self.optimizer,
            "loss": self.loss,
            "engine": self.engine,
            "auto": self.auto,
            "declines": self.declines,
            "advice": self.advice or None,
            "equal": self.is_equal,
            "verdict": self.verdict,
            "differences": [one.to_json() for one in self.differences],
            "records_per_second": self.records_per_second,
            "left_to_reference": self.left or None,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        size = "one record" if self.update_size == 1 else f"{self.update_size:,} records"
        lines = [
            f"{self.name}: {self.num_parameters:,} parameters, {self.optimizer}, {self.loss}; "
            f"{self.num_records:,} records, updates of {size}"
        ]
        if self.differences:
            lines += ["", *_aligned(_HEADER, [_row(one) for one in self.differences])]
        lines += ["", self._speed()]
        lines += [f"auto takes {self.auto}" + "".join(self._others()), f"{self.verdict}."]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _speed(self) -> str:
        rates = self.records_per_second
        text = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
        if self.engine in rates and "reference" in rates:
            text += f" ({rates[self.engine] / rates['reference']:.3g} times as fast)"
        return f"records/s: {text}"

    def _others(self) -> list[str]:
        return [f"; {name} declines: {reason}" for name, reason in self.declines.items() if reason]


_HEADER = ("numbers", "updates", "weights", "reordered", "outputs", "reordered", "optimizer", "reordered", "farthest")


def _row(one: Difference) -> list[str]:
    parts = (one.weights, one.predictions, one.optimizer)
    cells = [_size(value) for part in parts for value in (part.difference, part.reordered)]
    mark = "" if one.is_within else "  NOT EQUAL"
    return [one.numbers, f"{one.num_updates:,}", *cells, one.worst.name + mark]


def _said(one: Difference) -> str:
    text = f"{one.numbers} differs by {_size(one.largest)} after {one.num_updates:,} updates"
    if not one.largest:
        text = f"{one.numbers} is the same to the last bit after {one.num_updates:,} updates"
    elif one.numbers == "float32" and one.largest_reordered:  # in float64 both are far below what anybody would see
        text += f", {one.largest / one.largest_reordered:.2g} of what reordered sums do"
    return text


def _size(value: float) -> str:
    """A relative difference in few characters.

    >>> _size(0.0), _size(3.21e-15), _size(float("inf"))
    ('0', '3.2e-15', 'all')
    """
    if not math.isfinite(value):
        return "all"
    return f"{value:.1e}" if value else "0"


def _aligned(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Rows in columns: the first and the last to the left, the others to the right."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    last = len(header) - 1
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if place in (0, last) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
