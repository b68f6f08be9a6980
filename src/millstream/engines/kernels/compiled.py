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

from numba import carray, config, njit, types
from numba.extending import intrinsic

__all__ = ["borrowed", "borrowed_matrix", "cache_folder", "compiled", "inlined", "is_compiled_before", "matrix", "view"]

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


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any, like: Any) -> Any:
    """A whole number as a pointer to numbers of the type that ``like`` holds."""
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


@inlined
def matrix(address: Any, num_out: Any, num_in: Any, like: Any) -> Any:
    """The (O, I) matrix at an address, without a copy; an empty one for address 0."""
    if address == 0:
        return carray(_pointer(address, like), (0, num_in))
    return carray(_pointer(address, like), (num_out, num_in))


@inlined
def view(address: Any, size: Any, like: Any) -> Any:
    """The vector at an address, without a copy."""
    return carray(_pointer(address, like), (size,))


@inlined
def borrowed(array: Any) -> Any:
    """A vector as a view that owns nothing: its slices cost no atomic counting of references."""
    return view(array.ctypes.data, array.shape[0], array)


@inlined
def borrowed_matrix(array: Any) -> Any:
    """A matrix as a view that owns nothing."""
    return matrix(array.ctypes.data, array.shape[0], array.shape[1], array)
