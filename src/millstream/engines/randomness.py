"""Randomness keyed by (seed, run position): the same record draws the same numbers wherever a run was cut or resumed.

Dropout masks are hashes of the record's key, the call and the element: equal in every engine and at every update size.
Torch's other random layers draw from the default generator. It is re-seeded before each update and given back as it
was, so an engine has no random state to save and disturbs nobody else's.

Shapes: B records of one update, E elements of one record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from millstream.engines.kernels.masks import CALL_STEP, FIRST_FACTOR, SECOND_FACTOR

__all__ = ["keep", "kept_generators", "key", "keys", "scale_of", "threshold_of"]

Words: TypeAlias = npt.NDArray[np.uint32]

_MASK = (1 << 64) - 1
_PER_SEED, _PER_POSITION = 0xD1342543DE82EF95, 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Arrays without dimensions: NumPy takes three times as long to look at a scalar as it works on 256 elements.
_PER_POSITION_64, _FIRST_64, _SECOND_64 = (np.array(number, np.uint64) for number in (_PER_POSITION, _FIRST, _SECOND))
_27_64, _30_64, _31_64 = (np.array(number, np.uint64) for number in (27, 30, 31))
_FIRST_32, _SECOND_32 = np.array(FIRST_FACTOR), np.array(SECOND_FACTOR)
_15_32, _16_32 = (np.array(number, np.uint32) for number in (15, 16))


def key(seed: int, position: int) -> int:
    """A 32-bit key of the two, well mixed (the finaliser of splitmix64, Steele et al. 2014).

    >>> key(0, 1) != key(1, 0)
    True
    """
    z = (seed * _PER_SEED + position * _PER_POSITION + _PER_POSITION) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return (z ^ (z >> 31)) & 0xFFFFFFFF


def keys(seed: int, positions_B: npt.NDArray[np.int64]) -> Words:
    """(B,) ``key`` of each position.

    >>> keys(7, np.array([5, 6])).tolist() == [key(7, 5), key(7, 6)]
    True
    """
    if len(positions_B) == 1:  # where Python is faster
        return np.array([key(seed, int(positions_B[0]))], np.uint32)
    start = (seed * _PER_SEED + _PER_POSITION) & _MASK
    z = positions_B.astype(np.uint64) * _PER_POSITION_64
    z += np.array(start, np.uint64)
    z ^= z >> _30_64
    z *= _FIRST_64
    z ^= z >> _27_64
    z *= _SECOND_64
    z ^= z >> _31_64
    return z.astype(np.uint32)


def threshold_of(p: float) -> int:
    """The 32-bit number below which an element is dropped. At p = 1 one number is left over, and its scale is 0."""
    return min(int(p * 2**32), 2**32 - 1)


def scale_of(p: float, dtype: npt.DTypeLike) -> float:
    """What torch multiplies a kept element by: 1 / (1 − p), divided in the inputs' own precision; 0 at p = 1.

    >>> scale_of(0.5, np.float32), scale_of(1.0, np.float32)
    (2.0, 0.0)
    """
    return 0.0 if p == 1 else float(np.divide(1, 1 - p, dtype=dtype))


def keep(keys_B: Words, call: int, num_elements: int, p: float) -> npt.NDArray[np.bool_]:
    """(B, E) which elements dropout keeps: the twin in NumPy of ``kernels.masks.drop``.

    ``call`` counts the dropout calls of the forward pass from 0, ``num_elements`` is the elements of one record in C
    order, and ``p`` the probability that one is dropped.

    >>> keep(keys(0, np.arange(2)), call=0, num_elements=3, p=1.0).any()
    np.False_
    """
    if p == 1:
        return np.zeros((len(keys_B), num_elements), np.bool_)
    first_B = keys_B + np.array(call * int(CALL_STEP) & 0xFFFFFFFF, np.uint32)
    numbers_BE = np.arange(num_elements, dtype=np.uint32) + first_B[:, None]
    numbers_BE ^= numbers_BE >> _16_32
    numbers_BE *= _FIRST_32
    numbers_BE ^= numbers_BE >> _15_32
    numbers_BE ^= keys_B[:, None]
    numbers_BE *= _SECOND_32
    numbers_BE ^= numbers_BE >> _16_32
    kept: npt.NDArray[np.bool_] = numbers_BE >= np.array(threshold_of(p), np.uint32)
    return kept


@contextmanager
def kept_generators(device: torch.device) -> Iterator[list[torch.Generator]]:
    """The generators that a model on this device draws from; on leaving they are as they were."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
