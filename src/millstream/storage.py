"""Files that are there whole or not at all, and what an operating system's errors are called here."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from millstream.errors import StorageError

__all__ = ["GO_ON", "cache_folder", "is_full", "make_folder", "replace", "storage_errors", "sync", "take_lock"]

GO_ON = "free some space or allow writing, then go on with --resume: what was committed before is whole"

_SYSTEM_REASON = re.compile(r".*(?:\[errno \d+\] |I/O error: )(.+?)(?: \(os error \d+\).*)?$")  # as libraries tell it


def cache_folder() -> Path:
    """Where copies and fetched data go: MILLSTREAM_CACHE, else the user's cache folder."""
    chosen = os.environ.get("MILLSTREAM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millstream"


def take_lock(file: IO[Any] | int) -> bool:
    """Takes the lock of an open file, which goes when it is closed; False if another, here or elsewhere, has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it that are missing; their names are on the disk when it returns."""
    missing = [one for one in path.parents if not one.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for one in [*reversed(missing), path]:  # its own even if it was there: who made it may have been killed before this
        sync(one.parent)


def replace(path: Path, content: str | bytes) -> None:
    """Puts ``content`` at ``path`` whole: a temporary name, fsync, rename, fsync of the folder.

    The folder is made if it is missing. Raises the operating system's errors: see ``storage_errors``.
    """
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's own is for its owner alone
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def storage_errors(path: Path, *, do: str, wanted: str = "to write there") -> Iterator[None]:
    """Turns the operating system's errors at ``path`` into ``StorageError``."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or _SYSTEM_REASON.sub(r"\1", str(error).splitlines()[0])
        raise StorageError(got=f"{reason!r} at {path}", wanted=wanted, do=do) from error


def is_full(error: BaseException) -> bool:
    """Whether an error of the operating system, or what became of it here, says that there is no room."""
    system = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(system, OSError) and system.errno in (errno.ENOSPC, errno.EDQUOT)
