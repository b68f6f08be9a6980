"""One salted digest for each record: it says what the record was, and nothing of it once its salt is gone.

    digest = SHA-256(salt ‖ row)[:16]

A row is the same bytes however the columns are stored: sliced, with offsets of their own, with anything under a null.
Fixed parts come first (whether it is null, the number or the length), then what has a length of its own. This file
knows Arrow columns; it knows no journal.

Shapes: N records, W bytes of the fixed part, L values of all lists together.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millstream.errors import DataError

__all__ = ["DIGEST_BYTES", "SALT_BYTES", "digest_rows", "digest_texts"]

SALT_BYTES = DIGEST_BYTES = 16

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
    fixed: list[Bytes] = [np.frombuffer(salts, np.uint8).reshape(num, SALT_BYTES)]
    streams: list[Stream] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        more, moving = _parts(column, name)
        fixed += more
        streams += moving
    even = [one for one in streams if _is_even(one)]
    matrix = np.concatenate([*fixed, *(data.reshape(num, -1) for data, _ in even)], axis=1) if num else fixed[0]
    rows = memoryview(matrix.tobytes())
    width = matrix.shape[1]
    sha256 = hashlib.sha256
    uneven = [
        (memoryview(data.tobytes()), places.tolist())
        for data, places in streams
        if len(data) and not _is_even((data, places))
    ]
    if not uneven:
        return b"".join([sha256(rows[i : i + width]).digest()[:DIGEST_BYTES] for i in range(0, num * width, width)])
    digests = []
    for row in range(num):
        parts = [rows[row * width : (row + 1) * width]]
        parts += [data[places[row] : places[row + 1]] for data, places in uneven]
        digests.append(sha256(b"".join(parts)).digest()[:DIGEST_BYTES])
    return b"".join(digests)


def digest_texts(texts: list[bytes], salts: bytes) -> bytes:
    """The same of plain bytes."""
    salted = [salts[SALT_BYTES * i : SALT_BYTES * (i + 1)] + text for i, text in enumerate(texts)]
    return b"".join(hashlib.sha256(one).digest()[:DIGEST_BYTES] for one in salted)


def _is_even(stream: Stream) -> bool:
    """All rows have as many bytes, and some: then they lie as the rows of a matrix."""
    lengths = np.diff(stream[1])
    return bool(len(lengths) and lengths[0] and (lengths == lengths[0]).all())


def _parts(array: pa.Array, name: str) -> Parts:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _parts(array.dictionary_decode(), name)
    flags = [np.zeros((len(array), 1), np.uint8)]
    if array.null_count:
        flags = [np.asarray(array.is_null().to_numpy(zero_copy_only=False)).view(np.uint8).reshape(-1, 1)]
    if pa.types.is_null(kind):
        return flags, []
    if pa.types.is_struct(kind):
        return _join(flags, [_parts(child, name) for child in array.flatten()])
    if pa.types.is_boolean(kind):
        return [
            *flags,
            np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False)).view(np.uint8).reshape(-1, 1),
        ], []
    if _has_bytes(kind):
        return _of_bytes(array, flags)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _of_lists(array, flags, name)
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        return [*flags, _values(array)], []
    raise DataError(
        got=f"column {name!r} of type {kind}",
        wanted="numbers, times, texts, bytes, or lists and structs of them",
        do="cast the column before it is appended",
    )


def _join(flags: list[Bytes], children: list[Parts]) -> Parts:
    return flags + [one for fixed, _ in children for one in fixed], [one for _, moving in children for one in moving]


def _has_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind)
    )


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
    lengths = _lengths(pc.binary_length(array))
    if array.null_count:
        array = array.drop_null()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    width = np.dtype(np.int64 if wide else np.int32)
    _, starts, data = array.buffers()
    places = _places(lengths)
    begin = int(np.frombuffer(starts, width, 1, array.offset * width.itemsize)[0]) if len(array) and starts else 0
    values = np.frombuffer(data, np.uint8, int(places[-1]), begin) if places[-1] else np.zeros(0, np.uint8)
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
