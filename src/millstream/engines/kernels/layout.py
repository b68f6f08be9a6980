"""The tables that a compiled model consists of: what their rows and columns mean.

A model is a tape of operations over values. A value is a vector at an address, another for each of two records in turn
(what record t left pending is applied while record t + 1 goes forward), with its slope beside it: the derivative of the
loss by the value. A parameter is a matrix at an address with up to three matrices of optimizer state.
"""

__all__ = [
    *(
        "ACTIVATION",
        "ADD",
        "ADD_PARAMETER",
        "AVERAGE_POOL",
        "CONVOLUTION",
        "COPY",
        "DROPOUT",
        "EMBEDDING",
        "LAYER_NORM",
    ),
    *("LINEAR", "LINEAR_OF_COLUMNS", "MAX_POOL", "MULTIPLY", "MULTIPLY_PARAMETER", "RMS_NORM", "SUM", "TAKE"),
    *("BIAS", "CODE", "EXTRA", "INPUT", "INPUT_SLOPE", "KIND", "NUM_OPERATION_COLUMNS", "OTHER", "OTHER_SLOPE"),
    *("OUTPUT", "SCRATCH", "SECOND_SCRATCH", "WEIGHT"),
    *("COLUMNS", "FIRST", "FORM", "GRADIENT", "NUM_PARAMETER_COLUMNS", "PLACE", "ROWS", "SECOND", "THIRD"),
    *("DENSE", "FROZEN", "OUTER", "SPARSE", "VECTOR"),
    *("ADDS", "OVERWRITES", "UNWANTED"),
    *("BAG_MEAN", "BAG_SUM", "EACH"),
]

# Kinds of operations.
(
    LINEAR,
    ACTIVATION,
    DROPOUT,
    LAYER_NORM,
    RMS_NORM,
    ADD,
    COPY,
    ADD_PARAMETER,
    EMBEDDING,
    CONVOLUTION,
    MAX_POOL,
    AVERAGE_POOL,
    MULTIPLY,
    MULTIPLY_PARAMETER,
    TAKE,
    SUM,
    LINEAR_OF_COLUMNS,  # of a sparse row
) = range(17)

# Columns of an operation. INPUT, OTHER and OUTPUT are values; WEIGHT and BIAS parameters; −1: there is none.
# Of an embedding INPUT is its ids and OTHER their weights; of a Linear of a sparse row its numbers, and their columns.
(
    KIND,
    INPUT,
    OTHER,
    OUTPUT,
    WEIGHT,
    BIAS,
    INPUT_SLOPE,
    OTHER_SLOPE,
    CODE,  # activation, number of the dropout call, how an embedding sums, number of vectors in a norm, length of a sum
    EXTRA,  # the id that stands for nothing, what a draw must reach to be kept, whether padding counts in an average
    SCRATCH,
    SECOND_SCRATCH,
) = range(12)
NUM_OPERATION_COLUMNS = 12

# What the backward pass does with the slope of a value that an operation reads.
UNWANTED, OVERWRITES, ADDS = -1, 0, 1

# Columns of a parameter: address, addresses of optimizer state, shape, form of its gradient, address of a dense one.
PLACE, FIRST, SECOND, THIRD, ROWS, COLUMNS, FORM, GRADIENT = range(8)
NUM_PARAMETER_COLUMNS = 8

# Forms of a gradient: none; δ xᵀ of one Linear, applied later; δ itself, applied later; a matrix; some rows or columns.
FROZEN, OUTER, VECTOR, DENSE, SPARSE = range(5)

# How an embedding puts its rows together.
EACH, BAG_SUM, BAG_MEAN = range(3)
