"""Streams of a real Redis. Run: pytest tests/test_live_redis.py"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from live_servers import Proxy, Server, redis_server, running
from millstream.errors import DataError, SettingError, StorageError
from millstream.sources import as_source, live_source
from source_checks import check_live_source, closing, places_of, read_some

redis = pytest.importorskip("redis", reason="pip install 'millstream[redis]'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(redis_server(tmp_path_factory.mktemp("redis"))) as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    one = redis.Redis(port=server.port)
    one.flushall()
    yield one
    one.close()


def add(client: Any, first: int, last: int) -> list[Any]:
    return [client.xadd("s", {"n": n, "x": n / 4, "word": f'a,\n"{n}'}) for n in range(first, last)]


def numbers(chunks: Any) -> list[int]:
    return [place["n"] for place in places_of(chunks)]


def test_a_stream_keeps_the_promises_of_a_live_source(server: Server, client: Any) -> None:
    add(client, 0, 50)
    url = f"redis://127.0.0.1:{server.port}/s"
    whole = check_live_source(lambda: live_source(url), 50)
    assert whole == [{"n": n, "x": n / 4, "word": f'a,\n"{n}'} for n in range(50)]


def test_a_field_of_json_and_entries_without_it(server: Server, client: Any) -> None:
    for n in range(20):
        client.xadd("s", {"other": "x"} if n % 5 == 3 else {"data": f'{{"n": {n}}}' if n != 7 else "{no"})
    url = f"redis://127.0.0.1:{server.port}/s?field=data"
    whole = check_live_source(lambda: live_source(url, on_error="quarantine"), 20)
    assert [place if isinstance(place, tuple) else place["n"] for place in whole][:3] == [0, 1, 2]
    assert whole[3][0].startswith("an entry without the field 'data'")
    assert (
        whole[7][0].startswith("no JSON")
        and whole[7][2] == "{no"
        and f"redis://127.0.0.1:{server.port}/s@" in whole[7][1]
    )
    source = live_source(url)
    with pytest.raises(DataError, match=r"redis://.*@\d+-\d: no JSON"):
        read_some(source, 20)
    source.close()


def test_what_is_trimmed_deleted_or_made_anew_is_an_error(server: Server, client: Any) -> None:
    ids = add(client, 0, 30)
    url = f"redis://127.0.0.1:{server.port}/s"
    source = live_source(url)
    chunks = read_some(source, 20, size=10)
    client.xtrim("s", maxlen=10, approximate=False)
    assert closing(live_source(url), lambda other: numbers(read_some(other, 10, chunks[1].after))) == list(
        range(20, 30)
    )
    for before, after in ((None, chunks[0]), (chunks[0].after, chunks[1])):
        with pytest.raises(DataError, match="0 of 10 messages"):
            source.again(before, after.after, 10)
    with pytest.raises(DataError, match=r"10 entries after .* trimmed"):
        closing(live_source(url), lambda other: other.read(chunks[0].after))
    client.xdel("s", ids[25])
    with pytest.raises(DataError, match="deleted after"):
        closing(live_source(url), lambda other: other.read(chunks[1].after))
    client.delete("s")
    add(client, 0, 3)
    with pytest.raises(DataError, match="made anew"):
        closing(live_source(url), lambda other: other.read(chunks[1].after))


@pytest.mark.slow
def test_trimming_under_a_reader_is_an_error(server: Server, client: Any) -> None:
    add(client, 0, 300)
    source = live_source(f"redis://127.0.0.1:{server.port}/s")
    chunks = source.read(size=1)
    next(chunks)
    add(client, 300, 900)
    client.xtrim("s", maxlen=5, approximate=False)
    with pytest.raises(DataError, match="trimmed"):
        for _ in chunks:
            pass
    source.close()


def test_the_end_is_where_it_was_when_the_source_was_made(server: Server, client: Any) -> None:
    add(client, 0, 10)
    source = live_source(f"redis://127.0.0.1:{server.port}/s?start=latest")
    assert source.schema is not None and source.schema.names == ["n", "x", "word"]
    add(client, 10, 15)
    assert numbers(read_some(source, 5)) == [10, 11, 12, 13, 14]
    assert numbers(read_some(source, 5, None)) == [10, 11, 12, 13, 14]
    source.close()


@pytest.mark.slow
def test_killed_and_started_again_loses_and_repeats_nothing(server: Server, client: Any) -> None:
    add(client, 0, 500)
    source = as_source(f"redis://127.0.0.1:{server.port}/s")
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(numbers(read_some(source, 1500, size=16))))
    reader.start()
    for part in range(2):
        time.sleep(0.3)
        server.kill()
        time.sleep(0.3)
        server.start()
        add(client, 500 * (part + 1), 500 * (part + 2))
    reader.join(40)
    assert got == list(range(1500))
    source.close()


@pytest.mark.slow
def test_connections_that_are_cut_slow_or_in_single_bytes(server: Server, client: Any) -> None:
    add(client, 0, 400)
    proxy = Proxy(server.port)
    proxy.piece = 1
    source = live_source(f"redis://127.0.0.1:{proxy.port}/s")
    got = []
    for chunk in source.read(size=9):
        got += numbers([chunk])
        if len(got) % 90 == 0:
            proxy.cut()
        if len(got) == 200:
            proxy.piece, proxy.delay_seconds = 1 << 16, 0.02
        if len(got) == 400:
            break
    assert got == list(range(400))
    source.close()
    proxy.close()


def test_a_server_that_stays_away_and_one_that_refuses(server: Server, client: Any) -> None:
    add(client, 0, 1)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"no answer of redis://.* for 0.5 seconds"):
        live_source("redis://127.0.0.1:1/s?give_up_seconds=0.5")
    assert time.monotonic() - began < 5
    with pytest.raises(SettingError) as caught:
        live_source(f"redis://who:secret7@127.0.0.1:{server.port}/s")
    assert "refused" in str(caught.value) and "secret7" not in str(caught.value)
    client.set("text", "x")
    with pytest.raises(SettingError, match="wanted a stream"):
        live_source(f"redis://127.0.0.1:{server.port}/text")
