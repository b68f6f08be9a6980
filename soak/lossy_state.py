"""What programs see of a file or folder, and what the disk has of it: the state of the lossy file system."""

from __future__ import annotations

import random
import time

__all__ = ["SECTOR", "Node"]

SECTOR = 512


class Node:
    """A file or a folder: ``seen`` by programs, and ``kept`` by the disk."""

    def __init__(self, number: int, is_folder: bool) -> None:
        self.number, self.is_folder = number, is_folder
        self.seen, self.kept = bytearray(), b""
        self.lost: set[int] = set()  # sectors that a failed sync has given up
        self.names: dict[str, Node] = {}
        self.kept_names: dict[str, Node] = {}
        self.changes: list[tuple[str, Node | None]] = []  # of names, since the last sync; a list of pairs is one step
        self.changed = time.time()

    def name(self, name: str, node: Node | None) -> None:
        if node is None:
            self.names.pop(name, None)
        else:
            self.names[name] = node
        self.changes.append((name, node))

    def write(self, data: bytes, offset: int) -> None:
        self.seen.extend(bytes(max(0, offset - len(self.seen))))
        self.seen[offset : offset + len(data)] = data
        self.lost -= set(range(offset // SECTOR, (offset + len(data)) // SECTOR + 1))
        self.changed = time.time()

    def resize(self, length: int) -> None:
        del self.seen[length:]
        self.seen.extend(bytes(length - len(self.seen)))

    def sync(self) -> None:
        if self.is_folder:
            self.kept_names, self.changes = dict(self.names), []
            return
        kept = bytearray(self.seen)
        for number in self.lost:
            first, last = number * SECTOR, min((number + 1) * SECTOR, len(kept))
            kept[first:last] = self.kept[first:last].ljust(max(0, last - first), b"\0")
        self.kept = bytes(kept)

    def fail_to_sync(self) -> None:
        for number in range(-(-len(self.seen) // SECTOR)):
            first, last = number * SECTOR, (number + 1) * SECTOR
            if self.seen[first:last] != self.kept[first:last]:
                self.lost.add(number)

    def survive(self, draws: random.Random, share: float, done: set[int]) -> None:
        """What the disk has after a cut becomes what is seen, here and below."""
        if self.number in done:
            return
        done.add(self.number)
        if self.is_folder:
            names = dict(self.kept_names)
            for name, node in self.changes[: draws.randint(0, len(self.changes)) if share else 0]:
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
            self.names, self.kept_names, self.changes = names, dict(names), []
            for node in names.values():
                node.survive(draws, share, done)
            return
        if share and bytes(self.seen) != self.kept:
            size = len(self.seen) if draws.random() < share else len(self.kept)
            mixed = bytearray(self.kept[:size].ljust(size, b"\0"))
            for first in range(0, size, SECTOR):
                last = min(first + SECTOR, size)
                if draws.random() < share and first // SECTOR not in self.lost:
                    mixed[first:last] = bytes(self.seen[first:last]).ljust(last - first, b"\0")
            self.kept = bytes(mixed)
        self.seen, self.lost = bytearray(self.kept), set()
