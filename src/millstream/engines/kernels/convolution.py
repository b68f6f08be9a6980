"""Convolution of one record, forward and backward, as torch.nn.functional.conv2d defines it.

The patches under the kernel are laid out as columns, so that all three passes are matrix products:

    outputs = W · columns,    dL/dW = δ · columnsᵀ,    dL/dcolumns = Wᵀ · δ (added up where patches overlap).

A convolution is described by a vector of whole numbers, ``geometry``; one over a line is one over a plane of height 1.
Arrays are flat, in torch's order. Padding is with zeros.

The scratch ``columns`` holds the columns (C · kh · kw rows), then room for outputs or δ (O rows), all in rows of equal
length that begin on a line of the cache, then the padded plane. ``convolve_back`` reads the columns again, so the array
must be the same, at the same place.

Shapes: C channels, H height, W width, O filters, P positions (out height · out width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.compiled import compiled, matrix
from millstream.engines.kernels.layout import ADDS, UNWANTED
from millstream.engines.kernels.tiles import inner_products, product
from millstream.engines.kernels.vectors import LINE, add_shifted, address_of, aligned, clear, lanes, move

__all__ = [
    *("CHANNELS", "HEIGHT", "WIDTH", "FILTERS", "KERNEL_HEIGHT", "KERNEL_WIDTH", "STRIDE_HEIGHT", "STRIDE_WIDTH"),
    *("PADDING_HEIGHT", "PADDING_WIDTH", "DILATION_HEIGHT", "DILATION_WIDTH", "GROUPS", "OUT_HEIGHT", "OUT_WIDTH"),
    *("NUM_GEOMETRY", "convolve", "convolve_back", "num_columns", "num_scratch"),
]

CHANNELS, HEIGHT, WIDTH, FILTERS, KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE_HEIGHT, STRIDE_WIDTH = range(8)
PADDING_HEIGHT, PADDING_WIDTH, DILATION_HEIGHT, DILATION_WIDTH, GROUPS, OUT_HEIGHT, OUT_WIDTH = range(8, 15)
NUM_GEOMETRY = 15


@compiled
def _whole_lines(num: Any) -> Any:
    return (num + LINE - 1) // LINE * LINE


@compiled
def _row_length(geometry: Any) -> Any:
    """Whole lines of the cache, an odd number of them: rows would else fall on the same few sets of the cache."""
    return ((geometry[OUT_HEIGHT] * geometry[OUT_WIDTH] + LINE - 1) // LINE | 1) * LINE


@compiled
def _padded(geometry: Any) -> Any:
    """Height and width with the padding."""
    height = geometry[HEIGHT] + 2 * geometry[PADDING_HEIGHT]
    return height, geometry[WIDTH] + 2 * geometry[PADDING_WIDTH]


@compiled
def _num_together(geometry: Any) -> Any:
    """How many channels of the slope are computed at once: small kernels alone are no work for a tile."""
    area = geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH]
    return min((23 + area) // area, geometry[CHANNELS] // geometry[GROUPS])


@compiled
def _places(geometry: Any, columns: Any) -> Any:
    """Addresses in ``columns``: the columns, outputs or δ, the padded plane. And the length of a row."""
    start, length = aligned(address_of(columns)), _row_length(geometry)
    rows = geometry[CHANNELS] * geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH]
    products = start + columns.itemsize * rows * length
    return start, products, products + columns.itemsize * geometry[FILTERS] * length, length


@compiled
def num_columns(geometry: Any) -> Any:
    """The length of ``columns``, in numbers. Plain code may call it, too."""
    rows = geometry[CHANNELS] * geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH] + geometry[FILTERS]
    height, width = _padded(geometry)
    return rows * _row_length(geometry) + geometry[CHANNELS] * height * width + 3 * LINE


@compiled
def num_scratch(geometry: Any) -> Any:
    """The length of ``scratch``, in numbers. Plain code may call it, too."""
    area = geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH]
    height, width = _padded(geometry)
    columns = _num_together(geometry) * area * _row_length(geometry)
    plane = (height + 1) * _whole_lines(width)
    return max(geometry[FILTERS] * geometry[CHANNELS] // geometry[GROUPS] * area, columns + plane) + 3 * LINE


@compiled
def _pad(inputs: Any, geometry: Any, plane: Any) -> Any:
    """Copies the inputs into the middle of planes of zeros."""
    channels, num_rows, num = geometry[CHANNELS], geometry[HEIGHT], geometry[WIDTH]
    height, width = _padded(geometry)
    if height == num_rows and width == num:  # all is one row
        num = width = channels * height * width
        channels = num_rows = height = 1
    else:
        whole_RW = matrix(plane, channels * height, width, inputs)
        for r in range(channels * height):
            for x in range(width):
                whole_RW[r, x] = 0
    inputs_RW = matrix(address_of(inputs), channels * num_rows, num, inputs)
    corner = geometry[PADDING_HEIGHT] * width + geometry[PADDING_WIDTH]
    middle_RW = matrix(plane + inputs.itemsize * corner, channels * height, width, inputs)
    for c in range(channels):
        for y in range(num_rows):
            for x in range(num):
                middle_RW[c * height + y, x] = inputs_RW[c * num_rows + y, x]


@compiled
def _gather(geometry: Any, start: Any, plane: Any, length: Any, like: Any) -> Any:
    """Lays out the patches of the padded planes as columns. What is behind the last position becomes 0."""
    height, width = _padded(geometry)
    out_height, num, stride = geometry[OUT_HEIGHT], geometry[OUT_WIDTH], geometry[STRIDE_WIDTH]
    size, row, vectors = like.itemsize, start, (num + lanes(like) - 1) // lanes(like)
    down = size * geometry[STRIDE_HEIGHT] * width
    for c in range(geometry[CHANNELS]):
        for ky in range(geometry[KERNEL_HEIGHT]):
            for kx in range(geometry[KERNEL_WIDTH]):
                corner = (c * height + ky * geometry[DILATION_HEIGHT]) * width + kx * geometry[DILATION_WIDTH]
                source, target = plane + size * corner, row
                for _ in range(out_height):
                    if stride == 1:  # a vector may write too much: the next run, or row, is written over it
                        move(target, source, vectors, like)
                    else:
                        from_1W, to_1P = matrix(source, 1, width, like), matrix(target, 1, num, like)
                        for j in range(num):
                            to_1P[0, j] = from_1W[0, j * stride]
                    source, target = source + down, target + size * num
                clear(target, like)
                row += size * length


@compiled
def convolve(inputs: Any, weights: Any, bias: Any, geometry: Any, columns: Any, outputs: Any) -> Any:
    """outputs (O·P) = weights (O·(C/groups)·kh·kw) * inputs (C·H·W) + bias (O, or empty)."""
    start, products, plane, length = _places(geometry, columns)
    _pad(inputs, geometry, plane)
    _gather(geometry, start, plane, length, columns)
    size, groups, positions = columns.itemsize, geometry[GROUPS], geometry[OUT_HEIGHT] * geometry[OUT_WIDTH]
    filters, channels = geometry[FILTERS] // groups, geometry[CHANNELS] // groups
    depth, left = channels * geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH], address_of(weights)
    one = np.int64(1)  # a literal 1 would be another type, and all compiled again
    for g in range(groups):
        right, out = start + size * g * depth * length, products + size * g * filters * length
        shift = size * g * filters * depth
        product(filters, positions, depth, left + shift, depth, one, right, length, out, length, columns)
    products_OL = matrix(products, geometry[FILTERS], length, columns)
    outputs_OP = matrix(address_of(outputs), geometry[FILTERS], positions, columns)
    for o in range(geometry[FILTERS]):
        shift_ = bias[o] if bias.shape[0] > 0 else columns.dtype.type(0)
        for p in range(positions):
            outputs_OP[o, p] = products_OL[o, p] + shift_


@compiled
def convolve_back(
    delta: Any,
    weights: Any,
    geometry: Any,
    columns: Any,
    scratch: Any,
    gradient: Any,
    bias_gradient: Any,
    slope: Any,
    how: Any,
) -> Any:
    """The gradients by weights, bias and inputs, from δ (O·P), the slope of the loss by the outputs.

    Those of weights and bias are added to what is there; an empty array wants none. ``how`` says what becomes of the
    slope by the inputs: ``UNWANTED``, ``OVERWRITES``, ``ADDS``.
    """
    _, products, _, length = _places(geometry, columns)
    positions = geometry[OUT_HEIGHT] * geometry[OUT_WIDTH]
    delta_OP = matrix(address_of(delta), geometry[FILTERS], positions, columns)
    products_OL = matrix(products, geometry[FILTERS], length, columns)
    for o in range(geometry[FILTERS]):
        for p in range(positions):
            products_OL[o, p] = delta_OP[o, p]
        clear(products + columns.itemsize * (o * length + positions), columns)
        if bias_gradient.shape[0] > 0:
            total = columns.dtype.type(0)
            for p in range(positions):
                total += delta_OP[o, p]
            bias_gradient[o] += total
    if gradient.shape[0] > 0:
        _gradient(geometry, columns, scratch, gradient)
    if how != UNWANTED:
        _slope(weights, geometry, products, length, scratch, slope, how == ADDS)


@compiled
def _gradient(geometry: Any, columns: Any, scratch: Any, gradient: Any) -> Any:
    """gradient += δ · columnsᵀ, group by group."""
    start, products, _, length = _places(geometry, columns)
    size, groups, positions = columns.itemsize, geometry[GROUPS], geometry[OUT_HEIGHT] * geometry[OUT_WIDTH]
    filters, channels = geometry[FILTERS] // groups, geometry[CHANNELS] // groups
    depth, out = channels * geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH], address_of(scratch)
    for g in range(groups):
        left, right = products + size * g * filters * length, start + size * g * depth * length
        shift = size * g * filters * depth
        inner_products(filters, depth, positions, left, length, right, length, out + shift, depth, columns)
    for i in range(groups * filters * depth):
        gradient[i] += scratch[i]


@compiled
def _slope(weights: Any, geometry: Any, products: Any, length: Any, scratch: Any, slope: Any, adds: Any) -> Any:
    """Wᵀ · δ for a few channels after another, each added up while it is in the cache."""
    size, groups, positions = scratch.itemsize, geometry[GROUPS], geometry[OUT_HEIGHT] * geometry[OUT_WIDTH]
    channels, filters = geometry[CHANNELS] // groups, geometry[FILTERS] // groups
    area, most = geometry[KERNEL_HEIGHT] * geometry[KERNEL_WIDTH], _num_together(geometry)
    width, one = _whole_lines(_padded(geometry)[1]), np.int64(1)
    start = aligned(address_of(scratch)) + size * width
    plane = start + size * most * area * length
    for g in range(groups):
        right = products + size * g * filters * length
        for first in range(0, channels, most):
            num = min(most, channels - first)
            left = address_of(weights) + size * (g * filters * channels + first) * area
            product(num * area, positions, filters, left, one, channels * area, right, length, start, length, scratch)
            for c in range(num):
                _scatter(geometry, start + size * c * area * length, plane, length, scratch)
                _unpad(geometry, plane, g * channels + first + c, slope, adds)


@compiled
def _scatter(geometry: Any, start: Any, plane: Any, length: Any, like: Any) -> Any:
    """Adds up the columns of one channel where they came from, in a padded plane with rows of whole lines."""
    height, width = _padded(geometry)
    whole, size, lane = _whole_lines(width), like.itemsize, lanes(like)
    num, stride, kernel_width = geometry[OUT_WIDTH], geometry[STRIDE_WIDTH], geometry[KERNEL_WIDTH]
    across, down = geometry[DILATION_WIDTH], size * geometry[STRIDE_HEIGHT] * whole
    plane_HW = matrix(plane, height, whole, like)
    for y in range(height):
        for x in range(whole):
            plane_HW[y, x] = 0
    for ky in range(geometry[KERNEL_HEIGHT]):
        source = start + size * ky * kernel_width * length
        target = plane + size * ky * geometry[DILATION_HEIGHT] * whole
        for _ in range(geometry[OUT_HEIGHT]):
            if stride == 1:
                x = 0
                while x < width:
                    add_shifted(target + size * x, source, x, num, across, length, kernel_width, like)
                    x += lane
            else:
                into_1W, from_KL = matrix(target, 1, whole, like), matrix(source, kernel_width, length, like)
                for kx in range(kernel_width):
                    for j in range(num):
                        into_1W[0, kx * across + j * stride] += from_KL[kx, j]
            source, target = source + size * num, target + down


@compiled
def _unpad(geometry: Any, plane: Any, channel: Any, slope: Any, adds: Any) -> Any:
    """Takes the middle of a plane."""
    num_rows, num = geometry[HEIGHT], geometry[WIDTH]
    whole = _whole_lines(_padded(geometry)[1])
    corner = geometry[PADDING_HEIGHT] * whole + geometry[PADDING_WIDTH]
    middle_HW = matrix(plane + slope.itemsize * corner, num_rows, whole, slope)
    slope_HW = matrix(address_of(slope) + slope.itemsize * channel * num_rows * num, num_rows, num, slope)
    for y in range(num_rows):
        if adds:
            for x in range(num):
                slope_HW[y, x] += middle_HW[y, x]
        else:
            for x in range(num):
                slope_HW[y, x] = middle_HW[y, x]
