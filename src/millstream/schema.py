"""What the columns of a data set mean: plain, frozen descriptions that print, compare and round-trip through JSON.

A schema is declared here, guessed by ``features.infer``, and turned into tensors by ``features.Features``. This file
knows no data and no tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

from millstream.errors import SettingError

__all__ = ["Field", "FieldKind", "Schema", "Target"]

FieldKind: TypeAlias = Literal["number", "category", "text", "time", "array", "ignore"]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One column and how it becomes tensors.

    - ``number``: one dense value, standardised online
    - ``category``: one id, from ``values`` if they are given, else hashed into ``slots`` ids
    - ``text``: hashed words, and n-grams up to ``ngrams`` words, into ``slots`` ids; at most ``max_tokens`` of them
    - ``time``: dense sine and cosine pairs of the cyclic ``parts``
    - ``array``: a fixed-size list of numbers (an image, an embedding), times ``scale``, passed through in ``shape``
    - ``ignore``: not used

    >>> Field("weekday", "category", values=("Mon", "Tue"))
    Field('weekday', 'category', values=('Mon', 'Tue'))
    """

    name: str
    kind: FieldKind
    values: tuple[str, ...] = ()
    slots: int = 4096
    ngrams: int = 1
    max_tokens: int = 64
    parts: tuple[str, ...] = ("hour", "weekday", "yearday")
    shape: tuple[int, ...] = ()
    scale: float = 1.0

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.kind!r}{_changed(self)})"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The column to be predicted: one of ``classes``, or a ``number``.

    ``new`` says what a class that is not listed is: an ``error``, or a new ``class`` that takes the next of
    ``capacity`` outputs (a model's width is fixed before the stream begins).
    """

    name: str
    kind: Literal["class", "number"]
    classes: tuple[str, ...] = ()
    new: Literal["error", "class"] = "error"
    capacity: int = 0  # number of outputs; 0 is len(classes)

    @property
    def num_outputs(self) -> int:
        return 1 if self.kind == "number" else max(self.capacity, len(self.classes))

    def __repr__(self) -> str:
        return f"Target({self.name!r}, {self.kind!r}{_changed(self)})"


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a data set: what is read, what is predicted, what weighs, and when things were known."""

    fields: tuple[Field, ...]
    target: Target | None = None
    weight: str | None = None  # column of record weights
    time: str | None = None  # column: when the features were known
    label_time: str | None = None  # column: when the label was known
    id: str | None = None  # column: by what a label that comes later finds its record

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields] + ([self.target.name] if self.target else [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingError(
                got=f"column {twice[0]!r} declared twice", wanted="each column once", do="drop one of the two"
            )

    def replace(self, *fields: Field, **changes: Any) -> Schema:
        """This schema with some fields declared anew (by name), and other attributes changed.

        >>> Schema((Field("a", "number"), Field("b", "number"))).replace(Field("b", "category")).fields[1].kind
        'category'
        """
        new = {field.name: field for field in fields}
        kept = tuple(new.pop(field.name, field) for field in self.fields)
        return dataclasses.replace(self, fields=kept + tuple(new.values()), **changes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Schema:
        fields = tuple(Field(**_with_tuples(field)) for field in value["fields"])
        target = value.get("target")
        if target is not None:
            target = Target(**_with_tuples(target))
        roles = (value.get(name) for name in ("weight", "time", "label_time", "id"))
        return cls(fields, target, *roles)


def _with_tuples(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the descriptions have no lists."""
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


def _changed(record: Any) -> str:
    """The fields after name and kind that are not at their defaults, as keyword arguments."""
    shown = [
        f"{field.name}={getattr(record, field.name)!r}"
        for field in dataclasses.fields(record)[2:]
        if getattr(record, field.name) != field.default
    ]
    return "".join(f", {text}" for text in shown)
