"""What an upstream is: a stream that others keep, and the messages that arrive from it.

A new kind of server is one more ``Upstream``; ``upstream.UpstreamSource`` makes a source of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

from millstream.sources.decoding import Decoder

__all__ = ["Arrival", "Places", "Start", "UnreachableError", "Upstream"]

Start: TypeAlias = Literal["earliest", "latest"]
Places: TypeAlias = "dict[str, Any]"
"""Where each part of a stream goes on; what a place is, only the upstream knows."""


class UnreachableError(Exception):
    """A server does not answer now, but may later; never leaves this package."""


@dataclasses.dataclass(slots=True)
class Arrival:
    """Messages of one part of a stream, in order."""

    partition: str
    messages: list[Any]
    after: Callable[[int], Any]  # the place after the first k of them
    where: Callable[[int], str]  # message k, for people: kafka://clicks/0@17
    empty: dict[int, str] = dataclasses.field(default_factory=dict)  # messages that are no records, and why


class Upstream(Protocol):
    """One stream on a server, or a file that grows. What is lost for ever is a DataError, a server that is away an
    ``UnreachableError``. It is asked by one thread at a time."""

    name: str  # without passwords

    def begin(self, start: Start, back: int = 0) -> tuple[str | None, Places]:
        """What tells this stream from a later one of the same name, and where its oldest message is, or its end; the
        latter ``back`` messages earlier."""
        ...

    def seek(self, identity: str | None, places: Places) -> None:
        """Goes there, if nothing after these places was lost."""
        ...

    def fetch(self, count: int, seconds: float) -> Arrival | None:
        """The next messages of one part, about ``count``, which no other fetch has given; None if none came so soon."""
        ...

    def between(self, partition: str, before: Any, after: Any, count: int) -> Arrival:
        """At most ``count`` messages after the first and up to the second place, without moving ``fetch``."""
        ...

    def decoder(self) -> Decoder:
        """What its messages are unless somebody says otherwise."""
        ...

    def facts(self) -> Mapping[str, Any]: ...

    def close(self) -> None: ...
