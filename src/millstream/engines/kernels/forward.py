"""The tape of one record forward: one operation after another.

One compiled interpreter serves every model, so there is nothing to compile when a model is new. ``layout`` says what
the tables hold.
"""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels import (
    activations,
    columns,
    convolution,
    elements,
    embedding,
    masks,
    norms,
    pooling,
    rows,
)
from millstream.engines.kernels.compiled import compiled, copy, inlined, matrix, view
from millstream.engines.kernels.layout import (
    ACTIVATION,
    ADD,
    ADD_PARAMETER,
    AVERAGE_POOL,
    BIAS,
    CODE,
    COLUMNS,
    CONVOLUTION,
    DROPOUT,
    EMBEDDING,
    EXTRA,
    FORM,
    INPUT,
    KIND,
    LAYER_NORM,
    LINEAR,
    LINEAR_OF_COLUMNS,
    MAX_POOL,
    MULTIPLY,
    MULTIPLY_PARAMETER,
    OTHER,
    OUTER,
    OUTPUT,
    PLACE,
    RMS_NORM,
    ROWS,
    SCRATCH,
    SECOND_SCRATCH,
    SUM,
    TAKE,
    WEIGHT,
)
from millstream.engines.kernels.tables import (
    argument_of,
    geometry_of,
    operations_of,
    parameters_of,
    sizes_of,
    values_of,
)
from millstream.engines.kernels.updates import step_bias, step_matrix

__all__ = ["columns_of", "forward", "vector_of"]


@compiled
def forward(first: Any, network: Any, turn: Any, pending: Any, training: Any, key: Any, like: Any) -> Any:
    """All operations from ``first`` on, for the record whose values lie at ``turn``.

    With ``pending`` each Linear first takes the step of the record before, whose values lie at the other turn.
    """
    operations, values, sizes = operations_of(network), values_of(network), sizes_of(network)
    for p in range(first, operations.shape[0]):
        operation = operations[p]
        kind = operation[KIND]
        source, output = operation[INPUT], operation[OUTPUT]
        x, out = view(values[turn, source], sizes[source], like), view(values[turn, output], sizes[output], like)
        if kind == LINEAR:
            _linear(operation, network, turn, pending, x, out, like)
        elif kind == ACTIVATION:
            activations.activate(operation[CODE], argument_of(network, p), x, out)
        elif kind == EMBEDDING:
            _look_up(operation, network, turn, out, like)
        elif kind == DROPOUT and training:
            scales = view(operation[SCRATCH], sizes[output], like)
            masks.drop(x, key, operation[CODE], operation[EXTRA], argument_of(network, p), scales, out)
        elif kind == CONVOLUTION or kind == MAX_POOL or kind == AVERAGE_POOL:
            _spatial(p, network, x, out, like)
        elif kind == LAYER_NORM or kind == RMS_NORM:
            _norm(operation, network, argument_of(network, p), x, out, like)
        elif kind == LINEAR_OF_COLUMNS:
            _linear_of_columns(operation, network, turn, pending, x, out, like)
        elif kind == TAKE:
            elements.take(x, view(operation[SCRATCH], out.shape[0], sizes), out)
        elif kind == SUM:
            elements.sum_up(x, operation[CODE], argument_of(network, p), out)
        else:
            for i in range(out.shape[0]):
                out[i] = x[i]
            if kind == ADD:
                elements.add(view(values[turn, operation[OTHER]], sizes[output], like), out)
            elif kind == MULTIPLY:
                elements.multiply(view(values[turn, operation[OTHER]], sizes[output], like), out)
            elif kind == ADD_PARAMETER:
                elements.add(view(parameters_of(network)[operation[WEIGHT], PLACE], sizes[output], like), out)
            elif kind == MULTIPLY_PARAMETER:
                elements.multiply(view(parameters_of(network)[operation[WEIGHT], PLACE], sizes[output], like), out)


@inlined
def _linear(operation: Any, network: Any, turn: Any, pending: Any, x: Any, out: Any, like: Any) -> Any:
    parameters, weight = parameters_of(network), operation[WEIGHT]
    if operation[BIAS] < 0:
        out[:] = 0
    else:
        if pending:
            step_bias(operation, network, 1 - turn, like)
        copy(view(parameters[operation[BIAS], PLACE], out.shape[0], like), out)
    if pending and parameters[weight, FORM] == OUTER:
        step_matrix(operation, network, 1 - turn, x, out, like)
    else:
        rows.forward(parameters[weight, PLACE], x, out)


@compiled
def _linear_of_columns(operation: Any, network: Any, turn: Any, pending: Any, x: Any, out: Any, like: Any) -> Any:
    """A Linear of a sparse row."""
    parameters, bias = parameters_of(network), operation[BIAS]
    if bias < 0:
        out[:] = 0
    else:
        if pending:
            step_bias(operation, network, 1 - turn, like)
        copy(view(parameters[bias, PLACE], out.shape[0], like), out)
    columns.forward(parameters[operation[WEIGHT]], columns_of(operation, network, turn), x, out)


@inlined
def columns_of(operation: Any, network: Any, turn: Any) -> Any:
    """The columns of the sparse row that a Linear reads."""
    named = operation[OTHER]
    return view(values_of(network)[turn, named], sizes_of(network)[named], network)


@compiled
def _look_up(operation: Any, network: Any, turn: Any, out: Any, like: Any) -> Any:
    parameters, values, sizes = parameters_of(network), values_of(network), sizes_of(network)
    weight, source, other = operation[WEIGHT], operation[INPUT], operation[OTHER]
    embedding.look_up(
        operation[CODE],
        matrix(parameters[weight, PLACE], parameters[weight, ROWS], parameters[weight, COLUMNS], like),
        view(values[turn, source], sizes[source], sizes),
        view(values[turn, max(other, 0)], sizes[other] if other >= 0 else 0, like),
        operation[EXTRA],
        out,
    )


@compiled
def _norm(operation: Any, network: Any, epsilon: Any, x: Any, out: Any, like: Any) -> Any:
    parameters = parameters_of(network)
    norms.normalise(
        operation[KIND] == LAYER_NORM,
        epsilon,
        x,
        vector_of(operation[WEIGHT], parameters, PLACE, like),
        vector_of(operation[BIAS], parameters, PLACE, like),
        view(operation[SCRATCH], operation[CODE], like),
        view(operation[SECOND_SCRATCH], out.shape[0], like),
        out,
    )


@compiled
def _spatial(p: Any, network: Any, x: Any, out: Any, like: Any) -> Any:
    """Convolution and pooling."""
    operation, geometry_G, parameters, sizes = (
        operations_of(network)[p],
        geometry_of(network, p),
        parameters_of(network),
        sizes_of(network),
    )
    if operation[KIND] == CONVOLUTION:
        convolution.convolve(
            x,
            vector_of(operation[WEIGHT], parameters, PLACE, like),
            vector_of(operation[BIAS], parameters, PLACE, like),
            geometry_G,
            view(operation[SCRATCH], convolution.num_columns(geometry_G), like),
            out,
        )
    elif operation[KIND] == MAX_POOL:
        pooling.max_pool(x, geometry_G, view(operation[SCRATCH], out.shape[0], sizes), out)
    else:
        pooling.average_pool(x, geometry_G, operation[EXTRA], out)


@inlined
def vector_of(parameter: Any, parameters: Any, column: Any, like: Any) -> Any:
    """A parameter, or its dense gradient, as a vector; an empty one where there is none."""
    if parameter < 0 or parameters[parameter, column] == 0:
        return view(0, 0, like)
    return view(parameters[parameter, column], parameters[parameter, ROWS] * parameters[parameter, COLUMNS], like)
