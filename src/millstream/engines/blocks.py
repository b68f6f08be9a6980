"""One call of the kernels: records at addresses; and the first layer in blocks of records where that pays.

A block is three to five matrix products, and the kernel for what is between; see ``kernels.blocks`` for the algebra.

Shapes: N records, K records of a block, C outputs, H outputs of the first layer.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from millstream.engines.criterion import Labels
from millstream.engines.kernels import blocks, layout, learning, steps, tables
from millstream.engines.program import ALIGNMENT, Bound, Program

__all__ = ["Blocks", "Call"]

_BLOCK = 32
_USUAL_CACHE = 512 * 1024  # bytes, where the machine does not say


@functools.cache
def cache_size() -> int:
    """Bytes of the second-level cache of a core (Linux: /sys/devices/system/cpu/cpu0/cache)."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(text.rstrip("KM")) * (1024**2 if text.endswith("M") else 1024)
    except (OSError, ValueError):
        return _USUAL_CACHE


@dataclasses.dataclass(slots=True)
class Call:
    """Records and room for what comes of them, N long each, and what of the loss is no table."""

    program: Program
    inputs: list[Bound]
    labels: Labels
    keys: Tensor | None  # (N,) of what is random
    outputs: Tensor  # (N, C)
    losses: Tensor  # (N,)
    skipped: Tensor  # (N,) bool
    numbers: tuple[float, float]  # parameter and smoothing of the loss
    clip_norm: float

    def answer(self, first: int, last: int) -> None:
        """Predicts and scores records ``first`` to ``last``."""
        self._point_at(first, last)
        learning.answer(self.program.network, *self.numbers, self.program.like)

    def learn(self, first: int, last: int, dials: npt.NDArray[np.float64]) -> int:
        """Learns records ``first`` to ``last``; gives the number of updates."""
        self._point_at(first, last)
        network = self.program.network
        network[tables.ALL_DIALS], network[tables.NUM_ALL_DIALS] = dials.ctypes.data, len(dials)
        applied: int = learning.learn(network, *self.numbers, self.clip_norm, self.program.like)
        return applied

    def _point_at(self, first: int, last: int) -> None:
        network = self.program.network
        self.program.look_at(self.inputs, first)
        network[tables.NUM_RECORDS] = last - first
        for place, tensor in (
            *zip((tables.CLASSES, tables.NUMBERS, tables.WEIGHTS), self.labels, strict=True),
            *((tables.KEYS, self.keys), (tables.OUTPUTS, self.outputs)),
            *((tables.LOSSES, self.losses), (tables.SKIPPED, self.skipped)),
        ):
            network[place] = (
                0 if tensor is None else tensor.data_ptr() + first * tensor.stride(0) * tensor.element_size()
            )


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
        if first.weight.ndim != 2:
            return None
        num_out, num_in = first.weight.shape
        momentum = program.dials[0, program.number(first.weight) * steps.NUM_DIALS + steps.MOMENTUM] != 0
        num_bytes = first.weight.numel() * first.weight.element_size() * (2 if momentum else 1)
        is_large = num_in >= 128 and num_out >= 32 and num_bytes > cache_size()
        return Blocks(program, first.weight) if is_large and program.takes_blocks(first.weight) else None

    def learn(self, call: Call, first: int, last: int, dials: npt.NDArray[np.float64]) -> int:
        """Learns records ``first`` to ``last``; gives the number of updates."""
        source = self._program.tape.operations[0].source
        values = enumerate(self._program.input_values)
        place, value = next((place, value) for place, value in values if value.name == source)
        inputs = call.inputs[place].tensor[:, value.first : value.first + value.size]
        applied = 0
        for start in range(first, last, _BLOCK):
            stop = min(start + _BLOCK, last)
            rows = dials if len(dials) == 1 else dials[applied : applied + stop - start]
            applied += self._block(call, _aligned(inputs[start:stop]), start, stop, rows)
        self._program.network[tables.BLOCK_SIZE] = 0
        return applied

    def _block(self, call: Call, inputs: Tensor, start: int, stop: int, dials: npt.NDArray[np.float64]) -> int:
        weight, size, network = self._weight, stop - start, self._program.network
        momentum = dials[0, self._number * steps.NUM_DIALS + steps.MOMENTUM] != 0
        buffer = self._program.buffer(weight) if momentum else None
        from_weights, products = inputs @ weight.T, inputs @ inputs.T
        from_buffer = None if buffer is None else inputs @ buffer.T
        delta = torch.empty(size, len(weight), dtype=weight.dtype)
        coefficients = torch.zeros(2, size + blocks.NUM_COEFFICIENTS, dtype=torch.float64)
        coefficients[0, 0] = coefficients[1, 1] = 1.0
        network[tables.BLOCK_SIZE] = size
        for place, tensor in (
            *((tables.FROM_WEIGHTS, from_weights), (tables.FROM_BUFFER, from_buffer), (tables.PRODUCTS, products)),
            *((tables.DELTA, delta), (tables.COEFFICIENTS, coefficients)),
        ):
            network[place] = 0 if tensor is None else tensor.data_ptr()
        applied = call.learn(start, stop, dials)
        if applied < size:  # their δ are 0, but 0 times what is not finite is not
            inputs = inputs.masked_fill(call.skipped[start:stop, None], 0.0)
        factors = coefficients[:, blocks.NUM_COEFFICIENTS :].to(weight.dtype)
        own = float(coefficients[0, 0])
        if buffer is not None:
            blocks.combine(weight.numpy(), buffer.numpy(), coefficients.numpy())
            buffer.addmm_((delta * factors[1, :, None]).T, inputs)
            own = 1.0
        weight.addmm_((delta * factors[0, :, None]).T, inputs, beta=own)
        return applied


def _aligned(rows: Tensor) -> Tensor:
    """The same numbers where torch would have put them: a BLAS takes sums in another order at other addresses."""
    return rows.clone() if rows.data_ptr() % ALIGNMENT else rows
