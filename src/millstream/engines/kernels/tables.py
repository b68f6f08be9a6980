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
    *("ALL_DIALS", "ARGUMENTS", "BLOCK_SIZE", "CLASSES", "CLASS_WEIGHTS", "COEFFICIENTS", "COUNTS", "DELTA", "DIALS"),
    *(
        "FIRST_RANDOM",
        "FROM_BUFFER",
        "FROM_WEIGHTS",
        "GEOMETRY",
        "HAS_ROWS",
        "INPUTS",
        "KEYS",
        "LOSS",
        "LOSSES",
        "NUMBERS",
    ),
    *(
        "NUM_ALL_DIALS",
        "NUM_CLASS_WEIGHTS",
        "NUM_INPUTS",
        "NUM_INPUT_COLUMNS",
        "NUM_OPERATIONS",
        "NUM_PARAMETERS",
        "NUM_RECORDS",
    ),
    *("NUM_TABLES", "NUM_VALUES", "OPERATIONS", "OPTIMIZER", "OUTPUTS", "PARAMETERS", "PRODUCTS", "ROOM"),
    *("ROOM_WIDTH", "SCORES_IN_TRAINING", "SIZES", "SKIPPED", "SLOPES", "TERMS", "VALUES", "WEIGHTS"),
    *("block_matrix", "coefficients_of", "key_of", "losses_of", "outputs_of", "skipped_of", "weight_of"),
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
    FIRST_RANDOM,  # the first operation that differs in training, −1 for none
    SCORES_IN_TRAINING,  # whether records are scored as they are trained
    LOSS,  # its kind
    CLASS_WEIGHTS,
    NUM_CLASS_WEIGHTS,
    # Of one call: N records from these addresses on. Weights may be 0, for 1 each; so may keys where nothing is random.
    NUM_RECORDS,
    CLASSES,
    NUMBERS,
    WEIGHTS,
    KEYS,
    OUTPUTS,
    LOSSES,
    SKIPPED,
    ALL_DIALS,  # a row for each update, or one for all
    NUM_ALL_DIALS,
    # Of one block of K records of the first layer: W₀x, B₀x (0 without momentum), xᵢ·xⱼ, δ, coefficients.
    BLOCK_SIZE,  # 0 for the direct form
    FROM_WEIGHTS,
    FROM_BUFFER,
    PRODUCTS,
    DELTA,
    COEFFICIENTS,
    HAS_ROWS,  # whether there are embeddings or sparse rows, for which weights are better asked for early
) = range(40)
NUM_TABLES = 40
NUM_INPUT_COLUMNS = 4
_FLOATS, _BYTES = np.zeros(0), np.zeros(0, np.uint8)


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
    """(J, 4): value, address of the first record, bytes from one record to the next, 0; of sparse rows their numbers
    take the place of records, and the last is the address of where each row begins among them.
    """
    return matrix(network[INPUTS], network[NUM_INPUTS], NUM_INPUT_COLUMNS, network)


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


@inlined
def losses_of(network: Any, like: Any) -> Any:
    """(N,)."""
    return view(network[LOSSES], network[NUM_RECORDS], like)


@inlined
def outputs_of(network: Any, n: Any, size: Any, like: Any) -> Any:
    """(C,) of record n."""
    return view(network[OUTPUTS] + n * size * like.itemsize, size, like)


@inlined
def skipped_of(network: Any) -> Any:
    """(N,) whether a record was left out, as bytes."""
    return view(network[SKIPPED], network[NUM_RECORDS], _BYTES)


@inlined
def weight_of(network: Any, n: Any, like: Any) -> Any:
    """The weight of record n."""
    return view(network[WEIGHTS], network[NUM_RECORDS], like)[n] if network[WEIGHTS] != 0 else like.dtype.type(1)


@inlined
def key_of(network: Any, n: Any) -> Any:
    """The key of what is random in record n."""
    return view(network[KEYS], network[NUM_RECORDS], network)[n] if network[KEYS] != 0 else np.int64(0)


@inlined
def block_matrix(address: Any, network: Any, size: Any, like: Any) -> Any:
    """(K, size) of a block; empty where there is none."""
    return matrix(address, network[BLOCK_SIZE], size, like)


@inlined
def coefficients_of(network: Any, num_more: Any) -> Any:
    """(2, K + more) of W and of B."""
    return matrix(network[COEFFICIENTS], 2, network[BLOCK_SIZE] + num_more, _FLOATS)
