"""Where each field goes: which dense columns it fills, and which range of the one id space it owns.

This file knows the schema; it knows no data. Dense columns are the numbers first, then the times, then the arrays, each
in the schema's order. Id 0 is absent or padding; ids of different columns never overlap.
"""

from __future__ import annotations

import math

from millstream.errors import SettingError
from millstream.features.time import PARTS
from millstream.hashing import seed_of
from millstream.schema import Field, Schema

__all__ = ["Layout"]


class Layout:
    """A schema's fields by kind, and the places they take.

    >>> layout = Layout(Schema((Field("a", "number"), Field("b", "category", values=("x", "y")))))
    >>> layout.dense_names, layout.num_ids
    (('a',), 4)
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.numbers = tuple(field.name for field in schema.fields if field.kind == "number")
        self.times = tuple(field for field in schema.fields if field.kind == "time")
        self.arrays = tuple(field for field in schema.fields if field.kind == "array")
        self.coded = tuple(field for field in schema.fields if field.kind in ("category", "text"))
        for field in schema.fields:
            _check(field)
        self.dense_names = self._dense_names()
        self.first_ids: dict[str, int] = {}
        self.seeds = {field.name: seed_of(field.name) for field in self.coded}
        next_id = 1
        for field in self.coded:
            self.first_ids[field.name] = next_id
            next_id += len(field.values) + 1 if field.kind == "category" and field.values else field.slots
        self.num_ids = next_id if self.coded else 0
        if not self.dense_names and not self.coded:
            raise SettingError(
                got="a schema without any field to learn from",
                wanted="at least one that is not ignored",
                do="declare a column as number, category, text, time or array",
            )

    @property
    def single(self) -> Field | None:
        """The one array that is the only input, and so keeps its shape."""
        alone = len(self.arrays) == 1 and not (self.numbers or self.times or self.coded)
        return self.arrays[0] if alone else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.single.shape if self.single else (len(self.dense_names),)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to be read, each once."""
        schema = self.schema
        used = [field.name for field in schema.fields if field.kind != "ignore"]
        extra = (
            schema.target.name if schema.target else None,
            schema.weight,
            schema.time,
            schema.label_time,
            schema.id,
        )
        return tuple(dict.fromkeys([*used, *(name for name in extra if name)]))

    def _dense_names(self) -> tuple[str, ...]:
        times = [
            f"{field.name}.{part}.{side}" for field in self.times for part in field.parts for side in ("sin", "cos")
        ]
        arrays = [f"{field.name}[{place}]" for field in self.arrays for place in range(math.prod(field.shape))]
        return (*self.numbers, *times, *arrays)


def _check(field: Field) -> None:
    name, wrong = field.name, ""
    if field.kind == "array" and (not field.shape or min(field.shape) < 1):
        wrong, wanted, do = f"shape {field.shape}", "positive sizes", f"declare it as {name}=array:shape=28x28"
    elif field.kind == "text" and min(field.slots, field.ngrams, field.max_tokens) < 1:
        wrong, wanted, do = "no slots, n-grams or tokens", "at least one of each", f"declare it as {name}=text"
    elif field.kind == "category" and not field.values and field.slots < 1:
        wrong, wanted, do = "neither values nor slots", "one of them", f"declare it as {name}=category:slots=4096"
    elif field.kind == "time" and not set(field.parts) <= set(PARTS):
        wrong, wanted, do = f"parts {', '.join(field.parts)}", f"some of {', '.join(PARTS)}", "pick from these"
    if wrong:
        raise SettingError(got=f"{field.kind} field {name!r} with {wrong}", wanted=wanted, do=do)
