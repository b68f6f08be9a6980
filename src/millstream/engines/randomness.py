"""Randomness keyed by (seed, run position): the same record draws the same numbers wherever a run was cut or resumed.

Torch's own layers draw from the default generator. It is re-seeded before each update and given back as it was, so an
engine has no random state to save and disturbs nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["kept_generators", "key"]

_MASK = (1 << 64) - 1


def key(seed: int, position: int) -> int:
    """A 32-bit key of the two, well mixed (the finaliser of splitmix64, Steele et al. 2014).

    >>> key(0, 1) != key(1, 0)
    True
    """
    z = (seed * 0xD1342543DE82EF95 + position * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) & 0xFFFFFFFF


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
