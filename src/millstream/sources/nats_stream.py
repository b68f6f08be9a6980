"""A stream of NATS JetStream. Needs ``nats-py``: the extra ``nats``.

Messages are asked for by their number in the stream, through a consumer that the server forgets by itself; nothing is
acknowledged. The client is asynchronous: its loop has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import TimeoutError as OutOfTimeError
from typing import Any

from millstream.errors import DataError, SettingError, missing_package
from millstream.sources.arrivals import Arrival, Places, Start, UnreachableError
from millstream.sources.decoding import Decoder, TextDecoder

try:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
    from nats.js.errors import NotFoundError
except ImportError as absent:
    raise missing_package("nats-py", "nats://", "nats") from absent

__all__ = ["NatsStream"]

_ASK_SECONDS = 3.0
_FORGET_SECONDS = 60.0  # after which the server drops a consumer that nobody asks


class NatsStream:
    """A stream, or those of its messages that have a subject.

    ``name`` is that of a stream, or a subject (``clicks.*``), whose stream the server finds.
    """

    def __init__(
        self,
        servers: str,
        name: str,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        **options: Any,
    ) -> None:
        self.name = f"nats://{name}"
        self._named = name
        self._subject: str | None = None
        self._stream = ""
        self._servers = [f"{'tls' if tls else 'nats'}://{one}" for one in servers.split(",")]
        self._options = {"user": username, "password": password, **options}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self._client: Any = None
        self._messages: Any = None  # the consumer that fetch asks
        self._given = 0  # messages that it gave
        self._cut = threading.Event()

    def begin(self, start: Start, back: int = 0) -> tuple[str | None, Places]:
        facts = self._asked(self._facts())
        first, last = max(1, facts.state.first_seq), facts.state.last_seq
        place = first if start == "earliest" else max(first, last + 1 - back)
        return str(facts.created), {"stream": place}

    def seek(self, identity: str | None, places: Places) -> None:
        place = places.get("stream")
        if not isinstance(place, int) or place < 1:
            raise DataError(
                got=f"position {place!r} of {self.name}", wanted="a number of its stream", do="resume as before"
            )
        facts = self._asked(self._facts())
        first, last = facts.state.first_seq, facts.state.last_seq
        if identity is not None and str(facts.created) != identity:
            raise _lost(f"{self.name}, a stream made anew at {facts.created}", f"that of {identity}")
        if first > place:
            raise _lost(
                f"{self.name} from message {first:,} on: {first - place:,} messages from {place:,} on are deleted",
                "messages that are kept until they were read",
            )
        if last + 1 < place:
            raise _lost(f"{self.name} with {last:,} messages", f"at least {place - 1:,}, as before")
        self._asked(self._consume(place))
        self._cut.clear()

    def fetch(self, count: int, seconds: float) -> Arrival | None:
        if self._cut.is_set() or self._messages is None:
            raise UnreachableError("the connection was cut")
        found = self._asked(self._fetched(self._messages, count, seconds), seconds + _ASK_SECONDS)
        for message in found:
            self._given += 1
            if message.metadata.sequence.consumer != self._given:
                raise UnreachableError("messages were lost on the way")
        return self._arrival(found) if found else None

    def between(self, partition: str, before: Any, after: Any, count: int) -> Arrival:
        return self._arrival(self._asked(self._fetched_between(before or 1, after, count), 30.0))

    def decoder(self) -> Decoder:
        return TextDecoder()

    def facts(self) -> Mapping[str, Any]:
        return {"stream": self._named}

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        with contextlib.suppress(UnreachableError, DataError, SettingError):
            self._asked(self._closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _asked(self, question: Coroutine[Any, Any, Any], seconds: float = 2 * _ASK_SECONDS) -> Any:
        waiting = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return waiting.result(seconds)
        except (nats.errors.AuthorizationError, nats.errors.InvalidUserCredentialsError):
            raise SettingError(
                got=f"{self.name}: refused", wanted="access to this stream", do="correct user and password"
            ) from None
        except NotFoundError as error:
            raise _lost(f"no stream for {self._named!r} at {self.name}", "one that exists") from error
        except (TimeoutError, nats.errors.Error, OSError, OutOfTimeError) as error:
            waiting.cancel()
            if "Authorization" in str(error):
                raise SettingError(
                    got=f"{self.name}: refused", wanted="access to this stream", do="correct user and password"
                ) from None
            raise UnreachableError(type(error).__name__) from error

    async def _connected(self) -> Any:
        if self._client is None or not self._client.is_connected:
            if self._client is not None:
                with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._client.close(), 1.0)
            # It shall not come back by itself: what was missed meanwhile must be looked at.
            self._client = await nats.connect(
                self._servers,
                allow_reconnect=False,
                connect_timeout=2,
                ping_interval=2,
                max_outstanding_pings=2,
                error_cb=self._silent,
                disconnected_cb=self._was_cut,
                closed_cb=self._was_cut,
                **{key: value for key, value in self._options.items() if value is not None},
            )
        return self._client.jetstream(timeout=_ASK_SECONDS)

    async def _silent(self, _: Exception) -> None:
        """What matters is raised where it is asked for."""

    async def _was_cut(self) -> None:
        self._cut.set()

    async def _facts(self) -> Any:
        server = await self._connected()
        if not self._stream:
            try:
                await server.stream_info(self._named)
                self._stream = self._named
            except (NotFoundError, ValueError):
                self._stream = await server.find_stream_name_by_subject(self._named)
                self._subject = self._named
        return await server.stream_info(self._stream)

    async def _consume(self, place: int) -> None:
        self._messages, self._given = await self._consumer(place), 0

    async def _consumer(self, place: int) -> Any:
        server = await self._connected()
        settings = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=place,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_FORGET_SECONDS,
            mem_storage=True,
        )
        return await server.pull_subscribe(self._subject or ">", stream=self._stream, config=settings)

    async def _fetched(self, messages: Any, count: int, seconds: float) -> list[Any]:
        try:
            found: list[Any] = await messages.fetch(count, timeout=seconds)
        except (TimeoutError, nats.errors.TimeoutError):
            return []
        return found

    async def _fetched_between(self, place: int, after: int, count: int) -> list[Any]:
        messages = await self._consumer(place)
        found: list[Any] = []
        try:
            while len(found) < count:
                more = await self._fetched(messages, count - len(found), 1.0)
                found += [one for one in more if one.metadata.sequence.stream < after]
                if not more or more[-1].metadata.sequence.stream >= after - 1:
                    break
        finally:
            await messages.unsubscribe()
        return found

    async def _closed(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _arrival(self, messages: list[Any]) -> Arrival:
        numbers = [one.metadata.sequence.stream for one in messages]
        return Arrival(
            "stream",
            [one.data for one in messages],
            lambda k: numbers[k - 1] + 1,
            lambda k: f"{self.name}@{numbers[k]}",
        )


def _lost(got: str, wanted: str) -> DataError:
    return DataError(got=got, wanted=wanted, do="begin a new run, and keep messages longer than a run may pause")
