"""A group as it is stored: one row of a table, its checksum, its digests, and its link in the chain.

    chain = SHA-256(chain before ‖ header ‖ digests)        header: number, place, facts, offsets, producer
    crc   = CRC32C of every byte of the row

The chain covers the digests and not the payload, so that a record can go and the chain still holds. This file knows the
row; it knows no SQL and no file.

Shapes: N records and R refused ones as appended; N + R salts, N + R digests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from millstream.contracts import Rejection
from millstream.errors import DataError
from millstream.journal.digests import DIGEST_BYTES, SALT_BYTES, digest_rows, digest_texts
from millstream.journal.groups import KINDS, Draft, Group, Head

__all__ = ["ID_BYTES", "MAX_PAYLOAD_BYTES", "Row", "row_of", "schema_bytes", "without"]

ID_BYTES = 16
MAX_PAYLOAD_BYTES = 1 << 29  # of one group; SQLite's own limit is a little below 2^30
_HEADER = struct.Struct("<8q")

Schemas = Mapping[bytes, pa.Schema]


@dataclasses.dataclass(slots=True)
class Row:
    """The columns of the table, in their order."""

    number: int
    first: int
    span: int
    kind: int
    num_records: int  # as appended, erased ones too
    facts: bytes
    schema: bytes  # SHA-256 of the schema's bytes; empty without records
    producer: bytes
    sequence: int
    before: int  # number of the group of the same producer before this one; 0: none
    crc: int
    chain: bytes
    offsets: bytes
    erased: bytes  # which of the N + R have gone, rising
    rejected: bytes  # JSON
    ids: bytes
    salts: bytes
    digests: bytes
    payload: Any  # an Arrow record batch without its schema

    def num_bytes(self) -> int:
        return len(self.facts) + 32 * len(self.digests) // DIGEST_BYTES + len(self.rejected) + len(self.payload) + 256

    def seal(self, before: bytes) -> None:
        """Links the row to the chain and takes its checksum."""
        self.chain = self.link(before)
        self.crc = self.checksum()

    def link(self, before: bytes) -> bytes:
        return hashlib.sha256(b"".join((before, self._header(), self.digests))).digest()

    def checksum(self) -> int:
        small = (self._header(), self.chain, self.erased, self.rejected, self.ids, self.salts, self.digests)
        lengths = struct.pack("<8q", self.before, *map(len, small[1:]), len(self.payload))
        crc: int = google_crc32c.extend(google_crc32c.value(b"".join((lengths, *small))), self.payload)
        return crc

    def _header(self) -> bytes:
        texts = (self.facts, self.schema, self.producer, self.offsets)
        numbers = (self.number, self.first, self.span, self.kind, self.num_records, self.sequence)
        return b"".join((_HEADER.pack(*numbers, len(self.facts), len(self.producer)), *texts))

    def head(self) -> Head:
        return Head(self.number, self.first + self.span, self.chain.hex())

    def group(self, schemas: Schemas) -> Group:
        """What people see; the record batch shares the payload's memory."""
        records, offsets = None, np.frombuffer(self.offsets, np.int64) if self.offsets else None
        gone = np.frombuffer(self.erased, np.int64)
        gone = gone[gone < self.num_records]
        if self.schema:
            schema = schemas[self.schema]
            if self.payload:
                records = pa.ipc.read_record_batch(pa.py_buffer(self.payload), schema)
            else:  # all of the group was given up as lost
                records = pa.record_batch([pa.array([], one.type) for one in schema], schema)
            records.validate()
            if len(records) != self.num_records - len(gone):
                raise ValueError(f"{len(records)} records, not {self.num_records - len(gone)}")
        if len(gone):
            offsets = np.delete(np.arange(self.num_records) if offsets is None else offsets, gone)
        rejected = tuple(Rejection(*each) for each in json.loads(self.rejected)) if self.rejected else ()
        facts = json.loads(self.facts) if self.facts else {}
        return Group(self.number, self.first, self.span, KINDS[self.kind], facts, records, offsets, rejected)

    def entries(self) -> npt.NDArray[np.int64]:
        """(N + R,) journal position of each record and then each refused one, those that were erased too."""
        offsets = np.frombuffer(self.offsets, np.int64) if self.offsets else np.arange(self.num_records)
        refused = np.full(len(self.digests) // DIGEST_BYTES - self.num_records, -1, np.int64)
        gone = np.frombuffer(self.erased, np.int64)
        left = np.delete(np.arange(len(refused)), gone[gone >= self.num_records] - self.num_records)
        refused[left] = [each[0] for each in json.loads(self.rejected)] if self.rejected else []
        places: npt.NDArray[np.int64] = np.concatenate([offsets[: self.num_records], refused])
        return np.where(places < 0, places, places + self.first)

    def digests_hold(self, schemas: Schemas) -> bool:
        """Each record that is there is the one that was appended."""
        kept = np.delete(np.arange(len(self.digests) // DIGEST_BYTES), np.frombuffer(self.erased, np.int64))
        matrix = np.frombuffer(self.digests, np.uint8).reshape(-1, DIGEST_BYTES)
        group = self.group(schemas)
        if group.records is not None:
            group.records.validate(full=True)
        return _digests(group.records, _rejections(group.rejected), self.salts) == matrix[kept].tobytes()


def row_of(draft: Draft, ids: bytes = b"") -> Row:
    """A draft as a row that has no number, place and chain yet; the dear part of an append, which needs no lock."""
    draft.check()
    rejected = _rejections(draft.rejected)
    salts = os.urandom(SALT_BYTES * (draft.num_records + len(rejected)))
    payload: Any = b"" if draft.records is None else draft.records.serialize()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DataError(
            got=f"{len(payload):,} bytes of records in one draft",
            wanted=f"at most {MAX_PAYLOAD_BYTES:,}",
            do="append less at once",
        )
    try:
        facts = json.dumps(draft.facts, allow_nan=False).encode() if draft.facts else b""
    except (TypeError, ValueError) as error:
        raise DataError(
            got=f"facts that are no JSON ({error})", wanted="JSON values", do="turn them into texts or numbers"
        ) from error
    return Row(
        number=0,
        first=0,
        span=draft.span,
        kind=KINDS.index(draft.kind),
        num_records=draft.num_records,
        facts=facts,
        schema=b"" if draft.records is None else hashlib.sha256(schema_bytes(draft.records.schema)).digest(),
        producer=(draft.producer or "").encode(),
        sequence=draft.sequence,
        before=0,
        crc=0,
        chain=b"",
        offsets=b"" if draft.offsets is None else np.ascontiguousarray(draft.offsets, np.int64).tobytes(),
        erased=b"",
        rejected=b"[" + b",".join(rejected) + b"]" if rejected else b"",
        ids=ids,
        salts=salts,
        digests=_digests(draft.records, rejected, salts),
        payload=payload,
    )


def without(row: Row, entries: npt.NDArray[np.int64], schemas: Schemas, oldest: int) -> Row:
    """The row with these of its N + R entries erased: record, salt and refused text go, digest and chain stay.

    So does the hash of an id at ``oldest`` or later.
    """
    group = row.group(schemas)
    before = np.frombuffer(row.erased, np.int64)
    kept = np.delete(np.arange(len(row.digests) // DIGEST_BYTES), before)
    stays = ~np.isin(kept, entries)
    of_records = stays[kept < row.num_records]
    payload: Any = row.payload
    if group.records is not None and not of_records.all():
        payload = group.records.take(pa.array(np.flatnonzero(of_records))).serialize().to_pybytes()
    refused = [
        each for each, stay in zip(_rejections(group.rejected), stays[kept >= row.num_records], strict=True) if stay
    ]
    ids = row.ids
    if ids:
        places = row.entries()[entries]
        by_place = np.frombuffer(ids, np.uint8).reshape(-1, ID_BYTES).copy()
        by_place[places[places < oldest] - row.first] = 0
        ids = by_place.tobytes()
    changed = dataclasses.replace(
        row,
        ids=ids,
        payload=payload,
        rejected=b"[" + b",".join(refused) + b"]" if refused else b"",
        erased=np.union1d(before, entries).astype(np.int64).tobytes(),
        salts=np.frombuffer(row.salts, np.uint8).reshape(-1, SALT_BYTES)[stays].tobytes(),
    )
    changed.crc = changed.checksum()
    return changed


def schema_bytes(schema: pa.Schema) -> bytes:
    serialized: bytes = schema.serialize().to_pybytes()
    return serialized


def _rejections(rejected: tuple[Rejection, ...]) -> list[bytes]:
    return [json.dumps([one.offset, one.reason, one.where, one.record]).encode() for one in rejected]


def _digests(records: pa.RecordBatch | None, rejected: list[bytes], salts: bytes) -> bytes:
    num = 0 if records is None else len(records)
    of_records = b"" if records is None else digest_rows(records, salts[: SALT_BYTES * num])
    if not rejected:
        return of_records
    return of_records + digest_texts(rejected, salts[SALT_BYTES * num :])
