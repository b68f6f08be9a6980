"""What the fused engine knows of torch: each module, function and method that it can run, as a line of the tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from millstream.engines.kernels import activations, layout
from millstream.engines.randomness import threshold_of

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "Found", "Unknown", "first_argument", "options"]

Found = dict[str, Any]
"""The fields of an operation, but for its output."""


class Unknown(Exception):
    """Why a model is not run by the fused engine."""


def first_argument(node: fx.Node) -> Any:
    """What a call is about, by position or name."""
    if node.args:
        return node.args[0]
    named = node.kwargs.get("input", node.kwargs.get("tensors"))
    if named is None:
        raise Unknown(f"{node.name} without arguments")
    return named


def options(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    """The arguments of a call after its first, by position or name."""
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    strange = [name for name in given if name not in names and name != "input"]
    if strange or len(node.args) > len(names) + 1:
        raise Unknown(f"{node.name} with {', '.join(strange) or 'more arguments than are known'}")
    return [given.get(name, default) for name, default in zip(names, defaults, strict=True)]


def _activation(
    code: int, argument: str = "", default: float = 0.0, fixed: dict[str, Any] | None = None
) -> tuple[Callable[..., Found], Callable[..., Found]]:
    """Readers of one activation as a module and as a function. ``fixed`` are options that have one value only."""
    names = (*((argument,) if argument else ()), *(fixed or {}), "inplace")

    def line(node: fx.Node, reader: Any, number: float, found: dict[str, Any], inplace: bool) -> Found:
        for name, wanted in (fixed or {}).items():
            if found[name] != wanted:
                raise Unknown(f"{name}={found[name]!r} of {node.name}")
        if inplace and not reader.is_last_use(node, first_argument(node)):
            raise Unknown(f"{node.name} changes in place what others read")
        return {
            "kind": layout.ACTIVATION,
            "source": reader.value(first_argument(node)).name,
            "code": code,
            "argument": float(number),
        }

    def module(part: nn.Module, node: fx.Node, reader: Any) -> Found:
        found = {name: getattr(part, name) for name in fixed or {}}
        number = float(getattr(part, argument)) if argument else 0.0
        return line(node, reader, number, found, bool(getattr(part, "inplace", False)))

    def function(node: fx.Node, reader: Any) -> Found:
        defaults = (*((default,) if argument else ()), *(fixed or {}).values(), False)
        values = dict(zip(names, options(node, names, defaults), strict=True))
        number = values[argument] if argument else 0.0
        return line(node, reader, number, values, values["inplace"])

    return module, function


def _linear(part: nn.Linear, node: fx.Node, reader: Any) -> Found:
    return _line_of_linear(node, reader, part.weight, part.bias)


def _linear_function(node: fx.Node, reader: Any) -> Found:
    weight, bias = options(node, ("weight", "bias"), (None, None))
    return _line_of_linear(node, reader, reader.parameter(weight), None if bias is None else reader.parameter(bias))


def _line_of_linear(node: fx.Node, reader: Any, weight: Tensor, bias: Tensor | None) -> Found:
    source = reader.ids(first_argument(node))
    if len(source.shape) != 1 or weight.shape[1] != source.size:
        raise Unknown(f"{node.name} is applied to several rows of a record")
    if source.is_sparse:
        numbers, columns = reader.numbers_and_columns(source)
        return {"kind": layout.LINEAR_OF_COLUMNS, "source": numbers, "other": columns, "weight": weight, "bias": bias}
    return {"kind": layout.LINEAR, "source": reader.value(first_argument(node)).name, "weight": weight, "bias": bias}


def _dropout(part: nn.Dropout, node: fx.Node, reader: Any) -> Found:
    if part.inplace and not reader.is_last_use(node, first_argument(node)):
        raise Unknown(f"{node.name} changes in place what others read")
    return {
        "kind": layout.DROPOUT,
        "source": reader.value(first_argument(node)).name,
        "code": reader.count_draw(),
        "extra": threshold_of(part.p),
        "argument": part.p,
    }


def _layer_norm(part: nn.LayerNorm | nn.RMSNorm, node: fx.Node, reader: Any) -> Found:
    source = reader.value(first_argument(node))
    size = 1
    for length in part.normalized_shape:
        size *= length
    epsilon = part.eps
    if epsilon is None:  # RMSNorm's own
        epsilon = torch.finfo(part.weight.dtype if part.weight is not None else torch.get_default_dtype()).eps
    return {
        "kind": layout.LAYER_NORM if isinstance(part, nn.LayerNorm) else layout.RMS_NORM,
        "source": source.name,
        "weight": part.weight,
        "bias": getattr(part, "bias", None),
        "argument": epsilon,
        "code": source.size // size,
    }


def _embedding(part: nn.Embedding, node: fx.Node, reader: Any) -> Found:
    return _look_up(part, node, reader, layout.EACH)


def _bag(part: nn.EmbeddingBag, node: fx.Node, reader: Any) -> Found:
    offsets, factors = options(node, ("offsets", "per_sample_weights"), (None, None))
    if offsets is not None or part.mode not in ("sum", "mean"):
        raise Unknown(f"{node.name} with offsets, or of mode {part.mode}")
    if len(reader.ids(first_argument(node)).shape) != 1:
        raise Unknown(f"{node.name} of ids that are not one row a record")
    found = _look_up(part, node, reader, layout.BAG_SUM if part.mode == "sum" else layout.BAG_MEAN)
    if factors is not None:
        weights = reader.value(factors)
        if weights.path is None:
            raise Unknown(f"{node.name} with weights that are computed")
        found["other"] = weights.name
    return found


def _look_up(part: nn.Embedding | nn.EmbeddingBag, node: fx.Node, reader: Any, how: int) -> Found:
    if part.max_norm is not None or part.scale_grad_by_freq:
        raise Unknown(f"{node.name} with max_norm or scale_grad_by_freq")
    source = reader.ids(first_argument(node))
    if source.path is None or source.dtype not in (torch.int64, torch.int32):
        raise Unknown(f"{node.name} of ids that are not whole numbers of the inputs")
    nothing = -1 if part.padding_idx is None else part.padding_idx
    return {"kind": layout.EMBEDDING, "source": source.name, "weight": part.weight, "code": how, "extra": nothing}


_RELU = _activation(activations.RELU)
_LEAKY_RELU = _activation(activations.LEAKY_RELU, "negative_slope", 0.01)
_TANH = _activation(activations.TANH)
_SIGMOID = _activation(activations.SIGMOID)
_SILU = _activation(activations.SILU)
_GELU = _activation(activations.GELU, fixed={"approximate": "none"})
_ELU = _activation(activations.ELU, "alpha", 1.0)
_SOFTPLUS = _activation(activations.SOFTPLUS, "beta", 1.0, {"threshold": 20})

MODULES: dict[type[nn.Module], Callable[..., Found]] = {
    nn.Linear: _linear,
    nn.ReLU: _RELU[0],
    nn.LeakyReLU: _LEAKY_RELU[0],
    nn.Tanh: _TANH[0],
    nn.Sigmoid: _SIGMOID[0],
    nn.SiLU: _SILU[0],
    nn.GELU: _GELU[0],
    nn.ELU: _ELU[0],
    nn.Softplus: _SOFTPLUS[0],
    nn.Dropout: _dropout,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _bag,
}
FUNCTIONS: dict[Any, Callable[..., Found]] = {
    F.linear: _linear_function,
    torch.relu: _RELU[1],
    F.relu: _RELU[1],
    F.leaky_relu: _LEAKY_RELU[1],
    torch.tanh: _TANH[1],
    F.tanh: _TANH[1],
    torch.sigmoid: _SIGMOID[1],
    F.sigmoid: _SIGMOID[1],
    F.silu: _SILU[1],
    F.gelu: _GELU[1],
    F.elu: _ELU[1],
    F.softplus: _SOFTPLUS[1],
}
METHODS: dict[str, Callable[..., Found]] = {
    "relu": _RELU[1],
    "tanh": _TANH[1],
    "sigmoid": _SIGMOID[1],
}
