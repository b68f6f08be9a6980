"""Streams that others keep and that can be read again: topics of brokers, files that grow. One source for all of them.

An ``Upstream`` (``arrivals``) knows one kind of server: where its messages are, what was lost there, how it is asked.
A ``Decoder`` (``decoding``) knows what is in a message. ``UpstreamSource`` knows neither; it turns messages into chunks
with positions, waits, begins anew after a cut connection, and stops.

A position is ``{"identity", "partitions": {name: place}}``: which stream it was, and where each part of it goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Chunk, Position, Rejection
from millstream.errors import DataError, MillstreamError, SettingError, StorageError
from millstream.sources.arrivals import Arrival, Places, Start, UnreachableError, Upstream
from millstream.sources.columns import Declared, declared_types, settled_schema
from millstream.sources.decoding import Decoder
from millstream.sources.rechunk import check_size, cut, join
from millstream.sources.text import OnError, check_on_error

__all__ = ["UpstreamSource"]

_STOP_SECONDS = 0.1  # between two looks whether to stop
_MOST_DELAY_SECONDS = 5.0  # between two tries to reach a server
_CHUNK_BYTES = 1 << 23  # so much is fetched at once, or one message
_MOST_MESSAGES = 8192  # are fetched at once
_LEAST_MESSAGES = 256  # as long as they are small: a reader of single records need not ask for single messages
_NUM_SAMPLED = 1000  # messages that the columns' types are inferred from
_Answer = TypeVar("_Answer")
_logger = logging.getLogger("millstream")


@dataclasses.dataclass(slots=True)
class _Held:
    """Messages that were fetched, as records, of which the first were handed out."""

    arrival: Arrival
    chunk: Chunk
    error: MillstreamError | None
    done: int = 0

    @property
    def is_used_up(self) -> bool:
        return self.done == self.chunk.span


class UpstreamSource:
    """The messages of an upstream as named columns: live, in order, and again from any position.

    - ``decoder``: what is in a message; JSON unless the upstream knows better.
    - ``schema``: types by column. Given as a ``pyarrow.Schema`` it is all columns, and nothing is looked at before.
      Else making the source waits for the first message, as the types of the other columns come from there.
    - ``start``: ``earliest`` or ``latest``, where a reading without a position begins. It is looked up once.
    - ``on_error``: a message that is no record stops, or is put into ``rejected``.
    - ``give_up_seconds``: so long a server that is away is waited for.

    It never fetches while nobody reads. Reading twice at once is refused, as both would take from one connection.

    >>> import pathlib, tempfile
    >>> from millstream.sources.followed import FollowedFile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "log.jsonl")
    >>> _ = path.write_text('{"hour": 7, "load": 0.5}\\n{"hour": 8, "load": 0.25}\\n{"hour": 9')
    >>> source = UpstreamSource(FollowedFile(path))
    >>> chunk = next(source.read())
    >>> chunk.inputs.to_pydict()
    {'hour': [7, 8], 'load': [0.5, 0.25]}
    >>> source.again(None, chunk.after, chunk.span).inputs.equals(chunk.inputs)
    True
    >>> source.close()
    >>> folder.cleanup()
    """

    def __init__(
        self,
        upstream: Upstream,
        decoder: Decoder | None = None,
        *,
        schema: Declared = None,
        start: Start = "earliest",
        on_error: OnError = "stop",
        patience_seconds: float = 0.0,
        give_up_seconds: float = 300.0,
        max_message_bytes: int = 1 << 24,
        name: str | None = None,
    ) -> None:
        check_on_error(on_error)
        if start not in ("earliest", "latest"):
            raise SettingError(got=f"start={start!r}", wanted="'earliest' or 'latest'", do="choose one of the two")
        self.name = name or upstream.name
        self.num_records: int | None = None
        self.is_live, self.can_seek, self.can_jump = True, True, False
        self.schema: pa.Schema | None = None
        self._upstream = upstream
        self._decoder = decoder or upstream.decoder()
        self._on_error: OnError = on_error
        self._start: Start = start
        self._give_up_seconds = give_up_seconds
        self._max_message_bytes = max_message_bytes
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._reading: object = None  # the reading that may take what comes
        self._bytes_each = 1.0 * (1 << 15)  # until some were seen
        self._held: deque[_Held] = deque()
        self._identity, self._begin = self._reached(lambda: upstream.begin(start))
        self._stands = dict(self._begin)  # behind what was handed out
        self._front = dict(self._begin)  # behind what was fetched
        self._is_there = False  # whether the upstream stands at the front
        self._settle(schema, patience_seconds)

    @property
    def begin(self) -> Position:
        """The position that None stands for."""
        return self._position(self._begin)

    def read(self, position: Position = None, *, size: int = 4096) -> Iterator[Chunk]:
        check_size(size)
        identity, places = self._parts(position)
        if places != self._stands or identity != self._identity:
            self._held.clear()
            self._reached(lambda: self._upstream.seek(identity, places))
            self._identity = identity or self._identity
            self._stands, self._front, self._is_there = dict(places), dict(places), True
        self._reading = token = object()
        return self._chunks(size, token)

    def again(self, before: Position, after: Position, span: int) -> Chunk:
        """The chunk that was handed out between these two positions, once more, bit for bit."""
        _identity, old = self._parts(before)
        new = self._parts(after)[1]
        moved = [name for name in new if new[name] != old.get(name)]
        if len(moved) != 1 or span < 1:
            raise DataError(
                got=f"positions {before!r} and {after!r} of {self.name}",
                wanted="those before and after one chunk",
                do="give the ones that were written down together",
            )
        with self._lock:
            arrival = self._reached(lambda: self._upstream.between(moved[0], old.get(moved[0]), new[moved[0]], span))
        count = len(arrival.messages)
        if count != span or arrival.after(span) != new[moved[0]]:
            raise DataError(
                got=f"{count} of {span} messages of {self.name} between {before!r} and {after!r}",
                wanted="all that were read there before",
                do="keep messages longer, or begin a new run: what was deleted cannot be learned again",
            )
        held = self._decoded(arrival)
        if held.error is not None:
            raise held.error
        held.chunk.after = after
        return held.chunk

    def acknowledge(self, after: Position) -> None:
        """Nothing to do: these upstreams forget by rules of their own, not when they are told."""

    def stop(self) -> None:
        """Ends the reading after what has arrived; for signal handlers and other threads."""
        self._stopped.set()

    def peek(self, size: int) -> Chunk | None:
        """The first records of those that have arrived, which ``read`` will hand out nevertheless; None at the end."""
        check_size(size)
        if self._next(size) is None:
            return None
        parts = [cut(held.chunk, held.done, held.chunk.span) for held in self._held if not held.is_used_up]
        whole = join(parts)
        return cut(whole, 0, min(size, whole.span))

    def declare(self, types: Declared) -> None:
        """Reads columns as these types; to be called before anything is handed out, but it may have been peeked at."""
        found = self.schema or pa.schema([])
        self.schema = settled_schema(found, types, None, self.name)
        self._held = deque(self._decoded(held.arrival) for held in self._held)

    def take(self, numbers: npt.NDArray[np.int64]) -> Chunk:
        raise DataError(
            got=f"records by number from {self.name}",
            wanted="a source that can jump",
            do="copy a part of the stream to a file first",
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """Which stream it is and how it is read; not the columns, as a stream may gain some."""
        form = {"json": "jsonl", "fields": "csv"}.get(self._decoder.name, self._decoder.name)
        facts = {"format": form, "start": self._start, "on_error": self._on_error, "decoder": self._decoder.name}
        return {"kind": "stream", **self._upstream.facts(), **facts}

    def close(self) -> None:
        """Lets go of the connection."""
        self.stop()
        self._reading = None
        self._upstream.close()

    def _settle(self, schema: Declared, patience_seconds: float) -> None:
        """The columns: those that are declared, and those that the first messages have."""
        if isinstance(schema, pa.Schema):
            self.schema = schema
            return
        arrivals = self._sample(patience_seconds)
        messages = [
            message
            for arrival in arrivals
            for k, message in enumerate(arrival.messages)
            if k not in arrival.empty and self._size(message) <= self._max_message_bytes
        ]
        found = self._decoder.infer(messages, declared_types(schema), self.name)
        if not len(found):
            raise DataError(
                got=f"{self.name} without a single message that can be read", wanted="one", do="check its format"
            )
        self.schema = settled_schema(found, schema, None, self.name)
        if self._start == "earliest":
            self._held = deque(map(self._decoded, arrivals))

    def _sample(self, patience_seconds: float) -> list[Arrival]:
        """The messages that come first; of a stream that is read from its end, the last before it."""
        places = self._begin
        if self._start == "latest":
            places = self._reached(lambda: self._upstream.begin("latest", _NUM_SAMPLED))[1]
            self._front, self._is_there = dict(places), False
        arrivals: list[Arrival] = []
        ends = time.monotonic() + patience_seconds
        while sum(len(one.messages) - len(one.empty) for one in arrivals) < _NUM_SAMPLED:
            arrival = self._fetched(_NUM_SAMPLED)
            if arrival is not None:
                ends = time.monotonic() + patience_seconds if not arrivals else ends
                arrivals.append(arrival)
            elif self._stopped.is_set():
                break
            if time.monotonic() >= ends and any(len(one.messages) > len(one.empty) for one in arrivals):
                break
        if self._start == "latest":
            self._front, self._is_there = dict(self._begin), False
        return arrivals

    def _chunks(self, size: int, token: object) -> Iterator[Chunk]:
        while True:
            if self._reading is not token:
                raise SettingError(
                    got=f"two readings of {self.name} at once", wanted="one", do="make a source for each"
                )
            held = self._next(size)
            if held is None:
                return
            last = min(held.done + size, held.chunk.span)
            chunk = cut(held.chunk, held.done, last)
            held.done = last
            self._stands[held.arrival.partition] = held.arrival.after(last)
            chunk.after = self._position(self._stands)
            yield chunk

    def _next(self, size: int) -> _Held | None:
        """The messages that are being handed out, with places left; None once it was stopped."""
        while True:
            while self._held and self._held[0].is_used_up:
                error = self._held[0].error
                if error is not None:
                    raise error
                self._held.popleft()
            if self._held:
                return self._held[0]
            if self._stopped.is_set():
                return None
            arrival = self._fetched(max(size, _LEAST_MESSAGES))
            if arrival is not None:
                self._held.append(self._decoded(arrival))

    def _fetched(self, count: int) -> Arrival | None:
        """What has arrived, or nothing for a while; a connection that was cut is made anew meanwhile."""
        count = max(1, min(count, _MOST_MESSAGES, int(_CHUNK_BYTES / self._bytes_each)))
        with self._lock:
            try:
                if not self._is_there:
                    self._upstream.seek(self._identity, dict(self._front))
                    self._is_there = True
                arrival = self._upstream.fetch(count, _STOP_SECONDS)
            except UnreachableError as error:
                self._is_there = False
                _logger.warning("%s is away (%s); trying again", self.name, error)
                try:
                    self._reached(lambda: self._upstream.seek(self._identity, dict(self._front)), error)
                    self._is_there = True
                except StorageError:
                    if not self._stopped.is_set():
                        raise
                return None
        if arrival is None:
            return None
        num = len(arrival.messages)
        self._front[arrival.partition] = arrival.after(num)
        # The largest mean of late, so that memory stays bounded when messages grow.
        mean = sum(map(self._size, arrival.messages)) / num
        self._bytes_each = max(1.0, mean, self._bytes_each / 2)
        return arrival

    def _decoded(self, arrival: Arrival) -> _Held:
        """Records and holes; with ``stop``, those before the first bad message, and the error that it is."""
        assert self.schema is not None
        bad = {
            k: f"a message of {self._size(message):,} bytes; wanted at most {self._max_message_bytes:,}"
            for k, message in enumerate(arrival.messages)
            if self._size(message) > self._max_message_bytes
        }
        tried = np.array(
            [k for k in range(len(arrival.messages)) if k not in bad and k not in arrival.empty], dtype=np.int64
        )
        batch, kept, reasons = self._decoder.decode([arrival.messages[k] for k in tried], self.schema)
        bad.update({int(tried[k]): reason for k, reason in reasons.items()})
        kept, span, error = tried[kept], len(arrival.messages), None
        if bad and self._on_error == "stop":
            span = min(bad)
            got, _, wanted = bad[span].partition("; wanted ")
            error = DataError(
                got=f"{arrival.where(span)}: {got}",
                wanted=wanted,
                do="leave such messages out with on_error='quarantine', or correct who sends them",
            )
            kept = kept[kept < span]
            batch, bad = batch.slice(0, len(kept)), {}
        holes = {k: reason for k, reason in (*arrival.empty.items(), *bad.items()) if k < span}
        rejected = tuple(
            Rejection(k, holes[k], arrival.where(k), self._decoder.shown(arrival.messages[k])) for k in sorted(holes)
        )
        chunk = Chunk(batch, span=span, offsets=kept if holes else None, rejected=rejected, locate=arrival.where)
        return _Held(arrival, chunk, error)

    def _reached(self, ask: Callable[[], _Answer], error: UnreachableError | None = None) -> _Answer:
        """The answer of a server, which may be away for a while."""
        delay, ends = 0.1, time.monotonic() + self._give_up_seconds
        while True:
            was_stopped = error is not None and self._stopped.wait(delay)
            if not was_stopped:
                try:
                    return ask()
                except UnreachableError as again:
                    error, delay = again, min(2 * delay, _MOST_DELAY_SECONDS)
            if was_stopped or time.monotonic() > ends:
                waited = "" if was_stopped else f" for {self._give_up_seconds:g} seconds"
                raise StorageError(
                    got=f"no answer of {self.name}{waited} ({error})",
                    wanted="a server that is there",
                    do="start it, or correct the address",
                ) from error

    def _size(self, message: Any) -> int:
        if isinstance(message, dict):
            return sum(len(key) + len(value) for key, value in message.items())
        return 0 if message is None else len(message)

    def _position(self, places: Places) -> Position:
        return {"identity": self._identity, "partitions": dict(places)}

    def _parts(self, position: Position) -> tuple[str | None, Places]:
        if position is None:
            return self._identity, dict(self._begin)
        if not isinstance(position, dict) or not isinstance(position.get("partitions"), dict):
            raise DataError(
                got=f"position {position!r} of {self.name}",
                wanted="one of a stream",
                do="resume with the source of before",
            )
        return position.get("identity"), dict(position["partitions"])
