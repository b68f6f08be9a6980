"""RMSprop with factored second moments: a step by the gradient δ xᵀ of a Linear stays of rank one.

See ``engines.factored`` for the rule. What it makes of δ and x is kept beside them until the step is taken, as one of
plain SGD, on the way forward of the next record.

Shapes: R rows and C columns of a matrix, V rows of a table.
"""

from __future__ import annotations

import math
from typing import Any

from millstream.engines.kernels.compiled import compiled, matrix, view
from millstream.engines.kernels.layout import (
    COLUMNS,
    FIRST,
    INPUT,
    OUTPUT,
    PLACE,
    ROWS,
    SCRATCH,
    SECOND,
    SECOND_SCRATCH,
    WEIGHT,
)
from millstream.engines.kernels.steps import BETA2, EPSILON, MOST, RATE
from millstream.engines.kernels.tables import (
    dials_of,
    parameters_of,
    sizes_of,
    slopes_of,
    values_of,
)

__all__ = ["scale_pending", "step_matrix", "step_row"]

_TINY = 1e-30


@compiled
def scale_pending(operation: Any, network: Any, turn: Any, like: Any) -> Any:
    """The means of a Linear's weights take in its record; δ and x are scaled by them, and kept for the step."""
    row, dials, sizes = (
        parameters_of(network)[operation[WEIGHT]],
        dials_of(network, operation[WEIGHT]),
        sizes_of(network),
    )
    num_in, num_out = sizes[operation[INPUT]], sizes[operation[OUTPUT]]
    delta_R = view(slopes_of(network)[turn, operation[OUTPUT]], num_out, like)
    inputs_C = view(values_of(network)[turn, operation[INPUT]], num_in, like)
    squared_delta, squared_inputs = like.dtype.type(0), like.dtype.type(0)
    for o in range(num_out):
        squared_delta += delta_R[o] * delta_R[o]
    for i in range(num_in):
        squared_inputs += inputs_C[i] * inputs_C[i]
    means_R, means_C = view(row[FIRST], num_out, like), view(row[SECOND], num_in, like)
    total = _advance(means_R, delta_R, squared_inputs / num_in, dials)
    _advance(means_C, inputs_C, squared_delta / num_out, dials)
    root, tiny = math.sqrt(total / num_out), like.dtype.type(_TINY)
    scaled_R, scaled_C = view(operation[SCRATCH], num_out, like), view(operation[SECOND_SCRATCH], num_in, like)
    epsilon, squares = like.dtype.type(dials[EPSILON]), like.dtype.type(0)
    for i in range(num_in):
        scaled = inputs_C[i] / (math.sqrt(means_C[i]) + epsilon)
        scaled_C[i] = scaled
        squares += scaled * scaled
    size, squares = math.sqrt(squares / num_in), like.dtype.type(0)
    for o in range(num_out):
        scaled = root * delta_R[o] / (math.sqrt(means_R[o]) + tiny)
        scaled_R[o] = scaled
        squares += scaled * scaled
    size *= math.sqrt(squares / num_out)
    if size > dials[MOST]:
        bound = like.dtype.type(dials[MOST] / size)
        for o in range(num_out):
            scaled_R[o] *= bound


@compiled
def _advance(means: Any, vector: Any, others: Any, dials: Any) -> Any:
    """Running means of the squares of a vector, times what they are the same for; gives their sum."""
    kind = means.dtype.type
    kept, new, total = kind(dials[BETA2]), kind((1 - dials[BETA2]) * others), kind(0)
    for i in range(means.shape[0]):
        mean = kept * means[i] + new * vector[i] * vector[i]
        means[i] = mean
        total += mean
    return total


@compiled
def step_matrix(q: Any, network: Any, gradient: Any, like: Any) -> Any:
    """A matrix takes a step by a gradient that is whole."""
    row, dials = parameters_of(network)[q], dials_of(network, q)
    num_rows, num_columns = row[ROWS], row[COLUMNS]
    weights_RC = matrix(row[PLACE], num_rows, num_columns, like)
    means_R, means_C = view(row[FIRST], num_rows, like), view(row[SECOND], num_columns, like)
    kind = like.dtype.type
    kept, new, total = kind(dials[BETA2]), kind(1 - dials[BETA2]), kind(0)
    for c in range(num_columns):
        means_C[c] *= kept
    for r in range(num_rows):
        gradient_C, squares = gradient[r * num_columns : (r + 1) * num_columns], kind(0)
        for c in range(num_columns):
            square = gradient_C[c] * gradient_C[c]
            squares += square
            means_C[c] += new * square / num_rows
        means_R[r] = kept * means_R[r] + new * squares / num_columns
        total += means_R[r]
    root, epsilon, squares = math.sqrt(total / num_rows), kind(dials[EPSILON]), kind(0)
    for r in range(num_rows):
        scale = root / (math.sqrt(means_R[r]) + kind(_TINY))
        step_C = gradient[r * num_columns : (r + 1) * num_columns]
        for c in range(num_columns):
            step_C[c] *= scale / (math.sqrt(means_C[c]) + epsilon)
            squares += step_C[c] * step_C[c]
    size = math.sqrt(squares / (num_rows * num_columns))
    rate = kind(dials[RATE]) if size <= dials[MOST] else kind(dials[RATE] * dials[MOST] / size)
    for r in range(num_rows):
        for c in range(num_columns):
            weights_RC[r, c] -= rate * gradient[r * num_columns + c]


@compiled
def step_row(weights_C: Any, gradient_C: Any, means_V: Any, number: Any, dials: Any) -> Any:
    """One row of a table takes a step; its mean is of its own occurrences."""
    kind, squares = weights_C.dtype.type, weights_C.dtype.type(0)
    for c in range(weights_C.shape[0]):
        squares += gradient_C[c] * gradient_C[c]
    mean = kind(dials[BETA2]) * means_V[number] + kind(1 - dials[BETA2]) * squares / weights_C.shape[0]
    means_V[number] = mean
    scale = kind(dials[RATE]) / (math.sqrt(mean) + kind(dials[EPSILON]))
    for c in range(weights_C.shape[0]):
        weights_C[c] -= scale * gradient_C[c]
