"""A topic of Kafka, or of anything that speaks its protocol. Needs ``confluent-kafka``: the extra ``kafka``.

Offsets are kept by whoever reads, never by the broker: partitions are assigned, no group is joined, nothing is
committed. Offsets have gaps (aborted transactions, compaction), so the next one is not the last one plus one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from millstream.errors import DataError, SettingError, StorageError, missing_package
from millstream.sources.arrivals import Arrival, Places, Start, UnreachableError
from millstream.sources.decoding import Decoder, TextDecoder

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
    from confluent_kafka.admin import AdminClient
except ImportError as absent:
    raise missing_package("confluent-kafka", "kafka://", "kafka") from absent

__all__ = ["KafkaTopic"]

_ASK_SECONDS = 3.0
_REPLAY_SECONDS = 30.0
_SETTINGS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
}
"""What the promises rest on; nobody may set them otherwise."""
_DEFAULTS: dict[str, Any] = {"group.id": "millstream", "log_level": 2, "fetch.wait.max.ms": 100}
_SETUP = {"_AUTHENTICATION", "TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED"}
_LOST = {"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"}
_GONE = {"UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"}


class KafkaTopic:
    """All partitions of a topic, or some; those that are added later are read from their beginning.

    ``settings`` go to librdkafka as they are (``security.protocol``, ``sasl.username``). Their values are never shown.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partitions: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        buffer_bytes: int = 1 << 25,
        look_seconds: float = 10.0,
    ) -> None:
        self.name = f"kafka://{topic}"
        self._topic = topic
        self._wanted = None if partitions is None else sorted(set(partitions))
        self._look_seconds = look_seconds
        self._next_look = 0.0
        self._cut = threading.Event()
        self._refusal: Any = None
        self._waiting: deque[Arrival] = deque()
        self._partitions: set[int] = set()
        self._identity: str | None = None
        self._second: Any = None
        self._replay: tuple[Any, str, int] | None = None  # a consumer for messages of before, and where it stands
        settings = dict(settings or {})
        wrong = [key for key in settings if key in _SETTINGS]
        if wrong:
            raise SettingError(
                got=f"{wrong[0]} for {self.name}", wanted=f"it as {_SETTINGS[wrong[0]]}", do="leave it out"
            )
        limit = max(1, buffer_bytes >> 10)
        most = max(buffer_bytes, 1 << 20)
        bounds = {"queued.max.messages.kbytes": limit, "fetch.max.bytes": most, "message.max.bytes": min(most, 1000000)}
        self._settings = {**_DEFAULTS, **bounds, "bootstrap.servers": servers, **settings, **_SETTINGS}
        self._consumer = self._made(Consumer, more={"error_cb": self._told})
        self._admin = self._made(AdminClient, only=("bootstrap.servers", "log_level", *settings))

    def begin(self, start: Start, back: int = 0) -> tuple[str | None, Places]:
        identity, found = self._looked_up()
        places = {}
        for number in found:
            low, high = self._marks(number)
            places[str(number)] = low if start == "earliest" else max(low, high - back)
        return identity, places

    def seek(self, identity: str | None, places: Places) -> None:
        self._cut.clear()
        self._waiting.clear()
        now, found = self._looked_up()
        if identity is not None and now is not None and identity != now:
            raise _lost(f"{self.name} made anew: another topic of this name", "the topic that was read before")
        gone = sorted(set(map(int, places)) - set(found))
        if gone:
            raise _lost(f"{self.name} without partition {gone[0]}", "the partitions that were read before")
        ahead = []
        for number in found:
            low, _ = self._marks(number)
            offset = places.get(str(number), low)
            if not isinstance(offset, int) or offset < 0:
                raise DataError(got=f"offset {offset!r} of {self.name}", wanted="a number", do="resume as before")
            if offset < low:
                raise _lost(
                    f"{self.name}/{number} from offset {low:,}: {low - offset:,} from {offset:,} on are deleted",
                    "messages that are kept until they were read",
                )
            ahead.append(TopicPartition(self._topic, number, offset))
        self._consumer.assign(ahead)
        self._partitions, self._identity = set(found), now
        self._next_look = time.monotonic() + self._look_seconds

    def fetch(self, count: int, seconds: float) -> Arrival | None:
        if self._waiting:
            return self._waiting.popleft()
        messages = self._consumer.consume(count, seconds)
        if self._refusal is not None:
            raise self._refused(self._refusal)
        if self._cut.is_set():
            # Whoever answers after a cut may be another server, or know another topic of this name: look first.
            raise UnreachableError("the connection was cut")
        self._waiting.extend(self._arrivals(messages))
        if time.monotonic() > self._next_look:
            self._look_for_partitions()
        return self._waiting.popleft() if self._waiting else None

    def between(self, partition: str, before: Any, after: Any, count: int) -> Arrival:
        number = int(partition)
        before = self._marks(number)[0] if before is None else before
        consumer = self._replayer(partition, before)
        messages: list[Any] = []
        ends = time.monotonic() + _REPLAY_SECONDS
        self._replay = None
        while len(messages) < count and not (messages and messages[-1].offset() >= after - 1):
            found = consumer.consume(count - len(messages), 0.5)
            is_end = any(one.error() is not None and one.error().name() == "_PARTITION_EOF" for one in found)
            messages += [one for one in found if self._is_message(one)]
            if is_end and not messages:
                break
            if time.monotonic() > ends:
                raise UnreachableError(f"no messages from offset {before} for {_REPLAY_SECONDS:g} seconds")
        whole = [one for one in messages if one.offset() < after]
        if len(whole) == len(messages) == count:
            self._replay = (consumer, partition, after)
        return self._arrival(partition, whole)

    def decoder(self) -> Decoder:
        return TextDecoder()

    def facts(self) -> Mapping[str, Any]:
        return {"topic": self._topic, "partitions": self._wanted}

    def close(self) -> None:
        for one in (self._consumer, self._second):
            if one is not None:
                one.close()

    def _made(
        self, kind: Callable[..., Any], only: Sequence[str] | None = None, more: Mapping[str, Any] | None = None
    ) -> Any:
        settings = {key: value for key, value in self._settings.items() if only is None or key in only}
        try:
            return kind({**settings, **(more or {})})
        except (KafkaException, TypeError, ValueError) as error:
            text = str(error.args[0].str() if isinstance(error, KafkaException) else error)
            for value in sorted(map(str, self._settings.values()), key=len, reverse=True):
                text = text.replace(value, "…") if len(value) > 3 else text
            raise SettingError(got=f"{self.name}: {text}", wanted="settings of librdkafka", do="correct them") from None

    def _told(self, error: Any) -> None:
        """What the client says on the side: a connection that was cut, a password that is wrong."""
        if error.name() in _SETUP:
            self._refusal = error
        elif error.fatal() or error.name() in ("_ALL_BROKERS_DOWN", "_TRANSPORT"):
            self._cut.set()

    def _looked_up(self) -> tuple[str | None, list[int]]:
        """The topic's identity, where it has one, and its partitions."""
        found = self._asked(lambda: self._consumer.list_topics(self._topic, timeout=_ASK_SECONDS)).topics[self._topic]
        if found.error is not None and found.error.name() in _GONE:
            raise _lost(f"no topic {self._topic!r} at {self.name}", "one that exists")
        if found.error is not None or not found.partitions:
            raise UnreachableError(str(found.error))
        missing = set(self._wanted or ()) - set(found.partitions)
        if missing:
            raise SettingError(
                got=f"partition {min(missing)} of {self.name}", wanted=f"below {len(found.partitions)}", do="correct it"
            )
        return self._topic_id(), self._wanted or sorted(found.partitions)

    def _topic_id(self) -> str | None:
        try:
            answer = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_ASK_SECONDS)
            identity = answer[self._topic].result(_ASK_SECONDS + 1).topic_id
        except KafkaException as error:
            if error.args[0].name() in ("_UNSUPPORTED_FEATURE", "UNSUPPORTED_VERSION", *_SETUP):
                return None  # an older broker, or one that does not tell us
            raise UnreachableError(error.args[0].str()) from error
        except TimeoutError as error:
            raise UnreachableError("no answer") from error
        text = None if identity is None else str(identity)
        return None if text is None or set(text) <= {"A", "="} else text  # all zeros: it has none

    def _marks(self, number: int) -> tuple[int, int]:
        """The oldest offset that is kept, and the one that comes next."""
        one = TopicPartition(self._topic, number)
        found = self._asked(lambda: self._consumer.get_watermark_offsets(one, timeout=_ASK_SECONDS))
        if found is None:
            raise UnreachableError("no answer")
        return int(found[0]), int(found[1])

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except KafkaException as error:
            if self._refusal is not None or error.args[0].name() in _SETUP:
                raise self._refused(self._refusal or error.args[0]) from None
            raise UnreachableError(error.args[0].str()) from error

    def _look_for_partitions(self) -> None:
        """Partitions that were added belong to what is read; so the next seek takes them in."""
        self._next_look = time.monotonic() + self._look_seconds
        identity, found = self._looked_up()
        if identity is not None and self._identity is not None and identity != self._identity:
            raise _lost(f"{self.name} made anew: another topic of this name", "the topic that was read before")
        for number in sorted(set(found) - self._partitions):
            self._consumer.incremental_assign([TopicPartition(self._topic, number, self._marks(number)[0])])
            self._partitions.add(number)

    def _arrivals(self, messages: Sequence[Any]) -> list[Arrival]:
        """Messages by partition, each in the order of its offsets."""
        parts: dict[str, list[Any]] = {}
        for one in messages:
            if self._is_message(one):
                parts.setdefault(str(one.partition()), []).append(one)
        return [self._arrival(partition, found) for partition, found in parts.items()]

    def _arrival(self, partition: str, messages: Sequence[Any]) -> Arrival:
        offsets = [one.offset() for one in messages]
        values = [one.value() for one in messages]
        return Arrival(
            partition,
            values,
            lambda k: offsets[k - 1] + 1,
            lambda k: f"{self.name}/{partition}@{offsets[k]}",
            {k: "a tombstone; wanted a message with a value" for k, value in enumerate(values) if value is None},
        )

    def _is_message(self, message: Any) -> bool:
        error = message.error()
        if error is None:
            return True
        name = error.name()
        if name == "_PARTITION_EOF":
            return False
        if name in _LOST:
            raise _lost(
                f"{self.name}/{message.partition()}@{message.offset()}: not kept, or past the end",
                "the topic that was read before, with what was not yet read",
            )
        if name in _GONE:
            raise _lost(f"no topic {self._topic!r} any more", "the topic that was read before")
        if name in _SETUP:
            raise self._refused(error)
        if error.fatal():
            raise StorageError(got=f"{self.name}: {error.str()[:200]}", wanted="a working client", do="start again")
        raise UnreachableError(error.str())

    def _replayer(self, partition: str, offset: int) -> Any:
        """A second consumer, which goes back while the first one goes on."""
        if self._replay is not None and self._replay[1:] == (partition, offset):
            return self._replay[0]
        if self._second is None:
            self._second = self._made(Consumer, more={"enable.partition.eof": True})
        self._second.assign([TopicPartition(self._topic, int(partition), offset)])
        return self._second

    def _refused(self, error: KafkaError) -> SettingError:
        return SettingError(
            got=f"{self.name}: refused ({error.name()})", wanted="access to this topic", do="correct user and password"
        )


def _lost(got: str, wanted: str) -> DataError:
    return DataError(got=got, wanted=wanted, do="begin a new run, and keep messages longer than a run may pause")
