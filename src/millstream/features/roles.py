"""Columns that are no features: what a record weighs, and when something of it was known.

This file knows Arrow columns; it knows no schema.

Shapes: N records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.features.columns import find, microseconds, numbers
from millstream.features.refusals import Refusals

__all__ = ["seconds", "weights"]


def weights(
    batch: pa.RecordBatch, name: str | None, labelled: bool, refusals: Refusals
) -> npt.NDArray[np.float32] | None:
    if name is None or (not labelled and name not in batch.schema.names):
        return None
    values, valid = numbers(find(batch, name), name, refusals)
    values = values.astype(np.float32)
    bad = ~(np.isfinite(values) & (values >= 0))
    if valid is not None:
        bad |= ~valid
    refusals.add(
        np.flatnonzero(bad),
        lambda row: f"weight {values[row]:g} in column {name!r}" if valid is None or valid[row] else f"no {name!r}",
        wanted="a finite weight that is not negative",
        do="fix the record, or set on_error='quarantine'",
    )
    return values


def seconds(
    batch: pa.RecordBatch, name: str | None, labelled: bool, refusals: Refusals
) -> npt.NDArray[np.float64] | None:
    if name is None or (not labelled and name not in batch.schema.names):
        return None
    instants, valid = microseconds(find(batch, name), name, refusals)
    refusals.add(
        np.flatnonzero(~valid),
        lambda _: f"no time in column {name!r}",
        wanted="a time",
        do="fix the record, or set on_error='quarantine'",
    )
    return instants / 1e6
