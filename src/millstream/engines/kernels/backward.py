"""The tape of one record backward: slopes, gradients and the squared norm of the whole gradient; no step is taken."""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels import (
    activations,
    columns,
    convolution,
    dense,
    elements,
    embedding,
    norms,
    pooling,
    rows,
)
from millstream.engines.kernels.compiled import compiled, copy, inlined, matrix, view
from millstream.engines.kernels.forward import columns_of, vector_of
from millstream.engines.kernels.layout import (
    ACTIVATION,
    ADD,
    ADD_PARAMETER,
    ADDS,
    AVERAGE_POOL,
    BIAS,
    CODE,
    COLUMNS,
    CONVOLUTION,
    DENSE,
    DROPOUT,
    EMBEDDING,
    EXTRA,
    FORM,
    FROZEN,
    GRADIENT,
    INPUT,
    INPUT_SLOPE,
    KIND,
    LAYER_NORM,
    LINEAR,
    LINEAR_OF_COLUMNS,
    MAX_POOL,
    MULTIPLY,
    MULTIPLY_PARAMETER,
    OTHER,
    OTHER_SLOPE,
    OUTER,
    OUTPUT,
    OVERWRITES,
    PLACE,
    RMS_NORM,
    ROWS,
    SCRATCH,
    SECOND_SCRATCH,
    SPARSE,
    SUM,
    TAKE,
    VECTOR,
    WEIGHT,
)
from millstream.engines.kernels.tables import (
    argument_of,
    geometry_of,
    operations_of,
    parameters_of,
    room_of,
    sizes_of,
    slopes_of,
    values_of,
)

__all__ = ["backward"]


@compiled
def backward(network: Any, turn: Any, like: Any) -> Any:
    """Slopes of all values from the slope of the last, and dense gradients; gives the squared norm of all of it."""
    operations, values, slopes, sizes = (
        operations_of(network),
        values_of(network),
        slopes_of(network),
        sizes_of(network),
    )
    total = 0.0
    _clear_gradients(parameters_of(network), like)
    for p in range(operations.shape[0] - 1, -1, -1):
        operation = operations[p]
        kind, how = operation[KIND], operation[INPUT_SLOPE]
        source, output = operation[INPUT], operation[OUTPUT]
        delta = view(slopes[turn, output], sizes[output], like)
        slope = view(slopes[turn, source], sizes[source], like)
        x = view(values[turn, source], sizes[source], like)
        if kind == LINEAR:
            total += _linear_back(operation, parameters_of(network), delta, x, slope, like)
        elif kind == ACTIVATION:
            y = view(values[turn, output], sizes[output], like)
            _activation_back(operation, argument_of(network, p), x, y, delta, slope, room_of(network, 0, like))
        elif kind == EMBEDDING:
            total += _embedding_back(operation, network, turn, delta, room_of(network, 0, like), like)
        elif kind == DROPOUT:
            if how >= 0:
                elements.multiply_back(delta, view(operation[SCRATCH], sizes[output], like), slope, how == ADDS)
        elif kind == CONVOLUTION or kind == MAX_POOL or kind == AVERAGE_POOL:
            _spatial_back(p, network, delta, slope, like)
        elif kind == LAYER_NORM or kind == RMS_NORM:
            _norm_back(operation, parameters_of(network), delta, slope, like)
        elif kind == LINEAR_OF_COLUMNS:
            total += _linear_of_columns_back(operation, network, turn, delta, x, like)
        elif kind == MULTIPLY or kind == MULTIPLY_PARAMETER or kind == TAKE or kind == SUM:
            _elements_back(p, network, turn, delta, x, slope, like)
        else:
            _pass_on(delta, slope, how)
            if kind == ADD:
                other = operation[OTHER]
                _pass_on(delta, view(slopes[turn, other], sizes[other], like), operation[OTHER_SLOPE])
            elif kind == ADD_PARAMETER:
                _pass_on(delta, vector_of(operation[WEIGHT], parameters_of(network), GRADIENT, like), ADDS)
    return total + _squared_norm_of_gradients(parameters_of(network), like)


@inlined
def _clear_gradients(parameters: Any, like: Any) -> Any:
    for q in range(parameters.shape[0]):
        if parameters[q, FORM] == DENSE:
            vector_of(q, parameters, GRADIENT, like)[:] = 0


@inlined
def _squared_norm_of_gradients(parameters: Any, like: Any) -> Any:
    total = like.dtype.type(0)
    for q in range(parameters.shape[0]):
        if parameters[q, FORM] == DENSE:
            gradient = vector_of(q, parameters, GRADIENT, like)
            for i in range(gradient.shape[0]):
                total += gradient[i] * gradient[i]
    return total


@inlined
def _pass_on(delta: Any, slope: Any, how: Any) -> Any:
    if how == OVERWRITES:
        for i in range(delta.shape[0]):
            slope[i] = delta[i]
    elif how == ADDS and slope.shape[0]:
        for i in range(delta.shape[0]):
            slope[i] += delta[i]


@inlined
def _activation_back(operation: Any, argument: Any, x: Any, y: Any, delta: Any, slope: Any, room: Any) -> Any:
    if operation[INPUT_SLOPE] == OVERWRITES:
        for i in range(delta.shape[0]):
            slope[i] = delta[i]
        activations.times_slope(operation[CODE], argument, x, y, slope)
    elif operation[INPUT_SLOPE] == ADDS:
        own = room[: delta.shape[0]]
        copy(delta, own)
        activations.times_slope(operation[CODE], argument, x, y, own)
        for i in range(delta.shape[0]):
            slope[i] += own[i]


@inlined
def _linear_back(operation: Any, parameters: Any, delta: Any, x: Any, slope: Any, like: Any) -> Any:
    """The slope of the inputs, and the squared norm of those gradients that are never made."""
    weight, squared_delta = operation[WEIGHT], _squared_norm(delta)
    total = _bias_back(operation, parameters, delta, squared_delta, like)
    if parameters[weight, FORM] == OUTER:
        total += _squared_norm_of_outer(squared_delta, x, like)
    elif parameters[weight, FORM] == DENSE:
        dense.add_outer(delta, x, matrix(parameters[weight, GRADIENT], delta.shape[0], x.shape[0], like))
    if operation[INPUT_SLOPE] >= 0:
        rows.backward(parameters[weight, PLACE], delta, slope, operation[INPUT_SLOPE] == ADDS)
    return total


@compiled
def _linear_of_columns_back(operation: Any, network: Any, turn: Any, delta: Any, x: Any, like: Any) -> Any:
    """The same for a sparse row, whose slope nobody wants."""
    parameters, weight, squared_delta = parameters_of(network), operation[WEIGHT], _squared_norm(delta)
    total = _bias_back(operation, parameters, delta, squared_delta, like)
    if parameters[weight, FORM] == SPARSE:
        total += _squared_norm_of_outer(squared_delta, x, like)
    elif parameters[weight, FORM] == DENSE:
        gradient = matrix(parameters[weight, GRADIENT], delta.shape[0], parameters[weight, COLUMNS], like)
        columns.add_outer(columns_of(operation, network, turn), x, delta, gradient)
    return total


@inlined
def _squared_norm(values: Any) -> Any:
    total = 0.0
    for i in range(values.shape[0]):
        total += np.float64(values[i]) * values[i]
    return total


@inlined
def _squared_norm_of_outer(squared_delta: Any, x: Any, like: Any) -> Any:
    """That of δ xᵀ."""
    squared_input, total = _squared_norm(x), 0.0
    if squared_delta != 0:
        total += like.dtype.type(squared_delta * squared_input)  # infinite where torch's sum is
    elif not squared_input < np.inf:  # 0 times a square that overflows is 0; 0 times infinity is not
        for i in range(x.shape[0]):
            total += 0.0 if abs(x[i]) < np.inf else np.inf
    return total


@inlined
def _bias_back(operation: Any, parameters: Any, delta: Any, squared_delta: Any, like: Any) -> Any:
    bias, total = operation[BIAS], 0.0
    if bias >= 0 and parameters[bias, FORM] == VECTOR:
        total += like.dtype.type(squared_delta)
    elif bias >= 0 and parameters[bias, FORM] == DENSE:
        _pass_on(delta, vector_of(bias, parameters, GRADIENT, like), ADDS)
    return total


@compiled
def _embedding_back(operation: Any, network: Any, turn: Any, delta: Any, room: Any, like: Any) -> Any:
    parameters, values, sizes = parameters_of(network), values_of(network), sizes_of(network)
    weight, other, source = operation[WEIGHT], operation[OTHER], operation[INPUT]
    if parameters[weight, FORM] == FROZEN:
        return like.dtype.type(0)
    ids = view(values[turn, source], sizes[source], sizes)
    factors = view(values[turn, max(other, 0)], sizes[other] if other >= 0 else 0, like)
    how, nothing = operation[CODE], operation[EXTRA]
    size = parameters[weight, COLUMNS]
    if parameters[weight, FORM] == SPARSE:
        gathers = operation[SCRATCH] != 0
        return embedding.squared_norm_of_rows(how, ids, factors, nothing, delta, gathers, room[:size])
    gradient = matrix(parameters[weight, GRADIENT], parameters[weight, ROWS], size, like)
    embedding.add_rows(how, ids, factors, nothing, delta, gradient)
    return like.dtype.type(0)


@compiled
def _elements_back(p: Any, network: Any, turn: Any, delta: Any, x: Any, slope: Any, like: Any) -> Any:
    """Products, and elements that are taken or summed up."""
    operation, sizes = operations_of(network)[p], sizes_of(network)
    kind, how, other = operation[KIND], operation[INPUT_SLOPE], operation[OTHER]
    if kind == MULTIPLY:
        factors = view(values_of(network)[turn, other], sizes[other], like)
        if how >= 0:
            elements.multiply_back(delta, factors, slope, how == ADDS)
        if operation[OTHER_SLOPE] >= 0:
            of_other = view(slopes_of(network)[turn, other], sizes[other], like)
            elements.multiply_back(delta, x, of_other, operation[OTHER_SLOPE] == ADDS)
    elif kind == MULTIPLY_PARAMETER:
        parameters = parameters_of(network)
        gradient = vector_of(operation[WEIGHT], parameters, GRADIENT, like)
        if how >= 0:
            elements.multiply_back(delta, vector_of(operation[WEIGHT], parameters, PLACE, like), slope, how == ADDS)
        if gradient.shape[0]:
            elements.multiply_back(delta, x, gradient, bool(1))
    elif how >= 0 and kind == TAKE:
        elements.take_back(delta, view(operation[SCRATCH], delta.shape[0], sizes), slope, how == ADDS)
    elif how >= 0:
        elements.sum_up_back(delta, operation[CODE], argument_of(network, p), slope, how == ADDS)


@compiled
def _norm_back(operation: Any, parameters: Any, delta: Any, slope: Any, like: Any) -> Any:
    norms.normalise_back(
        operation[KIND] == LAYER_NORM,
        delta,
        vector_of(operation[WEIGHT], parameters, PLACE, like),
        view(operation[SCRATCH], operation[CODE], like),
        view(operation[SECOND_SCRATCH], delta.shape[0], like),
        vector_of(operation[WEIGHT], parameters, GRADIENT, like),
        vector_of(operation[BIAS], parameters, GRADIENT, like),
        slope,
        operation[INPUT_SLOPE],
    )


@compiled
def _spatial_back(p: Any, network: Any, delta: Any, slope: Any, like: Any) -> Any:
    operation, geometry_G, parameters, sizes = (
        operations_of(network)[p],
        geometry_of(network, p),
        parameters_of(network),
        sizes_of(network),
    )
    how = operation[INPUT_SLOPE]
    if operation[KIND] == CONVOLUTION:
        convolution.convolve_back(
            delta,
            vector_of(operation[WEIGHT], parameters, PLACE, like),
            geometry_G,
            view(operation[SCRATCH], convolution.num_columns(geometry_G), like),
            view(operation[SECOND_SCRATCH], convolution.num_scratch(geometry_G), like),
            vector_of(operation[WEIGHT], parameters, GRADIENT, like),
            vector_of(operation[BIAS], parameters, GRADIENT, like),
            slope,
            how,
        )
    elif how >= 0 and operation[KIND] == MAX_POOL:
        pooling.max_pool_back(delta, geometry_G, view(operation[SCRATCH], delta.shape[0], sizes), slope, how == ADDS)
    elif how >= 0 and operation[KIND] == AVERAGE_POOL:
        pooling.average_pool_back(delta, geometry_G, operation[EXTRA], slope, how == ADDS)
