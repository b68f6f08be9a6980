"""A Linear of a sparse row: only those columns of the weights are read and stepped that the row names.

It names none of them twice. A column is O numbers that lie a whole row of weights apart, so the loops go along one row
of weights after another.

Shapes: O outputs, S columns, K numbers of a sparse row.
"""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels.compiled import compiled, view
from millstream.engines.kernels.layout import COLUMNS, FIRST, PLACE, ROWS
from millstream.engines.kernels.steps import RATE, SIGN, is_plain, step
from millstream.engines.kernels.vectors import prefetch

__all__ = ["add_outer", "ask_for", "forward", "step_columns"]

_GROUP = 1024  # weights that are gathered at a time


@compiled
def forward(parameter: Any, columns_K: Any, numbers_K: Any, out_O: Any) -> Any:
    """out += W x. ``parameter`` is a row of the table, here and below."""
    size, item = parameter[COLUMNS], out_O.itemsize
    for o in range(out_O.shape[0]):
        weights_S = view(parameter[PLACE] + o * size * item, size, out_O)
        total = out_O.dtype.type(0)
        for k in range(columns_K.shape[0]):
            total += weights_S[columns_K[k]] * numbers_K[k]
        out_O[o] += total


@compiled
def add_outer(columns_K: Any, numbers_K: Any, delta_O: Any, gradient_OS: Any) -> Any:
    """gradient += δ xᵀ, for a matrix that every step changes whole, or that is used more than once."""
    for o in range(delta_O.shape[0]):
        d = delta_O[o]
        for k in range(columns_K.shape[0]):
            gradient_OS[o, columns_K[k]] += d * numbers_K[k]


@compiled
def step_columns(
    optimizer: Any,
    parameter: Any,
    columns_K: Any,
    numbers_K: Any,
    delta_O: Any,
    dials: Any,
    terms: Any,
    room: Any,
) -> Any:
    """One step by the gradient δ xᵀ, by an optimizer with one kind of state at most. ``room`` holds 3 groups."""
    size, item = parameter[COLUMNS], delta_O.itemsize
    plain, rate = is_plain(optimizer, dials), delta_O.dtype.type(dials[SIGN] * dials[RATE])
    for o in range(delta_O.shape[0]):
        d = delta_O[o]
        weights_S = view(parameter[PLACE] + o * size * item, size, delta_O)
        if plain:
            for k in range(columns_K.shape[0]):
                weights_S[columns_K[k]] -= rate * d * numbers_K[k]
            continue
        state_S = view(parameter[FIRST] + o * size * item, size, delta_O)
        for start in range(0, columns_K.shape[0], _GROUP):
            num = min(_GROUP, columns_K.shape[0] - start)
            weights, gradient, state = room[:num], room[_GROUP : _GROUP + num], room[2 * _GROUP : 2 * _GROUP + num]
            for k in range(num):
                column = columns_K[start + k]
                weights[k], state[k], gradient[k] = weights_S[column], state_S[column], d * numbers_K[start + k]
            step(optimizer, weights, gradient, state, state, state, dials, terms)
            for k in range(num):
                column = columns_K[start + k]
                state_S[column] = state[k]
                weights_S[column] = weights[k]


@compiled
def ask_for(parameter: Any, columns_K: Any, like: Any) -> Any:
    """The weights and the state that a row will need start on their way from memory."""
    for o in range(parameter[ROWS]):
        first = o * parameter[COLUMNS]
        for k in range(columns_K.shape[0]):
            place = (first + columns_K[k]) * like.itemsize
            prefetch(parameter[PLACE] + place)
            if parameter[FIRST] != parameter[PLACE]:
                prefetch(parameter[FIRST] + place)
