"""Labels to targets: class numbers by the label's text, or plain numbers.

This file knows the target column and the names of the classes so far; it knows no features.

Shapes: N records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.errors import SettingError
from millstream.features.columns import as_text, distinct, numbers
from millstream.features.refusals import Refusals
from millstream.schema import Target

__all__ = ["ClassNames", "check_labels", "number_labels"]

_FIX = "fix the record, or set on_error='quarantine'"
_LARGEST = float(np.finfo(np.float32).max)


class ClassNames:
    """The names of the classes, in the order of their numbers; ``Target.new`` says whether there may be more.

    A label is compared by its text: 1, 1.0, '1' and '1.0' are the same class, and so are true and 'True'.

    >>> ClassNames(Target("y", "class", ("no", "yes"))).encode(pa.array(["yes", "no"]), Refusals())[0].tolist()
    [1, 0]
    """

    def __init__(self, target: Target) -> None:
        if target.num_outputs < 1:
            raise SettingError(
                got=f"target {target.name!r} without classes",
                wanted="their names, or a capacity for new ones",
                do=f"declare it as {target.name}=class:capacity=10",
            )
        self._target = target
        self.names = list(_canonical(target.classes))
        if len(set(self.names)) < len(self.names):
            raise SettingError(
                got=f"target {target.name!r} with a class listed twice", wanted="each once", do="drop one of the two"
            )

    def encode(self, column: pa.Array, refusals: Refusals) -> tuple[npt.NDArray[np.int64], list[str]]:
        """(N,) class numbers, and the names of new classes among them, which ``remember`` makes lasting.

        A label that is neither known nor may be new is refused. Missing labels must have been refused before.
        """
        codes, texts = distinct(column, self._target.name)
        numbers_of = {name: number for number, name in enumerate(self.names)}
        added: list[str] = []
        of_text = np.empty(len(texts), np.int64)
        for place, text in enumerate(texts.to_pylist()):
            if text not in numbers_of and self._target.new == "class" and len(numbers_of) < self._target.num_outputs:
                numbers_of[text] = len(numbers_of)
                added.append(text)
            of_text[place] = numbers_of.get(text, -1)
        labels = of_text[codes] if len(texts) else np.zeros(0, np.int64)
        refusals.add(
            np.flatnonzero(labels < 0),
            lambda row: f"label {texts[codes[row]].as_py()!r} in column {self._target.name!r}",
            wanted=self._wanted(),
            do=self._do(),
        )
        return labels, added

    def remember(self, added: list[str]) -> None:
        self.names.extend(added)

    def _wanted(self) -> str:
        shown = ", ".join(self.names[:8]) + (", …" if len(self.names) > 8 else "")
        if self._target.new == "class":
            return f"one of the {self._target.num_outputs} classes that there is room for ({shown})"
        return f"one of the classes {shown}"

    def _do(self) -> str:
        name = self._target.name
        if self._target.new == "class":
            return f"start with more room ({name}=class:capacity=N), or set on_error='quarantine'"
        return f"list the class, allow new ones ({name}=class:new=class,capacity=N), or set on_error='quarantine'"


def check_labels(column: pa.Array, target: Target, refusals: Refusals) -> None:
    """Refuse the records whose label is missing or not finite, or does not read as the number it should be."""
    name = target.name
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if target.kind == "number":
        values, valid = numbers(column, name, refusals)
        missing = missing if valid is None else ~valid
        values = values.astype(np.float64)
        bad = ~missing & ~(np.abs(values) <= _LARGEST)
    else:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
            missing = column.is_null().to_numpy(zero_copy_only=False)
        if not pa.types.is_floating(column.type):
            bad = np.zeros(len(column), bool)
        else:
            values = column.fill_null(0).to_numpy(zero_copy_only=False)
            bad = ~np.isfinite(values)
    refusals.add(np.flatnonzero(missing), lambda _: f"no label in column {name!r}", wanted="a label", do=_FIX)
    refusals.add(
        np.flatnonzero(bad), lambda row: f"label {values[row]:g} in column {name!r}", wanted="a finite number", do=_FIX
    )


def number_labels(column: pa.Array, target: Target) -> npt.NDArray[np.float32]:
    """(N,) labels in their own units; those that ``check_labels`` refuses must be gone."""
    return numbers(column, target.name, Refusals())[0].astype(np.float32)


def _canonical(classes: tuple[str, ...]) -> list[str]:
    names: list[str] = as_text(pa.array(classes, pa.string()), "classes").to_pylist()
    return names
