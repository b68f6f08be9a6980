"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) of one record, forward and backward.

Shapes: R rows that are normalised one by one, I elements of a row.
"""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled

__all__ = ["normalise", "normalise_back"]


@compiled
def normalise(
    is_centred: Any, epsilon: Any, inputs: Any, weights_I: Any, bias_I: Any, inverse_R: Any, normal: Any, out: Any
) -> Any:
    """out = normal · weights + bias, where normal has mean 0 (if centred) and mean square 1; weights may be empty."""
    kind = inputs.dtype.type
    num_rows = inverse_R.shape[0]
    size = inputs.shape[0] // num_rows
    for row in range(num_rows):
        first = row * size
        mean = kind(0)
        if is_centred:
            for i in range(size):
                mean += inputs[first + i]
            mean /= kind(size)
        square = kind(0)
        for i in range(size):
            square += (inputs[first + i] - mean) * (inputs[first + i] - mean)
        inverse = kind(1 / math.sqrt(square / size + epsilon))
        inverse_R[row] = inverse
        for i in range(size):
            normal[first + i] = (inputs[first + i] - mean) * inverse
        for i in range(size):
            out[first + i] = normal[first + i]
        if weights_I.shape[0]:
            for i in range(size):
                out[first + i] *= weights_I[i]
        if bias_I.shape[0]:
            for i in range(size):
                out[first + i] += bias_I[i]


@compiled
def normalise_back(
    is_centred: Any,
    delta: Any,
    weights_I: Any,
    inverse_R: Any,
    normal: Any,
    gradient_I: Any,
    bias_gradient_I: Any,
    slope: Any,
    slope_kind: Any,
) -> Any:
    """Adds to the gradients that are not empty; overwrites (0) or adds to (1) the slope of the inputs, or leaves it."""
    kind = delta.dtype.type
    num_rows = inverse_R.shape[0]
    size = delta.shape[0] // num_rows
    for row in range(num_rows):
        first = row * size
        if gradient_I.shape[0]:
            for i in range(size):
                gradient_I[i] += delta[first + i] * normal[first + i]
        if bias_gradient_I.shape[0]:
            for i in range(size):
                bias_gradient_I[i] += delta[first + i]
        if slope_kind < 0:
            continue
        mean, along = kind(0), kind(0)
        for i in range(size):
            d = delta[first + i] * (weights_I[i] if weights_I.shape[0] else kind(1))
            mean += d
            along += d * normal[first + i]
        mean = mean / kind(size) if is_centred else kind(0)
        along /= kind(size)
        for i in range(size):
            d = delta[first + i] * (weights_I[i] if weights_I.shape[0] else kind(1))
            d = (d - mean - normal[first + i] * along) * inverse_R[row]
            slope[first + i] = d + (slope[first + i] if slope_kind == 1 else kind(0))
