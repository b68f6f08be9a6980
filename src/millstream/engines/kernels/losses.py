"""The named losses of one record and their slopes, as ``millstream.losses`` defines them.

Shapes: C outputs.
"""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled

__all__ = [
    "BINARY_CROSS_ENTROPY",
    "CROSS_ENTROPY",
    "HUBER",
    "MSE",
    "POISSON",
    "QUANTILE",
    "cross_entropy",
    "loss_of_numbers",
]

CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE, HUBER, POISSON, QUANTILE = range(6)


@compiled
def cross_entropy(outputs_C: Any, label: Any, smoothing: Any, class_weights_C: Any, slope_C: Any) -> Any:
    """The loss of one record; ``slope`` becomes its derivative by the outputs."""
    num, kind = outputs_C.shape[0], outputs_C.dtype.type
    top = outputs_C[0]
    for c in range(1, num):
        top = max(top, outputs_C[c])
    total = kind(0)
    for c in range(num):
        slope_C[c] = math.exp(outputs_C[c] - top)
        total += slope_C[c]
    log_total = top + kind(math.log(total))
    hard = kind((1 - smoothing) * class_weights_C[label])
    loss = hard * (log_total - outputs_C[label])
    if smoothing > 0:
        soft, sum_weights = kind(smoothing / num), kind(0)
        for c in range(num):
            sum_weights += class_weights_C[c]
            loss += soft * class_weights_C[c] * (log_total - outputs_C[c])
        for c in range(num):
            slope_C[c] = slope_C[c] / total * (hard + soft * sum_weights) - soft * class_weights_C[c]
    else:
        factor = hard / total
        for c in range(num):
            slope_C[c] *= factor
    slope_C[label] -= hard
    return loss


@compiled
def loss_of_numbers(
    kind: Any, outputs_C: Any, targets_C: Any, parameter: Any, smoothing: Any, class_weights_C: Any, slope_C: Any
) -> Any:
    """The mean over the outputs of one record; ``slope`` becomes its derivative by the outputs."""
    num = outputs_C.shape[0]
    loss = 0.0
    for c in range(num):
        z, t = outputs_C[c], targets_C[c]
        if kind == BINARY_CROSS_ENTROPY:
            weight = class_weights_C[int(t)]
            soft = t * (1 - smoothing) + smoothing / 2
            loss += weight * (max(z, 0) - z * soft + math.log1p(math.exp(-abs(z))))
            slope_C[c] = weight * (1 / (1 + math.exp(-z)) - soft)
        elif kind == MSE:
            loss += (z - t) * (z - t)
            slope_C[c] = 2 * (z - t)
        elif kind == HUBER:
            e = z - t
            inside = abs(e) <= parameter
            loss += 0.5 * e * e if inside else parameter * (abs(e) - 0.5 * parameter)
            slope_C[c] = e if inside else math.copysign(parameter, e)
        elif kind == POISSON:
            rate = math.exp(z)
            loss += rate - t * z
            slope_C[c] = rate - t
        else:
            e = t - z
            loss += max(parameter * e, (parameter - 1) * e)
            slope_C[c] = -parameter if e > 0 else (1 - parameter if e < 0 else 0.5 - parameter)
    for c in range(num):
        slope_C[c] /= num
    return loss / num
