"""The per-sample loop: predict, score, guard, update, one record after another, for any model on a tape.

Shapes: N records, M questions, C outputs, S rows of dials (one for all records, or one for each update), P parameters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from millstream.engines.kernels import blocks
from millstream.engines.kernels.backward import backward
from millstream.engines.kernels.compiled import borrowed, borrowed_matrix, compiled, inlined, is_compiled_before, view
from millstream.engines.kernels.forward import forward
from millstream.engines.kernels.layout import (
    BIAS,
    COLUMNS,
    DENSE,
    EMBEDDING,
    FORM,
    GRADIENT,
    INPUT,
    KIND,
    LINEAR,
    OUTER,
    OUTPUT,
    PLACE,
    ROWS,
    SPARSE,
    VECTOR,
    WEIGHT,
)
from millstream.engines.kernels.losses import loss_of
from millstream.engines.kernels.tables import (
    DIALS,
    counts_of,
    dials_of,
    inputs_of,
    operations_of,
    parameters_of,
    room_of,
    sizes_of,
    slopes_of,
    values_of,
)
from millstream.engines.kernels.updates import step_matrix, step_rows_of, step_vector

__all__ = ["answer", "is_kept", "learn"]


def is_kept() -> bool:
    """Whether this code was compiled before on this machine, and kept."""
    return is_compiled_before("learn")


@inlined
def _look_at(n: Any, turn: Any, network: Any) -> Any:
    """Record n becomes the one whose inputs lie at ``turn``."""
    values, inputs_J = values_of(network), inputs_of(network)
    for j in range(inputs_J.shape[0]):
        values[turn, inputs_J[j, 0]] = inputs_J[j, 1] + n * inputs_J[j, 2]


@compiled
def answer(labels_M: Any, numbers_MC: Any, tables: Any, criterion: Any, outcome: Any) -> Any:
    """Predicts and scores M records with the weights as they are."""
    network, losses_M = borrowed(tables), borrowed(outcome[1])
    outputs_MC, weights_M = borrowed_matrix(outcome[0]), view(0, 0, losses_M)
    records = (borrowed(labels_M), borrowed_matrix(numbers_MC), weights_M)
    criterion = (criterion[0], criterion[1], criterion[2], borrowed(criterion[3]))
    none, no = np.int64(0), bool(0)  # numba compiles what it calls once more for a number that stands there
    for m in range(losses_M.shape[0]):
        _look_at(m, none, network)
        forward(none, network, none, no, no, none, losses_M)
        losses_M[m] = _score(m, none, network, records, criterion, outputs_MC[m], losses_M)


@compiled
def learn(
    labels_N: Any,
    numbers_NC: Any,
    weights_N: Any,
    keys_N: Any,
    tables: Any,
    dials_SD: Any,
    criterion: Any,
    clip_norm: Any,
    modes: Any,
    block: Any,
    outcome: Any,
) -> Any:
    """Learns N records one after another; gives the number of updates.

    Row s of ``dials`` holds for update s, the last one for all that follow. ``modes`` is (first operation that differs
    in training, −1 for none; whether records are scored in training). ``block`` is (W₀x, B₀x, xᵢ·xⱼ, δ, coefficients)
    of the first layer, whose weights the caller changes; empty for the direct form.
    """
    return _learn(
        (borrowed(labels_N), borrowed_matrix(numbers_NC), borrowed(weights_N)),
        borrowed(keys_N),
        borrowed(tables),
        borrowed_matrix(dials_SD),
        (criterion[0], criterion[1], criterion[2], borrowed(criterion[3])),
        clip_norm,
        modes,
        (
            borrowed_matrix(block[0]),
            borrowed_matrix(block[1]),
            borrowed_matrix(block[2]),
            borrowed_matrix(block[3]),
            borrowed_matrix(block[4]),
        ),
        (borrowed_matrix(outcome[0]), borrowed(outcome[1]), borrowed(outcome[2])),
    )


@compiled
def _learn(
    records: Any,
    keys_N: Any,
    network: Any,
    dials_SD: Any,
    criterion: Any,
    clip_norm: Any,
    modes: Any,
    block: Any,
    outcome: Any,
) -> Any:
    first_random, scores_in_training = modes
    outputs_NC, losses_N, skipped_N = outcome
    like, weights_N = losses_N, records[2]
    is_blocked = block[0].shape[0] > 0
    first, no = np.int64(is_blocked), bool(0)
    pending, applied, turn = no, 0, np.int64(0)
    for n in range(losses_N.shape[0]):
        turn = np.int64(n & 1)
        _look_at(n, turn, network)
        if is_blocked:
            _first_of_block(n, network, turn, pending, block, like)
        forward(first, network, turn, pending, scores_in_training, keys_N[n], like)
        pending = no
        loss = _score(n, turn, network, records, criterion, outputs_NC[n], like)
        losses_N[n] = loss
        if first_random >= 0 and not scores_in_training:
            forward(first_random, network, turn, no, not no, keys_N[n], like)
            loss = _score(n, turn, network, records, criterion, room_of(network, 1, like), like)
        squared_norm = backward(network, turn, like)
        # A comparison: x − x, as isfinite is compiled, may be taken for 0 where sums may be taken in any order.
        if not (squared_norm < np.inf and abs(loss * weights_N[n]) < np.inf):
            skipped_N[n] = True
            if is_blocked:
                block[3][n] = 0
            continue
        network[DIALS] = dials_SD[min(applied, dials_SD.shape[0] - 1)].ctypes.data
        scale = like.dtype.type(1)
        if squared_norm > clip_norm * clip_norm:
            scale = like.dtype.type(clip_norm / math.sqrt(squared_norm))
        _take_steps(network, turn, scale, like)
        if is_blocked:
            _note_in_block(n, network, turn, block, like)
        pending = not no
        applied += 1
    if pending:
        _flush(network, turn, is_blocked, like)
    return applied


@inlined
def _score(n: Any, turn: Any, network: Any, records: Any, criterion: Any, output: Any, like: Any) -> Any:
    """The loss of record n, and its output; the slope of the last value becomes that of weight × loss.

    Without weights each is 1.
    """
    operations, values, slopes, sizes = (
        operations_of(network),
        values_of(network),
        slopes_of(network),
        sizes_of(network),
    )
    labels_N, numbers_NC, weights_N = records
    last = operations[operations.shape[0] - 1, OUTPUT]
    size = sizes[last]
    out, slope = view(values[turn, last], size, like), view(slopes[turn, last], size, like)
    loss = loss_of(criterion[0], out, labels_N[n], numbers_NC[n], criterion[1], criterion[2], criterion[3], slope)
    for c in range(size):
        output[c] = out[c]
    if weights_N.shape[0]:
        weight = weights_N[n]
        for c in range(size):
            slope[c] *= weight
    return loss


@compiled
def _first_of_block(n: Any, network: Any, turn: Any, pending: Any, block: Any, like: Any) -> Any:
    """The first layer of record n, whose weights are where they were before the block."""
    operation, parameters, values, slopes = (
        operations_of(network)[0],
        parameters_of(network),
        values_of(network),
        slopes_of(network),
    )
    from_weights_KH, from_buffer_KH, gram_KK, delta_KH, coefficients = block
    bias, num_out = operation[BIAS], delta_KH.shape[1]
    out = view(values[turn, operation[OUTPUT]], num_out, like)
    if bias < 0:
        out[:] = 0
    else:
        if pending and parameters[bias, FORM] == VECTOR:
            gradient = room_of(network, 0, like)[:num_out]
            gradient[:] = view(slopes[1 - turn, operation[OUTPUT]], num_out, like)
            step_vector(bias, network, gradient, like)
        out[:] = view(parameters[bias, PLACE], num_out, like)
    blocks.add_first_layer(n, (from_weights_KH, from_buffer_KH, gram_KK, delta_KH), coefficients, out)


@compiled
def _note_in_block(n: Any, network: Any, turn: Any, block: Any, like: Any) -> Any:
    """δ of record n, which was learned, and what it does to the first layer's weights."""
    operation, counts = operations_of(network)[0], counts_of(network)
    delta_KH, weight = block[3], operation[WEIGHT]
    delta_KH[n] = view(slopes_of(network)[turn, operation[OUTPUT]], delta_KH.shape[1], like)
    counts[weight] += 1
    blocks.advance(n, dials_of(network, weight), counts[weight], block[4])


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
        if operation[KIND] == LINEAR and scale != 1:
            delta = view(slopes[turn, operation[OUTPUT]], sizes[operation[OUTPUT]], like)
            for i in range(delta.shape[0]):
                delta[i] *= scale
        elif operation[KIND] == EMBEDDING and parameters[operation[WEIGHT], FORM] == SPARSE:
            step_rows_of(operation, network, turn, scale, like)
    for q in range(parameters.shape[0]):
        if parameters[q, FORM] == DENSE:
            gradient = view(parameters[q, GRADIENT], parameters[q, ROWS] * parameters[q, COLUMNS], like)
            if scale != 1:
                for i in range(gradient.shape[0]):
                    gradient[i] *= scale
            step_vector(q, network, gradient, like)


@compiled
def _flush(network: Any, turn: Any, is_blocked: Any, like: Any) -> Any:
    """The steps that the last record left pending."""
    operations, parameters, values, slopes, sizes = (
        operations_of(network),
        parameters_of(network),
        values_of(network),
        slopes_of(network),
        sizes_of(network),
    )
    for p in range(operations.shape[0]):
        operation = operations[p]
        if operation[KIND] != LINEAR:
            continue
        source, weight, bias = operation[INPUT], operation[WEIGHT], operation[BIAS]
        delta = view(slopes[turn, operation[OUTPUT]], sizes[operation[OUTPUT]], like)
        if bias >= 0 and parameters[bias, FORM] == VECTOR:
            gradient = room_of(network, 0, like)[: delta.shape[0]]
            gradient[:] = delta
            step_vector(bias, network, gradient, like)
        if parameters[weight, FORM] == OUTER and not (is_blocked and p == 0):
            x = view(values[turn, source], sizes[source], like)
            step_matrix(weight, network, delta, x, x, room_of(network, 1, like)[: delta.shape[0]], like)
