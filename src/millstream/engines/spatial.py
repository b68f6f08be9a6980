"""Convolution and pooling as lines of the tape: their geometry from torch's modules and functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from millstream.engines.kernels import layout
from millstream.engines.operations import Found, Unknown, first_argument, options

__all__ = ["FUNCTIONS", "MODULES"]


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of an option that may be one number; a signal has height 1."""
    given = tuple(value) if isinstance(value, list | tuple) else (value, value)
    return (int(given[0]), int(given[1])) if len(given) == 2 else (1, int(given[0]))


def _plane(node: fx.Node, reader: Any, num_dims: int) -> tuple[str, int, int, int]:
    """Name, channels, height and width of what a node reads."""
    source = reader.value(first_argument(node))
    if len(source.shape) != num_dims + 1:
        raise Unknown(f"{node.name} of records of shape {source.shape}")
    channels, *sizes = source.shape
    height, width = sizes if num_dims == 2 else (1, sizes[0])
    return source.name, channels, height, width


def _output(node: fx.Node, reader: Any, num_dims: int) -> tuple[int, int]:
    sizes = reader.shape(node)[1:]
    return (sizes[0], sizes[1]) if num_dims == 2 else (1, sizes[0])


def _convolution(part: nn.Conv1d | nn.Conv2d, node: fx.Node, reader: Any) -> Found:
    num_dims = 2 if isinstance(part, nn.Conv2d) else 1
    if part.padding_mode != "zeros":
        raise Unknown(f"{node.name} with padding of {part.padding_mode}")
    kernel, stride, dilation = (_at(num_dims, option) for option in (part.kernel_size, part.stride, part.dilation))
    if isinstance(part.padding, str):
        total = [d * (k - 1) if part.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(size % 2 for size in total):
            raise Unknown(f"{node.name} with padding that differs from side to side")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = _at(num_dims, part.padding, 0)
    name, channels, height, width = _plane(node, reader, num_dims)
    out = _output(node, reader, num_dims)
    if kernel == (height, width) and padding == (0, 0) and dilation == (1, 1) and part.groups == 1:
        # Each filter sees the whole plane: a Linear over the elements, with the same weights in the same order.
        return {"kind": layout.LINEAR, "source": name, "weight": part.weight, "bias": part.bias}
    geometry = (channels, height, width, part.out_channels, *kernel, *stride, *padding, *dilation, part.groups, *out)
    return {
        "kind": layout.CONVOLUTION,
        "source": name,
        "weight": part.weight,
        "bias": part.bias,
        "geometry": geometry,
    }


def _at(num_dims: int, value: Any, height: int = 1) -> tuple[int, int]:
    """An option in two dimensions; that of a signal is of its width."""
    if num_dims == 2:
        return _pair(value)
    return height, int(value[0]) if isinstance(value, list | tuple) else int(value)


def _pool(
    kind: int, node: fx.Node, reader: Any, num_dims: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> Found:
    name, channels, height, width = _plane(node, reader, num_dims)
    geometry = (
        *(channels, height, width, channels, *_at(num_dims, kernel)),
        *_at(num_dims, kernel if stride is None or stride == [] else stride),
        *(*_at(num_dims, padding, 0), *_at(num_dims, dilation), 1, *_output(node, reader, num_dims)),
    )
    return {"kind": kind, "source": name, "geometry": geometry}


def _max_pool(part: nn.MaxPool1d | nn.MaxPool2d, node: fx.Node, reader: Any) -> Found:
    if part.ceil_mode or part.return_indices:
        raise Unknown(f"{node.name} with ceil_mode or return_indices")
    num_dims = 2 if isinstance(part, nn.MaxPool2d) else 1
    return _pool(layout.MAX_POOL, node, reader, num_dims, part.kernel_size, part.stride, part.padding, part.dilation)


def _average_pool(part: nn.AvgPool1d | nn.AvgPool2d, node: fx.Node, reader: Any) -> Found:
    if part.ceil_mode or getattr(part, "divisor_override", None) is not None:
        raise Unknown(f"{node.name} with ceil_mode or divisor_override")
    num_dims = 2 if isinstance(part, nn.AvgPool2d) else 1
    found = _pool(layout.AVERAGE_POOL, node, reader, num_dims, part.kernel_size, part.stride, part.padding)
    return {**found, "extra": int(part.count_include_pad)}


def _whole_average(part: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d, node: fx.Node, reader: Any) -> Found:
    num_dims = 2 if isinstance(part, nn.AdaptiveAvgPool2d) else 1
    if any(size != 1 for size in _output(node, reader, num_dims)):
        raise Unknown(f"{node.name} to more than one element")
    _, _, height, width = _plane(node, reader, num_dims)
    kernel = (height, width) if num_dims == 2 else width
    return {**_pool(layout.AVERAGE_POOL, node, reader, num_dims, kernel, kernel, 0), "extra": 1}


def _max_pool_function(num_dims: int) -> Callable[..., Found]:
    def read(node: fx.Node, reader: Any) -> Found:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        kernel, stride, padding, dilation, ceil, indices = options(node, names, (None, None, 0, 1, False, False))
        if ceil or indices:
            raise Unknown(f"{node.name} with ceil_mode or return_indices")
        return _pool(layout.MAX_POOL, node, reader, num_dims, kernel, stride, padding, dilation)

    return read


def _average_pool_function(num_dims: int) -> Callable[..., Found]:
    def read(node: fx.Node, reader: Any) -> Found:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        kernel, stride, padding, ceil, counts, divisor = options(node, names, (None, None, 0, False, True, None))
        if ceil or divisor is not None:
            raise Unknown(f"{node.name} with ceil_mode or divisor_override")
        found = _pool(layout.AVERAGE_POOL, node, reader, num_dims, kernel, stride, padding)
        return {**found, "extra": int(counts)}

    return read


MODULES: dict[type[nn.Module], Callable[..., Found]] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _whole_average,
    nn.AdaptiveAvgPool2d: _whole_average,
}
FUNCTIONS: dict[Any, Callable[..., Found]] = {
    F.max_pool1d: _max_pool_function(1),
    F.max_pool2d: _max_pool_function(2),
    torch.max_pool1d: _max_pool_function(1),
    torch.max_pool2d: _max_pool_function(2),
    F.avg_pool1d: _average_pool_function(1),
    F.avg_pool2d: _average_pool_function(2),
}
