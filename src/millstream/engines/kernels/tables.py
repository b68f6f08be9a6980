"""The tables of a compiled model as one vector of addresses and sizes, and the views that read them.

A call then hands on one vector, where it would copy the descriptions of a dozen arrays, and views own nothing.

Shapes: P operations, Q parameters, V values, J inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.compiled import inlined, matrix, view
from millstream.engines.kernels.convolution import NUM_GEOMETRY
from millstream.engines.kernels.layout import NUM_OPERATION_COLUMNS, NUM_PARAMETER_COLUMNS
from millstream.engines.kernels.steps import NUM_DIALS, NUM_TERMS

__all__ = [
    *("ARGUMENTS", "COUNTS", "DIALS", "GEOMETRY", "INPUTS", "NUM_INPUTS", "NUM_OPERATIONS", "NUM_PARAMETERS"),
    *("NUM_TABLES", "NUM_VALUES", "OPERATIONS", "OPTIMIZER", "PARAMETERS", "ROOM", "ROOM_WIDTH", "SIZES", "SLOPES"),
    *("TERMS", "VALUES"),
    *("argument_of", "counts_of", "dials_of", "geometry_of", "inputs_of", "operations_of", "parameters_of", "room_of"),
    *("sizes_of", "slopes_of", "terms_of", "values_of"),
]

(
    OPERATIONS,
    NUM_OPERATIONS,
    ARGUMENTS,
    GEOMETRY,
    PARAMETERS,
    NUM_PARAMETERS,
    VALUES,
    SLOPES,
    NUM_VALUES,
    SIZES,
    INPUTS,
    NUM_INPUTS,
    OPTIMIZER,
    DIALS,  # of the update that is under way
    COUNTS,
    TERMS,
    ROOM,
    ROOM_WIDTH,
) = range(18)
NUM_TABLES = 18
_FLOATS = np.zeros(0)


@inlined
def operations_of(network: Any) -> Any:
    """(P, columns)."""
    return matrix(network[OPERATIONS], network[NUM_OPERATIONS], NUM_OPERATION_COLUMNS, network)


@inlined
def argument_of(network: Any, p: Any) -> Any:
    """The number that operation p has of its own."""
    return view(network[ARGUMENTS], network[NUM_OPERATIONS], _FLOATS)[p]


@inlined
def geometry_of(network: Any, p: Any) -> Any:
    """(columns,) of operation p."""
    return matrix(network[GEOMETRY], network[NUM_OPERATIONS], NUM_GEOMETRY, network)[p]


@inlined
def parameters_of(network: Any) -> Any:
    """(Q, columns)."""
    return matrix(network[PARAMETERS], network[NUM_PARAMETERS], NUM_PARAMETER_COLUMNS, network)


@inlined
def values_of(network: Any) -> Any:
    """(2, V) addresses, for two records in turn."""
    return matrix(network[VALUES], 2, network[NUM_VALUES], network)


@inlined
def slopes_of(network: Any) -> Any:
    """(2, V) addresses, for two records in turn."""
    return matrix(network[SLOPES], 2, network[NUM_VALUES], network)


@inlined
def sizes_of(network: Any) -> Any:
    """(V,) numbers of a value."""
    return view(network[SIZES], network[NUM_VALUES], network)


@inlined
def inputs_of(network: Any) -> Any:
    """(J, 3): value, address of the first record, bytes from one record to the next."""
    return matrix(network[INPUTS], network[NUM_INPUTS], 3, network)


@inlined
def dials_of(network: Any, q: Any) -> Any:
    """(dials,) of parameter q."""
    return matrix(network[DIALS], network[NUM_PARAMETERS], NUM_DIALS, _FLOATS)[q]


@inlined
def counts_of(network: Any) -> Any:
    """(Q,) updates so far."""
    return view(network[COUNTS], network[NUM_PARAMETERS], _FLOATS)


@inlined
def terms_of(network: Any) -> Any:
    """(terms,) that the weights of a parameter share in one update."""
    return view(network[TERMS], NUM_TERMS, _FLOATS)


@inlined
def room_of(network: Any, which: Any, like: Any) -> Any:
    """One of two vectors, each as long as the longest that is needed."""
    return view(network[ROOM] + which * network[ROOM_WIDTH] * like.itemsize, network[ROOM_WIDTH], like)
