"""Categories to ids: from a vocabulary, or hashed.

This file knows Arrow columns and ranges of ids; a value stands for its text (see ``columns.as_text``).

Shapes: N records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.features.columns import as_text, distinct
from millstream.hashing import hash_texts

__all__ = ["hashed_ids", "vocabulary_ids"]

Ids = npt.NDArray[np.int64]


def vocabulary_ids(column: pa.Array, name: str, values: tuple[str, ...], first: int) -> Ids:
    """(N,) ids: ``first`` + the place among ``values``, one more for all other values, 0 where it is missing.

    >>> vocabulary_ids(pa.array(["b", "c", None]), "letter", ("a", "b"), first=1).tolist()
    [2, 3, 0]
    """
    codes, texts = distinct(column, name)
    known = as_text(pa.array(values, texts.type), name)
    places = pc.index_in(texts, value_set=known).fill_null(len(values)).to_numpy(zero_copy_only=False)
    return _pick(places.astype(np.int64) + first, codes)


def hashed_ids(column: pa.Array, name: str, *, slots: int, seed: int, first: int) -> Ids:
    """(N,) ids in ``first`` … ``first + slots − 1``, 0 where it is missing.

    >>> ids = hashed_ids(pa.array([1, 2, 1]), "code", slots=1000, seed=1, first=1)
    >>> bool(ids[0] == ids[2]), bool(ids[0] == ids[1])
    (True, False)
    """
    codes, texts = distinct(column, name)
    slot = (hash_texts(texts, seed) % np.uint64(slots)).astype(np.int64)
    return _pick(slot + first, codes)


def _pick(ids: Ids, codes: Ids) -> Ids:
    return np.append(ids, 0)[codes]  # code −1 takes the last, which is 0
