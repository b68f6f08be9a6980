"""Live sources by their address: ``kafka://``, ``redis://``, ``nats://``, ``follow:PATH``.

What comes after ``?`` is options of the source, of the server and, with a dot in its name, of Kafka's client. A client
is loaded when its address is used.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from millstream.errors import SettingError, StorageError
from millstream.sources.arrivals import Upstream
from millstream.sources.columns import Declared, near
from millstream.sources.decoding import Decoder, RowsDecoder, TextDecoder, function_named
from millstream.sources.followed import FollowedFile
from millstream.sources.text import OnError
from millstream.sources.upstream import UpstreamSource

__all__ = ["is_live_url", "live_source"]

_SHARED = {"decoder", "registry", "start", "give_up_seconds", "max_message_bytes"}
_LIVE = re.compile(r"(?:kafka|redis|rediss|nats|tls)://|follow:", re.IGNORECASE)


def is_live_url(name: object) -> bool:
    """Whether this is the address of a live source.

    >>> is_live_url("kafka://localhost:9092/clicks"), is_live_url("clicks.csv")
    (True, False)
    """
    return isinstance(name, str) and _LIVE.match(name) is not None


def live_source(
    url: str,
    *,
    schema: Declared = None,
    on_error: OnError = "stop",
    patience_seconds: float = 0.0,
    name: str | None = None,
) -> UpstreamSource:
    """The source at an address.

    - ``kafka://host:9092,other:9092/topic?partitions=0,2&security.protocol=SASL_SSL&settings=client.properties``
    - ``redis://user:password@host:6379/stream?field=json&db=0`` (``rediss://`` for TLS)
    - ``nats://host:4222/stream-or-subject`` (``tls://`` for TLS)
    - ``follow:/var/log/clicks.jsonl``

    All take ``start=earliest|latest``, ``give_up_seconds``, ``max_message_bytes``; those of messages ``decoder=json``,
    ``decoder=avro&registry=http://host:8081`` or ``decoder=module:function``.

    >>> live_source("kafka://localhost/clicks?strat=latest")
    Traceback (most recent call last):
    millstream.errors.SettingError: got strat= for kafka://localhost/clicks; wanted a known option; try 'start'
    """
    scheme = url.partition(":")[0].lower()
    parts, options = _parts(url, scheme)
    shown = f"{scheme}:{parts.path}" if scheme == "follow" else f"{scheme}://{_hosts(parts)}{parts.path}"
    make, known = _KINDS[scheme]
    wrong = [key for key in options if key not in known | _SHARED and not (scheme == "kafka" and "." in key)]
    if wrong:
        raise SettingError(
            got=f"{wrong[0]}= for {shown}", wanted="a known option", do=near(wrong[0], sorted(known | _SHARED))
        )
    shared = {key: options.pop(key) for key in sorted(_SHARED & set(options))}
    settings: dict[str, Any] = {
        "start": shared.get("start", "earliest"),
        "give_up_seconds": _number(shared, "give_up_seconds", 300.0, float, shown),
        "max_message_bytes": _number(shared, "max_message_bytes", 1 << 24, int, shown),
    }
    decoder = _decoder(shared, shown)
    upstream = make(parts, options, shown)
    try:
        return UpstreamSource(
            upstream,
            decoder,
            schema=schema,
            on_error=on_error,
            patience_seconds=patience_seconds,
            name=name,
            **settings,
        )
    except BaseException:
        upstream.close()
        raise


def _parts(url: str, scheme: str) -> tuple[SplitResult, dict[str, str]]:
    if scheme == "follow":
        path = url.partition(":")[2]
        if Path(path).expanduser().exists() or "?" not in path:
            return SplitResult(scheme, "", path, "", ""), {}
        path, _, query = path.rpartition("?")
        return SplitResult(scheme, "", path, query, ""), dict(parse_qsl(query, keep_blank_values=True))
    parts = urlsplit(url)
    if not _hosts(parts) or len(parts.path) < 2:
        raise SettingError(
            got=f"{scheme}://{_hosts(parts)}{parts.path}", wanted=f"{scheme}://host:port/name", do="write it out"
        )
    return parts, dict(parse_qsl(parts.query, keep_blank_values=True))


def _hosts(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _user(parts: SplitResult) -> dict[str, str | None]:
    """Whoever stands before the ``@``, as the clients want it."""
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return {"username": unquote(user) or None, "password": unquote(password) or None}


def _name(parts: SplitResult) -> str:
    return unquote(parts.path[1:])


def _kafka(parts: SplitResult, options: dict[str, str], shown: str) -> Upstream:
    kind: Any = importlib.import_module("millstream.sources.kafka_topic").KafkaTopic
    settings: dict[str, Any] = _properties(options.pop("settings")) if "settings" in options else {}
    settings.update({key: value for key, value in options.items() if "." in key})
    user = _user(parts)
    if user["username"]:
        settings.update({"sasl.username": user["username"], "sasl.password": user["password"] or ""})
    partitions = options.get("partitions")
    try:
        numbers = None if partitions is None else [int(one) for one in partitions.split(",")]
    except ValueError as error:
        raise SettingError(
            got=f"partitions={partitions} for {shown}", wanted="numbers: 0,2", do="correct it"
        ) from error
    upstream: Upstream = kind(_hosts(parts), _name(parts), partitions=numbers, settings=settings)
    return upstream


def _redis(parts: SplitResult, options: dict[str, str], shown: str) -> Upstream:
    kind: Any = importlib.import_module("millstream.sources.redis_stream").RedisStream
    upstream: Upstream = kind(
        parts.hostname,
        _port(parts, 6379, shown),
        _name(parts),
        field=options.get("field"),
        database=_number(options, "db", 0, int, shown),
        tls=parts.scheme == "rediss",
        **_user(parts),
    )
    return upstream


def _nats(parts: SplitResult, options: dict[str, str], shown: str) -> Upstream:
    kind: Any = importlib.import_module("millstream.sources.nats_stream").NatsStream
    token = {"token": options["token"]} if "token" in options else {}
    files = {"user_credentials": options["credentials"]} if "credentials" in options else {}
    upstream: Upstream = kind(_hosts(parts), _name(parts), tls=parts.scheme == "tls", **_user(parts), **token, **files)
    return upstream


def _followed(parts: SplitResult, options: dict[str, str], shown: str) -> Upstream:
    return FollowedFile(parts.path)


_KINDS: dict[str, tuple[Callable[[SplitResult, dict[str, str], str], Upstream], set[str]]] = {
    "kafka": (_kafka, {"partitions", "settings"}),
    "redis": (_redis, {"field", "db"}),
    "rediss": (_redis, {"field", "db"}),
    "nats": (_nats, {"token", "credentials"}),
    "tls": (_nats, {"token", "credentials"}),
    "follow": (_followed, set()),
}


def _decoder(options: dict[str, str], shown: str) -> Decoder | None:
    name, registry = options.get("decoder"), options.get("registry")
    if registry is not None and name != "avro":
        raise SettingError(got=f"registry= for {shown}", wanted="it with decoder=avro only", do="add decoder=avro")
    if name is None:
        return None
    if name == "json":
        return TextDecoder()
    if name == "avro":
        if registry is None:
            raise SettingError(got=f"decoder=avro for {shown}", wanted="registry=http://…, too", do="add it")
        decoder: Decoder = importlib.import_module("millstream.sources.registry").AvroDecoder(registry)
        return decoder
    return RowsDecoder(name, function_named(name))


def _number(options: dict[str, str], key: str, default: Any, kind: Callable[[str], Any], shown: str) -> Any:
    try:
        value = kind(options[key]) if key in options else default
    except ValueError as error:
        raise SettingError(got=f"{key}={options[key]} for {shown}", wanted="a number", do="correct it") from error
    if value < 0:
        raise SettingError(got=f"{key}={value} for {shown}", wanted="a number from 0 on", do="correct it")
    return value


def _port(parts: SplitResult, default: int, shown: str) -> int:
    try:
        return parts.port or default
    except ValueError as error:
        raise SettingError(got=f"the port of {shown}", wanted="a number up to 65535", do="correct it") from error


def _properties(path: str) -> dict[str, str]:
    """A file of ``key=value`` lines, for what shall not stand in a command."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            got=f"settings={path} ({type(error).__name__})", wanted="a file of key=value lines", do="check it"
        ) from None
    pairs = [line.partition("=") for line in map(str.strip, lines) if line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}
