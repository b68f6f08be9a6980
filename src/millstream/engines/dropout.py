"""Dropout by the masks of ``randomness.keep``: a record drops the same elements whatever update it is part of.

While an engine learns, the dropout modules of its model compute what is here instead of their own ``forward``. (A mode
of ``torch.overrides`` would see the functions too, but costs an update of one record a fifth of its time.)

Shapes: B records of one update.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from millstream.contracts import Chunk
from millstream.engines.randomness import Words, keep, keys

__all__ = ["KeyedDropout"]

_SATURATION = 1.7580993408473766  # −(the least value of SELU), as torch has it


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """One of torch's dropout modules: what it drops, and what it puts there."""

    channels: bool = False  # whole channels (the second dimension) instead of elements
    num_dims: int | None = None  # of a batch; None is any
    saturates: bool = False  # to SELU's least value instead of 0


_KINDS: dict[Callable[..., Any], _Kind] = {
    nn.Dropout.forward: _Kind(),
    nn.Dropout1d.forward: _Kind(channels=True, num_dims=3),
    nn.Dropout2d.forward: _Kind(channels=True, num_dims=4),
    nn.Dropout3d.forward: _Kind(channels=True, num_dims=5),
    nn.AlphaDropout.forward: _Kind(saturates=True),
    nn.FeatureAlphaDropout.forward: _Kind(channels=True, saturates=True),
}


class KeyedDropout:
    """Masks by seed, run position, call and element, for the dropout modules of a model.

    A call is that of a dropout module in train mode, counted from 0 in a forward pass, also where its p is 0.

    Left to torch's own generator: what is no such module (``functional.dropout``, the dropout within ``nn.LSTM`` and
    ``nn.MultiheadAttention``); what ``torch.compile`` compiles; an input whose first dimension is not the B records;
    and what is computed twice (under ``torch.utils.checkpoint``) or without gradients, because only torch's generator
    is put back for the second time.

    >>> masks = KeyedDropout(nn.Dropout(), seed=0)
    >>> x = torch.ones(2, 8)
    >>> with masks.installed():
    ...     both = masks.forward(Chunk(x, start=3))
    ...     torch.equal(masks.forward(Chunk(x[1:], start=4)), both[1:])
    True
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model, self._seed = model, seed
        self._keys_B: Words | None = None  # of the forward pass that is under way
        self._num_calls = 0
        self._forwards = [
            (part, functools.partial(self._call, part, _KINDS[type(part).forward]))
            for part in model.modules()
            if isinstance(part, nn.modules.dropout._DropoutNd)
            and type(part).forward in _KINDS
            and "forward" not in vars(part)
        ]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts the masks into the modules; on leaving they are as they were."""
        for part, forward in self._forwards:
            part.forward = forward
        try:
            yield
        finally:
            for part, _ in self._forwards:
                del part.forward

    def forward(self, part: Chunk) -> Any:
        """What the model computes of these records, each with the masks of its run position."""
        if not self._forwards:
            return self._model(part.inputs)
        self._keys_B, self._num_calls = keys(self._seed, part.positions()), 0
        try:
            return self._model(part.inputs)
        finally:
            self._keys_B = None

    def _call(self, module: nn.modules.dropout._DropoutNd, kind: _Kind, inputs: Tensor) -> Tensor:
        own: Tensor
        if torch.compiler.is_compiling() or self._keys_B is None or not module.training:
            own = type(module).forward(module, inputs)
            return own
        call, self._num_calls = self._num_calls, self._num_calls + 1
        if not self._takes(module.p, kind, inputs, len(self._keys_B)):
            own = type(module).forward(module, inputs)
            return own
        shape = inputs.shape[:2] + (1,) * (inputs.ndim - 2) if kind.channels else inputs.shape
        kept = keep(self._keys_B, call, math.prod(shape[1:]), module.p)
        noise = torch.from_numpy(kept).reshape(shape).to(inputs)
        # FeatureAlphaDropout and AlphaDropout have the attribute too, but torch passes over it.
        return _dropped(inputs, noise, module.p, kind, inplace=module.inplace and not kind.saturates)

    def _takes(self, p: float, kind: _Kind, inputs: Tensor, num_records: int) -> bool:
        """At p = 0 and p = 1 nothing is drawn, and torch has its own short ways."""
        return (
            0 < p < 1
            and type(inputs) is Tensor
            and not inputs.is_nested
            and inputs.is_floating_point()
            and inputs.ndim >= (2 if kind.channels else 1)
            and inputs.ndim == (kind.num_dims or inputs.ndim)
            and len(inputs) == num_records
            and inputs.numel() > 0
            and torch.is_grad_enabled()
            and not _is_in_checkpoint()
        )


def _dropped(inputs: Tensor, noise: Tensor, p: float, kind: _Kind, *, inplace: bool) -> Tensor:
    """The operations of torch in its order, so that the same mask gives the same bits. ``noise`` is 1 where kept."""
    if not kind.saturates:
        noise.div_(1 - p)
        return inputs.mul_(noise) if inplace else inputs * noise
    a = 1 / math.sqrt((_SATURATION**2 * p + 1) * (1 - p))
    shift = (noise - 1).mul_(_SATURATION * a).add_(_SATURATION * a * p)
    return (inputs * noise.mul_(a)).add_(shift)


def _is_in_checkpoint() -> bool:
    """Whether a caller, up to the one that began the forward pass, will compute this again on the way back."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not _BEGIN:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


_BEGIN = KeyedDropout.forward.__code__
