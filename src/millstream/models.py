"""Ready-made models by name, for whatever the features give: dense values, ids, or both, or an image.

Ids (categories and hashed words) enter the first layer as the one-hot columns that they stand for: an ``EmbeddingBag``
that sums is a linear layer over them. With sparse gradients an update touches only the rows that occur; without, all.

Shapes: N records, D dense values, K ids per record, C outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import inspect
import itertools
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from millstream.errors import MillstreamError, ModelError, SettingError

__all__ = ["NAMES", "FirstLayer", "InputShape", "build", "call_object", "load_object", "names_of"]

NAMES = ("reference", "linear", "mlp:256,128", "cnn", "my_module:factory")


@dataclasses.dataclass(frozen=True, slots=True)
class InputShape:
    """What a model is given per record: ``dense`` values in this shape, and ids below ``num_ids`` (0: no ids)."""

    dense: tuple[int, ...]
    num_ids: int = 0

    @property
    def num_dense(self) -> int:
        return math.prod(self.dense) if self.dense else 0


class FirstLayer(nn.Module):
    """A linear layer over dense values and the one-hot columns of ids: (N, D) or {"dense", "ids"} to (N, width)."""

    def __init__(self, shape: InputShape, width: int, *, sparse: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(1, shape.num_dense + min(shape.num_ids, 32)))
        self.dense = nn.Linear(shape.num_dense, width) if shape.num_dense else None
        self.bias = None if shape.num_dense else nn.Parameter(torch.zeros(width))
        self.ids: nn.EmbeddingBag | None = None
        if shape.num_ids:
            self.ids = nn.EmbeddingBag(shape.num_ids, width, mode="sum", padding_idx=0, sparse=sparse)
            nn.init.uniform_(self.ids.weight, -bound, bound)
            with torch.no_grad():
                self.ids.weight[0] = 0

    def forward(self, inputs: Any) -> Tensor:
        if self.ids is None:
            assert self.dense is not None
            return self.dense(inputs.flatten(1))  # type: ignore[no-any-return]
        rows: Tensor = self.ids(inputs["ids"])
        if self.dense is None:
            assert self.bias is not None
            return rows + self.bias
        return rows + self.dense(inputs["dense"].flatten(1))  # type: ignore[no-any-return]


def build(name: str, shape: InputShape, num_outputs: int, *, sparse: bool = False) -> nn.Module:
    """A model by name; the weights are drawn from torch's generator.

    ``sparse`` gives ids sparse gradients, which plain SGD and Adagrad take and most other optimizers do not.

    ``reference`` is Linear then ReLU on the logits, as the mission states it; ``linear`` one layer; ``mlp:256,128``
    hidden layers of these widths with ReLU; ``cnn`` a small LeNet for square images; ``my_module:factory`` is called
    with (num_inputs, num_outputs), or without arguments if it takes none.

    >>> build("mlp:8", InputShape((4,)), 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """
    kind, _, argument = name.partition(":")
    if kind == "reference" and not argument:
        _dense_only(name, shape)
        flatten = [nn.Flatten()] if len(shape.dense) > 1 else []
        return nn.Sequential(*flatten, nn.Linear(shape.num_dense, num_outputs), nn.ReLU())
    if kind == "linear" and not argument:
        return _chain([FirstLayer(shape, num_outputs, sparse=sparse)], shape)
    if kind == "mlp":
        return _mlp(name, argument, shape, num_outputs, sparse)
    if kind == "cnn" and not argument:
        return _cnn(shape, num_outputs)
    if argument:
        return _from_factory(name, shape, num_outputs)
    near = difflib.get_close_matches(kind, ("reference", "linear", "mlp", "cnn"), 1)
    raise SettingError(
        got=f"model {name!r}",
        wanted=f"one of {', '.join(NAMES)}",
        do=f"try {near[0]!r}" if near else "pick one of these",
    )


def names_of(text: str | None) -> tuple[str, ...]:
    """The names in a text with commas between; a number goes on with the widths of the name before it.

    >>> names_of("linear,mlp:64,32,mlp:256")
    ('linear', 'mlp:64,32', 'mlp:256')
    """
    names: list[str] = []
    for part in (text or "").split(","):
        if part.strip().isdigit() and names:
            names[-1] += f",{part.strip()}"
        elif part.strip():
            names.append(part.strip())
    if len(set(names)) < len(names):
        raise SettingError(got=f"models {text}", wanted="each of them once", do="leave one out")
    return tuple(names)


def load_object(path: str) -> Any:
    """The Python object at ``module:name``; the current folder counts as a place for modules."""
    module_name, _, attribute = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed(path, error) from error
        reason = f"no module {module_name!r}"
    except AttributeError as error:
        if _place(error):
            raise _failed(path, error) from error
        reason = f"no {attribute!r} in module {module_name!r}"
    except Exception as error:
        raise _failed(path, error) from error
    raise SettingError(
        got=f"{path!r}: {reason}",
        wanted="MODULE:NAME that can be imported",
        do=f"check the spelling, run it from the folder of the module, or name a model: {', '.join(NAMES[:4])}",
    )


def call_object(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a person's function gives, called with ``arguments``, or without if it takes none.

    Its failure is a ``SettingError`` with the place in his code.
    """
    try:
        takes_none = not inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        takes_none = False
    try:
        return function() if takes_none else function(*arguments)
    except MillstreamError:
        raise
    except Exception as error:
        raise _failed(path, error) from error


def _failed(path: str, error: Exception) -> SettingError:
    place = _place(error)
    reason = (str(error).splitlines() or [""])[0]
    return SettingError(
        got=f"{path!r}, which failed{place and f' at {place}'}: {type(error).__name__}: {reason}",
        wanted="a module that can be imported and a function that can be called",
        do="correct it there",
    )


def _place(error: Exception) -> str:
    """The last line of a person's own code that an error passed through."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<"))
        and not {"site-packages", "importlib"} & {*Path(frame.filename).parts}
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _mlp(name: str, argument: str, shape: InputShape, num_outputs: int, sparse: bool) -> nn.Module:
    try:
        widths = [int(part) for part in argument.split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1:
        raise SettingError(got=f"model {name!r}", wanted="mlp:WIDTH[,WIDTH…]", do="write e.g. mlp:256 or mlp:256,128")
    layers: list[nn.Module] = [FirstLayer(shape, widths[0], sparse=sparse), nn.ReLU()]
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return _chain([*layers, nn.Linear(widths[-1], num_outputs)], shape)


def _chain(layers: list[nn.Module], shape: InputShape) -> nn.Module:
    """The layers in a row. Without ids the first layer is a plain ``Linear``, which every engine knows."""
    first = layers[0]
    if isinstance(first, FirstLayer) and first.ids is None and first.dense is not None:
        flatten = [nn.Flatten()] if len(shape.dense) > 1 else []
        layers = [*flatten, first.dense, *layers[1:]]
    return nn.Sequential(*layers)


def _cnn(shape: InputShape, num_outputs: int) -> nn.Module:
    _dense_only("cnn", shape)
    dense = shape.dense
    side = math.isqrt(dense[0]) if len(dense) == 1 else 0
    if len(dense) == 1 and side * side == dense[0]:
        dense = (1, side, side)
    if len(dense) == 2:
        dense = (1, *dense)
    if len(dense) != 3 or min(dense[1:]) < 12:
        raise ModelError(
            got=f"inputs of shape {shape.dense} for model 'cnn'", wanted="images of at least 12 × 12", do="use mlp:256"
        )
    flatten = [nn.Flatten()] if len(shape.dense) > 1 else []
    height, width = ((s - 4) // 2 for s in dense[1:])
    height, width = (height - 4) // 2, (width - 4) // 2
    return nn.Sequential(
        *([] if dense == shape.dense else [*flatten, nn.Unflatten(1, dense)]),
        *(nn.Conv2d(dense[0], 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * height * width, 64), nn.ReLU(), nn.Linear(64, num_outputs)),
    )


def _dense_only(name: str, shape: InputShape) -> None:
    if shape.num_ids:
        raise ModelError(
            got=f"categories or text for model {name!r}", wanted="numbers only", do="use 'linear' or 'mlp:256' instead"
        )


def _from_factory(name: str, shape: InputShape, num_outputs: int) -> nn.Module:
    factory = load_object(name)
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)  # each trainer changes its own
    if not callable(factory):
        raise SettingError(
            got=f"{type(factory).__name__} at {name!r}",
            wanted="a function of (num_inputs, num_outputs), or of nothing",
            do="name the function that makes the model",
        )
    model = call_object(name, factory, shape.num_dense, num_outputs)
    if not isinstance(model, nn.Module):
        raise SettingError(
            got=f"{type(model).__name__} from {name!r}", wanted="a torch.nn.Module", do="return the model itself"
        )
    return model
