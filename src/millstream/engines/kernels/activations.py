"""Functions of one number and their slopes, element by element: activations as torch.nn.functional states them."""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled

__all__ = [
    *("ELU", "GELU", "LEAKY_RELU", "RECIPROCAL", "RELU", "SCALE", "SHIFT", "SIGMOID", "SILU", "SOFTPLUS", "TANH"),
    *("activate", "times_slope"),
]

RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU, ELU, SOFTPLUS, SCALE, SHIFT, RECIPROCAL = range(11)


@compiled
def activate(kind: Any, argument: Any, z: Any, out: Any) -> Any:
    """out = activation(z), element by element."""
    n = z.shape[0]
    a = z.dtype.type(argument)
    one, zero, half = z.dtype.type(1), z.dtype.type(0), z.dtype.type(0.5)
    if kind == RELU:
        for i in range(n):
            out[i] = zero if z[i] <= zero else z[i]  # NaN stays NaN, as in torch
    elif kind == LEAKY_RELU:
        for i in range(n):
            out[i] = z[i] if z[i] > zero else a * z[i]
    elif kind == TANH:
        for i in range(n):
            out[i] = math.tanh(z[i])
    elif kind == SIGMOID:
        for i in range(n):
            out[i] = one / (one + math.exp(-z[i]))
    elif kind == SILU:
        for i in range(n):
            out[i] = z[i] / (one + math.exp(-z[i]))
    elif kind == GELU:
        for i in range(n):
            out[i] = half * z[i] * (one + math.erf(z[i] * z.dtype.type(0.7071067811865476)))
    elif kind == ELU:
        for i in range(n):
            out[i] = z[i] if z[i] > zero else a * math.expm1(z[i])
    elif kind == SCALE:
        for i in range(n):
            out[i] = a * z[i]
    elif kind == SHIFT:
        for i in range(n):
            out[i] = a + z[i]
    elif kind == RECIPROCAL:
        for i in range(n):
            out[i] = one / z[i]
    else:
        for i in range(n):
            out[i] = z[i] if z[i] * a > 20 else math.log1p(math.exp(z[i] * a)) / a


@compiled
def times_slope(kind: Any, argument: Any, z: Any, out: Any, gradient: Any) -> Any:
    """gradient *= activation'(z), where out = activation(z)."""
    n = z.shape[0]
    a = z.dtype.type(argument)
    one, zero, half = z.dtype.type(1), z.dtype.type(0), z.dtype.type(0.5)
    if kind == RELU:
        for i in range(n):
            gradient[i] = zero if z[i] <= zero else gradient[i]
    elif kind == LEAKY_RELU:
        for i in range(n):
            gradient[i] = gradient[i] if z[i] > zero else a * gradient[i]
    elif kind == TANH:
        for i in range(n):
            gradient[i] *= one - out[i] * out[i]
    elif kind == SIGMOID:
        for i in range(n):
            gradient[i] *= out[i] * (one - out[i])
    elif kind == SILU:
        for i in range(n):
            s = one / (one + math.exp(-z[i]))
            gradient[i] *= s * (one + z[i] * (one - s))
    elif kind == GELU:
        for i in range(n):
            cdf = half * (one + math.erf(z[i] * z.dtype.type(0.7071067811865476)))
            gradient[i] *= cdf + z[i] * z.dtype.type(0.3989422804014327) * math.exp(-half * z[i] * z[i])
    elif kind == ELU:
        for i in range(n):
            gradient[i] *= one if z[i] > zero else out[i] + a
    elif kind == SCALE:
        for i in range(n):
            gradient[i] *= a
    elif kind == RECIPROCAL:
        for i in range(n):
            gradient[i] *= -out[i] * out[i]
    elif kind == SOFTPLUS:
        for i in range(n):
            gradient[i] *= one if z[i] * a > 20 else one / (one + math.exp(-z[i] * a))
