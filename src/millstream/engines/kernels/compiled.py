"""How a kernel is compiled: once, kept on disk where that can be written, and with which liberties.

Sums may be taken in another order and products fused, as any BLAS does. NaN and infinity keep their meaning, because
the guard that looks for them is in the same code.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit, types
from numba.extending import intrinsic
from numba.np import arrayobj

__all__ = ["borrowed", "cache_folder", "compiled", "copy", "inlined", "is_compiled_before", "matrix", "view"]

_LIBERTIES = {"reassoc", "contract", "arcp", "nsz", "afn"}


def compiled(function: Callable[..., Any]) -> Any:
    """A function as machine code, without the interpreter and its lock. A folder that cannot be written is no error."""
    return _compiled(function, forceinline=False)


def inlined(function: Callable[..., Any]) -> Any:
    """As ``compiled``, for a function whose call would cost more than its work."""
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[..., Any], **more: Any) -> Any:
    settings: dict[str, Any] = {"fastmath": _LIBERTIES, "error_model": "numpy", "nogil": True, **more}
    if not _can_keep():
        return njit(**settings)(function)
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache_folder())
    try:
        return njit(cache=True, **settings)(function)
    finally:
        config.CACHE_DIR = before


@functools.cache
def _can_keep() -> bool:
    """Whether the cache can be written. Where it cannot, numba would look for places of its own, beside the source."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()):
            return True
    except OSError:
        return False


def is_compiled_before(name: str) -> bool:
    """Whether a kernel of this name is in the cache."""
    return any(cache_folder().rglob(f"*.{name}-*.nbc"))


@functools.cache
def cache_folder() -> Path:
    """A folder for this very code: numba looks at a function's own file only, not at what it calls in others."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(sources).hexdigest()[:16]
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MILLSTREAM_CACHE") or Path(user) / "millstream") / "kernels" / digest


def _described(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any]) -> Any:
    """The description of a contiguous array at an address, which owns nothing."""
    array = arrayobj.make_array(kind)(context, builder)
    item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [item] if len(shape) == 1 else [builder.mul(shape[1], item), item]
    data = builder.inttoptr(address, array.data.type)
    arrayobj.populate_array(array, data=data, shape=shape, strides=strides, itemsize=item, meminfo=None)
    return array._getvalue()


@intrinsic  # type: ignore[untyped-decorator]
def matrix(_: Any, address: Any, num_out: Any, num_in: Any, like: Any) -> Any:
    """The (O, I) matrix at an address, without a copy; an empty one for address 0."""
    kind = types.Array(like.dtype, 2, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, num_out, num_in, _ = arguments
        none = context.get_constant(types.int64, 0)
        rows = builder.select(builder.icmp_signed("==", address, none), none, num_out)
        return _described(context, builder, kind, address, [rows, num_in])

    return kind(types.int64, types.int64, types.int64, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def view(_: Any, address: Any, size: Any, like: Any) -> Any:
    """The vector at an address, without a copy."""
    kind = types.Array(like.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _described(context, builder, kind, arguments[0], [arguments[1]])

    return kind(types.int64, types.int64, like), generate


@inlined
def borrowed(array: Any) -> Any:
    """A vector as a view that owns nothing: its slices cost no atomic counting of references."""
    return view(array.ctypes.data, array.shape[0], array)


@inlined
def copy(source: Any, target: Any) -> Any:
    """target = source. (An assignment to a slice would bring the text of an error about shapes.)"""
    for i in range(target.shape[0]):
        target[i] = source[i]
