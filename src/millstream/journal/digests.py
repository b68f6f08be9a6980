"""One salted digest for each record: it says what the record was, and nothing of it once its salt is gone.

    digest = SHA-256(salt ‖ row)[:16]

A row is the same bytes however the columns are stored: sliced, with offsets of their own, with anything under a null.
Fixed parts come first (whether it is null, the number or the length), then what has a length of its own. This file
knows Arrow columns; it knows no journal.

Shapes: N records, W bytes of the fixed part, L values of all lists together.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError

__all__ = ["DIGEST_BYTES", "SALT_BYTES", "digest_rows", "digest_texts"]

SALT_BYTES = DIGEST_BYTES = 16
_BLOCK_BYTES = 1 << 17  # of rows that are put together at a time: what stays in a near cache
_WIDE = {pa.large_string().id, pa.large_binary().id}
_TEXTS = {pa.string().id, pa.binary().id, *_WIDE}
_LISTS = {pa.list_(pa.null()).id, pa.large_list(pa.null()).id, pa.list_(pa.null(), 1).id}

Bytes: TypeAlias = npt.NDArray[np.uint8]
Stream: TypeAlias = tuple[Bytes, npt.NDArray[np.int64]]  # bytes, and the (N + 1,) places at which each row's begin
Parts: TypeAlias = tuple[list[Bytes], list[Stream]]  # (N, w) fixed parts, and streams


def digest_rows(batch: pa.RecordBatch, salts: bytes) -> bytes:
    """N digests of 16 bytes, one after another, of a batch and N salts of 16 bytes.

    >>> whole = pa.record_batch({"x": [1, None, 3], "text": ["a", "", None]})
    >>> digest_rows(whole, b"s" * 48)[16:] == digest_rows(whole.slice(1), b"s" * 32)
    True
    """
    num = len(batch)
    if not num:
        return b""
    fixed: list[Bytes] = [np.frombuffer(salts, np.uint8).reshape(num, SALT_BYTES)]
    streams: list[Stream] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        more, moving = _parts(column, name)
        fixed += more
        streams += moving
    while streams and _is_even(streams[0][1]):  # all rows have as many bytes: these lie as the rows of a matrix
        data, _ = streams.pop(0)
        fixed.append(data.reshape(num, -1))
    pieces = []
    for data, places in streams:
        view, ends = np.ascontiguousarray(data).data, places.tolist()
        pieces.append([view[begin:end] for begin, end in itertools.pairwise(ends)])
    return _hashed(fixed, pieces)


def _hashed(fixed: list[Bytes], pieces: list[list[memoryview]]) -> bytes:
    """The digests of rows: their part of each matrix, then their piece of each stream. Some rows at a time."""
    num, width = len(fixed[0]), sum(part.shape[1] for part in fixed)
    step = max(_BLOCK_BYTES // width, 1)
    block, row = np.empty((min(step, num), width), np.uint8), struct.Struct(f"{width}s")
    sha256, digests = hashlib.sha256, list[bytes]()
    for first in range(0, num, step):
        end = min(first + step, num)
        rows = np.concatenate([part[first:end] for part in fixed], axis=1, out=block[: end - first])
        heads = row.iter_unpack(rows.data)
        if pieces:
            more = (each[first:end] for each in pieces)
            texts = map(b"".join, zip((head for (head,) in heads), *more, strict=True))
            digests += [sha256(text).digest() for text in texts]
        else:
            digests += [sha256(head).digest() for (head,) in heads]
    whole = np.frombuffer(b"".join(digests), np.uint8).reshape(num, -1)
    return whole[:, :DIGEST_BYTES].tobytes()


def digest_texts(texts: list[bytes], salts: bytes) -> bytes:
    """The same of plain bytes."""
    salted = [salts[SALT_BYTES * i : SALT_BYTES * (i + 1)] + text for i, text in enumerate(texts)]
    return b"".join(hashlib.sha256(one).digest()[:DIGEST_BYTES] for one in salted)


def _is_even(places: npt.NDArray[np.int64]) -> bool:
    """All rows have as many bytes."""
    if len(places) == 2:
        return True
    lengths = np.diff(places)
    return bool((lengths == lengths[0]).all())


def _parts(array: pa.Array, name: str) -> Parts:
    kind = array.type
    number = kind.id
    flags = [np.zeros((len(array), 1), np.uint8)]
    if array.null_count:
        flags = [_bytes_of(array.is_null())]
    if number in _TEXTS:
        return _of_bytes(array, flags)
    if pa.types.is_dictionary(kind):
        return _parts(array.dictionary_decode(), name)
    if pa.types.is_null(kind):
        return flags, []
    if pa.types.is_struct(kind):
        return _join(flags, [_parts(child, name) for child in array.flatten()])
    if pa.types.is_boolean(kind):
        return [*flags, _bytes_of(array.fill_null(False))], []
    if number in _LISTS:
        return _of_lists(array, flags, name)
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        return [*flags, _values(array)], []
    raise DataError(
        got=f"column {name!r} of type {kind}",
        wanted="numbers, times, texts, bytes, or lists and structs of them",
        do="cast the column before it is appended",
    )


def _bytes_of(truths: pa.Array) -> Bytes:
    return np.asarray(truths.to_numpy(zero_copy_only=False)).view(np.uint8).reshape(-1, 1)


def _join(flags: list[Bytes], children: list[Parts]) -> Parts:
    return flags + [one for fixed, _ in children for one in fixed], [one for _, moving in children for one in moving]


def _values(array: pa.Array) -> Bytes:
    """(N, w) bytes of values of one width, zeros under a null."""
    width, num = array.type.bit_width // 8, len(array)
    data = array.buffers()[1]
    if data is None or not num:
        return np.zeros((num, width), np.uint8)
    values = np.frombuffer(data, np.uint8, num * width, array.offset * width).reshape(num, width)
    if array.null_count:
        values = np.where(array.is_null().to_numpy(zero_copy_only=False)[:, None], np.uint8(0), values)
    return values


def _of_bytes(array: pa.Array, flags: list[Bytes]) -> Parts:
    if array.null_count:
        lengths = _lengths(pc.binary_length(array))
        places = _places(lengths)
        array = array.drop_null()
    width = np.dtype(np.int64 if array.type.id in _WIDE else np.int32)
    _, starts, data = array.buffers()
    ends = np.zeros(1, width)
    if len(array) and starts:
        ends = np.frombuffer(starts, width, len(array) + 1, array.offset * width.itemsize)
    begin, end = int(ends[0]), int(ends[-1])
    if len(flags[0]) == len(array):  # no nulls
        places = ends.astype(np.int64) - begin
        lengths = np.diff(places)
    values = np.frombuffer(data, np.uint8, end - begin, begin) if end > begin else np.zeros(0, np.uint8)
    return [*flags, lengths.view(np.uint8).reshape(-1, 8)], [(values, places)]


def _of_lists(array: pa.Array, flags: list[Bytes], name: str) -> Parts:
    """A list's values are rows of their own, which lie one after another: their parts become streams."""
    lengths = _lengths(pc.list_value_length(array))
    places = _places(lengths)
    fixed, streams = _parts(array.flatten(), name)
    moving = [(part.reshape(-1), places * part.shape[1]) for part in map(np.ascontiguousarray, fixed)]
    moving += [(data, inner[places]) for data, inner in streams]
    return [*flags, lengths.view(np.uint8).reshape(-1, 8)], moving


def _lengths(lengths: pa.Array) -> npt.NDArray[np.int64]:
    filled: npt.NDArray[np.int64] = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return filled


def _places(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    places = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=places[1:])
    return places
