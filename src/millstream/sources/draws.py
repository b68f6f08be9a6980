"""Draws that depend on a key and a number only, never on what was drawn before: hashes, uniforms, permutations.

All are vectorised, cost no memory that grows with the range, and do not change with NumPy's versions. This file knows
no sources. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), the permutation a Feistel
network that walks until it lands in the range (Black and Rogaway, 2002).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.hashing import Words, hash_texts, mix

__all__ = ["hash_column", "key_of", "permute", "uniform"]

_ROUNDS = 8
_MASK = (1 << 64) - 1


def key_of(*parts: int) -> int:
    """One 64-bit key from whole numbers, each of which changes all of it."""
    key = 0x243F6A8885A308D3
    for part in parts:
        key = int(mix(np.array([(key ^ part) & _MASK], dtype=np.uint64))[0])
    return key


def uniform(key: int, numbers: npt.NDArray[np.int64] | Words) -> npt.NDArray[np.float64]:
    """(N,) draws from [0, 1), one for each number."""
    words = mix(numbers.astype(np.uint64) ^ np.uint64(key))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(key: int, places: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """(N,) numbers below ``length``: where a permutation of ``range(length)`` sends each of ``places``.

    >>> sorted(permute(key_of(7), np.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    bits = max(2, (length - 1).bit_length())
    widths = (bits // 2, bits - bits // 2)
    keys = [np.uint64(key_of(key, turn)) for turn in range(_ROUNDS)]
    words = _network(places.astype(np.uint64), keys, widths)
    outside = np.flatnonzero(words >= length)
    while len(outside):
        words[outside] = _network(words[outside], keys, widths)
        outside = outside[words[outside] >= length]
    return words.astype(np.int64)


def hash_column(column: pa.Array) -> Words:
    """(N,) words that depend on the values only; equal values have equal words. A missing value counts as 0 or "".

    Numbers, times and booleans go by their bits, everything else by its text.
    """
    kind = column.type
    if pa.types.is_floating(kind):
        numbers = pc.cast(column, pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        return np.asarray(numbers.view(np.uint64))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_timestamp(kind):
        numbers = pc.cast(column, pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        return np.asarray(numbers.astype(np.uint64))
    return hash_texts(pc.cast(column, pa.string()).fill_null(""), 0)


def _network(words: Words, keys: list[np.uint64], widths: tuple[int, int]) -> Words:
    """One pass of an unbalanced Feistel network over words of ``sum(widths)`` bits: a permutation of them."""
    low, high = widths
    right, left = words & np.uint64((1 << low) - 1), words >> np.uint64(low)
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & np.uint64((1 << high) - 1))
        low, high = high, low
    return (left << np.uint64(low)) | right
