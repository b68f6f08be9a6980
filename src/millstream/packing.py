"""Tensors in one block of memory that is used again, laid out as a safetensors file, and such files written.

The library's own ``save_file`` needs the tensors until the file is written, which must then be read again for a hash.
Here a copy into memory that is there already is all that the tensors are needed for; writing the copy and hashing it
are one pass, piece by piece, that lets other threads run. Files are read by the library.

    8 bytes   length of the header, little-endian
    header    JSON: {name: {"dtype", "shape", "data_offsets"}}, padded with spaces to a multiple of 8
    data      the tensors one after another, without holes, those of wide elements first
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from millstream.errors import CheckpointError

__all__ = ["Block", "pack", "write_pieces"]

Array: TypeAlias = "Tensor | npt.NDArray[Any]"

_PIECE = 4 << 20  # bytes: few turns between the threads, and each of them is short
_NAMES = {  # of the file format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Block:
    """Memory that grows when it must and is used again: a page that was touched once costs nothing the next time."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def room(self, size: int) -> Tensor:
        """(size,) bytes at a multiple of the page size; what was there before is gone."""
        if size > len(self._memory):
            whole = mmap.mmap(-1, math.ceil(size * 1.125) + mmap.PAGESIZE)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                whole.madvise(mmap.MADV_HUGEPAGE)  # the first touch is one fault for 2 MB in place of 512
            self._memory = torch.frombuffer(whole, dtype=torch.uint8)
        return self._memory[:size]


def pack(tensors: Mapping[str, Array], block: Block) -> tuple[bytes, memoryview]:
    """The header and the data of a safetensors file; the data is in ``block`` until it is used again.

    >>> header, data = pack({"a": torch.tensor([1, 2], dtype=torch.uint8)}, Block())
    >>> header[8:].decode().strip(), bytes(data)
    ('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b'\\x01\\x02')
    """
    found = [(name, _type_of(name, value), value) for name, value in tensors.items()]
    found.sort(key=lambda item: -item[1].itemsize)  # each at a multiple of its own size
    header, end = {}, 0
    for name, dtype, value in found:
        begin, end = end, end + math.prod(value.shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    room = block.room(end)
    for name, dtype, value in found:
        begin, end_of_it = header[name]["data_offsets"]
        if end_of_it > begin:
            place = room[begin:end_of_it].view(dtype).view(value.shape)
            if isinstance(value, Tensor):
                place.copy_(value.detach())
            else:
                np.copyto(place.numpy(), value)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, room.numpy().data


def write_pieces(path: Path, parts: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """Writes a new file piece by piece; its size and SHA-256, of the bytes that were handed to the system."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for piece in _pieces(parts):
            digest.update(piece)
            size += len(piece)
            while len(piece):
                piece = piece[os.write(descriptor, piece) :]
    finally:
        os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(parts: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    for part in parts:
        for begin in range(0, len(part), _PIECE):
            yield memoryview(part)[begin : begin + _PIECE]


def _type_of(name: str, value: Array) -> torch.dtype:
    """The type of the elements, or why the file format has none."""
    try:
        dtype = value.dtype if isinstance(value, Tensor) else torch.from_numpy(np.empty(0, value.dtype)).dtype
        if dtype in _NAMES:
            return dtype
    except (TypeError, ValueError):  # as torch says it of texts, objects and bytes in another order
        pass
    raise CheckpointError(
        got=f"elements of type {value.dtype} at {name!r} in the state",
        wanted="numbers that safetensors knows",
        do="keep them as another type of number, or as JSON",
    )
