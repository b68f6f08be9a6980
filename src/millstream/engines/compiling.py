"""Compiled loops that are loaded, never run by the process that compiled them.

A process that compiles a loop also has each function that the loop calls as code of its own, and runs that; a process
that loads the loop runs the copies within it. They take sums in another order, and weights would depend on who was the
first to compile. So what is not kept on disk is compiled by a process that does nothing else, and loaded from there.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from numba.core import event

from millstream.engines.kernels import compiled, learning

__all__ = ["compile_apart", "load"]

_log = logging.getLogger("millstream")
_KERNELS = compiled.__name__.rpartition(".")[0]


class _NotKeptError(Exception):
    """A loop would have been compiled."""


class _Refusal(event.Listener):  # type: ignore[misc]
    """Stops the compiler before it begins with one of our loops; what else is compiled meanwhile is not ours."""

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__.startswith(_KERNELS):
            raise _NotKeptError

    def on_end(self, event: Any) -> None:
        pass


def load(use: Callable[[], object]) -> bool:
    """Calls what uses loops, unless one of them is not kept on disk: then it compiles nothing and gives False."""
    try:
        with event.install_listener("numba:compile", _Refusal()):
            use()
    except _NotKeptError:
        return False
    return True


def compile_apart(module: str, call: str) -> None:
    """Compiles what a call of a module's function needs, in a process of its own, and keeps it on disk.

    Where nothing can be kept, or no process be started, nothing happens: loops are then compiled where they are used.
    """
    if learning.learn.stats.cache_path is None:
        return
    folder = compiled.cache_folder().parent.parent
    paths = os.pathsep.join(path or "." for path in sys.path)
    environment = {**os.environ, "MILLSTREAM_CACHE": str(folder), "PYTHONPATH": paths}
    code = f"import torch, {module} as module; module.{call}"
    try:
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        _log.warning(
            "the loops could not be compiled in a process of their own (%s); this run may differ in its last bits "
            "from those that load them",
            "".join(said),
        )
