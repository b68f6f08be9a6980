"""Avro messages by the schema that each names, from a schema registry. Needs ``fastavro``: the extra ``avro``.

A message begins with a zero byte and the number of its schema (four bytes), as Confluent's clients write it.
"""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from millstream.errors import SettingError, StorageError, missing_package
from millstream.sources.decoding import Decoded, RowsDecoder

try:
    import fastavro
except ImportError as absent:
    raise missing_package("fastavro", "Avro", "avro") from absent

__all__ = ["AvroDecoder"]

_MOST_SCHEMA_BYTES = 1 << 22


class AvroDecoder:
    """Avro records as columns. A schema is asked for once; user and password may stand in the address."""

    name = "avro"

    def __init__(self, registry: str) -> None:
        parts = urlsplit(registry)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(
                got="a schema registry without http://", wanted="http://host:8081", do="write registry=http://…"
            )
        host = parts.hostname + (f":{parts.port}" if parts.port else "")
        self._address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        keys = urllib.request.HTTPPasswordMgrWithPriorAuth()
        if parts.username is not None:
            keys.add_password(None, self._address, parts.username, parts.password or "", is_authenticated=True)
        self._opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(keys))
        self._schemas: dict[int, Any] = {}
        self._rows = RowsDecoder(self.name, self._row)

    def infer(self, messages: Sequence[Any], declared: Mapping[str, pa.DataType], where: str) -> pa.Schema:
        return self._rows.infer(messages, declared, where)

    def decode(self, messages: Sequence[Any], schema: pa.Schema) -> Decoded:
        # Outside of what may be a bad message: a registry that is away is no fault of the records.
        for number in {int.from_bytes(one[1:5]) for one in messages if one[:1] == b"\0" and len(one) > 4}:
            self._schema(number)
        return self._rows.decode(messages, schema)

    def shown(self, message: Any) -> str:
        return "" if message is None else bytes(message[:500]).hex()

    def _row(self, message: bytes) -> Any:
        if message[:1] != b"\0" or len(message) < 5:
            raise ValueError("no number of a schema in front")
        schema = self._schema(int.from_bytes(message[1:5]))
        if schema is None:
            raise ValueError(f"schema {int.from_bytes(message[1:5])}, which the registry does not have")
        stream = io.BytesIO(message[5:])
        row = fastavro.schemaless_reader(stream, schema, None)
        if stream.read(1):
            raise ValueError("bytes after the record")
        return row

    def _schema(self, number: int) -> Any:
        if number in self._schemas:
            return self._schemas[number]
        try:
            with self._opener.open(f"{self._address}/schemas/ids/{number}", timeout=10) as answer:
                found = json.loads(answer.read(_MOST_SCHEMA_BYTES))
            schema = fastavro.parse_schema(json.loads(found["schema"]))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise self._away(f"status {error.code}") from None
            schema = None
        except (OSError, ValueError, KeyError, TypeError, fastavro.schema.SchemaParseException) as error:
            raise self._away(type(error).__name__) from None
        self._schemas[number] = schema
        return schema

    def _away(self, reason: str) -> StorageError:
        return StorageError(
            got=f"no schema from {self._address} ({reason})", wanted="a schema registry", do="correct its address"
        )
