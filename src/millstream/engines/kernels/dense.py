"""A step of the optimizer for a Linear's weights, on the way forward.

What record t does to a weight matrix is applied while record t + 1 goes forward through it, so the matrix is read from
memory once instead of twice, and whoever guards the weights sees the whole gradient before any of them is touched.

Shapes: O outputs, I inputs of a layer.
"""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels import rows
from millstream.engines.kernels.compiled import compiled, inlined, view
from millstream.engines.kernels.layout import FIRST, PLACE, SECOND, THIRD
from millstream.engines.kernels.steps import FACTORED, RATE, SIGN, is_plain, step

__all__ = ["GROUP", "add_outer", "step_and_forward"]

GROUP = 4096  # weights that are stepped at a time, if that is four rows or more


@compiled
def add_outer(delta_O: Any, inputs_I: Any, gradient_OI: Any) -> Any:
    """gradient += δ xᵀ, for a matrix that more than one layer uses."""
    for o in range(delta_O.shape[0]):
        d = delta_O[o]
        for i in range(inputs_I.shape[0]):
            gradient_OI[o, i] += d * inputs_I[i]


@inlined
def step_and_forward(
    optimizer: Any,
    parameter: Any,
    delta_O: Any,
    before_I: Any,
    inputs_I: Any,
    out_O: Any,
    dials: Any,
    terms: Any,
    room: Any,
) -> Any:
    """One step by the gradient δ xᵀ of the record before, then out += W x. ``parameter`` is a row of the table."""
    if optimizer == FACTORED or is_plain(optimizer, dials):
        rate = room.dtype.type(dials[SIGN] * dials[RATE])
        steps_O = room[: delta_O.shape[0]]
        for o in range(delta_O.shape[0]):
            steps_O[o] = rate * delta_O[o]
        rows.descend_and_forward(parameter[PLACE], steps_O, before_I, inputs_I, out_O)
    else:
        _any_step_and_forward(optimizer, parameter, delta_O, before_I, inputs_I, out_O, dials, terms, room)


@compiled
def _any_step_and_forward(
    optimizer: Any,
    parameter: Any,
    delta_O: Any,
    before_I: Any,
    inputs_I: Any,
    out_O: Any,
    dials: Any,
    terms: Any,
    room: Any,
) -> Any:
    """Some rows at a time, as many as a step and the forward pass find near."""
    num_out, num_in = delta_O.shape[0], before_I.shape[0]
    group = max(4, GROUP // num_in // 4 * 4)
    for start in range(0, num_out, group):
        num_rows = min(group, num_out - start)
        first, size = start * num_in * room.itemsize, num_rows * num_in
        for row in range(num_rows):
            d = delta_O[start + row]
            gradient_I = room[row * num_in : (row + 1) * num_in]
            for i in range(num_in):
                gradient_I[i] = d * before_I[i]
        step(
            optimizer,
            view(parameter[PLACE] + first, size, room),
            room[:size],
            view(parameter[FIRST] + first, size, room),
            view(parameter[SECOND] + first, size, room),
            view(parameter[THIRD] + first, size, room),
            dials,
            terms,
        )
        rows.forward(parameter[PLACE] + first, inputs_I, out_O[start : start + num_rows])
