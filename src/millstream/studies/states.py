"""Two states compared, bit for bit, by a digest for each of their parts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from millstream.contracts import State

__all__ = ["CLOCKS", "differences", "digests"]

CLOCKS = ("phase.seconds",)  # the parts that are readings of a clock


def digests(state: State, left_out: Collection[str] = CLOCKS) -> dict[str, str]:
    """SHA-256 of every tensor and of all else that a state holds, by its path; without the paths ``left_out``.

    >>> list(digests({"a": [1, 2.0], "phase": {"seconds": 3.0}}))
    ['a', 'a.0', 'a.1']
    """
    return dict(_leaves(state, "", left_out))


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names under which two are not the same.

    >>> differences(digests({"a": [1, 2.0]}), digests({"a": [1, 2.5]}))
    ['a.1']
    """
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _leaves(value: Any, path: str, left_out: Collection[str]) -> Iterator[tuple[str, str]]:
    if path in left_out:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), left_out)
    elif isinstance(value, list | tuple):
        yield path, str(len(value))
        for place, item in enumerate(value):
            yield from _leaves(item, f"{path}.{place}", left_out)
    else:
        yield path, hashlib.sha256(_bytes(value)).hexdigest()


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor) and value.layout is torch.sparse_csr:
        return b"".join(_bytes(part) for part in (value.crow_indices(), value.col_indices(), value.values()))
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return f"{value.dtype} {tuple(value.shape)} ".encode() + flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    return repr(value.item() if isinstance(value, np.generic) else value).encode()  # as a checkpoint gives it back
