"""The per-sample loop: predict, score, guard, update, one record after another, for any model on a tape.

Shapes: N records, M questions, C outputs, K records of a block, H outputs of the first layer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from millstream.engines.kernels import blocks, columns, factored
from millstream.engines.kernels.backward import backward
from millstream.engines.kernels.compiled import borrowed, compiled, copy, inlined, is_compiled_before, view
from millstream.engines.kernels.forward import forward
from millstream.engines.kernels.layout import (
    BIAS,
    COLUMNS,
    DENSE,
    EMBEDDING,
    FIRST,
    FORM,
    GRADIENT,
    INPUT,
    KIND,
    LINEAR,
    LINEAR_OF_COLUMNS,
    OTHER,
    OUTER,
    OUTPUT,
    PLACE,
    ROWS,
    SECOND,
    SPARSE,
    WEIGHT,
)
from millstream.engines.kernels.losses import CROSS_ENTROPY, cross_entropy, loss_of_numbers
from millstream.engines.kernels.steps import FACTORED, NUM_DIALS
from millstream.engines.kernels.tables import (
    ALL_DIALS,
    BLOCK_SIZE,
    CLASS_WEIGHTS,
    CLASSES,
    DELTA,
    DIALS,
    FIRST_RANDOM,
    FROM_BUFFER,
    FROM_WEIGHTS,
    HAS_ROWS,
    LOSS,
    NUM_ALL_DIALS,
    NUM_CLASS_WEIGHTS,
    NUM_OPERATIONS,
    NUM_PARAMETERS,
    NUM_RECORDS,
    NUMBERS,
    OPTIMIZER,
    PRODUCTS,
    SCORES_IN_TRAINING,
    block_matrix,
    coefficients_of,
    counts_of,
    dials_of,
    inputs_of,
    key_of,
    losses_of,
    operations_of,
    outputs_of,
    parameters_of,
    room_of,
    sizes_of,
    skipped_of,
    slopes_of,
    values_of,
    weight_of,
)
from millstream.engines.kernels.updates import step_bias, step_columns_of, step_matrix, step_rows_of, step_vector
from millstream.engines.kernels.vectors import count_tiny_as_zero, prefetch, restore_tiny

__all__ = ["answer", "is_kept", "learn"]


def is_kept() -> bool:
    """Whether this code was compiled before on this machine, and kept."""
    return is_compiled_before("learn")


@inlined
def _look_at(n: Any, turn: Any, network: Any) -> Any:
    """Record n becomes the one whose inputs lie at ``turn``."""
    values, sizes, inputs_J = values_of(network), sizes_of(network), inputs_of(network)
    for j in range(inputs_J.shape[0]):
        value, place = inputs_J[j, 0], n
        if inputs_J[j, 3] != 0:  # a sparse row
            edges = view(inputs_J[j, 3], n + 2, network)
            place = edges[n]
            sizes[value] = edges[n + 1] - place
        values[turn, value] = inputs_J[j, 1] + place * inputs_J[j, 2]


@compiled
def _ask_for_rows(next_n: Any, network: Any, turn: Any, like: Any) -> Any:
    """The rows of tables and the columns of weights that the next record needs start on their way from memory."""
    operations, parameters, values, inputs_J = (
        operations_of(network),
        parameters_of(network),
        values_of(network),
        inputs_of(network),
    )
    for p in range(operations.shape[0]):
        operation = operations[p]
        is_sparse = operation[KIND] == LINEAR_OF_COLUMNS
        if operation[KIND] != EMBEDDING and not is_sparse:
            continue
        source, row = operation[OTHER if is_sparse else INPUT], parameters[operation[WEIGHT]]
        for j in range(inputs_J.shape[0]):
            if inputs_J[j, 0] == source and is_sparse:
                edges = view(inputs_J[j, 3], next_n + 2, network)
                first, last = edges[next_n], edges[next_n + 1]
                columns.ask_for(row, view(inputs_J[j, 1] + first * inputs_J[j, 2], last - first, network), like)
            elif inputs_J[j, 0] == source:
                ids_K = view(values[turn, source] + inputs_J[j, 2], sizes_of(network)[source], network)
                size = row[COLUMNS] * like.itemsize
                for k in range(ids_K.shape[0]):
                    for first in range(0, size + 63, 64):
                        prefetch(row[PLACE] + ids_K[k] * size + min(first, size - 1))
                        if row[FIRST] != row[PLACE]:
                            prefetch(row[FIRST] + ids_K[k] * size + min(first, size - 1))


@compiled
def answer(tables: Any, parameter: Any, smoothing: Any, like: Any) -> Any:
    """Predicts and scores the records that the tables point to, with the weights as they are."""
    network, like = borrowed(tables), borrowed(like)
    losses_M = losses_of(network, like)
    none, no = np.int64(0), bool(0)  # numba compiles what it calls once more for a number that stands there
    for m in range(losses_M.shape[0]):
        _look_at(m, none, network)
        forward(none, network, none, no, no, none, like)
        losses_M[m] = _score(m, none, network, parameter, smoothing, like)
        _hand_out(m, none, network, like)


@compiled
def learn(tables: Any, parameter: Any, smoothing: Any, clip_norm: Any, like: Any) -> Any:
    """Learns the records that the tables point to one after another; gives the number of updates.

    ``parameter`` and ``smoothing`` are of the loss, ``like`` is any vector of the model's numbers.
    """
    state = count_tiny_as_zero()
    applied = _learn(borrowed(tables), parameter, smoothing, clip_norm, borrowed(like))
    restore_tiny(state)
    return applied


@inlined
def _learn(network: Any, parameter: Any, smoothing: Any, clip_norm: Any, like: Any) -> Any:
    losses_N, skipped_N = losses_of(network, like), skipped_of(network)
    scores_in_training, first_random = network[SCORES_IN_TRAINING] != 0, network[FIRST_RANDOM]
    is_blocked = network[BLOCK_SIZE] > 0
    first, no, row_size = np.int64(is_blocked), bool(0), network[NUM_PARAMETERS] * NUM_DIALS * 8
    pending, applied, turn = no, 0, np.int64(0)
    for n in range(losses_N.shape[0]):
        turn = np.int64(n & 1)
        _look_at(n, turn, network)
        if network[HAS_ROWS] != 0 and n + 1 < losses_N.shape[0]:
            _ask_for_rows(n + 1, network, turn, like)
        if is_blocked:
            _first_of_block(n, network, turn, pending, like)
        key = key_of(network, n)
        forward(first, network, turn, pending, scores_in_training, key, like)
        pending = no
        loss = _score(n, turn, network, parameter, smoothing, like)
        losses_N[n] = loss
        _hand_out(n, turn, network, like)
        if first_random >= 0 and not scores_in_training:
            forward(first_random, network, turn, no, not no, key, like)
            loss = _score(n, turn, network, parameter, smoothing, like)
        squared_norm = backward(network, turn, like)
        # A comparison: x − x, as isfinite is compiled, may be taken for 0 where sums may be taken in any order.
        if not (squared_norm < np.inf and abs(loss * weight_of(network, n, like)) < np.inf):
            skipped_N[n] = 1
            if is_blocked:
                _first_delta(network, like)[n] = 0
            continue
        network[DIALS] = network[ALL_DIALS] + min(applied, network[NUM_ALL_DIALS] - 1) * row_size
        scale = like.dtype.type(1)
        if squared_norm > clip_norm * clip_norm:
            scale = like.dtype.type(clip_norm / math.sqrt(squared_norm))
        _take_steps(network, turn, scale, like)
        if is_blocked:
            _note_in_block(n, network, turn, like)
        pending = not no
        applied += 1
    if pending:
        _flush(network, turn, is_blocked, like)
    return applied


@inlined
def _output(network: Any) -> Any:
    """The value that the last operation gives, and its size."""
    last = operations_of(network)[network[NUM_OPERATIONS] - 1, OUTPUT]
    return last, sizes_of(network)[last]


@inlined
def _hand_out(n: Any, turn: Any, network: Any, like: Any) -> Any:
    last, size = _output(network)
    source, target = view(values_of(network)[turn, last], size, like), outputs_of(network, n, size, like)
    for c in range(size):
        target[c] = source[c]


@compiled
def _score(n: Any, turn: Any, network: Any, parameter: Any, smoothing: Any, like: Any) -> Any:
    """The loss of record n; the slope of the last value becomes that of weight × loss."""
    last, size = _output(network)
    out, slope = view(values_of(network)[turn, last], size, like), view(slopes_of(network)[turn, last], size, like)
    class_weights = view(network[CLASS_WEIGHTS], network[NUM_CLASS_WEIGHTS], like)
    if network[LOSS] == CROSS_ENTROPY:
        label = view(network[CLASSES], network[NUM_RECORDS], network)[n]
        loss = cross_entropy(out, label, smoothing, class_weights, slope)
    else:
        numbers = view(network[NUMBERS] + n * size * like.itemsize, size, like)
        loss = loss_of_numbers(network[LOSS], out, numbers, parameter, smoothing, class_weights, slope)
    weight = weight_of(network, n, like)
    for c in range(size):
        slope[c] *= weight
    return like.dtype.type(loss)


@inlined
def _first_delta(network: Any, like: Any) -> Any:
    """(K, H) δ of the first layer in a block."""
    num_out = sizes_of(network)[operations_of(network)[0, OUTPUT]]
    return block_matrix(network[DELTA], network, num_out, like)


@compiled
def _first_of_block(n: Any, network: Any, turn: Any, pending: Any, like: Any) -> Any:
    """The first layer of record n, whose weights are where they were before the block."""
    operation = operations_of(network)[0]
    bias, num_out = operation[BIAS], sizes_of(network)[operation[OUTPUT]]
    out = view(values_of(network)[turn, operation[OUTPUT]], num_out, like)
    if bias < 0:
        out[:] = 0
    else:
        if pending:
            step_bias(operation, network, 1 - turn, like)
        copy(view(parameters_of(network)[bias, PLACE], num_out, like), out)
    blocks.add_first_layer(
        n,
        block_matrix(network[FROM_WEIGHTS], network, num_out, like),
        block_matrix(network[FROM_BUFFER], network, num_out, like),
        block_matrix(network[PRODUCTS], network, network[BLOCK_SIZE], like),
        _first_delta(network, like),
        coefficients_of(network, blocks.NUM_COEFFICIENTS),
        out,
    )


@compiled
def _note_in_block(n: Any, network: Any, turn: Any, like: Any) -> Any:
    """δ of record n, which was learned, and what it does to the first layer's weights."""
    operation, counts, delta_KH = operations_of(network)[0], counts_of(network), _first_delta(network, like)
    weight = operation[WEIGHT]
    copy(view(slopes_of(network)[turn, operation[OUTPUT]], delta_KH.shape[1], like), delta_KH[n])
    counts[weight] += 1
    blocks.advance(n, dials_of(network, weight), counts[weight], coefficients_of(network, blocks.NUM_COEFFICIENTS))


@inlined
def _take_steps(network: Any, turn: Any, scale: Any, like: Any) -> Any:
    """Clips, then steps what is not left pending: gradients that are whole, and rows of tables."""
    operations, parameters, slopes, sizes = (
        operations_of(network),
        parameters_of(network),
        slopes_of(network),
        sizes_of(network),
    )
    for p in range(operations.shape[0]):
        operation = operations[p]
        kind = operation[KIND]
        if scale != 1 and (kind == LINEAR or kind == LINEAR_OF_COLUMNS):
            delta = view(slopes[turn, operation[OUTPUT]], sizes[operation[OUTPUT]], like)
            for i in range(delta.shape[0]):
                delta[i] *= scale
        if kind == LINEAR_OF_COLUMNS and parameters[operation[WEIGHT], FORM] == SPARSE:
            step_columns_of(operation, network, turn, like)
        elif kind == LINEAR and network[OPTIMIZER] == FACTORED and parameters[operation[WEIGHT], FORM] == OUTER:
            factored.scale_pending(operation, network, turn, like)
        elif kind == EMBEDDING and parameters[operation[WEIGHT], FORM] == SPARSE:
            step_rows_of(operation, network, turn, scale, like)
    for q in range(parameters.shape[0]):
        if parameters[q, FORM] == DENSE:
            gradient = view(parameters[q, GRADIENT], parameters[q, ROWS] * parameters[q, COLUMNS], like)
            if scale != 1:
                for i in range(gradient.shape[0]):
                    gradient[i] *= scale
            if network[OPTIMIZER] == FACTORED and parameters[q, SECOND] != parameters[q, PLACE]:
                counts_of(network)[q] += 1
                factored.step_matrix(q, network, gradient, like)
            else:
                step_vector(q, network, gradient, like)


@compiled
def _flush(network: Any, turn: Any, is_blocked: Any, like: Any) -> Any:
    """The steps that the last record left pending."""
    operations, parameters = operations_of(network), parameters_of(network)
    values, sizes = values_of(network), sizes_of(network)
    for p in range(operations.shape[0]):
        operation = operations[p]
        if operation[KIND] != LINEAR and operation[KIND] != LINEAR_OF_COLUMNS:
            continue
        source, weight = operation[INPUT], operation[WEIGHT]
        step_bias(operation, network, turn, like)
        if parameters[weight, FORM] == OUTER and not (is_blocked and p == 0):
            x, out = view(values[turn, source], sizes[source], like), room_of(network, 1, like)
            step_matrix(operation, network, turn, x, out[: sizes[operation[OUTPUT]]], like)
