"""Texts to hashed ids of their words and n-grams.

A word is a run of letters, marks, digits and underscores of any script, in lower case. This file knows Arrow strings;
it knows no fields. What is a letter follows the Unicode tables that come with Arrow, so a character newer than these
may be split differently by another version.

Shapes: N records, T words, G n-gram sizes, K ids a record.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.hashing import Words, combine, hash_texts, lengths

__all__ = ["word_ids"]

_NO_WORD = r"[^\pL\pM\pN_]+"


def word_ids(
    texts: pa.Array, *, slots: int, ngrams: int, max_tokens: int, seed: int, first: int = 1
) -> npt.NDArray[np.int64]:
    """(N, K = max_tokens) ids in ``first`` … ``first + slots − 1``, then zeros.

    They are in the order of the words; after each word come the n-grams that begin with it. A text with more than
    ``max_tokens`` of them keeps the first.

    >>> word_ids(pa.array(["to be", None]), slots=9, ngrams=1, max_tokens=3, seed=1).astype(bool).tolist()
    [[True, True, False], [False, False, False]]
    """
    result = np.zeros((len(texts), max_tokens), np.int64)
    words, records = _words(texts, max_tokens + ngrams)
    hashes = hash_texts(words, seed)
    grams, whole = _grams(hashes, records, ngrams)
    hashes, records = grams[whole], np.broadcast_to(records[:, None], whole.shape)[whole]
    places = _places(records)
    kept = places < max_tokens
    slot = (hashes[kept] % np.uint64(slots)).astype(np.int64)
    result[records[kept], places[kept]] = slot + first
    return result


def _words(texts: pa.Array, most: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The words of all texts in a row, at least the first ``most`` of each, and the record of each."""
    # One split more for the empty piece before a text that begins with a separator; the last piece is the unsplit rest.
    pieces = pc.split_pattern_regex(pc.utf8_lower(texts), _NO_WORD, max_splits=most + 1)
    counts = pieces.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    records = np.repeat(np.arange(len(texts)), counts)
    words = pieces.flatten()
    kept = (lengths(words) > 0) & (_places(records) <= most)
    return words.filter(pa.array(kept)), records[kept]


def _places(records: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each entry's place among those of its record; ``records`` never decreases."""
    counts = np.bincount(records)
    return np.arange(len(records)) - (np.cumsum(counts) - counts)[records]


def _grams(
    hashes: Words, records: npt.NDArray[np.int64], ngrams: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """(T, G) hashes of the n-grams that begin with each word, and (T, G) whether they end within the record."""
    grams = np.zeros((len(hashes), ngrams), np.uint64)
    whole = np.zeros((len(hashes), ngrams), bool)
    grams[:, 0], whole[:, 0] = hashes, True
    for size in range(1, min(ngrams, len(hashes))):
        grams[:-size, size] = combine(grams[:-size, size - 1], hashes[size:])
        whole[:-size, size] = records[:-size] == records[size:]
    return grams, whole
