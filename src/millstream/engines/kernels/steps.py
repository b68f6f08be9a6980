"""One step of an optimizer for one vector of weights and its gradient, as torch.optim states it.

Shapes: I weights.
"""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled, inlined

__all__ = [
    "ADAGRAD",
    "ADAM",
    "ADAMW",
    "FACTORED",
    "NUM_DIALS",
    "NUM_TERMS",
    "RMSPROP",
    "SGD",
    "is_plain",
    "prepare",
    "step",
]

SGD, ADAM, ADAMW, ADAGRAD, RMSPROP, FACTORED = range(6)
(
    RATE,
    DECAY,
    MOMENTUM,
    DAMPENING,
    NESTEROV,
    BETA1,
    BETA2,
    EPSILON,
    SIGN,  # −1 to maximize
    RATE_DECAY,
    CENTERED,
    AMSGRAD,
    BOUND,  # of the magnitude of a gradient's elements
    MOST,  # of the root mean square of a factored step
) = range(14)
NUM_DIALS = 14
_FIRST_TERM, _SECOND_TERM = range(2)
NUM_TERMS = 2


@inlined
def is_plain(optimizer: Any, dials: Any) -> Any:
    """Whether a step is W −= η × gradient and no more."""
    return optimizer == SGD and dials[MOMENTUM] == 0 and dials[DECAY] == 0 and not dials[BOUND] < math.inf


@compiled
def prepare(optimizer: Any, dials: Any, count: Any, terms: Any) -> Any:
    """What all weights of a parameter share in update number ``count``, from 1."""
    if optimizer == ADAM or optimizer == ADAMW:
        terms[_FIRST_TERM] = dials[RATE] / (1 - dials[BETA1] ** count)
        terms[_SECOND_TERM] = 1 / math.sqrt(1 - dials[BETA2] ** count)
    elif optimizer == ADAGRAD:
        terms[_FIRST_TERM] = dials[RATE] / (1 + (count - 1) * dials[RATE_DECAY])
    else:
        terms[_FIRST_TERM] = count


@compiled
def step(
    optimizer: Any, weights_I: Any, gradient_I: Any, first_I: Any, second_I: Any, third_I: Any, dials: Any, terms: Any
) -> Any:
    """Changes weights and state by a gradient, which it may change too."""
    bound = gradient_I.dtype.type(dials[BOUND])
    if dials[BOUND] < math.inf:
        for i in range(gradient_I.shape[0]):
            gradient_I[i] = min(max(gradient_I[i], -bound), bound)
    if dials[SIGN] < 0:
        for i in range(gradient_I.shape[0]):
            gradient_I[i] = -gradient_I[i]
    if optimizer == SGD:
        _sgd(weights_I, gradient_I, first_I, dials, terms)
    elif optimizer == ADAGRAD:
        _adagrad(weights_I, gradient_I, first_I, dials, terms)
    elif optimizer == RMSPROP or optimizer == FACTORED:  # of a vector
        _rmsprop(weights_I, gradient_I, first_I, second_I, third_I, dials)
    else:
        _adam(optimizer == ADAMW, weights_I, gradient_I, first_I, second_I, third_I, dials, terms)


@compiled
def _sgd(weights_I: Any, gradient_I: Any, buffer_I: Any, dials: Any, terms: Any) -> Any:
    num = weights_I.shape[0]
    kind = weights_I.dtype.type
    rate, decay = kind(dials[RATE]), kind(dials[DECAY])
    momentum, kept = kind(dials[MOMENTUM]), kind(1 - dials[DAMPENING])
    if dials[MOMENTUM] == 0 and dials[DECAY] == 0:
        for i in range(num):
            weights_I[i] -= rate * gradient_I[i]
    elif dials[MOMENTUM] == 0:
        for i in range(num):
            weights_I[i] -= rate * (gradient_I[i] + decay * weights_I[i])
    elif terms[_FIRST_TERM] == 1:
        ahead = kind(1) + (momentum if dials[NESTEROV] else kind(0))
        for i in range(num):
            g = gradient_I[i] + decay * weights_I[i]
            buffer_I[i] = g
            weights_I[i] -= rate * ahead * g
    elif dials[NESTEROV]:
        for i in range(num):
            g = gradient_I[i] + decay * weights_I[i]
            b = momentum * buffer_I[i] + kept * g
            buffer_I[i] = b
            weights_I[i] -= rate * (g + momentum * b)
    else:
        for i in range(num):
            b = momentum * buffer_I[i] + kept * (gradient_I[i] + decay * weights_I[i])
            buffer_I[i] = b
            weights_I[i] -= rate * b


@compiled
def _adam(
    is_decoupled: Any, weights_I: Any, gradient_I: Any, first_I: Any, second_I: Any, top_I: Any, dials: Any, terms: Any
) -> Any:
    """Adam (Kingma and Ba 2015), or AdamW (Loshchilov and Hutter 2019) where the decay is decoupled."""
    kind = weights_I.dtype.type
    beta1, beta2 = kind(dials[BETA1]), kind(dials[BETA2])
    new1, new2 = kind(1 - dials[BETA1]), kind(1 - dials[BETA2])
    rate, root, epsilon = kind(terms[_FIRST_TERM]), kind(terms[_SECOND_TERM]), kind(dials[EPSILON])
    coupled = kind(0) if is_decoupled else kind(dials[DECAY])
    shrink = kind(1 - dials[RATE] * dials[DECAY]) if is_decoupled else kind(1)
    if dials[AMSGRAD] == 0:
        for i in range(weights_I.shape[0]):
            w = weights_I[i]
            g = gradient_I[i] + coupled * w
            m = beta1 * first_I[i] + new1 * g
            v = beta2 * second_I[i] + new2 * g * g
            first_I[i], second_I[i] = m, v
            weights_I[i] = w * shrink - rate * m / (math.sqrt(v) * root + epsilon)
    else:
        for i in range(weights_I.shape[0]):
            w = weights_I[i]
            g = gradient_I[i] + coupled * w
            m = beta1 * first_I[i] + new1 * g
            v = beta2 * second_I[i] + new2 * g * g
            top = max(top_I[i], v)
            first_I[i], second_I[i], top_I[i] = m, v, top
            weights_I[i] = w * shrink - rate * m / (math.sqrt(top) * root + epsilon)


@compiled
def _adagrad(weights_I: Any, gradient_I: Any, sum_I: Any, dials: Any, terms: Any) -> Any:
    """Adagrad (Duchi et al. 2011)."""
    kind = weights_I.dtype.type
    rate, decay, epsilon = kind(terms[_FIRST_TERM]), kind(dials[DECAY]), kind(dials[EPSILON])
    for i in range(weights_I.shape[0]):
        g = gradient_I[i] + decay * weights_I[i]
        total = sum_I[i] + g * g
        sum_I[i] = total
        weights_I[i] -= rate * g / (math.sqrt(total) + epsilon)


@compiled
def _rmsprop(weights_I: Any, gradient_I: Any, square_I: Any, buffer_I: Any, mean_I: Any, dials: Any) -> Any:
    """RMSprop (Tieleman and Hinton 2012), centred (Graves 2013) and with momentum where torch has them."""
    num = weights_I.shape[0]
    kind = weights_I.dtype.type
    rate, decay, epsilon = kind(dials[RATE]), kind(dials[DECAY]), kind(dials[EPSILON])
    kept, new, momentum = kind(dials[BETA2]), kind(1 - dials[BETA2]), kind(dials[MOMENTUM])
    for i in range(num):
        g = gradient_I[i] + decay * weights_I[i]
        gradient_I[i] = g
        square_I[i] = kept * square_I[i] + new * g * g
    if dials[CENTERED] != 0:
        for i in range(num):
            mean = mean_I[i] + new * (gradient_I[i] - mean_I[i])
            mean_I[i] = mean
            gradient_I[i] /= math.sqrt(square_I[i] - mean * mean) + epsilon
    else:
        for i in range(num):
            gradient_I[i] /= math.sqrt(square_I[i]) + epsilon
    if dials[MOMENTUM] == 0:
        for i in range(num):
            weights_I[i] -= rate * gradient_I[i]
    else:
        for i in range(num):
            b = momentum * buffer_I[i] + gradient_I[i]
            buffer_I[i] = b
            weights_I[i] -= rate * b
