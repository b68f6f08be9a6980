"""The first Linear of a block of K records under SGD, without touching its weights until the block is done.

Momentum, dampening, Nesterov and weight decay are linear in the weights W, the momentum buffer B and the gradients
δᵢ xᵢᵀ. So at every record of a block both are known combinations of what they were before it,

    W_t = p W₀ + q B₀ + Σ_{i<t} cᵢ δᵢ xᵢᵀ,    B_t = r W₀ + s B₀ + Σ_{i<t} eᵢ δᵢ xᵢᵀ,

and W_t x_t = p W₀x_t + q B₀x_t + Σ_{i<t} cᵢ (xᵢ·x_t) δᵢ takes one matrix product each for all W₀x_t, B₀x_t and xᵢ·x_t.
(Devarakonda and Demmel 2020 have the algebra for linear models and plain SGD.)

Shapes: K records of a block, H outputs of the layer.
"""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels.compiled import compiled, inlined
from millstream.engines.kernels.steps import DAMPENING, DECAY, MOMENTUM, NESTEROV, RATE, SIGN

__all__ = ["NUM_COEFFICIENTS", "add_first_layer", "advance", "combine"]

# Rows of the coefficients (2, K + 2) of W (row 0) and B (row 1): of W₀, of B₀, then of each δᵢ xᵢᵀ.
_OF_WEIGHTS, _OF_BUFFER, NUM_COEFFICIENTS = range(3)


@compiled
def add_first_layer(
    k: Any, from_weights_KH: Any, from_buffer_KH: Any, gram_KK: Any, delta_KH: Any, coefficients: Any, out_H: Any
) -> Any:
    """out += W_k x_k from W₀x, B₀x (empty without momentum), xᵢ·xⱼ and δ of the block."""
    kind = out_H.dtype.type
    p, q = kind(coefficients[0, _OF_WEIGHTS]), kind(coefficients[0, _OF_BUFFER])
    for j in range(out_H.shape[0]):
        out_H[j] += p * from_weights_KH[k, j]
    if q != 0 and from_buffer_KH.shape[0]:
        for j in range(out_H.shape[0]):
            out_H[j] += q * from_buffer_KH[k, j]
    i = 0
    while i + 4 <= k:
        a, b = _share(k, i, coefficients, gram_KK), _share(k, i + 1, coefficients, gram_KK)
        c, d = _share(k, i + 2, coefficients, gram_KK), _share(k, i + 3, coefficients, gram_KK)
        for j in range(out_H.shape[0]):
            out_H[j] += a * delta_KH[i, j] + b * delta_KH[i + 1, j] + c * delta_KH[i + 2, j] + d * delta_KH[i + 3, j]
        i += 4
    while i < k:
        a = _share(k, i, coefficients, gram_KK)
        for j in range(out_H.shape[0]):
            out_H[j] += a * delta_KH[i, j]
        i += 1


@inlined
def _share(k: Any, i: Any, coefficients: Any, gram_KK: Any) -> Any:
    """The factor of δᵢ in what record k sees. 0 for a record that was left out, also if its inputs are not finite."""
    factor = gram_KK.dtype.type(coefficients[0, NUM_COEFFICIENTS + i])
    return factor * gram_KK[k, i] if factor != 0 else factor


@compiled
def advance(k: Any, dials: Any, count: Any, coefficients: Any) -> Any:
    """The coefficients after the step of record k, which is number ``count`` of the parameter, from 1."""
    last = NUM_COEFFICIENTS + k + 1
    momentum, kept = (0.0, 1.0) if count == 1 else (dials[MOMENTUM], 1 - dials[DAMPENING])
    has_buffer = dials[MOMENTUM] != 0
    for i in range(last):
        gradient = dials[DECAY] * coefficients[0, i] + (dials[SIGN] if i == last - 1 else 0.0)
        buffer = momentum * coefficients[1, i] + kept * gradient if has_buffer else coefficients[1, i]
        direction = gradient
        if has_buffer:
            direction = gradient + dials[MOMENTUM] * buffer if dials[NESTEROV] else buffer
            coefficients[1, i] = buffer
        coefficients[0, i] -= dials[RATE] * direction


@compiled
def combine(weights_HI: Any, buffer_HI: Any, coefficients: Any) -> Any:
    """W and B become the shares of W₀ and B₀ in them, in one pass; the caller adds the sums over records."""
    kind = weights_HI.dtype.type
    p, q = kind(coefficients[0, _OF_WEIGHTS]), kind(coefficients[0, _OF_BUFFER])
    r, s = kind(coefficients[1, _OF_WEIGHTS]), kind(coefficients[1, _OF_BUFFER])
    for row in range(weights_HI.shape[0]):
        weights_I, buffer_I = weights_HI[row], buffer_HI[row]
        for i in range(weights_I.shape[0]):
            w, b = weights_I[i], buffer_I[i]
            weights_I[i] = p * w + q * b
            buffer_I[i] = r * w + s * b
