"""A stream of Redis 7. Needs ``redis``: the extra ``redis``.

Redis does not say what it trimmed. A place is therefore the id of the last entry and how many entries had been added
up to it: what is missing between there and now is counted, in the same transaction that reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from millstream.errors import DataError, SettingError, missing_package
from millstream.sources.arrivals import Arrival, Places, Start, UnreachableError
from millstream.sources.decoding import Decoder, FieldsDecoder, TextDecoder

try:
    import redis
except ImportError as absent:
    raise missing_package("redis", "redis://", "redis") from absent

__all__ = ["RedisStream"]

_BEGINNING = "0-0"
_REFUSALS = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


class RedisStream:
    """A stream whose entries' fields are columns; with ``field``, one that holds a message each (JSON).

    No consumer group is made, nothing is acknowledged: whoever reads keeps the place.
    """

    def __init__(
        self,
        host: str,
        port: int,
        stream: str,
        *,
        field: str | None = None,
        database: int = 0,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
    ) -> None:
        self.name = f"redis://{host}:{port}/{stream}"
        self._stream, self._field, self._database = stream, field, database
        self._client: Any = redis.Redis(
            host=host,
            port=port,
            db=database,
            username=username,
            password=password,
            ssl=tls,
            socket_timeout=3.0,
            socket_connect_timeout=2.0,
        )
        self._place: list[Any] = [_BEGINNING, 0]

    def begin(self, start: Start, back: int = 0) -> tuple[str | None, Places]:
        facts = self._asked(self._facts)
        if facts is None:
            return None, {"stream": [_BEGINNING, 0]}
        if start == "earliest":
            return None, {"stream": [_BEGINNING, facts["entries-added"] - facts["length"]]}
        place = [facts["last-generated-id"].decode(), facts["entries-added"]]
        last = self._asked(lambda: self._client.xrevrange(self._stream, count=back)) if back else []
        return None, {"stream": [_before(last[-1][0].decode()), place[1] - len(last)] if last else place}

    def seek(self, identity: str | None, places: Places) -> None:
        place = _checked(places.get("stream"), self.name)
        self._check(self._asked(self._facts), place)
        self._place = place

    def fetch(self, count: int, seconds: float) -> Arrival | None:
        facts, found = self._asked(lambda: self._read(count))
        self._check(facts, self._place)
        if not found:
            # Only waits: what came is read above, together with what tells whether anything before it is missing.
            self._asked(
                lambda: self._client.xread({self._stream: self._place[0]}, count=1, block=max(1, int(seconds * 1000)))
            )
            return None
        arrival = self._arrival(found, self._place[1])
        self._place = arrival.after(len(found))
        return arrival

    def between(self, partition: str, before: Any, after: Any, count: int) -> Arrival:
        place, last = _checked(before or [_BEGINNING, 0], self.name), _checked(after, self.name)
        found = self._asked(lambda: self._client.xrange(self._stream, f"({place[0]}", last[0], count))
        return self._arrival(found, last[1] - count)

    def decoder(self) -> Decoder:
        return FieldsDecoder() if self._field is None else TextDecoder()

    def facts(self) -> Mapping[str, Any]:
        return {"stream": self._stream, "database": self._database, "field": self._field}

    def close(self) -> None:
        self._client.close()

    def _read(self, count: int) -> tuple[Any, list[Any]]:
        both = self._client.pipeline(transaction=True)
        both.xinfo_stream(self._stream)
        both.xread({self._stream: self._place[0]}, count=count)
        facts, found = both.execute(raise_on_error=False)
        if isinstance(facts, redis.ResponseError) and "no such key" in str(facts):
            return None, []
        for one in (facts, found):
            if isinstance(one, Exception):
                raise one
        return facts, found[0][1] if found else []

    def _facts(self) -> Any:
        """What Redis knows of the stream; None where there is none."""
        try:
            return self._client.xinfo_stream(self._stream)
        except redis.ResponseError as error:
            if "no such key" in str(error):
                return None
            raise

    def _check(self, facts: Any, place: list[Any]) -> None:
        """Refuses to go on from a place after which something is missing."""
        last, added = _number(place[0]), place[1]
        if facts is None:
            if added or last > (0, 0):
                raise _lost(f"no stream {self.name}", "the stream that was read before")
            return
        if "entries-added" not in facts:
            raise SettingError(got=f"{self.name}: a Redis before 7", wanted="7 or later", do="take a newer server")
        if facts["entries-added"] < added or _number(facts["last-generated-id"].decode()) < last:
            raise _lost(f"{self.name}, which ends before {place[0]}: made anew", "the stream that was read before")
        deleted = facts["max-deleted-entry-id"].decode()
        if _number(deleted) > last and (added or last > (0, 0)):
            raise _lost(f"{self.name}, where entries up to {deleted} were deleted after {place[0]}", "all of them")
        first = facts["first-entry"]
        if first is None or _number(first[0].decode()) > last:
            missing = facts["entries-added"] - added - facts["length"]
            if missing:
                raise _lost(
                    f"{self.name}, of which {abs(missing):,} entries after {place[0]} are trimmed, or made anew",
                    "entries that are kept until they were read",
                )

    def _arrival(self, entries: list[Any], added: int) -> Arrival:
        ids = [one.decode() for one, _ in entries]
        empty: dict[int, str] = {}
        messages: list[Any] = [fields for _, fields in entries]
        if self._field is not None:
            key = self._field.encode()
            messages = [fields.get(key) for fields in messages]
            reason = f"an entry without the field {self._field!r}; wanted one with it"
            empty = {k: reason for k, message in enumerate(messages) if message is None}
        return Arrival("stream", messages, lambda k: [ids[k - 1], added + k], lambda k: f"{self.name}@{ids[k]}", empty)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except _REFUSALS as error:
            raise SettingError(
                got=f"{self.name}: refused ({type(error).__name__})",
                wanted="access to this stream",
                do="correct user and password",
            ) from None
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise UnreachableError(type(error).__name__) from error
        except redis.RedisError as error:
            raise SettingError(
                got=f"{self.name}: {str(error)[:100]}", wanted="a stream (a key that XADD made)", do="correct the name"
            ) from error


def _number(entry: str) -> tuple[int, int]:
    first, _, second = entry.partition("-")
    return int(first), int(second)


def _before(entry: str) -> str:
    """The largest id below one."""
    first, second = _number(entry)
    return f"{first}-{second - 1}" if second else f"{max(first - 1, 0)}-{(1 << 64) - 1 if first else 0}"


def _checked(place: Any, name: str) -> list[Any]:
    try:
        entry, added = place
        return [f"{_number(entry)[0]}-{_number(entry)[1]}", int(added)]
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            got=f"position {place!r} of {name}", wanted="one of a Redis stream", do="resume with the source of before"
        ) from error


def _lost(got: str, wanted: str) -> DataError:
    return DataError(got=got, wanted=wanted, do="begin a new run, and trim only what was read")
