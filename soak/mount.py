"""The lossy file system mounted on a folder for a while, and its commands."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Disk", "mounted", "why_not"]

_MOST_SECONDS = 20.0


def why_not() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if importlib.util.find_spec("mfusepy") is None:
        return "the package mfusepy is not installed (pip install mfusepy)"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (apt-get install fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return ""


class Disk:
    """A mounted lossy file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cut(self, seed: int, share: float) -> None:
        """The power goes and comes back. ``share`` of what was not synced may survive; 0 is none of it."""
        self._tell(cut=seed, share=share)

    def fail(self, what: str, after: int = 0) -> None:
        """From now on, or after so many operations of this kind: "sync" once, "space" and "read-only" until healed."""
        self._tell(fail=what, after=after)

    def heal(self) -> None:
        self._tell(heal=True)

    def counts(self) -> dict[str, int]:
        text = (self.folder / ".control").read_text(encoding="utf-8")
        found: dict[str, int] = json.loads(text.rstrip("\0"))
        return found

    def _tell(self, **asked: Any) -> None:
        descriptor = os.open(self.folder / ".control", os.O_WRONLY)
        try:
            os.write(descriptor, json.dumps(asked).encode())
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """An empty disk at ``folder``, which is made."""
    folder.mkdir(parents=True)
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-m", "soak.lossy", str(folder)], cwd=root, stderr=subprocess.PIPE)
    try:
        ends = time.monotonic() + _MOST_SECONDS
        while not os.path.ismount(folder):
            if process.poll() is not None or time.monotonic() > ends:
                assert process.stderr is not None
                raise RuntimeError(f"the lossy file system does not start: {process.stderr.read().decode()[-300:]}")
            time.sleep(0.01)
        yield Disk(folder)
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(folder)], check=False)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
