"""Stable hashes of numbers and texts: the same in every process, on every machine, with every version of every library.

    h(bytes) = mix(seed + Σ_i (byte_i + 1) · P^i)   modulo 2^64,   mix being splitmix64's finaliser

This file knows Arrow strings and 64-bit numbers. It works on the byte buffers of a whole array at once; the sum over
each text is one segment of np.add.reduceat over bytes times powers counted from the start of the block, which the
inverse power of the text's own start then brings back to zero.

Shapes: T texts.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Words", "combine", "hash_texts", "lengths", "mix", "seed_of"]

_MASK = (1 << 64) - 1
_POWER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_POWER, -1, 1 << 64)
_BLOCK = (1 << 18) - 1  # bytes hashed at once

Words = npt.NDArray[np.uint64]


def seed_of(name: str) -> int:
    """The seed of a column, so that equal texts of two columns do not always collide.

    >>> seed_of("city") == seed_of("city"), seed_of("city") == seed_of("town")
    (True, False)
    """
    return int(hash_texts(pa.array([name], pa.string()), 0)[0])


def hash_texts(texts: pa.Array, seed: int) -> Words:
    """(T,) uint64 hashes of a string or large_string array; a null hashes like its bytes, usually the empty text.

    >>> hash_texts(pa.array(["a", "b", "a"]), 7).tolist()[::2] == [hash_texts(pa.array(["a"]), 7).item()] * 2
    True
    """
    offsets, data = _buffers(texts)
    sums = np.zeros(len(texts), np.uint64)
    first = 0
    while first < len(texts):
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), len(texts))  # a single text may be longer than a block
        sums[first:last] = _polynomials(offsets[first : last + 1], data)
        first = last
    return mix(sums + np.uint64(seed & _MASK))


def combine(left: Words, right: Words) -> Words:
    """The hash of a pair from the hashes of its parts, which is not that of the pair turned round."""
    return mix(left * np.uint64(_POWER) + right)


def lengths(texts: pa.Array) -> npt.NDArray[np.int64]:
    """(T,) bytes of each text."""
    return np.diff(_buffers(texts)[0])


def _buffers(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The (T + 1,) offsets of a slice of texts into its bytes, and those bytes."""
    if not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, width, len(texts) + 1, texts.offset * np.dtype(width).itemsize)
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return offsets.astype(np.int64), data


def _polynomials(offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> Words:
    """Σ (byte_i + 1) · P^i of each text, 0 for an empty one."""
    start, end = int(offsets[0]), int(offsets[-1])
    sums = np.zeros(len(offsets) - 1, np.uint64)
    full = np.flatnonzero(np.diff(offsets))
    if not full.size:
        return sums
    size = 1 << (end - start).bit_length()
    terms = data[start:end].astype(np.uint64)
    terms += np.uint64(1)
    terms *= _powers(_POWER, size)[: end - start]
    starts = offsets[full] - start
    sums[full] = np.add.reduceat(terms, starts) * _powers(_INVERSE, size)[starts]
    return sums


@functools.lru_cache(maxsize=64)
def _powers(base: int, size: int) -> Words:
    """base^0, base^1, … base^(size − 1) modulo 2^64."""
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    powers = np.multiply.accumulate(factors)
    powers.flags.writeable = False
    return powers


def mix(words: Words) -> Words:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): each bit of the input changes half of the output's."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
