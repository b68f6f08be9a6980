"""Steps of whole parameters: of a vector, of a matrix on the way forward, of those rows or columns that occur."""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels import columns, dense, embedding
from millstream.engines.kernels.compiled import compiled, copy, inlined, matrix, view
from millstream.engines.kernels.layout import (
    BIAS,
    CODE,
    COLUMNS,
    EXTRA,
    FIRST,
    FORM,
    INPUT,
    OTHER,
    OUTPUT,
    PLACE,
    ROWS,
    SCRATCH,
    SECOND,
    SECOND_SCRATCH,
    THIRD,
    VECTOR,
    WEIGHT,
)
from millstream.engines.kernels.steps import FACTORED, MOMENTUM, RATE, SGD, SIGN, is_plain, prepare, step
from millstream.engines.kernels.tables import (
    OPTIMIZER,
    counts_of,
    dials_of,
    parameters_of,
    room_of,
    sizes_of,
    slopes_of,
    terms_of,
    values_of,
)

__all__ = ["step_bias", "step_columns_of", "step_matrix", "step_rows_of", "step_vector"]


@inlined
def step_vector(parameter: Any, network: Any, gradient: Any, like: Any) -> Any:
    """A parameter takes one step by a gradient of its size."""
    parameters = parameters_of(network)
    dials = dials_of(network, parameter)
    size = parameters[parameter, ROWS] * parameters[parameter, COLUMNS]
    counts_of(network)[parameter] += 1
    if is_plain(network[OPTIMIZER], dials):
        rate = like.dtype.type(dials[SIGN] * dials[RATE])
        weights = view(parameters[parameter, PLACE], size, like)
        for i in range(size):
            weights[i] -= rate * gradient[i]
    else:
        _any_step_vector(parameter, network, gradient, like)


@compiled
def _any_step_vector(parameter: Any, network: Any, gradient: Any, like: Any) -> Any:
    parameters = parameters_of(network)
    optimizer, dials, terms = network[OPTIMIZER], dials_of(network, parameter), terms_of(network)
    size = parameters[parameter, ROWS] * parameters[parameter, COLUMNS]
    prepare(optimizer, dials, counts_of(network)[parameter], terms)
    step(
        optimizer,
        view(parameters[parameter, PLACE], size, like),
        gradient,
        view(parameters[parameter, FIRST], size, like),
        view(parameters[parameter, SECOND], size, like),
        view(parameters[parameter, THIRD], size, like),
        dials,
        terms,
    )


@inlined
def step_bias(operation: Any, network: Any, turn: Any, like: Any) -> Any:
    """The bias of a Linear takes the step that the record at ``turn`` left pending, if it is stepped in this way."""
    bias, output = operation[BIAS], operation[OUTPUT]
    if bias >= 0 and parameters_of(network)[bias, FORM] == VECTOR:
        size = sizes_of(network)[output]
        gradient = room_of(network, 0, like)[:size]
        copy(view(slopes_of(network)[turn, output], size, like), gradient)
        step_vector(bias, network, gradient, like)


@inlined
def step_matrix(operation: Any, network: Any, turn: Any, inputs: Any, out: Any, like: Any) -> Any:
    """The weights of a Linear take the step that the record at ``turn`` left pending, then multiply these inputs."""
    parameter, sizes, terms = operation[WEIGHT], sizes_of(network), terms_of(network)
    optimizer, dials, counts = network[OPTIMIZER], dials_of(network, parameter), counts_of(network)
    delta = view(slopes_of(network)[turn, operation[OUTPUT]], out.shape[0], like)
    before = view(values_of(network)[turn, operation[INPUT]], sizes[operation[INPUT]], like)
    counts[parameter] += 1
    if optimizer == FACTORED:
        delta = view(operation[SCRATCH], out.shape[0], like)
        before = view(operation[SECOND_SCRATCH], before.shape[0], like)
    elif optimizer != SGD or dials[MOMENTUM] != 0:
        prepare(optimizer, dials, counts[parameter], terms)
    row, room = parameters_of(network)[parameter], room_of(network, 0, like)
    dense.step_and_forward(optimizer, row, delta, before, inputs, out, dials, terms, room)


@compiled
def step_columns_of(operation: Any, network: Any, turn: Any, like: Any) -> Any:
    """The columns of a Linear's weights that a sparse row names take one step."""
    values, sizes, counts, terms = values_of(network), sizes_of(network), counts_of(network), terms_of(network)
    weight, numbers, named, output = operation[WEIGHT], operation[INPUT], operation[OTHER], operation[OUTPUT]
    optimizer, dials = network[OPTIMIZER], dials_of(network, weight)
    counts[weight] += 1
    prepare(optimizer, dials, counts[weight], terms)
    columns.step_columns(
        optimizer,
        parameters_of(network)[weight],
        view(values[turn, named], sizes[named], sizes),
        view(values[turn, numbers], sizes[numbers], like),
        view(slopes_of(network)[turn, output], sizes[output], like),
        dials,
        terms,
        room_of(network, 0, like),
    )


@compiled
def step_rows_of(operation: Any, network: Any, turn: Any, scale: Any, like: Any) -> Any:
    """The rows of a table that an embedding looked up take one step."""
    parameters, values, slopes, sizes = (
        parameters_of(network),
        values_of(network),
        slopes_of(network),
        sizes_of(network),
    )
    optimizer, counts, terms = network[OPTIMIZER], counts_of(network), terms_of(network)
    weight, source, other, output = operation[WEIGHT], operation[INPUT], operation[OTHER], operation[OUTPUT]
    num_rows, num_columns = parameters[weight, ROWS], parameters[weight, COLUMNS]
    counts[weight] += 1
    dials = dials_of(network, weight)
    prepare(optimizer, dials, counts[weight], terms)
    embedding.step_rows(
        optimizer,
        operation[CODE],
        matrix(parameters[weight, PLACE], num_rows, num_columns, like),
        matrix(parameters[weight, FIRST], num_rows, num_columns, like),
        matrix(parameters[weight, SECOND], num_rows, num_columns, like),
        matrix(parameters[weight, THIRD], num_rows, num_columns, like),
        view(parameters[weight, FIRST], num_rows, like),
        view(values[turn, source], sizes[source], sizes),
        view(values[turn, max(other, 0)], sizes[other] if other >= 0 else 0, like),
        operation[EXTRA],
        view(slopes[turn, output], sizes[output], like),
        dials,
        terms,
        scale,
        operation[SCRATCH] != 0,
        room_of(network, 0, like)[:num_columns],
    )
