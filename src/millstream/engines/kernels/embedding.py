"""Embeddings of one record: rows of a table by their ids, one by one or summed or averaged; backward only these rows.

Shapes: K ids, V rows of the table, E numbers of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.compiled import compiled
from millstream.engines.kernels.factored import step_row
from millstream.engines.kernels.layout import BAG_MEAN, EACH
from millstream.engines.kernels.steps import FACTORED, RATE, SGD, SIGN, step

__all__ = ["add_rows", "look_up", "squared_norm_of_rows", "step_rows"]


@compiled
def _share(how: Any, ids_K: Any, nothing: Any, kind: Any) -> Any:
    """What each id contributes with: 1, or 1 / (number of ids) in a mean."""
    if how != BAG_MEAN:
        return kind(1)
    count = 0
    for k in range(ids_K.shape[0]):
        count += ids_K[k] != nothing
    return kind(1) / kind(max(1, count))


@compiled
def look_up(how: Any, table_VE: Any, ids_K: Any, factors_K: Any, nothing: Any, out: Any) -> Any:
    """The rows in a line, or their sum or mean; ``factors`` (may be empty) weigh them. Id ``nothing`` is left out."""
    size = table_VE.shape[1]
    if how == EACH:
        for k in range(ids_K.shape[0]):
            row = table_VE[ids_K[k]]
            for e in range(size):
                out[k * size + e] = row[e]
        return
    share = _share(how, ids_K, nothing, table_VE.dtype.type)
    if size == 1:  # a linear model: one number for each id
        total = table_VE.dtype.type(0)
        if factors_K.shape[0]:
            for k in range(ids_K.shape[0]):
                if ids_K[k] != nothing:
                    total += table_VE[ids_K[k], 0] * factors_K[k]
        else:
            for k in range(ids_K.shape[0]):
                if ids_K[k] != nothing:
                    total += table_VE[ids_K[k], 0]
        out[0] = total * share
        return
    out[:] = 0
    for k in range(ids_K.shape[0]):
        if ids_K[k] != nothing:
            row = table_VE[ids_K[k]]
            factor = share * factors_K[k] if factors_K.shape[0] else share
            for e in range(size):
                out[e] += row[e] * factor


@compiled
def _gradient_of(
    how: Any, k: Any, share: Any, ids_K: Any, factors_K: Any, delta: Any, scale: Any, gathers: Any, gradient_E: Any
) -> Any:
    """The gradient of the row that id k names; False if it was done at an earlier id.

    With ``gathers`` a row that occurs twice gets the sum once, as an optimizer that is not linear needs it.
    """
    size = gradient_E.shape[0]
    if gathers:
        for earlier in range(k):
            if ids_K[earlier] == ids_K[k]:
                return False
    last = ids_K.shape[0] if gathers else k + 1
    gradient_E[:] = 0
    for again in range(k, last):
        if ids_K[again] == ids_K[k]:
            first = again * size if how == EACH else 0
            factor = scale * share * factors_K[again] if factors_K.shape[0] else scale * share
            for e in range(size):
                gradient_E[e] += delta[first + e] * factor
    return True


@compiled
def squared_norm_of_rows(
    how: Any, ids_K: Any, factors_K: Any, nothing: Any, delta: Any, gathers: Any, gradient_E: Any
) -> Any:
    """The squared norm of the table's gradient; without ``gathers`` a bound of it that is finite when it is."""
    kind = delta.dtype.type
    share = _share(how, ids_K, nothing, kind)
    total = kind(0)
    if not gathers:
        squared_delta, squared_factors = 0.0, 1.0 * ids_K.shape[0]
        for i in range(delta.shape[0]):
            squared_delta += np.float64(delta[i]) * delta[i]
        if how == EACH:
            return kind(squared_delta)
        if factors_K.shape[0]:
            squared_factors = 0.0
            for k in range(ids_K.shape[0]):
                squared_factors += np.float64(factors_K[k]) * factors_K[k] if ids_K[k] != nothing else 0.0
        bound = squared_delta * squared_factors * np.float64(share) * share
        if bound > 0 and bound < np.inf:  # else its factors may be beyond what a square can be
            return kind(bound)
    for k in range(ids_K.shape[0]):
        if ids_K[k] != nothing and _gradient_of(how, k, share, ids_K, factors_K, delta, kind(1), gathers, gradient_E):
            for e in range(gradient_E.shape[0]):
                total += gradient_E[e] * gradient_E[e]
    return total


@compiled
def _descend(how: Any, table_VE: Any, ids_K: Any, factors_K: Any, nothing: Any, delta: Any, rate: Any) -> Any:
    """Plain SGD, for which a row that occurs twice may as well take two steps."""
    size = table_VE.shape[1]
    if size == 1 and how != EACH and not factors_K.shape[0]:
        change = rate * delta[0]
        for k in range(ids_K.shape[0]):
            if ids_K[k] != nothing:
                table_VE[ids_K[k], 0] -= change
        return
    for k in range(ids_K.shape[0]):
        if ids_K[k] != nothing:
            row = table_VE[ids_K[k]]
            first = k * size if how == EACH else 0
            factor = rate * factors_K[k] if factors_K.shape[0] else rate
            for e in range(size):
                row[e] -= factor * delta[first + e]


@compiled
def step_rows(
    optimizer: Any,
    how: Any,
    table_VE: Any,
    first_VE: Any,
    second_VE: Any,
    third_VE: Any,
    means_V: Any,
    ids_K: Any,
    factors_K: Any,
    nothing: Any,
    delta: Any,
    dials: Any,
    terms: Any,
    scale: Any,
    gathers: Any,
    gradient_E: Any,
) -> Any:
    """One step of the rows that occur. Factored means are one for each row: the first of the state, as a vector."""
    share = _share(how, ids_K, nothing, table_VE.dtype.type)
    if optimizer == SGD and not gathers:
        _descend(
            how, table_VE, ids_K, factors_K, nothing, delta, table_VE.dtype.type(dials[SIGN] * dials[RATE]) * share
        )
        return
    for k in range(ids_K.shape[0]):
        row = ids_K[k]
        if row != nothing and _gradient_of(how, k, share, ids_K, factors_K, delta, scale, gathers, gradient_E):
            if optimizer == FACTORED:
                step_row(table_VE[row], gradient_E, means_V, row, dials)
            else:
                step(optimizer, table_VE[row], gradient_E, first_VE[row], second_VE[row], third_VE[row], dials, terms)


@compiled
def add_rows(how: Any, ids_K: Any, factors_K: Any, nothing: Any, delta: Any, gradient_VE: Any) -> Any:
    """gradient += the table's gradient, for a table that every step changes whole, or that is used more than once."""
    kind = delta.dtype.type
    share = _share(how, ids_K, nothing, kind)
    size = gradient_VE.shape[1]
    for k in range(ids_K.shape[0]):
        if ids_K[k] != nothing:
            first = k * size if how == EACH else 0
            factor = share * factors_K[k] if factors_K.shape[0] else share
            for e in range(size):
                gradient_VE[ids_K[k], e] += delta[first + e] * factor
