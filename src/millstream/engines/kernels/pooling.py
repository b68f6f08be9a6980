"""Pooling of one record over a line or a plane, as torch.nn.functional.max_pool2d and avg_pool2d define it.

It is described by the vector ``geometry`` of a convolution whose filters are the channels. Arrays are flat. An adaptive
average pool to one place is an average pool over the whole plane.

Shapes: C channels, H height, W width, P positions (out height · out width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.compiled import compiled, matrix
from millstream.engines.kernels.convolution import (
    CHANNELS,
    DILATION_HEIGHT,
    DILATION_WIDTH,
    HEIGHT,
    KERNEL_HEIGHT,
    KERNEL_WIDTH,
    OUT_HEIGHT,
    OUT_WIDTH,
    PADDING_HEIGHT,
    PADDING_WIDTH,
    STRIDE_HEIGHT,
    STRIDE_WIDTH,
    WIDTH,
)
from millstream.engines.kernels.vectors import address_of, choose

__all__ = ["average_pool", "average_pool_back", "max_pool", "max_pool_back"]


@compiled
def _window(start: Any, num: Any, dilation: Any, size: Any) -> Any:
    """Of a window that begins at ``start``, maybe before the line: the first place that is inside, and their number."""
    if start >= 0 and start + (num - 1) * dilation < size:
        return start, num
    outside = (max(-start, 0) + dilation - 1) // dilation
    inside = (size - start + dilation - 1) // dilation
    return start + outside * dilation, max(min(num, inside) - outside, 0)


@compiled
def _max_of_four(inputs: Any, geometry: Any, winners: Any, outputs: Any) -> Any:
    """Windows of 2 by 2 side by side, which is what most networks have."""
    height, width, num = geometry[HEIGHT], geometry[WIDTH], geometry[OUT_WIDTH]
    for row in range(geometry[CHANNELS] * geometry[OUT_HEIGHT]):
        line = (row // geometry[OUT_HEIGHT] * height + row % geometry[OUT_HEIGHT] * 2) * width
        upper_J2 = matrix(address_of(inputs) + inputs.itemsize * line, num, 2, inputs)
        lower_J2 = matrix(address_of(inputs) + inputs.itemsize * (line + width), num, 2, inputs)
        best_J = matrix(address_of(outputs) + outputs.itemsize * row * num, num, 1, outputs)
        winner_J = matrix(address_of(winners) + winners.itemsize * row * num, num, 1, winners)
        for j in range(num):
            best, winner, other, place = upper_J2[j, 0], 0, lower_J2[j, 0], width
            value = upper_J2[j, 1]
            is_better = (value > best) | (value != value)
            best, winner = choose(is_better, value, best), choose(is_better, 1, winner)
            value = lower_J2[j, 1]
            is_better = (value > other) | (value != value)
            other, place = choose(is_better, value, other), choose(is_better, width + 1, place)
            is_better = (other > best) | (other != other)
            best_J[j, 0] = choose(is_better, other, best)
            winner_J[j, 0] = line + 2 * j + choose(is_better, place, winner)


@compiled
def max_pool(inputs: Any, geometry: Any, winners: Any, outputs: Any) -> Any:
    """The greatest number of each window, and its index among the inputs (C·P); the first of equals, the last NaN.

    A window that is all padding, as dilation can make it, has −∞ and the index −1.
    """
    height, width, out_width = geometry[HEIGHT], geometry[WIDTH], geometry[OUT_WIDTH]
    down, across = geometry[DILATION_HEIGHT], geometry[DILATION_WIDTH]
    if (
        (geometry[KERNEL_HEIGHT] == 2 and geometry[STRIDE_HEIGHT] == 2 and down == 1)
        and (geometry[KERNEL_WIDTH] == 2 and geometry[STRIDE_WIDTH] == 2 and across == 1)
        and (geometry[PADDING_HEIGHT] == 0 and geometry[PADDING_WIDTH] == 0)
    ):
        _max_of_four(inputs, geometry, winners, outputs)
        return
    lowest, place = inputs.dtype.type(-np.inf), 0
    for row in range(geometry[CHANNELS] * geometry[OUT_HEIGHT]):
        c, i = row // geometry[OUT_HEIGHT], row % geometry[OUT_HEIGHT]
        start = i * geometry[STRIDE_HEIGHT] - geometry[PADDING_HEIGHT]
        y, num_rows = _window(start, geometry[KERNEL_HEIGHT], down, height)
        for j in range(out_width):
            start = j * geometry[STRIDE_WIDTH] - geometry[PADDING_WIDTH]
            x, num = _window(start, geometry[KERNEL_WIDTH], across, width)
            corner = (c * height + y) * width + x
            best, winner = lowest, corner if num_rows * num > 0 else -1
            for _ in range(num_rows):
                source = corner
                for _ in range(num):
                    value = inputs[np.uint64(source)]
                    is_better = (value > best) | (value != value)
                    best, winner = choose(is_better, value, best), choose(is_better, source, winner)
                    source += across
                corner += down * width
            outputs[place], winners[place] = best, winner
            place += 1


@compiled
def max_pool_back(delta: Any, geometry: Any, winners: Any, slope: Any, adds: Any) -> Any:
    """The slope of the loss by the inputs: each δ goes to what won. ``adds`` adds to what the slope holds."""
    if not adds:
        slope[:] = 0
    for p in range(geometry[CHANNELS] * geometry[OUT_HEIGHT] * geometry[OUT_WIDTH]):
        if winners[p] >= 0:
            slope[np.uint64(winners[p])] += delta[p]


@compiled
def average_pool(inputs: Any, geometry: Any, counts_padding: Any, outputs: Any) -> Any:
    """The mean of each window; the zeros of the padding count if ``counts_padding``."""
    height, width, out_width = geometry[HEIGHT], geometry[WIDTH], geometry[OUT_WIDTH]
    one = inputs.dtype.type(1)
    area, place = geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH], 0
    for c in range(geometry[CHANNELS]):
        for i in range(geometry[OUT_HEIGHT]):
            start = i * geometry[STRIDE_HEIGHT] - geometry[PADDING_HEIGHT]
            y, num_rows = _window(start, geometry[KERNEL_HEIGHT], 1, height)
            for j in range(out_width):
                start = j * geometry[STRIDE_WIDTH] - geometry[PADDING_WIDTH]
                x, num = _window(start, geometry[KERNEL_WIDTH], 1, width)
                total, corner = inputs.dtype.type(0), (c * height + y) * width + x
                for _ in range(num_rows):
                    for k in range(num):
                        total += inputs[np.uint64(corner + k)]
                    corner += width
                outputs[place] = total * (one / (area if counts_padding else num_rows * num))
                place += 1


@compiled
def average_pool_back(delta: Any, geometry: Any, counts_padding: Any, slope: Any, adds: Any) -> Any:
    """The slope of the loss by the inputs: each δ is shared out evenly. ``adds`` adds to what the slope holds."""
    height, width, out_width = geometry[HEIGHT], geometry[WIDTH], geometry[OUT_WIDTH]
    one = slope.dtype.type(1)
    area, place = geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH], 0
    if not adds:
        slope[:] = 0
    for c in range(geometry[CHANNELS]):
        for i in range(geometry[OUT_HEIGHT]):
            start = i * geometry[STRIDE_HEIGHT] - geometry[PADDING_HEIGHT]
            y, num_rows = _window(start, geometry[KERNEL_HEIGHT], 1, height)
            for j in range(out_width):
                start = j * geometry[STRIDE_WIDTH] - geometry[PADDING_WIDTH]
                x, num = _window(start, geometry[KERNEL_WIDTH], 1, width)
                share = delta[place] * (one / (area if counts_padding else num_rows * num))
                corner = (c * height + y) * width + x
                for _ in range(num_rows):
                    for k in range(num):
                        slope[np.uint64(corner + k)] += share
                    corner += width
                place += 1
