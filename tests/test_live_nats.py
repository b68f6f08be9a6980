"""Streams of a real NATS JetStream. Run: pytest tests/test_live_nats.py"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from live_servers import Proxy, Server, nats_server, running
from millstream.errors import DataError
from millstream.sources import live_source
from source_checks import check_live_source, closing, places_of, read_some

nats = pytest.importorskip("nats", reason="pip install 'millstream[nats]'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(nats_server(tmp_path_factory.mktemp("nats"))) as one:
        yield one


def ask(server: Server, use: Any) -> Any:
    """What a coroutine says of a connection."""

    async def main() -> Any:
        client = await nats.connect(f"nats://127.0.0.1:{server.port}")
        try:
            return await use(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(main())


def anew(server: Server, name: str, last: int) -> str:
    async def use(stream: Any) -> None:
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await stream.delete_stream(name)
        await stream.add_stream(name=name, subjects=[f"{name}.>"])

    ask(server, use)
    add(server, name, 0, last)
    return f"nats://127.0.0.1:{server.port}/{name}"


def add(server: Server, name: str, first: int, last: int) -> None:
    async def use(stream: Any) -> None:
        for n in range(first, last):
            await stream.publish(f"{name}.{'ab'[n % 2]}", json.dumps({"n": n, "x": n / 4}).encode())

    ask(server, use)


def numbers(chunks: Any) -> list[int]:
    return [place["n"] for place in places_of(chunks)]


def test_a_stream_keeps_the_promises_of_a_live_source(server: Server) -> None:
    url = anew(server, "kit", 50)
    assert check_live_source(lambda: live_source(url), 50) == [{"n": n, "x": n / 4} for n in range(50)]


def test_a_subject_is_a_part_of_its_stream(server: Server) -> None:
    url = anew(server, "parts", 20)
    source = live_source(f"{url}.b")
    assert numbers(read_some(source, 10)) == list(range(1, 20, 2))
    source.close()
    with pytest.raises(DataError, match="no stream for 'nowhere'"):
        live_source(f"nats://127.0.0.1:{server.port}/nowhere")


def test_what_is_deleted_or_made_anew_is_an_error(server: Server) -> None:
    url = anew(server, "gaps", 30)
    source = live_source(url)
    chunks = read_some(source, 20, size=10)
    ask(server, lambda stream: stream.purge_stream("gaps", seq=16))
    with pytest.raises(DataError, match="5 messages from 11 on are deleted"):
        closing(live_source(url), lambda other: other.read(chunks[0].after))
    with pytest.raises(DataError, match="of 10 messages"):
        source.again(None, chunks[0].after, 10)
    anew(server, "gaps", 30)
    with pytest.raises(DataError, match="made anew"):
        closing(live_source(url), lambda other: other.read(chunks[1].after))
    source.close()


@pytest.mark.slow
def test_killed_and_started_again_loses_and_repeats_nothing(server: Server) -> None:
    source = live_source(anew(server, "kill", 300))
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.extend(numbers(read_some(source, 900, size=16))))
    reader.start()
    for part in range(2):
        time.sleep(0.3)
        server.kill()
        time.sleep(0.3)
        server.start()
        add(server, "kill", 300 * (part + 1), 300 * (part + 2))
    reader.join(40)
    assert got == list(range(900))
    source.close()


@pytest.mark.slow
def test_connections_that_are_cut_slow_or_in_single_bytes(server: Server) -> None:
    anew(server, "cut", 300)
    proxy = Proxy(server.port)
    proxy.piece = 1
    source = live_source(f"nats://127.0.0.1:{proxy.port}/cut")
    got: list[int] = []
    for chunk in source.read(size=9):
        got += numbers([chunk])
        if len(got) % 90 == 0:
            proxy.cut()
        if len(got) > 150:
            proxy.piece, proxy.delay_seconds = 1 << 16, 0.02
        if len(got) == 300:
            break
    assert got == list(range(300))
    source.close()
    proxy.close()
