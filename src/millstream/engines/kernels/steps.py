"""One step of an optimizer for one weight matrix, by a gradient that is an outer product, as torch.optim states it.

Shapes: O outputs, I inputs of a layer.
"""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled

__all__ = ["ADAM", "ADAMW", "NUM_DIALS", "SGD", "step"]

SGD, ADAM, ADAMW = range(3)
RATE, DECAY, MOMENTUM, DAMPENING, NESTEROV, BETA1, BETA2, EPSILON, SIGN = range(9)  # places in ``dials``
NUM_DIALS = 9


@compiled
def step(
    optimizer: Any, weights_OI: Any, first_OI: Any, second_OI: Any, delta_O: Any, inputs_I: Any, dials: Any, count: Any
) -> Any:
    """One update of a weight matrix by the gradient δ xᵀ, as torch.optim states it. ``count`` is its number, from 1."""
    num_out, num_in = weights_OI.shape
    kind = weights_OI.dtype.type
    rate, decay, sign = kind(dials[RATE]), kind(dials[DECAY]), kind(dials[SIGN])
    if optimizer == SGD:
        momentum, kept = kind(dials[MOMENTUM]), kind(1 - dials[DAMPENING])
        for o in range(num_out):
            d = sign * delta_O[o]
            if dials[MOMENTUM] == 0 and dials[DECAY] == 0:
                d = rate * d
                for i in range(num_in):
                    weights_OI[o, i] -= d * inputs_I[i]
            elif dials[MOMENTUM] == 0:
                for i in range(num_in):
                    weights_OI[o, i] -= rate * (d * inputs_I[i] + decay * weights_OI[o, i])
            elif count == 1:
                ahead = kind(1) + (momentum if dials[NESTEROV] else kind(0))
                for i in range(num_in):
                    g = d * inputs_I[i] + decay * weights_OI[o, i]
                    first_OI[o, i] = g
                    weights_OI[o, i] -= rate * ahead * g
            elif dials[NESTEROV]:
                for i in range(num_in):
                    g = d * inputs_I[i] + decay * weights_OI[o, i]
                    b = momentum * first_OI[o, i] + kept * g
                    first_OI[o, i] = b
                    weights_OI[o, i] -= rate * (g + momentum * b)
            else:
                for i in range(num_in):
                    b = momentum * first_OI[o, i] + kept * (d * inputs_I[i] + decay * weights_OI[o, i])
                    first_OI[o, i] = b
                    weights_OI[o, i] -= rate * b
        return
    beta1, beta2 = kind(dials[BETA1]), kind(dials[BETA2])
    new1, new2 = kind(1 - dials[BETA1]), kind(1 - dials[BETA2])
    step = kind(dials[RATE] / (1 - dials[BETA1] ** count))
    root = kind(1 / math.sqrt(1 - dials[BETA2] ** count))
    epsilon = kind(dials[EPSILON])
    coupled = decay if optimizer == ADAM else kind(0)
    shrink = kind(1 - dials[RATE] * dials[DECAY]) if optimizer == ADAMW else kind(1)
    for o in range(num_out):
        d = sign * delta_O[o]
        for i in range(num_in):
            w = weights_OI[o, i]
            g = d * inputs_I[i] + coupled * w
            m = beta1 * first_OI[o, i] + new1 * g
            v = beta2 * second_OI[o, i] + new2 * g * g
            first_OI[o, i], second_OI[o, i] = m, v
            weights_OI[o, i] = w * shrink - step * m / (math.sqrt(v) * root + epsilon)
