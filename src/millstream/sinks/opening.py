"""Sinks by name, as people write them."""

from __future__ import annotations

from pathlib import Path

from millstream.contracts import Sink
from millstream.errors import SettingError
from millstream.sinks.jsonlines import JsonLinesSink
from millstream.sinks.kafka import KafkaSink
from millstream.sinks.parquet import ParquetSink

__all__ = ["open_sink"]


def open_sink(name: str | Path) -> Sink:
    """``outcomes.jsonl``; ``outcomes/`` or ``outcomes.parquet``, a folder of Parquet files; ``kafka://host:9092/topic``.

    >>> import tempfile
    >>> type(open_sink(tempfile.mkdtemp() + "/outcomes.parquet")).__name__
    'ParquetSink'
    """
    text = str(name)
    if text.startswith("kafka://"):
        return KafkaSink(text)
    path = Path(text)
    if "://" not in text:
        if text.endswith("/") or path.is_dir() or path.suffix == ".parquet":
            return ParquetSink(path)
        if path.suffix in (".jsonl", ".ndjson"):
            return JsonLinesSink(path)
    raise SettingError(
        got=f"{text.partition('?')[0]!r} as the place for outcomes",
        wanted="NAME.jsonl, a folder (NAME/ or NAME.parquet), or kafka://HOST:PORT/TOPIC",
        do="write one of these",
    )
