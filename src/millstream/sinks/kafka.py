"""Outcomes as messages of a Kafka topic, each there once: what is in the topic already is not sent again.

A message is one row as JSON, its key the record's id (its position where it has none). The header ``millstream`` holds
the name of the stream of rows and the row's number in it. At a commit the ends of the partitions become state; on
resuming, the numbers beyond these ends are read back, and these rows are passed over when they are written again.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import urllib.parse
import uuid
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from millstream.contracts import State
from millstream.errors import CheckpointError, SettingError, StorageError, missing_package
from millstream.sinks.refusals import check_state
from millstream.sinks.text import json_texts

__all__ = ["KafkaSink"]

HEADER = "millstream"
_DO = "start the broker or mend the connection, then go on with --resume"
_POLL_ROWS = 512  # between two looks at what was delivered
_READ_MESSAGES = 1000
_SETTLE_SECONDS = 1.0  # what a killed process had sent may still arrive
# One request at a time: a broker that loses one must not have the next, whatever it makes of sequence numbers.
_OURS = {"enable.idempotence": True, "acks": "all", "linger.ms": 5, "max.in.flight.requests.per.connection": 1}


class KafkaSink:
    """``kafka://host:9092,host:9092/topic``; what librdkafka wants besides (``?security.protocol=SSL``) goes into the
    query or ``settings``.

    A row goes to the partition of its key, which is fixed for as long as the number of partitions is. Commit once
    before the first row, as a trainer does: what was sent before the first commit is not known to anybody.
    """

    kind = "kafka"

    def __init__(self, url: str, *, timeout_seconds: float = 60.0, settings: Mapping[str, Any] | None = None) -> None:
        self._servers, self.topic, query = _parsed(url)
        self.name = f"kafka://{self._servers}/{self.topic}"
        self._timeout = timeout_seconds
        self._settings = {**query, **(settings or {}), "bootstrap.servers": self._servers, "log_level": 0}
        self._kafka = _package()
        own = {**_OURS, "delivery.timeout.ms": int(timeout_seconds * 1000)}
        with self._errors():
            self._producer = self._kafka.Producer({**self._settings, **own})
        self._stream = uuid.uuid4().hex
        self._ends = dict.fromkeys(range(self._num_partitions()), -1)  # -1: not known yet
        self._rows = 0
        self._there: set[int] = set()  # rows beyond the last commit that are in the topic
        self._failure = ""

    def write(self, outcomes: pa.RecordBatch) -> None:
        values = json_texts(outcomes).to_pylist()
        numbers = outcomes["position"].cast(pa.string())
        keys = (
            pc.coalesce(outcomes["id"], numbers).to_pylist() if "id" in outcomes.schema.names else numbers.to_pylist()
        )
        with self._errors():
            for key, value in zip(keys, values, strict=True):
                self._send(key.encode(), value)
                self._rows += 1
                if self._rows % _POLL_ROWS == 0:
                    self._producer.poll(0)
        self._refuse_failure()

    def commit(self) -> State:
        with self._errors():
            unsent = self._producer.flush(self._timeout)
            self._refuse_failure()
            if unsent:
                raise self._lost(f"{unsent:,} messages that it did not take in {self._timeout:g} seconds")
            for partition, end in self._ends.items():
                if end < 0:
                    self._ends[partition] = self._end_of(partition)
        ends = {str(partition): end for partition, end in self._ends.items()}
        return {"kind": self.kind, "topic": self.topic, "stream": self._stream, "rows": self._rows, "ends": ends}

    def restore(self, state: State | None) -> None:
        self._there = set()
        if state is None:
            return
        check_state(state, self.kind)
        if state["topic"] != self.topic:
            raise CheckpointError(
                got=f"the topic {self.topic} for a run whose outcomes went to {state['topic']}",
                wanted="the same topic",
                do="name it again, or begin a new run",
            )
        self._stream, self._rows = state["stream"], state["rows"]
        ends = {int(partition): end for partition, end in state["ends"].items()}
        if self._ends.keys() < ends.keys():
            raise self._gone(f"{len(self._ends)} partitions where there were {len(ends)}")
        self._ends = dict.fromkeys(self._ends, 0) | ends  # those that were added are read from their beginning
        with self._errors():
            self._read_back()

    def close(self) -> None:
        with self._errors():
            self._producer.purge()
            self._producer.flush(1.0)

    def _send(self, key: bytes, value: str) -> None:
        if self._there and self._rows in self._there:
            self._there.remove(self._rows)
            return
        headers = [(HEADER, f"{self._stream}:{self._rows}".encode())]
        partition = zlib.crc32(key) % len(self._ends)
        message = {"key": key, "headers": headers, "partition": partition, "on_delivery": self._delivered}
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                self._producer.produce(self.topic, value, **message)
                return
            except BufferError:  # more in flight than it keeps: wait until the broker has taken some
                self._producer.poll(0.1)
                self._refuse_failure()
                if time.monotonic() > give_up:
                    raise self._lost(f"nothing taken in {self._timeout:g} seconds") from None

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failure = self._failure or str(error.str())
        else:
            partition = message.partition()
            self._ends[partition] = max(self._ends[partition], message.offset() + 1)

    def _refuse_failure(self) -> None:
        if self._failure:
            raise self._lost(f"a message that was not delivered: {self._failure}")

    def _num_partitions(self) -> int:
        with self._errors():
            give_up = time.monotonic() + self._timeout
            while True:
                topic = self._producer.list_topics(self.topic, timeout=self._timeout).topics[self.topic]
                if topic.partitions:
                    return len(topic.partitions)
                if time.monotonic() > give_up:
                    raise StorageError(
                        got=f"no topic {self.topic} at {self._servers} ({topic.error})",
                        wanted="one that is there, or a broker that makes it",
                        do="create it",
                    )
                time.sleep(0.1)  # it may be made on being asked for

    def _end_of(self, partition: int) -> int:
        with self._reading() as consumer:
            place = self._kafka.TopicPartition(self.topic, partition)
            return int(consumer.get_watermark_offsets(place, timeout=self._timeout)[1])

    def _read_back(self) -> None:
        """Which of our rows are beyond the ends that the checkpoint knows, and where the ends are now."""
        with self._reading() as consumer:
            consumer.assign([self._kafka.TopicPartition(self.topic, p, end) for p, end in self._ends.items()])
            unread, give_up = set(self._ends), time.monotonic() + self._timeout
            settled = time.monotonic() + _SETTLE_SECONDS
            while unread or time.monotonic() < settled:
                for message in consumer.consume(_READ_MESSAGES, timeout=0.2):
                    give_up = time.monotonic() + self._timeout
                    if message.error():
                        unread.discard(self._ended(message.error(), message.partition()))
                    else:
                        self._take_back(message)
                if time.monotonic() > give_up:
                    raise self._lost(f"nothing to read in {self._timeout:g} seconds")

    def _ended(self, error: Any, partition: int) -> int:
        if error.code() == self._kafka.KafkaError._PARTITION_EOF:
            return partition
        if error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
            raise self._gone(f"partition {partition} without the messages from {self._ends[partition]} on")
        if error.fatal() or not error.retriable():
            raise self._lost(str(error.str()))
        return -1

    def _take_back(self, message: Any) -> None:
        partition = message.partition()
        self._ends[partition] = max(self._ends[partition], message.offset() + 1)
        for name, value in message.headers() or ():
            stream, _, row = (value or b"").partition(b":")
            if name == HEADER and stream == self._stream.encode() and row.isdigit() and int(row) >= self._rows:
                self._there.add(int(row))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        consumer = self._kafka.Consumer(
            {
                **self._settings,
                "group.id": f"millstream-{self._stream}",  # wanted by the library; never joined
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "isolation.level": "read_uncommitted",
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """The library's errors, without settings, which may hold a password."""
        try:
            yield
        except self._kafka.KafkaException as error:
            fault = error.args[0]
            if fault.code() == self._kafka.KafkaError._INVALID_ARG:
                raise SettingError(
                    got=f"settings that librdkafka does not take ({fault.str()})",
                    wanted="its names and values",
                    do="see its CONFIGURATION.md",
                ) from None
            raise self._lost(str(fault.str())) from error

    def _lost(self, what: str) -> StorageError:
        return StorageError(got=f"{what} at {self.name}", wanted="a broker that takes messages", do=_DO)

    def _gone(self, what: str) -> StorageError:
        return StorageError(
            got=f"{self.name}, {what}",
            wanted="the topic that the run wrote to, with all since its last commit",
            do="begin a new run, or name another topic for its outcomes",
        )


def _parsed(url: str) -> tuple[str, str, dict[str, str]]:
    """Servers, topic and settings; the query is never shown."""
    parts = urllib.parse.urlsplit(url)
    topic = parts.path.strip("/")
    if parts.scheme != "kafka" or not parts.netloc or "@" in parts.netloc or not topic or "/" in topic:
        raise SettingError(
            got=f"kafka://{parts.netloc.rpartition('@')[2]}{parts.path}",
            wanted="kafka://HOST:PORT/TOPIC",
            do="write it like this, names and passwords as settings of the query (sasl.username=…)",
        )
    return parts.netloc, topic, dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))


def _package() -> Any:
    try:
        return importlib.import_module("confluent_kafka")
    except ImportError as error:
        raise missing_package("confluent_kafka", "kafka://", "kafka") from error
