"""Columns of numbers, and of lists of numbers, to dense blocks; and what is done about numbers that are not finite.

This file knows Arrow columns and the policy; it knows no statistics. Missing numbers are 0 in a block.

Shapes: N records, D columns, E elements of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.errors import DataError
from millstream.features.columns import find, numbers
from millstream.features.numbers import LIMIT
from millstream.features.refusals import Refusals

__all__ = ["NonFinite", "list_block", "list_shape", "number_block"]

NonFinite: TypeAlias = Literal["error", "skip", "impute"]
Mask = npt.NDArray[np.bool_]

_FIX = "fix the record, or choose nonfinite='impute' or nonfinite='skip'"


def number_block(
    batch: pa.RecordBatch, names: Sequence[str], nonfinite: NonFinite, refusals: Refusals
) -> tuple[npt.NDArray[np.float64], Mask | None]:
    """(D, N) numbers of these columns, and (D, N) False where one is missing (None: nowhere).

    >>> batch = pa.RecordBatch.from_pydict({"a": [1, None], "b": [0.5, 2.0]})
    >>> number_block(batch, ["a", "b"], "error", Refusals())[0].tolist()
    [[1.0, 0.0], [0.5, 2.0]]
    """
    block = np.empty((len(names), batch.num_rows))
    valid: Mask | None = None
    whole = True  # only whole numbers, which are always finite
    for place, name in enumerate(names):
        values, there = numbers(find(batch, name), name, refusals)
        block[place] = values
        whole = whole and values.dtype.kind != "f"
        if there is not None:
            valid = np.ones(block.shape, bool) if valid is None else valid
            valid[place] = there
    if whole or not block.size or _all_finite(block):
        return block, valid
    bad = ~(np.abs(block) < LIMIT)
    if nonfinite == "impute":
        valid = ~bad if valid is None else valid & ~bad
    else:
        for place, name in enumerate(names):
            _refuse(np.flatnonzero(bad[place]), name, block[place], nonfinite, refusals)
    block[bad] = 0.0
    return block, valid


def list_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """The shape that a fixed-size list type or tensor type states; None when it states none.

    >>> list_shape(pa.list_(pa.list_(pa.uint8(), 28), 28))
    (28, 28)
    """
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape) if kind.permutation in (None, list(range(len(kind.shape)))) else None
    if not pa.types.is_fixed_size_list(kind):
        return None
    inner = list_shape(kind.value_type) if pa.types.is_fixed_size_list(kind.value_type) else ()
    return None if inner is None else (kind.list_size, *inner)


def list_block(
    column: pa.Array, name: str, size: int, scale: float, nonfinite: NonFinite, refusals: Refusals
) -> npt.NDArray[np.float32]:
    """(N, E = size) float32 elements times ``scale``; a list of another length is refused, a missing one is zeros.

    >>> list_block(pa.array([[1, 2], [3, 4]]), "pixels", 2, 0.5, "error", Refusals()).tolist()
    [[0.5, 1.0], [1.5, 2.0]]
    """
    elements, lengths = _flatten(column, name)
    if pa.types.is_string(elements.type) or pa.types.is_large_string(elements.type):
        raise _no_lists(name, column.type)
    fits = lengths == size
    values, valid = numbers(elements, name, refusals)
    block = np.empty((len(column), size), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if fits.all():
            np.copyto(block, values.reshape(block.shape), casting="unsafe")
        else:
            block[fits] = values[np.repeat(fits, lengths)].reshape(-1, size)
            block[~fits] = 0.0
            _refuse_length(column, name, size, lengths, refusals)
    if valid is not None:
        there = valid[np.repeat(fits, lengths)].reshape(-1, size)
        block[fits] = np.where(there, block[fits], np.float32(0))
    if values.dtype.kind == "f" and not np.isfinite(block).all():
        bad = ~np.isfinite(block)
        if nonfinite != "impute":
            rows = np.flatnonzero(bad.any(axis=1))
            _refuse(rows, name, block[np.arange(len(block)), bad.argmax(axis=1)], nonfinite, refusals)
        block[bad] = 0.0
    if scale != 1.0:
        block *= np.float32(scale)
    return block


def _all_finite(block: npt.NDArray[np.float64]) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(block.max() < LIMIT and block.min() > -LIMIT)


def _refuse(
    rows: npt.NDArray[Any], name: str, values: npt.NDArray[Any], nonfinite: NonFinite, refusals: Refusals
) -> None:
    refusals.add(
        rows,
        lambda row: f"column {name!r} with {values[row]:g}",
        wanted="a finite number",
        do=_FIX,
        stops=nonfinite == "error",
    )


def _refuse_length(column: pa.Array, name: str, size: int, lengths: npt.NDArray[np.int64], refusals: Refusals) -> None:
    there = column.is_valid().to_numpy(zero_copy_only=False)
    refusals.add(
        np.flatnonzero(there & (lengths != size)),
        lambda row: f"column {name!r} with {lengths[row]} numbers",
        wanted=f"{size}",
        do="make the lists equally long, change the field's shape, or set on_error='quarantine'",
    )


def _flatten(column: pa.Array, name: str) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The innermost elements of all lists in a row, and (N,) how many each record has."""
    kind = column.type
    if pa.types.is_null(kind):
        return pa.array([], pa.float32()), np.zeros(len(column), np.int64)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise _no_lists(name, kind)
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    elements = column.flatten()
    if not pa.types.is_nested(elements.type):
        return elements, counts
    elements, inner = _flatten(elements, name)
    running = np.append(0, np.cumsum(inner))
    ends = np.cumsum(counts)
    return elements, running[ends] - running[ends - counts]


def _no_lists(name: str, kind: pa.DataType) -> DataError:
    return DataError(
        got=f"column {name!r} of type {kind}",
        wanted="lists of numbers",
        do=f"declare it as another kind ({name}=ignore leaves it out)",
    )
