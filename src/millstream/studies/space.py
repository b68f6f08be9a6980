"""What a search may change: dimensions, and how their values become settings of ``fit`` and ``learn``.

It knows names of settings; it knows neither Optuna nor trainers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from millstream.assembly import OPTIMIZERS
from millstream.errors import SettingError

__all__ = ["Dimension", "Space", "space_for"]

_RACE = "auto"  # the optimizer of a trial whose rates race
_OPTIMIZERS = (_RACE, "sgd", "momentum", "factored", "adam")
_FACTORS = 1 / 30, 30.0  # of an optimizer's usual rate
_USUAL_WIDTH = 8  # 256 units, as a power of two


@dataclasses.dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that is searched: among ``choices``, or from ``low`` to ``high``.

    A range of whole numbers is of powers of two, one of others is even on a logarithmic scale. ``usual`` is what is
    taken where nobody searches.
    """

    name: str
    usual: Any
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    kind: Literal["choice", "power", "factor"] = "choice"
    unless: tuple[str, str] | None = None  # a dimension and its value without which this one has a meaning

    def is_asked(self, values: Mapping[str, Any]) -> bool:
        """Whether it has a meaning beside the values of the dimensions before it."""
        return self.unless is None or values.get(self.unless[0]) != self.unless[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Space:
    """The dimensions of a search, and the settings that are the same in all trials.

    A new dimension is one more ``Dimension`` here and its line in ``settings``.
    """

    dimensions: tuple[Dimension, ...]
    fixed: dict[str, Any]

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial, by the names of options.

        >>> space = space_for("fit", {})
        >>> space.settings({"optimizer": "sgd", "rate": 2.0, "width": 6, "batch": 5})
        {'model': 'mlp:64', 'optimizer': 'sgd', 'learning_rate': 0.06, 'batch_size': 32}
        """
        settings = dict(self.fixed)
        if "width" in values:
            settings["model"] = f"mlp:{2 ** int(values['width'])}"
        settings["optimizer"] = values.get("optimizer", settings.get("optimizer", _RACE))
        is_race = settings["optimizer"] == _RACE
        # Few digits: what is written down and typed again must be the same rate.
        usual = None if is_race else OPTIMIZERS[settings["optimizer"]][2]
        settings["learning_rate"] = None if usual is None else float(f"{usual * float(values['rate']):.3g}")
        if "batch" in values:
            settings["batch_size"] = 2 ** int(values["batch"])
        return settings

    def starts(self) -> list[dict[str, Any]]:
        """The values to begin with: each optimizer at its usual rate, the race of rates first."""
        optimizers = next((each.choices for each in self.dimensions if each.name == "optimizer"), ())
        starts: list[dict[str, Any]] = [{"optimizer": name} for name in optimizers] or [{}]
        for values in starts:
            for each in self.dimensions:
                if each.name != "optimizer" and each.is_asked(values):
                    values[each.name] = each.usual
        return starts

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def space_for(kind: Literal["fit", "learn"], stated: Mapping[str, Any], optimizers: Sequence[str] = ()) -> Space:
    """The space of a ``fit`` or ``learn``. What is ``stated`` (model, optimizer, batch size) is not searched."""
    if stated.get("optimizer") == _RACE:
        stated = {name: value for name, value in stated.items() if name != "optimizer"}
    named = stated.get("optimizer")
    for name in [*optimizers, *([named] if named else [])]:
        if name not in (*OPTIMIZERS, _RACE):
            raise SettingError(got=f"optimizer {name!r}", wanted=f"one of {', '.join(OPTIMIZERS)}", do="pick one")
    dimensions = [Dimension("rate", 1.0, low=_FACTORS[0], high=_FACTORS[1], kind="factor", unless=("optimizer", _RACE))]
    if not named:
        chosen = tuple(optimizers) or _OPTIMIZERS
        dimensions.insert(0, Dimension("optimizer", chosen[0], choices=chosen))
    if "model" not in stated:
        dimensions.append(Dimension("width", _USUAL_WIDTH, low=5, high=9, kind="power"))
    if kind == "fit" and "batch_size" not in stated:
        dimensions.append(Dimension("batch", 6, low=3, high=9, kind="power"))
    return Space(tuple(dimensions), dict(stated))
