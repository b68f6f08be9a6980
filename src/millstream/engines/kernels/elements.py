"""Elements of values that are added, multiplied, summed up, or taken from other places.

Shapes: I elements of the input, O of the output.
"""

from __future__ import annotations

from typing import Any

from millstream.engines.kernels.compiled import compiled, inlined

__all__ = ["add", "multiply", "multiply_back", "sum_up", "sum_up_back", "take", "take_back"]


@inlined
def add(inputs: Any, out: Any) -> Any:
    """out += inputs."""
    for i in range(out.shape[0]):
        out[i] += inputs[i]


@compiled
def multiply(inputs: Any, out: Any) -> Any:
    """out *= inputs."""
    for i in range(out.shape[0]):
        out[i] *= inputs[i]


@compiled
def multiply_back(delta: Any, factors: Any, slope: Any, adds: Any) -> Any:
    """slope = δ · factors, or slope += the same."""
    for i in range(delta.shape[0]):
        product = delta[i] * factors[i]
        slope[i] = slope[i] + product if adds else product


@compiled
def take(inputs_I: Any, places_O: Any, out_O: Any) -> Any:
    """out = inputs[places]."""
    for o in range(out_O.shape[0]):
        out_O[o] = inputs_I[places_O[o]]


@compiled
def take_back(delta_O: Any, places_O: Any, slope_I: Any, adds: Any) -> Any:
    """slope[places] += δ, from 0 unless it ``adds``."""
    if not adds:
        slope_I[:] = 0
    for o in range(delta_O.shape[0]):
        slope_I[places_O[o]] += delta_O[o]


@compiled
def sum_up(inputs_I: Any, length: Any, factor: Any, out_O: Any) -> Any:
    """out = factor × the sum of ``length`` inputs that follow each other."""
    for o in range(out_O.shape[0]):
        total = out_O.dtype.type(0)
        for i in range(o * length, (o + 1) * length):
            total += inputs_I[i]
        out_O[o] = out_O.dtype.type(factor) * total


@compiled
def sum_up_back(delta_O: Any, length: Any, factor: Any, slope_I: Any, adds: Any) -> Any:
    """slope = factor × δ for each that was summed up, or slope += the same."""
    for o in range(delta_O.shape[0]):
        d = delta_O.dtype.type(factor) * delta_O[o]
        for i in range(o * length, (o + 1) * length):
            slope_I[i] = slope_I[i] + d if adds else d
