"""Topics of a real server that speaks Kafka's protocol (Tansu, in memory). Run: pytest tests/test_live_kafka.py"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from live_servers import Proxy, Server, kafka_server, running
from millstream.errors import DataError, SettingError, StorageError
from millstream.sources import UpstreamSource, live_source
from source_checks import check_live_source, places_of, read_some

confluent_kafka = pytest.importorskip("confluent_kafka", reason="pip install 'millstream[kafka]'")
admin = pytest.importorskip("confluent_kafka.admin")
kafka_topic = pytest.importorskip("millstream.sources.kafka_topic")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(kafka_server()) as one:
        yield one


def create(server: Server, topic: str, partitions: int = 1) -> str:
    client = admin.AdminClient({"bootstrap.servers": f"127.0.0.1:{server.port}", "log_level": 0})
    for done in client.create_topics([admin.NewTopic(topic, partitions, 1)]).values():
        done.result(10)
    return f"kafka://127.0.0.1:{server.port}/{topic}"


def add(server: Server, topic: str, values: Any, partitions: int = 1) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": f"127.0.0.1:{server.port}", "log_level": 0})
    for n, value in enumerate(values):
        producer.produce(topic, value, key=b"k", partition=n % partitions)
    assert producer.flush(10) == 0


def records(first: int, last: int) -> list[bytes]:
    return [json.dumps({"n": n, "x": n / 4}).encode() for n in range(first, last)]


def numbers(chunks: Any) -> list[int]:
    return [place["n"] for place in places_of(chunks)]


def test_a_topic_keeps_the_promises_of_a_live_source(server: Server) -> None:
    url = create(server, "kit", 3)
    add(server, "kit", records(0, 60), 3)
    whole = check_live_source(lambda: live_source(url), 60)
    for part in range(3):
        assert [place["n"] for place in whole if place["n"] % 3 == part] == list(range(part, 60, 3))


def test_some_partitions_and_those_that_do_not_exist(server: Server) -> None:
    url = create(server, "some", 3)
    add(server, "some", records(0, 30), 3)
    source = live_source(f"{url}?partitions=2")
    assert numbers(read_some(source, 10)) == list(range(2, 30, 3))
    source.close()
    with pytest.raises(SettingError, match="partition 7"):
        live_source(f"{url}?partitions=7")


def test_tombstones_are_holes_and_bad_messages_obey_on_error(server: Server) -> None:
    url = create(server, "holes")
    add(server, "holes", [*records(0, 3), None, b"{broken", *records(5, 8)])
    source = live_source(url, on_error="quarantine")
    places = places_of(read_some(source, 8))
    source.close()
    assert places[3] == ("a tombstone; wanted a message with a value", "kafka://holes/0@3", "")
    assert places[4][1:] == ("kafka://holes/0@4", "{broken")
    source = live_source(url)
    seen = []
    with pytest.raises(DataError, match=r"kafka://holes/0@4: no JSON"):
        for chunk in source.read():
            seen.append(chunk)
    assert [chunk.span for chunk in seen] == [4] and len(places_of(seen)) == 4
    source.close()


def test_gaps_of_transactions_are_no_holes(server: Server) -> None:
    url = create(server, "gaps")
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": f"127.0.0.1:{server.port}", "transactional.id": "t", "log_level": 0}
    )
    producer.init_transactions(10)
    for first, keeps in ((0, True), (100, False), (3, True), (6, True)):
        producer.begin_transaction()
        for value in records(first, first + 3):
            producer.produce("gaps", value, partition=0)
        (producer.commit_transaction if keeps else producer.abort_transaction)(10)
    source = live_source(url)
    chunks = read_some(source, 9, size=4)
    kept = [place["n"] for place in places_of(chunks) if place["n"] < 100]
    assert kept == list(range(9))
    assert chunks[-1].after["partitions"]["0"] > 9
    before = None
    for chunk in chunks:
        assert source.again(before, chunk.after, chunk.span).inputs.equals(chunk.inputs)
        before = chunk.after
    source.close()


def test_an_offset_past_the_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has a server of its own, which answers as Kafka does."""
    monkeypatch.setitem(kafka_topic._SETTINGS, "allow.auto.create.topics", True)  # or it would have no topic
    topic = kafka_topic.KafkaTopic("127.0.0.1:1", "any", settings={"test.mock.num.brokers": 1})
    topic._topic_id = lambda: None  # two clients would have two servers
    source = UpstreamSource(topic, schema=pa.schema([("n", pa.int64())]))
    with pytest.raises(DataError, match="not kept, or past the end"):
        read_some(source, 1, {"identity": None, "partitions": {"0": 50}})
    source.close()


@pytest.mark.slow
def test_a_topic_made_anew_is_an_error_and_so_is_one_that_is_gone() -> None:
    server = kafka_server()
    with running(server):
        url = create(server, "lost")
        add(server, "lost", records(0, 40))
        source = live_source(url)
        chunks = read_some(source, 40)
        source.close()
        server.kill()
        server.start()  # it keeps nothing
        with pytest.raises(DataError, match="no topic 'lost'"):
            live_source(url)
        create(server, "lost")
        add(server, "lost", records(0, 80))
        source = live_source(url)
        with pytest.raises(DataError, match="made anew"):
            source.read(chunks[-1].after)
        source.close()


@pytest.mark.slow
def test_a_server_that_lost_all_is_noticed_by_a_reader_in_the_middle() -> None:
    """Both come back behind a proxy: a client that sees a topic vanish while it is being made would be another test."""
    late = Proxy(0)
    server = kafka_server(late.port)
    late.target = server.port
    with running(server):
        url = create(server, "mid").replace(str(server.port), str(late.port))
        add(server, "mid", records(0, 40))
        source = live_source(url)
        chunks = source.read(size=10)
        assert [next(chunks).span for _ in range(4)] == [10] * 4
        late.is_open = False
        late.cut()
        server.kill()
        server.start()
        direct = Server(server.words, server.port)
        late.is_open = True
        create(direct, "mid")
        add(direct, "mid", records(0, 80))
        stopper = threading.Timer(40, source.stop)
        stopper.start()
        with pytest.raises(DataError, match=r"made anew|no topic|past the end"):
            for _ in chunks:
                pass
        stopper.cancel()
        source.close()
    late.close()


@pytest.mark.slow
def test_connections_that_are_cut_and_slow() -> None:
    proxy = Proxy(0)
    server = kafka_server(proxy.port)
    proxy.target = server.port
    with running(server):
        url = create(server, "cut").replace(str(server.port), str(proxy.port))
        add(server, "cut", records(0, 400))
        proxy.piece = 7
        source = live_source(url)
        got: list[int] = []
        for chunk in source.read(size=10):
            got += numbers([chunk])
            if len(got) % 100 == 0:
                proxy.cut()
            if len(got) > 200:
                proxy.piece, proxy.delay_seconds = 1 << 16, 0.02
            if len(got) == 400:
                break
        assert got == list(range(400))
        source.close()
    proxy.close()


def test_secrets_are_never_shown() -> None:
    for query in ("security.protocol=hunter22", "sasl.password=hunter22&ssl.ca.pem=hunter22", "linger=hunter22"):
        with pytest.raises((SettingError, StorageError)) as caught:
            live_source(f"kafka://who:hunter22@127.0.0.1:1/t?give_up_seconds=0&{query}")
        assert "hunter22" not in str(caught.value)
    with pytest.raises(SettingError, match=r"isolation\.level"):
        live_source("kafka://127.0.0.1:1/t?give_up_seconds=0&isolation.level=read_uncommitted")
