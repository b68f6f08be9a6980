"""Dropout masks from a counter: what is dropped is a hash of the record's key, the call and the element, no state.

Each 32-bit number is lowbias32 (a multiply-xorshift finaliser, Wellons 2018, github.com/skeeto/hash-prospector) of

    element + key + call × 2³² / golden ratio,

with the key mixed in once more between the two rounds, so that two records' numbers are not shifted copies. Multiples
of the golden ratio keep calls apart: two of one record overlap nowhere as long as calls × elements is below 10⁹.

All of it stays in 32 bits, so that one AVX2 instruction takes eight numbers; numba takes sums, products and shifts of
32-bit numbers to 64 bits, hence the many conversions.

Shapes: I elements of one record.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from millstream.engines.kernels.compiled import compiled

__all__ = ["CALL_STEP", "FIRST_FACTOR", "SECOND_FACTOR", "draw", "drop"]

FIRST_FACTOR, SECOND_FACTOR = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
CALL_STEP = np.uint32(0x9E3779B9)  # 2³² / golden ratio
_15, _16 = np.uint32(15), np.uint32(16)


@compiled
def _mixed(x: Any, key: Any) -> Any:
    x = np.uint32(x ^ np.uint32(x >> _16))
    x = np.uint32(x * FIRST_FACTOR)
    x = np.uint32(x ^ np.uint32(x >> _15))
    x = np.uint32(x ^ key)
    x = np.uint32(x * SECOND_FACTOR)
    return np.uint32(x ^ np.uint32(x >> _16))


@compiled
def _first_of(key: Any, call: Any) -> Any:
    return np.uint32(np.uint32(key) + np.uint32(np.uint32(call) * CALL_STEP))


@compiled
def draw(key: Any, call: Any, element: Any) -> Any:
    """A uniform 32-bit number for one element in one dropout call for one record."""
    return _mixed(np.uint32(np.uint32(element) + _first_of(key, call)), np.uint32(key))


@compiled
def drop(inputs_I: Any, key: Any, call: Any, threshold: Any, scale: Any, mask_scale_I: Any, outputs_I: Any) -> Any:
    """Inverted dropout of one record: outputs = inputs × mask_scale, which is ``scale`` where it is kept and else 0.

    An element is kept if its number is not below ``threshold`` (p × 2³²). The product is taken for those that are
    dropped too, as torch does: NaN and infinity do not vanish. ``mask_scale`` is the slope for the way back.
    ``outputs`` may be ``inputs``.
    """
    first, word = _first_of(key, call), np.uint32(key)
    least, kept, none = np.uint32(threshold), inputs_I.dtype.type(scale), inputs_I.dtype.type(0)
    for i in range(inputs_I.shape[0]):
        number = _mixed(np.uint32(np.uint32(i) + first), word)
        mask_scale_I[i] = kept if number >= least else none
        outputs_I[i] = inputs_I[i] * mask_scale_I[i]
