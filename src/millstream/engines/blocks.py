"""The first layer in blocks of records: three to five matrix products for a block, and the kernel for what is between.

See ``kernels.blocks`` for the algebra.

Shapes: N records, K records of a block, H outputs of the first layer.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from millstream.engines.kernels import blocks, layout, learning, steps
from millstream.engines.program import Program

__all__ = ["Blocks", "Call"]

_BLOCK = 32
_USUAL_CACHE = 512 * 1024  # bytes, where the machine does not say


@functools.cache
def cache_size() -> int:
    """Bytes of the second-level cache of a core (Linux, sysfs-devices-system-cpu)."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K").removesuffix("M")) * (1024**2 if text.endswith("M") else 1024)
    except (OSError, ValueError):
        return _USUAL_CACHE


@dataclasses.dataclass(slots=True)
class Call:
    """What one call of the engine hands to the kernel: inputs, labels, draws, and room for the outcome, N long each."""

    program: Program
    arrays: list[npt.NDArray[Any]]
    labels: tuple[npt.NDArray[Any], ...]  # classes, numbers, weights, keys of what is random
    outcome: tuple[npt.NDArray[Any], ...]
    rest: tuple[Any, ...]  # criterion, clip norm, modes

    def learn(self, first: int, last: int, dials: npt.NDArray[np.float64], block: tuple[Any, ...] | None = None) -> int:
        """Learns records ``first`` to ``last``; gives the number of updates."""
        program = self.program
        program.look_at([array[first:last] for array in self.arrays])
        labels = (part[first:last] for part in self.labels)
        outcome = tuple(part[first:last] for part in self.outcome)
        if block is None:
            none = self.outcome[0][:0, :0]
            block = none, none, none, none, _NO_COEFFICIENTS
        applied: int = learning.learn(*labels, program.network, dials, *self.rest, block, outcome)
        return applied


_NO_COEFFICIENTS = np.empty((2, 0))


class Blocks:
    """A large first ``Linear`` under SGD, block after block."""

    def __init__(self, program: Program, weight: nn.Parameter) -> None:
        self._program, self._weight = program, weight
        self._number = program.number(weight)

    @staticmethod
    def pay(program: Program) -> Blocks | None:
        """For weights (and momentum) that the core's own cache does not hold: those that it does are fast record by
        record. A static function of the model and the machine, never timed.
        """
        first = program.tape.operations[0]
        value = program.tape.values[first.source]
        if first.kind != layout.LINEAR or value.path is None or first.weight is None:
            return None
        if value.first or first.weight.ndim != 2:
            return None
        num_out, num_in = first.weight.shape
        momentum = program.dials[0, program.number(first.weight) * steps.NUM_DIALS + steps.MOMENTUM] != 0
        num_bytes = first.weight.numel() * first.weight.element_size() * (2 if momentum else 1)
        is_large = num_in >= 128 and num_out >= 32 and num_bytes > cache_size()
        return Blocks(program, first.weight) if is_large and program.takes_blocks(first.weight) else None

    def learn(self, call: Call, first: int, last: int, dials: npt.NDArray[np.float64]) -> int:
        """Learns records ``first`` to ``last``; gives the number of updates."""
        place = next(
            p for p, v in enumerate(self._program.input_values) if v.name == self._program.tape.operations[0].source
        )
        inputs = torch.from_numpy(call.arrays[place])
        applied = 0
        for start in range(first, last, _BLOCK):
            stop = min(start + _BLOCK, last)
            rows = dials if len(dials) == 1 else dials[applied : applied + stop - start]
            applied += self._block(call, inputs[start:stop], start, stop, rows)
        return applied

    def _block(self, call: Call, inputs: Tensor, start: int, stop: int, dials: npt.NDArray[np.float64]) -> int:
        weight, size = self._weight, stop - start
        momentum = dials[0, self._number * steps.NUM_DIALS + steps.MOMENTUM] != 0
        buffer = self._program.buffer(weight) if momentum else None
        from_buffer = inputs[:0] if buffer is None else inputs @ buffer.T
        coefficients = np.zeros((2, size + blocks.NUM_COEFFICIENTS))
        coefficients[0, 0] = coefficients[1, 1] = 1.0
        delta = torch.empty(size, len(weight), dtype=weight.dtype)
        block = (
            (inputs @ weight.T).numpy(),
            from_buffer.numpy(),
            (inputs @ inputs.T).numpy(),
            delta.numpy(),
            coefficients,
        )
        applied = call.learn(start, stop, dials, block)
        skipped = call.outcome[2][start:stop]
        if applied < size:  # their δ are 0, but 0 times what is not finite is not
            inputs = inputs.masked_fill(torch.from_numpy(skipped)[:, None], 0.0)
        factors = torch.from_numpy(coefficients[:, blocks.NUM_COEFFICIENTS :]).to(weight.dtype)
        own = float(coefficients[0, 0])
        if buffer is not None:
            blocks.combine(weight.numpy(), buffer.numpy(), coefficients)
            buffer.addmm_((delta * factors[1, :, None]).T, inputs)
            own = 1.0
        weight.addmm_((delta * factors[0, :, None]).T, inputs, beta=own)
        return applied
