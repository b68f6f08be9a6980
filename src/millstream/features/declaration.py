"""Schemas as text: the table that is printed, and the words of the command line that mend one.

This file knows schemas and strings; it knows no data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, cast

from millstream.errors import SettingError
from millstream.features.columns import near
from millstream.schema import Field, FieldKind, Schema, Target

__all__ = ["describe", "parse_override"]

_FIELD_KINDS = ("number", "category", "text", "time", "array", "ignore")
_TARGET_KINDS = ("class", "number")


def describe(schema: Schema) -> str:
    """A table of the columns, their kinds and what becomes of them.

    >>> print(describe(Schema((Field("age", "number"),), Target("y", "class", ("no", "yes")))))
    column  kind    becomes
    age     number  1 standardised number
    y       target  one of 2 classes: no, yes
    """
    rows = [("column", "kind", "becomes")]
    rows += [(field.name, field.kind, _BECOMES[field.kind](field)) for field in schema.fields]
    if schema.target:
        rows.append((schema.target.name, "target", _target_text(schema.target)))
    for name, use in (
        (schema.weight, "how much a record counts"),
        (schema.time, "when the features were known"),
        (schema.label_time, "when the label was known"),
        (schema.id, "by what a later label finds its record"),
    ):
        if name is not None:
            rows.append((name, "role", use))
    widths = [max(len(row[place]) for row in rows) for place in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {becomes}" for name, kind, becomes in rows)


def parse_override(text: str, schema: Schema) -> Schema:
    """The schema with one column declared anew: ``NAME=KIND`` or ``NAME=KIND:OPTION=VALUE,OPTION=VALUE``.

    Kinds are number, category, text, time, array and ignore; for the target, class and number. Options are the
    attributes of ``Field`` and ``Target``; several values are joined by ``|``, sizes of a shape by ``x``.

    >>> parse_override("note=text:slots=1024", Schema((Field("note", "category"),))).fields
    (Field('note', 'text', slots=1024),)
    """
    kinds = "|".join(dict.fromkeys(_FIELD_KINDS + _TARGET_KINDS))
    match = re.fullmatch(rf"(?P<name>.+?)=(?P<kind>{kinds})(?::(?P<options>.*))?", text, re.DOTALL)
    if match is None:
        _, _, kind = text.partition("=")
        raise SettingError(
            got=f"column declaration {text!r}",
            wanted=f"NAME=KIND with a kind among {near(kind.partition(':')[0], kinds.split('|'))}",
            do="write e.g. zip=category",
        )
    name, kind, options = match["name"], match["kind"], _options(match["options"] or "", text)
    if schema.target and name == schema.target.name:
        return dataclasses.replace(schema, target=_new_target(schema.target, kind, options, text))
    fields = {field.name: field for field in schema.fields}
    if name not in fields:
        raise SettingError(
            got=f"column {name!r} in {text!r}",
            wanted=f"one of the schema's columns: {near(name, fields)}",
            do="name one of them",
        )
    if kind not in _FIELD_KINDS:
        raise SettingError(
            got=f"{text!r} for a column that is not the target",
            wanted=f"one of {', '.join(_FIELD_KINDS)}",
            do="pick one",
        )
    start = fields[name] if fields[name].kind == kind else Field(name, "ignore")
    return schema.replace(
        dataclasses.replace(start, kind=cast(FieldKind, kind), **_converted(options, _FIELD_OPTIONS, text))
    )


def _new_target(target: Target, kind: str, options: dict[str, str], text: str) -> Target:
    if kind not in _TARGET_KINDS:
        raise SettingError(got=f"{text!r} for the target", wanted="class or number", do="name another target first")
    changes = _converted(options, _TARGET_OPTIONS, text)
    if kind == "number":
        if changes:
            raise SettingError(got=f"{text!r}", wanted="no options for a number", do=f"write {target.name}=number")
        return Target(target.name, "number")
    changed = dataclasses.replace(target, kind="class", **changes)
    if "classes" in changes and not {"new", "capacity"} & changes.keys():  # these are all there are
        changed = dataclasses.replace(changed, new="error", capacity=0)
    if changed.capacity > len(changed.classes) and "new" not in changes:
        changed = dataclasses.replace(changed, new="class")
    if changed.num_outputs < 1:
        raise SettingError(
            got=f"{text!r}, of which no class is known",
            wanted="their names or how many",
            do=f"write {target.name}=class:capacity=10 or {target.name}=class:classes=no|yes",
        )
    return changed


def _options(text: str, whole: str) -> dict[str, str]:
    options = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise SettingError(got=f"option {part!r} in {whole!r}", wanted="OPTION=VALUE", do="write e.g. slots=1024")
        options[name.strip()] = value
    return options


def _converted(options: dict[str, str], known: dict[str, Callable[[str], Any]], whole: str) -> dict[str, Any]:
    values = {}
    for name, value in options.items():
        if name not in known:
            raise SettingError(
                got=f"option {name!r} in {whole!r}", wanted=f"one of {near(name, known)}", do="use one of these"
            )
        try:
            values[name] = known[name](value)
        except ValueError:
            raise SettingError(
                got=f"{name}={value!r} in {whole!r}", wanted="a value of its kind", do=f"write e.g. {_EXAMPLES[name]}"
            ) from None
    return values


def _several(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(size) for size in text.split("x"))


def _fraction(text: str) -> float:
    """A number, or a quotient such as 1/255."""
    above, _, below = text.partition("/")
    return float(above) / (float(_positive(below)) if below else 1.0)


def _error_or_class(text: str) -> str:
    if text not in ("error", "class"):
        raise ValueError(text)
    return text


_FIELD_OPTIONS: dict[str, Callable[[str], Any]] = {
    "values": _several,
    "slots": _positive,
    "ngrams": _positive,
    "max_tokens": _positive,
    "parts": _several,
    "shape": _sizes,
    "scale": _fraction,
}
_TARGET_OPTIONS: dict[str, Callable[[str], Any]] = {
    "classes": _several,
    "new": _error_or_class,
    "capacity": _positive,
}
_EXAMPLES = {
    "slots": "slots=1024",
    "ngrams": "ngrams=2",
    "max_tokens": "max_tokens=128",
    "shape": "shape=28x28",
    "scale": "scale=1/255",
    "new": "new=class",
    "capacity": "capacity=10",
}


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values[:5]) + (", …" if len(values) > 5 else "")


def _category_text(field: Field) -> str:
    if field.values:
        return f"1 id: {_listed(field.values)}, or another"
    return f"1 id, hashed into {field.slots:,} slots"


def _text_text(field: Field) -> str:
    grams = "words" if field.ngrams == 1 else f"words and n-grams up to {field.ngrams}"
    return f"up to {field.max_tokens} ids of {grams}, hashed into {field.slots:,} slots"


def _array_text(field: Field) -> str:
    scaled = "" if field.scale == 1.0 else f", times {field.scale:.4g}"
    return f"{' × '.join(map(str, field.shape)) or 'no'} numbers{scaled}"


def _target_text(target: Target) -> str:
    if target.kind == "number":
        return "1 number"
    text = f"one of {len(target.classes)} classes: {_listed(target.classes)}" if target.classes else "a class"
    return text + (f"; room for {target.num_outputs}" if target.new == "class" else "")


_BECOMES: dict[str, Callable[[Field], str]] = {
    "number": lambda field: "1 standardised number",
    "category": _category_text,
    "text": _text_text,
    "time": lambda field: f"sine and cosine of {', '.join(field.parts)}",
    "array": _array_text,
    "ignore": lambda field: "nothing",
}
