"""A file system in user space that forgets what was not synced when the power is cut. Run: python -m soak.lossy FOLDER

It keeps two states of everything: what programs see, and what the disk has. fsync of a file moves its bytes to the
disk, fsync of a folder its names; nothing else does. A cut goes back to the disk's state, to which some of what was not
synced is added by chance: sectors of 512 bytes in any choice, changes of names in their order. What was open then gives
EIO.
A sync that fails loses what it should have written, and the next one succeeds without it: as Linux does.

Commands are written as JSON to /.control: {"cut": SEED, "share": P}, {"fail": "sync" | "space" | "read-only",
"after": N}, {"heal": true}. Reading it gives the counts. It imports neither torch nor the package.
"""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import sys
from collections.abc import Callable
from typing import Any

import mfusepy as fuse

from soak.lossy_state import Node

CONTROL = "/.control"


class Lossy(fuse.Operations):
    """The operations that the kernel asks for. One thread serves them, so each is whole."""

    use_ns = False

    def __init__(self) -> None:
        self._count, self._age, self._next_handle = 1, 0, 1
        self._root = Node(1, True)
        self._handles: dict[int, tuple[int, Node]] = {}
        self._fault, self._after = "", 0
        self._counts = {"syncs": 0, "writes": 0, "cuts": 0, "faults": 0}

    # ---------------------------------------------------------------- commands

    def _command(self, text: str) -> None:
        asked: dict[str, Any] = json.loads(text)
        if "cut" in asked:
            self._root.survive(random.Random(asked["cut"]), asked["share"], set())
            self._age += 1  # what is open belongs to the time before
            self._counts["cuts"] += 1
        self._fault, self._after = asked.get("fail", ""), asked.get("after", 0)

    def _may_fail(self, fault: str, error: int) -> None:
        if self._fault != fault:
            return
        self._after -= 1
        if self._after < 0:
            self._counts["faults"] += 1
            if fault == "sync":  # once: the next sync says that all is well
                self._fault = ""
            raise fuse.FuseOSError(error)

    def _changes(self) -> None:
        """Before anything is changed."""
        self._may_fail("read-only", errno.EROFS)
        self._may_fail("space", errno.ENOSPC)

    # ---------------------------------------------------------------- finding

    def _find(self, path: str) -> Node:
        node = self._root
        for part in path.strip("/").split("/") if path != "/" else []:
            found = node.names.get(part)
            if found is None:
                raise fuse.FuseOSError(errno.ENOENT)
            node = found
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        parent, _, name = path.rpartition("/")
        return self._find(parent or "/"), name

    def _opened(self, path: str, handle: int | None) -> Node:
        if handle is None or handle not in self._handles:
            return self._find(path)
        age, node = self._handles[handle]
        if age != self._age:
            raise fuse.FuseOSError(errno.EIO)
        return node

    def _handle(self, node: Node) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = self._age, node
        return self._next_handle

    def _new(self, path: str, is_folder: bool) -> Node:
        self._changes()
        parent, name = self._parent(path)
        self._count += 1
        node = Node(self._count, is_folder)
        parent.name(name, node)
        return node

    # ---------------------------------------------------------------- what the kernel asks for

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == CONTROL:
            return {"st_mode": stat.S_IFREG | 0o666, "st_nlink": 1, "st_size": 4096, "st_ino": 2}
        node = self._find(path) if fh is None else self._opened(path, fh)
        mode = stat.S_IFDIR | 0o755 if node.is_folder else stat.S_IFREG | 0o644
        size = 0 if node.is_folder else len(node.seen)
        return {"st_mode": mode, "st_nlink": 1, "st_size": size, "st_ino": node.number + 10, "st_mtime": node.changed}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._find(path).names]

    def mkdir(self, path: str, mode: int) -> int:
        self._new(path, True)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._handle(self._new(path, False))

    def open(self, path: str, flags: int) -> int:
        if path == CONTROL:
            return self._handle(Node(0, False))
        if flags & os.O_TRUNC:
            self.truncate(path, 0)
        return self._handle(self._find(path))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if path == CONTROL:
            return json.dumps(self._counts).encode()[offset : offset + size]
        return bytes(self._opened(path, fh).seen[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == CONTROL:
            self._command(data.decode())
            return len(data)
        self._changes()
        self._counts["writes"] += 1
        self._opened(path, fh).write(data, offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        if path != CONTROL:
            self._may_fail("read-only", errno.EROFS)
            self._opened(path, fh).resize(length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        node = self._opened(path, fh)
        self._counts["syncs"] += 1
        try:
            self._may_fail("sync", errno.EIO)
        except fuse.FuseOSError:
            node.fail_to_sync()
            raise
        node.sync()
        return 0

    def opendir(self, path: str) -> int:
        return self._handle(self._find(path))

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return self.fsync(path, datasync, fh)

    def rename(self, old: str, new: str) -> int:
        self._may_fail("read-only", errno.EROFS)
        (before, name), (after, new_name) = self._parent(old), self._parent(new)
        node = self._find(old)
        after.name(new_name, node)
        before.name(name, None)
        return 0

    def unlink(self, path: str) -> int:
        self._may_fail("read-only", errno.EROFS)
        parent, name = self._parent(path)
        parent.name(name, None)
        return 0

    def rmdir(self, path: str) -> int:
        if self._find(path).names:
            raise fuse.FuseOSError(errno.ENOTEMPTY)
        return self.unlink(path)

    def release(self, path: str, fh: int) -> int:
        self._handles.pop(fh, None)
        return 0

    def releasedir(self, path: str, fh: int) -> int:
        return self.release(path, fh)

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_blocks": 1 << 20, "f_bavail": 1 << 19, "f_bfree": 1 << 19, "f_namemax": 255}

    chmod = chown = utimens = flush = lambda self, *_: 0


def main(folder: str) -> None:
    """Serves until it is unmounted."""
    options: dict[str, Any] = {"foreground": True, "nothreads": True, "attr_timeout": 0, "entry_timeout": 0}
    serve: Callable[..., Any] = fuse.FUSE
    serve(Lossy(), folder, negative_timeout=0, fsname="lossy", **options)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))  # noqa: PTH100
