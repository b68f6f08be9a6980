"""Arithmetic between values as lines of the tape: sums, products, quotients, means, and elements in other places.

What torch spreads over a dimension, and what only moves elements (``permute``, slices, ``flip``), becomes a line that
takes elements from places: the places are what the very same call makes of the numbers 0, 1, 2, …
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from millstream.engines.kernels import activations, layout
from millstream.engines.operations import Found, Unknown, first_argument, options

__all__ = ["FUNCTIONS", "METHODS", "SPLITS", "taken"]

SPLITS = {"chunk", "split", torch.chunk, torch.split}


def taken(node: fx.Node, reader: Any) -> Found:
    """Elements of a value in other places."""
    call, source = _call_of(node, reader)
    shape = reader.shape(node)
    numbers = torch.arange(2 * source.size).reshape(2, *source.shape)
    first, second = call(numbers)
    if first.shape != shape or not torch.equal(first + source.size, second):
        raise Unknown(f"{node.name} does not keep records apart")
    return {"kind": layout.TAKE, "source": source.name, "places": first.reshape(-1)}


def _call_of(node: fx.Node, reader: Any) -> tuple[Callable[[Any], Any], Any]:
    """What a node does to its first argument, and the value that this is."""
    given, *rest = node.args or (first_argument(node),)
    named = {name: value for name, value in node.kwargs.items() if name != "input"}
    if any(isinstance(part, fx.Node) for part in [*_leaves(rest), *_leaves(named)]):
        raise Unknown(f"{node.name} takes elements from places that are computed")
    call: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    if isinstance(given, fx.Node) and given.target in SPLITS:
        split, source = _call_of(given, reader)
        return lambda numbers: call(split(numbers), *rest, **named), source
    return lambda numbers: call(numbers, *rest, **named), reader.value(given)


def _leaves(part: Any) -> list[Any]:
    if isinstance(part, list | tuple):
        return [leaf for one in part for leaf in _leaves(one)]
    if isinstance(part, dict):
        return [leaf for one in part.values() for leaf in _leaves(one)]
    return [part.start, part.stop, part.step] if isinstance(part, slice) else [part]


def _operands(node: fx.Node) -> tuple[Any, Any]:
    """The two sides of a call, numbers as they are."""
    other = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    return first_argument(node), other


def _scaled(name: str, factor: float, shape: tuple[int, ...], reader: Any) -> str:
    """The name of a value times a number."""
    if factor == 1:
        return name
    found: str = reader.more(shape, **_of_one(name, activations.SCALE, factor))
    return found


def _of_one(name: str, code: int, argument: float = 0.0) -> Found:
    return {"kind": layout.ACTIVATION, "source": name, "code": code, "argument": float(argument)}


def _spread(part: Any, node: fx.Node, reader: Any) -> str:
    """The name of a value in the shape of a result."""
    value, shape = reader.value(part), reader.shape(node)
    if value.shape == shape:
        return str(value.name)
    if len(value.shape) != len(shape):
        raise Unknown(f"{node.name} of shapes that differ")
    places = torch.arange(value.size).reshape(value.shape).broadcast_to(shape).reshape(-1)
    return str(reader.more(shape, kind=layout.TAKE, source=value.name, places=places))


def _add(node: fx.Node, reader: Any, sign: float = 1.0) -> Found:
    """one + sign × alpha × other."""
    one, other = _operands(node)
    (alpha,) = options(node, ("other", "alpha"), (None, 1))[1:]
    factor, shape = sign * alpha, reader.shape(node)
    if isinstance(other, int | float):
        return _of_one(reader.value(one).name, activations.SHIFT, factor * other)
    if isinstance(one, int | float):
        return _of_one(_scaled(_spread(other, node, reader), factor, shape, reader), activations.SHIFT, one)
    if factor == 1 and reader.is_parameter(one):
        one, other = other, one
    if not reader.is_parameter(other):
        second = _scaled(_spread(other, node, reader), factor, shape, reader)
        return {"kind": layout.ADD, "source": _spread(one, node, reader), "other": second}
    if factor != 1:
        raise Unknown(f"{node.name} of a parameter, with a factor")
    return {"kind": layout.ADD_PARAMETER, **_with_parameter(one, other, node, reader)}


def _with_parameter(one: Any, other: Any, node: fx.Node, reader: Any) -> Found:
    source, parameter = reader.value(one), reader.parameter(other)
    if parameter.numel() != source.size or reader.shape(node) != source.shape:
        raise Unknown(f"{node.name} of a value and a parameter whose shapes differ")
    return {"source": source.name, "weight": parameter}


def _subtract(node: fx.Node, reader: Any) -> Found:
    return _add(node, reader, -1.0)


def _multiply(node: fx.Node, reader: Any) -> Found:
    one, other = _operands(node)
    if isinstance(one, int | float):
        one, other = other, one
    if isinstance(other, int | float):
        return _of_one(reader.value(one).name, activations.SCALE, other)
    if reader.is_parameter(one):
        one, other = other, one
    if reader.is_parameter(other):
        return {"kind": layout.MULTIPLY_PARAMETER, **_with_parameter(one, other, node, reader)}
    first, second = _spread(one, node, reader), _spread(other, node, reader)
    return {"kind": layout.MULTIPLY, "source": first, "other": second}


def _divide(node: fx.Node, reader: Any) -> Found:
    one, other = _operands(node)
    options(node, ("other",), (None,))
    if isinstance(other, int | float):
        if other == 0:
            raise Unknown(f"{node.name} by 0")
        return _of_one(reader.value(one).name, activations.SCALE, 1 / other)
    shape = reader.shape(node)
    inverse = reader.more(shape, **_of_one(_spread(other, node, reader), activations.RECIPROCAL))
    if isinstance(one, int | float):
        return _of_one(inverse, activations.SCALE, one)
    return {"kind": layout.MULTIPLY, "source": _spread(one, node, reader), "other": inverse}


def _power(node: fx.Node, reader: Any) -> Found:
    (exponent,) = options(node, ("exponent",), (None,))
    if exponent != 2:
        raise Unknown(f"{node.name} with another exponent than 2")
    name = reader.value(first_argument(node)).name
    return {"kind": layout.MULTIPLY, "source": name, "other": name}


def _negate(node: fx.Node, reader: Any) -> Found:
    return _of_one(reader.value(first_argument(node)).name, activations.SCALE, -1.0)


def _sum(node: fx.Node, reader: Any, *, is_mean: bool = False) -> Found:
    source = reader.value(first_argument(node))
    dim, _, dtype = options(node, ("dim", "keepdim", "dtype"), (None, False, None))
    num_dims = len(source.shape) + 1
    if dim is None or dtype is not None or not all(isinstance(one, int) for one in _leaves(dim)):
        raise Unknown(f"{node.name} over dimensions that are not named, or in another type of numbers")
    dims = sorted({one % num_dims for one in _leaves(dim)})
    kept = [one for one in range(1, num_dims) if one not in dims]
    if not dims or dims[0] == 0:
        raise Unknown(f"{node.name} does not keep records apart")
    length, name = math.prod(source.shape[one - 1] for one in dims), source.name
    if dims != list(range(num_dims - len(dims), num_dims)):  # what is summed up must lie together
        order = [one - 1 for one in (*kept, *dims)]
        places = torch.arange(source.size).reshape(source.shape).permute(order).reshape(-1)
        name = reader.more((source.size,), kind=layout.TAKE, source=name, places=places)
    return {"kind": layout.SUM, "source": name, "code": length, "argument": 1 / length if is_mean else 1.0}


def _mean(node: fx.Node, reader: Any) -> Found:
    return _sum(node, reader, is_mean=True)


METHODS: dict[str, Callable[..., Found]] = {
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "neg": _negate,
    "pow": _power,
    "sum": _sum,
    "mean": _mean,
    "permute": taken,
    "transpose": taken,
    "flip": taken,
    "narrow": taken,
    "expand": taken,
}
FUNCTIONS: dict[Any, Callable[..., Found]] = {
    **{getattr(torch, name): reader for name, reader in METHODS.items() if name != "expand"},
    operator.add: _add,
    operator.sub: _subtract,
    operator.mul: _multiply,
    operator.truediv: _divide,
    operator.neg: _negate,
    operator.pow: _power,
}
