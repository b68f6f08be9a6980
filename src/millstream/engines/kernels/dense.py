"""The per-sample loop over a chain of dense layers: predict, score, guard, update, one record after another.

A network is a table: layer l has ``widths[l]`` inputs, ``widths[l + 1]`` outputs, weights, bias and optimizer state at
the addresses ``places[l, …]`` (0: there is none), and an activation. One compiled function serves every such network,
so there is nothing to compile when a model is new.

Shapes: N records, M questions, L layers, W the widest of them, O outputs and I inputs of a layer, K records of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.activations import activate, times_slope
from millstream.engines.kernels.compiled import compiled, is_compiled_before, matrix
from millstream.engines.kernels.losses import loss_of
from millstream.engines.kernels.steps import RATE, step

__all__ = ["NUM_PLACES", "answer", "is_kept", "learn"]

WEIGHT, BIAS, WEIGHT_FIRST, BIAS_FIRST, WEIGHT_SECOND, BIAS_SECOND = range(6)  # columns of ``places``
NUM_PLACES = 6


@compiled
def _forward_dense(weights_OI: Any, inputs_I: Any, out_O: Any) -> Any:
    """out += W x, four rows at a time: each number of x is loaded once for four products."""
    num_out, num_in = weights_OI.shape
    zero = out_O.dtype.type(0)
    row = 0
    while row + 4 <= num_out:
        a, b, c, d = zero, zero, zero, zero
        for i in range(num_in):
            x = inputs_I[i]
            a += weights_OI[row, i] * x
            b += weights_OI[row + 1, i] * x
            c += weights_OI[row + 2, i] * x
            d += weights_OI[row + 3, i] * x
        out_O[row] += a
        out_O[row + 1] += b
        out_O[row + 2] += c
        out_O[row + 3] += d
        row += 4
    while row < num_out:
        a = zero
        for i in range(num_in):
            a += weights_OI[row, i] * inputs_I[i]
        out_O[row] += a
        row += 1


@compiled
def _backward_dense(weights_OI: Any, delta_O: Any, out_I: Any) -> Any:
    """out = Wᵀ δ, four rows at a time."""
    num_out, num_in = weights_OI.shape
    out_I[:] = 0
    row = 0
    while row + 4 <= num_out:
        a, b, c, d = delta_O[row], delta_O[row + 1], delta_O[row + 2], delta_O[row + 3]
        for i in range(num_in):
            out_I[i] += (
                weights_OI[row, i] * a
                + weights_OI[row + 1, i] * b
                + weights_OI[row + 2, i] * c
                + weights_OI[row + 3, i] * d
            )
        row += 4
    while row < num_out:
        a = delta_O[row]
        for i in range(num_in):
            out_I[i] += weights_OI[row, i] * a
        row += 1


@compiled
def _forward(
    first_layer: Any,
    inputs_I: Any,
    widths: Any,
    places: Any,
    activations: Any,
    arguments: Any,
    z_LW: Any,
    out_LW: Any,
    like: Any,
) -> Any:
    """All layers from ``first_layer`` on; ``z_LW[first_layer]`` may hold what is to be added already."""
    for layer in range(first_layer, widths.shape[0] - 1):
        num_in, num_out = widths[layer], widths[layer + 1]
        z = z_LW[layer, :num_out]
        if places[layer, BIAS]:
            z[:] = matrix(places[layer, BIAS], num_out, 1, like)[:, 0]
        else:
            z[:] = 0
        x = inputs_I if layer == 0 else out_LW[layer - 1, :num_in]
        _forward_dense(matrix(places[layer, WEIGHT], num_out, num_in, like), x, z)
        activate(activations[layer], arguments[layer], z, out_LW[layer, :num_out])


def is_kept() -> bool:
    """Whether this code was compiled before on this machine, and kept."""
    return is_compiled_before("learn")


@compiled
def answer(
    inputs_MI: Any, labels_M: Any, numbers_MC: Any, network: Any, criterion: Any, outputs_MC: Any, losses_M: Any
) -> Any:
    """Predicts and scores M records with the weights as they are."""
    widths, places, activations, arguments = network
    kind, parameter, smoothing, class_weights_C = criterion
    num_layers, widest = widths.shape[0] - 1, widths.max()
    z_LW = np.empty((num_layers, widest), inputs_MI.dtype)
    out_LW = np.empty((num_layers, widest), inputs_MI.dtype)
    num_outputs = widths[num_layers]
    slope_C = np.empty(num_outputs, inputs_MI.dtype)
    for m in range(inputs_MI.shape[0]):
        _forward(0, inputs_MI[m], widths, places, activations, arguments, z_LW, out_LW, inputs_MI)
        outputs_MC[m] = out_LW[num_layers - 1, :num_outputs]
        losses_M[m] = loss_of(
            kind, outputs_MC[m], labels_M[m], numbers_MC[m], parameter, smoothing, class_weights_C, slope_C
        )


@compiled
def learn(
    inputs_NI: Any,
    labels_N: Any,
    numbers_NC: Any,
    weights_N: Any,
    network: Any,
    trained: Any,
    criterion: Any,
    optimizer: Any,
    dials: Any,
    counts: Any,
    block: Any,
    outcome: Any,
) -> Any:
    """Learns N records one after another.

    ``block`` is (Z, G, D): the first layer's outputs without this block's updates, the inner products of the inputs,
    and room for the first layer's δ, which the caller applies; empty for the direct form.
    """
    widths, places, activations, arguments = network
    kind, parameter, smoothing, class_weights_C = criterion
    z_KH, gram_KK, delta_KH = block
    outputs_NC, losses_N, skipped_N = outcome
    num_layers, widest = widths.shape[0] - 1, widths.max()
    z_LW = np.empty((num_layers, widest), inputs_NI.dtype)
    out_LW = np.empty((num_layers, widest), inputs_NI.dtype)
    delta_LW = np.empty((num_layers, widest), inputs_NI.dtype)
    num_outputs = widths[num_layers]
    one = np.ones(1, inputs_NI.dtype)
    is_blocked = z_KH.shape[0] > 0
    for n in range(inputs_NI.shape[0]):
        x = inputs_NI[n]
        if is_blocked:
            z = z_LW[0, : widths[1]]
            z[:] = z_KH[n]
            rate = inputs_NI.dtype.type(dials[0, RATE])
            bias_rate = inputs_NI.dtype.type(dials[1, RATE] if places[0, BIAS] else 0.0)
            for k in range(n):
                if not skipped_N[k]:
                    g = rate * gram_KK[n, k] + bias_rate
                    for j in range(z.shape[0]):
                        z[j] -= delta_KH[k, j] * g
            activate(activations[0], arguments[0], z, out_LW[0, : widths[1]])
        _forward(1 if is_blocked else 0, x, widths, places, activations, arguments, z_LW, out_LW, inputs_NI)
        outputs_NC[n] = out_LW[num_layers - 1, :num_outputs]
        slope = delta_LW[num_layers - 1, :num_outputs]
        loss = loss_of(kind, outputs_NC[n], labels_N[n], numbers_NC[n], parameter, smoothing, class_weights_C, slope)
        losses_N[n] = loss
        weight = weights_N[n]
        for c in range(num_outputs):
            slope[c] *= weight
        squared_norm = _deltas(x, widths, places, activations, arguments, trained, z_LW, out_LW, delta_LW, inputs_NI)
        # A comparison: x − x, as isfinite is compiled, may be taken for 0 where sums may be taken in any order.
        if not (squared_norm < np.inf and abs(loss * weight) < np.inf):
            skipped_N[n] = True
            if is_blocked:
                delta_KH[n] = 0
            continue
        if is_blocked:
            delta_KH[n] = delta_LW[0, : widths[1]]
        for layer in range(1 if is_blocked else 0, num_layers):
            num_in, num_out = widths[layer], widths[layer + 1]
            source = x if layer == 0 else out_LW[layer - 1, :num_in]
            _update(optimizer, layer, num_out, num_in, places, trained, dials, counts, delta_LW, source, one, inputs_NI)


@compiled
def _deltas(
    x: Any,
    widths: Any,
    places: Any,
    activations: Any,
    arguments: Any,
    trained: Any,
    z_LW: Any,
    out_LW: Any,
    delta_LW: Any,
    like: Any,
) -> Any:
    """δ of every layer, from the slope of the loss in the last row; gives the squared norm of the whole gradient."""
    num_layers = widths.shape[0] - 1
    total = like.dtype.type(0)
    for layer in range(num_layers - 1, -1, -1):
        num_in, num_out = widths[layer], widths[layer + 1]
        delta = delta_LW[layer, :num_out]
        times_slope(activations[layer], arguments[layer], z_LW[layer, :num_out], out_LW[layer, :num_out], delta)
        source = x if layer == 0 else out_LW[layer - 1, :num_in]
        squared_delta, squared_input = like.dtype.type(0), like.dtype.type(0)
        for o in range(num_out):
            squared_delta += delta[o] * delta[o]
        for i in range(num_in):
            squared_input += source[i] * source[i]
        if trained[layer, 0]:
            if squared_delta != 0:
                total += squared_delta * squared_input
            elif not squared_input < np.inf:  # 0 times a square that overflows is 0; 0 times infinity is not
                for i in range(num_in):
                    total += like.dtype.type(0) if abs(source[i]) < np.inf else like.dtype.type(np.inf)
        if trained[layer, 1]:
            total += squared_delta
        if layer > 0:
            _backward_dense(matrix(places[layer, WEIGHT], num_out, num_in, like), delta, delta_LW[layer - 1, :num_in])
    return total


@compiled
def _update(
    optimizer: Any,
    layer: Any,
    num_out: Any,
    num_in: Any,
    places: Any,
    trained: Any,
    dials: Any,
    counts: Any,
    delta_LW: Any,
    source: Any,
    one: Any,
    like: Any,
) -> Any:
    """The weights and the bias of one layer take one step."""
    delta = delta_LW[layer, :num_out]
    if trained[layer, 0]:
        counts[2 * layer] += 1
        step(
            optimizer,
            matrix(places[layer, WEIGHT], num_out, num_in, like),
            matrix(places[layer, WEIGHT_FIRST], num_out, num_in, like),
            matrix(places[layer, WEIGHT_SECOND], num_out, num_in, like),
            delta,
            source,
            dials[2 * layer],
            counts[2 * layer],
        )
    if trained[layer, 1]:
        counts[2 * layer + 1] += 1
        step(
            optimizer,
            matrix(places[layer, BIAS], num_out, 1, like),
            matrix(places[layer, BIAS_FIRST], num_out, 1, like),
            matrix(places[layer, BIAS_SECOND], num_out, 1, like),
            delta,
            one,
            dials[2 * layer + 1],
            counts[2 * layer + 1],
        )
